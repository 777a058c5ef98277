"""The benchmark's machinery on its smallest work; no clock is asserted."""

import dataclasses
import json
import subprocess
import sys

import pytest

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from experiments.benchmark import SUITES, Options, step_flops
from experiments.rivals import jax_side
from experiments.rivals.cases import CASES, Case

TINY = Case(
    "tiny",
    (8, 8, 1),
    16,
    {},
    ModelConfig("lenet", widths=(4, 8), filters=(3, 3), paddings=(1, 1), dense=(8,)),
    images=64,
)


def test_every_suite_has_cases_with_bars_for_its_rivals():
    assert set(SUITES) == set(CASES)
    for suite, cases in CASES.items():
        for case in cases:
            assert case.bars and set(case.bars) <= set(SUITES[suite][1]), case.name


@pytest.mark.parametrize("rival", ["training", "python loop", "flax"])
def test_the_rivals_train(rival):
    work = jax_side.RIVALS[rival](dataclasses.replace(TINY))
    first = work(1)
    assert work(150) < first


def test_a_step_is_three_forward_passes_of_two_operations():
    """Pixels·window·channels of conv1 and conv2, and the two dense layers of 32·8 and 8·10."""
    forward = 64 * 9 * 1 * 4 + 16 * 9 * 4 * 8 + 32 * 8 + 8 * 10
    assert step_flops(TINY) == 3 * 2 * 16 * forward


@pytest.mark.parametrize(
    ("options", "message"), [({"suite": ("steps",)}, "--suite must be among step"), ({"rounds": 0}, "--rounds must be")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Options(**options)


def test_rows_are_kept_with_what_they_were_measured_on(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmark", "--suite", "memory", "--only", "LeNet", "--rounds", "1"]
    subprocess.run([*command, "--json", str(tmp_path / "rows.json")], check=True, capture_output=True)
    found = json.loads((tmp_path / "rows.json").read_text())
    (row,) = found["rows"]
    assert {"suite", "case", "ours_ms", "rival", "rival_ms", "ratio", "bar"} <= set(row)
    assert row["ratio"] == row["ours_ms"] / row["rival_ms"] and row["bar"] == 1.0
    assert found["machine"]["cores"] and found["machine"]["versions"]["jax"]
