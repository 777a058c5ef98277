"""Bits flipped in the folder of a sweep: never another table, figure or winner than those of the undamaged one."""

import csv
import shutil

import jax
import numpy as np
import pytest

from cnnjax import cli
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run as running
from experiments import sweep
from tests.faults import runs
from tests.faults.counts import count
from tests.faults.test_damage import flip
from tests.sweep import sweeps

LONG = pytest.mark.faults
# Six members in chunks of two, of whom three go on after the second epoch; dropout and shifts are drawn.
WORDS = [
    *("--config", "digits", *sweeps.MLP, "--train.epochs", "3"),
    *("--train.keep-epochs", "1", "--train.batch-size", "256", "--hyper.dropout-rate", "0.2", "--hyper.shift", "1"),
    *("--sweep.learning-rate", "0.3,0.01,0.1", "--sweep.momentum", "0.9,0.5", "--chunk", "2", "--halve-at", "2"),
]


class Said:
    """What a script says, as `cli.Progress`."""

    def __init__(self):
        self.lines = []

    def __call__(self, description, done, total):
        pass

    def say(self, text):
        self.lines.append(str(text))


def command(folder):
    """The sweep with its best member, in this process; what it said."""
    axes, rest = sweep.take_axes([*WORDS, "--workdir", str(folder / "sweep"), "--best", str(folder / "best")])
    said = Said()
    sweep.main(cli.parse(rest, sweep.Options())._replace(taken=axes), said)
    return said.lines


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with sweeps.programs_shared():
        yield


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    command(folder)
    return folder, outcome(folder)


def outcome(folder):
    """The tables without the seconds, every number behind a figure, and the best member's lines and weights."""
    with open(folder / "sweep" / "members.csv") as file:
        found = {"members.csv": [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]}
    found["curves.csv"] = (folder / "sweep" / "curves.csv").read_text()
    for path in sorted((folder / "sweep" / "figures").glob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.name} {name}": arrays[name].tobytes() for name in arrays.files}
    config = running.read_config(folder / "best" / "config.json")
    best = running.run(config, load(config.data), folder / "best")
    weights = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(best.states)]
    return found | {"best": (config, best.metrics, weights)}


@pytest.mark.parametrize("number", [pytest.param(runs.times(80), marks=LONG)])
def test_a_flipped_bit_in_a_sweeps_folder_changes_no_result(undamaged, tmp_path, number):
    """One file after another, in an order of the seed; what is found damaged is said."""
    before, expected = undamaged
    generator = np.random.default_rng((runs.SEED, 5))
    places = [path.relative_to(before) for path in runs.files(before / "sweep") if "figures" not in path.parts]
    order = generator.permutation(len(places))
    for turn in range(number):
        folder = tmp_path / str(turn)
        shutil.copytree(before, folder)
        path = folder / places[order[turn % len(order)]]
        shutil.rmtree(folder / "sweep" / "figures")
        flip(path, int(generator.integers(8 * path.stat().st_size)))
        try:
            said = command(folder)
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)
            outcome_of = "refused"
        else:
            assert outcome(folder) == expected, path
            told = path.suffix == ".csv" or any(str(path) in line for line in said)
            assert told or path.suffix == ".json", (path, said)  # 1e-06 and 1E-06 are one number
            outcome_of = "mended" if told else "harmless"
        count("a bit flipped in a sweep's folder", outcome_of)
        shutil.rmtree(folder)
