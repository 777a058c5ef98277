"""Batches by Grain: the same images whoever reads them, random crops that are a function of their address."""

import threading

import numpy as np
import pytest
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import Purpose, Split, Step, epoch_order, load, stream
from cnnjax.data.images import Fitting, random_box
from cnnjax.data.packing import pack
from cnnjax.data.splits import random_state
from cnnjax.errors import InputError

pytest.importorskip("grain")


@pytest.fixture(scope="module")
def set_of(tmp_path_factory):
    """A packed set of 20 training images of 40x50 pixels, each grey level of which says where it stands."""
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


def steps_of(epoch: int, batch: int, rows: int = 20) -> list[Step]:
    order, masks = (np.asarray(part) for part in epoch_order(0, epoch, rows, batch))
    order = np.where(masks > 0, order, -1).astype(np.int32)
    return [Step(of_step, epoch, number) for number, of_step in enumerate(order)]


def gathered(batches) -> tuple[np.ndarray, ...]:
    return tuple(np.stack(parts) for parts in zip(*batches, strict=True))


@pytest.mark.parametrize("on_disk", [True, False])
def test_batches_are_the_rows_asked_for_and_padding_counts_for_nothing(set_of, on_disk, monkeypatch):
    split = set_of(train_crop="centre") if not on_disk else set_of()
    assert split.in_memory != on_disk
    images, labels, mask = gathered(stream(split, steps_of(1, 8), training=False, threads=2))
    rows = np.stack([step.rows for step in steps_of(1, 8)])
    expected = split.__getitems__(rows[rows >= 0])
    np.testing.assert_array_equal(images[rows >= 0], expected[0])
    np.testing.assert_array_equal(labels[rows >= 0], expected[1])
    np.testing.assert_array_equal(mask, rows >= 0)
    assert not images[rows < 0].any() and not labels[rows < 0].any() and mask.sum() == 20
    assert sorted(images[rows >= 0][:, 0, 0, 2].tolist()) == list(range(20))  # no image dropped, none seen twice


@pytest.mark.parametrize("size", [None, 40], ids=["files", "pixels"])
@pytest.mark.parametrize("crop", ["random", "resized"])
def test_threads_prefetching_where_it_begins_and_processes_change_no_bit(set_of, size, crop, monkeypatch):
    split, steps = set_of(size, train_crop=crop), steps_of(0, 8)
    whole = gathered(stream(split, steps, seed=3, threads=1, ahead=1))
    monkeypatch.setattr("cnnjax.data.streaming._BLOCK_BYTES", 3 * 32 * 32 * 3)  # three images a block
    for again in (
        gathered(stream(split, steps, seed=3, threads=3, ahead=4)),
        gathered([*stream(split, steps[:1], seed=3), *stream(split, steps[1:], seed=3)]),
        tuple(
            np.concatenate(parts, axis=1)
            for parts in zip(
                *(
                    gathered(stream(split, steps, seed=3, columns=slice(start, stop)))
                    for start, stop in ((0, 3), (3, 8))
                ),
                strict=True,
            )
        ),
    ):
        for ours, theirs in zip(again, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    other = gathered(stream(split, steps, seed=4))
    assert (other[0] != whole[0]).any() and (other[1] == whole[1]).all()


def test_a_random_crop_stands_where_its_address_says(set_of):
    split, steps = set_of(40), steps_of(2, 5)
    for batch, step in zip(stream(split, steps, seed=7), steps, strict=True):
        draws = random_state(7, Purpose.CROP, 2, step.step).random_sample((5, 4))
        left, top = (np.floor(9 * draws[:, axis]).astype(int) for axis in (0, 1))
        # Of 40x50 pixels the centre 40 columns are packed, from column 5 on.
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], 5 * top)
        np.testing.assert_array_equal(batch.images[:, 0, 0, 1], 5 * (left + 5))
        assert (batch.images[:, 1, 1, 0] - batch.images[:, 0, 0, 0] == 5).all()


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


def test_an_error_in_a_thread_comes_out_of_the_iterator_as_it_is(set_of):
    split = set_of()
    bad = Step(np.array([0, 99], np.int32))
    batches = stream(split, [Step(np.array([0, 1], np.int32)), bad])
    next(batches)
    with pytest.raises(IndexError):
        next(batches)
    for name in ("threads", "ahead"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
            stream(split, [bad], **{name: 0})


def test_no_thread_is_left_when_the_iterator_is_closed(set_of):
    before = set(threading.enumerate())
    batches = stream(set_of(), steps_of(0, 4))
    next(batches)
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive() or thread.daemon


def test_a_step_is_asked_for_when_its_turn_comes(set_of):
    class Endless:
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            assert index < 1000
            return Step(np.array([index % 20], np.int32))

    batches = stream(set_of(), Endless(), threads=1, ahead=2)
    assert [int(next(batches).labels[0]) for _ in range(3)] == [0, 0, 0]
    batches.close()
