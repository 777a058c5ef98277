"""The deconvnet (Zeiler & Fergus 2014, section 2.1), as a transformation of functions.

A deconvnet is the backward pass with another rule at each ReLU: convolution, switches and unpooling are then the
ordinary transposes. So `with_relu_rule` evaluates a function's jaxpr with every ReLU replaced by one whose backward
rule is the wanted one, and `project` takes the vector-Jacobian product with one activation as cotangent. Biases drop
out, because they are added; there is no ReLU behind the last transposed convolution, so the pixels are signed.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, Int

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.models import ConvNet

Rule = Literal["gradient", "deconvnet", "guided"]

# How the signal from above passes a ReLU, from the forward input and that signal (paper; Springenberg et al. 2014).
BACKWARD: dict[str, Callable[[Array, Array], Array]] = {
    "gradient": lambda forward, signal: jnp.where(forward > 0, signal, 0),
    "deconvnet": lambda forward, signal: jnp.maximum(signal, 0),
    "guided": lambda forward, signal: jnp.where(forward > 0, jnp.maximum(signal, 0), 0),
}

# Functions through which the signal passes unchanged, by the name under which they are jitted. The ECCV edition of
# the paper leaves contrast normalization out of the reconstruction.
PASSED_UNCHANGED = ("local_response_norm",)


def with_relu_rule(function: Callable[..., Any], rule: Rule = "deconvnet") -> Callable[..., Any]:
    """The same function of arrays, whose reverse derivative uses `rule` at every ReLU.

    A ReLU is `jax.nn.relu` or `jnp.maximum(x, 0)`, wherever it stands in `function`, jitted parts included.

    Raises:
        InputError: for a rule that does not exist.
    """
    if rule not in BACKWARD:
        raise InputError(f"rule must be one of {', '.join(BACKWARD)}, got {rule!r}")

    @jax.custom_vjp
    def relu(x):
        return jax.nn.relu(x)

    relu.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, signal: (BACKWARD[rule](x, signal),))

    def transformed(*args):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), relu)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return transformed


def _evaluate(jaxpr: core.Jaxpr, consts, args, relu: Callable[[Array], Array]) -> list[Array]:
    """The values of the jaxpr's outputs, equation by equation, with `relu` in the place of every ReLU."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        inner: Any = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if _is_relu(equation):
            outputs = [relu(next(x for v, x in zip(equation.invars, inputs, strict=True) if not _is_zero(v)))]
        elif equation.primitive.name == "jit" and equation.params["name"] in PASSED_UNCHANGED:
            outputs = [_straight_through(core.jaxpr_as_fun(inner), inputs)]
        elif equation.primitive.name == "jit" or (
            equation.primitive.name == "custom_jvp_call" and _contains_relu(inner.jaxpr)
        ):
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs, relu)
        elif equation.primitive.name in ("checkpoint", "remat2"):
            outputs = _evaluate(inner, (), inputs, relu)  # what is stored and what is computed again changes no value
        elif any(_contains_relu(jaxpr) for jaxpr in _inner_jaxprs(equation)):
            raise InputError(
                f"function must have its ReLUs outside {equation.primitive.name}, where no rule reaches them"
            )
        else:
            outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _straight_through(function: Callable[..., Any], inputs: list[Array]) -> Array:
    """`function(x)` forward, and the signal passed to `x` as it is."""

    @jax.custom_vjp
    def passed(x):
        return function(x)[0]

    passed.defvjp(lambda x: (function(x)[0], None), lambda _, signal: (signal,))
    (x,) = inputs
    return passed(x)


def _is_zero(variable) -> bool:
    return isinstance(variable, core.Literal) and not jnp.shape(variable.val) and float(variable.val) == 0.0


def _is_relu(equation) -> bool:
    return equation.primitive.name == "max" and any(_is_zero(variable) for variable in equation.invars)


def _contains_relu(jaxpr: core.Jaxpr) -> bool:
    return any(
        _is_relu(equation) or any(_contains_relu(inner) for inner in _inner_jaxprs(equation)) for equation in jaxpr.eqns
    )


def _inner_jaxprs(equation) -> list[core.Jaxpr]:
    """The jaxprs that an equation holds: the body of a loop, the branches of a choice, the function of a call."""
    held = [entry for value in equation.params.values() for entry in (value if isinstance(value, tuple) else (value,))]
    opened = [entry.jaxpr if isinstance(entry, core.ClosedJaxpr) else entry for entry in held]
    return [entry for entry in opened if isinstance(entry, core.Jaxpr)]


