"""Networks of one's own in the scripts: opened with a file of weights, trained, and their code run only when asked."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnnjax.cli import parse, parse_options
from cnnjax.data import Split
from cnnjax.errors import InputError
from cnnjax.models import foreign
from experiments import (
    activations,
    export_weights,
    filter_evolution,
    import_weights,
    looking,
    occlusion,
    paper,
    sweep,
    train,
)
from experiments.looking import Images, RunOptions, open_run
from tests.experiments.test_filter_evolution import Quiet

CODE = """
import flax.linen as nn


class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        y = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(self.outputs)(nn.relu(x + y).mean((1, 2)))


net, seven = Net(10), Net(7)
"""

NNX_CODE = """
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(1, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.mean((1, 2)))


made = Net(nnx.Rngs(0))
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "_ALLOWED", {})
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


def weights_of(code, name, path):
    network, _ = foreign.from_file(f"{code}:{name}")
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    save_file(foreign.arrays_of(variables), path)
    return variables


def options_of(code, name, tmp_path, kind=RunOptions, **more):
    words = ["--network", f"{code}:{name}", "--weights", str(tmp_path / "w.safetensors"), "--data.name", "digits"]
    words += ["--workdir", str(tmp_path / "looked")]
    return parse_options([*words, *(word for pair in more.items() for word in pair)], kind())


def test_every_study_can_take_it(code, tmp_path):
    variables = weights_of(code, "seven", tmp_path / "w.safetensors")
    trained = open_run(options_of(code, "seven", tmp_path), Quiet())
    jax.tree.map(np.testing.assert_array_equal, trained.variables, variables)
    assert list(trained.layers) == ["relu1", "relu2", "Dense_0"]
    assert trained.class_names == tuple(f"class {number}" for number in range(7))
    split = Split(trained.dataset.test.images[:30], trained.dataset.test.labels[:30])
    answers = trained.network.apply(variables, trained.preprocess(split.images))[0].argmax(1)
    np.testing.assert_array_equal(trained.targets(split), answers)
    few = trained._replace(dataset=type(trained.dataset)("few", trained.dataset.class_names, split, split))
    activations.main(activations.Options(random_maps=2, count=2), Quiet(), few)
    occlusion.main(occlusion.Options(random_images=1, others=1, tested=4), Quiet(), few)
    figures = {path.name for path in (tmp_path / "looked").rglob("*.png")}
    assert figures == {"activations_relu2.png", "occlusion.png"}  # the last map of each size


def test_the_page_of_all_studies_takes_it(code, tmp_path):
    weights_of(code, "net", tmp_path / "w.safetensors")
    options = options_of(code, "net", tmp_path, paper.Options)
    options = dataclasses.replace(options, only=("evolution", "classify"), data=Images(name="digits", channels=1))
    paper.main(options, Quiet())
    page = (tmp_path / "looked/figures/paper.md").read_text()
    assert re.findall(r"!\[(\w+)\]", page) == ["classify", "confusion"]
    assert "left out: --weights must be one file an epoch for the evolution" in page
    (words,) = re.findall(r"experiments.classify (.*)`", page)
    assert parse_options(words.split(), RunOptions()) == RunOptions(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(RunOptions)}
    )


def test_in_python_a_module_and_images_are_enough(code, tmp_path):
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.dense = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))

    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    module = Net(nnx.Rngs(0))
    trained = looking.of_network(module, None, images, folder=tmp_path / "looked")
    found = trained.feature_maps(trained.preprocess(images))
    assert {name: value.shape for name, value in found.items()} == {"relu1": (6, 8, 8, 4), "dense": (6, 2)}
    activations.main(activations.Options(random_maps=2, count=2), Quiet(), trained)
    assert (tmp_path / "looked/figures/epoch-0/activations_relu1.png").is_file()


