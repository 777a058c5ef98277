import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax import geometry, ops
from cnnjax.errors import InputError
from tests.cases import normal, some


def windows_of(images, window, strides, low, output):
    """Yields (place, {flat position: value [batch, channels]}) with the positions inside the image, in order."""
    spatial = images.shape[1:-1]
    for place in itertools.product(*map(range, output)):
        inside = {}
        for offset in itertools.product(*map(range, window)):
            pixel = tuple(p * s + o - b for p, s, o, b in zip(place, strides, offset, low, strict=True))
            if all(0 <= p < n for p, n in zip(pixel, spatial, strict=True)):
                inside[int(np.ravel_multi_index(pixel, spatial))] = images[(slice(None), *pixel)]
        yield place, inside


def max_pool_in_loops(images, window, strides, low, output):
    """(values, switches); the first maximum in order, NaN above everything."""
    batch, channels = images.shape[0], images.shape[-1]
    values = np.zeros((batch, *output, channels), images.dtype)
    switches = np.zeros(values.shape, np.int32)
    for place, inside in windows_of(images, window, strides, low, output):
        positions = np.array(list(inside))
        stacked = np.stack(list(inside.values()))
        first = np.argmax(stacked, axis=0)  # NumPy's argmax: the first maximum, the first NaN if there is one
        values[(slice(None), *place)] = np.take_along_axis(stacked, first[None], 0)[0]
        switches[(slice(None), *place)] = positions[first]
    return values, switches


def avg_pool_in_loops(images, window, strides, low, output):
    values = np.zeros((images.shape[0], *output, images.shape[-1]))
    for place, inside in windows_of(np.asarray(images, np.float64), window, strides, low, output):
        values[(slice(None), *place)] = np.mean(list(inside.values()), axis=0)
    return values


@st.composite
def poolings(draw):
    dimensions = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dimensions)
    sizes = draw(st.tuples(*[st.integers(1, 7 if dimensions < 3 else 4)] * dimensions))
    options = {
        "window": draw(each),
        "strides": draw(each),
        "padding": draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * dimensions)),
        "rounding": draw(st.sampled_from(["floor", "ceil"])),
    }
    images = draw(st.integers(0, 99)), (2, *sizes, 2)
    return images, options, draw(st.booleans())


def images_of(seed, shape, special):
    """Few different values, so that there are ties; with `special` also minus infinity and NaN."""
    values = [-2.0, -1.0, 0.0, 1.0, *([-np.inf, -np.inf, np.nan] if special else [])]
    return np.random.default_rng(seed).choice(np.array(values, np.float32), shape)


@pytest.mark.parametrize("examples", some([6, 60], 6))
def test_pools_are_the_loops(examples):
    settings(deadline=None, derandomize=True, max_examples=examples)(given(poolings())(pools_are_the_loops))()


def pools_are_the_loops(case):
    (seed, shape), options, special = case
    images = images_of(seed, shape, special)
    try:
        output, padding = geometry.place_windows(shape[1:-1], **options)
        values, switches = ops.max_pool_with_switches(jnp.asarray(images), **options)
    except InputError as error:
        assert "does not fit" in str(error) or "in every window" in str(error)
        return
    where = (options["window"], options["strides"], [low for low, _ in padding], output)
    loop_values, loop_switches = max_pool_in_loops(images, *where)
    np.testing.assert_array_equal(values, loop_values)
    np.testing.assert_array_equal(switches, loop_switches)
    assert switches.dtype == jnp.int32

    # the gradient goes where the switches say, and adds up where windows share a maximum
    cotangent = np.random.default_rng(seed).normal(size=values.shape).astype(np.float32)
    summed = np.zeros((2, int(np.prod(shape[1:-1])), 2), np.float32)
    flat, places = cotangent.reshape(2, -1, 2), loop_switches.reshape(2, -1, 2)
    np.add.at(summed, (np.arange(2)[:, None, None], places, np.arange(2)), flat)
    last = np.zeros_like(summed)
    for window in range(flat.shape[1]):  # one after another: the last stays
        np.put_along_axis(last, places[:, window : window + 1], flat[:, window : window + 1], 1)
    finite = images_of(seed, shape, False)

    @jax.jit
    def compute(images, finite, cotangent, switches):
        gradient = jax.vjp(lambda images: ops.max_pool(images, **options), images)[1](cotangent)[0]
        unpooled = [ops.unpool(cotangent, switches, shape[1:-1], overlap=overlap) for overlap in ("sum", "overwrite")]
        return gradient, *unpooled, ops.avg_pool(finite, **options)

    gradient, unpooled, overwritten, means = compute(images, finite, cotangent, switches)
    np.testing.assert_allclose(gradient, summed.reshape(shape), atol=1e-5)
    np.testing.assert_allclose(unpooled, summed.reshape(shape), atol=1e-5)
    np.testing.assert_array_equal(overwritten, last.reshape(shape))
    np.testing.assert_allclose(means, avg_pool_in_loops(finite, *where), atol=1e-6)


