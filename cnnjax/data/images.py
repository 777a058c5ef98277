"""One image at a time, by Pillow: from any mode and size to uint8 `[height, width, channels]`."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = Any  # Pillow is imported only where it is used

_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_UNBOUNDED_MODES = ("I", "F")  # 32 bits: no rule says which value is white


def mode_channels(mode: str) -> int:
    """1 for Pillow's grey modes (bilevel, 8 and 16 bits, with or without alpha), 3 for every other."""
    return 1 if mode in _GREY_MODES else 3


def fit(image: Picture, *, image_size: int | None, channels: int | None) -> UInt8[np.ndarray, "height width channels"]:
    """The image in 1 or 3 channels and, if a size is asked for, as a square.

    16-bit grey keeps its upper 8 bits; alpha is dropped.

    Args:
        image_size: side of the result in pixels: the shorter side is scaled to it and the centre square cut.
            None: the size is kept.
        channels: 1 (grey: ITU-R 601 luma) or 3 (RGB). None: what `mode_channels` says.

    Raises:
        ValueError: for a mode that has no fixed white (32-bit integers and floats) or cannot be converted.
    """
    from PIL import Image

    if image.mode in _UNBOUNDED_MODES:
        raise ValueError(f"pixels must have 8 or 16 bits, got Pillow's mode {image.mode!r}")
    channels = mode_channels(image.mode) if channels is None else channels
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow's own conversion has clipped
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image_size is not None and image.size != (image_size, image_size):
        # Antialiased: Pillow widens the filter with the scale when it shrinks.
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=_centre_square(*image.size))
    return np.asarray(image).reshape(image.height, image.width, channels)


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
