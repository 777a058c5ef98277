"""What is written of a training beside its results: throughput.jsonl, and TensorBoard's events where asked for.

No result depends on it, and nothing of the run's own reads it but this.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import processes
from cnnjax.atomic import append_text, read_text, write_text
from cnnjax.train.events import Events
from cnnjax.train.throughput import Meter, Work


class Log:
    """Told by a training of its chunks and its epochs, in all processes alike; the first one writes."""

    def __init__(
        self, workdir: Path, meter: Meter, work: Work | None, events: Events | None, say: Callable[[str], None]
    ):
        """`events` are there in the first process at most."""
        self._path, self._say = workdir / "throughput.jsonl", say
        self._meter, self._work, self._events = meter, work, events
        self._lines: dict[int, str] | None = None  # of the file, by epoch; None: not read yet
        self._is_whole = True  # the file holds these and nothing else, in their order

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def go_on_from(self, step: int, lines: Sequence[str]) -> None:
        """The state is that before `step`, and these are the lines of metrics.jsonl up to there."""
        self._meter.go_on_from(step)
        if self._events is not None:
            self._events.go_on_from([json.loads(line) for line in lines])

    def chunk(self, start: int, stop: int, waited: float, worked: float) -> None:
        """As `Meter.add`."""
        self._meter.add(start, stop, waited, worked)

    def epoch(self, line: str) -> None:
        """An epoch has ended, with this line of metrics.jsonl; epoch 0 is the state before the first step."""
        metrics, speed = json.loads(line), {}
        waiting = float(processes.of_all(np.array([self._meter.waiting], np.float32)).max())
        if metrics["epoch"]:
            speed = self._meter.end_epoch(metrics["epoch"], waiting, self._work)
            if processes.is_first():
                self._put(metrics["epoch"], json.dumps(speed) + "\n")
        if self._events is not None:
            self._events.write(metrics, speed)

    def end(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The run is finished, with these lines of metrics.jsonl."""
        if self._events is not None:
            self._events.end(lines)

    def _put(self, epoch: int, line: str) -> None:
        """An epoch that was trained before has its new line in the place of the old one."""
        if self._lines is None:
            self._lines, self._is_whole = self._read()
        is_next = self._is_whole and epoch > max(self._lines, default=0)
        self._lines[epoch] = line
        if is_next:
            append_text(self._path, line)
        else:
            write_text(self._path, "".join(self._lines[number] for number in sorted(self._lines)))
            self._is_whole = True

    def _read(self) -> tuple[dict[int, str], bool]:
        """The lines that are whole, and whether the file holds nothing else; what else is there is said."""
        if not self._path.exists():
            return {}, True
        lines: dict[int, str] = {}
        torn = 0
        try:
            text = read_text(self._path)
        except (OSError, ValueError):
            text, torn = "", 1
        *whole, last = text.split("\n")  # behind the last newline stands what a killed process had begun, or nothing
        for line in whole:
            try:
                lines[int(json.loads(line)["epoch"])] = line + "\n"
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                torn += 1
        if torn:
            self._say(f"{self._path} is damaged; what cannot be read of it is left out")
        return lines, not torn and not last and "".join(lines[number] for number in sorted(lines)) == text
