"""Validation in training: it is measured, it changes no bit, and it belongs to what a run is of."""

import dataclasses

import numpy as np
import pytest

from cnnjax.config import Config, DataConfig, ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run as running
from tests.train.small import same

CONFIG = Config(
    DataConfig(name="digits", validation_fraction=0.2),
    ModelConfig("mlp", dense=(4,)),
    TrainConfig(epochs=2, batch_size=512, keep_epochs=(1,)),
)


@pytest.fixture(scope="module")
def dataset():
    return load(CONFIG.data)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("validation") / "run"
    return running.run(CONFIG, dataset, workdir), workdir


def measured(finished, split, epoch):
    """Loss and errors of the state at the end of an epoch, by NumPy."""
    logits, _ = finished.network.apply({"params": finished.states[epoch].params}, finished.preprocess(split.images))
    logits = np.asarray(logits, float)
    of_label = logits[np.arange(len(split)), split.labels]
    better = (logits >= of_label[:, None]).sum(axis=1) - 1  # a tie is an error
    loss = np.log(np.exp(logits).sum(axis=1)) - of_label
    return [loss.mean(), (better >= 1).mean(), (better >= 5).mean()]


def test_each_epoch_has_the_numbers_of_the_validation_images(whole, dataset):
    finished, _ = whole
    for epoch, line in enumerate(finished.metrics):
        for split in ("validation", "test"):
            found = [line[f"{split}_{name}"] for name in ("loss", "error", "error_top5")]
            assert found == pytest.approx(measured(finished, getattr(dataset, split), epoch), rel=1e-5)
    assert finished.metrics[2]["validation_error"] != finished.metrics[2]["test_error"]


def test_the_training_is_that_of_the_images_that_are_left(whole, dataset, tmp_path):
    """Bit for bit, weights and the other numbers."""
    finished, _ = whole
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, validation_fraction=0.0))
    plain = running.run(config, dataclasses.replace(dataset, validation=None), tmp_path / "plain")
    same(plain.states, finished.states)
    for ours, theirs in zip(plain.metrics, finished.metrics, strict=True):
        assert ours == {name: value for name, value in theirs.items() if not name.startswith("validation_")}
        assert not any(name.startswith("validation_") for name in ours)


def test_streamed_it_has_the_same_numbers(whole, dataset, tmp_path):
    finished, _ = whole
    streamed = running.run(CONFIG, dataset, tmp_path / "streamed", streamed=True)
    for ours, theirs in zip(streamed.metrics, finished.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"validation_fraction": 0.1}, "data.validation_fraction: 0.1 here, 0.2 there"),
        ({"validation_fraction": 0.0}, "data.validation_fraction: 0.0 here, 0.2 there"),
        ({"split_seed": 1}, "data.split_seed: 1 here, 0 there"),
    ],
)
def test_a_run_goes_on_with_its_own_fraction_only(whole, change, match):
    _, workdir = whole
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **change))
    with pytest.raises(InputError, match=match):
        running.run(config, load(config.data), workdir)


def test_data_that_were_not_parted_are_refused(dataset, tmp_path):
    whole = dataclasses.replace(dataset, validation=None)
    with pytest.raises(InputError, match="data.validation_fraction must be 0 for a data set that was made without it"):
        running.run(CONFIG, whole, tmp_path / "run")
    assert not (tmp_path / "run").exists()
