"""Files that are never half there: written under a temporary name, brought to the disk, then renamed.

And never elsewhere than where their name says: a folder may come from others, with links in it that lead out of it.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnjax.errors import InputError

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_DEEPEST = 32


def check_tree(folder: Path) -> None:
    """Refuses a folder in which anything, at any depth, is neither a file nor a folder; `folder` may be a link itself.

    A link would lead what is read or written there elsewhere; a pipe or a device would be waited for, for ever.

    Raises:
        InputError: it names the first such entry, or one that lies deeper than any of ours.
    """
    folders = [(Path(folder), 0)]
    while folders:
        place, depth = folders.pop()
        if depth > _DEEPEST:
            raise InputError(f"{folder} must be at most {_DEEPEST} folders deep, and {place.name} in it is deeper")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:  # may be leaving
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append((Path(entry.path), depth + 1))
                elif not entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        _check_kind(Path(entry.path), os.lstat(entry.path).st_mode)


def _check_kind(path: Path, mode: int) -> None:
    if (kind := _KINDS.get(stat.S_IFMT(mode))) is not None:
        raise InputError(
            f"{path} must be a file or a folder, and is {kind}: put there what it stands for, or delete it"
        )


def open_own(path: str | Path, flags: int) -> int:
    """`os.open` of a file that stands under this name and, where it is written, under no other; never waits.

    Raises:
        InputError: the name is that of a link, a pipe or a device, or the file to write has other names too.
    """
    path = Path(path)
    with contextlib.suppress(FileNotFoundError):
        _check_kind(path, os.lstat(path).st_mode)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    links = os.fstat(descriptor).st_nlink
    if links > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        os.close(descriptor)
        raise InputError(f"{path} must be a file under one name, and has {links}: put a copy there, or delete it")
    return descriptor


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it is no file, but a link, a pipe or a device.
        OSError, UnicodeDecodeError: it cannot be read, or is not UTF-8.
    """
    with open(path, encoding="utf-8", newline="", opener=open_own) as file:
        return file.read()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file to write to; it takes the place of `path` when the block ends well, else nothing is left of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # a killed process has left it, or it is a link, which must not be followed
    try:
        with _named(path), open(temporary, "xb") as file:
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


def sealed(record: dict[str, Any]) -> str:
    """As JSON, with the SHA-256 of the rest."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return json.dumps(rest | {"sha256": _seal(rest)}, indent=1) + "\n"


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def unsealed(text: str) -> dict[str, Any] | None:
    """The record that `sealed` made this text of; None if it did not."""
    try:
        record = json.loads(text)
        rest = {name: value for name, value in record.items() if name != "sha256"}
        return record if record["sha256"] == _seal(rest) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def append_text(path: Path, text: str) -> None:
    """Adds to the end of the file; where that is cut off, a part of `text` may be there."""
    with _named(path), open(path, "ab", opener=open_own) as file:
        file.write(text.encode())
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
