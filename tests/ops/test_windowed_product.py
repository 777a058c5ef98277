"""What the primitive's rules must leave in a compiled program, and how it goes over devices."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cnnjax import ops
from tests.cases import some


def compiled_steps(image_shape, kernel_shapes, members=None, **options):
    """The HLO of three steps in a loop: a network of convolutions, their gradients and an update."""

    def loss(kernels, images):
        for kernel in kernels:
            images = jnp.tanh(ops.conv(images, kernel, **options))
        return jnp.sum(images**2)

    def step(kernels, images):
        gradients = jax.grad(loss)(kernels, images)
        return jax.tree.map(lambda kernel, gradient: kernel - gradient, kernels, gradients), None

    step = step if members is None else jax.vmap(step, (0, None), (0, None))
    lead = () if members is None else (members,)
    kernels = [jnp.zeros((*lead, *shape)) for shape in kernel_shapes]
    steps = ops.jit(lambda kernels, images: lax.scan(step, kernels, images)[0])
    return steps.lower(kernels, jnp.zeros((3, *image_shape))).compile().as_text()


@pytest.mark.usefixtures("only_on_cpu")
@pytest.mark.parametrize(
    "image_shape, kernel_shapes, options",
    [
        ((2, 12, 12, 3), [(3, 3, 3, 8), (3, 3, 8, 8)], {"padding": 1}),
        ((2, 13, 13, 8), [(3, 3, 8, 8), (3, 3, 8, 8)], {"strides": 2}),
        ((2, 30, 4), [(5, 4, 8), (5, 8, 8)], {"strides": 2}),
        ((2, 7, 7, 7, 4), [(3, 3, 3, 4, 8), (3, 3, 3, 8, 8)], {"padding": 1}),
    ],
    ids=["images", "strides", "sound", "volumes"],
)
@pytest.mark.parametrize("members", some([None, 2], 2))
def test_no_convolution_in_a_loop_is_without_a_library(image_shape, kernel_shapes, options, members):
    hlo = compiled_steps(image_shape, kernel_shapes, members, **options)
    # XLA:CPU is slow in a loop wherever other dimension numbers, groups or interleaved zeros are left
    convolutions = re.findall(r"= \S+ convolution\(.*", hlo)
    for line in convolutions:
        assert "dim_labels=b01f_01io->b01f" in line
        assert "feature_group_count" not in line and "lhs_dilate" not in line
    assert convolutions


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize(
    "image_shape, kernel_shape, strides, dilation, groups",
    [
        ((2, 13, 12, 3), (3, 2, 3, 8), (2, 1), (1, 2), 1),
        ((2, 13, 12, 6), (3, 2, 2, 9), (1, 1), (1, 1), 3),
        ((2, 13, 3), (3, 3, 8), (2,), (1,), 1),
        ((2, 5, 5, 5, 3), (3, 2, 2, 3, 8), (1, 2, 1), (1, 1, 1), 1),
    ],
)
def test_elsewhere_the_convolutions_are_xlas_own(platform, image_shape, kernel_shape, strides, dilation, groups):
    images, kernel = jax.ShapeDtypeStruct(image_shape, jnp.float32), jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
    dimension_numbers = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}

    def plain(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            strides,
            [(1, 1)] * len(strides),
            rhs_dilation=dilation,
            dimension_numbers=dimension_numbers[len(strides)],
            feature_group_count=groups,
        )

    def ours(images, kernel):
        return ops.conv(images, kernel, strides=strides, padding=1, dilation=dilation, groups=groups)

    def convolutions(function):
        both = jax.jit(lambda *operands: jax.vjp(function, *operands)[1](function(*operands)))
        text = both.trace(images, kernel).lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.sub(r"%\w+", "", line).strip() for line in text.splitlines() if "convolution(" in line)

    assert convolutions(ours) == convolutions(plain) != []


def test_members_with_shared_images_are_one_convolution():
    kernels = jnp.zeros((5, 3, 3, 2, 4))
    jaxpr = jax.make_jaxpr(jax.vmap(ops.conv, (None, 0)))(jnp.zeros((2, 6, 6, 2)), kernels)
    assert str(jaxpr).count("windowed_product") == 1
