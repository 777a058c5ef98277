"""Tables 4 and 5 of a small run, moved to other images."""

import dataclasses

import jax
import numpy as np
import pytest

from cnnjax import cli
from cnnjax.cli import Progress
from cnnjax.config import DataConfig, Hyperparams, TrainConfig
from cnnjax.data import Split, load
from cnnjax.errors import InputError
from cnnjax.train import run
from cnnjax.train.step import initial_state
from experiments import transfer
from experiments.looking import RunOptions, open_run
from experiments.transfer import Options
from tests.experiments.test_filter_evolution import Quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=2, keep_epochs=(1,)))
    folder = tmp_path_factory.mktemp("transfer") / "run"
    run.run(config, load(config.data), folder)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Bright bars that stand or lie on noise: two classes of colour images of 12x12."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("bars") / "bars.npz"
    arrays = {}
    for part, count in (("train", 40), ("test", 30)):
        labels = np.arange(count) % 2
        images = generator.integers(0, 60, (count, 12, 12, 3))
        for image, label in zip(images, labels, strict=True):
            place = generator.integers(2, 9)
            image[(slice(place, place + 2), slice(None)) if label else (slice(None), slice(place, place + 2))] += 180
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez(path, **arrays)
    return DataConfig(npz=str(path))


def small(folder, target, **changes):
    told = {"data": target, "per_class": (10,), "folds": 2, "steps": 30, "batch_size": 8, **changes}
    return Options(run=folder, **told)


@pytest.mark.long
def test_the_table_holds_every_way_of_moving(folder, target):
    progress, said = Quiet(), []
    progress.say = said.append
    options = small(folder, target)
    transfer.main(options, progress)
    trained = open_run(RunOptions(run=folder), Quiet())
    with np.load(trained.figures / "transfer-bars.npz") as arrays:
        found = dict(arrays)
    assert found["methods"].tolist() == ["from scratch", "frozen", "fine-tuned"]
    accuracy = found["accuracy"]  # [methods, counts, folds]
    assert accuracy.shape == (3, 1, 2) and (accuracy[1:, 0] > 0.7).all()  # chance is 0.5
    table = next(said for said in said if not isinstance(said, str))
    assert list(table.columns[1].cells)[1] == f"{100 * accuracy[1, 0].mean():.1f} ± {100 * accuracy[1, 0].std():.1f}"
    assert table.row_count == 3 + 4


def test_without_steps_to_move_them_the_runs_features_stay(folder, target):
    """At a rate near 0 a fine-tuned network answers as its own layers under a random last one; so layers are kept."""
    options = small(folder, target, hyper=Hyperparams(learning_rate=1e-9, weight_decay=0.0), steps=1)
    trained = open_run(RunOptions(run=folder), Quiet())
    dataset = transfer.fitted_data(target, trained, Quiet())
    assert dataset.image_shape == trained.dataset.image_shape == (8, 8, 1)
    last = list(trained.layers)[-1]
    kept = {name: values for name, values in trained.variables["params"].items() if name != last}
    train = Split(dataset.train.images[:6], dataset.train.labels[:6])
    accuracy = transfer.make_training(trained, options, 6, 2)(train, kept, dataset.test)
    hidden = np.asarray(trained.feature_maps(trained.preprocess(dataset.test.images))["fc3"])
    network = trained.network.clone(num_classes=2)
    new = initial_state(network, TrainConfig(), options.hyper, (8, 8, 1)).params[last]
    predicted = np.argmax(hidden @ np.asarray(new["kernel"]) + np.asarray(new["bias"]), axis=1)
    by_class = [np.mean(predicted[dataset.test.labels == label] == label) for label in (0, 1)]
    assert accuracy == pytest.approx(np.mean(by_class))
    assert jax.tree.structure(kept) != jax.tree.structure(trained.variables["params"])


def test_a_training_that_diverges_ends_with_one_line(folder, target):
    growing = Hyperparams(learning_rate=1000.0, weight_decay=1.0, filter_rms=float("inf"))
    options = small(folder, target, hyper=growing, per_class=(3,))
    with pytest.raises(InputError, match="--hyper.learning-rate must be lower: with 1000.0 step [0-9]+ is not finite"):
        transfer.main(options, Quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"tuning_rate": 0.0}, "--tuning-rate must be a finite number > 0, got 0.0"),
        ({"strengths": ()}, "--strengths must be finite numbers > 0, got ()"),
        ({"per_class": (0,)}, "--per-class must be numbers of at least 1, got (0,)"),
        ({"per_class": (21,)}, "--per-class must be at most the training images of each class, and 0 of bars has 20"),
        (
            {"hyper": Hyperparams(batch_norm_momentum=0.5)},
            "--hyper.batch-norm-momentum must be left out for lenet, which",
        ),
        ({"data": DataConfig(image_size=9)}, "--data.image-size must be None: the network's input decides it"),
        ({"data": DataConfig(npz="nowhere.npz")}, "data.npz must be a file, got 'nowhere.npz'"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(folder, target, changes, message):
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        transfer.main(small(folder, target, **changes), Quiet())
    assert str(error.value).startswith(message)
    assert sorted(folder.rglob("*")) == before


def test_the_command_line_takes_the_fields_of_the_data(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["transfer", "--run", str(folder), "--data.npz", "a.npz", "--hyper.flip", "0.5"])
    cli.run_options(lambda options, progress: seen.append((options, progress)), Options())
    ((options, progress),) = seen
    assert (options.data.npz, options.hyper.flip, options.run) == ("a.npz", 0.5, folder)
    assert isinstance(progress, Progress)
