"""Two processes that train together, on one machine: one run, that either can end and any number go on with."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from cnnjax import processes
from cnnjax.errors import InputError
from cnnjax.train import run

COMMAND = [sys.executable, "-m", "experiments.train", "--config", "digits", "--model.name", "mlp", "--model.dense", "8"]
COMMAND += ["--train.keep-epochs", "1", "--hyper.filter-rms", "inf", "--data.validation-fraction", "0.2"]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def started(workdir, count, *more, of_each=lambda index: ()):
    """`count` processes of one training."""
    settings = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    together = ("--distributed", "--coordinator", f"localhost:{free_port()}", "--num-processes", str(count))
    made = []
    for index in range(count):
        words = [*COMMAND, "--workdir", str(workdir), *more, *of_each(index)]
        words += [*together, "--process-id", str(index)] if count > 1 else []
        made.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=settings))
    return made


def ended(processes):
    """Status and messages of each."""
    said = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def lines(workdir):
    return run.read_metrics(workdir)


def close(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def wait_for(path):
    limit = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert ended(started(workdir, 1, "--train.epochs", "3"))[0][0] == 0
    return lines(workdir)


def test_two_are_one_and_say_what_one_says(alone, tmp_path):
    both = started(tmp_path / "run", 2, "--train.epochs", "3", "--peak-teraflops", "0.05")
    (first, told), (second, other) = ended(both)
    assert first == second == 0
    close(lines(tmp_path / "run"), alone)
    assert all("validation_error" in line for line in alone)
    assert "test error" in told and "test error" not in other
    speeds = [json.loads(line) for line in (tmp_path / "run" / "throughput.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in speeds] == [1, 2, 3]  # once, and not by each
    assert all(line["peak_teraflops"] == 0.1 and line["peak_share"] > 0 for line in speeds)  # of two devices


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_either_ends_both_at_one_step_and_one_process_goes_on(tmp_path, asked):
    workdir = tmp_path / "run"
    both = started(workdir, 2, "--train.epochs", "400")
    wait_for(workdir / "checkpoints" / "epochs" / "1" / "manifest.json")
    both[asked].send_signal(signal.SIGTERM)
    assert [status for status, _ in ended(both)] == [143, 143]
    (step,) = [int(path.name) for path in (workdir / "checkpoints" / "latest").iterdir()]
    before = lines(workdir)
    assert before[-1]["epoch"] == step // 9  # of an epoch
    # Another number of processes goes on from there.
    one = started(workdir, 1, "--train.epochs", "400")
    limit = time.monotonic() + 120
    while len(lines(workdir)) <= len(before) and time.monotonic() < limit:
        time.sleep(0.05)
    one[0].send_signal(signal.SIGTERM)
    assert ended(one)[0][0] == 143
    assert lines(workdir)[: len(before)] == before and len(lines(workdir)) > len(before)


def test_other_configs_are_refused_by_all_and_nothing_is_written(tmp_path):
    both = started(tmp_path / "run", 2, of_each=lambda index: ("--train.epochs", str(2 + index)))
    for status, text in ended(both):
        assert status == 2
        assert "error: all processes must have the same config, and process 1 has another than 0" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
def test_who_is_killed_ends_the_other_within_a_minute(tmp_path):
    workdir = tmp_path / "run"
    both = started(workdir, 2, "--train.epochs", "10000")
    wait_for(workdir / "checkpoints" / "epochs" / "1" / "manifest.json")
    both[1].kill()
    killed = time.monotonic()
    status, text = ended(both)[0]
    assert time.monotonic() - killed < 60 and status != 0
    assert "error: the processes no longer reach each other" in text
    assert re.search(r"\btask[: ]1\b|heartbeats\):\n1\n", text, re.IGNORECASE)  # JAX names it, in one of its ways


def test_a_coordinator_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_TO_MEET", 1)
    address = f"localhost:{free_port()}"
    told = processes.Together(distributed=True, coordinator=address, num_processes=2, process_id=1)
    rule = rf"--coordinator {address} must answer within 1 s: .*refused"
    with pytest.raises(InputError, match=rule), processes.joined(told):
        pass
