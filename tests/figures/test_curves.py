import numpy as np
import pytest

from cnnjax.figures import curves

LINES = [
    {"epoch": 0, "test_loss": 2.3, "test_error": 0.9, "validation_loss": 2.2, "validation_error": 0.8},
    {"epoch": 1, "train_loss": None, "train_error": 0.5, "test_loss": 1.0, "test_error": 0.4, "validation_loss": 1.1},
    {"epoch": 2, "train_loss": 0.5, "train_error": 0.2, "test_loss": 0.8, "test_error": 0.3, "validation_error": 0.35},
]


def lines_of(axes):
    return {(line.get_linestyle(), line.get_color()): np.asarray(line.get_ydata()) for line in axes.lines}


def test_numbers_that_a_line_lacks_are_none():
    found = curves.curves_of("a", LINES)
    np.testing.assert_array_equal(found.epochs, [0, 1, 2])
    np.testing.assert_array_equal(found.values["train_loss"], [np.nan, np.nan, 0.5])
    np.testing.assert_array_equal(found.values["validation_error"], [0.8, np.nan, 0.35])
    assert found.of("train", "error_top5") is None


def test_a_training_without_metrics_has_nothing_to_draw():
    assert curves.measures_of([curves.curves_of("a", [{"epoch": 0}])]) == []
    assert curves.measures_of([curves.curves_of("a", [{"epoch": 0, "test_error": 0.5}])]) == ["error"]


def test_one_training_has_a_style_and_a_colour_a_split():
    one = curves.curves_of("a", LINES)
    figure = curves.draw([one], ["loss", "error"], "title")
    loss, error = figure.axes
    assert len({colour for _, colour in lines_of(loss)}) == 3
    drawn = {style: shown for (style, _), shown in lines_of(error).items()}
    for split, style in curves.STYLES.items():
        np.testing.assert_array_equal(drawn[style], 100 * one.values[f"{split}_error"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["test", "validation", "train"]
    assert figure.get_suptitle() == "title" and error.get_ylabel() == "error, %"


def test_several_trainings_have_a_colour_each_and_may_lack_a_split():
    short = curves.curves_of("short", [{"epoch": 0, "test_error": 0.5}])
    figure = curves.draw([curves.curves_of("whole", LINES), short], ["error"], "title", ["said"])
    (axes,) = figure.axes
    assert {colour for _, colour in lines_of(axes)} == {curves.COLOURS[0], curves.COLOURS[1]}
    (dot,) = [line for line in axes.lines if line.get_color() == curves.COLOURS[1]]
    assert dot.get_marker() not in (None, "None", "")  # a single epoch has no line
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "test", "validation", "train", "whole", "short"
    ]  # fmt: skip
    assert figure.get_supxlabel().split("\n")[1:] == ["said"]


def test_no_two_of_many_trainings_look_alike():
    every = [curves.curves_of(str(number), LINES) for number in range(24)]
    (axes,) = curves.draw(every, ["error"], "title").axes
    looks = {(line.get_linestyle(), line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 3 * 24


@pytest.mark.parametrize(("least", "scale"), [(0.5, "linear"), (0.01, "log"), (0.0, "linear")])
def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis(least, scale):
    one = curves.curves_of("a", [{"epoch": 0, "test_loss": 2.0}, {"epoch": 1, "test_loss": least}])
    (axes,) = curves.draw([one], ["loss"], "title").axes
    assert axes.get_yscale() == scale
    axes.figure.draw_without_rendering()
    assert all("$" not in label.get_text() for label in axes.get_yticklabels())  # TeX is not read


def test_the_arrays_behind_are_named_as_in_the_metrics():
    one = curves.curves_of("a", LINES)
    alone, both = curves.arrays([one]), curves.arrays([one, one])
    assert alone.keys() == {"epochs", *one.values}
    assert list(both["names"]) == ["a", "a"] and both.keys() == {"names"} | {
        f"{field}_{number}" for field in alone for number in (0, 1)
    }