def project(
    feature_map: Callable[[Float[Array, "batch height width channels"]], Float[Array, "batch *space maps"]],
    images: Float[Array, "batch height width channels"],
    units: Int[Array | np.ndarray, "batch axes"],
    *,
    rule: Rule = "deconvnet",
) -> Float[Array, "batch height width channels"]:
    """One activation of each image, projected to pixels; signed, in units of the network's input.

    Args:
        feature_map: from images to the activations of one layer.
        images: one image an activation; its own pooling switches are used.
        units: where each activation stands in its image's part of the layer, (row, column, map) or (unit,).
        rule: what happens at a ReLU on the way down.
    """
    units = _checked_units(units, jax.eval_shape(feature_map, images).shape)
    activations, backward = jax.vjp(with_relu_rule(feature_map, rule), images)
    index = (jnp.arange(images.shape[0]), *jnp.moveaxis(units, 1, 0))
    # All other units of the layer are set to zero, the other maps included.
    return backward(jnp.zeros_like(activations).at[index].set(activations[index]))[0]


def _checked_units(units: Any, shape: tuple[int, ...]) -> Array | np.ndarray:
    """`units` as integers, one row an image; values are checked where they are known, that is, not under `jit`."""
    units = units if isinstance(units, jax.Array) else np.asarray(units)
    wanted = (shape[0], len(shape) - 1)
    if units.shape != wanted or not jnp.issubdtype(units.dtype, jnp.integer):
        raise InputError(
            f"units must be integers of shape {wanted} for activations {shape}, got {units.dtype}{units.shape}"
        )
    if not isinstance(units, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        bad = np.argwhere((np.asarray(units) < 0) | (np.asarray(units) >= np.array(shape[1:])))
        if len(bad):
            raise InputError(f"units must lie within {shape[1:]}, got {np.asarray(units)[bad[0, 0]].tolist()}")
    return units


def project_by_switches(
    network: ConvNet,
    variables: Any,
    images: Float[Array, "batch height width channels"],
    layer: str,
    units: Int[Array | np.ndarray, "batch axes"],
) -> Float[Array, "batch height width channels"]:
    """The deconvnet as the paper draws it (figure 1): unpool by switches, rectify, filter transposed, layer by layer.

    The same as `project`, for this project's plain networks; kept to be read, and to check the other by.

    Raises:
        InputError: for a layer that is no convolution or pool of the network.
    """
    steps: list[tuple[str, Callable[[Array], Array]]] = []  # from the image upwards: how to come down through a step
    x = images
    for number, spec in enumerate(network.convolutions, 1):
        params = variables["params"][f"conv{number}"]
        window = {"strides": spec.stride, "padding": spec.padding, "rounding": network.rounding}

        def filter_transposed(signal, kernel=params["kernel"], size=x.shape[1:3], window=window):
            return ops.conv_transpose(jnp.maximum(signal, 0), kernel, size, **window)

        steps.append((f"conv{number}", filter_transposed))
        x = jax.nn.relu(ops.conv(x, params["kernel"], **window) + params["bias"])
        if layer == f"conv{number}":
            break
        if spec.pool is not None:
            pool = {"strides": spec.pool.stride, "padding": spec.pool.padding, "rounding": network.rounding}
            pooled, switches = ops.max_pool_with_switches(x, spec.pool.window, **pool)
            steps.append((f"pool{number}", lambda signal, s=switches, size=x.shape[1:3]: ops.unpool(signal, s, size)))
            x = pooled
            if layer == f"pool{number}":
                break
        if spec.norm == "batch":
            raise InputError(f"layer must be below norm{number}: batch normalization has no switches, got {layer!r}")
        if spec.norm == "lrn":
            x = ops.local_response_norm(x)
    else:
        raise InputError(f"layer must be one of {', '.join(name for name, _ in steps)}, got {layer!r}")
    units = _checked_units(units, x.shape)
    index = (jnp.arange(images.shape[0]), *jnp.moveaxis(units, 1, 0))
    signal = jnp.zeros_like(x).at[index].set(x[index])
    for _, down in reversed(steps):
        signal = down(signal)
    return signal
