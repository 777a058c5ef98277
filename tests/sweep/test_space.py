import math

import numpy as np
import pytest

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.errors import InputError
from cnnjax.sweep import space
from cnnjax.sweep.space import Draw, axes, by_program, grid_and_draws, parse_axis, read_members

BASE = Config(DataConfig(name="digits"), ModelConfig("lenet"), TrainConfig(epochs=2), Hyperparams())


def refused(match, function, *arguments):
    with pytest.raises(InputError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


def test_every_hyperparameter_is_an_axis_and_so_is_what_changes_a_shape():
    names = set(axes())
    assert set(Hyperparams.__dataclass_fields__) <= names
    assert {"model.filters", "model.strides", "model.widths", "model.name", "train.batch_size"} <= names
    assert "train.epochs" not in names  # all members end together


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("learning_rate", "1e-3, 1e-2,1", [1e-3, 1e-2, 1.0]),
        ("filter_rms", "0.1,inf", [0.1, math.inf]),
        ("seed", "0:4", [0, 1, 2, 3]),
        ("seed", "7", [7]),
        ("model.widths", "8x16,16x32", [(8, 16), (16, 32)]),
        ("model.dense", "none,64", [None, (64,)]),
        ("model.norm", "none,batch", ["none", "batch"]),
        ("train.optimizer", "sgd,adamw", ["sgd", "adamw"]),
        ("train.batch_size", "32,64", [32, 64]),
        ("learning_rate", "log:1e-4:1e-1", Draw(1e-4, 1e-1, True)),
        ("dropout_rate", "uniform:0:0.5", Draw(0.0, 0.5, False)),
    ],
)
def test_an_axis_is_a_list_a_range_or_a_draw(name, text, values):
    assert parse_axis(name, text) == values


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("learning_rates", "1", "must be one of learning_rate, momentum, .*, got 'learning_rates'"),
        ("learning_rate", "1e-3,fast", "--sweep.learning_rate must be values of type float, got 'fast'"),
        ("learning_rate", "", "--sweep.learning_rate must be values of type float, got ''"),
        ("seed", "0.5", "--sweep.seed must be values of type int, got '0.5'"),
        ("seed", "4:4", "--sweep.seed must be a rising range .* got '4:4'"),
        ("learning_rate", "0:4", "--sweep.learning_rate must be a rising range of whole numbers"),
        ("seed", "log:1:10", "--sweep.seed must be log:LOW:HIGH"),
        ("learning_rate", "log:0:1", "--sweep.learning_rate must be log:LOW:HIGH"),
        ("dropout_rate", "uniform:0.5:0.1", "--sweep.dropout_rate must be uniform:LOW:HIGH"),
        ("model.widths", "8x", "--sweep.model.widths must be values of type"),
        ("train.optimizer", "adam", "--sweep.train.optimizer must be values of type sgd or adamw, got 'adam'"),
    ],
)
def test_a_bad_axis_is_named_with_its_value(name, text, match):
    refused(match, parse_axis, name, text)


def test_a_grid_runs_through_its_last_axis_first():
    members = grid_and_draws(BASE, {"learning_rate": [0.1, 0.2], "seed": [0, 1, 2]}, 16, 0)
    assert [member.number for member in members] == list(range(6))
    assert [(m.values["learning_rate"], m.values["seed"]) for m in members] == [
        (rate, seed) for rate in (0.1, 0.2) for seed in (0, 1, 2)
    ]
    for member in members:
        assert member.config.hyper == Hyperparams(**member.values)
        assert (member.config.data, member.config.model, member.config.train) == (BASE.data, BASE.model, BASE.train)


def test_draws_lie_in_their_range_and_come_from_their_seed():
    wanted = {"learning_rate": Draw(1e-4, 1e-1, True), "dropout_rate": Draw(0.2, 0.4, False)}
    first = [member.values for member in grid_and_draws(BASE, wanted, 1000, 0)]
    rates = np.array([values["learning_rate"] for values in first])
    shares = np.array([values["dropout_rate"] for values in first])
    assert rates.min() >= 1e-4 and rates.max() <= 1e-1 and shares.min() >= 0.2 and shares.max() <= 0.4
    # 1000 draws: a third of them in each decade, and the mean, within four standard deviations
    for low in (1e-4, 1e-3, 1e-2):
        assert abs(np.mean((rates >= low) & (rates < 10 * low)) - 1 / 3) < 4 * math.sqrt(2 / 9 / 1000)
    assert abs(shares.mean() - 0.3) < 4 * 0.2 / math.sqrt(12 * 1000)
    assert first == [member.values for member in grid_and_draws(BASE, wanted, 1000, 0)]
    assert first != [member.values for member in grid_and_draws(BASE, wanted, 1000, 1)]


