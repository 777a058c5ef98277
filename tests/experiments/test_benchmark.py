"""The benchmark's machinery on its smallest work; no clock is asserted."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from experiments.benchmark import ENGINES, SUITES, Options, _row, draw, step_flops
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
    assert set(ENGINES) == set(SUITES["sweep"][1])
    assert set(SUITES) == set(CASES)
    for suite, cases in CASES.items():
        for case in cases:
            assert case.bars and set(case.bars) <= set(SUITES[suite][1]), case.name


@pytest.mark.parametrize("rival", ["training", "python loop", "flax", "sweep", "flax members"])
def test_the_rivals_train(rival):
    work = jax_side.RIVALS[rival](dataclasses.replace(TINY, members=2))
    first = work(1)
    assert work(150) < first


@pytest.mark.parametrize("rival", ["loading", "orbax loading"])
def test_a_checkpoint_is_read_as_it_was_saved(rival, monkeypatch):
    ready, read = jax.block_until_ready, []
    monkeypatch.setattr(jax, "block_until_ready", lambda state: read.append(ready(state)))
    assert math.isnan(jax_side.RIVALS[rival](TINY)(2))
    saved = jax_side.ours(TINY).state(TINY.shape)
    assert len(read) == 2
    for state in read:
        jax.tree.map(np.testing.assert_array_equal, state, saved)


def test_the_stacked_members_of_torch_train():
    pytest.importorskip("torch")
    from experiments.rivals import torch_side

    work = torch_side.RIVALS["torch func"](dataclasses.replace(TINY, members=2))
    first = work(1)
    assert work(50) < first


@pytest.mark.parametrize("rival", ["strongest", "projections", "forward pass"])
def test_looking_into_a_network_works(rival):
    assert math.isnan(jax_side.RIVALS[rival](TINY)(2))  # there is no loss


class Measured:
    """What the benchmark keeps of a process that is done."""

    def __init__(self, name, figure):
        self.name, self.figure, self.times, self.losses, self.diverged = name, figure, [figure], [1.0], False


@pytest.mark.parametrize(("rival", "name", "ratio"), [("torch", "torch", 0.5), ("flax", "flax members", 0.125)])
def test_a_members_share_is_taken_of_works_of_all_members(rival, name, ratio):
    """Ours: 4 ms for 4 members. PyTorch's 2 ms are one training's, Flax's 32 ms all four's."""
    case = dataclasses.replace(TINY, members=4, bars={"torch": math.inf, "flax": 0.3})
    theirs = Measured(name, {"torch": 2.0, "flax members": 32.0}[name])
    row = _row("sweep", case, rival, Measured("sweep", 4.0), Measured("matrix product", 1.0), [theirs])
    assert row["ours_ms"] == 1.0 and row["ratio"] == ratio and row["members"] == 4
    assert row["bar"] == (0.3 if rival == "flax" else None)


def test_a_step_is_three_forward_passes_of_two_operations():
    """Pixels·window·channels of conv1 and conv2, and the two dense layers of 32·8 and 8·10."""
    forward = 64 * 9 * 1 * 4 + 16 * 9 * 4 * 8 + 32 * 8 + 8 * 10
    assert step_flops(TINY) == 3 * 2 * 16 * forward


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": ("steps",)}, "--suite must be among step"),
        ({"rounds": 0}, "--rounds must be"),
        ({"suite": ()}, "--suite must name at least one"),
        ({"suite": ("step",), "figure": "a.png"}, "--figure draws suite sweep"),
        ({"only": "photo finish"}, "--only must be in the name of a case"),
        ({"only": "photos", "figure": "a.png"}, "--figure draws suite sweep"),
        ({"figure": "a.pdf"}, "--figure must end in .png"),
    ],
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


def test_the_figure_of_a_sweep_is_members_an_hour_of_each_engine(tmp_path):
    """Ours takes 4 and 2 ms a step and member, PyTorch 3 ms: 3600 s / (2 ms · 9,380 steps) are 192 members."""
    rows = [
        {"case": f"{count} members, net", "members": count, "against": rival, "ours_ms": ours, "rival_ms": theirs}
        for count, ours in ((1, 4.0), (4, 2.0))
        for rival, theirs in (("torch", 3.0), ("flax", 1.0))
    ]
    draw(tmp_path / "sweep.png", rows, {"cores": 2, "processor": "a processor", "device": "cpu"})
    with np.load(tmp_path / "sweep.npz") as found:
        np.testing.assert_allclose(found["per_hour"][0, 0], [3600 / (4e-3 * 9380), 3600 / (2e-3 * 9380)])
        of = dict(zip(found["engines"], found["per_hour"][0], strict=True))
        np.testing.assert_allclose(of["PyTorch, one after another"], 3600 / (3e-3 * 9380))
        np.testing.assert_allclose(of["Flax under jax.vmap"], 3600 / (1e-3 * 9380))
        assert np.isnan(of["torch.func under vmap"]).all()
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
