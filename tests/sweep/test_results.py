import math

import numpy as np
import pytest

from cnnjax.sweep.results import errors_by_value, heat_map, importance, value_order


def test_values_stand_in_their_order():
    assert value_order([0.1, 1e-3, 0.1, 10]) == [1e-3, 0.1, 10]
    assert value_order(["sgd", "adamw", "sgd"]) == ["adamw", "sgd"]
    assert value_order([(8, 16), None, (16, 8)]) == [None, (8, 16), (16, 8)]


def test_errors_are_gathered_by_value():
    found = errors_by_value([0.1, 0.2, 0.1, 0.2, 0.1], np.array([0.3, 0.8, 0.5, 0.6, 0.1]))
    assert found.values == [0.1, 0.2]
    np.testing.assert_allclose(found.mean, [0.3, 0.7])
    np.testing.assert_allclose(found.low, [0.1, 0.6])
    np.testing.assert_allclose(found.high, [0.5, 0.8])


def test_a_heat_map_has_the_mean_of_each_combination():
    first, second = [0.2, 0.1, 0.1, 0.1], [None, (8,), (8,), None]
    rows, columns, cells = heat_map(first, second, np.array([0.9, 0.2, 0.4, 0.6]))
    assert rows == [0.1, 0.2] and columns == [None, (8,)]
    np.testing.assert_allclose(cells, [[0.6, 0.3], [0.9, math.nan]])


def test_importance_of_an_additive_grid_is_the_axes_own_variance():
    """e = a_i + b_j on a full grid: the shares are var(a) and var(b) over their sum, and add up to 1."""
    a, b = np.array([0.0, 3.0]), np.array([0.0, 1.0, 2.0])
    rows = [(i, j) for i in range(2) for j in range(3)]
    errors = np.array([a[i] + b[j] for i, j in rows])
    shares = importance([[i for i, _ in rows], [j for _, j in rows]], errors)
    np.testing.assert_allclose(shares, np.array([a.var(), b.var()]) / (a.var() + b.var()))


def test_pure_interplay_is_nobodys_own():
    """e = 1 where the two axes agree: neither says anything by itself."""
    np.testing.assert_allclose(importance([[0, 0, 1, 1], [0, 1, 0, 1]], np.array([1.0, 0.0, 0.0, 1.0])), 0)


def test_equal_errors_have_no_variance_to_share():
    np.testing.assert_array_equal(importance([[0, 1], ["a", "b"]], np.array([0.5, 0.5])), 0)


def test_a_drawn_axis_is_binned_and_one_without_effect_explains_little():
    """A line over 1000 draws in five bins: each bin leaves 1/25 of the variance inside. Noise: 4/999 are expected."""
    generator = np.random.default_rng(0)
    draws, noise = generator.random(1000), generator.random(1000)
    errors = np.argsort(np.argsort(draws)) / 1000
    shares = importance([list(draws), list(noise)], errors)
    assert shares[0] == pytest.approx(1 - 1 / 25, abs=1e-4)
    assert shares[1] < 0.02
