"""Attribution by closed forms, axioms, and PyTorch's autograd and captum on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import InputError
from cnnjax.visualize.attribution import (
    grad_cam,
    integrated_gradients,
    magnitude,
    randomized_from_the_top,
    saliency,
    similarity,
    smooth_grad,
)
from tests.cases import normal

CLASSES = np.array([1, 0, 4])
IMAGES = normal(0, (3, 10, 8, 3))
KERNEL = normal(1, (3, 3, 3, 6)) / 5
BIAS = normal(2, (6,)) / 5
WEIGHTS = normal(3, (72, 5)) / 8


def convolved(images):
    return jax.lax.conv_general_dilated(images, KERNEL, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def logits(images):
    """A convolution, ReLU, pool 2×2, the logits."""
    maps = jax.nn.relu(convolved(images) + BIAS)
    return ops.max_pool(maps, 2).reshape(-1, 72) @ WEIGHTS  # the first place on ties, as PyTorch's


def linear(images):
    return images.reshape(images.shape[0], -1) @ jnp.ones((240, 1)) * jnp.arange(5.0)


def torch_network(torch):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.pool = torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
            self.out = torch.nn.Linear(72, 5, bias=False)
            self.conv.weight.data = torch.tensor(np.array(KERNEL).transpose(3, 2, 0, 1))
            self.conv.bias.data = torch.tensor(np.array(BIAS))
            self.out.weight.data = torch.tensor(np.array(WEIGHTS).T)

        def forward(self, x):
            maps = self.pool(self.relu(self.conv(x)))
            return self.out(maps.permute(0, 2, 3, 1).flatten(1))

    images = torch.tensor(np.array(IMAGES).transpose(0, 3, 1, 2), requires_grad=True)
    return Network(), images


def channels_last(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def test_the_gradient_of_a_linear_function_is_its_weights_whatever_the_method():
    """Class c weighs every pixel by c; integrated gradients multiply by image - baseline."""
    expected = np.broadcast_to(CLASSES[:, None, None, None], IMAGES.shape)
    np.testing.assert_allclose(saliency(linear, IMAGES, CLASSES), expected, rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_allclose(smooth_grad(linear, IMAGES, CLASSES, keys, samples=3), expected, rtol=1e-5)
    found = integrated_gradients(linear, IMAGES, CLASSES, baseline=0.5, steps=3)
    np.testing.assert_allclose(found, (IMAGES - 0.5) * expected, rtol=1e-5, atol=1e-6)


def test_integrated_gradients_are_complete():
    """The pixels of a map add up to logit(image) - logit(baseline): Sundararajan et al. 2017, section 3."""
    baseline = jnp.full((1, 10, 8, 3), 0.3)
    found = integrated_gradients(logits, IMAGES, CLASSES, baseline=baseline, steps=400)
    wanted = (logits(IMAGES) - logits(baseline))[np.arange(3), CLASSES]
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), wanted, atol=3e-3 * float(jnp.abs(wanted).max()))


@pytest.mark.long
def test_smooth_grad_is_the_mean_over_its_noisy_copies_by_a_plain_loop():
    keys = jax.random.split(jax.random.key(7), 3)
    found = jax.jit(lambda: smooth_grad(logits, IMAGES, CLASSES, keys, noise=0.2, samples=4))()

    @jax.jit
    @jax.vmap
    def expected(image, number, key):
        spread = 0.2 * (image.max() - image.min())
        noise = [jax.random.normal(jax.random.fold_in(key, sample), image.shape) for sample in range(4)]
        gradient = jax.grad(lambda x: logits(x[None])[0, number])
        return jax.lax.map(gradient, image + spread * jnp.stack(noise)).mean(axis=0)

    np.testing.assert_allclose(found, expected(IMAGES, CLASSES, keys), rtol=1e-4, atol=1e-6)

    @jax.jit
    def without_noise():
        # In a loop as well, whose convolutions XLA:CPU sums in another order on some processors.
        alone = jax.lax.map(lambda zero: saliency(logits, IMAGES + zero, CLASSES), jnp.zeros(2))[0]
        return smooth_grad(logits, IMAGES, CLASSES, keys, noise=0.0, samples=2), alone

    np.testing.assert_allclose(*without_noise(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_maps_have_the_type_of_the_images_with_64_bits_too(dtype):
    """JAX's default type is then float64, which is another than that of the images."""
    with jax.enable_x64(True):
        images = jnp.ones((1, 4, 4, 3), dtype) * jnp.arange(3, dtype=dtype)
        keys = jax.random.split(jax.random.key(0), 1)

        def function(x):
            return jax.nn.relu(x).sum((1, 2))

        for found in jax.jit(
            lambda x: (
                smooth_grad(function, x, np.array([1]), keys, samples=2),
                integrated_gradients(function, x, np.array([1]), baseline=np.zeros(3), steps=2),
                saliency(function, x, np.array([1]), rule="guided"),
                grad_cam(function, x, np.array([1]), relu=0),
            )
        )(images):
            assert found.dtype == dtype and bool(jnp.isfinite(found).all())


