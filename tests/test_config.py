import dataclasses
import json
import math

import jax
import pytest

from cnnjax.config import (
    Config,
    DataConfig,
    Hyperparams,
    ModelConfig,
    PhotosConfig,
    TrainConfig,
    differences,
    from_json,
    to_json,
)
from cnnjax.errors import InputError


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(model=ModelConfig(name="lenet", widths=(3, 4), norm="batch"), hyper=Hyperparams(filter_rms=math.inf)),
        Config(data=DataConfig(folder="a", image_size=20, channels=1), train=TrainConfig(keep_epochs=())),
    ],
)
def test_json_gives_the_same_config_back(config):
    assert from_json(json.loads(json.dumps(to_json(config), allow_nan=False))) == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"epoch": 3}}, "train.epoch is not a field"),
        ({"train": {"epochs": "3"}}, 'train.epochs must be int, got "3"'),
        ({"train": {"epochs": True}}, "train.epochs must be int, got true"),
        ({"train": {"loss": "hinge"}}, "train.loss must be one of cross_entropy, squared_error"),
        ({"data": []}, "data must be DataConfig"),
        ({"model": {"widths": 3}}, "model.widths must be tuple"),
        ([], "config must be Config"),
    ],
)
def test_json_with_what_does_not_belong_is_refused_by_name(tree, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace("[", r"\[")):
        from_json(tree)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(epochs=0), "train.epochs must be between 1 and 100000, got 0"),
        (lambda: TrainConfig(keep_epochs=(0,)), "train.keep_epochs must be epochs of at least 1"),
        (
            lambda: TrainConfig(epochs=2, warmup_epochs=3),
            r"train.warmup_epochs must be between 0 and train.epochs \(2\)",
        ),
        (lambda: ModelConfig(filters=(5, 0)), "model.filters must be numbers from 1 to 65536"),
        (lambda: PhotosConfig(patch_size=97), r"data.photos.patch_size must be at most the tile \(96\), got 97"),
        (lambda: DataConfig(folder="a", npz="b"), "data.folder and data.npz exclude each other"),
        (lambda: ModelConfig(norm="Batch"), 'model.norm must be .*, got "Batch"'),
        (lambda: ModelConfig(widths=8), "model.widths must be .*, got 8"),
        (lambda: TrainConfig(epochs="ten"), 'train.epochs must be int, got "ten"'),
        (lambda: DataConfig(npz=""), "data.npz must be a name that is not empty"),
        (lambda: DataConfig(test_fraction=1.0), "data.test_fraction must be between 0 and 1, got 1.0"),
        (lambda: DataConfig(split_seed=2**31), "data.split_seed must be between 0 and 2147483647, got 2147483648"),
        (lambda: DataConfig(unit=math.nan), "data.unit must be a finite number > 0, got nan"),
        (lambda: Config(hyper=Hyperparams(learning_rate=-1)), "hyper.learning_rate must be between 0 and 1000, got -1"),
        (lambda: Config(hyper=Hyperparams(momentum=math.nan)), "hyper.momentum must be between 0 and 1, got nan"),
        (lambda: Config(hyper=Hyperparams(dropout_rate=1)), "hyper.dropout_rate must be less than 1, got 1"),
        (lambda: Config(hyper=Hyperparams(batch_norm_momentum=1)), "hyper.batch_norm_momentum must be less than 1"),
        (lambda: Config(hyper=Hyperparams(filter_rms=0)), "hyper.filter_rms must be > 0, got 0"),
    ],
)
def test_values_out_of_range_are_refused_with_name_rule_and_value(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_every_number_of_hyperparams_is_a_leaf_and_may_be_traced():
    hyper = Hyperparams()
    assert len(jax.tree.leaves(hyper)) == len(dataclasses.fields(hyper))
    doubled = jax.jit(lambda h: dataclasses.replace(h, learning_rate=2 * h.learning_rate))(hyper)
    assert float(doubled.learning_rate) == pytest.approx(2 * hyper.learning_rate)


def test_kept_epochs_leave_out_what_is_not_reached_and_keep_first_and_last():
    assert TrainConfig(epochs=7).kept_epochs == (0, 1, 2, 5, 7)
    assert TrainConfig(epochs=64).kept_epochs == (0, 1, 2, 5, 10, 20, 30, 40, 64)


def test_differences_name_the_fields():
    other = Config(
        data=DataConfig(data_dir="x"), train=TrainConfig(epochs=8, save_every_seconds=1.0), hyper=Hyperparams(seed=3)
    )
    assert differences(Config(), other) == ["train.epochs: 64 here, 8 there", "hyper.seed: 0 here, 3 there"]
    assert differences(other, other) == []
