"""Figure 2 of a small run: its files and numbers, and every bad option before anything is written."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cnnjax import cli
from cnnjax.config import ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import activations, looking
from experiments.activations import Options
from experiments.looking import open_run
from tests.experiments.test_filter_evolution import Quiet


def trained(folder, **changes):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)), **changes)
    run.run(config, load(config.data), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("activations") / "run")


def test_every_layer_that_is_asked_for_is_drawn_with_its_numbers(folder):
    options = Options(run=folder, layers=("conv2", "fc4"), maps=(2, 0), count=5)
    activations.main(options, Quiet())
    opened = open_run(options, Quiet())
    assert {path.name for path in opened.figures.iterdir()} == {
        f"activations_{layer}.{kind}" for layer in options.layers for kind in ("png", "npz")
    }
    images = opened.dataset.test.images
    maps = opened.feature_maps(opened.preprocess(images))
    for layer in options.layers:
        strength = np.asarray(maps[layer]).reshape(len(images), -1, maps[layer].shape[-1]).max(axis=1)
        with np.load(opened.figures / f"activations_{layer}.npz") as arrays:
            assert list(arrays["maps"]) == [2, 0]
            for row, number in enumerate((2, 0)):
                wanted = np.sort(strength[:, number])[:-6:-1]
                np.testing.assert_allclose(arrays["value"][row], wanted, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(strength[arrays["image"][row], number], wanted, rtol=1e-4, atol=1e-5)


def test_a_second_call_reads_what_was_found_and_draws_other_maps(folder):
    activations.main(Options(run=folder, layers=("conv1",), count=4), Quiet())
    searched = {path: path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.npz")}
    activations.main(Options(run=folder, layers=("conv1",), count=4, random_maps=3, maps_seed=5), Quiet())
    assert {path: path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.npz")} == searched
    with np.load(next((folder / "figures").glob("*/activations_conv1.npz"))) as arrays:
        assert len(set(arrays["maps"])) == 3


def test_another_rule_is_another_projection_of_the_same_activations(folder):
    found = {}
    for rule in ("deconvnet", "guided"):
        activations.main(Options(run=folder, layers=("conv2",), maps=(1, 2), count=4, rule=rule), Quiet())
        with np.load(next((folder / "figures").glob("*/activations_conv2.npz"))) as arrays:
            found[rule] = dict(arrays)
        assert found[rule]["rule"] == rule and found[rule]["chosen"] == "named"
    for name in ("value", "image", "unit", "patches"):
        np.testing.assert_array_equal(*(of[name] for of in found.values()))
    assert not np.array_equal(*(of["projections"] for of in found.values()))


def test_every_epoch_is_looked_at_for_the_maps_of_the_last(folder):
    pictures = activations.main(Options(run=folder, layers=("conv2",), random_maps=3, every_epoch=True), Quiet())
    assert [path.parent.name for path in pictures] == ["epoch-1", "epoch-0"]
    with np.load(pictures[0].with_suffix(".npz")) as last, np.load(pictures[1].with_suffix(".npz")) as first:
        assert list(last["maps"]) == list(first["maps"]) and last["split"] == "test"
        assert not np.array_equal(last["value"], first["value"])
        opened = open_run(Options(run=folder, epoch=0), Quiet())
        images = opened.dataset.test.images
        maps = np.asarray(opened.feature_maps(opened.preprocess(images))["conv2"])
        wanted = maps.max(axis=(0, 1, 2))[first["maps"]]
        np.testing.assert_allclose(first["value"][:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_every_epoch_looks_at_pictures_of_the_users_own_too(folder, tmp_path):
    for number, image in enumerate(open_run(Options(run=folder), Quiet()).dataset.test.images[:3]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
    options = Options(run=folder, on=tmp_path, layers=("conv1",), random_maps=2, every_epoch=True)
    made = activations.main(options, Quiet())
    place = f"on-{tmp_path.name}"
    assert [path.parts[-3:-1] for path in made] == [("epoch-1", place), ("epoch-0", place)]


@pytest.mark.parametrize(("changes", "said"), [
    ({"layers": ("conv9",)}, "--layers must be one of conv1, "),
    ({"layers": ("fc4",), "maps": (3, 10)}, "--maps must be from 0 to 9 in fc4, got 10"),
    ({"maps": (-1,)}, "--maps must be from 0 to "),
    ({"count": 10**6}, "--count must be at most the "),
    ({"every_epoch": True, "epoch": 1}, "--every-epoch must not be given with --epoch, got 1"),
])  # fmt: skip
def test_what_the_network_has_not_is_refused_before_anything_is_written(folder, changes, said):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=said):
        activations.main(Options(run=folder, **changes), Quiet())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("random_maps", 0), ("maps_seed", -1)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} must be (at least|between)"):
        Options(**{name: value})


@pytest.mark.long
def test_without_convolutions_layers_must_be_named(tmp_path):
    folder = trained(tmp_path / "run", model=ModelConfig("mlp"))
    with pytest.raises(InputError, match="--layers must be given for a network without convolutions: fc1, fc2, fc3"):
        activations.main(Options(run=folder), Quiet())
    activations.main(Options(run=folder, layers=("fc1",), random_maps=2), Quiet())
    assert [path.name for path in (folder / "figures").rglob("*.png")] == ["activations_fc1.png"]


def test_more_tiles_than_there_is_room_for_are_refused_with_the_most(folder, monkeypatch):
    opened = open_run(Options(run=folder), Quiet())
    row, shape = opened.layers["conv1"], opened.dataset.image_shape
    assert row.fields[0].size == 3
    monkeypatch.setattr(looking, "MOST_TILE_BYTES", 2 * 5 * 9 * 3 * 24)  # two maps of five tiles of 3×3 px
    looking.require_tiles("--maps", 2, 5, row, shape)
    before = sorted(folder.rglob("*"))
    message = "^--maps must be at most 2 maps of conv1, with 5 tiles of 3×3 px a map, got 3$"
    with pytest.raises(InputError, match=message):
        activations.main(Options(run=folder, layers=("conv1",), maps=(0, 1, 2), count=5), Quiet(), opened)
    with pytest.raises(InputError, match=r"^--random-maps must be at most 0 maps of fc4, with 9 tiles of 8×8 px"):
        activations.main(Options(run=folder, layers=("fc4",)), Quiet(), opened)
    assert sorted(folder.rglob("*")) == before
