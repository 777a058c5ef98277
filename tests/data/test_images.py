import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cnnjax.data.images import Fitting, fit, fit_arrays, num_channels
from cnnjax.errors import InputError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3), ("YCbCr", 3)],
)
def test_every_mode_becomes_1_or_3_channels_of_uint8(mode, channels):
    image = Image.fromarray(COLOUR).convert("L" if mode == "I;16" else "RGB").convert(mode)
    assert num_channels(image) == channels
    for wanted in (None, 1, 3):
        out = fit(image, Fitting(None, wanted))
        assert out.shape == (16, 16, wanted or channels) and out.dtype == np.uint8


def test_lossless_modes_keep_their_pixels():
    np.testing.assert_array_equal(fit(Image.fromarray(GREY), Fitting())[..., 0], GREY)
    np.testing.assert_array_equal(fit(Image.fromarray(COLOUR), Fitting(16, 3)), COLOUR)
    bilevel = fit(Image.fromarray(GREY > 100), Fitting())[..., 0]
    np.testing.assert_array_equal(bilevel, np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_keeps_its_upper_8_bits(channels):
    image = Image.fromarray(GREY.astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(fit(image, Fitting(None, channels))[..., 0], GREY)


def read_back(image: Image.Image, file_format: str, **save) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **save)
    return Image.open(buffer)


@pytest.mark.parametrize("maxval", [65535, 40000, 1000, 256, 255, 100])
def test_a_pgm_is_scaled_by_its_own_largest_value(maxval):
    values = (np.arange(256).reshape(16, 16) * maxval) // 255
    data = values.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    image = Image.open(io.BytesIO(f"P5 16 16 {maxval}\n".encode() + data))
    assert num_channels(image) == 1
    found = fit(image, Fitting())[..., 0]
    assert np.abs(found - values * (255 / maxval)).max() < 1.01  # upper 8 bits of 16 lie below by up to one


def test_a_png_of_16_bit_grey_with_alpha_is_grey():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.stack([GREY.astype(np.uint16) * 256 + 77, np.full_like(GREY, 9, np.uint16)], axis=-1).astype(">u2")
    header = struct.pack(">IIBBBBB", 16, 16, 16, 4, 0, 0, 0)  # width, height, bits, grey with alpha
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    image = Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts))
    assert num_channels(image) == 1
    np.testing.assert_array_equal(fit(image, Fitting())[..., 0], GREY)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG2000"])
def test_16_bit_files_keep_their_upper_8_bits(file_format):
    save = {"irreversible": False} if file_format == "JPEG2000" else {}
    image = read_back(Image.fromarray(GREY.astype(np.uint16) * 256 + 77), file_format, **save)
    np.testing.assert_array_equal(fit(image, Fitting())[..., 0], GREY)


@pytest.mark.parametrize(("bits", "white_is_zero"), [(16, False), (16, True), (12, False)])
def test_a_grey_tiff_is_scaled_by_its_bits_and_its_white(bits, white_is_zero):
    image = tiff(GREY, bits, white_is_zero)
    assert num_channels(image) == 1
    np.testing.assert_array_equal(fit(image, Fitting())[..., 0], 255 - GREY if white_is_zero else GREY)


@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_with_a_sign_have_no_white_and_are_refused(bits):
    with pytest.raises(ValueError, match="without a sign|8 or 16 bits, got"):
        fit(tiff(GREY, bits, False, sample_format=2), Fitting())


