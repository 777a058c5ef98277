"""The weights of a run at one of its epochs as a file, `.safetensors` or `.npz`, under PyTorch's names.

    python -m experiments.export_weights --run runs/objects --to objects.safetensors

Names and layout are those of `cnnjax.models.weights`. The file says what it is of: the network, what its images must be
and the names of its classes, which `experiments.import_weights` takes from there. The mean image of a training set,
where a run subtracts that, is not in it.
"""

import dataclasses
import json
from pathlib import Path

from cnnjax import cli
from cnnjax.cli import Progress
from cnnjax.config import to_json
from cnnjax.errors import InputError
from cnnjax.models import foreign, weights
from cnnjax.train import weight_files
from experiments.import_weights import EXPECTED, METADATA
from experiments.looking import RunOptions, Trained, open_run


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Which network, and where its weights go."""

    to: Path | None = None  # the file: its name ends in .safetensors or .npz
    overwrite: bool = False  # a file that is there already


def main(options: Options, progress: Progress) -> None:
    if options.to is None:
        raise InputError("--to must be given: a file whose name ends in .safetensors or .npz")
    weight_files.check_name(options.to, "--to")
    if options.to.is_dir() or (options.to.exists() and not options.overwrite):
        raise InputError(f"--to must be a new file, or one that --overwrite may replace, got {options.to}")
    trained = open_run(options, progress)
    if isinstance(trained.network, foreign.Foreign):
        arrays = foreign.arrays_of(trained.variables)
    else:
        arrays = weights.named(trained.variables, weights.flattened_maps(trained.network, trained.dataset.image_shape))
    weight_files.write(options.to, arrays, {METADATA: json.dumps(described(trained))})
    count = sum(array.size for array in arrays.values())
    progress.say(f"{len(arrays)} arrays, {count:,} numbers of epoch {trained.epoch} in {options.to}")
    if trained.config.data.mean is None:
        progress.say(f"not in it: the mean image of {trained.dataset.name}, which this run subtracts from its images")


def described(trained: Trained) -> dict:
    """What the weights are of, in the terms of the config."""
    config, (height, width, channels) = to_json(trained.config), trained.dataset.image_shape
    data = {name: config["data"][name] for name in EXPECTED} | {"channels": channels}
    if data["image_size"] is None and height == width:
        data["image_size"] = height
    classes = trained.config.model.classes or trained.dataset.class_names
    return {"model": config["model"] | {"classes": list(classes)}, "data": data}


if __name__ == "__main__":
    cli.run_options(main, Options())
