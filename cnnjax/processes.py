"""Several processes that train together: how they find each other, and how they agree.

The first one alone reads and writes the run folder; what it finds there, and what is wrong with it, it tells the
others. Where there is one process nothing is sent.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from cnnjax.errors import InputError

SECONDS_TO_MEET = 60
SECONDS_TO_PART = 20
SECONDS_OF_SILENCE = 30  # after which a process is taken for dead


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Together:
    """The processes of a training: as JAX finds them (SLURM, Open MPI, TPU, Kubernetes), or as they are named."""

    distributed: bool = _option(False, "several processes train together, each started with the same command")
    coordinator: str | None = _option(None, "HOST:PORT of the first process; None: as the cluster says")
    num_processes: int | None = _option(None, "how many train together; None: as the cluster says")
    process_id: int | None = _option(None, "which of them this one is, from 0; None: as the cluster says")

    def __post_init__(self):
        named = {"coordinator": self.coordinator, "num_processes": self.num_processes, "process_id": self.process_id}
        given = {f"--{name.replace('_', '-')}": value for name, value in named.items() if value is not None}
        if not self.distributed:
            if given:
                raise InputError(f"{next(iter(given))} goes with --distributed")
            return
        if given and len(given) < len(named):
            missing = next(name for name, value in named.items() if value is None).replace("_", "-")
            raise InputError(f"--{missing} must be given with {', '.join(given)}")
        if self.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", self.coordinator):
            raise InputError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(f"--num-processes must be at least 1, got {self.num_processes}")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or 0):
            raise InputError(f"--process-id must be from 0 to {(self.num_processes or 1) - 1}, got {self.process_id}")


@contextlib.contextmanager
def joined(together: Together) -> Iterator[None]:
    """Within the block JAX's devices are those of all processes.

    Raises:
        InputError: no cluster is found, or the processes do not meet within a minute.
    """
    if not together.distributed:
        yield
        return
    if together.coordinator is not None and together.process_id != 0:
        _await(together.coordinator)  # JAX, which finds none, ends the process without a word of where it looked
    # On CPUs two programs that run at once would mix up what they send.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            together.coordinator,
            together.num_processes,
            together.process_id,
            initialization_timeout=SECONDS_TO_MEET,
            heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "--distributed must be within SLURM, Open MPI, a TPU or Kubernetes, where all processes meet within "
            f"{SECONDS_TO_MEET} s, or be told --coordinator, --num-processes and --process-id: {error}"
        ) from None
    yield
    jax.distributed.shutdown()  # waits for all; where one has failed the others are not waited for


def _await(coordinator: str) -> None:
    """Returns when somebody listens there; raises InputError where nobody does."""
    host, _, port = coordinator.rpartition(":")
    limit = time.monotonic() + SECONDS_TO_MEET
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > limit:
                rule = f"must answer within {SECONDS_TO_MEET} s"
                raise InputError(f"--coordinator {coordinator} {rule}: {error}") from None
            time.sleep(0.5)


def part() -> None:
    """Of several processes that end for a signal: returns when all have come here, or after some seconds.

    The first one, which the others are connected to, must not be gone while they are still at work: JAX ends them.
    """
    if jax.process_count() > 1:
        parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        parting.start()
        parting.join(SECONDS_TO_PART)


def leave(status: int) -> NoReturn:
    """Ends this process for an error. Of several it waits for no other: these notice by themselves."""
    if jax.process_count() == 1:
        raise SystemExit(status)
    sys.stderr.flush()
    os._exit(status)


def end_with_others(error: Exception) -> None:
    """Of several processes: where others are gone, says so and waits until JAX, which then ends this one, names them.

    Any other error that is none of the user's ends this process at once, with its traceback: at the usual end it would
    wait for the others.
    """
    if jax.process_count() == 1 or isinstance(error, InputError):
        return
    if not re.search("gloo|nccl|unavailable|coordination|heartbeat|connection", str(error), re.IGNORECASE):
        traceback.print_exception(error)
        leave(1)
    sys.stderr.write(f"error: the processes no longer reach each other: {' '.join(str(error).split())[:300]}\n")
    sys.stderr.flush()
    time.sleep(SECONDS_OF_SILENCE + 15)
    leave(2)


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run folder."""
    return jax.process_count() == 1 or jax.process_index() == 0


def by_first(function: Callable[[], Any]) -> Any:
    """What `function` returns in the first process, in all; its InputError is raised in all. JSON must hold it."""
    if jax.process_count() == 1:
        return function()
    told = ""
    if is_first():
        try:
            told = json.dumps({"value": function()})
        except InputError as error:
            told = json.dumps({"error": str(error)})
    answer = json.loads(_sent(told))
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


def _sent(text: str) -> str:
    """The first process's text, in all."""
    from jax.experimental import multihost_utils

    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = content if is_first() else np.zeros(length, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)).decode()


def arrays_of_first(tree: Any, like: Any) -> Any:
    """The first process's pytree of arrays, in all, as NumPy arrays; elsewhere `like` has their shapes and types."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    mine = tree if is_first() else jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, mine))


def of_all(values: np.ndarray) -> np.ndarray:
    """The small arrays of all processes, one below the other."""
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def check_alike(what: Mapping[str, str]) -> None:
    """Raises InputError, in all processes, naming the first of these texts that is not the same in all."""
    digests = [list(hashlib.sha256(text.encode()).digest()) for text in what.values()]
    everyone = of_all(np.array(digests, np.uint8))  # [processes, texts, 32]
    for index, name in enumerate(what):
        for other in range(1, len(everyone)):
            if not np.array_equal(everyone[other, index], everyone[0, index]):
                raise InputError(f"all processes must have the same {name}, and process {other} has another than 0")
