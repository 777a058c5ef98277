"""A rival's process as the benchmark holds it: told to work, timed, and its failure kept as a fact like a time."""

import contextlib
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from experiments.rivals.cases import Case

ROUND_SECONDS = {"cpu": 0.4, "gpu": 0.2}
LONGEST_ANSWER = {"cpu": 600.0, "gpu": 75.0}  # seconds; compilation is in the first
MAY_GROW = 1.5  # the loss of one batch varies; beyond this share of the first one the training has diverged


class Rival:
    """A process that does the work of one case when told to; once it has failed it is told nothing more.

    Attributes:
        failure: why there are no times, or None.
        first_loss: after two repetitions.
    """

    def __init__(self, rival: str, suite: str, case: Case, rehearse: bool = False):
        self.name, self.device = rival, case.device
        self.command = [sys.executable, "-m", "experiments.rivals", rival, suite, case.name]
        self.command += [case.device, "rehearsal" if rehearse else "whole"]
        self.repetitions, self.times, self.losses = 1, [], []
        self.first_loss: float | None = None
        self.failure: str | None = None
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        pipe = subprocess.PIPE
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        settings = os.environ | ({"JAX_PLATFORMS": "cpu"} if self.device == "cpu" else {})
        # The rivals share the card: none takes its memory before it needs it.
        settings.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        settings.setdefault("JAX_TRACEBACK_FILTERING", "off")  # else the last line is not the error
        return subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=settings)

    def ask(self, repetitions: int) -> None:
        """Lets it work; the answer is read later."""
        if self.failure is None:
            with contextlib.suppress(OSError):  # it is gone, and `answer` will say why
                assert self.process.stdin
                self.process.stdin.write(f"{repetitions}\n")
                self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Seconds and loss, or None and a `failure`."""
        if self.failure is not None:
            return None
        longest = LONGEST_ANSWER[self.device]
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], longest)[0]:
            self.process.kill()
            self.failure = f"no answer in {longest:.0f} s"
            return None
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.failure = f"status {self.process.wait()}: {self._last_words()}"
        return None

    def _last_words(self) -> str:
        """The last error in its messages, or their last line."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").splitlines() or ["no message"]
        named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
        return (named or lines)[-1].strip()[:300]

    def work(self, repetitions: int) -> dict[str, Any] | None:
        self.ask(repetitions)
        return self.answer()

    def settle(self) -> None:
        """How often the work fits into a round."""
        if answer := self.work(2):
            seconds = answer["seconds"] / 2
            self.repetitions = max(1, min(10_000, round(ROUND_SECONDS[self.device] / max(seconds, 1e-6))))

    def measure(self) -> None:
        self.work(1)  # while others were at work the system has taken what it could of this one's memory
        if answer := self.work(self.repetitions):
            self.times.append(1e3 * answer["seconds"] / self.repetitions)
            self.losses.append(answer["loss"])

    def start_anew(self) -> None:
        """Measures a whole process, up to the end of its first step."""
        self.close()
        started = time.perf_counter()
        self.process = self._start()
        if answer := self.work(1):
            self.losses.append(answer["loss"])
            self.times.append(1e3 * (time.perf_counter() - started))

    def close(self) -> None:
        """Ends it; one that does not end by itself is killed, and on a GPU, where ending takes a second, each one."""
        if self.device == "gpu":
            self.process.kill()
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.errors.close()

    @property
    def figure(self) -> float:
        """The median, in ms; infinite where there is none."""
        return statistics.median(self.times) if self.failure is None else float("inf")

    @property
    def diverged(self) -> bool:
        """A loss that was a number is none any more, or has grown."""
        last = self.losses[-1] if self.losses else None
        return self.first_loss is not None and (last is None or last > MAY_GROW * self.first_loss)


def warm_up(rivals: list[Rival]) -> None:
    """Compiles, one after another, then settles how often each one's work fits into a round.

    On a GPU compilers choose algorithms by their times, which a card that does other work falsifies.
    """
    for rival in rivals:
        if answer := rival.work(2):
            rival.first_loss = answer["loss"]
    for rival in rivals:
        rival.settle()
