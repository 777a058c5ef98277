"""How images come to the steps: a portion at a time, on the devices, with the rows of each step's batch in it.

The order is a pure function of (seed, epoch), and the position in it is the step; so a feed has no state that a
checkpoint would have to keep, and where one portion ends changes no bit.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int, Int32, UInt8

from cnnjax.data.batches import in_order
from cnnjax.data.dataset import Dataset, ImagesByIndex, Split
from cnnjax.data.randomness import Purpose, address
from cnnjax.errors import InputError
from cnnjax.train import placement
from cnnjax.train.memory import memory_left

PORTION_BYTES = 1 << 26  # of images that a streamed portion has; one is read ahead, and one is on the devices
PORTION_IMAGES = 1 << 13  # at most, so that the first batch of small images does not wait for many records


class Portion(NamedTuple):
    """Images on the devices, and for some steps one after another which of them are the step's batch."""

    images: UInt8[Array, "n height width channels"]
    labels: Int32[Array, " n"]
    rows: Int32[Array | np.ndarray, "*members steps batch"]  # into images and labels
    masks: Float32[Array | np.ndarray, "steps batch"]  # 0 for padding
    first: int | Int[Array, ""]  # the step whose batch is in the first row


def portion_like(split: Split, batch_size: int, streamed: bool) -> Portion:
    """Shapes and types of a portion that has one step of so many images, of a resident or a streamed feed."""
    count = batch_size if streamed else len(split)

    def like(kind: str, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.dtype(kind))

    images, labels = like("uint8", count, *split.images.shape[1:]), like("int32", count)
    return Portion(images, labels, like("int32", 1, batch_size), like("float32", 1, batch_size), 0)


Order = Callable[[Any, int], tuple[Any, Any]]  # (hyper, epoch) -> (rows, masks), as `epoch_order`


@runtime_checkable
class Feed(Protocol):
    """What a loop of steps asks for images."""

    steps: int  # of an epoch

    def portion(self, hyper: Any, step: int) -> tuple[Portion, int]:
        """A portion that has the batch of `step`, and the step behind its last."""
        ...


class Feeds(NamedTuple):
    """Those of a training; without validation images there is none of them."""

    train: Feed
    test: Feed
    validation: Feed | None = None


