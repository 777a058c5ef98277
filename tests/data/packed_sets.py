"""Packed sets written record by record, without the folder of images that `packing.pack` makes them of."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from cnnjax.atomic import sealed
from cnnjax.data.files import ends_sha256, file_sha256
from cnnjax.data.images import Fitting
from cnnjax.data.packed import FORMAT, HEADER, order_of


def write_packed(
    folder: Path,
    counts: dict[str, Sequence[int]],
    content: Callable[[str, int], bytes],
    *,
    images: str,
    fitting: Fitting,
    shape: tuple[int, int, int] | None,
    group: int = 1,
) -> None:
    """A set of one shard a split.

    Args:
        counts: by split, the number of images of each class.
        content: of the record of (split, index), behind its header.
        images: "files" or "pixels".
        group: records that are read together.
    """
    folder.mkdir(parents=True)
    splits = {}
    for split, of_class in counts.items():
        labels = np.repeat(np.arange(len(of_class)), of_class)
        path = folder / f"{split}-00000-of-00001.array_record"
        writer = ArrayRecordWriter(str(path), f"group_size:{group},uncompressed")
        for index in order_of(len(labels), split, 0).tolist():
            writer.write(HEADER.pack(index, labels[index]) + content(split, index))
        writer.close()
        shard = {"file": path.name, "records": len(labels), "bytes": path.stat().st_size}
        shard |= {"sha256": file_sha256(path), "ends_sha256": ends_sha256(path)}
        splits[split] = {"listed": len(labels), "counts": list(of_class), "left_out": [], "shards": [shard]}
    names = [f"class {label}" for label in range(len(counts["train"]))]
    manifest = {"format": FORMAT, "name": "made", "images": images, "fitting": fitting._asdict(), "shape": shape}
    manifest |= {"class_names": names, "seed": 0, "splits": splits, "mean_sha256": None, "settings": {}}
    (folder / "manifest.json").write_text(sealed(manifest))
