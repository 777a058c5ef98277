import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.train import losses
from tests.cases import normal


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([1])), -np.log([0.5]), rtol=1e-6)
    smoothed = losses.cross_entropy(logits, jnp.array([1]), 0.3)  # targets 0.1, 0.8, 0.1
    np.testing.assert_allclose(smoothed, -(0.1 * np.log(0.2) + 0.8 * np.log(0.5) + 0.1 * np.log(0.3)), rtol=1e-6)


@pytest.mark.parametrize(("probabilities", "error"), [([0.2, 0.4, 0.1, 0.3], 0.35), ([0.0, 1.0, 0.0, 0.0], 0.0)])
def test_the_total_error_is_half_the_sum_of_squares(probabilities, error):
    """0.5 * (0.2^2 + 0.6^2 + 0.1^2 + 0.3^2) = 0.25 for the right class 1."""
    logits = jnp.log(jnp.array([probabilities]) + 1e-30)
    expected = 0.5 * np.sum((np.eye(4)[1] - np.array(probabilities)) ** 2)
    np.testing.assert_allclose(losses.squared_error(logits, jnp.array([1])), [expected], atol=1e-6)
    assert expected == pytest.approx(0.25) or error == 0.0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_label_smoothing_may_be_traced(name):
    logits, labels = normal(0, (5, 3)), jnp.arange(5) % 3
    rates = jnp.array([0.0, 0.1, 0.5])
    together = jax.vmap(lambda rate: losses.LOSSES[name](logits, labels, rate))(rates)
    alone = jnp.stack([losses.LOSSES[name](logits, labels, float(rate)) for rate in rates])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
