"""What a meter makes of the seconds that it is told, in closed form; and which seconds the loop tells it."""

import dataclasses
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from cnnjax import cli
from cnnjax.config import ModelConfig
from cnnjax.data import ImagesByIndex, Split
from cnnjax.errors import InputError
from cnnjax.train import placement, training
from cnnjax.train import run as running
from cnnjax.train.checkpoints import Checkpoints
from cnnjax.train.feed import Streamed
from cnnjax.train.log import Log
from cnnjax.train.step import make_order
from cnnjax.train.throughput import Meter, Work
from experiments import train
from tests.train import small

CONFIG = dataclasses.replace(small.CONFIG, model=ModelConfig("mlp", dense=(8,)))
IMAGES, BATCH = 22, 4  # six steps an epoch, two images in the last one


def test_a_meter_in_closed_form():
    meter = Meter(IMAGES, BATCH)
    meter.add(0, 1, 5.0, 7.0)  # the first step: it compiles, and counts by itself
    meter.add(1, 4, 0.5, 2.5)
    meter.add(4, 6, 0.0, 1.0)
    assert meter.waiting == 0.125
    work = Work(operations=1e9, teraflops=0.5)
    assert meter.end_epoch(1, meter.waiting, work) == {
        "epoch": 1, "from_step": 0, "steps": 5, "first_step_seconds": 12.0, "seconds": 4.0,
        "images_per_second": (IMAGES - BATCH) / 4, "waiting": 0.125, "peak_share": 1e9 * 18 / 4 / 0.5e12,
        "peak_teraflops": 0.5,
    }  # fmt: skip
    meter.add(6, 12, 1.0, 1.0)
    assert meter.end_epoch(2, meter.waiting, None) == {
        "epoch": 2, "from_step": 0, "steps": 6, "seconds": 2.0, "images_per_second": IMAGES / 2, "waiting": 0.5,
    }  # fmt: skip


def test_a_meter_tells_where_in_the_epoch_it_went_on():
    meter = Meter(IMAGES, BATCH)
    meter.go_on_from(8)
    meter.add(8, 9, 1.0, 1.0)
    meter.add(9, 12, 0.0, 2.0)
    line = meter.end_epoch(2, 0.0, None)
    assert (line["from_step"], line["steps"], line["images_per_second"]) == (2, 3, 10 / 2)


