"""Figure 7 of a small run: its files and numbers, and every bad option before anything is written."""

import dataclasses

import numpy as np
import pytest
from scipy.special import softmax

from cnnjax.data import Split
from cnnjax.errors import InputError
from experiments import occlusion
from experiments.looking import open_run
from experiments.occlusion import Options
from tests.experiments.test_activations import trained
from tests.experiments.test_filter_evolution import Quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("occlusion") / "run")


@pytest.mark.long
def test_the_figures_numbers_are_those_of_the_network_itself(folder):
    said = []
    progress = Quiet()
    progress.say = said.append
    options = Options(run=folder, images=(4,), side=3, grey=9, tested=40, others=2)
    occlusion.main(options, progress)
    opened = open_run(options, progress)
    with np.load(opened.figures / "occlusion.npz") as arrays:
        found = dict(arrays)
    images, labels = opened.dataset.test.images, opened.dataset.test.labels
    assert found["projections_4"].shape[0] == 3
    for row, column in ((0, 0), (2, 1)):
        image = images[4].copy()
        top, left = found["tops_4"][row], found["lefts_4"][column]
        image[top : top + 3, left : left + 3] = 9
        maps = opened.feature_maps(opened.preprocess(np.stack([image, images[4]])))
        convolution = [name for name in maps if name.startswith("conv")][-1]
        active = np.asarray(maps[convolution]).sum(axis=(1, 2))
        assert found["map_4"] == np.argmax(active[1])
        assert found["activity_4"][row, column] == pytest.approx(active[0, found["map_4"]], rel=1e-4)
        probabilities = softmax(np.asarray(list(maps.values())[-1]), axis=1)
        assert found["probability_4"][row, column] == pytest.approx(probabilities[0, labels[4]], rel=1e-3)
        assert found["best_4"][row, column] == np.argmax(probabilities[0])
    more = (found["centre"] - found["corners"].mean(axis=1)).mean()
    low, high = found["interval"]
    assert len(found["centre"]) == 40 and low <= more <= high
    assert f"on 40 images lowers the probability of the true class by {found['centre'].mean():.3f}" in said[0]


@pytest.mark.long
def test_of_a_split_in_order_of_its_classes_images_of_all_are_compared_and_chosen(folder):
    opened = open_run(Options(run=folder), Quiet())
    test = opened.dataset.test
    rows = np.argsort(test.labels, kind="stable")
    ordered = dataclasses.replace(opened.dataset, test=Split(test.images[rows], test.labels[rows]))
    options = Options(run=folder, tested=30, random_images=2, others=1, step=5)
    occlusion.main(options, Quiet(), opened._replace(dataset=ordered))
    with np.load(opened.figures / "occlusion.npz") as arrays:
        assert np.bincount(arrays["labels"]).tolist() == [3] * 10
        covered = [name for name in arrays if name.startswith("label_")]
        for name in covered:
            assert arrays[name] == ordered.test.labels[int(name.removeprefix("label_"))]
        assert len({int(arrays[name]) for name in covered}) == 2


def test_projections_by_another_rule_are_parts_of_their_own(folder):
    found = {}
    for rule in ("deconvnet", "guided", "deconvnet"):
        options = Options(run=folder, images=(4,), tested=10, others=2, step=4, rule=rule)
        occlusion.main(options, Quiet())
        with np.load(open_run(options, Quiet()).figures / "occlusion.npz") as arrays:
            assert arrays["rule"] == rule
            found.setdefault(rule, arrays["projections_4"])
            np.testing.assert_array_equal(found[rule], arrays["projections_4"])
    assert not np.array_equal(*found.values())


@pytest.mark.parametrize(("changes", "said"), [
    ({"layer": "conv9"}, "--layer must be one of conv1, "),
    ({"images": (0, 10**6)}, "--images must be files, or numbers of test images from 0 to "),
    ({"side": 8}, "side must be from 1 to 7 pixels for an image of 8, got 8"),
    ({"step": 0}, "step must be at least 1 pixel, got 0"),
    ({"others": 10**6}, "--others must be at most the "),
])  # fmt: skip
def test_what_does_not_suit_is_refused_before_anything_is_written(folder, changes, said):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=said):
        occlusion.main(Options(run=folder, **changes), Quiet())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(("name", "value"), [("random_images", 0), ("others", 0), ("tested", 1), ("seed", -1)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} must be (at least|between)"):
        Options(**{name: value})


@pytest.mark.parametrize("grey", [-1, 256])
def test_a_grey_level_is_one_byte(grey):
    with pytest.raises(InputError, match=f"--grey must be from 0 to 255, got {grey}"):
        Options(grey=grey)
