"""Waiting for another process: it is said for whom, and no wait is without an end."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

from cnnjax.errors import InputError

POLL_SECONDS = 1.0  # between two looks
SAY_SECONDS = 60.0  # between two lines that say for whom this process waits
PATIENCE_SECONDS = 3600.0


class Watch:
    """Looks again and again, until the other process has shown no sign of life for `patience` seconds."""

    def __init__(self, patience: float, say: Callable[[str], None]):
        self.patience, self.say = patience, say
        self._seen: int | None = None
        self._changed = time.monotonic()  # when the last sign of life was seen, by this machine's clock
        self._said = -math.inf

    def wait(self, whom: str, *folders: Path) -> None:
        """Sleeps until the next look.

        Args:
            whom: what is waited for, and who is at it.
            folders: where the other process writes.

        Raises:
            InputError: no file there has changed for too long.
        """
        now, seen = time.monotonic(), max(map(_last_change, folders))
        if seen != self._seen:
            self._seen, self._changed = seen, now
        quiet = now - self._changed
        if quiet > self.patience:
            raise InputError(
                f"{whom} must go on, and no file there has changed for {quiet / 60:.1f} minutes; wake or end that "
                "process, and the same command goes on"
            )
        if now - self._said >= SAY_SECONDS:
            self.say(f"waits for {whom}; the last change there was seen {quiet:.0f} s ago")
            self._said = now
        time.sleep(min(POLL_SECONDS, self.patience))


def held_since(folder: Path) -> str:
    """When the lock of `folder` was taken."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((folder / "lock").stat().st_mtime))
    except OSError:
        return "some time"


def _last_change(folder: Path) -> int:
    newest = 0
    with contextlib.suppress(OSError):  # deleted since
        for path in (folder, *folder.rglob("*")):
            newest = max(newest, path.lstat().st_mtime_ns)
    return newest
