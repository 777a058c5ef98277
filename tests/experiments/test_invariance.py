"""Figure 5 of a small run: its files and numbers, and every bad option before anything is written."""

import dataclasses

import jax
import numpy as np
import pytest

from cnnjax import cli, models
from cnnjax.config import ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import invariance
from experiments.invariance import Options
from experiments.looking import open_run
from tests.experiments.test_filter_evolution import Quiet


class Telling(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    folder = tmp_path_factory.mktemp("invariance") / "run"
    run.run(config, load(config.data), folder)
    return folder


def small(folder, **changes):
    ranges = {"translation": (-1.0, 1.0, 3), "scale": (1.0, 1.5, 2), "rotation": (0.0, 90.0, 3)}
    return Options(run=folder, **{**ranges, "images": (3, 4, 9), "per_class": 2, **changes})


@pytest.mark.long
def test_the_numbers_are_those_of_the_network_itself(folder):
    options, progress = small(folder), Telling()
    invariance.main(options, progress)
    trained = open_run(options, progress)
    with np.load(trained.figures / "invariance.npz") as arrays:
        found = dict(arrays)
    assert list(found["layers"]) == ["pool1", "fc3"] and list(found["images"]) == [3, 4, 9]
    split = trained.dataset.test
    mean = trained.dataset.train.images.mean(axis=0)
    for row, index in enumerate((3, 4, 9)):
        image = split.images[index].astype(np.float32)
        down = np.concatenate([mean[:1], image[:-1]])
        maps = trained.feature_maps(trained.preprocess(np.stack([image, down, np.rot90(image)])))
        for layer, name in enumerate(("pool1", "fc3")):
            features = np.asarray(maps[name]).reshape(3, -1)
            expected = np.linalg.norm(features - features[0], axis=1)
            np.testing.assert_allclose(found["translation/distance"][row, layer, 1:], expected[:2], rtol=1e-3)
            np.testing.assert_allclose(found["rotation/distance"][row, layer, 2], expected[2], rtol=1e-3)
            assert found["translation/distance"][row, layer, 1] == 0
        expected = np.asarray(jax.nn.softmax(maps["fc4"]))[:, split.labels[index]]
        np.testing.assert_allclose(found["translation/probability"][row, 1:], expected[:2], rtol=1e-3)
        np.testing.assert_allclose(found["rotation/untouched"][row], expected[0], rtol=1e-3)
    table = progress.said[0]
    assert [column.header for column in table.columns][-1] == "answer kept" and len(table.rows) == 3
    with np.load(trained.figures / "invariance_average.npz") as arrays:
        assert sorted(split.labels[arrays["images"]]) == sorted(2 * list(range(10)))
        assert arrays["scale/distance"].shape == (20, 2, 2)
    assert {path.suffix for path in trained.figures.iterdir()} == {".png", ".npz"}


def test_relative_distances_are_shares_of_the_norm():
    found = {"scale/distance": np.full((1, 2, 3), 6.0), "scale/norm": np.array([[2.0, 3.0]])}
    found["scale/unrelated"] = np.array([[4.0, 9.0]])
    np.testing.assert_array_equal(invariance.scaled(found, "scale", "distance", "relative")[0], [[3] * 3, [2] * 3])
    np.testing.assert_array_equal(invariance.scaled(found, "scale", "unrelated", "relative"), [[2, 3]])
    np.testing.assert_array_equal(invariance.scaled(found, "scale", "distance", "raw"), found["scale/distance"])


def test_the_ranges_are_the_papers_where_none_are_given(folder):
    trained = open_run(Options(run=folder), Quiet())
    values = invariance.amounts(trained, Options(run=folder))
    np.testing.assert_array_equal(values["translation"], [-2, -1, 0, 1, 2])  # 60/224 of 8 px
    assert values["scale"][0] == 1 and values["rotation"][-1] == 350 and values["rotation"][1] == 10


def test_a_network_without_convolutions_has_its_first_and_last_dense_layer(folder):
    trained = open_run(Options(run=folder), Quiet())
    mlp = models.build(ModelConfig(name="mlp"), trained.dataset.image_shape, 10)
    layers = {row.name: row for row in models.layers(mlp, trained.dataset.image_shape)}
    assert invariance.chosen_layers(trained._replace(layers=layers), Options()) == ("fc1", "fc2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": (3, 100_000)}, "--images must be files, or numbers of test images from 0 to .*, got 100000"),
        ({"images": (-1,)}, "--images must be files, or numbers .* got -1"),
        ({"low": "conv9"}, "--low must be one of conv1, pool1, .*, got 'conv9'"),
        ({"high": "conv0"}, "--high must be one of conv1, pool1, .*, got 'conv0'"),
    ],
)
def test_what_the_run_does_not_have_is_refused_before_anything_is_written(folder, changes, message):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=message):
        invariance.main(small(folder, **changes), Quiet())
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"translation": (3.0, -3.0, 5)}, "--translation must be FROM < TO and at least 2 STEPS, got 3.0 -3.0 5"),
        ({"rotation": (0.0, 90.0, 1)}, "--rotation must be .* got 0.0 90.0 1"),
        ({"rotation": (0.0, float("nan"), 3)}, "--rotation must be"),
        ({"scale": (0.0, 1.0, 3)}, "--scale must be ratios above 0, got 0.0"),
        ({"images": ()}, "--images must name at least 1 image, got none"),
        ({"per_class": -1}, "--per-class must be at least 0, got -1"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Options(**changes)