def test_weights_that_are_no_numbers_are_refused(code, tmp_path):
    network, _ = foreign.from_file(f"{code}:net")
    arrays = foreign.arrays_of(network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    arrays["params.stem.bias"] = np.array([0, np.nan, 0, 0], np.float32)
    with pytest.raises(InputError, match="--weights must be finite numbers, and params.stem.bias has a NaN or"):
        foreign.variables_from(network, arrays, (8, 8, 1))


WRONG = {
    "missing": (lambda arrays: arrays.pop("params.stem.bias"), r"missing: params.stem.bias$"),
    "more": (lambda arrays: arrays.update(x=np.ones(1, np.float32)), r"unexpected: params.x$"),
    "shape": (
        lambda arrays: arrays.update({"params.stem.bias": np.ones(5, np.float32)}),
        r"of another shape: params.stem.bias \(5,\) for \(4,\)$",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_of_another_network_are_refused_and_nothing_is_written(code, tmp_path, name):
    weights_of(code, "net", tmp_path / "w.safetensors")
    network, _ = foreign.from_file(f"{code}:net")
    arrays = foreign.arrays_of(network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    change, message = WRONG[name]
    change(arrays)
    save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"--weights must be those of .*; {message}"):
        open_run(options_of(code, "net", tmp_path), Quiet())
    assert not (tmp_path / "looked").exists()


def test_what_goes_with_an_own_network_is_refused_for_a_run(tmp_path):
    for words, message in {
        ("--weights", "w.safetensors"): "--weights goes with --network, and a run knows it by itself",
        ("--data.image-size", "32"): "--data.image-size goes with --network, and a run knows it by itself",
    }.items():
        with pytest.raises(InputError, match=message):
            open_run(parse_options(["--run", str(tmp_path), *words], RunOptions()), Quiet())


@pytest.fixture(scope="module")
def run_of_code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(CODE)
    words = ["--config", "digits", "--model.name", f"{folder / 'net.py'}:net", "--hyper.filter-rms", "inf"]
    arguments = parse([*words, "--train.epochs", "1", "--workdir", str(folder / "run")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "_ALLOWED", {})
        train.main(arguments, Quiet())
    return folder


def test_it_is_trained_and_looked_into_only_where_its_code_is_named(run_of_code, monkeypatch):
    monkeypatch.setattr(foreign, "_ALLOWED", {})
    folder, code = run_of_code, f"{run_of_code / 'net.py'}:net"
    with pytest.raises(InputError, match="model.name .* is code, which runs only where --model.name or --network"):
        train.main(parse(["--config", str(folder / "run/config.json"), "--workdir", str(folder / "run")]), Quiet())
    with pytest.raises(InputError, match="--network must name the code that .* was trained with to have it run"):
        open_run(RunOptions(run=folder / "run"), Quiet())
    with pytest.raises(InputError, match=f"--network must be {code} as it was when"):
        open_run(RunOptions(run=folder / "run", network=f"{folder / 'net.py'}:seven"), Quiet())
    trained = open_run(RunOptions(run=folder / "run", network=code), Quiet())
    assert trained.epoch == 1 and trained.class_names == trained.dataset.class_names
    to = folder / "out.safetensors"
    export_weights.main(export_weights.Options(run=folder / "run", network=code, to=to), Quiet())
    file = looking.weight_files.read(to, "--to").arrays
    ours = foreign.arrays_of(trained.variables)
    assert file.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(np.asarray(file[name]), array)


def test_a_run_of_other_code_is_not_gone_on_with(run_of_code, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "_ALLOWED", {})
    path = run_of_code / "net.py"
    code = path.read_text()
    try:
        path.write_text(code + "\n# changed")
        words = ["--config", "digits", "--model.name", f"{path}:net", "--hyper.filter-rms", "inf"]
        with pytest.raises(InputError, match="holds a run of another config .*model.code_sha256"):
            train.main(parse([*words, "--train.epochs", "1", "--workdir", str(run_of_code / "run")]), Quiet())
    finally:
        path.write_text(code)


@pytest.mark.long
def test_a_sweep_trains_it(code, tmp_path):
    words = ["--config", "digits", "--model.name", f"{code}:net", "--hyper.filter-rms", "inf", "--train.epochs", "1"]
    axes, rest = sweep.take_axes([*words, "--sweep.learning-rate", "0.001,0.1", "--workdir", str(tmp_path / "sweep")])
    sweep.main(parse(rest, sweep.Options())._replace(taken=axes), Quiet())
    lines = (tmp_path / "sweep" / "members.csv").read_text().splitlines()
    assert len(lines) == 3 and all("finished" in line for line in lines[1:])


def test_weights_of_code_are_not_imported(code, tmp_path):
    weights_of(code, "net", tmp_path / "w.safetensors")
    words = ["--model.name", f"{code}:net", "--weights", str(tmp_path / "w.safetensors"), "--data.name", "digits"]
    arguments = parse([*words, "--workdir", str(tmp_path / "run")], import_weights.Options())
    with pytest.raises(InputError, match="--model.name must be one of networks that are known here; your own"):
        import_weights.main(arguments, Quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "layers"), [("--hyper.dropout-rate", "dropout"), ("--hyper.batch-norm-momentum", "batch normalization")]
)
def test_what_its_own_code_sets_is_refused(code, tmp_path, option, layers):
    words = ["--config", "digits", "--model.name", f"{code}:net", "--workdir", str(tmp_path / "run"), option, "0.3"]
    with pytest.raises(InputError, match=f"^{option} must be left out for .*:net, whose {layers} its own code sets$"):
        train.main(parse(words), Quiet())
    axes, rest = sweep.take_axes([*words[:-2], f"--sweep.{option.removeprefix('--hyper.')}", "0.3,0.4"])
    with pytest.raises(InputError, match="^--sweep.* must be left out for .*:net, whose"):
        sweep.main(parse(rest, sweep.Options())._replace(taken=axes), Quiet())
    assert not (tmp_path / "run").exists()


def test_that_an_object_begins_alike_at_every_seed_is_said(code, tmp_path):
    """And that its class does not."""
    code.write_text(NNX_CODE)
    said = []
    for name in ("made", "Net"):
        progress = Quiet()
        progress.say = said.append
        words = ["--config", "digits", "--model.name", f"{code}:{name}", "--workdir", str(tmp_path / "run")]
        train.prepared(parse(words), progress)
        axes, rest = sweep.take_axes([*words, "--sweep.seed", "0:2"])
        arguments = parse(rest, sweep.Options())._replace(taken=axes)
        train.allow_code(arguments)
        sweep.check_networks(arguments, [arguments.config], axes, train.load(arguments.config.data), progress)
    assert len(said) == 2 and set(said) == {
        f"{code}:made is an object that holds its weights: each training begins with these, whatever hyper.seed; name "
        "its class, or a partial of it, for weights that are drawn from the seed"
    }


def test_outputs_that_are_not_the_classes_are_refused(code, tmp_path):
    words = ["--config", "digits", "--model.name", f"{code}:seven", "--workdir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="seven must have an output for each of the 10 classes, and has 7"):
        train.main(parse(words), Quiet())
    assert not (tmp_path / "run").exists()


def test_the_evolution_of_weights_that_another_loop_has_kept(code, tmp_path):
    files = [f"{epoch}={tmp_path / f'{epoch}.npz'}" for epoch in (3, 1)]
    for epoch in (1, 3):
        network, _ = foreign.from_file(f"{code}:net")
        variables = network.init(jax.random.key(epoch), jnp.zeros((1, 8, 8, 1)))
        np.savez(tmp_path / f"{epoch}.npz", **foreign.arrays_of(variables))
    words = ["--config", "digits", "--network", f"{code}:net", "--maps", "2", "--weights", *files]
    arguments = parse([*words, "--workdir", str(tmp_path / "looked")], filter_evolution.Options())
    filter_evolution.main(arguments, Quiet())
    with np.load(tmp_path / "looked/figures/convergence.npz") as kept:
        assert kept["epochs"].tolist() == [1, 3] and kept["layers"].tolist() == ["relu2"]
        assert kept["filter_distance"][0, 0] > 0.1 and abs(kept["filter_distance"][0, 1]) < 1e-6
    for bad, message in {
        "3": "--weights must be EPOCH=FILE, each epoch once, got '3'",
        files[0]: "each epoch once",
    }.items():
        again = parse([*words, bad, "--workdir", str(tmp_path / "none")], filter_evolution.Options())
        with pytest.raises(InputError, match=message):
            filter_evolution.main(again, Quiet())
    with pytest.raises(InputError, match="--network and --weights must be given together"):
        filter_evolution.Options(network="x.py:y")
    again = parse([*words, "--train.epochs", "3", "--workdir", str(tmp_path / "none")], filter_evolution.Options())
    with pytest.raises(InputError, match=r"^--train\.epochs goes with a training, and --network is trained elsewhere"):
        filter_evolution.main(again, Quiet())
    assert not (tmp_path / "none").exists()
