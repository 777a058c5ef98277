"""Any image classification set of TensorFlow Datasets that is prepared as array_record; some are prepared here."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data import prepared
from cnnjax.data.cache import Contents, load_or_decode
from cnnjax.data.dataset import Dataset
from cnnjax.data.decoding import Allocate, Encoded, decode_splits
from cnnjax.data.images import Fitting
from cnnjax.data.preparation import prepare
from cnnjax.data.prepared import Prepared
from cnnjax.data.published import FILES
from cnnjax.data.splits import stratified_split
from cnnjax.errors import InputError
from cnnjax.paths import expanded

Progress = Callable[[str, int, int], None]  # (description, done, total)


def load(config: DataConfig, progress: Progress | None = None, *, embedded: Sequence[str] = ()) -> Dataset:
    """The set called `config.name`, which may carry a configuration and version: "mnist", "cmaterdb/bangla:1.0.0".

    It must have the features `image` and `label` (a class). The test split is `test`, else `validation`, else a seeded
    stratified part of `train`. Decoded images are kept under `config.data_dir` and used again.

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
    return _decoded(prepared.read(folder, name), name.set, config, progress)


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


def _decoded(found: Prepared, name: str, config: DataConfig, progress: Progress | None) -> Dataset:
    test = next((split for split in found.shards if split != "train"), None)
    fitting = Fitting.of(config, upright=False)  # pixels as they were published

    def decode(allocate: Allocate) -> Contents:
        parts = _parts(found, test, config)
        labels = {ours: np.zeros(len(indices), np.int64) for ours, (_, indices) in parts.items()}
        splits = {
            ours: (len(indices), _images(found, theirs, indices, labels[ours]))
            for ours, (theirs, indices) in parts.items()
        }
        decode_splits(splits, fitting, allocate, progress, name=name, source=f"data.name {found.full_name}")
        return Contents(found.class_names, labels)

    recipe = {
        "catalogue": found.full_name,
        "files": found.sha256,
        "fitting": fitting.recipe,
        "split": test or [config.test_fraction, config.split_seed],
    }
    return load_or_decode(config.data_dir, name, recipe, decode)


def _parts(found: Prepared, test: str | None, config: DataConfig) -> dict[str, tuple[str, np.ndarray]]:
    """For each of our splits the split that it is read from and which of its records."""
    whole = {split: np.arange(sum(count for _, count in shards)) for split, shards in found.shards.items()}
    if test is not None:
        return {"train": ("train", whole["train"]), "test": (test, whole[test])}
    labels = np.array([record.label for record in prepared.records(found, "train", whole["train"])])
    chosen = stratified_split(labels, test_fraction=config.test_fraction, seed=config.split_seed, name=found.full_name)
    return {ours: ("train", indices) for ours, indices in zip(("train", "test"), chosen, strict=True)}


def _images(found: Prepared, split: str, indices: np.ndarray, labels: np.ndarray) -> Iterator[Encoded]:
    """The images of these records, still encoded; `labels` is filled on the way."""
    for position, record in enumerate(prepared.records(found, split, indices)):
        labels[position] = record.label
        yield Encoded(record.name, partial(bytes, record.image))
