"""Many encoded images (files or bytes) into one uint8 array a split, in a thread pool."""

import contextlib
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from cnnjax.data.images import MAX_PIXELS, Crop, Fitting, Picture, fit, num_channels, random_box
from cnnjax.errors import InputError

# Pixels only. Left out above all: EPS, for which Pillow starts an interpreter of PostScript.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
_CHUNK = 256  # images decoded between two writes; bounds the memory

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]  # (split, shape) -> uint8 array to be filled


class Encoded(NamedTuple):
    """One image as it was found."""

    name: str  # for error messages
    read: Callable[[], bytes]  # the file's content


class Header(NamedTuple):
    """What one image says of itself."""

    name: str
    size: tuple[int, int]  # width and height, in pixels
    channels: int


class Decoded(NamedTuple):
    """One image as it is wanted."""

    name: str
    channels: int  # of the file, before it was fitted
    pixels: UInt8[np.ndarray, "height width channels"]

    @property
    def header(self) -> Header:
        height, width, _ = self.pixels.shape
        return Header(self.name, (width, height), self.channels)


def decode_splits(
    splits: Mapping[str, tuple[int, Iterable[Encoded]]],
    fitting: Fitting,
    allocate: Allocate,
    progress: Callable[[str, int, int], None] | None,
    *,
    name: str,
    source: str,
) -> dict[str, UInt8[np.ndarray, "n height width channels"]]:
    """The images of each split, in their order, in an array that `allocate(split, shape)` provides.

    Args:
        splits: for each split the number of images and the images, which are read as they are needed.
        progress: called with ("decode NAME", done, total over all splits).
        name: of the data set.
        source: the argument that the images come from, for errors.

    Raises:
        InputError: naming the image that cannot be decoded or has more than MAX_PIXELS pixels; naming two images of
            different sizes (or one grey and one colour image) where the fitting does not settle it.
    """
    total, done = sum(count for count, _ in splits.values()), 0
    first: Decoded | None = None  # every image is compared with the first of all
    arrays: dict[str, np.ndarray] = {}
    with pillow_prepared(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for split, (count, images) in splits.items():
            position = 0
            for chunk in _chunks(images):
                for decoded in pool.map(lambda image: decode(image, fitting, source), chunk):
                    first = first or decoded
                    require_alike(first.header, decoded.header, fitting)
                    if split not in arrays:
                        arrays[split] = allocate(split, (count, *first.pixels.shape))
                    arrays[split][position] = decoded.pixels
                    position += 1
                done += len(chunk)
                if progress:
                    progress(f"decode {name}", done, total)
    return arrays


@contextlib.contextmanager
def pillow_prepared() -> Iterator[None]:
    """Pillow's warnings about odd metadata, which help nobody here, are off; the one about size is an error.

    To be set around the threads that decode, because filters are global to the process.
    """
    from PIL import Image

    Image.init()  # which formats this Pillow knows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _chunks(images: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    iterator = iter(images)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def _opened(encoded: Encoded) -> Picture:
    from PIL import Image

    return Image.open(io.BytesIO(encoded.read()), formats=[name for name in _FORMATS if name in Image.OPEN])


def decode(
    encoded: Encoded, fitting: Fitting, source: str, crop: Crop = "centre", draws: Float[np.ndarray, "4"] | None = None
) -> Decoded:
    """The image, fitted; in any thread, while Pillow is `pillow_prepared`. `crop` and `draws` as `fit` takes them.

    Raises:
        InputError: naming the image that cannot be decoded or has more than MAX_PIXELS pixels.
    """
    with _told(encoded, source), _opened(encoded) as image:
        channels = num_channels(image)
        _require_pixels(image)
        if draws is None and fitting.image_size is not None and fitting.shorter_side is None:
            # A JPEG is decoded at a fraction of its size, but not below twice the size wanted.
            image.draft(image.mode, (2 * fitting.image_size, 2 * fitting.image_size))
        elif draws is not None and fitting.image_size is not None:
            # A JPEG is decoded at a fraction of its size, but what is cut not at less than the size wanted.
            left, top, right, bottom = random_box(*image.size, fitting, crop, draws)
            scale = fitting.image_size / min(right - left, bottom - top)
            image.draft(image.mode, (math.ceil(scale * image.width), math.ceil(scale * image.height)))
        pixels = fit(image, fitting, crop, draws)
        return Decoded(encoded.name, channels, pixels)


def header_of(encoded: Encoded, source: str) -> Header:
    """What the image says of itself; no pixel is decoded. Raises InputError as `decode`."""
    with _told(encoded, source), _opened(encoded) as image:
        _require_pixels(image)
        return Header(encoded.name, image.size, num_channels(image))


def _require_pixels(image: Picture) -> None:
    # From the header, before the memory is asked for: a file of some kilobytes can declare gigabytes of pixels.
    from PIL import Image

    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


@contextlib.contextmanager
def _told(encoded: Encoded, source: str) -> Iterator[None]:
    """Turns what is raised over an image into an InputError that names it."""
    from PIL import Image

    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{source}: an image must have at most {MAX_PIXELS:,} pixels, but {encoded.name} has more"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{source}: {encoded.name} is not an image of a known format ({', '.join(_FORMATS)})"
        ) from error
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source}: {encoded.name} cannot be decoded: {reason}") from error


def require_alike(first: Header, other: Header, fitting: Fitting) -> None:
    """Raises InputError naming both images, where they differ in what the fitting does not settle."""
    if fitting.channels is None and first.channels != other.channels:
        kind = {1: "grey", 3: "colour"}
        raise InputError(
            f"data.channels must be given (1: grey, 3: RGB) for images of mixed modes:"
            f" {first.name} is {kind[first.channels]}, {other.name} is {kind[other.channels]}"
        )
    if fitting.image_size is None and first.size != other.size:
        sizes = [f"{header.name} has {header.size[0]}x{header.size[1]}" for header in (first, other)]
        raise InputError(f"data.image_size must be given for images of mixed sizes: {sizes[0]} pixels, {sizes[1]}")


def sizes(images: Sequence[Encoded]) -> list[tuple[int, int] | None]:
    """Width and height of each image by its header; None of one that cannot be read, of which decoding says why."""
    with pillow_prepared(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_size, images))


def _size(encoded: Encoded) -> tuple[int, int] | None:
    try:
        with _opened(encoded) as image:
            return image.size
    except Exception:  # a damaged file makes Pillow's plugins raise nearly anything
        return None
