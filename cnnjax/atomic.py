"""Files that are never half there: written under a temporary name, brought to the disk, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file to write to; it takes the place of `path` when the block ends well, else nothing is left of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with _named(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file's name into an error that comes without one, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Replaces the file by one with this text."""
    with replacing(path) as file:
        file.write(text.encode())


def append_text(path: Path, text: str) -> None:
    """Adds to the end of the file; where that is cut off, a part of `text` may be there."""
    with _named(path), open(path, "a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Brings a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Brings everything below `folder` to the disk, itself included."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
