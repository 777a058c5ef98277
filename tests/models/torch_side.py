"""A network of ours beside PyTorch's with the same random weights; only tests marked `extra` import this."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.models import weights

STEPS = 3


def randomized(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All weights drawn, so that no bias is 0, no scale 1 and no running statistic what it starts as; no dropout."""
    rng = torch.Generator().manual_seed(seed)

    def normal(tensor, scale):
        return torch.randn(tensor.shape, generator=rng) * scale

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.copy_(1 + normal(part.weight, 0.2))
                part.bias.copy_(normal(part.bias, 0.2))
                part.running_mean.copy_(normal(part.running_mean, 0.2))
                part.running_var.copy_(torch.exp(normal(part.running_var, 0.3)))
            elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                # He's, so that the signal is as large in the last layer as in the first.
                part.weight.copy_(normal(part.weight, (2 / part.weight[0].numel()) ** 0.5))
                if part.bias is not None:
                    part.bias.copy_(normal(part.bias, 0.2))
    return module


def assert_same(
    config: ModelConfig, module: torch.nn.Module, image_shape: tuple[int, int, int], *, classes: int
) -> None:
    """At evaluation and in each of three training steps logits and image gradients are the module's.

    Our weights are the module's `state_dict`, by name; a sum of the logits with random factors is what has the
    gradient. In float32 logits are within 1e-4 of the largest, and the running statistics that the steps leave within
    1e-5 of their length, layer by layer. Gradients jump where a ReLU's input is 0 but for rounding, and among
    millions of ReLUs some are: they are compared in float64, with the rest, and all are then within 1e-8.
    """
    randomized(module)
    network = models.build(config, image_shape, classes)
    rng = np.random.default_rng(0)
    images, factors = rng.normal(size=(STEPS, 8, *image_shape)), rng.normal(size=(3, classes))
    state = _arrays(module)
    # Eight images, as in the last layers the statistics of few places are the rounding of those before them, enlarged.
    _compare(network, module, images.astype(np.float32), None, logits_to=1e-4, statistics_to=1e-5)
    module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    with jax.enable_x64(True):
        _compare(network, module.double(), images[:, :3], factors, logits_to=1e-8, statistics_to=1e-8)


def _compare(network, module, images, factors, *, logits_to: float, statistics_to: float) -> None:
    like = jax.eval_shape(network.init, jax.random.key(0), images[0].astype(np.float32))
    variables = weights.variables_of(_arrays(module), like)
    # What is read is float32, and the module's float64 is made from float32: nothing is lost.
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, images.dtype), variables)

    @functools.partial(ops.jit, runs_once=True, static_argnums=2)
    def ours(variables, x, train):
        def logits(x):
            (logits, _), changed = network.apply(
                variables, x, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            )
            return logits, changed

        if factors is None:
            return *logits(x), None
        out, back, changed = jax.vjp(logits, x, has_aux=True)
        return out, changed, back(jnp.asarray(factors))[0]

    def theirs(images):
        x = torch.tensor(np.moveaxis(images, -1, 1).copy(), requires_grad=factors is not None)
        logits = module(x)
        if factors is None:
            return logits.detach().numpy(), None
        (gradient,) = torch.autograd.grad((logits * torch.tensor(factors)).sum(), x)
        return logits.detach().numpy(), np.moveaxis(gradient.numpy(), 1, -1)

    for step, train in [(0, False), *((step, True) for step in range(STEPS))]:
        module.train(train)
        (logits, changed, gradient), (their_logits, their_gradient) = (
            ours(variables, images[step], train),
            theirs(images[step]),
        )
        assert logits.dtype == their_logits.dtype
        _close(logits, their_logits, logits_to)
        if factors is not None:
            _close(gradient, their_gradient, logits_to)
        variables = {**variables, **changed}
    left = _arrays(module)
    for name, array in weights.named({"batch_stats": variables.get("batch_stats", {})}).items():
        assert np.linalg.norm(array - left[name]) <= statistics_to * np.linalg.norm(left[name]), name


def _arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copies: PyTorch changes the running statistics in place."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def _close(mine, other, share: float) -> None:
    np.testing.assert_allclose(mine, other, rtol=0, atol=share * np.abs(other).max())
