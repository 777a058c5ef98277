"""Table 7 of a small run: its numbers, and every bad option before anything is written."""

import dataclasses

import numpy as np
import pytest

from cnnjax import cli
from cnnjax.config import TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import probes
from experiments.looking import open_run
from experiments.probes import Options
from tests.experiments.test_filter_evolution import Quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=2, keep_epochs=(1,)))
    folder = tmp_path_factory.mktemp("probes") / "run"
    run.run(config, load(config.data), folder)
    return folder


def small(folder, **changes):
    return Options(run=folder, **{"per_class": (2, 10), "folds": 2, "test_per_class": 20, **changes})


@pytest.mark.long
def test_the_table_and_the_figure_hold_each_layers_accuracy(folder):
    progress, said = Quiet(), []
    progress.say = said.append
    options = small(folder)
    probes.main(options, progress)
    trained = open_run(options, progress)
    with np.load(trained.figures / "probes.npz") as arrays:
        found = dict(arrays)
    assert (trained.figures / "probes.png").exists()
    assert found["layers"].tolist() == ["pixels", "pool1", "pool2", "fc3"]
    assert found["networks"].tolist() == ["epoch 2", "untrained"] and found["classifiers"].tolist() == [
        "svm",
        "softmax",
    ]
    accuracy = found["accuracy"]  # [networks, folds, layers, classifiers, counts]
    assert accuracy.shape == (2, 2, 4, 2, 2)
    np.testing.assert_array_equal(accuracy[0, :, 0], accuracy[1, :, 0])  # the pixels are the same for both
    assert (accuracy[..., 1] > 0.6).all() and (
        accuracy[0, ..., 1].mean(axis=0) > accuracy[0, ..., 0].mean(axis=0)
    ).all()
    tables = [table for table in said if not isinstance(table, str)]
    assert [table.row_count for table in tables] == [4, 4]
    shown = list(tables[1].columns[1].cells)
    folds = 100 * accuracy[0, :, 3, 0, 1]
    assert shown[3] == f"{folds.mean():.1f} ± {folds.std():.1f}"
    assert list(tables[0].columns[5].cells) == ["", "44.8 / 24.6", "66.2 / 39.6", "72.3 / 46.0"]


@pytest.mark.long
def test_more_images_a_class_change_nothing_for_fewer(folder):
    """So each number can be compared between studies; and what a fold draws does not hang on the others."""
    numbers = []
    for per_class, folds in (((5,), 1), ((5, 12), 2)):
        options = small(folder, per_class=per_class, folds=folds, layers=("fc3",), untrained=False)
        probes.main(options, Quiet())
        with np.load(open_run(options, Quiet()).figures / "probes.npz") as arrays:
            numbers.append(arrays["accuracy"][0, 0, :, :, 0])
    np.testing.assert_array_equal(*numbers)


def test_a_fold_draws_each_class_and_no_image_twice(folder):
    dataset = open_run(small(folder), Quiet()).dataset
    rows, test = probes.draw_fold(dataset, 7, 9, 0, 0)
    assert rows.shape == (10, 7) and len(np.unique(rows)) == 70
    np.testing.assert_array_equal(dataset.train.labels[rows], np.arange(10)[:, None] * np.ones(7, int))
    assert np.bincount(test.labels).tolist() == [9] * 10
    again, other = (probes.draw_fold(dataset, 7, 9, 0, fold)[0] for fold in (0, 1))
    np.testing.assert_array_equal(rows, again)
    assert (rows != other).any()


def test_the_correlation_with_depth_by_hand():
    assert probes.depth_correlation(np.array([0.1, 0.3, 0.2, 0.9])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert np.isnan(probes.depth_correlation(np.ones(3))) and np.isnan(probes.depth_correlation(np.ones(1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": ()}, "--per-class must be numbers of at least 1, got ()"),
        ({"per_class": (3, 0)}, "--per-class must be numbers of at least 1, got (3, 0)"),
        ({"folds": 0}, "--folds must be at least 1, got 0"),
        ({"test_per_class": 0}, "--test-per-class must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be between 0 and 2147483647, got -1"),
        ({"layers": ()}, "--layers must be at least one, got none"),
        ({"classifiers": ()}, "--classifiers must be at least one, got none"),
        ({"strengths": (1.0, float("nan"))}, "--strengths must be finite numbers > 0, got (1.0, nan)"),
        ({"features": 0}, "--features must be at least 1, got 0"),
        ({"layers": ("conv9",)}, "--layers must be of pixels, conv1, pool1, conv2, pool2, fc3, fc4, got 'conv9'"),
        ({"per_class": (1000,)}, "--per-class must be at most the training images of each class, and 0 of "),
        ({"epoch": 7}, "--epoch must be one that"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(folder, tmp_path, changes, message):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        probes.main(small(folder, **changes), Quiet())
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_more_features_than_there_is_room_for_are_refused_with_the_most_images(folder, monkeypatch):
    """pixels 64, pool1 4·4·16, pool2 2·2·32, fc3 64: 512 numbers in single, three copies of pool1's 256 in double."""
    monkeypatch.setattr(probes, "MOST_BYTES", 99 * (4 * 512 + 24 * 256))
    before = sorted(folder.rglob("*"))
    message = "must leave at most 99 images for the features of 4 layers .*, got 10 [+] 20 images of each of 10 classes"
    with pytest.raises(InputError, match=message):
        probes.main(small(folder), Quiet())
    assert sorted(folder.rglob("*")) == before
