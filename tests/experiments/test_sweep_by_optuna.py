"""A study by Optuna: proposals that depend on nothing but seed, batch and history; its guards; its store."""

import csv
import json

import numpy as np
import pytest

from cnnjax import cli
from cnnjax.errors import InputError
from cnnjax.sweep import ranking, space, study
from cnnjax.train import run
from cnnjax.train.lock import InUse, locked
from experiments import sweep
from experiments import sweep_by_optuna as sweeping
from tests.sweep import sweeps

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.extra
optuna.logging.set_verbosity(optuna.logging.WARNING)

SMALL = [
    *("--config", "digits", *sweeps.MLP, "--train.epochs", "1", "--chunk", "2"),
    *("--train.batch-size", "512", "--train.keep-epochs", "1"),
]
AXES = ["--sweep.learning-rate", "log:1e-3:1", "--sweep.momentum", "0.5,0.9"]


class Said:
    """What a script says, as `cli.Progress`; a training is an error where there must be none."""

    def __init__(self, trains: bool = True):
        self.trains, self.lines = trains, []

    def __call__(self, description, done, total):
        assert self.trains, description

    def say(self, text):
        self.lines.append(str(text))


def command(workdir, *words, axes=AXES, trains=True):
    """The same command in this process; what it said."""
    line = sweeps.last_of_each(*SMALL, *axes, "--batch", "2", *words, "--workdir", str(workdir))
    taken, rest = sweep.take_axes(line)
    said = Said(trains)
    with sweeps.programs_shared():
        sweeping.main(cli.parse(rest, sweeping.Options())._replace(taken=taken), said)
    return said.lines


