"""The same work in PyTorch: eager, channels-last, compiled."""

from collections.abc import Callable

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.rivals.cases import CLASSES, Case
from experiments.rivals.jax_side import DECAY, LEARNING_RATE, MOMENTUM, UNIT, Work, images_and_labels


def _network(case: Case) -> nn.Sequential:
    network, layers, channels = case.network(), [], case.shape[-1]
    size = case.shape[0]
    for layer in network.convolutions:
        layers += [nn.Conv2d(channels, layer.width, layer.filter, layer.stride, layer.padding), nn.ReLU()]
        size = (size - layer.filter + 2 * layer.padding) // layer.stride + 1
        if layer.pool:
            layers.append(nn.MaxPool2d(layer.pool.window, layer.pool.stride, layer.pool.padding))
            size = (size - layer.pool.window + 2 * layer.pool.padding) // layer.pool.stride + 1
        if layer.norm == "lrn":
            layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # its alpha is divided by the size
        channels = layer.width
    layers.append(nn.Flatten())
    inputs = channels * size * size
    for units in network.dense:
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    network = nn.Sequential(*layers, nn.Linear(inputs, CLASSES))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _images_and_labels(case: Case, memory_format: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = images_and_labels(case)
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    return images.to(memory_format=memory_format), torch.from_numpy(labels.astype(np.int64))


def _training(case: Case, channels_last: bool, compiled: bool) -> Work:
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = _network(case).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY, fused=True)
    images, labels = _images_and_labels(case, memory_format)
    criterion = nn.CrossEntropyLoss()
    rows = torch.arange(case.images).reshape(-1, case.batch)

    def objective(x, y):
        return criterion(network(x), y)

    if compiled:
        objective = torch.compile(objective)

    def work(count: int) -> float:
        for index in range(count):
            chosen = rows[index % len(rows)]
            x = ((images[chosen].float() - 127.5) / UNIT).contiguous(memory_format=memory_format)
            optimizer.zero_grad(set_to_none=True)
            loss = objective(x, labels[chosen])
            loss.backward()
            optimizer.step()
        return float(loss)

    return work


def _stacked_members(case: Case) -> Work:
    """`torch.func`: the members' weights stacked, the gradient of one under `vmap`, one batch for all."""
    torch.manual_seed(0)
    networks = [_network(case) for _ in range(case.members)]
    params, _ = torch.func.stack_module_state(networks)
    optimizer = torch.optim.SGD(params.values(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY, fused=True)
    images, labels = _images_and_labels(case, torch.contiguous_format)
    rows = torch.arange(case.images).reshape(-1, case.batch)

    def objective(own, x, y):
        return nn.functional.cross_entropy(torch.func.functional_call(networks[0], own, (x,)), y)

    gradients = torch.func.vmap(torch.func.grad_and_value(objective), in_dims=(0, None, None))

    def work(count: int) -> float:
        for index in range(count):
            chosen = rows[index % len(rows)]
            x = (images[chosen].float() - 127.5) / UNIT
            found, losses = gradients({name: leaf.detach() for name, leaf in params.items()}, x, labels[chosen])
            for name, leaf in params.items():
                leaf.grad = found[name]
            optimizer.step()
        return float(losses.mean())

    return work


def _convolution(case: Case, channels_last: bool) -> Work:
    spatial = len(case.shape) - 1
    conv = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[spatial]
    x = torch.randn(case.batch, case.shape[-1], *case.shape[:-1])
    kernel = torch.randn(case.width, case.shape[-1], *(case.window,) * spatial)
    if channels_last and spatial == 3:
        x, kernel = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, kernel))
    x, kernel = x.requires_grad_(), kernel.requires_grad_()

    def work(count: int) -> float:
        for _ in range(count):
            out = conv(x, kernel, padding=case.window // 2)
            torch.autograd.grad(out, (x, kernel), out.detach())
        return float("nan")

    return work


def _response_norm(case: Case, channels_last: bool) -> Work:
    x = torch.randn(case.batch, case.shape[-1], *case.shape[:-1])
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    def work(count: int) -> float:
        for _ in range(count):
            (gradient,) = torch.autograd.grad((norm(x) ** 2).sum(), x)
        return float("nan") * float(gradient.shape[0])

    return work


RIVALS: dict[str, Callable[[Case], Work]] = {
    "torch": lambda case: _training(case, False, False),
    "torch channels-last": lambda case: _training(case, True, False),
    "torch compiled": lambda case: _training(case, True, True),
    "torch func": _stacked_members,
    "torch conv": lambda case: _convolution(case, False),
    "torch conv channels-last": lambda case: _convolution(case, True),
    "torch norm": lambda case: _response_norm(case, False),
    "torch norm channels-last": lambda case: _response_norm(case, True),
}
