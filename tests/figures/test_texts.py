"""Words fit: nothing is cut off where a figure is narrow, or the names of layers and classes are long."""

import importlib
import pkgutil

import numpy as np
import pytest
from matplotlib.figure import Figure

import cnnjax.figures
from cnnjax.figures import (
    activations,
    animation,
    architectures,
    attribution,
    benchmark,
    challenge,
    classify,
    confusion,
    convergence,
    correspondence,
    curves,
    evolution,
    filters,
    invariance,
    lecture,
    maximization,
    occlusion,
    probes,
    scaling,
    sweep,
)
from cnnjax.figures.projections import Made, drawn_by_lot
from cnnjax.figures.texts import broken, epoch_axis, filled, fitting, shortened, width_of
from tests.figures import boxes
from tests.figures.test_challenge import ENTRIES
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


def test_a_word_that_is_too_wide_is_broken_behind_its_parts_or_anywhere():
    inches = width_of("a features.", 10) + 0.01
    assert filled("a features.block.conv b", inches, 10).split("\n") == ["a features.", "block.conv", "b"]
    lines = filled("w" * 40, 1, 10).split("\n")
    assert "".join(lines) == "w" * 40 and all(width_of(line, 10) <= 1 for line in lines)


def test_labels_are_as_large_as_their_place_allows():
    assert fitting(["0", "64"], 5, 10) == 10
    small = fitting(["1,000", "64"], 0.2, 10)
    assert 4 < small < 10 and width_of("1,000", small) == pytest.approx(0.18)
    assert fitting(["w" * 100], 0.2, 10) == 4 and fitting([], 1, 10) == 10


def test_an_axis_says_that_it_is_not_even():
    assert epoch_axis((0, 1, 2)) == epoch_axis([0, 5]) == epoch_axis([3]) == "epoch"
    assert "not even" in epoch_axis((0, 1, 2, 5))


COLUMNS = (1, 3, 5, 9)
random = np.random.default_rng(0)


def noise(*shape):
    return random.normal(size=shape)


def grey(*shape):
    return 255 * random.random(shape)


def epochs(count):
    """Not at equal distances, and long to write."""
    return tuple((37 * np.cumsum(np.arange(count))).tolist())


def names(text, count):
    return [f"{text} {number}" for number in range(count)]


def made(field):
    chosen = drawn_by_lot(3, 4096, 2**31 - 1, "that some image excites")
    return Made("guided", 0.999, field, chosen)


def evolved(count):
    """As of the default: small tiles, more rows than columns; so the height decides how large a tile is drawn."""
    shape = (count + 3, count)
    place = np.tile([2.0, 3.0], (*shape, 1))
    patches = grey(*shape, 7, 7, 3)
    patches[0, 0, :4] = np.nan
    dead = np.eye(*shape, dtype=bool)
    return noise(*shape, 7, 7, 3), patches, place, dead, np.arange(count + 3), epochs(count), LAYER


def excited(count):
    patches = grey(count, count, 9, 9, 3)
    patches[0, 0, :4] = np.nan
    place, value = np.tile([2.0, 3.0], (count, count, 1)), np.ones((count, count)) - np.eye(count)
    return noise(count, count, 9, 9, 3), patches, place, value, np.arange(count) + 4000, LAYER


def table_of(count):
    numbers = np.sort(random.random((4, count, 2, 3)), axis=-1)
    ps = random.random((2, count, 2))
    table = dict(zip(("part", "part_between", "band", "band_between"), numbers, strict=True))
    return table | {"p": ps[0], "p_between": ps[1]}


def moved(count):
    values = {"translation": np.arange(-9.0, 10), "scale": np.linspace(1, 1.8, 17), "rotation": np.arange(36) * 10.0}
    distance = {name: 1e4 * random.random((count, 2, len(at))) for name, at in values.items()}
    return values, distance, {name: random.random((count, len(at))) for name, at in values.items()}


def draw_invariance(count):
    values, distance, probability = moved(count)
    shown = {name: at[: min(5, count)] for name, at in values.items()}
    examples = {name: grey(count, len(at), 9, 9, 3) for name, at in shown.items()}
    unit = ",\nshare of the norm"
    return invariance.draw(
        examples, shown, values, distance, probability, names(CLASS, count), (LAYER, LAYER), unit, "network's answer"
    )


def answer(count):
    classes = names(CLASS, count)
    probabilities = np.full(count, 1 / count)
    return classify.Answer(np.zeros((9, 9, 3), np.uint8), f"{CLASS}.jpg", classes, probabilities, classes[-1], count)


def fits(count):
    return [lecture.Fit(7, 3, 1 + number, number % 2, None if number % 2 else 3) for number in range(count)]


