"""Words fit: nothing is cut off where a figure is narrow, or the names of layers and classes are long."""

import numpy as np
import pytest

from cnnjax.figures import activations, attribution, evolution, invariance, maximization, occlusion
from cnnjax.figures.texts import broken, filled, shortened
from tests.figures.test_challenge import whole
from tests.figures.test_occlusion import row

LAYER = "features.denseblock3.denselayer24._depthwise_conv"
CLASS = "German short-haired pointer of some very long name"


def test_a_long_text_keeps_its_ends():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert len(shortened(CLASS, 17)) == 17


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("conv1", ["conv1"]),
        ("_blocks.11._expand_conv", ["_blocks.11.", "_expand_conv"]),
        ("great white shark", ["great white", "shark"]),
        ("a" * 20, ["a" * 20]),  # which cannot be broken
        ("", [""]),
    ],
)
def test_a_name_is_broken_behind_its_parts(name, lines):
    assert broken(name, 12).split("\n") == lines


def test_a_text_fills_the_width_and_its_own_lines_stay():
    assert filled("a b\nc d", 100, 8) == "a b\nc d"
    assert filled("aaaa bbbb cccc", 1, 13) == "aaaa bbbb\ncccc"


NOISE = np.random.default_rng(0).normal(size=(1, 1, 9, 9, 3))
UNIT = {LAYER: NOISE[0]}
FIGURES = {
    "activations": lambda: activations.draw(
        NOISE, 99 * np.abs(NOISE), np.ones((1, 1)), np.array([3]), LAYER, "the 50,000 test images of some set"
    ),
    "attribution": lambda: attribution.draw(
        np.zeros((1, 9, 9, 3)), {"gradient": np.ones((1, 9, 9))}, {}, [CLASS], "What speaks for the answer at epoch 10"
    ),
    "evolution": lambda: evolution.draw(NOISE, NOISE, np.zeros((1, 1), bool), np.array([3]), (0,), LAYER),
    "invariance": lambda: invariance.draw(
        {"scale": NOISE}, {"scale": np.ones(1)}, {"scale": np.ones(2)}, {"scale": np.ones((1, 2, 2))},
        {"scale": np.ones((1, 2))}, [f"{CLASS} (7)"], (LAYER, LAYER), ",\nshare of the norm", "network's answer",
    ),
    "maximization": lambda: maximization.draw(
        UNIT, {LAYER: np.ones(1)}, {LAYER: np.ones(1)}, {LAYER: [CLASS]},
        "Images that excite a unit the most, at the contrast of its best training image, epoch 30",
    ),
    "occlusion": lambda: occlusion.draw(
        [row(5, 3, [[number, number + 1]] * 3) for number in (0, 2)], 9 * [CLASS], LAYER, "sum", 2, 0,
        "network's answer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_titles_do_not_overlap(name):
    figure = FIGURES[name]()
    assert whole(figure)
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    for place, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[place + 1 :])
