"""The numbers that the lecture prints, against those that are computed here."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.errors import InputError
from experiments import lecture
from tests.experiments.test_filter_evolution import Quiet
from tests.experiments.test_report import finished
from tests.report.test_page import Read

FIGURES = (
    *("scanner", "rgb", "strides", "pooling", "feature_maps", "relu", "invariance"),
    *(f"step_{number}" for number in range(1, 6)),
    *("training", "challenge"),
)


@pytest.fixture(scope="module")
def image():
    return lecture.photograph()


def loops(image, kernel):
    """The plain definition: output pixel o is the sum of window o times the filter."""
    rows, columns = (size - len(kernel) + 1 for size in image.shape)
    return np.array([[(image[r : r + 3, c : c + 3] * kernel).sum() for c in range(columns)] for r in range(rows)])


def test_the_binary_scanner_gives_the_lectures_output():
    scanned = lecture.scan()
    np.testing.assert_array_equal(scanned.output, [[4, 3, 4], [2, 4, 3], [2, 3, 4]])


def test_the_three_channels_add_up_to_the_lectures_sums():
    colour = lecture.rgb()
    assert colour.sums.tolist() == [308, -498, 164]
    assert lecture.RGB_BIAS == 1 and colour.output[0, 0] == -25
    assert (colour.padded[:, 0] == 0).all() and (colour.padded[:, :, 0] == 0).all() and colour.padded.shape == (3, 5, 5)
    by_loops = sum(loops(pixels, kernel) for pixels, kernel in zip(colour.padded, lecture.RGB_FILTER, strict=True))
    np.testing.assert_array_equal(colour.output, by_loops + 1)
    np.testing.assert_array_equal(colour.output[:2], [[-25, 466, 466], [295, 787, 798]])  # the animation's


def test_strides_padding_and_the_volume_are_the_lectures():
    sizes = lecture.sizes()
    outputs = {(fit.stride, fit.padding): fit.output for fit in sizes.fits}
    assert outputs == {(1, 0): 5, (2, 0): 3, (3, 0): None, (3, 1): 3}
    assert list(sizes.refusals) == [(3, 0)]
    assert sizes.refusals[3, 0].startswith("a 3×3 filter with stride 3 does not fit 7×7")
    assert sizes.keeping == {3: 1, 5: 2, 7: 3} == {window: (window - 1) // 2 for window in (3, 5, 7)}
    assert sizes.volume == (28, 28, 6)
    assert sizes.weights == (5 * 5 * 3) * 6 + 6


def test_max_pooling_keeps_the_largest_of_each_window():
    pooled = lecture.max_pooling()
    np.testing.assert_array_equal(pooled.output, [[6, 8], [3, 4]])
    np.testing.assert_array_equal(lecture.POOLED_IMAGE.ravel()[pooled.switches], pooled.output)


def test_the_feature_maps_are_those_of_plain_loops_after_relu(image):
    corner = image[60:90, 100:130].astype(int)
    maps = lecture.feature_maps(corner)
    for index, one in enumerate(lecture.FILTERS):
        expected = np.maximum(loops(corner, one.weights) / one.divisor, 0)
        np.testing.assert_array_equal(maps[..., index], expected)


def test_an_edge_is_found_by_the_filter_of_its_direction():
    vertical = np.zeros((6, 6), int)
    vertical[:, 3:] = 10
    names = [one.name for one in lecture.FILTERS]
    maps = dict(zip(names, np.moveaxis(lecture.feature_maps(vertical), 2, 0), strict=True))
    assert maps["vertical edges (Sobel)"].max() == 40 and maps["horizontal edges (Sobel)"].max() == 0
    maps = dict(zip(names, np.moveaxis(lecture.feature_maps(vertical.T), 2, 0), strict=True))
    assert maps["vertical edges (Sobel)"].max() == 0 and maps["horizontal edges (Sobel)"].max() == 40
    assert {float(one.weights.sum() / one.divisor) for one in lecture.FILTERS} == {0.0, 1.0}


def test_maps_move_with_the_input_and_their_maxima_stay(image):
    moved = lecture.invariance(image)
    assert moved.shifts.tolist() == list(range(9))
    np.testing.assert_array_equal(moved.inputs[8, :, 8:], moved.inputs[0, :, :-8])
    assert (moved.inputs[0][:, -8:] == 0).all() and (moved.inputs > 0).any()
    assert (moved.largest_difference == 0).all()
    np.testing.assert_array_equal(moved.strongest, np.broadcast_to(moved.strongest[0], moved.strongest.shape))
    assert (moved.strongest > 0).all()


def test_pooling_makes_the_output_change_less_and_the_maximum_not_at_all(image):
    curves = lecture.invariance(image).curves
    order = ["convolution and ReLU", *(f"then max pooling {window}×{window}" for window in lecture.POOLS)]
    for less, more in zip(order[1:], order, strict=False):
        assert (curves[less][1:] < curves[more][1:]).all()
    assert (curves["the maximum of each map"] == 0).all()
    assert all(curve[0] == 0 for curve in curves.values())


def test_the_total_errors_are_the_lectures():
    """½(0.2² + 0.4² + 0.9² + 0.3²), ½(0.1² + 0.1² + 0.3² + 0.1²) and none."""
    assert list(lecture.OUTPUTS.values())[:2] == [(0.2, 0.4, 0.1, 0.3), (0.1, 0.1, 0.7, 0.1)]
    np.testing.assert_allclose(lecture.total_errors(), [0.55, 0.06, 0.0], rtol=1e-5, atol=1e-12)


def test_the_relu_keeps_what_is_positive(image):
    corner = image[60:90, 100:130].astype(int)
    before, after = lecture.signals(corner), lecture.feature_maps(corner)
    np.testing.assert_array_equal(after, np.maximum(before, 0))
    assert (before.min(axis=(0, 1)) < 0).any()


def test_the_gradients_are_those_of_finite_differences():
    """Of ½ Σ (target - output)², in double precision."""
    output, target = np.array(lecture.OUTPUTS["untrained"]), np.eye(4)[lecture.BOAT]
    steps = 1e-6 * np.eye(4)
    slopes = [(((output + step - target) ** 2).sum() - ((output - step - target) ** 2).sum()) / 4e-6 for step in steps]
    np.testing.assert_allclose(lecture.gradients(lecture.OUTPUTS["untrained"]), slopes, atol=1e-6)
    np.testing.assert_allclose(slopes, [0.2, 0.4, -0.9, 0.3], atol=1e-6)


def test_main_writes_every_figure_its_arrays_and_the_page(tmp_path):
    lecture.main(lecture.Options(out=tmp_path / "new", updates=60), Quiet())
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "npz")} | {"lecture.html", "lock"}
    for name in FIGURES:
        with Image.open(tmp_path / "new" / f"{name}.png") as picture:
            assert min(picture.size) > 300
        with np.load(tmp_path / "new" / f"{name}.npz", allow_pickle=False) as arrays:
            assert all(arrays[key].size for key in arrays.files)
    with np.load(tmp_path / "new" / "training.npz") as arrays:
        assert arrays["updates"][0] == 0 and arrays["updates"][-1] == 60
        assert arrays["total_error"][-1] < 0.5 * arrays["total_error"][0]
        assert arrays["wrong"][-1] < 0.5 * arrays["wrong"][0]
    read = Read((tmp_path / "new" / "lecture.html").read_text(encoding="utf-8"))
    assert [of["alt"].rpartition(": ")[2] for tag, of in read.elements if tag == "img"] == list(FIGURES)
    assert [link for link in read.links if link.endswith(".npz")] == [f"{name}.npz" for name in FIGURES]
    for fact in (
        "is 4 3 4 / 2 4 3 / 2 3 4.",
        "308 + (-498) + 164 + 1 = -25",
        "(7 - 3 + 2·0)/1 + 1 = 5",
        "a 3×3 filter with stride 3 does not fit 7×7 with padding 0",
        "(5·5·3)·6 + 6 = 456",
        "28×28×6",
        "becomes 6 8 / 3 4.",
        "is the same for every shift",
        "= 0.55 ",
        "= 0.06 ",
        "of the untrained network is (0.2, 0.4, -0.9, 0.3)",
        "2012 SuperVision (AlexNet) 16.4 %; 2013 Clarifai 11.7 %",
        "The opposite: after blur nothing is negative on this photograph",
    ):
        assert fact in read.text, fact


def test_where_a_figure_shows_the_opposite_the_page_says_so():
    course = lecture.Course(np.array([0, 5, 9]), np.array([3.0, 4, 2]), np.array([0.5, 0.4, 0.5]), np.ones((3, 3, 8)))
    assert lecture._rises(course) == (
        "the total error rises between the updates 0 and 5.",
        "the share of wrong classes is not lower at the end than at the start.",
    )
    assert lecture._rises(course._replace(total_error=np.array([3.0, 2, 1]), wrong=np.array([3.0, 2, 1]))) == ()
    curves = {"input": np.array([0, 0.5, 0.5]), "maps": np.array([0, 0.4, 0.6]), "pool": np.array([0, 0.4, 0.5])}
    moved = lecture.Invariance(np.arange(3), *[np.zeros((3, 1, 1))] * 2, np.zeros((3, 1)), curves)
    assert lecture._less_invariant(moved) == ("“maps” changes more than “input” at a shift of 2 pixels.",)
    before = np.full((2, 2, 5), -1.0)
    assert lecture._idle_relus(before) == ()
    before[..., 3] = [[0, 1], [2, 3]]
    assert lecture._idle_relus(before)[0].startswith("after blur nothing is negative")


def test_the_filters_of_a_run_are_shown_with_how_fast_each_layer_settles(tmp_path):
    folder = finished(tmp_path / "a run")
    curves = {
        "filter_distance": np.array([[1, 0.9, 0], [1, 0.2, 0]]),
        "dead": np.zeros((2, 3)),
        "moved": np.zeros((2, 3)),
    }
    path = folder / "figures" / "convergence.npz"
    np.savez(path, layers=["conv1", "conv2"], epochs=[0, 1, 5], **curves)
    section = lecture.growing(folder, tmp_path)
    assert section.items == ("conv1: epoch 2.8", "conv2: epoch 0.6")  # by straight lines
    assert section.contrary == ("conv2 is half way at epoch 0.6, before conv1 below it (epoch 2.8).",)
    assert [figure.name for figure in section.figures] == ["filters_conv1", "convergence"]
    assert [link for _, link in section.links] == ["a%20run/figures"]
    curves["filter_distance"] = curves["filter_distance"][::-1]
    np.savez(path, layers=["conv1", "conv2"], epochs=[0, 1, 5], **curves)
    assert lecture.growing(folder, tmp_path).contrary == ()
    path.write_bytes(b"no numbers")
    with pytest.raises(InputError, match="convergence.npz must be as experiments.filter_evolution writes it"):
        lecture.growing(folder, tmp_path)
    path.unlink()
    with pytest.raises(
        InputError, match="--run must have the figures of its evolution, .*: python -m experiments.filter"
    ):
        lecture.main(lecture.Options(out=tmp_path / "new", run=folder), Quiet())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "--updates must be between 1 and 1000000, got 0"),
        ({"seed": -1}, "--seed must be between 0 and 2147483647, got -1"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        lecture.Options(**changes)
