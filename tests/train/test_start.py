"""A training that begins with weights from a file, and layers that stay as they are."""

import dataclasses

import jax
import numpy as np
import pytest

from cnnjax.config import Config, Hyperparams, ModelConfig, TrainConfig, differences, from_json, to_json
from cnnjax.data import checked_dataset
from cnnjax.errors import InputError
from cnnjax.models import weights
from cnnjax.models.building import KnownNetwork
from cnnjax.train import run as running
from cnnjax.train import weight_files
from cnnjax.train.step import initial_state
from tests.train.small import same

SHAPE = (8, 8, 1)
MODEL = ModelConfig("lenet", widths=(3, 4), filters=(3, 3), paddings=(1, 1), dense=(5,), norm="batch")
TRAIN = TrainConfig(epochs=2, batch_size=8, save_every_seconds=1e6)
BASE = Config(model=MODEL, train=TRAIN, hyper=Hyperparams(filter_rms=float("inf"), learning_rate=0.05, flip=0.0))


def made(classes, seed=0):
    """Noise, of which the brightness tells the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(24) % classes
    images = (generator.integers(0, 60, (24, *SHAPE)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    names = [f"class {label}" for label in range(classes)]
    return checked_dataset("noise", names, train=(images, labels), test=(images[:6], labels[:6]))


DATASET = made(3)
FROZEN = ("conv1", "norm1", "fc3")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of the network with 3 classes, and of one with 2."""
    folder = tmp_path_factory.mktemp("weights")
    for classes in (3, 2):
        network = running.build(BASE, made(classes))
        generator = np.random.default_rng(classes)
        shapes = weights.shapes(weights.like(network, SHAPE))
        arrays = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
        arrays = {name: abs(array) if name.endswith("var") else array for name, array in arrays.items()}
        weight_files.write(folder / f"{classes}.safetensors", arrays, {})
    return folder / "3.safetensors"


def starting(file, **changes) -> Config:
    return dataclasses.replace(BASE, train=dataclasses.replace(TRAIN, start=str(file), **changes))


def in_file(state, dataset=DATASET):
    network = running.build(BASE, dataset)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return weights.named(variables, weights.flattened_maps(network, SHAPE))


def all_in(path):
    return {name: np.asarray(array) for name, array in weight_files.read(path, "").arrays.items()}


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("started") / "run"
    return running.run(starting(file), DATASET, workdir), workdir


def test_epoch_0_is_the_file(file, whole):
    finished, _ = whole
    same(in_file(finished.states[0]), all_in(file))
    moved = in_file(finished.states[2])
    assert all((moved[name] != array).any() for name, array in in_file(finished.states[0]).items())


def test_the_record_knows_the_file_and_another_is_refused(file, whole, tmp_path):
    _, workdir = whole
    sha256 = weight_files.sha256(file, "")
    assert running.read_config(workdir / "config.json").train.start_sha256 == sha256
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    calls = []
    running.run(starting(copy), DATASET, workdir, lambda *call: calls.append(call))
    assert not calls  # found finished
    arrays = all_in(file)
    arrays["conv1.bias"] = arrays["conv1.bias"] + 1
    weight_files.write(copy, arrays, {})
    before = sorted(workdir.rglob("*"))
    for config in (starting(copy), BASE):
        with pytest.raises(InputError, match="holds a run of another config .*train.start_sha256: .* here, .* there"):
            running.run(config, DATASET, workdir)
    with pytest.raises(InputError, match=f"train.start .* must have the SHA-256 {sha256}, got"):
        running.run(starting(copy, start_sha256=sha256), DATASET, tmp_path / "new")
    assert sorted(workdir.rglob("*")) == before and not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def partly(file, tmp_path_factory):
    """A run with frozen layers."""
    workdir = tmp_path_factory.mktemp("frozen") / "run"
    return running.run(starting(file, freeze=FROZEN), DATASET, workdir), workdir


def test_frozen_layers_change_no_bit_and_the_others_do(partly):
    first, last = (in_file(partly[0].states[epoch]) for epoch in (0, 2))
    for name, array in first.items():
        assert (array.tobytes() == last[name].tobytes()) == (name.split(".")[0] in FROZEN), name


def test_resumed_it_ends_with_the_same_bits(file, partly, tmp_path):
    class Stopped(Exception):
        pass

    def stop(description, done, total):
        if done >= 4:
            raise Stopped

    config, whole = starting(file, freeze=FROZEN, save_every_seconds=1e-9), partly[0].states
    with pytest.raises(Stopped):
        running.run(config, DATASET, tmp_path / "run", stop)
    same(whole, running.run(config, DATASET, tmp_path / "run").states)


def known(layers, x):
    for name in ("layer1.0", "layer10"):
        x = layers.relu(name, layers.batch_norm(f"{name}.bn", layers.conv(name, x, 3, 3)))
    return layers.dense("fc", x.mean((1, 2)), 3)


