"""Bars, names and confusions stand where the numbers are; nothing is cut off with few, many or long-named classes."""

import numpy as np
import pytest

from cnnjax.figures import classify, confusion
from cnnjax.figures.classify import Answer
from tests.figures.test_challenge import whole
from tests.figures.test_figures import texts

LONG = "n02099601 a retriever of some very long name, or another word for it"


def answer(place, classes, size=(6, 6, 3)):
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])[: len(classes)]
    true = None if place is None else (classes[place - 1] if place <= len(classes) else "another")
    return Answer(np.full(size, 200, np.uint8), f"{LONG}.jpg", classes, probabilities, true, place)


def test_each_image_has_its_bars_and_the_true_class_is_marked():
    figure = classify.draw(
        [answer(2, ["cat", "dog", "owl"]), answer(9, ["cat", "dog"]), answer(None, ["cat"])], "Note."
    )
    first, second, third = (axes for axes in figure.axes if axes.patches)
    assert [bar.get_width() for bar in first.patches] == [0.5, 0.3, 0.15]
    assert [bar.get_hatch() for bar in first.patches] == [None, "//", None]
    assert not any(bar.get_hatch() for axes in (second, third) for bar in axes.patches)
    assert [text.get_text() for text in first.texts] == ["cat  0.50", "dog  0.30", "owl  0.15"]
    titles = [axes.get_title(loc="left").split("\n") for axes in (first, second, third)]
    assert titles[0][1] == "true: dog, place 2" and titles[1][1] == "true: another, place 9" and len(titles[2]) == 1
    assert titles[0][0].startswith("n02099601") and titles[0][0].endswith(".jpg") and len(titles[0][0]) == classify.NAME


@pytest.mark.parametrize(("images", "size"), [(1, (24, 60, 1)), (1, (60, 24, 3)), (4, (8, 8, 3)), (13, (8, 8, 1))])
def test_nothing_of_the_answers_is_cut_off(images, size):
    figure = classify.draw([answer(1 + place % 4, [LONG] * 4, size) for place in range(images)], "A long note. " * 12)
    assert whole(figure)


def test_rows_are_shares_of_the_true_class():
    shares = confusion.row_shares(np.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(shares, [[0.75, 0.25], [np.nan, np.nan]])


def test_a_matrix_of_few_classes_has_its_names_and_numbers():
    counts = np.array([[7, 2, 0], [0, 0, 0], [1, 3, 4]])
    figure = confusion.draw(counts, ("cat", "dog", "owl"), [(2, 1, 3), (0, 1, 2), (2, 0, 1)], "A note.")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array()[[0, 2]], [[700 / 9, 200 / 9, 0], [12.5, 37.5, 50]])
    assert axes.images[0].get_array().mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "7", (1, 0): "2", (0, 2): "1", (1, 2): "3", (2, 2): "4"
    }  # fmt: skip
    assert {"cat", "dog", "owl", "A note.", "true class", "answer of the network"} <= set(texts(figure))


def test_names_that_would_be_alike_are_numbered():
    short = confusion.short_names([f"{LONG} and more", f"{LONG} and more", "cat"])
    assert len(set(short)) == 3 and short[2] == "cat" and short[0].startswith("0 n0") and short[1].startswith("1 n0")
    assert all(len(name) <= confusion.NAME for name in short)


@pytest.mark.parametrize("classes", [2, 10, 30, 31, 1000])
def test_nothing_of_the_confusions_is_cut_off(classes):
    names = [f"{number} {LONG}" for number in range(classes)]
    pairs = [(number % classes, (number + 1) % classes, 30 - number) for number in range(25)]
    figure = confusion.draw(np.eye(classes, dtype=int), names, pairs, "A long note. " * 12)
    assert whole(figure)
    bars = [axes for axes in figure.axes if len(axes.patches) == 25]
    assert len(bars) == (classes > confusion.MOST_NAMED)
    assert any(axes.images for axes in figure.axes) == (classes <= confusion.MOST_DRAWN)
    if bars:
        assert [bar.get_width() for bar in bars[0].patches] == [images for *_, images in pairs]
        labels = [label.get_text() for label in bars[0].get_yticklabels()]
        assert labels[0].startswith("0 n02099601") and " → 1 n02099601" in labels[0]


def test_no_confusions_at_all_are_said():
    figure = confusion.draw(np.eye(40, dtype=int), [str(number) for number in range(40)], [], "A note.")
    assert "no confusions" in texts(figure)
