import io

import numpy as np
from PIL import Image

from cnnjax.report.sheets import LARGEST, sheet
from tests.report import made


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_each_picture_stands_where_its_row_and_column_say():
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    found = sheet("s0", tiles)
    pixels = opened(found.png)
    assert (found.rows, found.columns, pixels.shape) == (2, 3, (8, 15, 3)) and found.reduced_from is None
    np.testing.assert_array_equal(pixels[4:8, 10:15], tiles[1, 2])
    np.testing.assert_array_equal(pixels[0:4, 5:10], tiles[0, 1])


def test_a_small_picture_is_shown_at_a_whole_multiple_of_its_size():
    assert (sheet("s0", made.sheet(0, 1, 1, side=7)).width, sheet("s0", made.sheet(0, 1, 1, side=38)).width) == (63, 76)


def test_a_large_picture_is_scaled_down_with_its_proportions():
    tiles = np.broadcast_to(np.array([9, 8, 7], np.uint8), (2, 1, 300, 150, 3)).copy()
    found = sheet("s0", tiles)
    assert (found.height, found.width, found.reduced_from) == (LARGEST, LARGEST // 2, (300, 150))
    pixels = opened(found.png)
    assert pixels.shape == (2 * LARGEST, LARGEST // 2, 3) and (pixels == [9, 8, 7]).all()
