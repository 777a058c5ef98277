"""Reading of images that are larger than memory, and the bare decoder that bounds it; photographs are made here."""

import atexit
import io
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data import load
from cnnjax.data.decoding import Encoded, decode, pillow_prepared
from cnnjax.data.images import Fitting
from cnnjax.data.packing import pack
from experiments.rivals.cases import Case
from experiments.rivals.resident import Work

WIDTH, HEIGHT, SHORTER_SIDE = 500, 375, 256
_OCTAVES = ((4, 0.15), (16, 0.25), (64, 0.3), (250, 0.3))  # pixels between two values, share of the contrast


def photograph(seed: int) -> bytes:
    """A JPEG of quality 90 with structure at every scale, some 40 KB."""
    from PIL import Image

    random, pixels = np.random.RandomState(seed), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for spacing, share in _OCTAVES:
        few = random.randint(0, 256, (HEIGHT // spacing + 2, WIDTH // spacing + 2, 3), np.uint8)
        smooth = Image.fromarray(few).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += share * np.asarray(smooth, np.float32)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def _batches(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows of each batch, and the draws by which its images are cut."""
    random = np.random.RandomState(0)
    rows, draws = random.permutation(case.images), random.random_sample((case.images, 4))
    return [
        (rows[start : start + case.batch], draws[start : start + case.batch])
        for start in range(0, len(rows), case.batch)
    ]


def _packed(case: Case, size: int | None) -> Work:
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    for index in range(case.images):
        for split in ("train", "test")[: 1 + (index < 2)]:
            path = place / "images" / split / str(index % 2) / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(index))
    fitted = {"shorter_side": SHORTER_SIDE, "interpolation": "bilinear", "data_dir": str(place)}
    side = case.shape[0]
    pack(DataConfig(folder=str(place / "images"), image_size=side, **fitted), place / "packed", size=size)
    config = DataConfig(packed=str(place / "packed"), image_size=side, train_crop="random", **fitted)
    images, batches = load(config).train.images, _batches(case)
    assert not isinstance(images, np.ndarray)

    def work(count: int) -> float:
        for number in range(count):
            images.read(*batches[number % len(batches)])
        return float("nan")

    return work


def packed_files(case: Case) -> Work:
    """Batches of packed JPEGs, each cut at random."""
    return _packed(case, None)


def packed_pixels(case: Case) -> Work:
    """Batches of packed pixels of the shorter side, each cut at random."""
    return _packed(case, SHORTER_SIDE)


def bare_decoder(case: Case) -> Work:
    """The same JPEGs from memory, decoded and cut in as many threads, and left where they are."""
    files, batches = [photograph(index) for index in range(case.images)], _batches(case)
    fitting = Fitting(case.shape[0], 3, True, SHORTER_SIDE, "bilinear")
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def one(row: int, draws: np.ndarray) -> None:
        decode(Encoded("a photograph", lambda: files[row]), fitting, "the benchmark", "random", draws)

    def work(count: int) -> float:
        with pillow_prepared():
            for number in range(count):
                list(pool.map(one, *batches[number % len(batches)]))
        return float("nan")

    return work
