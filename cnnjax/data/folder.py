"""Images in one folder a class, with train/ and test/ above them or a seeded stratified split."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data.cache import Contents, load_or_decode
from cnnjax.data.dataset import Dataset
from cnnjax.data.decoding import Allocate, Encoded, decode_splits
from cnnjax.data.files import files_sha256, printable, read_regular
from cnnjax.data.images import Fitting
from cnnjax.data.splits import stratified_split
from cnnjax.errors import InputError
from cnnjax.paths import expanded


class Part(NamedTuple):
    """Image files in order of class and name, with the class of each."""

    files: list[Path]
    labels: np.ndarray


class Found(NamedTuple):
    """The image files under a folder, by split."""

    root: Path
    name: str
    class_names: tuple[str, ...]
    parts: dict[str, Part]


def load(config: DataConfig, progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """The images under `config.folder`; classes and files in the order of their names.

    With both train/ and test/ inside, those are the splits; otherwise each class is split by `config.test_fraction` and
    `config.split_seed`. Files and folders whose name begins with a dot are not seen; EXIF orientation is applied.
    Decoded images are kept under `config.data_dir` and used again for files of the same names and content, wherever
    they lie.

    Raises:
        InputError: naming the folder or file that is missing, empty, not an image, or unlike the others.
    """
    root, name, class_names, parts = find(config)
    try:
        files = {
            split: [
                (path.relative_to(root).as_posix(), sha256)
                for path, sha256 in zip(part.files, files_sha256(part.files), strict=True)
            ]
            for split, part in parts.items()
        }
    except OSError as error:
        raise InputError(f"data.folder must be readable, got {str(root)!r}: {error}") from error
    fitting = Fitting.of(config, upright=True)

    def decode(allocate: Allocate) -> Contents:
        splits = {
            split: (len(part.files), map(_encoded, part.files, [sha256 for _, sha256 in files[split]]))
            for split, part in parts.items()
        }
        decode_splits(splits, fitting, allocate, progress, name=name, source="data.folder")
        return Contents(class_names, {split: part.labels for split, part in parts.items()})

    recipe = {"files": files, "fitting": fitting.recipe}
    return load_or_decode(config.data_dir, name, recipe, decode)


def _encoded(path: Path, sha256: str) -> Encoded:
    return Encoded(printable(str(path)), partial(read_regular, path, sha256))


def find(config: DataConfig) -> Found:
    """The files under `config.folder`, by class and split as `load` has them; none is opened.

    Raises:
        InputError: as `load`, but for what is in the files.
    """
    root = Path(config.folder or "")
    try:
        root = expanded(config.folder or "")
        return Found(root, root.resolve().name, *_parts(root, config))
    except OSError as error:
        raise InputError(f"data.folder must be readable, got {str(root)!r}: {error}") from error


def _parts(root: Path, config: DataConfig) -> tuple[tuple[str, ...], dict[str, Part]]:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"data.folder must be a folder of one folder a class, got {str(root)!r}, which {what}")
    train, test = root / "train", root / "test"
    if train.is_dir() and test.is_dir():
        class_names = _class_names(train)
        unknown = sorted(set(_class_names(test, least=1)) - set(class_names))
        if unknown:
            raise InputError(f"data.folder: every class of {test} must be in {train} too, which lacks {unknown[0]!r}")
        return class_names, {"train": _part(train, class_names), "test": _part(test, class_names)}
    if train.is_dir() and _folders(train):
        raise InputError(f"data.folder: {str(root)!r} has train/ and so must have test/ as well, which does not exist")
    class_names = _class_names(root)
    whole = _part(root, class_names)
    indices = stratified_split(
        whole.labels, test_fraction=config.test_fraction, seed=config.split_seed, name=f"data.folder {str(root)!r}"
    )
    parts = [Part([whole.files[index] for index in part], whole.labels[part]) for part in indices]
    return class_names, {"train": parts[0], "test": parts[1]}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path, least: int = 2) -> tuple[str, ...]:
    names = tuple(path.name for path in _folders(folder))
    if len(names) < least:
        found = f"only {names[0]!r}" if names else "no folder"
        raise InputError(
            f"data.folder: {str(folder)!r} must hold a folder for each class, at least {least}; it holds {found}"
        )
    return names


def _part(folder: Path, class_names: tuple[str, ...]) -> Part:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():  # a class without test images
            continue
        found = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
        if not found:
            raise InputError(f"data.folder: the class folder {str(folder / name)!r} holds no images")
        stranger = next((path for path in found if not path.is_file()), None)  # a folder, a link to nothing, a pipe
        if stranger is not None:
            raise InputError(f"data.folder: a class folder must hold images only, but {str(stranger)!r} is no file")
        files += found
        labels += [label] * len(found)
    return Part(files, np.array(labels, np.int32))
