"""The study of architectures on a few digits; and what each variant changes."""

import dataclasses
import math

import numpy as np
import pytest

from cnnjax import cli, models
from cnnjax.config import Config, ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import architectures
from experiments.architectures import Options, variant
from experiments.looking import RunOptions, open_run
from tests.experiments.test_filter_evolution import Quiet


def built(name, config=None, image_shape=(32, 32, 3)):
    config = config or Config()
    network = models.build(config.model, image_shape, 10)
    changed = variant(config, network, name)
    return changed, models.build(changed.model, image_shape, 10)


def test_the_base_is_the_config_and_only_the_rms_is_freed():
    assert built("base")[0] == Config()
    changed = built("no_renormalization")[0]
    assert changed.hyper.filter_rms == math.inf
    assert dataclasses.replace(changed, hyper=Config().hyper) == Config()


@pytest.mark.parametrize(("name", "window", "stride"), [("first_7_2", 7, 2), ("first_11_4", 11, 4)])
def test_another_first_layer_leaves_the_sizes_from_layer_3_on(name, window, stride):
    rows = {row.name: row for row in models.layers(built(name)[1], (32, 32, 3))}
    before = {row.name: row for row in models.layers(built("base")[1], (32, 32, 3))}
    assert (rows["conv1"].window, rows["conv1"].strides) == ((window,) * 2, (stride,) * 2)
    for layer in ("conv3", "conv4", "conv5", "pool5", "fc6", "fc7"):
        assert rows[layer].output_shape == before[layer].output_shape
    assert "pool2" not in rows


@pytest.mark.parametrize(
    ("name", "widths", "dense"),
    [
        ("no_middle", (24, 64, 64), (256,)),
        ("no_dense", (24, 64, 64, 64, 64), ()),
        ("no_middle_no_dense", (24, 64, 64), ()),
        ("half_dense", (24, 64, 64, 64, 64), (128,)),
        ("double_dense", (24, 64, 64, 64, 64), (512,)),
        ("wide_middle", (24, 64, 85, 171, 128), (256,)),
        ("double_dense_wide_middle", (24, 64, 85, 171, 128), (512,)),
    ],
)
def test_what_a_variant_leaves_out_or_widens(name, widths, dense):
    network = built(name)[1]
    assert tuple(layer.width for layer in network.convolutions) == widths and network.dense == dense
    pools = [layer.pool is not None for layer in network.convolutions]
    assert pools == ([True, True, True] if len(widths) == 3 else [True, True, False, False, True])


def test_the_papers_own_network_and_its_variants_have_the_papers_weights():
    """Counts computed from the paper's layers: middle maps of 512-1024-512, 2048 units, both wider."""
    paper = Config(model=ModelConfig(name="zfnet"))
    wanted = {"wide_middle": 107_627_624, "half_dense": 28_848_232, "double_dense_wide_middle": 237_560_936}
    for name, count in wanted.items():
        changed = variant(paper, models.build(paper.model, (224, 224, 3), 1000), name)
        rows = models.layers(models.build(changed.model, (224, 224, 3), 1000), (224, 224, 3))
        assert sum(row.weights + row.biases for row in rows) == count
    assert built("no_last_dense", paper, (224, 224, 3))[1].dense == (4096,)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("no_middle", "lenet", "--variants: no_middle needs at least 4 convolutions, got 2"),
        ("wide_middle", "lenet", "--variants: wide_middle needs at least 4 convolutions, got 2"),
        ("no_last_dense", "zfnet_small", "--variants: no_last_dense needs at least 2 hidden dense layers, got 1"),
    ],
)
def test_a_variant_needs_the_layers_that_it_changes(name, model, message):
    config = Config(model=ModelConfig(name=model))
    with pytest.raises(InputError) as error:
        built(name, config, (28, 28, 1))
    assert str(error.value) == message


def test_a_stride_needs_pools_to_be_taken_from():
    config = Config(model=ModelConfig(pools=(1, 2, 1, 1, 1)))
    with pytest.raises(InputError, match="first_11_4 needs pools from which a stride of 4 can be taken"):
        built("first_11_4", config)


def digits(**changes):
    return dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)), **changes)


