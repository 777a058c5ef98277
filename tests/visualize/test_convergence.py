import numpy as np

from cnnjax.visualize.convergence import convergence, filter_distance
from cnnjax.visualize.evolution import Strongest


def strongest(values, images):
    return {"conv1": Strongest(np.array(values, float), np.array(images), np.zeros((len(images), 2), int))}


def test_the_distance_of_same_orthogonal_opposite_and_dead_filters():
    final = np.array([[1.0, 1, 1, 0], [0, 0, 0, 0]])
    now = np.array([[3.0, 0, -2, 0], [0, 5, 0, 0]])
    np.testing.assert_allclose(filter_distance(now, final), [0, 1, 2, 1], atol=1e-12)


def test_the_curves_by_hand():
    kernels = [[np.array([[1.0, 0.0], [0.0, 1.0]])], [np.array([[1.0, 1.0], [0.0, 0.0]])]]  # at either epoch one
    curves = convergence({"conv1": kernels}, {0: strongest([0, 1], [3, 4]), 2: strongest([2, 1], [3, 5])})
    np.testing.assert_allclose(curves.filter_distance, [[0.5, 0]], atol=1e-12)
    np.testing.assert_allclose(curves.dead, [[0.5, 0]])
    np.testing.assert_allclose(curves.moved, [[np.nan, 0.5]])
    assert curves.epochs == (0, 2)