def test_every_listed_combination_gets_the_same_draws():
    members = grid_and_draws(BASE, {"learning_rate": Draw(0.01, 0.1, True), "seed": [0, 1]}, 3, 0)
    rates = [member.values["learning_rate"] for member in members]
    assert len(members) == 6 and len(set(rates)) == 3 and rates[:3] == rates[3:]
    assert [list(member.values) for member in members] == [["learning_rate", "seed"]] * 6


def test_a_value_out_of_range_names_the_member_and_the_field():
    for values, match in (
        ({"dropout_rate": [0.0, 1.0]}, "member 1: hyper.dropout_rate must be less than 1"),
        ({"learning_rate": [math.nan]}, "member 0: hyper.learning_rate must be .* got nan"),
        ({"model.widths": [(0, 1)]}, "member 0: model.widths must be"),
    ):
        refused(match, grid_and_draws, BASE, values, 1, 0)


def test_too_few_and_too_many_members_are_refused():
    refused("--sweep must be given an axis, one of learning_rate", grid_and_draws, BASE, {}, 16, 0)
    refused("--samples must be at least 1, got 0", grid_and_draws, BASE, {"momentum": Draw(0, 1, False)}, 0, 0)
    many = {"learning_rate": [0.1] * 1001, "seed": list(range(100))}
    refused("--yes must be given for more than 100,000 members, got 100,100", grid_and_draws, BASE, many, 1, 0)


def test_consent_lifts_the_bound(monkeypatch):
    monkeypatch.setattr(space, "MOST_WITHOUT_CONSENT", 3)
    refused("--yes must be given", grid_and_draws, BASE, {"seed": [0, 1, 2, 3]}, 1, 0)
    assert len(grid_and_draws(BASE, {"seed": [0, 1, 2, 3]}, 1, 0, True)) == 4


def test_a_file_has_a_member_a_line(tmp_path):
    path = tmp_path / "members.csv"
    path.write_text("learning_rate, model.widths,seed\n0.1,8x16,0\n\n0.2,none,1\n")
    one, other = read_members(BASE, path)
    assert one.values == {"learning_rate": 0.1, "model.widths": (8, 16), "seed": 0}
    assert other.number == 1 and other.config.model.widths is None and other.config.hyper.seed == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must have a line of axes and a line a member, got 0 lines"),
        ("seed\n", "must have a line of axes and a line a member, got 1 lines"),
        ("seed,rate\n0,1\n", "every column of .*members.csv must be one of learning_rate, .* got 'rate'"),
        ("seed,seed\n0,1\n", "must be another axis, got seed, seed"),
        ("seed,momentum\n0,0.5\n\n1\n", "line 4 of .*members.csv must have 2 values, got 1"),
        ("seed,momentum\n0,0.5,1\n", "line 2 of .*members.csv must have 2 values, got 3"),
        ("seed\none\n", "--sweep.seed must be values of type int, got 'one'"),
        ("momentum\n0.5\n2\n", r"member 1: hyper.momentum must be between 0 and 1, got 2.0"),
    ],
)
def test_a_bad_file_of_members_is_refused(tmp_path, text, match):
    path = tmp_path / "members.csv"
    path.write_text(text)
    refused(match, read_members, BASE, path)


def test_a_file_that_is_none_is_refused(tmp_path):
    refused("--members must be a CSV file, got .*none.csv", read_members, BASE, tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00seed")
    refused("--members must be a CSV file", read_members, BASE, tmp_path / "binary.csv")


def test_members_of_one_program_differ_in_numbers_only():
    values = {"model.filters": [(3, 3), (5, 5)], "learning_rate": [0.1, 0.2], "seed": [0, 1]}
    groups = by_program(grid_and_draws(BASE, values, 1, 0))
    assert [{member.values["model.filters"] for member in group} for group in groups] == [{(3, 3)}, {(5, 5)}]
    assert [member.number for member in groups[0]] == [0, 2, 1, 3]  # those of one seed stand together
