"""One image at a time, by Pillow: from any mode and size to uint8 `[height, width, channels]`."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = Any  # Pillow is imported only where it is used

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


def fit(
    image: Picture, *, image_size: int | None, channels: int | None, upright: bool = False
) -> UInt8[np.ndarray, "height width channels"]:
    """The image in 1 or 3 channels and, if a size is asked for, as a square.

    16-bit grey keeps its upper 8 bits, 12-bit grey too; alpha is dropped.

    Args:
        image_size: side of the result in pixels: the shorter side is scaled to it and the centre square cut.
            None: the size is kept.
        channels: 1 (grey: ITU-R 601 luma) or 3 (RGB). None: what `num_channels` says.
        upright: turn as the EXIF orientation says; an EXIF block that cannot be read says nothing.

    Raises:
        ValueError: for a mode that has no fixed white (32-bit integers, floats, numbers with a sign) or cannot be
            converted.
    """
    from PIL import Image

    channels = num_channels(image) if channels is None else channels
    image.load()  # by which Pillow turns a TIFF, and forgets its orientation
    turn = _TURNS.get(_orientation(image)) if upright else None
    image = _eight_bits(image)
    if turn:
        image = image.transpose(Image.Transpose[turn])
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image_size is not None and image.size != (image_size, image_size):
        # Antialiased: Pillow widens the filter with the scale when it shrinks.
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=_centre_square(*image.size))
    return np.asarray(image).reshape(image.height, image.width, channels)


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


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def fit_arrays(
    images: UInt8[np.ndarray, "n height width channels"], *, image_size: int | None, channels: int | None
) -> UInt8[np.ndarray, "n new_height new_width new_channels"]:
    """`fit` for images that are arrays already; they come back as they are if nothing is to be changed."""
    from PIL import Image

    same_size = image_size is None or images.shape[1:3] == (image_size, image_size)
    if same_size and channels in (None, images.shape[3]):
        return images
    pictures = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images)
    return np.stack([fit(picture, image_size=image_size, channels=channels) for picture in pictures])
