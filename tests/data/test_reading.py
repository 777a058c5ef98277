"""Images by many rows: the same from any number of threads, cut at random where their draws say."""

import threading

import numpy as np
import pytest
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import Split, load, reading
from cnnjax.data.images import Fitting, random_box
from cnnjax.data.packing import pack
from cnnjax.errors import InputError


@pytest.fixture(scope="module")
def set_of(tmp_path_factory):
    """A packed set of 20 training images of 40x50 pixels, each of which says by its grey levels where it stands."""
    root = tmp_path_factory.mktemp("images")
    across = np.arange(50, dtype=np.uint8) * 5
    for index in range(20):
        for split in ("train", "test"):
            folder = root / split / ("a" if index < 12 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.stack(np.broadcast_arrays(across[:40, None], across[None], np.uint8(index)), axis=-1)
            Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    for size in (None, 40):
        pack(DataConfig(folder=str(root), image_size=32), root.parent / f"{size}", size=size)

    def opened(size=None, **changes) -> Split:
        changes = {"image_size": 32, "shorter_side": 40, "train_crop": "random"} | changes
        return load(DataConfig(packed=str(root.parent / f"{size}"), data_dir=str(root.parent), **changes)).train

    return opened


ROWS = np.random.RandomState(0).permutation(20)
DRAWS = np.random.RandomState(1).random_sample((20, 4))


@pytest.mark.parametrize("size", [None, 40], ids=["files", "pixels"])
@pytest.mark.parametrize("crop", ["random", "resized", None])
def test_blocks_and_threads_change_no_bit(set_of, size, crop, monkeypatch):
    images = set_of(size, **({"train_crop": crop} if crop else {})).images
    draws = DRAWS if crop else None
    whole = images.read(ROWS, draws)
    assert sorted(images.read(ROWS)[:, 0, 0, 2].tolist()) == list(range(20))
    one_by_one = [images.read(ROWS[k : k + 1], None if draws is None else draws[k : k + 1])[0] for k in range(20)]
    np.testing.assert_array_equal(whole, one_by_one)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 3 * 32 * 32 * 3)  # three images a block
    np.testing.assert_array_equal(images.read(ROWS, draws), whole)


def test_a_random_crop_stands_where_its_draws_say(set_of):
    found = set_of(40).images.read(ROWS, DRAWS)
    left, top = (np.floor(9 * DRAWS[:, axis]).astype(int) for axis in (0, 1))
    # Of 40x50 pixels the centre 40 columns are packed, from column 5 on.
    np.testing.assert_array_equal(found[:, 0, 0, 0], 5 * top)
    np.testing.assert_array_equal(found[:, 0, 0, 1], 5 * (left + 5))
    assert (found[:, 31, 31, 0] - found[:, 0, 0, 0] == 31 * 5).all()


def test_images_of_a_test_split_are_never_cut_at_random(set_of, tmp_path):
    train = set_of(40)
    assert train.images.num_draws == 4 and not train.in_memory
    test = load(
        DataConfig(packed=str(train.images._found.folder), image_size=32, shorter_side=40, train_crop="random")
    ).test
    assert test.images.num_draws == 0


def test_crops_of_files_reach_all_of_the_image_and_never_beyond():
    fitting, random = Fitting(image_size=224, shorter_side=256), np.random.RandomState(0)
    for width, height in ((500, 375), (375, 500), (256, 256), (300, 1000)):
        boxes = np.array([random_box(width, height, fitting, "random", random.rand(4)) for _ in range(500)])
        side = 224 / 256 * min(width, height)
        np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], side)
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        step = min(width, height) / 256
        ends = np.array([random_box(width, height, fitting, "random", np.full(4, draw)) for draw in (0.0, 1 - 1e-9)])
        assert (ends[0, :2] == 0).all() and (ends[1, 2:] > np.array([width, height]) - step - 1e-6).all()
        steps = boxes[:, :2] / step
        np.testing.assert_allclose(steps, steps.round(), atol=1e-6)  # whole pixels of the scaled image


def test_resized_crops_have_the_areas_and_aspects_of_the_paper():
    random = np.random.RandomState(0)
    boxes = np.array([random_box(500, 500, Fitting(image_size=224), "resized", random.rand(4)) for _ in range(4000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all() and (boxes <= 500 + 1e-9).all()
    aspects, areas = widths / heights, widths * heights / 500**2
    assert 0.749 < aspects.min() < 0.78 and 1.28 < aspects.max() < 1.334
    assert 0.0799 < areas.min() < 0.09 and areas.max() <= 1
    uncut = areas < 0.7  # a rectangle of 3:4 that fits
    np.testing.assert_allclose(areas[uncut].mean(), (0.08 + 0.7) / 2, atol=0.02)


def test_an_error_in_a_thread_comes_out_as_it_is_and_no_thread_is_left(monkeypatch):
    def read(rows, draws):
        if 7 in rows:
            raise InputError("a shard is cut off")
        return np.zeros((len(rows), 2, 2, 1), np.uint8)

    monkeypatch.setattr(reading, "BLOCK_BYTES", 4)
    before = set(threading.enumerate())
    for most in (7, 20):
        if most == 7:
            assert reading.in_threads(read, np.arange(most), None, (2, 2, 1), 2).shape == (7, 2, 2, 1)
        else:
            with pytest.raises(InputError, match="^a shard is cut off"):
                reading.in_threads(read, np.arange(most), None, (2, 2, 1), 2)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
