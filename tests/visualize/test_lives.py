import numpy as np

from cnnjax.visualize.evolution import Strongest
from cnnjax.visualize.lives import NEVER, Lives, lives, measures


def of(value, image, turned=None):
    value, image = np.atleast_2d(np.array(value, float)), np.atleast_2d(image)
    return measures(Lives(value, image, np.zeros(value.shape) if turned is None else np.atleast_2d(turned)))


def test_a_map_is_born_at_the_first_epoch_from_which_its_strongest_image_stays():
    found = of([[1, 1, 1, 1]] * 4, [[7, 3, 3, 3], [3, 3, 7, 3], [5, 5, 5, 5], [1, 2, 3, 3]])
    assert found.born.tolist() == [1, NEVER, 0, 2]
    assert found.changes.tolist() == [1, 2, 0, 2]
    assert found.died.tolist() == [NEVER] * 4


def test_a_map_that_is_dead_meanwhile_is_born_when_it_lives_again_and_a_dead_one_is_not_born():
    found = of([[2, 0, 2, 2], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], [[4, 4, 4, 4]] * 4)
    assert found.born.tolist() == [2, NEVER, NEVER, NEVER]
    assert found.died.tolist() == [NEVER, 2, 0, NEVER]


def test_an_image_is_no_change_where_the_map_is_dead_before_or_after():
    assert of([1, 0, 1, 1], [3, 0, 5, 6]).changes.tolist() == [1]


def test_one_epoch_shows_no_birth():
    assert of([1], [3]).born.tolist() == [NEVER]


def test_lives_by_hand():
    kernels = [[np.array([[1.0, 0.0], [0.0, 1.0]])], [np.array([[1.0, 1.0], [0.0, 0.0]])]]
    nowhere = np.zeros((2, 2), int)
    strongest = {
        0: Strongest(np.array([-1.0, 2]), np.array([0, 4]), nowhere),
        3: Strongest(np.array([1.0, 3]), np.array([5, 4]), nowhere),
    }
    found = lives(kernels, strongest)
    np.testing.assert_array_equal(found.value, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found.image, [[0, 5], [4, 4]])
    np.testing.assert_allclose(found.turned, [[0, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(measures(found).drift, [0, 1], atol=1e-12)


def test_a_map_that_several_filters_lead_to_has_no_drift():
    kernel, nowhere = np.ones((3, 2)), np.zeros((2, 2), int)
    strongest = {0: Strongest(np.ones(2), np.zeros(2, int), nowhere)}
    for several in ([kernel, kernel], [np.ones((3, 4))], []):
        assert np.isnan(lives([several], strongest).turned).all()
