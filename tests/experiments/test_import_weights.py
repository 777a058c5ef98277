"""Files of weights made runs, and back: with every bit, and with what the weights expect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import cli, models
from cnnjax.config import DataConfig, ModelConfig
from cnnjax.errors import InputError
from cnnjax.models import weights
from cnnjax.train import run, weight_files
from experiments import export_weights, import_weights, train, transfer
from experiments.import_weights import Options
from experiments.looking import RunOptions, open_run
from tests.experiments.test_filter_evolution import Quiet

WIDTH = 0.05
CHAIN = ("--model.name", "lenet", "--model.widths", "3", "4", "--model.filters", "3", "3", "--model.paddings", "1", "1")


class Told(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def imported(*words):
    """What the script says on this command line."""
    progress = Told()
    import_weights.main(cli.parse([str(word) for word in words], Options()), progress)
    return progress.lines


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in two classes, 40x40 in colour."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("noise") / "noise.npz"
    arrays = {f"x_{part}": generator.integers(0, 256, (6, 40, 40, 3), np.uint8) for part in ("train", "test")}
    np.savez(path, **arrays, y_train=np.arange(6) % 2, y_test=np.arange(6) % 2, class_names=["cat", "dog"])
    return path


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Weights of a narrow ResNet-18 for five classes, as PyTorch would have saved them."""
    known = weights.layout(ModelConfig("resnet18", width=WIDTH), (32, 32, 3), 5)
    generator = np.random.default_rng(1)
    arrays = {name: generator.uniform(0.1, 0.5, shape).astype(np.float32) for name, shape in known.shapes.items()}
    path = tmp_path_factory.mktemp("resnet") / "resnet.safetensors"
    weight_files.write(path, arrays | {"bn1.num_batches_tracked": np.array(7)}, {"format": "pt"})
    return path, arrays


@pytest.fixture(scope="module")
def folder(resnet, images, tmp_path_factory):
    """The run of these weights."""
    path, _ = resnet
    folder = tmp_path_factory.mktemp("imported") / "run"
    names = folder.parent / "names.txt"
    names.write_text("crane\nmaillot\ncrane\n  tench \ngoldfish\n")
    words = ["--model.name", "resnet18", "--model.width", WIDTH, "--weights", path, "--workdir", folder]
    words += ["--data.npz", images, "--data.image-size", 32, "--data.mean", 100, 110, 120, "--data.deviation", 60]
    words += ["--data.interpolation", "bilinear"]
    said = imported(*words, "--classes", names)
    return folder, said


def test_it_is_an_ordinary_run_of_one_epoch_with_the_weights(resnet, images, folder):
    workdir, said = folder
    trained = open_run(RunOptions(run=workdir), Quiet())
    assert (trained.epoch, run.kept_epochs(workdir)) == (0, [0])
    config = trained.config
    assert config.train.epochs == 0 and config.train.start_sha256 == weight_files.sha256(resnet[0], "")
    assert config.model.classes == ("crane", "maillot", "crane", "tench", "goldfish")
    assert (config.data.mean, config.data.deviation, config.data.image_size) == ((100, 110, 120), (60,), 32)
    assert config.hyper.filter_rms == np.inf
    assert "the 5 outputs are not the 2 classes of noise" in said
    found = weights.named(trained.variables)
    assert found.keys() == resnet[1].keys()
    for name, array in found.items():
        assert array.tobytes() == resnet[1][name].tobytes()
    pixels = trained.dataset.test.images
    assert pixels.shape == (6, 32, 32, 3)
    network = models.build(ModelConfig("resnet18", width=WIDTH), (32, 32, 3), 5)
    inputs = (pixels - np.array([100, 110, 120], np.float32)) / np.float32(60)
    expected = network.apply(weights.variables_of(resnet[1], weights.like(network, (32, 32, 3))), inputs)[0]
    np.testing.assert_allclose(
        trained.network.apply(trained.variables, trained.preprocess(pixels))[0], expected, rtol=1e-5
    )


def test_training_it_on_finds_it_finished(folder):
    def files():
        return {path: path.read_bytes() for path in folder[0].rglob("*") if path.is_file()}

    workdir, _ = folder
    before, progress = files(), Told()
    train.main(cli.parse(["--config", str(workdir / "config.json"), "--workdir", str(workdir)]), progress)
    assert progress.lines[-1] == f"noise: after epoch 0, in {workdir}"
    assert files() == before


@pytest.mark.parametrize("ending", weight_files.ENDINGS)
def test_exported_the_arrays_are_the_same_bytes_and_say_what_they_are(resnet, images, folder, tmp_path, ending):
    progress, path = Told(), tmp_path / f"out{ending}"
    export_weights.main(export_weights.Options(run=folder[0], to=path), progress)
    file = weight_files.read(path, "--weights")
    for name, array in resnet[1].items():
        assert np.asarray(file.arrays[name]).tobytes() == array.tobytes()
    assert file.arrays.keys() == resnet[1].keys() and len(progress.lines) == 1
    said = imported("--weights", path, "--workdir", tmp_path / "again", "--data.npz", images)
    assert said[0].startswith("expected by the weights: image_size 32, channels 3, interpolation bilinear, mean 100")
    configs = [run.read_config(workdir / "config.json") for workdir in (folder[0], tmp_path / "again")]
    assert configs[0].model == configs[1].model
    assert dataclasses.replace(configs[0].data, channels=3) == configs[1].data


