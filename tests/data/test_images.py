import numpy as np
import pytest
from PIL import Image

from cnnjax.data.images import fit, fit_arrays, mode_channels

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3), ("YCbCr", 3)],
)
def test_every_mode_becomes_1_or_3_channels_of_uint8(mode, channels):
    image = Image.fromarray(COLOUR).convert("L" if mode == "I;16" else "RGB").convert(mode)
    assert mode_channels(image.mode) == channels
    for wanted in (None, 1, 3):
        out = fit(image, image_size=None, channels=wanted)
        assert out.shape == (16, 16, wanted or channels) and out.dtype == np.uint8


def test_lossless_modes_keep_their_pixels():
    np.testing.assert_array_equal(fit(Image.fromarray(GREY), image_size=None, channels=None)[..., 0], GREY)
    np.testing.assert_array_equal(fit(Image.fromarray(COLOUR), image_size=16, channels=3), COLOUR)
    bilevel = fit(Image.fromarray(GREY > 100), image_size=None, channels=None)[..., 0]
    np.testing.assert_array_equal(bilevel, np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_keeps_its_upper_8_bits(channels):
    image = Image.fromarray(GREY.astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(fit(image, image_size=None, channels=channels)[..., 0], GREY)


def test_32_bit_pixels_have_no_white_and_are_refused():
    with pytest.raises(ValueError, match="8 or 16 bits, got Pillow's mode 'F'"):
        fit(Image.fromarray(GREY.astype(np.float32)), image_size=None, channels=None)


def test_the_shorter_side_is_scaled_and_the_centre_square_cut():
    wide = np.random.RandomState(0).randint(0, 256, (20, 60, 3), np.uint8)
    scaled = np.asarray(Image.fromarray(wide).resize((30, 10), Image.Resampling.LANCZOS))
    out = fit(Image.fromarray(wide), image_size=10, channels=None)
    assert np.abs(out.astype(int) - scaled[:, 10:20]).max() <= 1
    tall = fit(Image.fromarray(wide.transpose(1, 0, 2)), image_size=10, channels=None)
    np.testing.assert_allclose(tall.transpose(1, 0, 2), out, atol=1)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    out = fit(Image.fromarray(stripes), image_size=8, channels=None)
    assert np.abs(out.astype(int) - 127).max() <= 8  # without antialiasing: 0 or 255


def test_fit_arrays_does_the_same_to_arrays_and_nothing_where_nothing_is_asked():
    images = np.stack([COLOUR, COLOUR[::-1]])
    assert fit_arrays(images, image_size=None, channels=None) is images
    assert fit_arrays(images, image_size=16, channels=3) is images
    out = fit_arrays(images, image_size=8, channels=1)
    np.testing.assert_array_equal(out[1], fit(Image.fromarray(COLOUR[::-1].copy()), image_size=8, channels=1))
    grey = GREY[None, ..., None]
    np.testing.assert_array_equal(fit_arrays(grey, image_size=None, channels=3), np.repeat(grey, 3, axis=-1))
