import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax import geometry, ops
from cnnjax.errors import InputError
from cnnjax.ops import convolution_forms, member_forms
from tests.cases import some

DIMENSION_NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def random(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def conv_in_loops(images, kernel, strides, padding, dilation, groups, output):
    """What the words say, one window at a time, in float64.

    `output` is the spatial shape, `padding` has a pair for each dimension.
    """
    images = np.pad(np.asarray(images, np.float64), ((0, 0), *padding, (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    window, (inside, outside) = kernel.shape[:-2], kernel.shape[-2:]
    result = np.zeros((images.shape[0], *output, outside))
    for place in itertools.product(*map(range, output)):
        for offset in itertools.product(*map(range, window)):
            pixel = [p * s + o * d for p, s, o, d in zip(place, strides, offset, dilation, strict=True)]
            seen = images[(slice(None), *pixel)]
            for channel in range(outside):
                first = channel // (outside // groups) * inside
                weights = kernel[(*offset, slice(None), channel)]
                result[(slice(None), *place, channel)] += seen[:, first : first + inside] @ weights
    return result


def lax_conv(images, kernel, strides, padding, dilation=None, groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=DIMENSION_NUMBERS[images.ndim - 2],
        feature_group_count=groups,
    )


def close(actual, wanted, tolerance=3e-6):
    """Equal to float32 rounding, relative to the largest entry."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        scale = max(float(np.abs(other).max(initial=0)), 1e-30)
        np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(other) / scale, rtol=0, atol=tolerance)


@st.composite
def convolutions(draw):
    dimensions = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dimensions)
    sizes = draw(st.tuples(*[st.integers(1, 7 if dimensions < 3 else 5)] * dimensions))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 2))] * dimensions))
    groups = draw(st.integers(1, 3))
    shapes = {
        "images": (draw(st.integers(1, 2)), *sizes, groups * draw(st.integers(1, 3))),
        "window": draw(each),
        "out_channels": groups * draw(st.integers(1, 2)),
    }
    dilation = draw(each) if draw(st.booleans()) else (1,) * dimensions
    settings = {"strides": draw(each), "padding": padding, "dilation": dilation, "groups": groups}
    return shapes, settings, draw(st.sampled_from(["floor", "ceil"]))


@pytest.mark.parametrize("examples", some([5, 60], 5))
def test_conv_and_its_gradients_are_the_loops(examples):
    settings(deadline=None, derandomize=True, max_examples=examples)(given(convolutions())(conv_is_the_loops))()


def conv_is_the_loops(case):
    shapes, options, rounding = case
    images = random(0, *shapes["images"])
    kernel = random(1, *shapes["window"], images.shape[-1] // options["groups"], shapes["out_channels"])
    sizes = {name: options[name] for name in ("strides", "padding", "dilation")}
    try:
        output, padding = geometry.place_windows(images.shape[1:-1], shapes["window"], rounding=rounding, **sizes)
    except InputError:
        with pytest.raises(InputError, match="does not fit"):
            ops.conv(images, kernel, rounding=rounding, **options)
        return
    loops = conv_in_loops(images, kernel, options["strides"], padding, options["dilation"], options["groups"], output)
    close(ops.conv(images, kernel, rounding=rounding, **options), jnp.asarray(loops, jnp.float32))

    def ours(images, kernel):
        return ops.conv(images, kernel, rounding=rounding, **options)

    def plain(images, kernel):
        return lax_conv(images, kernel, options["strides"], padding, options["dilation"], options["groups"])

    cotangent = random(2, *loops.shape)
    gradients = jax.jit(lambda *operands: jax.vjp(ours, *operands)[1](cotangent))(images, kernel)
    close(gradients, jax.jit(lambda *operands: jax.vjp(plain, *operands)[1](cotangent))(images, kernel))
    transposed = ops.conv_transpose(cotangent, kernel, images.shape[1:-1], rounding=rounding, **options)
    close(transposed, gradients[0])


# One case for each form of the lowering: plain, widened (few channels), phases, dilation, groups, depthwise, 1-D, 3-D.
FORMS = {
    "plain": ((2, 8, 7, 5), (3, 2, 5, 4), {"padding": 1}),
    "one channel": ((2, 9, 11, 1), (3, 5, 1, 4), {"padding": ((0, 1), (2, 2)), "strides": (2, 1)}),
    "three channels": ((2, 8, 8, 3), (5, 5, 3, 4), {"padding": "SAME"}),
    "phases": ((2, 9, 8, 5), (3, 5, 5, 4), {"strides": 2, "padding": 1}),
    "stride above the window": ((2, 9, 8, 5), (2, 1, 5, 4), {"strides": 3}),
    "one pixel of several": ((2, 9, 8, 5), (1, 1, 5, 4), {"strides": (2, 3), "padding": ((0, 1), (2, 0))}),
    "dilation": ((2, 9, 9, 5), (3, 2, 5, 4), {"strides": (1, 2), "dilation": (2, 3), "padding": 3}),
    "groups": ((2, 7, 7, 6), (3, 3, 3, 4), {"strides": 2, "groups": 2, "padding": 1}),
    "depthwise": ((2, 7, 7, 3), (3, 3, 1, 6), {"strides": 2, "groups": 3, "padding": 1}),
    "depthwise, a map each": (
        (2, 8, 7, 3),
        (3, 2, 1, 3),
        {"strides": (3, 2), "groups": 3, "padding": ((1, 2), (0, 1)), "dilation": (1, 2)},
    ),
    "sound": ((2, 15, 5), (4, 5, 3), {"strides": 2, "padding": 1}),
    "volume": ((2, 5, 6, 5, 2), (3, 2, 3, 2, 4), {"strides": (2, 1, 2), "padding": 1}),
}


@pytest.fixture(params=some(FORMS, "phases", "volume"), ids=lambda name: name.replace(" ", "-"))
def form(request):
    """(loss of (images, kernel), images, kernel): a loss with a third derivative."""
    image_shape, kernel_shape, options = FORMS[request.param]

    def loss(images, kernel):
        return jnp.sum(jnp.sin(ops.conv(images, kernel, **options)))

    def plain(images, kernel):
        strides = geometry.as_ints(options.get("strides", 1), images.ndim - 2, "strides")
        dilation = geometry.as_ints(options.get("dilation", 1), images.ndim - 2, "dilation")
        padding = geometry.resolve_padding(
            options.get("padding", 0), image_shape[1:-1], kernel_shape[:-2], strides, dilation
        )
        return jnp.sum(jnp.sin(lax_conv(images, kernel, strides, padding, dilation, options.get("groups", 1))))

    return loss, plain, random(0, *image_shape), random(1, *kernel_shape) / 4


def test_second_derivatives_agree_in_every_order(form):
    loss, plain, *operands = form
    directions = [random(7 + number, *operand.shape) for number, operand in enumerate(operands)]

    def slope(function):
        return lambda *point: jax.jvp(function, point, tuple(directions))[1]

    def along(function):
        gradient = jax.grad(function, (0, 1))
        return lambda *point: sum(jnp.vdot(*pair) for pair in zip(gradient(*point), directions, strict=True))

    def four(function):
        return (
            jax.grad(along(function), (0, 1))(*operands),  # reverse over reverse
            jax.jvp(jax.grad(function, (0, 1)), tuple(operands), tuple(directions))[1],  # forward over reverse
            jax.grad(slope(function), (0, 1))(*operands),  # reverse over forward
        )

    ours = jax.jit(lambda: four(loss))()
    close(ours[1], ours[0])
    close(ours[2], ours[0])
    close(ours[0], jax.jit(lambda: four(plain))()[0], 1e-5)


def test_members_under_vmap_are_what_they_are_alone(form):
    loss, _, images, kernel = form
    gradient = jax.grad(loss, (0, 1))
    alone = jax.jit(gradient)
    images, kernel = np.asarray(images), np.asarray(kernel)
    many_images = np.stack([images, -2 * images, images + 1])
    many_kernels = np.stack([kernel, kernel / 2, -kernel])
    for axes in ((0, None), (None, 0), (0, 0)):
        chosen = (many_images if axes[0] == 0 else images, many_kernels if axes[1] == 0 else kernel)
        members = [
            alone(chosen[0][n] if axes[0] == 0 else images, chosen[1][n] if axes[1] == 0 else kernel) for n in range(3)
        ]
        together = jax.jit(jax.vmap(gradient, axes))(*chosen)
        close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *members))


def test_vmap_of_vmap_and_batch_axes_elsewhere():
    images, kernel = random(0, 2, 6, 6, 2), random(1, 3, 3, 2, 4)
    by_image = jnp.stack([images, images * 2], axis=2)
    by_kernel = jnp.stack([kernel, -kernel, kernel * 3], axis=-1)
    product = jax.vmap(jax.vmap(ops.conv, (None, -1)), (2, None))(by_image, by_kernel)
    for image, member in itertools.product(range(2), range(3)):
        close(product[image, member], ops.conv(by_image[:, :, image], by_kernel[..., member]))


def test_many_members_run_in_a_loop_of_one_body():
    images, kernels = random(0, 40, 1, 5, 5, 2), random(1, 40, 3, 3, 2, 2)
    if jax.default_backend() == "cpu":
        assert "stablehlo.while" in jax.jit(jax.vmap(ops.conv)).lower(images, kernels).as_text()
    close(
        jax.vmap(ops.conv)(images, kernels), jnp.stack([ops.conv(*pair) for pair in zip(images, kernels, strict=True)])
    )


@pytest.mark.parametrize("name", some([*FORMS, "narrow"], "plain", "phases", "narrow"))
@pytest.mark.parametrize("at_once", some([4, 100], 4))
def test_members_together_are_what_they_are_one_after_another(monkeypatch, name, at_once):
    """The form of members where a GPU is; all at once or a few at a time, in every face."""
    image_shape, kernel_shape, options = FORMS["phases" if name == "narrow" else name]
    dtype = jnp.bfloat16 if name == "narrow" else jnp.float32
    images, kernel = random(0, 10, *image_shape, dtype=dtype), random(1, 10, *kernel_shape, dtype=dtype)
    windows = jax.make_jaxpr(functools.partial(ops.conv, **options))(images[0], kernel[0]).eqns[-1].params["windows"]
    outputs = random(2, 10, image_shape[0], *windows.output, kernel_shape[-1], dtype=dtype)
    faces = {"output": (images, kernel), "images": (outputs, kernel), "kernel": (images, outputs)}
    for face, operands in faces.items():
        channels = kernel_shape[-2] if face == "images" else image_shape[-1]
        patches = image_shape[0] * np.prod(windows.output) * np.prod(windows.window) * channels * 4
        monkeypatch.setattr(member_forms, "PATCH_BYTES", int(at_once * patches))
        form = functools.partial(convolution_forms.plain, face=face, windows=windows)
        alone = jnp.stack([form(*pair) for pair in zip(*operands, strict=True)])
        together = functools.partial(member_forms.together, convolution_forms.plain, face=face, windows=windows)
        close(jax.jit(together)(*operands), alone, 3e-6 if dtype == jnp.float32 else 1e-2)
        program = str(jax.make_jaxpr(together)(*operands))
        assert ("feature_group_count=10" in program) == (windows.groups == 1 and face == "output")
        assert ("dot_general" in program) == (windows.groups == 1 and face != "output")
        assert ("scan" in program) == (windows.groups == 1 and face != "output" and at_once < 10)


def test_per_example_gradients():
    images, kernel = random(0, 4, 6, 6, 2), random(1, 3, 3, 2, 3)

    def loss(kernel, image):
        return jnp.sum(ops.conv(image[None], kernel, strides=2) ** 2)

    together = jax.vmap(jax.grad(loss), (None, 0))(kernel, images)
    close(together, jnp.stack([jax.grad(loss)(kernel, image) for image in images]))


def test_hessian_linearize_linear_transpose_checkpoint_and_scan():
    images, kernel = random(0, 1, 5, 5, 1), random(1, 2, 2, 1, 2)

    def loss(conv):
        return lambda kernel: jnp.sum(jnp.tanh(conv(images, kernel)) ** 2)

    def plain(images, kernel):
        return lax_conv(images, kernel, (1, 1), "VALID")

    close(jax.jit(jax.hessian(loss(ops.conv)))(kernel), jax.jit(jax.hessian(loss(plain)))(kernel))
    value, tangent = jax.linearize(loss(ops.conv), kernel)
    close((value, tangent(kernel)), jax.jvp(loss(plain), (kernel,), (kernel,)))
    outputs = ops.conv(images, kernel)
    transpose = jax.linear_transpose(lambda images: ops.conv(images, kernel), images)
    close(transpose(outputs)[0], ops.conv_transpose(outputs, kernel, (5, 5)))
    close(jax.grad(jax.checkpoint(loss(ops.conv)))(kernel), jax.grad(loss(plain))(kernel))

    def descend(loss):
        def step(kernel, _):
            value, gradient = jax.value_and_grad(loss)(kernel)
            return kernel - 0.1 * gradient, value

        return jax.jit(lambda kernel: lax.scan(step, kernel, length=5))(kernel)

    close(descend(loss(ops.conv)), descend(loss(plain)))


@pytest.mark.parametrize(
    "image_shape, kernel_shape, strides",
    some(
        [
            ((7, 40_000, 4), (9, 4, 4), 1),
            ((5, 40, 40, 40, 4), (3, 3, 3, 4, 4), 1),
            ((5, 48, 48, 48, 4), (3, 3, 3, 4, 8), 2),
        ],
        ((7, 40_000, 4), (9, 4, 4), 1),
    ),
)
def test_a_batch_too_large_for_one_block(image_shape, kernel_shape, strides):
    dimensions = len(image_shape) - 2
    images, kernel = random(0, *image_shape), random(1, *kernel_shape)

    def with_gradients(conv):
        outputs, backward = jax.vjp(conv, images, kernel)
        return outputs, backward(outputs)

    ours = with_gradients(lambda images, kernel: ops.conv(images, kernel, strides=strides, padding=1))
    wanted = with_gradients(
        lambda images, kernel: lax_conv(images, kernel, (strides,) * dimensions, [(1, 1)] * dimensions)
    )
    close(ours, wanted)


CHANNELS = [[1, 8], [3, 64], [6, 5], [8, 16], [16, 16], [17, 8]]


@pytest.mark.parametrize("channels", some(CHANNELS, [8, 16]))
@pytest.mark.parametrize("size, padding", some([((9, 11), 0), ((6, 5), 2), ((4, 4), 4)], ((6, 5), 2)))
def test_few_channels_and_any_width(channels, size, padding):
    images, kernel = random(0, 2, *size, channels[0]), random(1, 3, 4, *channels)

    def with_gradients(conv):
        outputs, backward = jax.vjp(conv, images, kernel)
        return outputs, backward(outputs)

    ours = jax.jit(with_gradients, static_argnums=0)(functools.partial(ops.conv, padding=padding))
    plain = functools.partial(lax_conv, strides=(1, 1), padding=[(padding, padding)] * 2)
    close(ours, jax.jit(with_gradients, static_argnums=0)(plain))


NARROW = [
    ("bfloat16", (4, 30, 4), (7, 1, 8), {"groups": 4, "dilation": 2}),
    ("bfloat16", (6, 20, 20, 4), (5, 5, 1, 4), {"groups": 4, "padding": 3}),
    ("float16", (2, 11, 12, 2), (3, 3, 1, 6), {"groups": 2, "strides": 2}),
    ("bfloat16", (2, 7, 7, 7, 3), (3, 2, 2, 1, 3), {"groups": 3, "padding": 1}),
    ("float16", (2, 12, 12, 6), (5, 5, 3, 4), {"groups": 2, "padding": 2}),
    ("bfloat16", (2, 12, 12, 24), (7, 7, 24, 2), {"padding": 3}),
    ("float16", (4, 16, 16, 1), (5, 5, 1, 8), {"strides": (2, 1), "padding": 2}),
    ("bfloat16", (2, 9, 9, 20), (3, 3, 20, 17), {"strides": 2}),
    ("bfloat16", (2, 9, 9, 20), (3, 3, 20, 17), {"strides": 2, "dilation": 2, "padding": 2}),
    ("bfloat16", (5, 100, 16), (9, 16, 16), {}),
    ("float16", (4, 6, 6, 6, 5), (3, 3, 2, 5, 5), {"strides": (2, 1, 1)}),
]


# Depthwise in blocks, groups, many channels with strides and dilation.
@pytest.mark.parametrize("dtype, images, kernel, options", some(NARROW, NARROW[1], NARROW[4], NARROW[8]))
def test_narrow_types_are_added_up_as_exactly_as_by_xla(monkeypatch, dtype, images, kernel, options):
    """The largest error of each face against float64; XLA rounds once, so it can hardly be beaten."""
    monkeypatch.setattr(convolution_forms, "BLOCK_BYTES", 2**12)  # a batch is worked on in blocks, in 1-D and 3-D
    operands = random(0, *images, dtype=dtype) + 1, random(1, *kernel, dtype=dtype) + 1  # sums that grow
    each = {name: geometry.as_ints(options.get(name, 1), len(images) - 2, name) for name in ("strides", "dilation")}
    pads = [(low, low) for low in geometry.as_ints(options.get("padding", 0), len(images) - 2, "padding", minimum=0)]

    def plain(*operands):
        return lax_conv(*operands, each["strides"], pads, each["dilation"], options.get("groups", 1))

    def faces(conv, *operands):
        outputs, pull = jax.vjp(conv, *operands)
        return outputs, *pull(jnp.asarray(cotangent, outputs.dtype))

    cotangent = random(2, *jax.eval_shape(plain, *operands).shape, dtype=dtype) + 1
    found = jax.jit(lambda *operands: faces(lambda *both: ops.conv(*both, **options), *operands))(*operands)
    xla = jax.jit(lambda *operands: faces(plain, *operands))(*operands)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(operand, np.float64)) for operand in operands]
        cotangent = np.asarray(cotangent, np.float64)
        exact = [np.asarray(face) for face in jax.jit(lambda *operands: faces(plain, *operands))(*wide)]
    for ours, theirs, right in zip(found, xla, exact, strict=True):
        assert ours.dtype == dtype
        error, bound = (float(np.abs(np.asarray(one, np.float64) - right).max()) for one in (ours, theirs))
        assert error <= 1.5 * bound


def test_ones_are_counted_beyond_what_a_narrow_type_can_add():
    images, kernel = jnp.ones((4, 20, 20, 2), jnp.bfloat16), jnp.ones((3, 1, 1, 2), jnp.bfloat16)
    outputs, pull = jax.vjp(lambda *both: ops.conv(*both, groups=2), images, kernel)
    np.testing.assert_array_equal(np.asarray(pull(jnp.ones_like(outputs))[1], np.float32), 4 * 18 * 20)


def test_a_gradient_by_what_the_members_share_is_added_up_in_float32():
    images, kernel = jnp.ones((1, 1, 1, 2), jnp.bfloat16), jnp.ones((600, 1, 1, 1, 2), jnp.bfloat16)

    def total(images):
        outputs = jax.vmap(lambda kernel: ops.conv(images, kernel, groups=2))(kernel)
        return outputs.astype(jnp.float32).sum()

    np.testing.assert_array_equal(np.asarray(jax.grad(total)(images), np.float32), 600)


TINY = {
    "1-D": ((1, 1, 2), (1, 2, 2), {"strides": 3, "padding": ((5, 0),)}),
    "2-D": ((1, 1, 5, 2), (1, 2, 2, 2), {"strides": (3, 2), "padding": ((5, 0), (3, 3))}),
    "2-D, dilation": ((2, 2, 1, 3), (2, 1, 3, 2), {"strides": (5, 4), "dilation": (2, 1), "padding": ((7, 1), (6, 3))}),
    "2-D, few": ((2, 1, 1, 1), (1, 2, 1, 2), {"strides": (4, 1), "padding": ((7, 0), (6, 6))}),
    "2-D, groups": ((2, 1, 2, 4), (1, 1, 2, 4), {"strides": (3, 5), "padding": ((5, 0), (4, 0)), "groups": 2}),
    "2-D, depthwise": ((2, 1, 2, 3), (1, 1, 1, 3), {"strides": (3, 5), "padding": ((5, 0), (4, 0)), "groups": 3}),
    "2-D, all padding": ((1, 1, 1, 2), (1, 1, 2, 2), {"strides": 4, "padding": ((3, 0), (2, 4))}),
    "3-D": ((2, 6, 1, 5, 3), (1, 1, 2, 3, 2), {"strides": (4, 3, 2), "padding": ((2, 5), (5, 0), (3, 3))}),
    "3-D, depth": ((1, 1, 2, 1, 2), (1, 1, 1, 2, 3), {"strides": (4, 1, 3), "padding": ((6, 0), (0, 0), (5, 0))}),
}


@pytest.mark.parametrize("case", some(TINY, "1-D", "2-D, dilation", "3-D"))
def test_padding_may_be_larger_than_the_images(case):
    image_shape, kernel_shape, options = TINY[case]
    images, kernel = random(0, *image_shape), random(1, *kernel_shape)
    strides = geometry.as_ints(options["strides"], images.ndim - 2, "strides")

    def plain(images, kernel):
        return lax_conv(images, kernel, strides, options["padding"], options.get("dilation"), options.get("groups", 1))

    def faces(conv):
        outputs, pull = jax.vjp(conv, images, kernel)
        return outputs, *pull(random(2, *outputs.shape))

    close(jax.jit(lambda: faces(lambda *both: ops.conv(*both, **options)))(), jax.jit(lambda: faces(plain))())


@pytest.mark.parametrize("groups", [1, 2])
def test_bfloat16_and_float64_keep_their_type(groups):
    def value_and_gradients(dtype):
        images, kernel = random(0, 2, 8, 8, 4, dtype=dtype), random(1, 3, 3, 4 // groups, 4, dtype=dtype)
        outputs, pull = jax.vjp(lambda *both: ops.conv(*both, strides=2, padding=1, groups=groups), images, kernel)
        return outputs, *pull(outputs)

    single = value_and_gradients(jnp.float32)
    assert {leaf.dtype.name for leaf in value_and_gradients(jnp.bfloat16)} == {"bfloat16"}
    with jax.enable_x64(True):
        double = value_and_gradients(jnp.float64)
        assert {leaf.dtype.name for leaf in double} == {"float64"}
        close([leaf.astype(jnp.float32) for leaf in double], single)


@pytest.mark.usefixtures("only_on_cpu")  # a GPU's library has no convolution of integers
def test_integers_convolve_too():
    # the lecture's scanner: ones and zeros
    result = ops.conv(jnp.ones((1, 4, 4, 1), jnp.int32), jnp.ones((3, 3, 1, 1), jnp.int32))
    assert result.dtype == jnp.int32 and (result == 9).all()


def test_shapes_without_arrays_and_without_a_batch():
    images, kernel = jax.ShapeDtypeStruct((4, 7, 7, 3), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 3, 8), jnp.bfloat16)
    shape = jax.eval_shape(lambda *both: ops.conv(*both, strides=2), images, kernel)
    assert shape.shape == (4, 3, 3, 8) and shape.dtype == jnp.bfloat16
    for channels in (2, 6):
        empty, kernel = jnp.zeros((0, 5, 5, channels)), jnp.zeros((3, 3, channels, 4))
        assert ops.conv(empty, kernel).shape == (0, 3, 3, 4)
        assert not jax.grad(lambda kernel, empty: ops.conv(empty, kernel, strides=2).sum())(kernel, empty).any()


def test_conv_works_without_jit():
    images, kernel = random(0, 1, 6, 6, 2), random(1, 3, 3, 2, 2)
    members = jnp.stack([images, -images]), jnp.stack([kernel, kernel / 2])
    with jax.disable_jit():
        plainly = ops.conv(images, kernel), jax.vmap(ops.conv)(*members)
    close(plainly, (ops.conv(images, kernel), jax.vmap(ops.conv)(*members)))


@pytest.mark.parametrize(
    "images, kernel, options, message",
    [
        ((2, 7, 7, 3), (3, 3, 3, 4), {"strides": 3, "rounding": "exact"}, "padding 1 would fit"),
        ((2, 3, 3, 3), (5, 5, 3, 4), {}, "a 5×5 filter with stride 1 does not fit 3×3 with padding 0"),
        ((2, 7, 7, 3), (3, 3, 4, 4), {}, "kernel must have in_channels / groups = 3/1 = 3 in channels, got 4"),
        (
            (2, 7, 7, 6),
            (3, 3, 3, 4),
            {"groups": 4},
            "groups must divide the channels (6 in, 4 out), got 4; 1, 2 would fit",
        ),
        ((2, 7, 7, 6), (3, 3, 6, 4), {"groups": 0}, "groups must be a positive integer, got 0"),
        ((2, 7, 7, 3), (3, 3, 4), {}, "kernel must be [*window, in_channels, out_channels] with 2 window dimensions"),
        ((7, 3), (3, 4), {}, "images must be [batch, *spatial, channels] with 1, 2 or 3 spatial dimensions"),
        ((2, 7, 7, 3), (3, 3, 3, 4), {"strides": 0}, "strides must be at least 1, got 0"),
        ((2, 7, 7, 3), (3, 3, 3, 4), {"dilation": (1, 0)}, "dilation must be at least 1, got (1, 0)"),
    ],
)
def test_bad_input_is_told_what_would_fit(images, kernel, options, message):
    with pytest.raises(InputError) as error:
        ops.conv(jnp.zeros(images), jnp.zeros(kernel), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_types_must_agree():
    with pytest.raises(InputError, match=r"kernel must have the type of the images \(float32\), got bfloat16"):
        ops.conv(jnp.zeros((1, 5, 5, 2)), jnp.zeros((3, 3, 2, 2), jnp.bfloat16))


@pytest.mark.wrong_types
def test_conv_transpose_checks_what_it_is_given():
    kernel = jnp.zeros((3, 3, 2, 4))
    with pytest.raises(InputError, match=r"outputs must have the kernel's out channels \(4\), got 2"):
        ops.conv_transpose(jnp.zeros((1, 3, 3, 2)), kernel, (5, 5))
    with pytest.raises(InputError, match=r"outputs must have the spatial shape \(4, 4\) that conv makes of \(6, 6\)"):
        ops.conv_transpose(jnp.zeros((1, 3, 3, 4)), kernel, (6, 6))


def test_nothing_is_fused_into_a_depthwise_convolution():
    """XLA computed what stands before it anew for each of the 25 offsets, in loops that took minutes to compile."""

    def total(x, kernel):
        return jnp.sum(jnp.sin(ops.conv(jnp.tanh(x), kernel, padding=2, groups=4)))

    gradient = ops.jit(jax.grad(total, (0, 1)), runs_once=True)
    text = gradient.lower(jnp.ones((2, 6, 6, 4)), jnp.ones((5, 5, 1, 4))).compile().as_text()
    assert 1 <= text.count(" tanh(") <= 3 and 1 <= text.count(" cosine(") <= 3
