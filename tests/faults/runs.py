"""A real run in a process of its own, and all that it leaves behind."""

import concurrent.futures
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnnjax.data import Dataset, load
from cnnjax.models import ConvNet
from cnnjax.train import run as running

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("CNNJAX_FAULT_SEED", "0"))
SHARE = float(os.environ.get("CNNJAX_FAULT_SHARE", "1"))  # of the times that each long fault is tried
# Three epochs of 12 steps with all that is random: dropout, shifts, flips, colours. With --train.save-every-seconds
# tiny the state is saved after every chunk of steps, within epochs too.
OPTIONS = [
    *("--config", "digits", "--model.name", "lenet", "--model.widths", "4", "8", "--model.filters", "3", "3"),
    *("--model.paddings", "1", "1", "--model.dense", "16", "--train.epochs", "3", "--train.keep-epochs", "1", "2", "3"),
    *("--train.batch-size", "128", "--train.save-every-seconds", "1e-6", "--hyper.dropout-rate", "0.2"),
    *("--hyper.flip", "0.5", "--hyper.shift", "1", "--hyper.contrast", "0.2", "--hyper.brightness", "0.1"),
]
SCRIPT = ("experiments.train",)
_COMPILED = tempfile.TemporaryDirectory(prefix="cnnjax-faults-")


def times(number: int) -> int:
    """How often a fault is tried, of the times that the table in docs/faults.md is made with."""
    return max(2, round(number * SHARE))


class Ended(NamedTuple):
    status: int
    error: str  # what it wrote to standard error


class Reference(NamedTuple):
    """The run that nobody disturbed."""

    workdir: Path
    everything: dict[str, bytes]


def begin(workdir: Path, *more: str, script: Sequence[str] = SCRIPT, **popen: Any) -> subprocess.Popen:
    """Starts the script; compiled programs are kept, so that the next process starts quickly."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": _COMPILED.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", *script, *replaced(OPTIONS, more), "--workdir", str(workdir), *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **popen
    )


def replaced(options: Sequence[str], more: Sequence[str]) -> list[str]:
    """The options but for those that `more` gives, each with its values."""
    kept, taken = [], True
    for word in options:
        taken = word not in more if word.startswith("--") else taken
        kept += [word] if taken else []
    return kept


def end(process: subprocess.Popen, within: float = 600) -> Ended:
    try:
        error = process.communicate(timeout=within)[1]
    finally:
        process.kill()
    return Ended(process.returncode, error)


def finish(workdir: Path, *more: str, script: Sequence[str] = SCRIPT) -> Ended:
    """The same command to the end; it must end well."""
    ended = end(begin(workdir, *more, script=script))
    assert ended.status == 0, ended.error
    return ended


def two_at_once(chain: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> list[Any]:
    """`chain` of each half of the items, side by side: one process keeps only one core busy."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(chain, [half for half in (items[::2], items[1::2]) if len(half)]))


def wait_for(what: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns as soon as `what` holds; fails if the process ends before."""
    while not what():
        assert process.poll() is None, "ended before it could be disturbed"
        time.sleep(0.002)


def everything(workdir: Path) -> dict[str, bytes]:
    """Each array of each kept checkpoint, the texts and the figures, as bytes, by name."""
    found = {name: (workdir / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    found |= {f"figures/{path.name}": path.read_bytes() for path in workdir.glob("figures/*")}
    for epoch in running.kept_epochs(workdir):
        for path, leaf in jax.tree_util.tree_leaves_with_path(state(workdir, epoch)):
            found[f"epoch {epoch}: {jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
    return found


def state(workdir: Path, epoch: int) -> Any:
    """The state at the end of an epoch, its digests compared."""
    config = running.read_config(workdir / "config.json")
    return running.load_epoch(workdir, config, *_network_and_data(config), epoch)


_KEPT: dict[Any, tuple[ConvNet, Dataset]] = {}


def _network_and_data(config: Any) -> tuple[ConvNet, Dataset]:
    if config.data not in _KEPT:
        dataset = load(config.data)
        _KEPT[config.data] = running.build(config, dataset), dataset
    return _KEPT[config.data]


def same_end(workdir: Path, reference: Reference) -> None:
    """Every bit as the undisturbed run has it, and nothing left over."""
    found = everything(workdir)
    assert sorted(found) == sorted(reference.everything)
    assert [name for name in found if found[name] != reference.everything[name]] == []
    assert not list((workdir / "checkpoints" / "tmp").iterdir()), "unfinished saves"
    assert not list((workdir / "checkpoints" / "latest").iterdir()), "the last epoch is kept for ever"
    assert not list(workdir.rglob("*.tmp"))


def one_line(ended: Ended) -> str:
    """What a refusal says: one line, exit status 2."""
    assert ended.status == 2, ended
    said = [line for line in ended.error.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in ended.error, ended.error
    return said[0]


def files(workdir: Path) -> Iterator[Path]:
    """Every file of a run that holds something, except the lock."""
    for path in sorted(workdir.rglob("*")):
        if path.is_file() and path.name != "lock" and path.stat().st_size:
            yield path


def digests(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


HOST = socket.gethostname()
