"""What does not fit into the memory: a network is refused in one line before it is trained, a set is read by index."""

import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cnnjax.data.images import Fitting
from tests.data.packed_sets import write_packed
from tests.data.prepared_sets import prepare_own
from tests.faults import runs
from tests.faults.counts import count

SIDE = 2048  # of grey photographs that are small as files: 4 MiB of pixels


def limited(size: int) -> tuple[str, ...]:
    return ("tests.faults.limited", "AS", str(size), *runs.SCRIPT)


@pytest.mark.faults
@pytest.mark.parametrize("units", [8_000, 16_000])
def test_a_network_that_does_not_fit(new, units):
    workdir = new()
    script = limited(3_000_000_000)
    said = runs.one_line(runs.end(runs.begin(workdir, "--model.dense", str(units), str(units), script=script)))
    assert "MB of memory more, and" in said
    assert [path.name for path in workdir.iterdir()] == ["lock"]  # another command may use the folder
    count("no memory for the network", "refused")


@pytest.mark.faults
def test_a_batch_that_does_not_fit_and_the_largest_that_does(new):
    more = ("--train.epochs", "1", "--data.image-size", "64", "--model.widths", "64", "64", "--train.batch-size")
    workdir = new()
    said = runs.one_line(runs.end(runs.begin(workdir, *more, "1400", script=limited(4_000_000_000))))
    size = re.search(r"MB are left: (\d+) is the largest batch that fits; or train.accumulate [24]", said)
    assert size is not None and 350 <= int(size[1]) < 1400
    count("no memory for a batch", "refused")


def photograph(label: int) -> bytes:
    Image.fromarray(np.full((SIDE, SIDE), 100 + 50 * label, np.uint8)).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


PHOTOGRAPHS = [photograph(label) for label in range(2)]


def packed_set(folder, number):
    counts = {"train": [number // 2, number // 2], "test": [2, 2]}
    write_packed(
        folder / "packed",
        counts,
        lambda split, index: PHOTOGRAPHS[index // counts[split][0]],
        images="files",
        fitting=Fitting(SIDE, 1, True),
        shape=None,
    )
    return "--data.packed", str(folder / "packed")


def prepared_set(folder, number):
    def example(index):
        return {"image": PHOTOGRAPHS[index % 2], "label": index % 2}

    features = {
        "image": tfds.features.Image(encoding_format="jpeg", shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    prepare_own(folder, {"train": range(number), "test": range(4)}, features, example, shards=2)
    return "--data.name", "own_set"


@pytest.mark.faults
@pytest.mark.parametrize("made", [packed_set, prepared_set])
def test_a_set_of_four_times_the_memory_that_is_left(made, new, tmp_path):
    """Left is what the limit allows beyond what the same training takes of a set of 16 images, so of several steps."""

    def options(name, number):
        (tmp_path / name).mkdir()
        return (
            *made(tmp_path / name, number), "--data.data-dir", str(tmp_path / name), "--data.mean", "128",
            "--data.image-size", str(SIDE), "--data.shorter-side", str(SIDE), "--data.train-crop", "random",
            "--model.widths", "2", "2", "--model.filters", "8", "8", "--model.strides", "8", "8",
            "--model.paddings", "0", "0", "--model.pools", "1", "1", "--model.dense", "4",
            "--train.epochs", "1", "--train.keep-epochs", "1", "--train.batch-size", "4",
        )  # fmt: skip

    number = 200
    few = runs.finish(new(), *options("few", 16), script=limited(0))
    taken = int(re.findall(r"most memory: (\d+) bytes", few.error)[-1])
    left = number * SIDE**2 // 4
    workdir = new()
    runs.finish(workdir, *options("many", number), script=limited(taken + left))
    assert '"epoch": 1' in (workdir / "metrics.jsonl").read_text()