def tiff(grey: np.ndarray, bits: int, white_is_zero: bool, sample_format: int = 1) -> Image.Image:
    """A TIFF written from the description of the format; the upper 8 of `bits` bits are `grey`."""
    words = grey.astype(np.uint16) << (bits - 8)
    if bits == 12:  # two pixels in three bytes
        first, second = words.reshape(-1, 2).astype(int).T
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    else:
        data = words.astype(f"<u{bits // 8}").tobytes()
    tags = {
        256: grey.shape[1], 257: grey.shape[0], 258: bits, 259: 1, 262: 0 if white_is_zero else 1,
        273: 8, 277: 1, 278: grey.shape[0], 279: len(data),
        339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return Image.open(io.BytesIO(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x)),
        (7, lambda x: np.rot90(x.swapaxes(0, 1), 2)),
        (8, lambda x: np.rot90(x, -1)),
        (9, lambda x: x),
        (0, lambda x: x),
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_every_exif_orientation_is_turned_upright(orientation, stored, file_format):
    upright = np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_back(Image.fromarray(np.ascontiguousarray(stored(upright))), file_format, exif=exif)
    np.testing.assert_array_equal(fit(image, Fitting(upright=True)), upright)


@pytest.mark.parametrize(
    ("odd", "turned"),
    [
        # A resolution as text beside an orientation: Pillow reads the block and cannot write it again.
        (struct.pack("<HHHIHHHHIII", 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 1, 0, 0), True),
        (b"", False),
        (b"\xff" * 40, False),
    ],
)
def test_odd_metadata_refuse_no_image(odd, turned):
    block = b"Exif\0\0II*\0\x08\0\0\0" + odd
    image = read_back(Image.fromarray(COLOUR), "PNG", exif=block)
    expected = np.rot90(COLOUR, -1) if turned else COLOUR
    np.testing.assert_array_equal(fit(image, Fitting(upright=True)), expected)


def test_32_bit_pixels_have_no_white_and_are_refused():
    with pytest.raises(ValueError, match="8 or 16 bits, got Pillow's mode 'F'"):
        fit(Image.fromarray(GREY.astype(np.float32)), Fitting())


def test_the_shorter_side_is_scaled_and_the_centre_square_cut():
    wide = np.random.RandomState(0).randint(0, 256, (20, 60, 3), np.uint8)
    scaled = np.asarray(Image.fromarray(wide).resize((30, 10), Image.Resampling.LANCZOS))
    out = fit(Image.fromarray(wide), Fitting(10, None))
    assert np.abs(out.astype(int) - scaled[:, 10:20]).max() <= 1
    tall = fit(Image.fromarray(wide.transpose(1, 0, 2)), Fitting(10, None))
    np.testing.assert_allclose(tall.transpose(1, 0, 2), out, atol=1)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    out = fit(Image.fromarray(stripes), Fitting(8, None))
    assert np.abs(out.astype(int) - 127).max() <= 8  # without antialiasing: 0 or 255


def test_fit_arrays_does_the_same_to_arrays_and_nothing_where_nothing_is_asked():
    images = np.stack([COLOUR, COLOUR[::-1]])
    assert fit_arrays(images, Fitting()) is images
    assert fit_arrays(images, Fitting(16, 3)) is images
    out = fit_arrays(images, Fitting(8, 1))
    np.testing.assert_array_equal(out[1], fit(Image.fromarray(COLOUR[::-1].copy()), Fitting(8, 1)))
    grey = GREY[None, ..., None]
    np.testing.assert_array_equal(fit_arrays(grey, Fitting(None, 3)), np.repeat(grey, 3, axis=-1))


SIZES = ((50, 31), (31, 50), (33, 33), (20, 61), (16, 90))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", SIZES)
def test_a_shorter_side_is_scaled_to_and_the_middle_of_the_whole_image_cut(size, interpolation):
    width, height = size
    image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (height, width, 3), np.uint8))
    longer = int(24 * max(size) / min(size))
    scaled = image.resize((24, longer) if width <= height else (longer, 24), Image.Resampling[interpolation.upper()])
    left, top = round((scaled.width - 19) / 2), round((scaled.height - 19) / 2)
    expected = np.asarray(scaled)[top : top + 19, left : left + 19]
    fitting = Fitting(19, 3, shorter_side=24, interpolation=interpolation)
    np.testing.assert_array_equal(fit(image, fitting), expected)
    np.testing.assert_array_equal(fit_arrays(np.asarray(image)[None], fitting)[0], expected)


@pytest.mark.extra
@pytest.mark.parametrize("size", [*SIZES, (500, 375), (64, 40), (224, 224)])
@pytest.mark.parametrize(("interpolation", "shorter_side", "side"), [("bilinear", 42, 37), ("bicubic", 39, 39)])
def test_pixels_are_those_of_torchvisions_transforms(size, interpolation, shorter_side, side):
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(np.random.RandomState(2).randint(0, 256, (*size, 3), np.uint8))
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.CenterCrop(side)(transforms.Resize(shorter_side, mode)(image))
    ours = fit(image, Fitting(side, shorter_side=shorter_side, interpolation=interpolation))
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_an_image_that_would_grow_beyond_all_memory_is_refused():
    line = Image.fromarray(np.zeros((1, 50_000, 3), np.uint8))
    with pytest.raises(InputError, match="data.shorter_side 1000 makes 50000000x1000 of an image, over 64,000,000"):
        fit(line, Fitting(8, shorter_side=1000))


def test_the_key_of_a_cache_without_the_newer_fields_is_as_it_was():
    assert Fitting(5, 1, True).recipe == [5, 1, True]
    keys = [Fitting(5, 1, True, *rest).recipe for rest in ((), (5,), (6,), (None, "bilinear"), (5, "bilinear"))]
    assert len({str(key) for key in keys}) == len(keys)
