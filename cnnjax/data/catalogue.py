"""Any image classification set of TensorFlow Datasets that is prepared as array_record; some are prepared here."""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Int32

from cnnjax.config import DataConfig
from cnnjax.data import prepared
from cnnjax.data.cache import Contents, load_or_decode
from cnnjax.data.dataset import Dataset, checked_dataset
from cnnjax.data.decoding import Allocate, Decoded, Encoded, decode, decode_splits, pillow_prepared, require_alike
from cnnjax.data.images import Fitting
from cnnjax.data.preparation import prepare
from cnnjax.data.prepared import Prepared, PreparedRecords, Record
from cnnjax.data.published import FILES
from cnnjax.data.records import ImagesInRecords, why_by_index
from cnnjax.data.splits import stratified_split
from cnnjax.errors import InputError
from cnnjax.paths import expanded

_NO_LABEL = -1  # as the library writes it, for the test of imagenet2012 among others
Progress = Callable[[str, int, int], None]  # (description, done, total)


def load(config: DataConfig, progress: Progress | None = None, *, embedded: Sequence[str] = ()) -> Dataset:
    """The set called `config.name`, which may carry a configuration and version: "mnist", "cmaterdb/bangla:1.0.0".

    It must have the features `image` and `label` (a class). The test split is `test`, if its images have labels, else
    `validation`, else a seeded stratified part of `train`. Up to `records.IN_MEMORY` bytes it is decoded once, and kept
    under `config.data_dir`. A larger set, or one whose training images are cut at random, is opened by index; the first
    time all of it is read, for its labels, which are kept there.

    A set that is prepared under `data_dir` is read. The sets of `published.FILES` are prepared first where they are
    not; no other is, because its builder would be code that runs on files from wherever the config says.

    Args:
        embedded: names that are not in the catalogue but count as close matches of a misspelt one.

    Raises:
        InputError: for an unknown name, a set that is neither prepared nor can be here, missing or wrong files, no
            network, features that are not an image and a class, images that need `config.image_size` or
            `config.channels`.
    """
    name = prepared.parse_name(config.name)
    if name is None:
        raise _unknown(config.name, embedded)
    try:
        data_dir = expanded(config.data_dir)
    except OSError as error:
        raise InputError(f"data.data_dir must be a folder, got {config.data_dir!r}: {error}") from error
    folder = prepared.find(name, data_dir)
    if folder is None:
        if name.set not in FILES:
            raise _unknown(config.name, embedded, name.set, config.data_dir)
        folder = prepare(name, data_dir, config.manual_dir, progress)
    found = prepared.read(folder, name)
    if "test" in found.shards and next(prepared.records(found, "test", [0])).label == _NO_LABEL:
        found = prepared.read(folder, name, ("validation",))
    return _opened(found, name.set, config, progress)


def _unknown(text: str, embedded: Sequence[str], set_name: str = "", data_dir: str = "") -> InputError:
    import tensorflow_datasets as tfds

    known = [*embedded, *tfds.list_builders(with_community_datasets=False)]
    if set_name in known:
        return InputError(
            f"data.name {text} is not prepared under {data_dir}, and only {', '.join(FILES)} are prepared here: with"
            f" TensorFlow, tfds build {text} --data_dir {data_dir} --file_format array_record"
        )
    close = difflib.get_close_matches(text, known, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return InputError(
        f"data.name must be {', '.join(embedded)} or NAME[/CONFIG][:1.0.0] in TensorFlow Datasets, got {text!r}{hint}"
    )


def _opened(found: Prepared, name: str, config: DataConfig, progress: Progress | None) -> Dataset:
    fitting = Fitting.of(config, upright=False)  # pixels as they were published
    (record,) = prepared.records(found, "train", [0])
    with pillow_prepared():
        first = decode(_encoded(record), fitting, found.source)
    why = why_by_index(config, sum(found.counts.values()) * first.pixels.size)
    if why:
        return _by_index(found, name, fitting, first, why, config, progress)
    return _decoded(found, name, fitting, config, progress)


def _by_index(
    found: Prepared,
    name: str,
    fitting: Fitting,
    first: Decoded,
    why: str,
    config: DataConfig,
    progress: Progress | None,
) -> Dataset:
    survey = prepared.surveyed(found, config.data_dir, progress)
    for other in survey.kinds[1:]:
        require_alike(survey.kinds[0], other, fitting)
    fitting = fitting._replace(channels=fitting.channels or first.channels)
    shards = {split: found.opened(split) for split in found.shards}
    parts = {}
    for ours, (theirs, indices) in _parts(found, config, lambda: survey.labels["train"]).items():
        labels = survey.labels[theirs] if indices is None else survey.labels[theirs][indices]
        chosen = None if indices is None else hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
        decides = [survey.sha256[theirs], list(fitting), [len(labels), *first.pixels.shape], chosen]
        images = ImagesInRecords(
            f"the {ours} images of {name}",
            PreparedRecords(found, theirs, shards[theirs], labels, indices),
            first.pixels.shape,
            fitting,
            config,
            hashlib.sha256(json.dumps(decides).encode()).hexdigest(),
            training=ours == "train",
        )
        images.why = why
        parts[ours] = images, labels
    return checked_dataset(name, found.class_names, **parts)


def _decoded(found: Prepared, name: str, fitting: Fitting, config: DataConfig, progress: Progress | None) -> Dataset:
    def train_labels() -> np.ndarray:
        records = prepared.records(found, "train", np.arange(found.counts["train"]))
        return np.array([record.label for record in records])

    def decode_all(allocate: Allocate) -> Contents:
        splits, labels = {}, {}
        for ours, (theirs, indices) in _parts(found, config, train_labels).items():
            indices = np.arange(found.counts[theirs]) if indices is None else indices
            labels[ours] = np.zeros(len(indices), np.int64)
            splits[ours] = len(indices), _images(found, theirs, indices, labels[ours])
        decode_splits(splits, fitting, allocate, progress, name=name, source=found.source)
        return Contents(found.class_names, labels)

    recipe = {
        "catalogue": found.full_name,
        "files": prepared.files_of(found),
        "fitting": fitting.recipe,
        "split": _test_split(found) or [config.test_fraction, config.split_seed],
    }
    return load_or_decode(config.data_dir, name, recipe, decode_all)


def _test_split(found: Prepared) -> str | None:
    return next((split for split in found.shards if split != "train"), None)


def _parts(
    found: Prepared, config: DataConfig, train_labels: Callable[[], np.ndarray]
) -> dict[str, tuple[str, Int32[np.ndarray, " n"] | None]]:
    """For each of our splits the split that it is read from and which of its records; None: all."""
    test = _test_split(found)
    if test is not None:
        return {"train": ("train", None), "test": (test, None)}
    split = {"test_fraction": config.test_fraction, "seed": config.split_seed, "name": found.full_name}
    chosen = stratified_split(train_labels(), **split)
    return {ours: ("train", indices.astype(np.int32)) for ours, indices in zip(("train", "test"), chosen, strict=True)}


def _images(found: Prepared, split: str, indices: np.ndarray, labels: np.ndarray) -> Iterator[Encoded]:
    """The images of these records, still encoded; `labels` is filled on the way."""
    for position, record in enumerate(prepared.records(found, split, indices)):
        labels[position] = record.label
        yield _encoded(record)


def _encoded(record: Record) -> Encoded:
    return Encoded(record.name, partial(bytes, record.image))
