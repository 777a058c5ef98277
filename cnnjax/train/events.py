"""TensorBoard's events, by tensorboardX: neither TensorFlow nor PyTorch is needed to write them.

Where PyTorch is installed the library loads it, which takes seconds: it is imported when there is something to write.
"""

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax.errors import InputError

SPLITS = ("train", "validation", "test")


def check_installed(option: str) -> None:
    """Raises InputError naming the option and the extra where the library is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(f"{option} needs tensorboardX: pip install '.[tensorboard]'")


class Events:
    """A file of events of this process, in a folder that may have those of others before it; its steps are epochs."""

    def __init__(self, folder: Path):
        """Nothing is written before the first call."""
        self._folder = folder
        self._writer: Any = None
        self._last: int | None = None  # epoch that has been written; None: this process has nothing to write

    def go_on_from(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The training stands behind the epochs of these lines of metrics.jsonl; what is told of later ones is void."""
        from tensorboardX.event_file_writer import EventsWriter  # pyright: ignore
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

        if self._writer is None:
            self._folder.mkdir(exist_ok=True)
            is_new = not any(self._folder.iterdir())
            # Not its SummaryWriter, which writes in a thread: where that fails, as on a full disk, the next call waits
            # for it for ever.
            self._writer = EventsWriter(str(self._folder.absolute() / "events"), f".{os.getpid()}")
            if is_new:
                for line in lines:
                    self.write(line)
        self._last = last = lines[-1]["epoch"] if lines else -1
        self._writer.write_event(
            Event(wall_time=time.time(), step=last + 1, session_log=SessionLog(status=SessionLog.START))
        )

    def write(self, line: Mapping[str, Any], speed: Mapping[str, Any] | None = None) -> None:
        """A line of metrics.jsonl, and that of throughput.jsonl."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
        from tensorboardX.summary import scalar  # pyright: ignore

        assert self._writer is not None
        for tag, value in tagged(line, speed or {}).items():
            self._writer.write_event(Event(wall_time=time.time(), step=line["epoch"], summary=scalar(tag, value)))
        self._writer.flush()
        self._last = line["epoch"]

    def end(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The run is finished with these lines; those of later epochs than the last that was trained here come back."""
        for line in lines if self._last is not None else ():
            if line["epoch"] > self._last:
                self.write(line)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def tagged(line: Mapping[str, Any], speed: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of both lines by what TensorBoard calls them: error/train beside error/test."""
    found = {}
    for name, value in line.items():
        split, _, what = name.partition("_")
        if split in SPLITS:
            found[f"{what}/{split}"] = value
    shown = ("images_per_second", "waiting", "peak_share")
    found |= {f"throughput/{name}": speed[name] for name in shown if name in speed}
    return {tag: value for tag, value in found.items() if value is not None}
