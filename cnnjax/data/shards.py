"""Records of many array_record files under one index, read in any order and from any thread."""

import contextlib
import resource
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cnnjax.errors import InputError

_SPARE_FILES = 256  # that the process may have open beside the shards


class Shards:
    """The records of these files one after another; a file is opened when the first of its records is read.

    In memory the library holds where each chunk of an open file is, of one or more records.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], called: str):
        """`files`: each with its number of records. `called`: the option they come from and what they are, in errors.

        Raises:
            InputError: there are more files than this process may have open.
        """
        self._paths = [path for path, _ in files]
        self._counts = [count for _, count in files]
        self._ends = np.cumsum(self._counts, dtype=np.int64)
        self._readers: list[Any] = [None] * len(files)
        self._lock = threading.Lock()
        self._called = called
        _allow_open_files(len(files), called)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, positions: Int[np.ndarray, " k"]) -> list[bytes]:
        """The records at these positions, in their order.

        Raises:
            InputError: naming the file that is damaged, missing, or has another number of records.
        """
        records: list[bytes] = [b""] * len(positions)
        shards = np.searchsorted(self._ends, positions, side="right")
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            within = positions[places] - (self._ends[shard] - self._counts[shard])
            try:
                # It compares a checksum of every chunk that it reads.
                found = self._reader(shard).read(within.tolist())
            except Exception as error:  # the record library has no error of its own
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise InputError(f"{self._called} cannot be read: {self._paths[shard].name}: {reason}") from error
            for place, record in zip(places, found, strict=True):
                records[place] = record
        return records

    def file_of(self, position: int) -> Path:
        """The file that the record at this position is in."""
        return self._paths[int(np.searchsorted(self._ends, position, side="right"))]

    def _reader(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if self._readers[shard] is None:
                path, count = self._paths[shard], self._counts[shard]
                reader = ArrayRecordReader(
                    str(path), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 12
                )
                if reader.num_records() != count:
                    raise ValueError(f"it has {reader.num_records()} records, and its description says {count}")
                self._readers[shard] = reader
            return self._readers[shard]


def _allow_open_files(count: int, called: str) -> None:
    """Raises the limit of open files as far as the process may itself: each shard is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise InputError(f"{called} are {count} files, and this process may open {hard}: ulimit -n {needed}")
