"""What scaling computes: closed forms, and the page that keeps it."""

from pathlib import Path

import numpy as np
import pytest

from cnnjax.errors import InputError
from experiments import scaling
from experiments.scaling import MACHINES, Options, Work
from tests.experiments.test_filter_evolution import Quiet

ROOT = Path(__file__).parent.parent.parent
MACHINE = MACHINES["h100"]._replace(teraflops=1.0, share=0.5, host=4, link=10.0, network=1.0, delay=1.0, images=100.0)
WORK = Work(operations=1e9, gradient_bytes=10**8)


@pytest.fixture(scope="module")
def works():
    return {name: scaling.work_of(name) for name in scaling.NETWORKS}


def test_the_work_of_resnet50_is_the_known_one(works):
    assert works["resnet50"].gradient_bytes == 4 * 25_557_032
    assert works["resnet50"].operations == pytest.approx(6 * 4.089e9, rel=1e-3)


@pytest.mark.parametrize(("devices", "link"), [(1, 10.0), (4, 10.0), (8, 1.0)])
def test_a_step_is_its_closed_form(devices, link):
    """The slowest link of the ring counts, and hosts have four devices."""
    one = scaling.step(WORK, MACHINE, devices, 8 * devices)
    assert one.operations == pytest.approx(8 * 1e9 / 0.5e12)
    assert one.gradients == pytest.approx(2 * (devices - 1) * (1e8 / devices / (link * 1e9) + 1e-6))
    assert one.images == pytest.approx(8 / 100)
    assert one.seconds == max(one.images, one.operations + one.gradients)


def test_devices_pay_as_long_as_each_does_half_of_one_alone():
    steps = [scaling.step(WORK, MACHINE._replace(images=1e9), n, n) for n in scaling.DEVICES]
    alone = steps[0].seconds
    last = scaling.last_that_pays(steps)
    assert last == max(n for n, one in zip(scaling.DEVICES, steps, strict=True) if alone / one.seconds >= 0.5)
    assert steps[-1].limit == "gradients" and steps[0].limit == "operations"


def test_published_runs_that_the_model_was_not_fitted_to():
    ratios = {row[:2]: float(row[5]) for row in scaling.published_rows()}
    assert 0.8 < ratios["tpu-v3", "512"] < 1.25


def test_the_page_is_what_the_script_writes(tmp_path):
    scaling.main(Options(out=tmp_path), Quiet())
    assert (ROOT / "docs" / "scaling.md").read_text() == (tmp_path / "scaling.md").read_text()
    with np.load(tmp_path / "scaling.npz") as kept:
        assert kept["hours"].shape == (2, len(scaling.DEVICES)) and (kept["hours"] > kept["perfect"] * 0.999).all()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"machine": "abacus"}, "--machine must be one of v100, h100"),
        ({"link": 0.0}, "--link must be a finite number > 0, got 0.0"),
        ({"share": 1.5}, "--share must be at most 1, got 1.5"),
        ({"batch": 64, "most_batch": 32}, "--batch must be from 1 to --most-batch"),
    ],
)
def test_bad_numbers_are_refused(told, message):
    with pytest.raises(InputError, match=message):
        Options(**told)
