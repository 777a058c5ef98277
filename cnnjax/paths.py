"""Names of files and folders as users give them."""

import errno
import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path, `~` and `~user` replaced. Raises OSError if no such home folder is known, or it can be no path."""
    try:
        if b"\0" in os.fsencode(path):
            raise OSError(errno.EINVAL, "a path has no null character", str(path))
        return Path(path).expanduser()
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "a path has no such character", ascii(str(path))) from error
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "no home folder is known", str(path)) from error