CASES = {
    "2/2": {"window": 2},
    "3/2": {"window": 3, "strides": 2},
    "3/2 ceil padded": {"window": 3, "strides": 2, "padding": 1, "rounding": "ceil"},
    "2x3/1": {"window": (2, 3), "strides": 1},
    "2/3": {"window": 2, "strides": 3},
    "1/2": {"window": 1, "strides": 2},
}


@pytest.mark.parametrize("case", some(CASES, "3/2 ceil padded"))
def test_values_and_gradients_are_xlas_where_nothing_ties(case):
    options = CASES[case]
    images = normal(0, (2, 9, 8, 3))
    window = geometry.as_ints(options["window"], 2, "window")
    strides = geometry.as_ints(options.get("strides", options["window"]), 2, "strides")
    _, padding = geometry.place_windows(
        (9, 8), window, strides=strides, padding=options.get("padding", 0), rounding=options.get("rounding", "floor")
    )

    def reduce_window(images):
        everywhere = ((1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))
        return lax.reduce_window(images, -jnp.inf, lax.max, *everywhere)

    @functools.partial(jax.jit, static_argnums=0)
    def both(pool, images):
        outputs, pull = jax.vjp(pool, images)
        return outputs, pull(jnp.cos(7 * outputs))[0]

    ours, plain = both(functools.partial(ops.max_pool, **options), images), both(reduce_window, images)
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_allclose(ours[1], plain[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [ops.max_pool, ops.avg_pool])
@pytest.mark.parametrize("case", some(CASES, "3/2 ceil padded"))
def test_derivatives_agree_in_every_order(pool, case):
    images, direction = normal(0, (2, 2, 7, 6, 2))

    def loss(images):
        return jnp.sum(jnp.sin(pool(images, **CASES[case])) ** 2)

    def three(images):
        return (
            jax.grad(lambda images: jnp.vdot(jax.grad(loss)(images), direction))(images),
            jax.jvp(jax.grad(loss), (images,), (direction,))[1],
            jax.grad(lambda images: jax.jvp(loss, (images,), (direction,))[1])(images),
            jax.linearize(jax.grad(loss), images)[1](direction),
        )

    first, *others = jax.jit(three)(images)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)
    step = 1e-3
    gradient = jax.jit(jax.grad(loss))
    numeric = (gradient(images + step * direction) - gradient(images - step * direction)) / (2 * step)
    unmoved = pool is ops.avg_pool or bool((switches(images + step * direction, case) == switches(images, case)).all())
    if unmoved:
        np.testing.assert_allclose(first, numeric, atol=2e-2)


def switches(images, case):
    return ops.max_pool_with_switches(images, **CASES[case]).switches


