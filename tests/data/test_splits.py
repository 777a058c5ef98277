import numpy as np
import pytest

from cnnjax.data.splits import of_all_classes, random_state, stratified_split, validation_rows
from cnnjax.errors import InputError

LABELS = np.repeat([0, 1, 2], [50, 30, 5])


def split(**change):
    return stratified_split(LABELS, **{"test_fraction": 0.2, "seed": 0, "name": "set", **change})


def test_stratified_split_parts_every_class_in_proportion_and_loses_none():
    train, test = split()
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(85))
    np.testing.assert_array_equal(np.bincount(LABELS[test]), [10, 6, 1])
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()


def test_stratified_split_is_a_function_of_the_seed():
    np.testing.assert_array_equal(split(seed=3)[1], split(seed=3)[1])
    assert not np.array_equal(split(seed=3)[1], split(seed=4)[1])


@pytest.mark.parametrize("test_fraction", [0.001, 0.999])
def test_stratified_split_leaves_an_image_of_each_class_on_both_sides(test_fraction):
    for part in split(test_fraction=test_fraction):
        assert set(LABELS[part]) == {0, 1, 2}


def test_stratified_split_refuses_a_class_of_one_and_a_negative_label():
    with pytest.raises(InputError, match="set: a seeded split needs at least 2 images of each class, got 1 of class 7"):
        stratified_split(np.array([0, 0, 7]), test_fraction=0.5, seed=0, name="set")
    with pytest.raises(InputError, match="set: labels must be at least 0, got -1 at index 1"):
        stratified_split(np.array([0, -1]), test_fraction=0.5, seed=0, name="set")


def chosen(labels=LABELS, fraction=0.2, seed=0):
    return validation_rows(np.asarray(labels), fraction=fraction, seed=seed, name="set")


def test_validation_takes_of_each_class_in_proportion_and_loses_none():
    rest, rows = chosen()
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, rows])), np.arange(85))
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), [10, 6, 1])
    assert (np.diff(rest) > 0).all() and (np.diff(rows) > 0).all()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_validation_is_as_large_as_it_is_asked_for_however_small_the_classes(fraction):
    """1000 classes of 3 images: a tenth is 300 images, of as many classes; 90 % would leave classes without one."""
    labels = np.arange(3000) % 1000
    rest, rows = chosen(labels, fraction)
    counts = np.bincount(labels[rows], minlength=1000)
    assert len(rows) == min(round(3000 * fraction), 2000) and np.ptp(counts) <= 1
    assert set(labels[rest]) == set(range(1000))


def test_validation_is_a_function_of_the_seed_and_not_the_test_of_a_folder():
    np.testing.assert_array_equal(chosen(seed=3)[1], chosen(seed=3)[1])
    assert not np.array_equal(chosen(seed=3)[1], chosen(seed=4)[1])
    assert not np.array_equal(chosen()[1], split()[1])


def test_a_class_with_one_image_keeps_it_and_where_no_class_has_two_it_is_refused():
    rest, rows = chosen([0, 1, 1, 2], 0.75)
    assert len(rows) == 1 and set(np.array([0, 1, 1, 2])[rest]) == {0, 1, 2}
    with pytest.raises(InputError, match="data.validation_fraction must be 0 for set, of which no class has 2"):
        chosen([0, 1, 2])


def test_random_state_is_frozen():
    # Numbers of NumPy 2.4; NumPy promises them for all versions, and the embedded sets depend on it.
    assert random_state(0, 1).randint(1000, size=4).tolist() == [210, 202, 466, 730]
    assert random_state(2**80, 1).randint(1000) != random_state(2**80 + 1, 1).randint(1000)


@pytest.mark.parametrize(
    ("labels", "count", "rows"),
    [
        ([0, 1, 2, 0, 0, 0], 4, [0, 1, 2, 3]),  # all classes are among the first
        ([0, 0, 0, 1, 1, 2], 3, [0, 3, 5]),
        ([0, 0, 0, 1, 1, 2], 5, [0, 1, 3, 4, 5]),  # the first of each class, then the second of those that have one
        ([0, 0, 0, 1, 1, 2], 9, [0, 1, 2, 3, 4, 5]),
        ([5, 5, 4, 4, 3, 3, 2, 2], 2, [0, 4]),  # of more classes than can be had, some that lie apart
        ([0, 0, 0], 0, []),
    ],
)
def test_a_few_images_are_of_as_many_classes_as_can_be(labels, count, rows):
    np.testing.assert_array_equal(of_all_classes(np.array(labels), count), rows)
