"""One image at a time, by Pillow: from any mode and size to uint8 `[height, width, channels]`."""

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from cnnjax.config import DataConfig
from cnnjax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = Any  # Pillow is imported only where it is used

Crop = Literal["centre", "random", "resized"]
MAX_PIXELS = 64_000_000  # of one image
_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 0x0102, 0x0106, 0x0153  # tags of EXIF and TIFF
_SIGNED = 2  # of the sample formats
# By EXIF orientation, the names of Pillow's transpositions that turn the image upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


def num_channels(image: Picture) -> int:
    """1 for a grey image (bilevel, 8 and 16 bits, with or without alpha), 3 for every other."""
    return 1 if image.mode in _GREY_MODES or _is_16_bit_pgm(image) or _is_16_bit_grey_with_alpha(image) else 3


def _is_16_bit_pgm(image: Picture) -> bool:
    # Pillow has no narrower mode for it, and scales it to 0..65535.
    return image.mode == "I" and image.format == "PPM"


def _is_16_bit_grey_with_alpha(image: Picture) -> bool:
    # A PNG, which Pillow reads as colour; once loaded it does not tell any more.
    return any(part[3] == "LA;16B" for part in getattr(image, "tile", ()))


class Fitting(NamedTuple):
    """What is done to every image, in the terms of `DataConfig`."""

    image_size: int | None = None  # side of the result in pixels; None: the size is kept
    channels: int | None = None  # 1 (grey: ITU-R 601 luma) or 3 (RGB); None: what `num_channels` says
    upright: bool = False  # turn as the EXIF orientation says; an EXIF block that cannot be read says nothing
    shorter_side: int | None = None  # scaled to this first; None: the centre square is cut first, then scaled
    interpolation: str = "lanczos"

    @classmethod
    def of(cls, config: DataConfig, *, upright: bool = False) -> "Fitting":
        return cls(config.image_size, config.channels, upright, config.shorter_side, config.interpolation)

    @property
    def recipe(self) -> list:
        """For the key of a cache: as it was before there were the last fields, where these are at their defaults."""
        return list(self if self[3:] != Fitting()[3:] else self[:3])


def fit(
    image: Picture, fitting: Fitting, crop: Crop = "centre", draws: Float[np.ndarray, "4"] | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """The image in 1 or 3 channels and, if a size is asked for, as a square.

    16-bit grey keeps its upper 8 bits, 12-bit grey too; alpha is dropped.

    With a `shorter_side` the pixels are those of torchvision's Resize and CenterCrop of a PIL image.

    Args:
        crop: how the square is cut where there are draws, as `random_box` says.
        draws: uniform in [0, 1); a size must be asked for then.

    Raises:
        ValueError: for a mode that has no fixed white (32-bit integers, floats, numbers with a sign) or cannot be
            converted.
    """
    from PIL import Image

    channels = num_channels(image) if fitting.channels is None else fitting.channels
    image.load()  # by which Pillow turns a TIFF, and forgets its orientation
    turn = _TURNS.get(_orientation(image)) if fitting.upright else None
    image = _eight_bits(image)
    if turn:
        image = image.transpose(Image.Transpose[turn])
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if fitting.image_size is not None and draws is not None:
        side, resampling = fitting.image_size, Image.Resampling[fitting.interpolation.upper()]
        image = image.resize((side, side), resampling, box=random_box(*image.size, fitting, crop, draws))
    elif fitting.image_size is not None:
        image = _square(image, fitting.image_size, fitting.shorter_side, fitting.interpolation)
    return np.asarray(image).reshape(image.height, image.width, channels)


def random_box(
    width: int, height: int, fitting: Fitting, crop: Crop, draws: Float[np.ndarray, "4"]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is cut of an image of this size and scaled to `fitting.image_size`.

    "random": a square anywhere, of the size that it has when the shorter side is `fitting.shorter_side`, a whole pixel
    of the scaled image from the edge. "resized": 8 to 100 % of the area, sides as 3:4 to 4:3, cut down to the image.

    Source: Krizhevsky et al. 2012, section 4.1 (random); Szegedy et al. 2015, section 6 (resized; torchvision tries a
    rectangle that does not fit again).
    """
    if crop == "random":
        side, short = fitting.image_size or 0, min(width, height)
        scale = short / (fitting.shorter_side or side)
        left, top = (
            int(draw * (int(edge / scale + 1e-6) - side + 1)) * scale
            for draw, edge in zip(draws[:2].tolist(), (width, height), strict=True)
        )
        cut_width = cut_height = side * scale
    else:
        area = width * height * (0.08 + 0.92 * float(draws[2]))
        aspect = (3 / 4) ** (1 - 2 * float(draws[3]))
        cut_width, cut_height = min(math.sqrt(area * aspect), width), min(math.sqrt(area / aspect), height)
        left, top = float(draws[0]) * (width - cut_width), float(draws[1]) * (height - cut_height)
    return left, top, min(left + cut_width, width), min(top + cut_height, height)


def _orientation(image: Picture) -> Any:
    # Pillow's own `exif_transpose` writes the block anew, which one odd entry of it prevents.
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged block makes Pillow raise nearly anything
        return None


def _eight_bits(image: Picture) -> Picture:
    """The image itself if it has 8 bits; grey with more by its upper 8 bits, where Pillow's own conversion clips."""
    from PIL import Image

    if image.mode in ("I", "F") and not _is_16_bit_pgm(image):  # no rule says which value is white
        raise ValueError(f"pixels must have 8 or 16 bits, got Pillow's mode {image.mode!r}")
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):  # Pillow reads -1 as 255
        raise ValueError("pixels must be numbers without a sign")
    if image.mode not in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        return image
    upper = np.asarray(image) >> (4 if tags.get(_BITS) == (12,) else 8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow minds in 8 bits only
        upper = 255 - upper
    return Image.fromarray(upper.astype(np.uint8))


def _square(image: Picture, side: int, shorter_side: int | None, interpolation: str) -> Picture:
    """Antialiased: Pillow widens the filter with the scale when it shrinks."""
    from PIL import Image

    resampling = Image.Resampling[interpolation.upper()]
    if shorter_side is None:
        if image.size == (side, side):
            return image
        return image.resize((side, side), resampling, box=_centre_square(*image.size))
    short = min(image.size)
    if short != shorter_side:
        # The longer side is rounded down, and half a pixel of the crop to the even one, as torchvision does.
        size = tuple(shorter_side if edge == short else int(shorter_side * edge / short) for edge in image.size)
        if size[0] * size[1] > MAX_PIXELS:  # a line of pixels would become as many squares
            raise InputError(
                f"data.shorter_side {shorter_side} makes {size[0]}x{size[1]} of an image, over {MAX_PIXELS:,}"
            )
        image = image.resize(size, resampling)  # pyright: ignore[reportArgumentType]
    left, top = (round((edge - side) / 2) for edge in image.size)
    return image.crop((left, top, left + side, top + side))


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def fit_arrays(
    images: UInt8[np.ndarray, "n height width channels"], fitting: Fitting
) -> UInt8[np.ndarray, "n new_height new_width new_channels"]:
    """`fit` for images that are arrays already; they come back as they are if nothing is to be changed."""
    from PIL import Image

    side = fitting.image_size
    same_size = side is None or (images.shape[1:3] == (side, side) and fitting.shorter_side in (None, side))
    if same_size and fitting.channels in (None, images.shape[3]):
        return images
    pictures = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images)
    return np.stack([fit(picture, fitting) for picture in pictures])
