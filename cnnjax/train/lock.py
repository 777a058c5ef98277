"""One process at a time in a run folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cnnjax.atomic import open_own
from cnnjax.errors import InputError


class InUse(InputError):
    """Another process holds the folder; `holder` is its pid and host."""

    def __init__(self, folder: Path, holder: str):
        super().__init__(f"{folder} must not be in use by another process, and is ({holder})")
        self.holder = holder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder`/lock, which names the process; the system lets go of it when that process ends, however it ends.

    Raises:
        InUse: another process holds it; the message has that one's pid and host.
        InputError: there is a lock that is no file, or a file under another name too.
    """
    import fcntl

    descriptor = open_own(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "one that has just begun"
            raise InUse(folder, holder) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
