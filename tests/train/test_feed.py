"""Feeds: a streamed set is the set in memory, whatever the portions, and every image is seen once an epoch."""

import gc
import tracemalloc

import jax
import numpy as np
import pytest

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import ImagesByIndex, Split, checked_dataset, epoch_order, load, records
from cnnjax.data.images import Fitting
from cnnjax.train import feed as feed_module
from cnnjax.train import placement
from cnnjax.train.feed import Resident, Streamed, in_its_own_order, portions
from cnnjax.train.run import build
from cnnjax.train.step import make_batch_of, make_preprocess
from cnnjax.train.training import compiled, evaluated
from tests.data.packed_sets import write_packed

COUNT, BATCH = 22, 4  # six steps an epoch, the last one padded
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
SPLIT = Split(IMAGES, np.arange(COUNT, dtype=np.int32) % 3)
CONFIG = Config(
    DataConfig(),
    ModelConfig("lenet", widths=(4, 4), filters=(3, 3), paddings=(1, 1), dense=(8,), norm="batch"),
    TrainConfig(epochs=3, batch_size=BATCH, keep_epochs=()),
    Hyperparams(shift=1.0),
)


def order(hyper, epoch):
    return epoch_order(hyper.seed, epoch, COUNT, BATCH)


def streamed(steps, of=order):
    return Streamed(SPLIT, BATCH, of, placement.make_mesh(), portion_bytes=steps * BATCH * 64)


def seen(feed, start, stop):
    """The images, labels and masks of these steps, one after another."""
    batch_of, found = make_batch_of(), []
    for part, first, end in portions(feed, CONFIG.hyper, start, stop):
        found += [tuple(map(np.asarray, batch_of(part, step))) for step in range(first, end)]
    return found


@pytest.mark.parametrize("steps", [1, 4, 6, 99])
def test_a_streamed_set_gives_the_batches_of_one_in_memory(steps):
    """From anywhere in the middle, and over the ends of portions and epochs."""
    resident = Resident(SPLIT, BATCH, order, jax.device_put)
    for (images, labels, mask), wanted in zip(seen(streamed(steps), 3, 14), seen(resident, 3, 14), strict=True):
        counts = mask > 0
        np.testing.assert_array_equal(mask, wanted[2])
        np.testing.assert_array_equal(images[counts], wanted[0][counts])
        np.testing.assert_array_equal(labels[counts], wanted[1][counts])


def test_asked_step_by_step_it_gives_the_same_and_reads_each_portion_once():
    images, reads, batch_of = Counted(IMAGES), [], make_batch_of()
    feed = Streamed(Split(images, SPLIT.labels), BATCH, order, placement.make_mesh(), portion_bytes=4 * BATCH * 64)
    resident = Resident(SPLIT, BATCH, order, jax.device_put)
    for step in range(1, 12):
        portion, end = feed.portion(CONFIG.hyper, step)
        reads.append(end)
        batch, wanted = (batch_of(one, step) for one in (portion, resident.portion(CONFIG.hyper, step)[0]))
        counts = np.asarray(wanted.mask) > 0
        np.testing.assert_array_equal(np.asarray(batch.images)[counts], np.asarray(wanted.images)[counts])
    assert reads == [4] * 3 + [6] * 2 + [10] * 4 + [12] * 2
    feed.portion(CONFIG.hyper, 12)  # what was read ahead has been read now
    assert images.reads in (5, 6)


class Counted(ImagesByIndex):
    """Images that count how often they are read."""

    name, sha256 = "counted", "0" * 64

    def __init__(self, images):
        self.shape, self._images, self.reads = images.shape, images, 0

    def read(self, rows, draws=None):
        self.reads += 1
        return self._images[rows]

    def mean(self):
        return self._images.mean(axis=0, dtype=np.float32)


def test_every_image_is_seen_once_an_epoch():
    numbered = Split(IMAGES, np.arange(COUNT, dtype=np.int32))
    feed = Streamed(numbered, BATCH, order, placement.make_mesh(), portion_bytes=2 * BATCH * 64)
    found = [labels[mask > 0] for _, labels, mask in seen(feed, 6, 12)]
    assert sorted(np.concatenate(found)) == list(range(COUNT))


