"""Sets that TensorFlow Datasets publishes, prepared from the publishers' files without TensorFlow.

The stock builders of these sets extract archives and encode images by TensorFlow; the builders made here replace those
two steps and keep the rest: name, version, features, addresses, checksums and the order of the records. So a set
prepared here is read anywhere as the stock one.
"""

import gzip
import io
import lzma
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cnnjax.errors import InputError

# tensorflow_datasets.core.DatasetBuilder, of a library that is imported only where it is used.
Builder = Any
Progress = Callable[[str, int, int], None]

_IDX_SPLITS = {"train": "train", "test": "t10k"}
_CIFAR_SIDE = 32
_MOST_UNPACKED = 1032  # bytes from one of gzip: the limit of deflate
MAX_TAR_BYTES = 1 << 30  # CIFAR unpacks to 184 MB
# Archive, label bytes of a record by feature, files with the class names by feature, record files by split.
_CIFAR_LAYOUTS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "archive": "cifar-10-binary.tar.gz",
        "names": {"label": "batches.meta.txt"},
        "train": [f"data_batch_{index}.bin" for index in range(1, 6)],
        "test": ["test_batch.bin"],
    },
    "cifar100": {
        "archive": "cifar-100-binary.tar.gz",
        "names": {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        "train": ["train.bin"],
        "test": ["test.bin"],
    },
}
_IDX_FILES = tuple(
    f"{stem}-{kind}-ubyte.gz" for stem in _IDX_SPLITS.values() for kind in ("images-idx3", "labels-idx1")
)
# For each set that is prepared here, the files that its publisher offers.
FILES: dict[str, tuple[str, ...]] = {
    "mnist": _IDX_FILES,
    "fashion_mnist": _IDX_FILES,
    **{name: (layout["archive"],) for name, layout in _CIFAR_LAYOUTS.items()},
}


def read_idx(data: bytes, name: str) -> UInt8[np.ndarray, "..."]:
    """The array in a gzipped idx file of bytes, the layout of MNIST.

    Args:
        data: the content of the .gz file.
        name: of the file, for the error.

    Raises:
        InputError: if it is not gzip, not idx of unsigned bytes, or holds fewer or more bytes than its header says.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database, section "File formats".
    """
    try:
        with gzip.open(io.BytesIO(data)) as file:
            start = file.read(4)
            zeros, kind, rank = struct.unpack(">HBB", start)
            if (zeros, kind) != (0, 8):
                raise ValueError(f"the header must begin with 00 00 08 (unsigned bytes), got {start[:3].hex(' ')}")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape)
            if size > _MOST_UNPACKED * len(data):
                raise ValueError(f"{len(data):,} bytes cannot hold the shape {list(shape)}")
            # No more than the header says, however much the rest would unpack to; one byte more shows that there is.
            content = file.read(size + 1)
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, OverflowError) as error:
        raise InputError(f"{name} is not a gzipped idx file of bytes: {error}") from error


def read_cifar(
    data: bytes, name: str, label_bytes: int = 1
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, "n label_bytes"]]:
    """Images and labels of records in the binary layout of CIFAR: label bytes, then planes of red, green and blue.

    Args:
        data: the content of a .bin file, or of several behind each other.
        name: of the set, for the error.
        label_bytes: 1 in CIFAR-10; 2 in CIFAR-100, coarse before fine.

    Raises:
        InputError: if the bytes are no whole number of records, or none.

    Source: A. Krizhevsky, The CIFAR-10 dataset, section "Binary version".
    """
    record = label_bytes + 3 * _CIFAR_SIDE**2
    if not data or len(data) % record:
        raise InputError(f"{name}: CIFAR records must be a multiple of {record} bytes, got {len(data)}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    planes = rows[:, label_bytes:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1), rows[:, :label_bytes]


def make_builder(
    name: str, data_dir: Path, *, progress: Progress | None = None, url_infos: dict[str, Any] | None = None
) -> Builder:
    """A builder of one of the sets in `FILES` that prepares without TensorFlow.

    Args:
        data_dir: where the set is prepared.
        progress: called with (description, done, total) while records are written.
        url_infos: addresses with size and checksum of the published files; None: the stock builder's.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    stock = tfds.builder_cls(name)
    members = {
        "name": stock.name,
        "__module__": stock.__module__,  # by which the stock checksums are found
        "pkg_dir_path": stock._get_pkg_dir_path(),
        "url_infos": stock.url_infos if url_infos is None else url_infos,
        "progress": staticmethod(progress or (lambda description, done, total: None)),
        "files": {},  # to be set: where each published file lies
        "_log_download_bytes": lambda self: None,  # the stock ones print
        "_log_download_done": lambda self: None,
        "_split_generators": _cifar_splits if name in _CIFAR_LAYOUTS else _idx_splits,
    }
    with registered.skip_registration():  # the name is the stock builder's
        own: Any = type(stock.__name__, (stock,), members)
    return own(data_dir=str(data_dir), file_format="array_record")


def _idx_splits(self, downloads) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """The body of `_split_generators` for the MNIST family; `self` is the builder."""
    splits = {}
    for split, stem in _IDX_SPLITS.items():
        names = [f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"]
        images, labels = (read_idx(self.files[name].read_bytes(), name) for name in names)
        if len(images) != len(labels):
            raise InputError(f"{names[0]} and {names[1]} must agree, got {len(images)} images and {len(labels)} labels")
        # The key is the running index, which fixes the order of the stock set.
        splits[split] = _examples(self, split, images, [{"label": int(label)} for label in labels])
    return splits


def _cifar_splits(self, downloads) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """The body of `_split_generators` for CIFAR; `self` is the builder."""
    layout = _CIFAR_LAYOUTS[self.name]
    files = read_tar(self.files[layout["archive"]])
    for feature, file in layout["names"].items():
        self.info.features[feature].names = [line for line in files[file].decode().split("\n") if line]
    splits = {}
    for split in ("train", "test"):
        data = b"".join(files[file] for file in layout[split])
        images, labels = read_cifar(data, self.name, label_bytes=len(layout["names"]))
        rest = [
            {"id": f"{split}_{index:05d}", **{key: int(value) for key, value in zip(layout["names"], row, strict=True)}}
            for index, row in enumerate(labels)
        ]
        splits[split] = _examples(self, split, images, rest)
    return splits


def read_tar(path: Any) -> dict[str, bytes]:
    """The content of every file in the archive, by the last part of its name; nothing is unpacked to the disk.

    Raises:
        InputError: if it is no tar archive, is damaged, or holds more than MAX_TAR_BYTES.
    """
    try:
        with tarfile.open(path) as archive:
            files: dict[str, bytes] = {}
            for member in filter(tarfile.TarInfo.isfile, archive):
                if member.size + sum(map(len, files.values())) > MAX_TAR_BYTES:
                    raise InputError(f"{path} must hold at most {MAX_TAR_BYTES:,} bytes, and holds more")
                files[Path(member.name).name] = archive.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
            return files
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read as a tar archive: {' '.join(str(error).split())}") from error


def _examples(self, split: str, images: np.ndarray, rest: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, features) in enumerate(zip(images, rest, strict=True)):
        if index % 1000 == 0:
            self.progress(f"prepare {self.name} {split}", index, len(images))
        yield index, {"image": _png(image), **features}
    self.progress(f"prepare {self.name} {split}", len(images), len(images))


def _png(image: UInt8[np.ndarray, "..."]) -> bytes:
    """Encoded here, because the stock encoder of arrays is a TensorFlow graph."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
