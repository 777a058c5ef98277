"""Files and folders on disk: only regular files are read, content is told by its SHA-256, unfinished folders go.

A data folder may come from elsewhere. A named pipe, a socket or a device in it would be waited for without an end, so
nothing but a regular file is opened.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

MAX_FILE_BYTES = 1 << 30  # of what is read whole, such as one image
_END = 4096  # bytes
_UNFINISHED = re.compile(r"\w+\.(?P<stage>new|tmp)\.[0-9a-f]{32}")
_OLD = 24 * 3600.0  # seconds after which a folder is abandoned, where no lock says so


def open_regular(path: Path | str) -> io.BufferedReader:
    """The file, open for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file; without waiting for anybody.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def printable(text: str) -> str:
    """The text as it can stand in one line on a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def read_regular(path: Path, sha256: str | None = None, most: int = MAX_FILE_BYTES) -> bytes:
    """The file's content.

    Raises:
        OSError: as `open_regular`; for more than `most` bytes; for content of another SHA-256 than the one given.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
        content = file.read()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise OSError(errno.EBUSY, "changed while it was read", str(path))
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, as hexadecimal text. Raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ends_sha256(path: Path) -> str:
    """SHA-256 of the first and the last 4096 bytes, by which a large file is known again without reading it whole."""
    with open_regular(path) as file:
        first = file.read(_END)
        file.seek(max(os.fstat(file.fileno()).st_size - _END, 0))
        return hashlib.sha256(first + file.read(_END)).hexdigest()


def files_sha256(paths: Sequence[Path]) -> list[str]:
    """`file_sha256` of each, in threads. A twentieth of what decoding costs, and nothing cheaper is sure.

    Size and times are not: an archive sets the times of what it unpacks, and images without compression have one size.
    """
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(file_sha256, paths))


@contextlib.contextmanager
def unfinished_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, to be filled and then renamed to it; what was not renamed is removed at the end.

    It is locked; where its process is killed, the lock ends, and `remove_abandoned` removes it.

    Raises:
        OSError: it cannot be made.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    code = uuid.uuid4().hex
    new, folder = (final.with_name(f"{final.name}.{stage}.{code}") for stage in ("new", "tmp"))
    new.mkdir()
    descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot lock; there age decides
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder)  # locked before it has the name by which it is looked for
        yield folder
    finally:
        for path in (new, folder):
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Removes the unfinished folders in `parent` whose processes were killed, as far as it may."""
    with contextlib.suppress(OSError):  # there is no `parent`, or it cannot be read
        for path in list(parent.iterdir()):
            with contextlib.suppress(OSError):  # another process removes it, too, or it is not ours to remove
                if (match := _UNFINISHED.fullmatch(path.name)) and _is_abandoned(path, match["stage"]):
                    shutil.rmtree(path)


def _is_abandoned(path: Path, stage: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        age = time.time() - os.fstat(descriptor).st_mtime
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stage == "tmp" or age > _OLD
    except BlockingIOError:
        return False
    except OSError:
        return age > _OLD
    finally:
        os.close(descriptor)
