"""Any image classification set of TensorFlow Datasets, read over array_record without TensorFlow.

A set that is prepared under `data_dir` is read. One that is not is prepared first: the sets of `published.FILES`
without TensorFlow, every other by its own builder, most of which need it.
"""

import contextlib
import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.config import DataConfig
from cnnjax.data import published
from cnnjax.data.cache import Contents, file_table, load_or_decode
from cnnjax.data.dataset import Dataset
from cnnjax.data.decoding import Allocate, Encoded, Fitting, decode_splits
from cnnjax.data.preparation import is_prepared, missing_package, one_line, prepare
from cnnjax.data.published import Builder, Progress
from cnnjax.data.splits import stratified_split
from cnnjax.errors import InputError

_READ_BLOCK = 256  # records


def load(config: DataConfig, progress: Progress | None = None, *, embedded: Sequence[str] = ()) -> Dataset:
    """The set called `config.name`, which may carry a configuration and version: "mnist", "cmaterdb/bangla:1.0.0".

    It must have the features `image` and `label` (a class). The test split is `test`, else `validation`, else a seeded
    stratified part of `train`. Decoded images are kept under `config.data_dir` and used again.

    Args:
        embedded: names that are not in the catalogue but count as close matches of a misspelt one.

    Raises:
        InputError: for an unknown name, missing or wrong files, no network, no TensorFlow where it is needed, features
            that are not an image and a class, images that need `config.image_size` or `config.channels`.
    """
    data_dir = Path(config.data_dir).expanduser()
    builder = _find_builder(config.name, data_dir, embedded)
    if not is_prepared(builder):
        own = builder.name in published.FILES
        prepare(published.make_builder(builder.name, data_dir, progress=progress) if own else builder, config)
        builder = _find_builder(config.name, data_dir, embedded)  # the stock one, which knows the prepared set
    return _read(builder, config, progress)


def _find_builder(name: str, data_dir: Path, embedded: Sequence[str]) -> Builder:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a missing package is announced by a banner
            return tfds.builder(name, data_dir=str(data_dir))
    except DatasetNotFoundError:
        known = [*embedded, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(
            f"data.name must be {', '.join(embedded)} or a name in TensorFlow Datasets, got {name!r}{hint}"
        ) from None
    except Exception as error:  # an unknown configuration or version: each builder has its own way to refuse
        package = missing_package(error)
        reason = f"it needs {package}: pip install {package}" if package else one_line(error)
        raise InputError(f"data.name {name!r} cannot be used: {reason}") from error


def _read(builder: Builder, config: DataConfig, progress: Progress | None) -> Dataset:
    info, folder = builder.info, Path(builder.data_path)
    class_names = _class_names(info)
    if "train" not in info.splits:
        raise InputError(f"data.name {info.name} must have a split train, got {', '.join(info.splits) or 'none'}")
    test = next((split for split in ("test", "validation") if split in info.splits), None)
    fitting = Fitting(config.image_size, config.channels, upright=False)  # pixels as they were published

    def decode(allocate: Allocate) -> Contents:
        parts = _parts(builder, test, config)
        labels = {split: np.zeros(len(indices), np.int32) for split, (_, indices) in parts.items()}
        splits = {
            split: (len(indices), _images(info.full_name, source, indices, labels[split]))
            for split, (source, indices) in parts.items()
        }
        decode_splits(splits, fitting, allocate, progress, name=info.name, source=f"data.name {info.name}")
        return Contents(class_names, labels)

    recipe = {
        "catalogue": info.full_name,
        "files": file_table(folder, sorted(path for path in folder.iterdir() if path.is_file())),
        "fitting": fitting,
        "split": test or [config.test_fraction, config.split_seed],
    }
    return load_or_decode(config.data_dir, info.name, recipe, decode)


def _class_names(info: Any) -> tuple[str, ...]:
    """The names of the classes, after a check that the set has what training needs."""
    import tensorflow_datasets as tfds

    features = dict(info.features.items())
    image, label = features.get("image"), features.get("label")
    eight_or_sixteen_bits = isinstance(image, tfds.features.Image) and image.np_dtype in (np.uint8, np.uint16)
    if not eight_or_sixteen_bits or not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise InputError(
            f"data.name {info.name} must have the features image (Image) and label (ClassLabel), got {found}"
        )
    return tuple(label.names)


def _parts(builder: Builder, test: str | None, config: DataConfig) -> dict[str, tuple[Any, Sequence[int]]]:
    """For each of our splits the records it is read from and which of them."""
    import tensorflow_datasets as tfds

    try:
        names = ["train"] if test is None else ["train", test]
        sources = builder.as_data_source(split=names, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise InputError(
            f"data.name {builder.name} is prepared under {config.data_dir} in another format than array_record:"
            f" delete {builder.data_path} or choose another --data.data-dir"
        ) from error
    if test is not None:
        return {split: (source, range(len(source))) for split, source in zip(("train", "test"), sources, strict=True)}
    (source,) = sources
    labels = np.array([record["label"] for record in _records(builder.name, source, range(len(source)))])
    chosen = stratified_split(labels, test_fraction=config.test_fraction, seed=config.split_seed, name=builder.name)
    return {split: (source, indices.tolist()) for split, indices in zip(("train", "test"), chosen, strict=True)}


def _images(name: str, source: Any, indices: Sequence[int], labels: np.ndarray) -> Iterator[Encoded]:
    """The images of these records, still encoded; `labels` is filled on the way."""
    for position, record in enumerate(_records(name, source, indices)):
        labels[position] = record["label"]
        yield Encoded(f"{name} record {indices[position]} of {source.split}", record["image"])


def _records(name: str, source: Any, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    # In blocks, which are read three times as fast as single records.
    for start in range(0, len(indices), _READ_BLOCK):
        try:
            yield from source.__getitems__(list(indices[start : start + _READ_BLOCK]))
        except Exception as error:  # the record library has no error of its own
            raise InputError(f"data.name {name}: the prepared files cannot be read: {one_line(error)}") from error
