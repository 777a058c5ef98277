"""Attribution and maximization of a small trained network, as their scripts are called."""

import dataclasses

import numpy as np
import pytest

from cnnjax import cli
from cnnjax.config import ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from experiments import attribution, maximization, train
from tests.experiments.test_filter_evolution import Quiet


def trained_run(folder, **changes):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=2, keep_epochs=(2,)), **changes)
    train.main(cli.Arguments(config, folder, None), Quiet())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("digits") / "run")


@pytest.mark.long
def test_attribution_writes_both_figures_with_their_numbers(run):
    options = attribution.Options(run=run, images=(0, 7, 3), steps=8, samples=3, sanity_images=4)
    attribution.main(options, Quiet())
    folder = run / "figures" / "epoch-2"
    with np.load(folder / "attribution.npz") as arrays:
        assert list(arrays["images"]) == [0, 7, 3]
        shapes = {name: arrays[name].shape for name in arrays.files if name not in ("images", "classes")}
        images = load(cli.load_config("digits").data).test.images
        np.testing.assert_array_equal(arrays["pixels"], images[[0, 7, 3]])
        for name in ("pixels", "class_names", "labels", "rows"):
            del shapes[name]
        side = arrays["gradient"].shape[1]
        assert shapes.pop("grad-cam") == (3, side, side)
        assert len(shapes) == 5 and set(shapes.values()) == {(3, side, side, 1)}
        assert all(np.abs(arrays[name]).max() > 0 for name in shapes)
    with np.load(folder / "attribution_sanity.npz") as arrays:
        stages = list(arrays["stages"])
        assert stages[0] == "none" and stages[-1] == "conv1"
        np.testing.assert_allclose(arrays["gradient-rank"][0], 1)
        assert arrays["gradient-structure"].shape == (len(stages), 4)
        assert (arrays["gradient-rank"][-1] < 0.9).all()
    assert {"attribution.png", "attribution_sanity.png"} <= {path.name for path in folder.iterdir()}


@pytest.mark.long
def test_maximization_rises_above_the_training_images(run):
    """Every unit of the first layer, which is linear before its ReLU, and the layers above in sum."""
    maximization.main(maximization.Options(run=run, units=3, jitter=0, images=200), Quiet())
    with np.load(run / "figures" / "epoch-2" / "maximization.npz") as arrays:
        layers = {name.split("-")[0] for name in arrays.files}
        assert (arrays["conv1-values"] > arrays["conv1-best"]).all()
        for layer in layers:
            assert arrays[f"{layer}-values"].sum() > arrays[f"{layer}-best"].sum()


@pytest.mark.parametrize(
    ("study", "changes", "message"),
    [
        (attribution, {"images": (0, 10**6)}, "--images must be files, or numbers of test images from 0 to"),
        (attribution, {"images": ()}, "--images must name at least one image, got none"),
        (attribution, {"layer": "fc9"}, "--layer must be one of conv1"),
        (attribution, {"samples": 0}, "--samples must be at least 1, got 0"),
        (attribution, {"sanity_images": -1}, "--sanity-images must be at least 0, got -1"),
        (maximization, {"layers": ("conv1", "pool1")}, "--layers must be of conv1"),
        (maximization, {"units": 0}, "--units must be at least 1, got 0"),
        (attribution, {"noise": float("nan")}, "--noise must be a finite number, got nan"),
        (maximization, {"contrast": 0.0}, "--contrast must be a finite number > 0, got 0.0"),
        (maximization, {"rate": float("nan")}, "--rate must be a finite number > 0, got nan"),
        (maximization, {"decay": float("inf")}, "--decay must be a finite number, got inf"),
    ],
)
def test_bad_input_is_one_line(run, study, changes, message):
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match=message):
        study.main(study.Options(run=run, **changes), Quiet())
    assert sorted(run.rglob("*")) == before


@pytest.mark.long
def test_attribution_of_a_network_without_convolutions_is_refused(tmp_path):
    folder = trained_run(tmp_path / "run", model=ModelConfig("mlp", dense=(8,)))
    with pytest.raises(InputError, match="--run must be of a network with convolutions, got 'mlp'"):
        attribution.main(attribution.Options(run=folder), Quiet())
    maximization.main(maximization.Options(run=folder, steps=2, images=20), Quiet())  # its classes