@pytest.mark.long
def test_the_study_trains_each_variant_once_and_writes_its_numbers(tmp_path):
    progress, said = Quiet(), []
    progress.say = said.append
    config, folder = digits(), tmp_path / "study"
    arguments = cli.Arguments(config, folder, Options(variants=("base", "first_7_2"), maps=5))
    architectures.main(arguments, progress)
    with np.load(folder / "figures" / "architectures.npz") as arrays:
        found = dict(arrays)
    assert found["variants"].tolist() == ["base", "first_7_2"]
    assert found["kernel_first_7_2"].shape == (7, 7, 1, 16)
    aliased = dict(zip(found["measure_names"], found["measures"].T, strict=True))["aliased"]
    assert aliased[0] == 0 and 0 < aliased[1] < 1
    of_base = run.read_metrics(folder / "base")[-1]
    assert 0 <= found["errors"][0, 0] <= 100
    np.testing.assert_allclose(found["errors"][0, 1:], [100 * of_base["test_error"], 100 * of_base["test_error_top5"]])
    assert_layer_2_is_that_of_the_run(folder)
    tables = [table for table in said if not isinstance(table, str)]
    assert [table.row_count for table in tables[-2:]] == [2, 2]
    states = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    assert len(states) == 2
    architectures.main(arguments, Quiet())  # finished variants are only loaded
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")} == states


def assert_layer_2_is_that_of_the_run(folder):
    with np.load(folder / "figures" / "architectures_conv2.npz") as arrays:
        seen = dict(arrays)
    assert seen["variants"].tolist() == ["base", "first_7_2"]
    for name, side in (("base", 8), ("first_7_2", 8)):  # they see the whole digit
        trained = open_run(RunOptions(run=folder / name), Quiet())
        images = trained.dataset.test.images
        strength = np.asarray(trained.feature_maps(trained.preprocess(images))["conv2"]).max(axis=(0, 1, 2))
        np.testing.assert_allclose(seen[f"value_{name}"][:, 0], strength[seen[f"maps_{name}"]], rtol=1e-4, atol=1e-5)
        assert seen[f"projections_{name}"].shape == (5, 1, side, side, 1)


@pytest.mark.long
def test_a_network_of_one_convolution_has_no_figure_of_layer_2(tmp_path):
    one = ModelConfig(name="lenet", widths=(4,), filters=(3,), strides=(1,), paddings=(1,), pools=(2,), dense=())
    architectures.main(cli.Arguments(digits(model=one), tmp_path, Options(variants=("base",))), Quiet())
    assert [path.name for path in (tmp_path / "figures").glob("*.png")] == ["architectures.png"]


@pytest.mark.parametrize(
    ("config", "variants", "message"),
    [
        (digits(), ("base", "first_11_4"), "--variants: first_11_4 needs images of at least 11 pixels, got (8, 8, 1)"),
        (
            digits(model=ModelConfig(name="mlp")),
            ("base",),
            "model.name must be one of lenet, zfnet, zfnet_small, whose layers can be changed, got 'mlp'",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_written(tmp_path, config, variants, message):
    with pytest.raises(InputError) as error:
        architectures.main(cli.Arguments(config, tmp_path / "new", Options(variants=variants)), Quiet())
    assert str(error.value) == message and not (tmp_path / "new").exists()


def test_the_folder_of_a_run_is_not_that_of_a_study(tmp_path):
    config = digits()
    run.run(config, load(config.data), tmp_path)
    with pytest.raises(InputError, match="--workdir must be a folder for all variants, and .* holds one run"):
        architectures.main(cli.Arguments(config, tmp_path, Options(variants=("base",))), Quiet())


def test_unknown_variants_are_refused():
    with pytest.raises(InputError, match="--variants must be among base, first_7_2, .*, got 'first_9_9'"):
        Options(variants=("first_9_9",))
    with pytest.raises(InputError, match="--variants must be among .*, got 'none'"):
        Options(variants=())
    with pytest.raises(InputError, match="--maps must be between 1 and 65536, got 0"):
        Options(maps=0)
    with pytest.raises(InputError, match="--maps-seed must be between 0 and 2147483647, got -1"):
        Options(maps_seed=-1)