@pytest.mark.parametrize("case", some(CASES, "3/2 ceil padded"))
def test_members_hessian_scan_and_checkpoint(case):
    images = normal(0, (3, 2, 7, 6, 2))

    def loss(images):
        return jnp.sum(ops.max_pool(images, **CASES[case]) ** 3)

    alone = [jax.jit(jax.grad(loss))(member) for member in images]
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(images), alone, rtol=1e-5)
    _, scanned = lax.scan(lambda carry, member: (carry, jax.grad(loss)(member)), 0, images)
    np.testing.assert_allclose(scanned, alone, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(loss))(images[0]), alone[0], rtol=1e-5)
    nested = jax.vmap(jax.vmap(jax.grad(loss), 1), 1)(jnp.stack([images] * 2, 1).swapaxes(0, 2))
    assert nested.shape[2:] == images.shape[1:] or nested.size == 2 * images.size
    row = images[0, :1, :3, :4, :1]
    hessian = jax.jit(jax.hessian(loss))(row).reshape(12, 12)
    np.testing.assert_allclose(hessian, hessian.T)


def test_the_gradient_of_ties_goes_to_the_first():
    # all equal, as after a ReLU: the first pixel of each window, in row-major order
    gradient = jax.grad(lambda images: ops.max_pool(images, 2).sum())(jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.tile([[1, 0], [0, 0]], (2, 2)))


def test_nan_comes_through_and_minus_infinity_stays_in_the_image():
    images = jnp.array([1.0, jnp.nan, jnp.nan, 5.0]).reshape(1, 4, 1)
    values, places = ops.max_pool_with_switches(images, 4)
    assert jnp.isnan(values).all() and places.item() == 1
    values, places = ops.max_pool_with_switches(jnp.full((1, 3, 1), -jnp.inf), 3, strides=1, padding=2)
    assert (values == -jnp.inf).all()
    np.testing.assert_array_equal(places.ravel(), [0, 0, 0, 1, 2])


@pytest.mark.parametrize("dtype", some(["bfloat16", "float64", "int32"], "bfloat16"))
def test_types_are_kept(dtype):
    with jax.enable_x64(True):
        images = jnp.arange(2 * 6 * 6 * 2).reshape(2, 6, 6, 2).astype(dtype)
        pooled = ops.max_pool_with_switches(images, 3, strides=2, padding=1)
        assert pooled.values.dtype == dtype and pooled.switches.dtype == jnp.int32
        if dtype != "int32":
            gradient = jax.grad(lambda images: ops.max_pool(images, 2).sum())(images)
            assert gradient.dtype == dtype and gradient.sum() == 2 * 9 * 2
            assert ops.avg_pool(images, 2).dtype == dtype
        assert ops.unpool(*pooled, (6, 6)).dtype == dtype


@pytest.mark.parametrize("window, strides, output", some([(20, 20, 1), (17, 3, 2), (9, 11, 2)], (17, 3, 2)))
def test_large_windows_are_looped_over_and_count_beyond_a_byte(window, strides, output):
    images = normal(0, (1, 20, 20, 2))
    values, places = ops.max_pool_with_switches(images, window, strides=strides)
    loop_values, loop_places = max_pool_in_loops(
        np.asarray(images), (window,) * 2, (strides,) * 2, (0, 0), (output,) * 2
    )
    np.testing.assert_array_equal(values, loop_values)
    np.testing.assert_array_equal(places, loop_places)

    def pool(images):
        return ops.max_pool(images, window, strides=strides)

    slope = jnp.ones_like(values)
    np.testing.assert_array_equal(jax.vjp(pool, images)[1](slope)[0], ops.unpool(slope, places, (20, 20)))
    tangent = jax.jvp(pool, (images,), (images,))[1]
    np.testing.assert_array_equal(tangent, values)


def test_an_empty_batch_pools_to_an_empty_batch():
    values, places = ops.max_pool_with_switches(jnp.zeros((0, 6, 6, 2)), 3, strides=2)
    assert values.shape == places.shape == (0, 2, 2, 2)
    assert ops.unpool(values, places, (6, 6)).shape == (0, 6, 6, 2)
    assert ops.avg_pool(jnp.zeros((0, 6, 6, 2)), 2).shape == (0, 3, 3, 2)