def members(workdir):
    """The rows of every batch, without the seconds."""
    rows = []
    for path in sorted(workdir.glob("batch-*/members.csv")):
        with open(path) as file:
            rows += [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return rows


def stored(workdir, tmp_path):
    """What Optuna itself reads from the store; its way to name a file knows no %."""
    (tmp_path / "copy.db").write_bytes((workdir / "optuna.db").read_bytes())
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/copy.db")
    trials = optuna.load_study(study_name="sweep", storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    return [(trial.params, trial.value, trial.state, trial.user_attrs) for trial in trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four members in two batches, never stopped."""
    workdir = tmp_path_factory.mktemp("optuna") / "100%"
    return workdir, command(workdir, "--trials", "4")


def test_a_study_that_was_stopped_has_the_members_of_one_that_was_not(whole, tmp_path):
    workdir, _ = whole
    command(tmp_path / "parts", "--trials", "2")
    command(tmp_path / "parts", "--trials", "4")
    assert members(tmp_path / "parts") == members(workdir)
    rates = [float(row["learning_rate"]) for row in members(workdir)]
    assert len(set(rates)) == 4 and all(1e-3 <= rate <= 1 for rate in rates)
    assert stored(tmp_path / "parts", tmp_path) == stored(workdir, tmp_path)


def test_the_best_is_told_by_its_values_and_its_place(whole):
    workdir, said = whole
    rows = members(workdir)
    best = min(range(4), key=lambda index: float(rows[index]["test_error_1"]))
    rate, momentum = (float(rows[best][name]) for name in ("learning_rate", "momentum"))
    *_, last, at_the_end, fair = said
    error = f"{100 * float(rows[best]['test_error_1']):.2f} %"
    assert last.startswith(f"batch 1: best so far {error} with ")
    assert f"momentum {momentum:g} (member {best % 2} of {workdir / f'batch-{best // 2}'})" in last
    assert float(last.split("learning_rate ")[1].split(",")[0]) == pytest.approx(rate, rel=0.05)
    assert at_the_end.startswith("best setting: learning_rate ") and at_the_end.endswith(f": test error {error}")
    assert fair.startswith("ranked by the test error, which is no fair choice")


def test_a_finished_study_is_only_read_and_its_store_is_made_anew(whole, tmp_path):
    workdir, said = whole
    before = stored(workdir, tmp_path)
    (workdir / "optuna.db").write_bytes(b"junk")
    assert command(workdir, "--trials", "4", trains=False)[-1] == said[-1]
    assert stored(workdir, tmp_path) == before
    numbers = [int(params["momentum"]) for params, _, _, _ in before]
    assert [("0.5", "0.9")[number] for number in numbers] == [row["momentum"] for row in members(workdir)]
    assert [value for _, value, _, _ in before] == pytest.approx(
        [float(row["test_error_1"]) for row in members(workdir)], abs=1e-6
    )


def test_the_best_member_becomes_a_run(whole, tmp_path):
    workdir, _ = whole
    said = command(workdir, "--trials", "4", "--best", str(tmp_path / "best"), trains=False)
    errors = [float(row["test_error_1"]) for row in members(workdir)]
    rate = run.read_config(tmp_path / "best" / "config.json").hyper.learning_rate
    assert f"{rate}" == members(workdir)[int(np.argmin(errors))]["learning_rate"]
    assert said[-1] == f"member {int(np.argmin(errors)) % 2} is in {tmp_path / 'best'}"


def refused(match, *words, **how):
    with pytest.raises(InputError, match=match) as caught:
        command(*words, **how)
    assert "\n" not in str(caught.value)


OTHERS = [
    (["--train.epochs", "2"], AXES, "train.epochs: 2 here, 1 there"),
    (["--model.dense", "8"], AXES, r"model.dense: \[8\] here, \[4\] there"),
    ([], [*AXES[:3], "0.9,0.5"], r'axes: .*"momentum": \[0.9, 0.5\]} here, .*"momentum": \[0.5, 0.9\]} there'),
    ([], [*AXES[2:], *AXES[:2]], 'axes: {"momentum": .* here, {"learning_rate": .* there'),
    (["--sampling-seed", "1"], AXES, "sampling_seed: 1 here, 0 there"),
]


@pytest.mark.parametrize(("words", "axes", "match"), OTHERS, ids=[match for *_, match in OTHERS])
def test_another_study_in_the_folder_is_refused_naming_what_differs(whole, words, axes, match):
    workdir, _ = whole
    before = sorted(str(path) for path in workdir.rglob("*"))
    refused(f"holds another study .{match}", workdir, "--trials", "6", *words, axes=axes)
    assert sorted(str(path) for path in workdir.rglob("*")) == before


BAD = [
    ([], [], "--sweep must be given an axis"),
    ([], ["--sweep.seed", "0:3"], "--sweep must be given an axis besides seed"),
    (["--trials", "0"], AXES, "--trials must be at least 1, got 0"),
    (["--sampling-seed", "-1"], AXES, "--sampling-seed must be between 0 and 2147483647, got -1"),
    (["--memory-gb", "inf"], AXES, "--memory-gb must be a finite number > 0, got inf"),
    (["--train.on-nan", "skip"], AXES, "train.on_nan must be stop in a sweep"),
    ([], ["--sweep.batch-norm-momentum", "0.5,0.9"], "--sweep.batch_norm_momentum must be left out for mlp, which has"),
    (["--join"], AXES, "--join must find a study that was begun without it"),
    ([], ["--sweep.dropout-rate", "uniform:0:2"], "--sweep.dropout_rate: hyper.dropout_rate must be between 0 and 1"),
    (
        ["--model.name", "lenet", "--model.widths", "2", "2", "--model.paddings", "1", "1"],
        ["--sweep.model.filters", "3x3,30x3"],
        "conv1: a 30×30 filter with stride 1 does not fit",
    ),
]


@pytest.mark.parametrize(("words", "axes", "match"), BAD, ids=[match for *_, match in BAD])
def test_bad_input_is_refused_before_anything_is_written(tmp_path, words, axes, match):
    refused(match, tmp_path / "new", *words, axes=axes, trains=False)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_guarded_as_that_of_a_sweep(whole, tmp_path):
    workdir, _ = whole
    refused("--best must be a folder apart from --workdir", workdir, "--best", str(workdir / "best"))
    (tmp_path / "optuna.db").mkdir()
    refused("optuna.db must be a file, or not be there, and is a folder", tmp_path)
    (tmp_path / "optuna.db").rmdir()
    (tmp_path / "holiday.jpg").write_text("")
    refused("--workdir must be new, empty or a study's", tmp_path)
    with locked(workdir), pytest.raises(InUse):
        command(workdir)
    record = json.loads((workdir / "study.json").read_text())
    (tmp_path / "study").mkdir()
    damaged = json.dumps(record).replace("0.5", "0.6")
    for text, match in (
        (damaged, "study.json is not as it was written"),
        (run.sealed(record | {"data": {"name": "digits", "sha256": "0" * 64}}), "on other data"),
        (run.sealed(record | {"data": {"sha256": 7}}), "study.json"),
        (run.sealed(record | {"axes": 7}), "axes: .* here, 7 there"),
    ):
        (tmp_path / "study" / "study.json").write_text(text)
        refused(match, tmp_path / "study", trains=False)


def test_a_study_is_joined_and_waited_for_with_an_end(whole, tmp_path):
    workdir, _ = whole
    said = command(workdir, "--trials", "4", "--join", trains=False)
    assert said[-1].startswith("all chunks are trained; the process that began the study writes")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text((workdir / "study.json").read_text())
    match = r"batch-0 \(that the process that began the study has yet to begin\) must go on, and no file there"
    refused(match, tmp_path / "study", "--join", "--wait-minutes", "0.001")


def test_a_batch_whose_members_are_no_values_of_the_axes_is_refused(tmp_path):
    axes = {"learning_rate": space.parse_axis("learning_rate", "log:1e-3:1"), "seed": space.parse_axis("seed", "4,7")}
    assert sweeping.params_of(axes, {"learning_rate": 0.1, "seed": 7}, tmp_path) == {"learning_rate": 0.1, "seed": 1}
    for values in ({"learning_rate": 2.0, "seed": 7}, {"learning_rate": 0.1, "seed": 5}, {"seed": 7}, [0.1, 7], None):
        with pytest.raises(InputError, match=r"sweep.json must have members of this study's axes, got"):
            sweeping.params_of(axes, values, tmp_path)


def test_a_setting_is_trained_with_all_seeds_and_counts_by_their_mean(tmp_path):
    """Goes on after a stop with the same proposals; a batch with other seeds is refused."""
    axes = [*AXES, "--sweep.seed", "4,7"]
    workdir = tmp_path / "study"
    command(workdir, "--trials", "1", axes=axes)
    said = command(workdir, "--trials", "2", "--batch", "1", axes=axes)
    rows = members(workdir)
    assert [row["seed"] for row in rows] == ["4", "7"] * 2
    assert len({(row["learning_rate"], row["momentum"]) for row in rows}) == 2
    errors = np.array([float(row["test_error_1"]) for row in rows]).reshape(2, 2)
    trials = stored(workdir, tmp_path)
    assert [value for _, value, _, _ in trials] == pytest.approx(errors.mean(axis=1), abs=1e-6)
    assert all(set(params) == {"learning_rate", "momentum"} for params, *_ in trials)
    assert trials[0][3] == {"batch": 0, "members": [0, 1], "states": ["finished"] * 2}
    best = errors[errors.mean(axis=1).argmin()]
    assert f"{100 * best.mean():.2f} ± {100 * best.std(ddof=1):.2f} % over 2 seeds" in said[-2]


def test_a_batch_without_all_seeds_of_each_setting_is_refused(tmp_path):
    axes = {"learning_rate": space.parse_axis("learning_rate", "log:1e-3:1"), "seed": space.parse_axis("seed", "4,7")}
    whole = [{"learning_rate": rate, "seed": seed} for rate in (0.1, 0.2) for seed in (4, 7)]
    assert sweeping.params_of_batch(axes, whole, tmp_path) == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    for begun in (whole[:3], whole[::-1], [whole[0], whole[3]], [*whole, whole[0]]):
        with pytest.raises(InputError, match=r"sweep.json must have all seeds of each setting, 2, and has others"):
            sweeping.params_of_batch(axes, begun, tmp_path)


DISTRIBUTIONS = {
    "learning_rate": sweeping.distribution(optuna, space.parse_axis("learning_rate", "log:1e-3:1")),
    "momentum": sweeping.distribution(optuna, space.parse_axis("momentum", "0.5,0.9")),
}


def told(index, *states):
    """A trial whose error is small where the learning rate is near 0.1."""
    rate = 10 ** (-3 + 3 * ((index * 0.618) % 1))
    metrics = [{"epoch": 1, "test_error": abs(np.log10(rate) + 1) / 3}]
    results = [
        study.Result(space.Member(index, {"seed": seed}, None), state, metrics, 0.0, [])
        for seed, state in enumerate(states or ["finished"])
    ]
    (setting,) = ranking.ranked(results, "test_error")
    return sweeping.trial(optuna, {"learning_rate": rate, "momentum": index % 2}, setting, DISTRIBUTIONS, 0)


def test_proposals_depend_on_seed_batch_and_history_and_learn_from_it():
    history = [told(index) for index in range(30)]

    def rates(address, trials=history):
        return [one["learning_rate"] for one in sweeping.propose(optuna, trials, 8, address, DISTRIBUTIONS)]

    assert rates((0, 3)) == rates((0, 3))
    assert len({*rates((0, 3)), *rates((0, 4)), *rates((1, 3))}) == 24
    assert rates((0, 0), []) == rates((0, 0), []) and not set(rates((0, 0), [])) & set(rates((0, 1), []))
    # A rate drawn at random lies within a factor of 4 of the best one four times in ten.
    near = [0.025 < rate < 0.4 for batch in range(5) for rate in rates((0, batch))]
    assert sum(near) / 40 > 0.8


def test_a_member_that_diverged_is_no_success():
    states = ["finished", "diverged at epoch 1, step 2 of 4"]
    trial = told(3, *states)
    assert trial.state == optuna.trial.TrialState.PRUNED and trial.value is None
    assert trial.user_attrs["states"] == states
    assert told(3).state == optuna.trial.TrialState.COMPLETE