HEATS = [0.001, 0.00123456, *range(2, 9)]
FIGURES = {
    "activations.draw": lambda n: activations.draw(*excited(n), "the 1,281,167 training images of it", made((99, 99))),
    "animation.draw": lambda n: animation.draw(
        noise(1, 3, 3, 3, n), {name: noise(n, 1, 9, 9, 3) for name in names(LAYER, n)},
        {name: np.zeros((n, 1), bool) for name in names(LAYER, n)}, (10**4,), LAYER,
    ),
    "architectures.draw": lambda n: architectures.draw(
        [noise(3, 3, 3, 8)] * n, names("double_dense_wide_middle", n),
        ["dead 100 %, middle 100 %,\naliased 100 %, strongest 100.0× median"] * n, np.linspace(0.01, 0.5, 9),
        np.exp(noise(n, 9)), (0.125, 0.25),
    ),
    "architectures.draw_projections": lambda n: architectures.draw_projections(
        [noise(9, 5, 5, 3)] * n, [np.arange(9) < 3] * n, names("double_dense_wide_middle", n), [made((5, 5))] * n,
        LAYER, "the 50,000 test images of a set of some long name",
    ),
    "attribution.draw": lambda n: attribution.draw(
        grey(n, 9, 9, 3), {f"integrated gradients {number}": np.abs(noise(n, 9, 9)) for number in range(n)},
        {"guided backpropagation": noise(n, 9, 9, 3)}, [f"{CLASS}\n(is {CLASS})"] * n,
        "What speaks for the answer at epoch 10",
    ),
    "attribution.draw_sanity": lambda n: attribution.draw_sanity(
        ["none", *names(LAYER, n)], *2 * [{f"integrated gradients {number}": noise(n + 1, 3) for number in range(n)}],
        "Sanity check: mean over 16 test images, epoch 64",
    ),
    "benchmark.draw_crossover": lambda n: benchmark.draw_crossover(
        names("zfnet_small 32×32", n), [1, 4, 16, 64, 256], names("PyTorch, one member after another", 3),
        np.exp(noise(n, 3, 5)), "one epoch of 4,000 images, batches of 64", "two cores of a machine, alone " * 4,
    ),
    "challenge.draw": lambda n: challenge.draw(
        ENTRIES, 5.1, [challenge.Point(CLASS, 9.0 * number, "10 classes") for number in range(n)], "A long note. " * 20
    ),
    "classify.draw": lambda n: classify.draw([answer(n)] * n, "zfnet_small, epoch 64: the test images of photos " * 3),
    "confusion.draw": lambda n: confusion.draw(
        10000 * np.eye(n, dtype=int), names(CLASS, n), [(0, 0, 9)], "the test images of photos " * 5
    ),
    "convergence.draw": lambda n: convergence.draw(
        epochs(n), tuple(names(LAYER, n)), *3 * [random.random((n, n))]
    ),
    "correspondence.draw": lambda n: correspondence.draw(
        grey(n, n + 1, 9, 9, 3), names(CLASS, n), ["as it is", *names(CLASS, n)], names(CLASS, n), (LAYER, LAYER),
        table_of(n), "Boxes of 8×8 px at fixed places in 5 images of each of 10 classes. " * 3, are_parts=n > 3,
    ),
    "curves.draw": lambda n: curves.draw(
        [
            curves.Curves(name, np.arange(9), {"test_error": random.random(9), "train_loss": random.random(9)})
            for name in names(CLASS, n)
        ],
        ["loss", "error"], "Learning curves", ["They differ in: learning_rate, weight_decay. " * n],
    ),
    "evolution.draw": lambda n: evolution.draw(*evolved(n), made((7, 7)), "map"),
    "filters.draw": lambda n: filters.draw(noise(n, 3, 3, 3, 9), epochs(n), LAYER),
    "invariance.draw": draw_invariance,
    "invariance.draw_average": lambda n: invariance.draw_average(
        *moved(n), np.array([1e4, 1e4]), (LAYER, LAYER), ",\nshare of the norm", "Over 200 test images", "true class"
    ),
    "lecture.draw_scanner": lambda n: lecture.draw_scanner(*3 * [np.full((n, n), -9)]),
    "lecture.draw_rgb": lambda n: lecture.draw_rgb(
        np.zeros((n, 4, 4), int), np.ones((n, 3, 3), int), np.full(n, -7), 1, -1, names("red", n)
    ),
    "lecture.draw_strides": lambda n: lecture.draw_strides(fits(n)),
    "lecture.draw_pooling": lambda n: lecture.draw_pooling(
        np.full((2 * n, 2 * n), -9), np.zeros((n, n), int), np.full((n, n), -9), 2
    ),
    "lecture.draw_feature_maps": lambda n: lecture.draw_feature_maps(
        grey(9, 9), noise(9, 9, n), names("edges", n), [np.full((3, 3), -1)] * n, [9] * n
    ),
    "lecture.draw_relu": lambda n: lecture.draw_relu(
        noise(9, 9, n), np.maximum(noise(9, 9, n), 0), names("horizontal edges (Sobel)", n)
    ),
    "lecture.draw_weights": lambda n: lecture.draw_weights(noise(3, 3, n), "Step 1: random weights of the network"),
    "lecture.draw_bars": lambda n: lecture.draw_bars(
        names("motorcycle", n), {"target": random.random(n), "output": -random.random(n)}, "Step 4: gradients",
        "the derivative of the total error by each output", "probability",
    ),
    "lecture.draw_invariance": lambda n: lecture.draw_invariance(
        grey(n, 9, 9), np.arange(n), np.arange(9), {name: random.random(9) for name in names("pooled twice", n)}
    ),
    "lecture.draw_training": lambda n: lecture.draw_training(
        names("dog", n), np.eye(n)[0], {"before": random.random(n), "after": random.random(n)}, np.array([0.64, 0.01]),
        np.arange(9), random.random(9), random.random(9), "A training that really ran",
    ),
    "maximization.draw": lambda n: maximization.draw(
        {name: grey(n, 9, 9, 3) for name in names(LAYER, n)},
        *2 * [dict.fromkeys(names(LAYER, n), np.full(n, -1234.5))], dict.fromkeys(names(LAYER, n), names(CLASS, n)),
        "Images that excite a unit the most, at the contrast of its best training image, epoch 30",
    ),
    "occlusion.draw": lambda n: occlusion.draw(
        [row(10**6, 3, [[number, (number + 1) % 9]] * 3) for number in range(min(n, 4))], 9 * [CLASS], LAYER, "sum",
        2, 0, "network's answer",
    ),
    "probes.draw": lambda n: probes.draw(
        random.random((2, 3, n, 2, n)), ("epoch 64", "untrained"), names(LAYER, n), ("svm", "softmax"), range(n), 0.1,
        "Linear classifiers on the layers of zfnet_small, photos",
    ),
    "scaling.draw": lambda n: scaling.draw(
        [2**power for power in range(n)], names("resnet50 224×224", 4), *2 * [1 + random.random((4, n))], [8] * 4,
        "a machine of some long name", 90,
    ),
    "sweep.draw_axes": lambda n: sweep.draw_axes(
        names("weight_decay", n), [np.sort(random.random(n)).tolist()] * n, *3 * [[random.random(n)] * n], 64
    ),
    "sweep.draw_curves": lambda n: sweep.draw_curves(
        range(9), random.random((n, 9)), "weight_decay", range(n), names(CLASS, n), range(n)
    ),
    "sweep.draw_heat": lambda n: sweep.draw_heat(
        "weight_decay", HEATS[:n], "learning_rate", HEATS[:n], random.random((n, n)), 64
    ),
    "sweep.draw_importance": lambda n: sweep.draw_importance(names("weight_decay", n), np.ones(n)),
    "sweep.draw_filters": lambda n: sweep.draw_filters(
        [noise(n, 3, 3, 3, 8)] * n, names("learning_rate 0.001", n), epochs(n), "learning_rate", np.ones(n)
    ),
}  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(n, marks=[] if n in (1, 9) else pytest.mark.long) for n in COLUMNS])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_page_or_overlaps_another(name, count, monkeypatch):
    with boxes.recorded(monkeypatch) as found:
        figure = FIGURES[name](count)
    pages = found.values() if name == "animation.draw" else [boxes.of_figure(figure, monkeypatch)]
    assert pages and [fault for page in pages for fault in boxes.faults(page)] == []
    for page in pages:
        highest = max(page, key=lambda box: box.y1)
        assert abs(highest.x0 + highest.x1 - highest.width) < 0.2 * highest.width, "no title"


def test_every_drawing_is_tried():
    names = [module.name for module in pkgutil.iter_modules(cnnjax.figures.__path__)]
    modules = {name: importlib.import_module(f"cnnjax.figures.{name}") for name in names}
    drawings = {
        f"{name}.{function}"
        for name, module in modules.items()
        for function, value in vars(module).items()
        if function.startswith("draw") and getattr(value, "__module__", "") == module.__name__
    }
    assert drawings - {"projections.drawn_by_lot"} == FIGURES.keys()


def test_a_text_that_is_cut_or_covered_is_found(monkeypatch):
    figure = Figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "here")
    figure.text(0.52, 0.5, "there")
    figure.text(0.9, 0.9, "far too long")
    found = boxes.faults(boxes.of_figure(figure, monkeypatch))
    assert len(found) == 2 and "leaves the page" in found[0] and found[1] == "'here' overlaps 'there'"