def test_pooling_works_without_jit():
    images = normal(0, (1, 6, 6, 2))
    with jax.disable_jit():
        plainly = ops.max_pool(images, 3, strides=2)
    np.testing.assert_array_equal(plainly, ops.max_pool(images, 3, strides=2))


def test_unpool_is_linear_and_differentiable():
    images = normal(0, (2, 5, 5, 2))
    values, places = ops.max_pool_with_switches(images, 3, strides=1)
    for overlap in ("sum", "overwrite"):
        transpose = jax.linear_transpose(lambda v: ops.unpool(v, places, (5, 5), overlap=overlap), values)
        unpooled = ops.unpool(values, places, (5, 5), overlap=overlap)
        np.testing.assert_allclose(jnp.vdot(unpooled, images), jnp.vdot(transpose(images)[0], values), rtol=1e-5)
    many = jax.vmap(lambda v: ops.unpool(v, places, (5, 5)))(jnp.stack([values, -values]))
    np.testing.assert_allclose(many[1], -many[0])


BINS = [((6, 5), (6, 5)), ((7, 14), (7, 7)), ((9, 4), (7, 6)), ((1, 2), (3, 5)), ((5,), (2,)), ((3, 4, 5), (2, 2, 7))]


@pytest.mark.parametrize(("sizes", "bins"), BINS)
def test_adaptive_means_are_those_of_their_bins(sizes, bins):
    images = normal(0, (2, *sizes, 3))
    means = np.zeros((2, *bins, 3))
    for place in itertools.product(*map(range, bins)):
        of = [
            slice(math.floor(i * n / b), math.ceil((i + 1) * n / b)) for i, n, b in zip(place, sizes, bins, strict=True)
        ]
        means[(slice(None), *place)] = np.asarray(images, np.float64)[(slice(None), *of)].mean(
            tuple(range(1, len(bins) + 1))
        )
    np.testing.assert_allclose(ops.adaptive_avg_pool(images, bins), means, atol=1e-6)