def test_a_chain_goes_out_and_in_and_answers_the_same(tmp_path):
    config = ModelConfig("lenet", widths=(3, 4), filters=(3, 3), paddings=(1, 1), norm="batch")
    shapes = weights.layout(config, (8, 8, 1), 10).shapes
    generator = np.random.default_rng(2)
    arrays = {name: generator.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    weight_files.write(
        tmp_path / "a.npz", {name: abs(array) if name[-3:] == "var" else array for name, array in arrays.items()}, {}
    )
    words = [*CHAIN, "--model.norm", "batch", "--weights", tmp_path / "a.npz", "--data.name", "digits"]
    assert "the 10 outputs are taken for the classes of digits, in their order" in imported(
        *words, "--workdir", tmp_path / "run"
    )
    progress = Told()
    export_weights.main(export_weights.Options(run=tmp_path / "run", epoch=0, to=tmp_path / "b.safetensors"), progress)
    assert progress.lines[1] == "not in it: the mean image of digits, which this run subtracts from its images"
    words = ["--weights", tmp_path / "b.safetensors", "--workdir", tmp_path / "again", "--data.name", "digits"]
    assert not any("outputs" in line for line in imported(*words))
    ours, theirs = (open_run(RunOptions(run=tmp_path / name), Quiet()) for name in ("run", "again"))
    assert theirs.config.model == ours.config.model and theirs.config.model.classes is None
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    out = weights.named(theirs.variables, weights.flattened_maps(theirs.network, (8, 8, 1)))
    np.testing.assert_array_equal(out["fc3.weight"], arrays["fc3.weight"])
    assert (np.asarray(ours.variables["params"]["fc3"]["kernel"]) != out["fc3.weight"].T).any()


def bad(tmp_path, resnet, images, *changes):
    words = {
        "--model.name": ["resnet18"], "--model.width": [WIDTH], "--weights": [resnet[0]],
        "--workdir": [tmp_path / "run"], "--data.npz": [images],
    }  # fmt: skip
    for option, *values in changes:
        words[option] = values
    with pytest.raises(InputError) as error:
        imported(*(word for option, values in words.items() if values != [None] for word in (option, *values)))
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input_is_refused_and_nothing_is_written(tmp_path, resnet, images):
    few, object_of, wide = tmp_path / "few.txt", tmp_path / "object.json", tmp_path / "wide.txt"
    few.write_text("a\nb\nc")
    object_of.write_text('{"0": "a"}')
    wide.write_text("a\n\nb\nc\nd\n")
    for change, message in (
        (("--weights", None), "--weights must be given: a file that ends in .safetensors or .npz"),
        (("--weights", tmp_path), f"--weights must be a file, got '{tmp_path}', which is a folder"),
        (
            ("--train.epochs", 3),
            "--train.epochs must not be given: nothing is trained; experiments.train --train.start",
        ),
        (("--classes", few), f"--classes must have a name for each of the 5 outputs of --weights {resnet[0]}, got 3"),
        (("--classes", object_of), "--classes must hold a name a line or a JSON list of names"),
        (("--classes", wide), "--classes must be names of 1 to 255 printable characters, got ''"),
        (("--classes", tmp_path / "none"), "--classes must be a file of names, got"),
        (("--model.width", 0.1), f"--weights {resnet[0]} must hold the network's arrays; of another shape: bn1."),
        (("--data.mean", 1, 2, 3, 4), "data.mean must be 1 or 3 finite numbers, got (1.0, 2.0, 3.0, 4.0)"),
    ):
        assert bad(tmp_path, resnet, images, change).startswith(message)


def test_a_file_of_another_network_is_refused_and_recognized(tmp_path, images):
    shapes = weights.layout(ModelConfig("resnet18"), (32, 32, 3), 1000).shapes
    path = tmp_path / "a.npz"
    zeros = {name: np.broadcast_to(np.zeros(1, np.float16), shape) for name, shape in shapes.items()}
    np.savez_compressed(path, **zeros)
    message = bad(tmp_path, (path, None), images)
    assert message.startswith(f"--weights {path} must hold the network's arrays; of another shape: ")
    assert message.endswith("they look like resnet18")


def test_a_file_may_not_say_of_itself_what_is_none(tmp_path, resnet, images):
    path = tmp_path / "a.safetensors"
    for text in ("{", "[]", "{}", '{"model": 1, "data": {}}', '{"model": {"name": 1}, "data": {}}', "[" * 10**5):
        weight_files.write(path, resnet[1], {"cnnjax": text})
        assert "what it says of itself cannot be read: " in bad(tmp_path, (path, None), images)


def test_an_export_replaces_nothing_unasked(tmp_path, folder):
    path = tmp_path / "out.npz"
    path.write_text("mine")
    for to, message in (
        (path, f"--to must be a new file, or one that --overwrite may replace, got {path}"),
        (tmp_path / "a.pth", "--to must be a name that ends in .safetensors or .npz, got"),
        (None, "--to must be given: a file whose name ends in .safetensors or .npz"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            export_weights.main(export_weights.Options(run=folder[0], to=to), Quiet())
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"] and path.read_text() == "mine"
    export_weights.main(export_weights.Options(run=folder[0], to=path, overwrite=True), Quiet())
    assert weight_files.read(path, "--to").metadata


def test_a_training_that_starts_from_a_file_takes_what_it_expects(tmp_path, folder):
    path = tmp_path / "out.safetensors"
    export_weights.main(export_weights.Options(run=folder[0], to=path), Quiet())
    words = ["--train.start", str(path), "--data.name", "photos"]
    config = train.started(cli.parse(words), Told()).config
    assert (config.data.image_size, config.data.mean, config.hyper.filter_rms) == (32, (100, 110, 120), np.inf)
    assert (config.model.name, config.model.width, config.model.classes) == ("resnet18", WIDTH, None)
    asked = [*words, "--hyper.filter-rms", "0.1", "--data.image-size", "64", "--model.name", "resnet18"]
    config = train.started(cli.parse(asked), Told()).config
    assert (config.data.image_size, config.hyper.filter_rms, config.model.width) == (64, 0.1, None)
    assert train.started(cli.parse([]), Told()) == cli.parse([])


def test_without_images_named_they_are_large_patches_of_the_photographs():
    config = dataclasses.replace(
        cli.load_config("objects"), data=DataConfig("objects", image_size=200, shorter_side=220)
    )
    data = import_weights.with_patches(config, frozenset()).data
    photos = data.photos
    assert data.name == "photos"
    assert (photos.patch_size, photos.tile, photos.shorter_side) == (220, 220, 660)
    assert import_weights.with_patches(config, frozenset({"--data.name"})) == config
    small = dataclasses.replace(config, data=DataConfig("objects", image_size=32))
    assert import_weights.with_patches(small, frozenset()) == small


@pytest.mark.extra
def test_logits_are_those_of_the_same_network_in_pytorch(tmp_path):
    """LeNet written as a torch.nn.Sequential, its state_dict under the names that `weights` tells."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    layers = {
        "conv1": torch.nn.Conv2d(1, 6, 5, padding=2), "relu1": torch.nn.ReLU(), "pool1": torch.nn.MaxPool2d(2),
        "conv2": torch.nn.Conv2d(6, 16, 5), "relu2": torch.nn.ReLU(), "pool2": torch.nn.MaxPool2d(2),
        "flatten": torch.nn.Flatten(), "fc3": torch.nn.Linear(400, 120), "relu3": torch.nn.ReLU(),
        "fc4": torch.nn.Linear(120, 84), "relu4": torch.nn.ReLU(), "fc5": torch.nn.Linear(84, 10),
    }  # fmt: skip
    theirs = torch.nn.Sequential()
    for name, layer in layers.items():
        theirs.add_module(name, layer)
    save_file(theirs.state_dict(), tmp_path / "lenet.safetensors")
    network = models.build(ModelConfig("lenet"), (28, 28, 1), 10)
    file = weight_files.read(tmp_path / "lenet.safetensors", "--weights")
    flattened = weights.flattened_maps(network, (28, 28, 1))
    variables = weights.variables_of(file.arrays, weights.like(network, (28, 28, 1)), flattened)
    images = np.random.default_rng(0).normal(size=(5, 28, 28, 1)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(network.apply(variables, jnp.asarray(images))[0], expected, atol=1e-5)


@pytest.mark.long
def test_an_imported_network_is_fine_tuned_on_other_images(folder, images):
    """Its head is replaced, its filters are not renormalized."""
    options = transfer.Options(run=folder[0], data=DataConfig(npz=str(images)), per_class=(2,), folds=1, steps=2)
    progress = Told()
    transfer.main(options, progress)
    assert not any("scales filters down" in str(line) for line in progress.lines)
    with np.load(folder[0] / "figures" / "epoch-0" / "transfer-noise.npz") as found:
        assert found["accuracy"].shape == (3, 1, 1) and np.isfinite(found["accuracy"]).all()


def test_a_known_networks_weights_say_what_images_they_are_for():
    assert import_weights.expected_of("lenet") == DataConfig()
    data = import_weights.expected_of("inception_v3")
    assert (data.image_size, data.shorter_side, data.channels, data.interpolation) == (299, 342, 3, "bilinear")
    assert (data.mean, data.deviation) == ((127.5,) * 3, (127.5,) * 3)
