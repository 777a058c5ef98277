"""Pack a folder of images once, for trainings that read them by index: `--data.packed DIR` in every script.

The files as they are, or with `--size 256` their pixels, fitted as every set here: scaled (`--data.shorter-side`,
`--data.interpolation`) and cut to the centre square. The same command goes on after any stop; what is finished is not
made twice.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from cnnjax import cli
from cnnjax.cli import Progress
from cnnjax.config import DataConfig
from cnnjax.data.packing import SHARD_BYTES, pack
from cnnjax.errors import InputError
from cnnjax.train.lock import locked

MOST_SAID = 20  # files that were left out


@dataclasses.dataclass(frozen=True)
class Options:
    """What is packed, and where to."""

    to: Path | None = None  # the folder: made, gone on with, or found finished
    data: DataConfig = DataConfig()  # data.folder: a folder a class; image_size without --size: that of the mean image
    size: int | None = None  # side in pixels of the images that are packed; None: the files as they are
    on_bad: Literal["stop", "skip"] = "stop"  # at an image that cannot be read; what is skipped is listed
    seed: int = 0  # of the order in the shards, which no result depends on
    shard_megabytes: int = SHARD_BYTES >> 20  # of the images in a shard, about

    def __post_init__(self):
        if self.size is not None and not 1 <= self.size <= 4096:
            raise InputError(f"--size must be between 1 and 4096, got {self.size}")
        if not 1 <= self.shard_megabytes <= 1 << 16:
            raise InputError(f"--shard-megabytes must be between 1 and 65536, got {self.shard_megabytes}")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed must be between 0 and 2147483647, got {self.seed}")


def main(options: Options, progress: Progress) -> None:
    if options.data.folder is None:
        raise InputError("--data.folder must be given: the images that are to be packed")
    if options.to is None:
        raise InputError("--to must be given: the folder that they are packed into")
    summary = pack(
        options.data,
        options.to,
        size=options.size,
        on_bad=options.on_bad,
        seed=options.seed,
        shard_bytes=options.shard_megabytes << 20,
        progress=progress,
        held=locked,
    )
    for name, reason in summary.left_out[:MOST_SAID]:
        progress.say(f"left out: {name}: {reason}")
    more = len(summary.left_out) - MOST_SAID
    if more > 0:
        progress.say(f"and {more:,} more, all in {options.to / 'manifest.json'}")
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.counts.items())
    progress.say(
        f"{counts} images in {summary.shards} shards, {summary.made} of them made now: --data.packed {options.to}"
    )


if __name__ == "__main__":
    cli.run_options(main, Options())
