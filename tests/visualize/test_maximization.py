import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.data import Purpose, address
from cnnjax.errors import InputError
from cnnjax.visualize.maximization import colour_directions, maximize

KEYS = jax.random.split(address(1, Purpose.STUDY), 2)


@pytest.mark.parametrize(("decay", "channels"), [(0.0, 1), (1.0, 3)])
def test_a_linear_units_optimum_is_its_filters_direction(decay, channels):
    """Of all images of one norm, by Cauchy and Schwarz, whatever the parametrization."""
    kernel = jax.random.normal(jax.random.key(0), (9, 8, channels))
    objective = lambda x: jnp.einsum("bhwc,hwc->b", x, kernel)  # noqa: E731
    settings = {"rms": 2.0, "steps": 250, "jitter": 0, "decay": decay}
    found = jax.jit(lambda keys: maximize(objective, keys, kernel.shape, **settings))(KEYS)
    best = 2.0 * kernel / jnp.sqrt(jnp.mean(kernel**2))
    np.testing.assert_allclose(found.images, jnp.stack([best, best]), atol=0.05)
    np.testing.assert_allclose(found.values, objective(best[None])[0], rtol=1e-3)


FIRST, SECOND = (
    np.asarray(jax.random.normal(jax.random.key(seed), shape)) for seed, shape in ((2, (5, 5, 3, 8)), (3, (5, 5, 8, 4)))
)


def network(images):
    return ops.conv(jax.nn.relu(ops.conv(images, FIRST, padding=2)), SECOND)


def centre(images):
    maps = network(images)
    return maps[:, maps.shape[1] // 2, maps.shape[2] // 2, 1]


@pytest.mark.long
def test_activation_rises_above_the_best_of_many_random_images_of_the_same_contrast():
    found = jax.jit(lambda keys: maximize(centre, keys, (12, 12, 3), steps=100, jitter=0))(KEYS)
    pixels = jax.random.normal(jax.random.key(4), (2000, 12, 12, 3))
    random = pixels / jnp.sqrt(jnp.mean(pixels**2, axis=(1, 2, 3), keepdims=True))
    assert float(found.values.min()) > 1.5 * float(centre(random).max())
    assert found.history.shape == (100, 2) and (found.history[-1] > 2 * jnp.abs(found.history[0])).all()
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(found.images**2, axis=(1, 2, 3))), 1, rtol=1e-5)


@pytest.mark.long
def test_an_image_does_not_depend_on_the_others():
    find = jax.jit(lambda keys: maximize(centre, keys, (10, 11, 3), steps=5, jitter=1).images)
    both = find(KEYS)
    np.testing.assert_allclose(both[1:], find(KEYS[1:]), atol=1e-3)
    assert float(jnp.abs(both[0] - both[1]).max()) > 0.1


@pytest.mark.long
def test_jitter_favours_what_works_at_every_place():
    """The unit reads one pixel; seen through windows that jump by up to 2, a blob has to grow and not a point."""
    objective = lambda x: x[:, 6, 6, 0]  # noqa: E731

    def width(jitter):
        find = jax.jit(lambda keys: maximize(objective, keys, (13, 13, 1), steps=200, jitter=jitter).images)
        image = find(KEYS[:1])[0, :, :, 0]
        return float(jnp.sum(image > 0.5 * image[6, 6]))

    assert width(0) == 1 and width(2) > 4


def test_mixed_channels_vary_together_as_those_of_the_images():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(5, 20, 20, 3)) @ np.array([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.1]])
    colours = colour_directions([images[:2], images[2:]])
    wanted = np.cov(images.reshape(-1, 3), rowvar=False)
    np.testing.assert_allclose(colours @ colours.T, wanted * 3 / np.trace(wanted), rtol=1e-6, atol=1e-9)
    assert colour_directions([images[..., :1]]).shape == (1, 1)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"jitter": -1}, {"rms": 0.0}])
def test_settings_without_a_meaning_are_refused(setting):
    with pytest.raises(InputError, match="steps must be >= 1, jitter >= 0 and rms > 0, got"):
        maximize(centre, KEYS, (10, 10, 3), **setting)