def test_an_epoch_of_one_step_that_is_the_first_has_no_rate():
    meter = Meter(3, 4)
    meter.add(0, 1, 1.0, 2.0)
    assert meter.end_epoch(1, 0.0, Work(1.0, 1.0)) == {
        "epoch": 1, "from_step": 0, "steps": 0, "first_step_seconds": 3.0
    }  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """The loop's clock, which goes on where it is told to and nowhere else."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


STEP, TEST = 3.0, 100.0  # seconds of a step, and of a test


def loop_of(dataset, workdir, checkpoints, clock, feed_of):
    """Two epochs of CONFIG on this clock; `feed_of` makes the feed of the training out of the usual one."""
    programs = training.compiled(CONFIG, running.build(CONFIG, dataset), lambda images: images / 16.0, dataset)
    feeds = programs.feeds()
    feeds = feeds._replace(train=feed_of(feeds.train))

    def chunk(hyper, state, portion, start, stop):
        clock.now += STEP * (stop - start)
        return programs.chunk(hyper, state, portion, start, stop)

    chunk.lower = programs.chunk.lower

    def evaluate(*args):
        clock.now += TEST
        return programs.evaluate(*args)

    evaluate.lower = programs.evaluate.lower
    slowed = programs._replace(chunk=chunk, evaluate=evaluate, feeds=lambda: feeds)
    log = Log(workdir, Meter(len(dataset.train), CONFIG.train.batch_size), Work(1e6, 1.0), None, print)
    return training.Training(CONFIG, slowed, dataset, workdir, checkpoints, lambda *_: None, print, {}, log=log)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "throughput.jsonl").read_text().splitlines()]


class Slow:
    """A feed that is waited for a second each time."""

    def __init__(self, feed, clock):
        self.steps, self._feed, self._clock = feed.steps, feed, clock

    def portion(self, hyper, step):
        self._clock.now += 1.0
        return self._feed.portion(hyper, step)


def test_the_loop_counts_waiting_and_work_and_no_tests(dataset, tmp_path, clock):
    """So slow a step is a chunk by itself: of each four seconds the feed has one."""
    with running.claimed(tmp_path, CONFIG, dataset, print), Checkpoints(tmp_path) as checkpoints:
        loop_of(dataset, tmp_path, checkpoints, clock, lambda feed: Slow(feed, clock)).go_to(2)
    count, size = len(dataset.train), CONFIG.train.batch_size
    first, second = lines(tmp_path)
    assert first["waiting"] == second["waiting"] == 0.25
    assert first["first_step_seconds"] == 4.0 and "first_step_seconds" not in second
    assert (first["steps"], second["steps"]) == (22, 23)
    assert first["images_per_second"] == pytest.approx((count - size) / (4 * 22), rel=1e-5)
    assert second["images_per_second"] == pytest.approx(count / (4 * 23), rel=1e-5)
    assert second["peak_share"] == pytest.approx(1e6 * count / (4 * 23) / 1e12, rel=1e-5)


class Reluctant(ImagesByIndex):
    """Images that are read only while somebody waits for them, five seconds each time."""

    name, sha256 = "reluctant", "0" * 64

    def __init__(self, images, clock):
        self.shape, self._images, self._clock = images.shape, images, clock
        self.asked = threading.Semaphore(0)
        self.reads = 0

    def read(self, rows, draws=None):
        assert self.asked.acquire(timeout=60)
        self._clock.now += 5.0
        self.reads += 1
        return self._images[rows]

    def mean(self):
        return self._images.mean(axis=0, dtype=np.float32)


def test_the_loop_waits_for_a_streamed_portion_where_it_is_asked_for_and_once(dataset, tmp_path, clock):
    """The reading itself moves the clock, in its own thread; a portion is of 8 steps, 3 of them make an epoch."""
    images = Reluctant(dataset.train.images, clock)
    size = CONFIG.train.batch_size

    class Asked(Streamed):
        def _brought(self, *args):
            images.asked.release()
            return super()._brought(*args)

    def feed_of(_):
        return Asked(
            Split(images, dataset.train.labels),
            size,
            make_order(CONFIG.train, len(dataset.train)),
            placement.make_mesh(),
            training=True,
            portion_bytes=8 * size * 64,
        )

    try:
        with running.claimed(tmp_path, CONFIG, dataset, print), Checkpoints(tmp_path) as checkpoints:
            loop_of(dataset, tmp_path, checkpoints, clock, feed_of).go_to(2)
        assert images.reads == 6
    finally:
        images.asked.release(100)  # the reader's thread, which is ahead, must not be left waiting
    first, second = lines(tmp_path)
    assert first["waiting"] == pytest.approx(
        2 * 5 / (2 * 5 + 22 * STEP), abs=1e-6
    )  # the first portion is the first step's
    assert second["waiting"] == pytest.approx(3 * 5 / (3 * 5 + 23 * STEP), abs=1e-6)


def told(workdir, *epochs, said=None):
    """A log that has been told of these epochs, of a step each."""
    log = Log(workdir, Meter(4, 4), None, None, print if said is None else said.append)
    for epoch in epochs:
        log.chunk(epoch - 1, epoch, 0.0, 1.0)
        log.epoch(json.dumps({"epoch": epoch, "test_error": 0.5}))
    return log


def test_an_epoch_that_is_trained_again_has_one_line(tmp_path):
    told(tmp_path, 1, 2, 3)
    told(tmp_path, 2)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]
    assert ["seconds" in line for line in lines(tmp_path)] == [False, False, True]  # each sitting's first step is apart


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b'{"epoch": Infinity}\n[1]\n7\n{"epoch": 1', b'{"epoch": 3}\n{"epoch": 1}\n', b""]
)
def test_a_damaged_file_is_said_and_written_anew(tmp_path, content):
    (tmp_path / "throughput.jsonl").write_bytes(content)
    said = []
    told(tmp_path, 1, 2, said=said)
    assert [line["epoch"] for line in lines(tmp_path)] == ([1, 2, 3] if b"3" in content else [1, 2])
    wanted = [f"{tmp_path / 'throughput.jsonl'} is damaged; what cannot be read of it is left out"]
    assert said == (wanted if content[:1] in (b"\xff", b"{") and b"3" not in content else [])


def test_a_torn_last_line_goes_without_a_word(tmp_path):
    told(tmp_path, 1, 2)
    path = tmp_path / "throughput.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "from')
    said = []
    told(tmp_path, 3, said=said)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3] and said == []


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf"])
def test_a_peak_that_is_none_is_refused(given):
    with pytest.raises(InputError, match="^--peak-teraflops must be a finite number > 0, got "):
        cli.parse([f"--peak-teraflops={given}"], train.Options())


def test_the_peak_is_the_makers_or_the_given_one():
    mesh = placement.make_mesh()
    assert running._work(mesh, 1.0, None) is None  # nobody gives one for a CPU
    assert running._work(mesh, None, 5.0) is None
    assert running._work(mesh, 1.0, 5.0) == Work(1.0, 5.0 * mesh.size)
