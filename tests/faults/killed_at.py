"""`python -m tests.faults.killed_at K LOG SCRIPT ARGUMENTS…`: runs the script and kills it before a file operation.

It dies by SIGKILL just before the K-th operation that changes something below its --workdir, or brings it to the disk;
K = 0: never. LOG gets a line an operation.
"""

import itertools
import os
import re
import runpy
import signal
import sys
from pathlib import Path

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}  # replace: rename
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    at, log, script, *arguments = sys.argv[1:]
    folder = f"{Path(arguments[arguments.index('--workdir') + 1]).absolute()}/"
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    numbers = itertools.count(1)

    def operation(what: str, path: str) -> None:
        if f"{path}/".startswith(folder):
            number = next(numbers)
            os.write(lines, f"{what} {place(path.removeprefix(folder))}\n".encode())
            if number == int(at):
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, values: tuple) -> None:
        if event == "open" and isinstance(values[0], str | bytes) and values[2] & WRITING:
            operation(event, os.path.abspath(os.fsdecode(values[0])))
        elif event in CHANGES:
            inside = [value for value in values[1:] if isinstance(value, int) and value >= 0]  # a folder's descriptor
            operation(event, named(values[0], inside if event in ("os.remove", "os.rmdir") else []))

    def fsync(descriptor: int) -> None:
        operation("os.fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    real, os.fsync = os.fsync, fsync
    sys.addaudithook(hook)
    sys.argv = [script, *arguments]
    runpy.run_module(script, run_name="__main__", alter_sys=True)


def named(path: int | str | bytes | os.PathLike, inside: list[int]) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    base = os.readlink(f"/proc/self/fd/{inside[0]}") if inside else os.getcwd()
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))


def place(path: str) -> str:
    """The path without what differs from checkpoint to checkpoint."""
    return re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{32}", "HASH", path))


if __name__ == "__main__":
    main()
