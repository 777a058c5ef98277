"""By function: every ReLU gets its rule wherever it stands, every other nonlinearity is refused wherever it stands."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import core
from jax.extend.core import Primitive

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.ops.normalization import local_response_norm
from cnnjax.visualize.deconvnet import BACKWARD, with_relu_rule

SHAPE = (2, 4, 4, 3)
X = jax.random.normal(jax.random.key(0), SHAPE)
A, B = (jax.random.normal(jax.random.key(seed), (3, 3)) for seed in (1, 2))
C = jax.random.normal(jax.random.key(3), (6, 3))
BATCH_NORM = nn.BatchNorm(use_running_average=False)
STATISTICS = BATCH_NORM.init(jax.random.key(0), X)


def normalized(x):
    return BATCH_NORM.apply(STATISTICS, x, mutable=["batch_stats"])[0]


def jnp_max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pairwise_max_pool(x):
    return functools.reduce(jnp.maximum, (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)))


def scanned(f, x):
    return jax.lax.scan(lambda c, weights: (f(c @ weights), c.mean()), x, jnp.stack([A, B]))[0]


PLACES = {
    "alone": lambda f, x: f(x),
    "between two dense layers": lambda f, x: f(x @ A) @ B,
    "twice": lambda f, x: f(f(x @ A) @ B),
    "before a sum": lambda f, x: f(x @ A).sum((1, 2)),
    "before a mean": lambda f, x: f(x @ A).mean(-1),
    "before a pool of averages": lambda f, x: ops.avg_pool(f(x), 2),
    "before overlapping averages": lambda f, x: ops.avg_pool(f(x), 3, strides=1, padding=1) @ A,
    "before Flax's averages": lambda f, x: nn.avg_pool(f(x @ A), (2, 2), (2, 2)),
    "before a global pool at the end": lambda f, x: f(ops.conv(x, A[None, None])).mean((1, 2)),
    "before a global pool and a softmax": lambda f, x: jax.nn.softmax(f(x @ A).mean((1, 2)) @ B),
    "before a max pool": lambda f, x: ops.max_pool(f(x @ A), 2),
    "before JAX's max pool": lambda f, x: jnp_max_pool(f(x)),
    "before a max pool by slices": lambda f, x: pairwise_max_pool(f(x)),
    "before the largest, sorted": lambda f, x: jax.lax.top_k(jnp.sort(f(x @ A), axis=1), 2)[0],
    "after a max pool": lambda f, x: f(ops.max_pool(x, 2)),
    "after a global pool": lambda f, x: f(x.mean((1, 2)) @ A),
    "of a mean": lambda f, x: f(x.mean((1, 2))),
    "of a mean, scaling": lambda f, x: f(x.mean((1, 2))).sum(-1),
    "beside a linear path": lambda f, x: x @ A + f(x @ B),
    "beside itself": lambda f, x: f(x) + x,
    "beside in concatenation": lambda f, x: jnp.concatenate([f(x), x @ B], -1) @ C,
    "beside itself in concatenation": lambda f, x: jnp.concatenate([f(x), x], -1),
    "beside itself, pooled": lambda f, x: ops.max_pool(jnp.concatenate([f(x), x], -1), 2),
    "with its mirror, pooled": lambda f, x: ops.max_pool(jnp.concatenate([f(x), f(-x)], -1), 2) @ C,
    "less its mean": lambda f, x: f(x) - f(x).mean((1, 2), keepdims=True),
    "before response norm": lambda f, x: ops.local_response_norm(f(x)),
    "after response norm": lambda f, x: f(ops.local_response_norm(x @ A)) @ B,
    "inside jit": lambda f, x: jax.jit(lambda y: f(y) @ A)(x),
    "inside a checkpoint": lambda f, x: jax.checkpoint(f)(x @ A),
    "inside vmap": lambda f, x: jax.vmap(f)(x) @ A,
    "inside scan": scanned,
    "inside cond": lambda f, x: jax.lax.cond(x.sum() > 0, f, lambda y: y, x),
    "behind batch normalization": lambda f, x: f(normalized(x @ A)),
    "before batch normalization": lambda f, x: normalized(f(x @ A)),
    "before layer normalization": lambda f, x: nn.LayerNorm().apply({"params": {"scale": A[0], "bias": B[0]}}, f(x)),
    "transposed and padded": lambda f, x: jnp.pad(f(x).transpose(0, 3, 1, 2), 1)[:, 1:-1].reshape(2, -1),
}
# Where a gate multiplies, a ReLU is refused as all else.
GATES = {
    "as a gate": lambda f, x: x * f(x),
    "as a gate of another": lambda f, x: (x @ A) * f(x @ B),
    "as a gate by means": lambda f, x: x * f(x.mean((1, 2), keepdims=True) @ A),
    "as a gate of means, scaled": lambda f, x: x * f(x.mean((1, 2), keepdims=True)),
}

RELUS = {
    "jax.nn.relu": jax.nn.relu,
    "maximum(x, 0)": lambda x: jnp.maximum(x, 0),
    "maximum(0x, x)": lambda x: jnp.maximum(0 * x, x),
    "where(x > 0, x, 0)": lambda x: jnp.where(x > 0, x, 0),
    "where(0x >= x, 0, x)": lambda x: jnp.where(0 * x >= x, 0, x),
    "x · (x > 0)": lambda x: x * (x > 0),
    "(x >= 0) · x": lambda x: (x >= 0) * x,
    "written twice": lambda x: jnp.where(x + 1 - 1 > 0, x + 1 - 1, 0),
    "by an integer": lambda x: jax.lax.select_n((x > 0).astype(jnp.int32), jnp.zeros_like(x), x),
    "clip": lambda x: jnp.clip(x, 0, None),
    "-min(-x, 0)": lambda x: -jnp.minimum(-x, 0),
}
# Refused: it is no function's usual spelling.
EXOTIC_RELUS = {
    "select": lambda x: jnp.select([x > 0], [x], 0.0),
    "piecewise": lambda x: jnp.piecewise(x, [x > 0], [lambda v: v, 0.0]),
    "largest of a stack": lambda x: jnp.stack([x, jnp.zeros_like(x)]).max(0),
    "largest of a concatenation": lambda x: jnp.concatenate([x[None], 0 * x[None]]).max(0),
    "largest of a padding": lambda x: jnp.pad(x[None], ((0, 1), *((0, 0),) * x.ndim)).max(0),
    "sorted": lambda x: jnp.sort(jnp.stack([x, jnp.zeros_like(x)]), axis=0)[1],
    "top_k": lambda x: jax.lax.top_k(jnp.stack([x, jnp.zeros_like(x)], -1), 1)[0][..., 0],
    "the larger by its place": lambda x: jnp.take_along_axis(
        jnp.stack([x, 0 * x]), jnp.stack([x, 0 * x]).argmax(0)[None], 0
    )[0],
    "(x + |x|) / 2": lambda x: (x + jnp.abs(x)) / 2,
    "√(x²) + x": lambda x: (jnp.sqrt(x**2) + x) / 2,
    "x · (1 + sign(x)) / 2": lambda x: x * (1 + jnp.sign(x)) / 2,
    "heaviside": lambda x: x * jnp.heaviside(x, 0),
    "logical masks": lambda x: jnp.where((x > 0) & ~(x < 0), x, 0),
    "x - min(x, 0)": lambda x: x - jnp.minimum(x, 0),
    "lax.clamp": lambda x: jax.lax.clamp(0.0, x, jnp.inf),
    "pool of a stack": lambda x: nn.max_pool(
        jnp.stack([x.reshape(-1), jnp.zeros(x.size)], 0)[None, ..., None], (2, 1)
    ).reshape(x.shape),
    "running maximum": lambda x: jax.lax.cummax(jnp.stack([jnp.zeros_like(x), x]))[1],
    "scanned maximum": lambda x: jax.lax.scan(lambda c, y: (jnp.maximum(c, y), None), jnp.zeros_like(x), x[None])[0],
    "where(x > -x, x, 0)": lambda x: jnp.where(x > -x, x, 0),
    "where(2x > 0, x, 0)": lambda x: jnp.where(2 * x > 0, x, 0),
}
OTHERS = {
    "leaky_relu": jax.nn.leaky_relu,
    "leaky by maximum": lambda x: jnp.maximum(x, 0.1 * x),
    "leaky by a quotient": lambda x: jnp.maximum(x, x / 10),
    "leaky by minimum": lambda x: jnp.minimum(x, 2 * x),
    "leaky by where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "leaky by where of both": lambda x: jnp.where(x > 0.1 * x, x, 0.1 * x),
    "leaky by select": lambda x: jnp.select([x > 0, x <= 0], [x, 0.1 * x]),
    "leaky by piecewise": lambda x: jnp.piecewise(x, [x > 0], [lambda v: v, lambda v: 0.1 * v]),
    "leaky by a stack": lambda x: jnp.stack([x, 0.1 * x]).max(0),
    "leaky by broadcasting": lambda x: (x[..., None] * jnp.array([1, 0.1])).max(-1),
    "leaky by an outer product": lambda x: jnp.einsum("...,k->...k", x, jnp.array([1, 0.1])).max(-1),
    "leaky by tiles": lambda x: (jnp.tile(x, (2,) + (1,) * x.ndim) * jnp.array([1, 0.1]).reshape(2, *[1] * x.ndim)).max(
        0
    ),
    "leaky by sort": lambda x: jnp.sort(jnp.stack([x, 0.1 * x]), axis=0)[1],
    "leaky by two terms": lambda x: jnp.maximum(x, 0) + 0.1 * jnp.minimum(x, 0),
    "leaky by its ReLU": lambda x: jnp.maximum(jax.nn.relu(x), 0.1 * x),
    "leaky by abs": lambda x: 0.55 * x + 0.45 * jnp.abs(x),
    "leaky by cond": jnp.vectorize(lambda v: jax.lax.cond(v > 0, lambda u: u, lambda u: 0.1 * u, v)),
    "leaky by a scan": lambda x: jax.lax.scan(lambda c, w: (c, w * c), x, jnp.array([1, 0.1]))[1].max(0),
    "leaky by a decaying carry": lambda x: jax.lax.scan(lambda c, _: (0.1 * c, c), x, length=2)[1].max(0),
    "PReLU of Flax": lambda x: nn.PReLU().apply({"params": {"negative_slope": jnp.float32(0.1)}}, x),
    "elu": jax.nn.elu,
    "elu by formula": lambda x: jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1),
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "gelu": jax.nn.gelu,
    "gelu by erf": lambda x: x * (1 + jax.lax.erf(x / np.sqrt(2))) / 2,
    "silu": jax.nn.silu,
    "silu by formula": lambda x: x / (1 + jnp.exp(-x)),
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "softplus": jax.nn.softplus,
    "softplus by formula": lambda x: jnp.log(1 + jnp.exp(x)),
    "softplus by logaddexp": lambda x: jnp.logaddexp(x, 0.0),
    "softplus by logsumexp": lambda x: jax.nn.logsumexp(jnp.stack([x, jnp.zeros_like(x)]), axis=0),
    "sigmoid": jax.nn.sigmoid,
    "sigmoid by formula": lambda x: 1 / (1 + jnp.exp(-x)),
    "sigmoid by softmax": lambda x: jax.nn.softmax(jnp.stack([x, jnp.zeros_like(x)]), axis=0)[0],
    "log_sigmoid": jax.nn.log_sigmoid,
    "tanh": jnp.tanh,
    "tanh by formula": lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)),
    "hard_tanh": jax.nn.hard_tanh,
    "hard tanh by clip": lambda x: jnp.clip(x, -1, 1),
    "hard tanh by where": lambda x: jnp.where(x > 1, 1.0, jnp.where(x < -1, -1.0, x)),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_swish": jax.nn.hard_swish,
    "soft_sign": jax.nn.soft_sign,
    "soft sign by formula": lambda x: x / (1 + jnp.abs(x)),
    "soft sign by copies": lambda x: x / (1 + jnp.stack([jnp.abs(x), jnp.abs(x)]).mean(0)),
    "x / √(1 + x²)": lambda x: x * jax.lax.rsqrt(1 + x**2),
    "squareplus": jax.nn.squareplus,
    "minimum(x, 6)": lambda x: jnp.minimum(x, 6),
    "relu6, the bound first": lambda x: jnp.maximum(jnp.minimum(x, 6), 0),
    "relu6 moved down": lambda x: jnp.clip(x, -1, 5),
    "relu6 by a bound of each channel": lambda x: jnp.clip(x, 0, jnp.array([5.0, 6.0, 7.0])),
    "relu6 of x + 3 as a gate": lambda x: x * jax.nn.relu6(x + 3) / 6,
    "threshold": lambda x: jnp.where(x > 0.5, x, 0),
    "maximum(x, 1)": lambda x: jnp.maximum(x, 1),
    "step": lambda x: (x > 0).astype(x.dtype),
    "sign": jnp.sign,
    "round": jnp.round,
    "as integers": lambda x: x.astype(jnp.int32).astype(x.dtype),
    "abs": jnp.abs,
    "abs by maximum": lambda x: jnp.maximum(x, -x),
    "abs by where": lambda x: jnp.where(x > 0, x, -x),
    "abs by a stack": lambda x: jnp.stack([x, -x]).max(0),
    "abs by a root": lambda x: jnp.sqrt(x * x),
    "square": jnp.square,
    "x · x": lambda x: x * x,
    "x**3": lambda x: x**3,
    "ReLU squared": lambda x: jax.nn.relu(x) ** 2,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log1p|x|": lambda x: jnp.log1p(jnp.abs(x)),
    "sin": jnp.sin,
    "reciprocal": lambda x: 1 / x,
    "x · sigmoid": lambda x: x * jax.nn.sigmoid(1.7 * x),
    "glu": lambda x: x * jax.nn.sigmoid(x[..., ::-1]),
    "product": lambda x: x * x[..., ::-1],
    "straight-through step": lambda x: x + jax.lax.stop_gradient(jnp.sign(x) - x),
    "softmax": lambda x: jax.nn.softmax(x) * 1.0 + x,
}


def traced(place, function):
    return jax.eval_shape(with_relu_rule(functools.partial(place, function)), X)


# Each product of cases is cut into parts of which the first is always run: every case, and every place, stands in it.
EVERY_PART = pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 10))])


@EVERY_PART
@pytest.mark.parametrize("place", range(len(PLACES | GATES)), ids=list(PLACES | GATES))
def test_every_other_nonlinearity_is_refused_in_every_place(place, part):
    passed = []
    for number, (name, function) in enumerate((OTHERS | EXOTIC_RELUS).items()):
        if (number + place) % 10 != part or (list(PLACES | GATES)[place], name) == ("as a gate", "step"):
            continue  # x · (x > 0) is the ReLU
        try:
            traced(list((PLACES | GATES).values())[place], function)
            passed.append(name)
        except InputError as error:
            assert "function must have ReLUs only as its nonlinearities, got " in str(error)
            assert not str(error).endswith("got ")
    assert not passed


EYE, SLOPES = jnp.eye(3), jnp.diag(jnp.array([0.1, 0.2, 0.3]))
PAIRS = jnp.kron(EYE, jnp.array([[1, 0.1]]))  # each channel and a tenth of it
TWICE = jax.jit(lambda x: x @ A)
KERNEL = jax.random.normal(jax.random.key(4), (3, 3, 3, 3))


def channelwise(x, slope):
    """A convolution with one weight a channel."""
    return jax.lax.conv_general_dilated(
        x,
        jnp.full((1, 1, 1, 3), slope),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )


def summed_back(x):
    total = jnp.cumsum(x, -1)
    return jnp.concatenate([total[..., :1], total[..., 1:] - total[..., :-1]], -1)


@jax.custom_jvp
def leaky_by_custom_jvp(x):
    return jnp.maximum(x, 0.1 * x)


leaky_by_custom_jvp.defjvp(lambda primals, tangents: (leaky_by_custom_jvp(*primals), tangents[0]))


def halves(x, axis=-1):
    return jnp.maximum(*jnp.split(x, 2, axis))


def beside(x, other):
    """Two maps, column by column."""
    return jnp.stack([x, other], 3).reshape(2, 4, 8, 3)


# A nonlinearity of each element, though no primitive by itself is one.
DEPENDENT = {
    "a diagonal matrix": lambda x: jnp.maximum(x, x @ SLOPES),
    "minus the identity": lambda x: jnp.maximum(x, x @ -EYE),
    "two diagonal matrices": lambda x: jnp.maximum(x @ EYE, x @ SLOPES),
    "where by diagonal matrices": lambda x: jnp.where(x > x @ SLOPES, x, x @ SLOPES),
    "a stack with a diagonal matrix": lambda x: jnp.stack([x, x @ SLOPES]).max(0),
    "sorted with a diagonal matrix": lambda x: jnp.sort(jnp.stack([x, x @ SLOPES]), axis=0)[1],
    "by place with a diagonal matrix": lambda x: jnp.take_along_axis(
        jnp.stack([x, x @ SLOPES]), jnp.stack([x, x @ SLOPES]).argmax(0)[None], 0
    )[0],
    "bounded by a diagonal matrix": lambda x: jnp.clip(x, x @ SLOPES, jnp.inf),
    "two columns of one product": lambda x: (x @ PAIRS).reshape(*x.shape, 2).max(-1),
    "two columns, made inside": lambda x: (
        (x @ jnp.kron(jnp.eye(3), jnp.array([[1, 0.1]]))).reshape(*x.shape, 2).max(-1)
    ),
    "two halves of one product": lambda x: halves(x @ jnp.concatenate([EYE, SLOPES], 1)),
    "two columns of a narrow type": lambda x: halves(
        x.astype(jnp.bfloat16) @ jnp.concatenate([A, 0.1 * A], 1).astype(jnp.bfloat16)
    ),
    "two columns of a convolution": lambda x: ops.conv(x, PAIRS[None, None]).reshape(*x.shape, 2).max(-1),
    "two columns with exp": lambda x: jnp.log(jnp.exp((x @ PAIRS).reshape(*x.shape, 2)).sum(-1)),
    "softmax of a diagonal matrix": lambda x: jax.nn.softmax(jnp.stack([x, x @ SLOPES]), axis=0)[0],
    "a function called twice": lambda x: jnp.maximum(TWICE(x), 0.1 * TWICE(x)),
    "a function of a tenth": lambda x: jnp.maximum(TWICE(x), TWICE(0.1 * x)),
    "a tenth of the weights": lambda x: jnp.maximum(x @ A, x @ (0.1 * A)),
    "two checkpoints": lambda x: jnp.maximum(jax.checkpoint(TWICE)(x), 0.1 * jax.checkpoint(TWICE)(x)),
    "two layers twice": lambda x: jnp.maximum(jax.nn.relu(x @ A) @ B, jax.nn.relu(x @ (0.1 * A)) @ B),
    "a 1x1 convolution": lambda x: jnp.maximum(x, ops.conv(x, SLOPES[None, None])),
    "the middle of a 3x3 convolution": lambda x: jnp.maximum(
        x, ops.conv(x, jnp.zeros((3, 3, 3, 3)).at[1, 1].set(SLOPES), padding=1)
    ),
    "a convolution a channel": lambda x: jnp.maximum(channelwise(x, 1.0), channelwise(x, -1.0)),
    "a transposed convolution": lambda x: ops.max_pool(
        ops.conv_transpose(x, jnp.array([[1, 0.1], [0.1, 0.1]])[:, :, None, None] * EYE, (8, 8), strides=2), 2
    ),
    "a longer axis": lambda x: ops.max_pool(
        jnp.einsum("bhwc,wv->bhvc", x, jnp.kron(jnp.eye(4), jnp.array([[1, 0.1]]))), (1, 2)
    ),
    "a permutation and back": lambda x: jnp.maximum(x, 0.1 * (x[..., ::-1] @ EYE[::-1])),
    "transposed and back": lambda x: jnp.maximum(x, (0.1 * x.T).T),
    "reshaped and back": lambda x: jnp.maximum(x, (0.1 * x.reshape(-1)).reshape(x.shape)),
    "cut and concatenated": lambda x: jnp.maximum(x, 0.1 * jnp.concatenate([x[..., :1], x[..., 1:]], -1)),
    "padded and cut": lambda x: jnp.maximum(x, 0.1 * jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, 1:-1, 1:-1]),
    "gathered": lambda x: jnp.maximum(x, 0.1 * x[..., jnp.array([0, 1, 2])]),
    "scattered": lambda x: jnp.maximum(x, 0.1 * jnp.zeros_like(x).at[...].set(x)),
    "turned round and back": lambda x: jnp.maximum(x, 0.1 * jnp.roll(jnp.roll(x, 1, 1), -1, 1)),
    "summed up and back": lambda x: jnp.maximum(summed_back(x), 0.1 * x),
    "added and taken away": lambda x: jnp.maximum(x, 0.1 * ((x + x[..., ::-1]) - x[..., ::-1])),
    "two means": lambda x: jnp.maximum(x.mean(1).mean(1), 0.1 * x.mean((1, 2))),
    "sums of copies": lambda x: (x[..., None] * jnp.array([1, 0.1])).sum(-2).max(-1),
    "products of copies": lambda x: ((x[..., None] * jnp.array([1, 0.1])).swapaxes(-1, -2) @ A).max(-2),
    "products of a concatenation": lambda x: halves(jnp.concatenate([x, 0.1 * x], 0) @ A, 0),
    "products with a batch of weights": lambda x: jnp.einsum(
        "kbhwc,kcd->kbhwd", jnp.stack([x, x]), jnp.stack([A, 0.1 * A])
    ).max(0),
    "products mapped over weights": lambda x: jax.vmap(lambda w: x @ w)(jnp.stack([A, 0.1 * A])).max(0),
    "products scanned over weights": lambda x: jax.lax.map(lambda w: x @ w, jnp.stack([A, 0.1 * A])).max(0),
    "a scan that multiplies": lambda x: jax.lax.scan(lambda c, _: (c @ SLOPES, c), x, length=2)[1].max(0),
    "a loop": lambda x: jnp.maximum(x, jax.lax.fori_loop(0, 2, lambda _, c: 0.1 * c, x)),
    "a while": lambda x: jnp.maximum(
        x, jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, 0.1 * s[1]), (0, x))[1]
    ),
    "custom_jvp": leaky_by_custom_jvp,
    "a pool of a map beside its mirror": lambda x: ops.max_pool(beside(x, x @ -EYE), (1, 2)),
    "a pool of interleaved maps": lambda x: ops.max_pool(
        jnp.zeros((2, 4, 8, 3)).at[:, :, ::2].set(x).at[:, :, 1::2].set(x @ SLOPES), (1, 2)
    ),
    "a pool of padded maps": lambda x: ops.max_pool(beside(x, jnp.zeros_like(x)), (1, 2)),
    "two pools": lambda x: jnp.maximum(ops.max_pool(x, 2), ops.max_pool(-x, 2)),
    "soft sign by padding": lambda x: x / (1 + jnp.pad(jnp.abs(x)[..., None], [(0, 0)] * 4 + [(0, 1)]).sum(-1)),
    "soft sign by the identity": lambda x: x / (1 + jnp.abs(x) @ EYE),
    "soft sign by a convolution": lambda x: x / (1 + ops.conv(jnp.abs(x), EYE[None, None])),
    "soft sign by a mask": lambda x: x / (1 + (jnp.abs(x)[..., None] * EYE).sum(-2)),
    "soft sign by two terms": lambda x: x / (1 + jnp.abs(x) + jnp.abs(x @ SLOPES)),
    "x / norm of (x, 0)": lambda x: x / jnp.linalg.norm(jnp.pad(x[..., None], [(0, 0)] * 4 + [(0, 1)]), axis=-1),
    "the sign of a sum of one": lambda x: jnp.where(x.reshape(-1, 1).sum(-1).reshape(x.shape) > 0, x, 0.1 * x),
    "the sign of a masked sum": lambda x: jnp.where((x[..., None] * EYE).sum(-2) > 0, x, 0.1 * x),
    "the sign of a padded sum": lambda x: jnp.where(
        jnp.pad(x[..., None], [(0, 0)] * 4 + [(0, 1)]).sum(-1) > 0, x, 0.1 * x
    ),
    "sign(x) of another": lambda x: jnp.sign(x) * (x @ A),
    "x / |x|": lambda x: x / jnp.abs(x),
    "an outer square": lambda x: jnp.einsum("bhwc,bhwd->bhwcd", x, x),
}
INDEPENDENT = {
    "maxout": lambda x: (x @ jnp.concatenate([A, B], 1)).reshape(*x.shape, 2).max(-1),
    "a pool of a convolution of ones": lambda x: nn.max_pool(
        ops.conv(x, jnp.ones((3, 3, 3, 3)), padding=1) + 1, (2, 2), (2, 2)
    ),
    "a pool of the identity": lambda x: ops.max_pool(ops.conv(x, EYE[None, None]), 2) @ A,
    "a pool of some zero filters": lambda x: ops.max_pool(jax.nn.relu(ops.conv(x, KERNEL * jnp.array([1, 0, 1]))), 2),
    "a pool of a normalization with zeros": lambda x: ops.max_pool(
        jax.nn.relu(normalized(x @ A) * jnp.array([1.0, 0, 2])), 2
    ),
    "a pool of branches": lambda x: ops.max_pool(
        jnp.concatenate(
            [jax.nn.relu(ops.conv(x, KERNEL, padding=1)), x @ A, nn.max_pool(x, (3, 3), (1, 1), "SAME")], -1
        ),
        2,
    ),
    "a pool of a residual": lambda x: ops.max_pool(x + jax.nn.relu(ops.conv(x, KERNEL, padding=1)), 2),
    "a pool by slices of a residual": lambda x: pairwise_max_pool(jax.nn.relu(x + ops.conv(x, KERNEL, padding=1))),
    "a pool by slices of a normalization": lambda x: pairwise_max_pool(jax.nn.relu(x @ A * B[0] + B[1])),
    "a pool of each channel's convolution": lambda x: ops.max_pool(
        ops.conv(x, KERNEL[:, :, :1], padding=1, groups=3), 2
    ),
    "a decoder": lambda x: (
        jax.nn.relu(ops.conv_transpose(ops.max_pool(x, 2), KERNEL[:2, :2], (4, 4), strides=2) + x) @ A
    ),
    "the largest logit": lambda x: (jax.nn.relu(x @ A).mean((1, 2)) @ B).max(-1),
    "the two largest logits": lambda x: jax.lax.top_k(x.mean((1, 2)) @ B, 2)[0],
    "a softmax of zero weights": lambda x: jax.nn.softmax(x.mean((1, 2)) @ jnp.zeros((3, 5))),
    "two global pools": lambda x: jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], -1) @ C,
    "the mean of the largest": lambda x: jnp.sort(jax.nn.relu(x @ A).reshape(2, 16, 3), axis=1)[:, -4:].mean(1),
    "by place": lambda x: jnp.take_along_axis(
        (x @ A).reshape(2, 16, 3), (x @ A).reshape(2, 16, 3).argmax(1)[:, None], 1
    ),
    "unit length": lambda x: x @ A / jnp.linalg.norm(x @ A, axis=-1, keepdims=True),
}


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["plain", "jit"])
def test_a_choice_among_values_of_the_same_elements_is_refused(wrap):
    """Though the numbers of matrices that are made inside of a `jit` exist only in the program."""
    passed = []
    for name, function in DEPENDENT.items():
        try:
            jax.eval_shape(wrap(with_relu_rule(function)), X)
            passed.append(name)
        except InputError as error:
            assert "function must have ReLUs only as its nonlinearities, got " in str(error)
    assert not passed


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["plain", "jit"])
def test_a_choice_among_different_places_passes(wrap):
    for function in INDEPENDENT.values():
        jax.eval_shape(wrap(with_relu_rule(function)), X)


def jitted(name):
    def function(x):
        return jnp.tanh(x)

    function.__name__ = function.__qualname__ = name
    return jax.jit(function)


def primitive(name):
    made = Primitive(name)
    made.def_abstract_eval(lambda x: core.ShapedArray(x.shape, x.dtype))
    return made.bind


BORROWED = {
    jitted: ["local_response_norm", "relu", "softmax", "logsumexp", "clip", "maximum", "_where", "standardize"],
    primitive: ["local_response_norm", "copy", "neg", "reshape", "max_with_choice", "select_in_windows", "jit", "scan"],
}


@pytest.mark.parametrize("make", BORROWED)
def test_a_name_makes_no_function_another(make):
    """The signal passes our response norm unchanged, and copies are linear; other functions of these names are not."""
    for name in BORROWED[make]:
        function = make(name)
        for place in (function, lambda x, function=function: jax.checkpoint(function)(x @ A) @ B):
            with pytest.raises(InputError, match="function must have ReLUs only as its nonlinearities, got "):
                jax.eval_shape(with_relu_rule(place), X)


@pytest.mark.parametrize("place", GATES)
def test_a_relu_as_a_gate_is_refused(place):
    for function in RELUS.values():
        with pytest.raises(InputError, match="function must have ReLUs only"):
            traced(GATES[place], function)


def relu_by_hand(rule):
    @jax.custom_vjp
    def relu(x):
        return jnp.where(x > 0, x, 0)

    relu.defvjp(lambda x: (relu(x), x), lambda x, signal: (BACKWARD[rule](x, signal),))
    return relu


def response_norm_by_hand(x):
    return x + jax.lax.stop_gradient(local_response_norm(x) - x)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=() if number % 4 == 0 or name.startswith("inside") else pytest.mark.long, id=name)
        for number, name in enumerate(PLACES)
    ],
)
def test_a_relu_in_every_place_is_the_one_written_by_hand(number, monkeypatch):
    """The same function of a ReLU with its rule by hand; spelling and rule go round, so that each meets many places."""
    place = list(PLACES.values())[number]
    spelling = list(RELUS.values())[number % len(RELUS)]
    rule = list(BACKWARD)[number % 2]
    x = X[:, :2, :2] if "pool" not in list(PLACES)[number] and "averages" not in list(PLACES)[number] else X

    def down(function, x):
        value, backward = jax.vjp(function, x)
        return value, backward(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))[0]

    @jax.jit
    def both(x):
        found = down(with_relu_rule(functools.partial(place, spelling), rule), x)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "local_response_norm", response_norm_by_hand)
            return found, down(functools.partial(place, relu_by_hand(rule)), x)

    (value, found), (same, expected) = both(x)
    np.testing.assert_allclose(value, same, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("place", range(len(PLACES)), ids=list(PLACES))
def test_every_spelling_has_as_many_rules_in_every_place(place, part):
    def rules(spelling):
        function = functools.partial(list(PLACES.values())[place], spelling)
        return str(jax.make_jaxpr(with_relu_rule(function))(X)).count("custom_vjp_call")

    others = [spelling for number, spelling in enumerate(RELUS.values()) if (number + place) % 3 == part]
    counts = {rules(jax.nn.relu), *map(rules, others)}
    assert len(counts) == 1 and counts.pop() > 0