@pytest.mark.long
def test_no_map_depends_on_the_batch_and_jit_changes_nothing():
    keys = jax.random.split(jax.random.key(7), 3)
    for method in (
        lambda x, c, k: saliency(logits, x, c, rule="guided"),
        lambda x, c, k: integrated_gradients(logits, x, c, steps=4),
        lambda x, c, k: smooth_grad(logits, x, c, k, samples=3),
        lambda x, c, k: grad_cam(logits, x, c, relu=0),
    ):
        compiled = jax.jit(method)
        whole = compiled(IMAGES, CLASSES, keys)
        single = np.concatenate([compiled(IMAGES[i : i + 1], CLASSES[i : i + 1], keys[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(whole, single, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole, method(IMAGES, CLASSES, keys), rtol=1e-4, atol=1e-5)


def test_grad_cam_by_numbers():
    """Two maps that are the image and its negative; the class reads the first's mean alone: its weight is 1/16."""
    image = jnp.arange(-8.0, 8.0).reshape(1, 4, 4, 1)

    def two_maps(x):
        maps = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
        return maps.mean(axis=(1, 2)) @ jnp.array([[1.0, 1.0], [0.0, -2.0]])

    np.testing.assert_allclose(grad_cam(two_maps, image, [0], relu=0)[0], np.maximum(image[0, :, :, 0], 0) / 16)
    # Class 1 weighs the second map by -2/16, and what is negative is cut off.
    np.testing.assert_allclose(grad_cam(two_maps, image, [1], relu=0)[0], np.maximum(image[0, :, :, 0], 0) / 16)


@pytest.mark.extra
def test_guided_backpropagation_of_pytorch():
    """Its autograd with a hook at the ReLU that lets positive signals alone pass."""
    torch = pytest.importorskip("torch")
    network, images = torch_network(torch)
    network.relu.register_full_backward_hook(lambda _, given, __: (given[0].clamp(min=0),))
    scores = network(images)
    np.testing.assert_allclose(scores.detach().numpy(), logits(IMAGES), rtol=1e-4, atol=1e-5)
    scores[torch.arange(3), torch.tensor(CLASSES)].sum().backward()
    found = saliency(logits, IMAGES, CLASSES, rule="guided")
    np.testing.assert_allclose(found, channels_last(images.grad), atol=1e-4)


@pytest.mark.extra
def test_integrated_gradients_of_pytorch_by_a_plain_loop():
    torch = pytest.importorskip("torch")
    network, images = torch_network(torch)
    points, weights = np.polynomial.legendre.leggauss(20)
    total = torch.zeros_like(images)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        on_the_line = (images * point).detach().requires_grad_()
        network(on_the_line)[torch.arange(3), torch.tensor(CLASSES)].sum().backward()
        total += weight * on_the_line.grad
    found = integrated_gradients(logits, IMAGES, CLASSES, steps=20)
    np.testing.assert_allclose(found, channels_last(images * total), atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # captum's own
@pytest.mark.extra
def test_the_methods_of_captum():
    torch = pytest.importorskip("torch")
    captum = pytest.importorskip("captum.attr")
    network, images = torch_network(torch)
    target = torch.tensor(CLASSES)
    for found, theirs in (
        (saliency(logits, IMAGES, CLASSES), captum.Saliency(network).attribute(images, target, abs=False)),
        (
            integrated_gradients(logits, IMAGES, CLASSES, steps=50),
            captum.IntegratedGradients(network).attribute(images, target=target, n_steps=50),
        ),
        (saliency(logits, IMAGES, CLASSES, rule="guided"), captum.GuidedBackprop(network).attribute(images, target)),
        (saliency(logits, IMAGES, CLASSES, rule="deconvnet"), captum.Deconvolution(network).attribute(images, target)),
    ):
        np.testing.assert_allclose(found, channels_last(theirs), atol=1e-4)
    # Captum's default layer gradients are those at the layer's output, as ours.
    cam = captum.LayerGradCam(network, network.relu).attribute(images, target, relu_attributions=True)
    cam = captum.LayerAttribution.interpolate(cam, (10, 8), "bilinear")
    np.testing.assert_allclose(grad_cam(logits, IMAGES, CLASSES, relu=0), cam[:, 0].detach().numpy(), atol=1e-4)


def test_layers_are_randomized_from_the_last_down():
    params, fresh = ({name: sign * number for number, name in enumerate("abc", 1)} for sign in (1, -1))
    expected = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": -3}, {"a": 1, "b": -2, "c": -3}, fresh]
    assert randomized_from_the_top(params, fresh, [["a"], ["b"], ["c"]]) == expected


def test_similarity_is_one_with_itself_and_its_scalings_and_unknown_of_a_flat_map():
    maps = np.random.default_rng(0).random((4, 16, 16))
    same = similarity(maps, 3 * maps)
    np.testing.assert_allclose(same, 1, rtol=1e-6)
    np.testing.assert_allclose(similarity(maps, maps**3).rank, 1)  # ranks do not see a monotone change
    assert (np.abs(similarity(maps, maps[::-1]).rank) < 0.3).all()
    np.testing.assert_allclose(similarity(maps, 1 - maps).rank, -1)
    assert np.isnan(similarity(maps, np.zeros_like(maps))).all()


@pytest.mark.parametrize("shape", [(7, 7), (6, 9), (4, 4), (3, 20)])
def test_structure_in_small_images_is_compared_in_as_large_windows_as_fit(shape):
    maps = np.random.default_rng(0).uniform(size=(2, *shape))
    np.testing.assert_allclose(similarity(maps, 3 * maps).structure, 1)
    assert (np.abs(similarity(maps, maps[::-1]).structure) < 0.9).all()


def test_below_three_pixels_there_is_no_structure_but_ranks():
    maps = np.random.default_rng(0).uniform(size=(2, 2, 9))
    assert np.isnan(similarity(maps, maps).structure).all()
    np.testing.assert_allclose(similarity(maps, maps).rank, 1)


def test_the_magnitude_is_the_largest_of_the_channels():
    np.testing.assert_array_equal(magnitude(np.array([[[[1.0, -3.0, 2.0], [0.0, 0.5, 0.0]]]])), [[[3.0, 0.5]]])


@pytest.mark.wrong_types
@pytest.mark.parametrize("classes", [[5, 0, 0], [-1, 0, 0], [0, 0], [0.5, 0.0, 0.0], [[0], [0], [0]]])
def test_classes_that_do_not_exist_are_refused(classes):
    for method in (saliency, lambda *args: grad_cam(*args, relu=0)):
        with pytest.raises(InputError, match="classes must"):
            method(logits, IMAGES, np.array(classes))


def test_settings_without_a_meaning_are_refused():
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        integrated_gradients(logits, IMAGES, CLASSES, steps=0)
    with pytest.raises(InputError, match="samples must be at least 1 and noise at least 0, got 4 and -1"):
        smooth_grad(logits, IMAGES, CLASSES, keys, noise=-1, samples=4)
    with pytest.raises(InputError, match=r"relu must be the number of one with maps in space, one of \[0\], got 1"):
        grad_cam(logits, IMAGES, CLASSES, relu=1)
