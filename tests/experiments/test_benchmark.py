"""The benchmark's machinery on its smallest work; no clock is asserted."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cnnjax import cli, ops
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from experiments import benchmark
from experiments.benchmark import ENGINES, GPU_SUITES, SUITES, Options, _row, draw, step_flops
from experiments.rivals import jax_side, member_forms
from experiments.rivals.cases import CASES, GPU_CASES, Case, rehearsal
from tests.cases import some

ROOT = Path(__file__).parent.parent.parent
TINY = Case(
    "tiny",
    (8, 8, 1),
    16,
    {},
    ModelConfig("lenet", widths=(4, 8), filters=(3, 3), paddings=(1, 1), dense=(8,)),
    images=64,
)


def test_every_suite_has_cases_with_bars_for_its_rivals():
    assert set(ENGINES) == set(SUITES["sweep"][1]) | set(GPU_SUITES["sweep"][1])
    assert set(SUITES) == set(CASES) and set(GPU_SUITES) == set(GPU_CASES)
    for suites, every in ((SUITES, CASES), (GPU_SUITES, GPU_CASES)):
        for suite, cases in every.items():
            assert len({case.name for case in cases}) == len(cases), suite
            for case in cases:
                assert case.bars and set(case.bars) <= set(suites[suite][1]), case.name


@pytest.mark.parametrize("rival", some(["training", "python loop", "flax", "sweep", "flax members"], "python loop"))
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


@pytest.mark.extra
def test_the_stacked_members_of_torch_train():
    pytest.importorskip("torch")
    from experiments.rivals import torch_side

    work = torch_side.RIVALS["torch func"](dataclasses.replace(TINY, members=2))
    first = work(1)
    assert work(50) < first


@pytest.mark.parametrize("rival", some(["strongest", "projections", "forward pass"], "projections"))
def test_looking_into_a_network_works(rival):
    assert math.isnan(jax_side.RIVALS[rival](TINY)(2))  # there is no loss


def test_the_growth_of_a_process_is_what_its_work_holds_at_most():
    """64 MB for a moment beside 32 MB that stay, and the 80 MB of before that are free again do not count."""
    code = """
from experiments.rivals.resident import growth
first, kept = [bytes(1000) for _ in range(80_000)], []
del first

def build():
    kept.append(b"1" * 32_000_000)
    return lambda count: float(len(b"2" * 64_000_000))

print(growth(build)(1))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert 90 < float(found) < 110


def test_a_case_may_have_a_work_of_its_own():
    case = dataclasses.replace(TINY, work="inference", bars={}, device="gpu")
    (ours,) = benchmark.start("networks", case, {}, "training", False)
    ours.close()
    assert ours.name == "inference"
    assert math.isnan(jax_side.RIVALS["inference"](TINY)(2))  # there is no loss


@pytest.mark.extra
@pytest.mark.parametrize("case", [case for case in CASES["networks"] if case.work == "training"], ids=lambda c: c.name)
def test_the_known_networks_of_both_sides_have_as_many_weights(case):
    pytest.importorskip("torchvision")
    from experiments.rivals import torch_side

    ours = jax.eval_shape(case.network().init, jax.random.key(0), np.zeros((1, *case.shape), np.float32))["params"]
    theirs = torch_side._network(case).parameters()
    assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == sum(weight.numel() for weight in theirs)


@pytest.mark.long
@pytest.mark.parametrize(
    ("suite", "rival"),
    [("loop", "known length"), ("step", "training"), ("step", "flax"), ("peaks", "matrix rate"), ("bandwidth", "copy")]
    + [("pool", rival) for rival in ("max_pool", "reduce_window", "compared", "searched twice")]
    + [("conv", "conv"), ("conv", "lax")]
    + [
        pytest.param(suite, f"torch {rival}", marks=pytest.mark.extra)
        for suite, rival in (
            *(("step", "graph"), ("sweep", "func"), ("peaks", "matrix rate"), ("bandwidth", "copy")),
            *(("pool", "pool"), ("conv", "conv channels-last")),
        )
    ],
)
def test_a_gpus_rivals_work_at_a_small_size(suite, rival):
    """In the last precision of the suite: bfloat16 wherever there is one. `--rehearse` runs them all."""
    if rival.startswith("torch"):
        pytest.importorskip("torch")
        from experiments.rivals.torch_side import RIVALS
    else:
        RIVALS = jax_side.RIVALS
    case = min(rehearsal()[suite], key=lambda case: case.precision)
    assert math.isfinite(RIVALS[rival](case)(2)) == (suite in ("step", "sweep", "loop"))


@pytest.mark.long
def test_the_forms_of_the_members_train_alike():
    """The same weights and batches: the same loss up to rounding, one after another or as one matrix product."""
    case = dataclasses.replace(TINY, members=2)
    losses = [jax_side.RIVALS[f"members {form}"](case)(5) for form in ("mapped", "folded slices")]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.parametrize("form", some([form for form, rule in member_forms.FORMS.items() if rule]))
