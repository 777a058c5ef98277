"""Pictures that a user names: files, folders and zip archives of them, decoded as a run's own images are."""

import math
import os
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from cnnjax.cli import Progress
from cnnjax.config import DataConfig
from cnnjax.data.decoding import Encoded, decode_splits, sizes
from cnnjax.data.files import MAX_FILE_BYTES, printable, read_regular
from cnnjax.data.images import Fitting
from cnnjax.errors import InputError
from cnnjax.paths import expanded


class Picture(NamedTuple):
    """A picture as it was found."""

    name: str  # from the folder or archive that was given
    folder: str | None  # the folder a class that it is in
    encoded: Encoded


def find(given: Sequence[str], option: str) -> list[Picture]:
    """The pictures, in the order of `given` and of their names; names that begin with a dot are not seen.

    Args:
        given: files, folders or zip archives, with pictures in them or in a folder a class.
        option: that named them, for errors.

    Raises:
        InputError: there is no such file, a folder holds none or both files and folders, or a file is found twice.
    """
    found: list[Picture] = []
    seen: set[tuple[Path, str]] = set()
    for text in given:
        path = expanded(text)
        if not text or not path.exists():
            raise InputError(f"{option} must be files or folders that exist, got {text!r}")
        is_archive = path.suffix.lower() == ".zip" and path.is_file()
        if path.is_dir():
            inside = _of_folder(path, option)
        elif is_archive:
            inside = _of_archive(path, option)
        else:
            inside = [(path, _file(path, path.name, None))]
        for place, picture in inside:
            if (key := (place.resolve(), picture.name if is_archive else "")) in seen:
                raise InputError(f"{option} must name each image once, got {picture.encoded.name} twice")
            seen.add(key)
            found.append(picture)
    return found


def _file(path: Path, name: str, folder: str | None) -> Picture:
    return Picture(name, folder, Encoded(printable(str(path)), partial(read_regular, path)))


def _of_folder(path: Path, option: str) -> list[tuple[Path, Picture]]:
    inside = _inside(path, option)
    folders = [one for one in inside if one.is_dir()]
    if not folders:
        return [(one, _file(one, one.name, None)) for one in inside]
    if len(folders) < len(inside):
        file = next(one for one in inside if not one.is_dir())
        raise InputError(
            f"{option}: {path} must hold images or a folder a class, and has {folders[0].name} and {file.name}"
        )
    found = []
    for folder in folders:
        for one in _inside(folder, option):
            if one.is_dir():
                raise InputError(f"{option}: the folder {folder} must hold images only, and has the folder {one.name}")
            found.append((one, _file(one, f"{folder.name}/{one.name}", folder.name)))
    return found


def _inside(folder: Path, option: str) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise InputError(f"{option} must hold images, and the folder {folder} holds none")
    return found


def _of_archive(path: Path, option: str) -> list[tuple[Path, Picture]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((one for one in archive.infolist() if not one.is_dir()), key=lambda one: one.filename)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{option} must be an archive that can be read, got {path}: {error}") from None
    found = []
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if member.file_size > MAX_FILE_BYTES:
            rule = f"hold images of at most {MAX_FILE_BYTES:,} bytes"
            raise InputError(f"{option}: {path} must {rule}, and {member.filename} has {member.file_size:,}")
        folder = parts[-2] if len(parts) > 1 else None
        name = printable("/".join(parts[-2:]))
        encoded = Encoded(printable(f"{path}:{member.filename}"), partial(_member, path, member.filename))
        found.append((path, Picture(name, folder, encoded)))
    if not found:
        raise InputError(f"{option} must hold images, and the archive {path} holds none")
    return found


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError) as error:  # damaged, or with a password
        raise OSError(f"{name} cannot be read from {path}: {error}") from None


def decoded(
    data: DataConfig,
    image_shape: tuple[int, ...],
    found: Sequence[Picture],
    option: str,
    progress: Progress,
    *,
    side: int | None = None,
) -> UInt8[np.ndarray, "pictures height width channels"]:
    """The pixels, in an array that stands on the disk. It is said how many pictures are enlarged.

    Args:
        data: how the run's own images are fitted.
        image_shape: of the run's images.
        side: the pictures are fitted to so many pixels instead, for views that are cut from them later.

    Raises:
        InputError: naming the picture that is none, or has another size than the network takes.
    """
    height, width, channels = image_shape
    encoded = [picture.encoded for picture in found]
    small = [
        one.name for one, size in zip(encoded, sizes(encoded), strict=True) if size and min(size) < min(height, width)
    ]
    if small:
        named = f"{len(small):,} of {len(encoded):,} images, as {small[0]},"
        progress.say(f"{named} must be enlarged: less than {min(height, width)} pixels at the shorter side")
    own = Fitting.of(data, upright=True)
    fitting = own._replace(
        image_size=side or (height if height == width else None),
        channels=channels,
        shorter_side=own.shorter_side and (side or own.shorter_side),
    )
    split = {"images": (len(encoded), encoded)}
    pixels = decode_splits(split, fitting, _on_disk, progress, name="images", source=option)["images"]
    if side is None and pixels.shape[1:3] != (height, width):
        got = f"{pixels.shape[1]}×{pixels.shape[2]}"
        raise InputError(f"{option} must be of {height}×{width} px, as the run's, got {got}")
    return pixels


def _on_disk(split: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file that is gone when this process is, so that any number of images can be decoded."""
    with tempfile.TemporaryFile() as file:  # the array holds it open itself
        if hasattr(os, "posix_fallocate"):  # a mapped file on a full disk ends the process, not the call
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return np.memmap(file, np.uint8, "w+", shape=shape)
