"""What is computed once of a set: kept in `DATA_DIR/cnnjax_cache`, each file with the SHA-256 of the rest in front."""

import hashlib
import logging
import os
from collections.abc import Callable

from cnnjax.data.files import read_regular, remove_abandoned, unfinished_folder
from cnnjax.paths import expanded

_DIGEST = 32  # bytes
_logger = logging.getLogger(__name__)


def kept(data_dir: str, file: str, what: str, compute: Callable[[], bytes]) -> bytes:
    """The bytes that `compute` gives: from `data_dir` if they are kept there, else computed and kept.

    Several processes may do this at once; what was damaged is computed again. Where `data_dir` cannot be written, a
    warning is logged.

    Args:
        data_dir: `~` is expanded; made if it does not exist.
        file: its name says, by a hash, everything that decides the bytes.
        what: is kept, for the warning.
    """
    try:
        content = read_regular(expanded(data_dir) / "cnnjax_cache" / file)
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            return content[_DIGEST:]
    except OSError:  # it is not there
        pass
    content = compute()
    try:
        folder = expanded(data_dir) / "cnnjax_cache"
        remove_abandoned(folder)
        with unfinished_folder(folder / "kept") as unfinished:
            with open(unfinished / file, "xb") as written:
                written.write(hashlib.sha256(content).digest() + content)
                written.flush()
                os.fsync(written.fileno())
            os.replace(unfinished / file, folder / file)
    except OSError as error:
        _logger.warning("data.data_dir %r cannot keep %s, to be computed anew each time: %s", data_dir, what, error)
    return content