def test_every_form_of_a_members_convolution_has_its_values(form):
    """All three faces of a convolution with stride, uneven padding and dilation, against one member at a time."""
    keys = jax.random.split(jax.random.key(0), 3)
    images, kernel = jax.random.normal(keys[0], (3, 2, 7, 8, 2)), jax.random.normal(keys[1], (3, 3, 2, 2, 4))

    def conv(images, kernel):
        return ops.conv(images, kernel, strides=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2))

    def faces(images, kernel, outputs):
        out, back = jax.vjp(conv, images, kernel)
        return out, back(outputs)

    outputs = jax.random.normal(keys[2], (3, *conv(images[0], kernel[0]).shape))
    with member_forms.chosen(form):
        together = jax.vmap(faces)(images, kernel, outputs)
    alone = [faces(*(operand[member] for operand in (images, kernel, outputs))) for member in range(3)]
    for found, *each in zip(jax.tree.leaves(together), *map(jax.tree.leaves, alone), strict=True):
        np.testing.assert_allclose(found, np.stack(each), rtol=1e-4, atol=1e-4)


def test_a_form_with_another_loss_is_void():
    forms = [Measured(f"members {form}", 1.0) for form in ("mapped", "grouped", "folded")]
    for form, loss in zip(forms, (2.30, 2.31, 2.1), strict=True):
        form.first_loss = loss
    benchmark._compare_forms(forms)
    assert [form.failure is None for form in forms] == [True, True, False]


def test_the_most_important_cases_come_first_and_time_is_kept(monkeypatch, tmp_path):
    """Of a work of three cases of 10 s each, a budget of 25 s leaves the last one out."""
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(benchmark, "start", lambda *_: [])
    monkeypatch.setattr(benchmark, "measure", lambda *_: None)
    monkeypatch.setattr(benchmark, "rows_of", lambda *_: [])
    monkeypatch.setattr(benchmark, "device_there", lambda: "gpu")
    options = Options(suite=("sweep", "pool", "step"), seconds=100, json=str(tmp_path / "rows.json"))
    turns = [case.turn for _, case in options.work()]
    assert turns == sorted(turns) and options.work()[0][0] == "step"
    about = {"device": "card", "driver": "1", "versions": {}}
    _, left_out = benchmark.measure_all(options, Quiet(), about)
    assert 0 < len(left_out) < len(turns) and json.loads((tmp_path / "rows.json").read_text())["left_out"] == left_out


class Quiet:
    def over(self, _, work):
        return work


class Measured:
    """What the benchmark keeps of a process that is done."""

    def __init__(self, name, figure):
        self.name, self.figure, self.times, self.losses, self.diverged = name, figure, [figure], [1.0], False
        self.first_loss, self.failure = None, None


@pytest.mark.parametrize(("rival", "name", "ratio"), [("torch", "torch", 0.5), ("flax", "flax members", 0.125)])
def test_a_members_share_is_taken_of_works_of_all_members(rival, name, ratio):
    """Ours: 4 ms for 4 members. PyTorch's 2 ms are one training's, Flax's 32 ms all four's."""
    case = dataclasses.replace(TINY, members=4, bars={"torch": math.inf, "flax": 0.3})
    theirs = Measured(name, {"torch": 2.0, "flax members": 32.0}[name])
    row = _row("sweep", case, rival, Measured("sweep", 4.0), 100.0, [theirs])
    assert row["ours_ms"] == 1.0 and row["ratio"] == ratio and row["members"] == 4
    assert row["bar"] == (0.3 if rival == "flax" else None)


def test_of_memory_the_answers_are_compared():
    ours, theirs = Measured("step memory", 1.0), Measured("flax memory", 1.0)
    ours.losses, theirs.losses = [30.0], [60.0]
    row = _row("memory", dataclasses.replace(TINY, bars={"flax": 1.0}), "flax", ours, None, [theirs])
    assert row["ours_ms"] == 30.0 and row["ratio"] == 0.5


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
        ({"seconds": 0.0}, "--seconds must be positive"),
        ({"rehearse": True, "device": "gpu"}, "--rehearse must be on a CPU"),
        ({"rehearse": True, "suite": ("startup",)}, "--suite must be among peaks"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Options(**options)


@pytest.mark.long
def test_rows_are_kept_with_what_they_were_measured_on_and_a_rival_that_fails_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(GPU_SUITES, "pool", ("max_pool", {"reduce_window": ("no such rival",)}))
    files = {name: str(tmp_path / name) for name in ("json", "markdown")}
    with cli.Progress() as progress:
        benchmark.main(Options(rehearse=True, suite=("pool",), only="bfloat16", rounds=1, **files), progress)
    found = json.loads((tmp_path / "json").read_text())
    (row,) = found["rows"]
    assert row["ours_ms"] > 0 and row["rival_ms"] is row["ratio"] is None and row["precision"] == "bfloat16"
    assert row["failed"] == {"no such rival": "status 1: KeyError: 'no such rival'"}
    assert row["device"] == "cpu" and row["versions"]["jax"] == found["machine"]["versions"]["jax"]
    assert found["machine"]["cores"] and found["left_out"] == []
    assert "no such rival failed: status 1" in (tmp_path / "markdown").read_text()


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
        assert "torch.func under vmap" not in of
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


@pytest.mark.parametrize("rival", ["packed files", "packed pixels", "bare decoder"])
def test_the_rivals_of_the_input_work_at_a_small_size(rival):
    case = dataclasses.replace(CASES["input"][0], shape=(32, 32, 3), images=4, batch=2)
    assert math.isnan(jax_side.RIVALS[rival](case)(3))