@pytest.mark.extra
@pytest.mark.parametrize(("sizes", "bins"), BINS)
def test_adaptive_means_and_gradients_are_torchs(sizes, bins):
    torch = pytest.importorskip("torch")
    pool = (torch.nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool3d)[len(bins) - 1](bins)
    images, outputs = normal(0, (2, *sizes, 3)), normal(1, (2, *bins, 3))
    means, back = jax.vjp(lambda images: ops.adaptive_avg_pool(images, bins), images)
    theirs = torch.tensor(np.moveaxis(images, -1, 1).copy(), requires_grad=True)
    their_means = pool(theirs)
    their_means.backward(torch.tensor(np.moveaxis(outputs, -1, 1).copy()))
    np.testing.assert_allclose(means, np.moveaxis(their_means.detach().numpy(), 1, -1), atol=1e-6)
    np.testing.assert_allclose(back(outputs)[0], np.moveaxis(theirs.grad.numpy(), 1, -1), atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 5}, "a 5×5 filter with stride 5 does not fit 4×4 with padding 0"),
        ({"window": 3, "rounding": "exact"}, "does not fit 4×4 with padding 0: (4 - 3 + 2·0)/3 + 1 = 1.33"),
        ({"window": 2, "strides": 0}, "strides must be at least 1, got 0"),
        (
            {"window": 2, "padding": 2},
            "padding must leave some pixel of the image in every window of 2 with stride 2 on 4 pixels, got (2, 2)",
        ),
        ({"window": 1, "strides": 5, "rounding": "ceil"}, "got (0, 2) (the last made by rounding 'ceil')"),
    ],
)
@pytest.mark.parametrize("pool", [ops.max_pool, ops.max_pool_with_switches, ops.avg_pool])
def test_bad_input_is_told_what_would_fit(pool, options, message):
    with pytest.raises(InputError) as error:
        pool(jnp.zeros((1, 4, 4, 1)), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.wrong_types
def test_bad_switches_and_ranks_are_refused():
    with pytest.raises(InputError, match=r"images must be \[batch, \*spatial, channels\]"):
        ops.max_pool(jnp.zeros((4, 4)), 2)
    values = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(InputError, match="switches must be integers of the shape of values"):
        ops.unpool(values, values, (4, 4))
    with pytest.raises(InputError, match="overlap must be 'sum' or 'overwrite', got 'mean'"):
        ops.unpool(values, values.astype(int), (4, 4), overlap="mean")
    with pytest.raises(InputError, match="spatial must have one entry for each of the 2 dimensions"):
        ops.unpool(values, values.astype(int), (4,))


@pytest.mark.parametrize("case", some(["2/2", "3/2 ceil padded", "2/3"], "3/2 ceil padded"))
def test_many_channels_are_pooled_as_few(case):
    """Each has a form of its own on a CPU; ties, NaN and minus infinity among the images."""
    few = jnp.asarray(images_of(0, (2, 18, 17, 3), True))
    many = jnp.tile(few, 8)

    def everything(images):
        values, switches = ops.max_pool_with_switches(images, **CASES[case])
        pool = functools.partial(ops.max_pool, **CASES[case])
        tangent, transpose = jax.linearize(pool, images)[1], jax.vjp(pool, images)[1]
        return values, switches, tangent(jnp.cos(images)), transpose(jnp.sin(values))[0]

    for ours, theirs in zip(jax.jit(everything)(many), jax.jit(everything)(few), strict=True):
        np.testing.assert_array_equal(ours, np.tile(theirs, 8))


NARROW = [(9, 1, (2, 20, 20, 3)), (5, 2, (2, 40, 20)), (3, 1, (1, 8, 8, 8, 2))]


@pytest.mark.parametrize("dtype", some(["bfloat16", "float16"], "bfloat16"))
@pytest.mark.parametrize("window, strides, shape", some(NARROW, NARROW[0]))
def test_narrow_types_are_added_up_as_exactly_as_by_xla(dtype, window, strides, shape):
    """Where windows overlap, the gradients and `unpool` are sums; errors against float64, in units of XLA's."""
    generator = np.random.default_rng(0)
    images = jnp.asarray(np.round(generator.normal(size=shape), 1) + 3, dtype)
    dimensions = len(shape) - 2
    where = (1, *(window,) * dimensions, 1), (1, *(strides,) * dimensions, 1), "VALID"

    def sums(images):
        return lax.reduce_window(images, np.zeros((), images.dtype), lax.add, *where)

    @jax.jit
    def ours(images, cotangent):
        places = ops.max_pool_with_switches(images, window, strides=strides).switches
        gradient = jax.vjp(lambda images: ops.max_pool(images, window, strides=strides), images)[1](cotangent)[0]
        means, pull = jax.vjp(lambda images: ops.avg_pool(images, window, strides=strides), images)
        return gradient, ops.unpool(cotangent, places, shape[1:-1]), means, pull(cotangent)[0]

    @jax.jit
    def xla(images, cotangent):
        means, pull = jax.vjp(lambda images: sums(images) / window**dimensions, images)
        return means, pull(cotangent)[0]

    cotangent = jnp.asarray(generator.random(jax.eval_shape(sums, images).shape) + 1, dtype)
    found, bounds = ours(images, cotangent), xla(images, cotangent)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(array, np.float64)) for array in (images, cotangent)]
        exact = [np.asarray(array) for array in ours(*wide)]
        right = [np.asarray(array) for array in xla(*wide)]

    def error(one, other):
        return np.abs(np.asarray(one, np.float64) - other).max()

    half_a_place = float(jnp.finfo(dtype).eps) / 2
    for one, other in zip(found[:2], exact[:2], strict=True):  # one rounding
        assert error(one, other) <= 1.01 * half_a_place * other.max()
    for one, theirs, other in zip(found[2:], bounds, right, strict=True):
        assert error(one, other) <= max(1.5 * error(theirs, other), 1.01 * half_a_place * np.abs(other).max())


def test_a_mean_in_float16_has_no_sum_that_overflows():
    np.testing.assert_array_equal(ops.avg_pool(jnp.full((1, 16, 16, 1), 300, jnp.float16), 16), 300)
