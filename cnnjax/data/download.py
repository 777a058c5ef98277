"""One file from a server, whole and of the SHA-256 that is expected, or one line; never an endless wait."""

import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from cnnjax.errors import InputError

STALL = 30.0  # seconds in which at least LEAST bytes, or the end, must come
LEAST = 1 << 16
_CONNECT = 10.0  # seconds until a server that does not answer counts as unreachable


def download(
    url: str, path: Path, *, size: int, sha256: str, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Writes the content of `url` to the new file `path`; where that fails, no file is left.

    Args:
        size: bytes that are expected; no more are taken.
        sha256: of the content, as hexadecimal text.
        progress: called with ("download FILE", bytes so far, size).

    Raises:
        InputError: the server cannot be reached, refuses, stalls, or sends something else.
    """
    # Read in a thread, because a server that sends a byte now and then, be it of its headers, keeps every time limit of
    # a socket. The thread is a daemon: one that is left to such a server does not keep the process alive.
    blocks: queue.Queue[bytes | Exception | None] = queue.Queue()
    given_up = threading.Event()
    threading.Thread(target=_fetch, args=(url, blocks, given_up), daemon=True).start()
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("xb") as file:
            while block := _next(blocks, url):
                done += len(block)
                if done > size:
                    raise InputError(f"{url} must have {size:,} bytes, and sends more")
                file.write(block)
                digest.update(block)
                if progress:
                    progress(f"download {path.name}", done, size)
        if digest.hexdigest() != sha256:
            raise InputError(f"{url}: wrong checksum: it is not the file that was published")
    except BaseException:
        given_up.set()
        path.unlink(missing_ok=True)
        raise


def _next(blocks: queue.Queue[bytes | Exception | None], url: str) -> bytes | None:
    try:
        block = blocks.get(timeout=STALL)
    except queue.Empty:
        raise InputError(f"{url} cannot be downloaded: fewer than {LEAST:,} bytes in {STALL:g} seconds") from None
    if isinstance(block, Exception):
        raise InputError(f"{url} cannot be reached: {' '.join(str(block).split())[:200]}") from block
    return block


def _fetch(url: str, blocks: queue.Queue[bytes | Exception | None], given_up: threading.Event) -> None:
    """Puts blocks of at least LEAST bytes, the rest, and None into the queue; or the error."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=(_CONNECT, STALL)) as response:
            response.raise_for_status()
            # Not decoded: what was published is the compressed file itself.
            response.raw.decode_content = False
            for block in iter(lambda: response.raw.read(LEAST), b""):
                if given_up.is_set():
                    return
                blocks.put(block)
        blocks.put(None)
    except Exception as error:  # of requests, or of urllib3, whose errors pass through `raw`
        blocks.put(error)