class Resident:
    """The feed of a split that is on the devices as a whole, each epoch in its own order."""

    def __init__(self, split: Split, batch_size: int, order: Order, place: Callable[[Any], Any]):
        """`place` brings arrays to the devices."""
        self.steps = -(-len(split) // batch_size)
        self._order = order
        self._images, self._labels = place((split.images, split.labels))
        self._at: tuple[Any, int, Any] = (None, -1, None)  # of whom, an epoch, and its order

    def portion(self, hyper: Any, step: int) -> tuple[Portion, int]:
        epoch = step // self.steps
        if self._at[0] is not hyper or self._at[1] != epoch:
            self._at = hyper, epoch, self._order(hyper, epoch)
        rows, masks = self._at[2]
        return Portion(self._images, self._labels, rows, masks, epoch * self.steps), (epoch + 1) * self.steps


class Streamed:
    """The feed of a split that is larger than the devices: the images of the next steps, read while others are seen.

    Each process reads the images of its own devices, and no others.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        order: Order,
        mesh: Mesh,
        *,
        training: bool = False,
        portion_bytes: int = PORTION_BYTES,
    ):
        """`order` is the same in all processes; in a training, images that can be are cut at random."""
        self._split, self._order, self._mesh = split, order, mesh
        self._draws = split.images.num_draws if training and isinstance(split.images, ImagesByIndex) else 0
        self.steps = -(-len(split) // batch_size)
        of_a_step = batch_size * int(np.prod(split.images.shape[1:]))
        # Steps of a portion.
        self._length = max(1, min(self.steps, portion_bytes // of_a_step, PORTION_IMAGES // batch_size))
        self._share = batch_size // mesh.shape[placement.DATA]  # images of a step that a device has
        self._at: tuple[Any, int, Any] = (None, -1, None)  # of whom, an epoch, and its rows
        # On one device nothing is bound to it, and programs that have met the images would be compiled once more if
        # these were.
        sharing = NamedSharding(mesh, P(placement.DATA))
        of_processes = functools.partial(jax.make_array_from_process_local_data, sharing)
        self._bring: Callable[..., Array] = jax.device_put if mesh.size == 1 else of_processes
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "images")
        self._ahead: dict[tuple[int, int], concurrent.futures.Future] = {}  # by first step, and of whom
        self._here: tuple[Any, Portion, int] | None = None  # of whom, what was asked for last, and its end

    def portion(self, hyper: Any, step: int) -> tuple[Portion, int]:
        """Asked for steps of one portion again and again, it reads it once."""
        epoch, position = divmod(step, self.steps)
        position -= position % self._length
        first = epoch * self.steps + position
        if self._here is None or self._here[0] is not hyper or self._here[1].first != first:
            self._here = None  # its place on the devices is free before the next one comes
            stop = min(first + self._length, (epoch + 1) * self.steps)
            self._here = hyper, self._brought(hyper, first, stop), stop
        return self._here[1:]

    def _brought(self, hyper: Any, first: int, stop: int) -> Portion:
        read = self._ahead.pop((first, id(hyper)), None) or self._read(hyper, first)
        self._ahead = {}
        images, labels, masks = read.result()
        self._ahead[stop, id(hyper)] = self._read(hyper, stop)
        batch_size = masks.shape[1]
        rows = np.arange(self._length, dtype=np.int32)[:, None] * self._share + np.arange(batch_size) % self._share
        return Portion(self._bring(images), self._bring(labels), rows.astype(np.int32), masks, first)

    def _read(self, hyper: Any, first: int) -> concurrent.futures.Future:
        epoch, position = divmod(first, self.steps)
        if self._at[0] is not hyper or self._at[1] != epoch:
            self._at = hyper, epoch, np.asarray(self._order(hyper, epoch)[0])
        rows = self._at[2][position : position + self._length]
        places = position * rows.shape[1] + np.arange(rows.size)
        masks = (places < len(self._split)).astype(np.float32).reshape(rows.shape)
        drawn = self._drawn(hyper, epoch, first, rows.shape) if self._draws else None
        return self._reader.submit(self._of, rows, masks, drawn)

    def _drawn(self, hyper: Any, epoch: int, first: int, shape: tuple[int, int]) -> np.ndarray:
        """What each image of these steps is cut by."""

        def of_step(step):
            return jax.random.uniform(address(hyper.seed, Purpose.CROP, epoch, step), (shape[1], self._draws))

        return np.asarray(jax.vmap(of_step)(first + np.arange(shape[0])))

    def _of(
        self, rows: np.ndarray, masks: np.ndarray, drawn: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images and labels of this process's devices, device by device and step by step; masks of all."""
        own = placement.columns_of_process(self._mesh, rows.shape[1])
        missing = self._length - len(rows)  # behind the end of the epoch
        devices = (own.stop - own.start) // self._share
        mine = rows[:, own].reshape(len(rows), devices, self._share).swapaxes(0, 1)
        images, labels = self._images(mine, drawn, own), self._split.labels[mine.reshape(-1)]
        if missing:
            images, labels = (
                np.pad(part.reshape(*mine.shape, *part.shape[1:]), [(0, 0), (0, missing)] + [(0, 0)] * part.ndim)
                for part in (images, labels)
            )
            images, labels = images.reshape(-1, *self._split.image_shape), labels.reshape(-1)
        return images, labels, np.pad(masks, ((0, missing), (0, 0)))

    def _images(self, rows: np.ndarray, drawn: np.ndarray | None, own: slice) -> np.ndarray:
        images, flat = self._split.images, rows.reshape(-1)
        if drawn is None or isinstance(images, np.ndarray):
            return images[flat]
        by_device = drawn[:, own].reshape(len(drawn), -1, self._share, self._draws).swapaxes(0, 1)
        return images.read(flat, by_device.reshape(-1, self._draws))


Kind = Literal["auto", "resident", "streamed"]


class Choice(NamedTuple):
    """Which feed a data set has, and why."""

    streamed: bool
    reason: str


def choose(dataset: Dataset, kind: Kind = "auto") -> Choice:
    """The feed of the images: all on the devices, where they take at most half of the memory that is left.

    Raises:
        InputError: all are to be on the devices, and they lie on disk.
    """
    splits = [dataset.train, dataset.test, *([] if dataset.validation is None else [dataset.validation])]
    size = sum(split.images.nbytes for split in splits)
    on_disk = not all(split.in_memory for split in splits)
    told = f"{' + '.join(f'{len(split):,}' for split in splits)} images, {size / 1e6:,.0f} MB"
    if kind == "resident" and on_disk:
        raise InputError(f"--feed must be streamed for {dataset.name}, whose images lie on disk ({told})")
    left = memory_left()
    if kind == "auto":
        fits = left is None or size <= left // 2
        images = dataset.train.images
        rule = f" ({images.why})" if isinstance(images, ImagesByIndex) and images.why else ""
        why = f"which lie on disk{rule}" if on_disk else f"of {(left or 0) / 1e6:,.0f} MB of memory that are left"
        return Choice(on_disk or not fits, f"{told}, {why}")
    return Choice(kind == "streamed", f"{told}, as --feed says")


def in_its_own_order(split: Split, batch_size: int, place: Callable[[Any], Any]) -> Resident:
    """The feed of a split that is looked at as it is, each image once."""
    order = in_order(len(split), batch_size)
    return Resident(split, batch_size, lambda hyper, epoch: order, place)


def portions(feed: Feed, hyper: Any, start: int, stop: int) -> Iterator[tuple[Portion, int, int]]:
    """The portions of the steps from `start` to `stop`, each with the first step that it serves and that behind."""
    while start < stop:
        portion, end = feed.portion(hyper, start)
        end = min(end, stop)
        yield portion, start, end
        start = end