def test_what_another_asks_for_is_in_that_ones_order():
    feed, other = streamed(2), Hyperparams(seed=1)
    first = feed.portion(CONFIG.hyper, 0)[0]
    theirs = feed.portion(other, 2)[0]
    rows, _ = order(other, 0)
    np.testing.assert_array_equal(np.asarray(theirs.images).reshape(2, BATCH, 8, 8, 1), IMAGES[np.asarray(rows[2:4])])
    assert not np.array_equal(first.images, theirs.images)


def test_a_streamed_training_is_the_one_in_memory_to_the_bit(caplog):
    """And its steps are compiled once, whatever the portions."""
    dataset = checked_dataset(
        "made", ("a", "b", "c"), train=(IMAGES, SPLIT.labels), test=(IMAGES[:9], SPLIT.labels[:9])
    )
    network, preprocess = build(CONFIG, dataset), make_preprocess(np.full((8, 8, 1), 128.0), 64.0)
    ends = []
    for is_streamed in (False, True):
        made = compiled(CONFIG, network, preprocess, dataset, streamed=is_streamed)
        train, test, _ = made.feeds()
        if is_streamed:
            train = streamed(4)
        state = made.init(CONFIG.hyper)
        caplog.clear()
        with jax.log_compiles():
            for part in portions(train, CONFIG.hyper, 0, 18):
                state = made.chunk(CONFIG.hyper, state, *part)
        assert sum("Compiling jit(train_chunk)" in line for line in caplog.messages) == 1
        ends.append((state, evaluated(made.evaluate, test, CONFIG.hyper, state)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert float(ends[0][1].count) == 9


def test_a_split_as_it_is():
    feed = in_its_own_order(SPLIT, BATCH, jax.device_put)
    found = seen(feed, 0, feed.steps)
    np.testing.assert_array_equal(np.concatenate([images[mask > 0] for images, _, mask in found]), IMAGES)


def test_a_portion_has_no_more_images_than_steps_of_small_ones_need(monkeypatch):
    monkeypatch.setattr(feed_module, "PORTION_IMAGES", 2 * BATCH)
    part, stop = streamed(99).portion(CONFIG.hyper, 0)
    assert (len(part.images), stop) == (2 * BATCH, 2)
    monkeypatch.setattr(feed_module, "PORTION_IMAGES", 1)
    assert streamed(99).portion(CONFIG.hyper, 0)[1] == 1


def test_twelve_bytes_a_record_are_held_of_a_packed_set(tmp_path, monkeypatch):
    """Label, place in the shards, and place in the epoch's order; the rest does not grow with the records."""
    monkeypatch.setattr(records, "IN_MEMORY", 0)
    monkeypatch.setattr(feed_module, "PORTION_IMAGES", 16 * BATCH)

    def held(count):
        folder = tmp_path / str(count)
        counts = {"train": [count // 2, count // 2], "test": [1, 1]}
        write_packed(
            folder,
            counts,
            lambda split, index: b"\7",
            images="pixels",
            fitting=Fitting(1, 1),
            shape=(1, 1, 1),
            group=64,
        )

        def numbered(hyper, epoch):  # arrays of JAX are not seen by what counts here
            return np.arange(count, dtype=np.int32).reshape(-1, BATCH), None

        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        train = load(DataConfig(packed=str(folder), data_dir=str(tmp_path))).train
        feed = Streamed(train, BATCH, numbered, placement.make_mesh(), training=True)
        part, _ = feed.portion(CONFIG.hyper, 0)
        np.testing.assert_array_equal(part.labels, 0)
        for ahead in feed._ahead.values():
            ahead.result()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return after - before

    held(500)  # what is imported and compiled on the way
    few, many = held(1000), held(21_000)
    assert (many - few) / 20_000 == pytest.approx(12, abs=0.1)
