"""The deconvnet (Zeiler & Fergus 2014, section 2.1), as a transformation of functions.

A deconvnet is the backward pass with another rule at each ReLU: convolution, switches and unpooling are then the
ordinary transposes. So `with_relu_rule` evaluates a function's jaxpr with every ReLU replaced by one whose backward
rule is the wanted one, and `project` takes the vector-Jacobian product with one activation as cotangent. Biases drop
out, because they are added; there is no ReLU behind the last transposed convolution, so the pixels are signed.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.models import ConvNet
from cnnjax.tracing.walk import Walk, rectify, transformed

Rule = Literal["gradient", "deconvnet", "guided"]

# How the signal from above passes a ReLU, from the forward input and that signal (paper; Springenberg et al. 2014).
BACKWARD: dict[str, Callable[[Array, Array], Array]] = {
    "deconvnet": lambda forward, signal: jnp.maximum(signal, 0),
    "guided": lambda forward, signal: jnp.where(forward > 0, jnp.maximum(signal, 0), 0),
}


def with_relu_rule(function: Callable[..., Any], rule: Rule = "deconvnet") -> Callable[..., Any]:
    """The same function of arrays, whose reverse derivative uses `rule` at every ReLU; the function for "gradient".

    A ReLU is `jax.nn.relu`, `jnp.maximum(x, 0)`, `jnp.clip(x, 0)`, `jnp.where(x > 0, x, 0)`, `x * (x > 0)` or
    `-jnp.minimum(-x, 0)`, however the zero is made (`0 * x` as well), wherever it stands in `function`: jitted parts,
    checkpoints, the bodies of `lax.scan` and the branches of `lax.cond` included, `while` and functions with a
    `custom_vjp` of their own excluded.

    A ReLU with a bound, `jax.nn.relu6`, `jnp.minimum(relu(x), 6)`, `jnp.clip(x, 0, 6)` or another positive number, is a
    ReLU that passes no signal where the bound holds: of the paper's deconvnet the ReLU on the way back belongs to the
    ReLU, and a clip, as the switches of a pool do, passes a signal only to what made its output. So "deconvnet" passes
    max(signal, 0) where x < 6, "guided" where 0 < x < 6.

    For "deconvnet" and "guided" all else must be linear in the arguments, for fixed ReLUs and choices, because there
    is no rule for other nonlinearities (`cnnjax.tracing.values` proves it). Allowed are therefore

    - sums, products with weights, moving and padding;
    - choices among independent values, that is elements of one map at different places: max pooling, sort, top_k,
      maxout among the outputs of one product, if no two are multiples of each other, and `where` by such a comparison;
      or of a branch, by the comparison of a *sum* of the data;
    - a normalization: dividing by a root or power of a *sum* of squares or absolute values (batch, layer, group, RMS
      norm; differentiated as it is), with `ops.local_response_norm` passed unchanged;
    - anything that is computed from weights alone, as running statistics;
    - a softmax, its logarithm or a logsumexp at the end.

    All else is refused, behind a sum or at the end of the function too: tanh, sigmoid, gelu, attention, x², gates, a
    choice among x and a function of the same x (leaky ReLU, |x|, two products with weights) or a constant, medians and
    quantiles (take the middle of `jnp.sort`), and rarer spellings of a ReLU (`jnp.select`, `jnp.piecewise`, the largest
    of a stack with zeros, a bound before the ReLU). Weights must be closed over and not be arguments.

    Raises:
        InputError: for a rule that does not exist; when called, for a nonlinearity without a rule, by its name.
    """
    if rule not in get_args(Rule):
        raise InputError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if rule == "gradient":
        return function

    def relu(x, most, _):
        @jax.custom_vjp
        def by_rule(x):
            return rectify(x, most)

        def backward(x, signal):
            passed = BACKWARD[rule](x, signal)
            return (passed if most is None else jnp.where(x >= most, 0, passed),)

        by_rule.defvjp(lambda x: (rectify(x, most), x), backward)
        return by_rule(x)

    return lambda *args: transformed(function, args, Walk(relu))


def project(
    feature_map: Callable[[Float[Array, "batch height width channels"]], Float[Array, "batch *space maps"]],
    images: Float[Array, "batch height width channels"],
    units: Int[Array | np.ndarray, "batch axes"],
    *,
    rule: Rule = "deconvnet",
    signal: float | Float[Array, ""] = math.nan,
) -> Float[Array, "batch height width channels"]:
    """One activation of each image, projected to pixels; signed, in units of the network's input.

    Args:
        feature_map: from images to the activations of one layer.
        images: one image an activation; its own pooling switches are used.
        units: where each activation stands in its image's part of the layer, (row, column, map) or (unit,).
        rule: what happens at a ReLU on the way down.
        signal: what comes down in the place of each activation; NaN: the activation itself.
    """
    units = _checked_units(units, jax.eval_shape(feature_map, images).shape)
    activations, backward = jax.vjp(with_relu_rule(feature_map, rule), images)
    index = (jnp.arange(images.shape[0]), *jnp.moveaxis(units, 1, 0))
    # All other units of the layer are set to zero, the other maps included.
    down = jnp.where(jnp.isnan(signal), activations[index], signal)
    return backward(jnp.zeros_like(activations).at[index].set(down))[0]


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
