"""What excites each feature map most: figure 2 of Zeiler & Fergus (2014) for a trained network and its images.

Looks once through all images of a split; for the maps of each layer the strongest activations, at most one an image,
each projected to the pixels by the deconvnet, beside the part of its image that the unit sees.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cnnjax import cli
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.errors import InputError
from cnnjax.figures import activations as activations_figure
from cnnjax.figures import files
from cnnjax.figures.projections import Made, drawn_by_lot
from cnnjax.train import run
from cnnjax.visualize.activations import Activations, tile_activations
from cnnjax.visualize.deconvnet import Rule
from cnnjax.visualize.evolution import Strongest, choose_maps, sees_nothing
from experiments.looking import (
    PictureOptions,
    Trained,
    at_epoch,
    look_of,
    made_of,
    open_run,
    projector_of,
    require_at_most,
    require_tiles,
    strongest_of,
    studying,
)


@dataclasses.dataclass(frozen=True)
class Options(PictureOptions):
    """Which network, and what to see of it."""

    layers: tuple[str, ...] = ()  # which layers; none: the convolutions
    maps: tuple[int, ...] = ()  # which feature maps of each layer; none: a seeded choice
    random_maps: int = 12  # how many maps that choice takes, out of those that fire at all
    maps_seed: int = 0  # of that choice
    count: int | None = None  # strongest activations of each map; none: nine, or one an image where there are fewer
    every_epoch: bool = False  # of each epoch that the run has kept, with the maps that are chosen at the last
    split: Literal["train", "test"] = "test"  # the images that are searched; the paper takes images not trained on
    rule: Rule = "deconvnet"  # at a ReLU on the way down to the pixels; changes nothing of what is kept of the search

    def __post_init__(self):
        for name in ("random_maps", "count"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        require_at_most(self, random_maps=65536)
        check_seed("--maps-seed", self.maps_seed)


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained = opened or open_run(options, progress)
    study = Study(options, trained)
    if not options.every_epoch:
        return study.pictures(trained, progress)
    if trained.is_own:
        raise InputError(f"--every-epoch goes with --run, got it with --network {options.network}")
    if options.epoch is not None:
        raise InputError(f"--every-epoch must not be given with --epoch, got {options.epoch}")
    pictures = study.pictures(trained, progress)
    for epoch in reversed(run.kept_epochs(options.run)[:-1]):
        pictures += study.pictures(at_epoch(trained, epoch), progress)
    return pictures


class Study:
    """What is looked for, chosen and compiled once for all epochs of a run."""

    def __init__(self, options: Options, trained: Trained):
        """Raises InputError for what the run or its images do not have."""
        self._options = options
        self._split = {"train": trained.dataset.train, "test": trained.dataset.test}[options.split]
        self._layers = checked_layers(options, trained)
        self._count = min(9, len(self._split)) if options.count is None else options.count
        if self._count > len(self._split):
            raise InputError(
                f"--count must be at most the {len(self._split)} images of the {options.split} split, got {self._count}"
            )
        for layer in self._layers:
            row = trained.layers[layer]
            option, maps = ("--maps", len(options.maps)) if options.maps else ("--random-maps", options.random_maps)
            require_tiles(option, min(maps, row.output_shape[-1]), self._count, row, trained.dataset.image_shape)
        self._look = look_of(trained, self._layers, self._count)
        self._projectors = {layer: projector_of(trained, layer, options.rule) for layer in self._layers}
        self._chosen: dict[str, Sequence[int]] = {}  # maps by layer

    def pictures(self, trained: Trained, progress: Progress) -> list[Path]:
        """Those of one epoch, of the maps that the first such call has chosen."""
        options, split = self._options, self._split
        if options.on is not None and options.split == "test":
            searched = f"the {len(split):,} pictures of {options.on.name}"
        else:
            what = "training" if options.split == "train" else "test"
            searched = f"the {len(split):,} {what} images of {trained.dataset.name}"
        settings = {"layers": self._layers, "count": self._count, "split": options.split}
        with studying(trained, "activations", settings, progress) as parts:
            found = parts.get("search", lambda: self._search(trained, progress))
            pictures = []
            for layer in progress.over("projecting", self._layers):
                strongest = Strongest(*(found[f"{layer} {part}"] for part in Strongest._fields))
                pictures.append(self._picture(trained, layer, strongest, searched))
            progress.say(f"figures in {trained.figures}")
        return pictures

    def _search(self, trained: Trained, progress: Progress) -> dict[str, np.ndarray]:
        of_all = strongest_of(trained, self._look, self._split, progress)
        return {f"{layer} {part}": array for layer in self._layers for part, array in of_all[layer]._asdict().items()}

    def _picture(self, trained: Trained, layer: str, strongest: Strongest, searched: str) -> Path:
        options, split, projector = self._options, self._split, self._projectors[layer]
        fields, first = trained.layers[layer].fields, strongest.at_rank(0)
        if layer not in self._chosen:
            blank = sees_nothing(split.images, first, fields)
            maps = options.maps or choose_maps(first, options.random_maps, options.maps_seed, blank)
            self._chosen[layer] = [int(number) for number in maps]
        maps = self._chosen[layer]
        among = "that some image excites and that see more than one colour"
        how = "named" if options.maps else drawn_by_lot(len(maps), len(first.value), options.maps_seed, among)
        seen = tile_activations(
            projector, trained.variables, strongest, maps, split.images, fields, group=trained.group
        )
        made = made_of(trained, layer, projector, seen, split, options.rule, how)
        return draw(trained, seen, layer, searched, options.split, made)


def checked_layers(options: Options, trained: Trained) -> tuple[str, ...]:
    """The layers that were asked for, each of which has the maps that were asked for."""
    layers = options.layers or trained.shown
    if not layers:
        raise InputError(f"--layers must be given for a network without convolutions: {', '.join(trained.layers)}")
    for name in layers:
        width = trained.layer(name, "--layers").output_shape[-1]
        for number in options.maps:
            if not 0 <= number < width:
                raise InputError(f"--maps must be from 0 to {width - 1} in {name}, got {number}")
    return layers


def draw(trained: Trained, seen: Activations, layer: str, searched: str, split: str, made: Made) -> Path:
    figure = activations_figure.draw(
        seen.projections, seen.patches, seen.place, seen.value, seen.maps, layer, searched, made
    )
    words = made.arrays() | {"layer": layer, "searched": searched, "split": split}
    return files.save(trained.figures / f"activations_{layer}.png", figure, **seen._asdict(), **words)


if __name__ == "__main__":
    cli.run_options(main, Options())