@pytest.mark.parametrize(
    ("network", "layer", "frozen"),
    [
        (KnownNetwork(known, ("layer1",)), "layer1.0", "layer1.0.bn"),
        (
            running.build(dataclasses.replace(BASE, train=dataclasses.replace(TRAIN, freeze=FROZEN)), DATASET),
            "norm1",
            "norm1",
        ),
    ],
    ids=["known", "chain"],
)
def test_a_frozen_normalization_is_as_in_evaluation_while_training(network, layer, frozen):
    """Frozen, the first layers answer in a training as in evaluation; the statistics of others move."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(4, *SHAPE)).astype(np.float32)
    like = weights.like(network, SHAPE)
    variables = jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(np.float32), like)

    @jax.jit
    def both(variables):
        (_, training), changed = network.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
        )
        return training, changed["batch_stats"], network.apply(variables, images)[1]

    training, changed, evaluation = both(variables)
    np.testing.assert_allclose(training[layer], evaluation[layer], rtol=1e-5, atol=1e-6)
    moved = {
        name for name, of in changed.items() if (np.asarray(of["mean"]) != variables["batch_stats"][name]["mean"]).any()
    }
    assert moved == changed.keys() - {frozen} and moved


def test_a_head_for_other_classes_begins_at_random_with_a_word(file, tmp_path):
    said = []
    other = file.with_name("2.safetensors")
    config = starting(other, epochs=0)
    first = in_file(running.run(config, DATASET, tmp_path / "run", say=said.append).states[0])
    assert said == [f"train.start {other}: fc4 is for 2 classes and left out; for 3 it begins at random"]
    random = in_file(initial_state(running.build(BASE, DATASET), config.train, config.hyper, SHAPE))
    theirs = all_in(other)
    for name, array in first.items():
        np.testing.assert_allclose(array, random[name] if name.startswith("fc4") else theirs[name], rtol=1e-6)


def test_what_is_wrong_with_the_file_is_said_before_anything_is_written(file, tmp_path):
    arrays = all_in(file)
    bad = tmp_path / "bad.safetensors"
    for change, message in (
        ({"conv1.bias": np.full(3, np.nan, np.float32)}, "conv1.bias must be finite numbers"),
        ({"conv9.bias": np.ones(3, np.float32)}, "unexpected: conv9.bias; they look like no known network"),
    ):
        weight_files.write(bad, arrays | change, {})
        with pytest.raises(InputError, match=f"train.start .*{message}"):
            running.run(starting(bad), DATASET, tmp_path / "run")
    with pytest.raises(InputError, match="train.start must be a file, got 'nowhere.npz', which does not exist"):
        running.run(starting("nowhere.npz"), DATASET, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (
            ("conv",),
            "train.freeze must be of conv1, conv2, fc3, fc4, norm1, norm2, or what these begin with, got 'conv'",
        ),
        (
            ("conv1", "conv2", "fc3", "fc4", "norm1", "norm2"),
            "train.freeze must leave a layer to train, got conv1, conv2",
        ),
    ],
)
def test_layers_that_are_none_cannot_be_frozen(frozen, message):
    with pytest.raises(InputError, match=message):
        running.build(dataclasses.replace(BASE, train=dataclasses.replace(TRAIN, freeze=frozen)), DATASET)


def test_zero_epochs_are_the_weights_as_they_are(file, tmp_path):
    config = starting(file, epochs=0)
    finished = running.run(config, DATASET, tmp_path / "run")
    assert list(finished.states) == [0] and "test_error" in finished.metrics[0]
    same(in_file(finished.states[0]), all_in(file))
    (tmp_path / "run" / "checkpoints" / "epochs" / "0" / "manifest.json").write_text("")
    said = []
    again = running.run(config, DATASET, tmp_path / "run", say=said.append)  # made anew from the file
    same(again.states, finished.states)
    assert "moved to" in said[0]
    named = dataclasses.replace(config, model=dataclasses.replace(MODEL, classes=("a", "b", "c")))
    finished = running.run(named, made(2), tmp_path / "named")  # the labels are of other classes
    assert finished.metrics == [{"epoch": 0}]
    same(in_file(finished.states[0]), all_in(file))


def test_a_config_knows_what_goes_together():
    with pytest.raises(InputError, match="train.epochs must be between 1 and 100000, got 0"):
        TrainConfig(epochs=0)
    with pytest.raises(
        InputError, match="model.classes must be None for a training, which takes the classes of its dat"
    ):
        Config(model=ModelConfig(classes=("a", "b")))
    with pytest.raises(InputError, match="train.start_sha256 must be the 64 hexadecimal digits"):
        TrainConfig(start_sha256="0" * 64)
    for names in (("a",), ("a", "\x1b"), ("a", "")):
        with pytest.raises(InputError, match="model.classes must be"):
            ModelConfig(classes=names)
    config = Config(
        model=ModelConfig(classes=("a", "b")), train=TrainConfig(epochs=0, start="x", start_sha256="0" * 64)
    )
    assert from_json(to_json(config)) == config
    elsewhere = dataclasses.replace(config, train=dataclasses.replace(config.train, start="y"))
    assert differences(config, elsewhere) == []
