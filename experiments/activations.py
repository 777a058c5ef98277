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
from cnnjax.visualize.activations import Activations
from cnnjax.visualize.deconvnet import Rule
from cnnjax.visualize.evolution import Strongest, choose_maps, sees_nothing
from experiments.looking import (
    PictureOptions,
    Trained,
    made_of,
    open_run,
    require_at_most,
    require_tiles,
    strongest_of,
    studying,
    tiles_of,
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
    if not options.every_epoch:
        return looked_at(options, trained, {}, progress)
    if trained.is_own:
        raise InputError(f"--every-epoch goes with --run, got it with --network {options.network}")
    if options.epoch is not None:
        raise InputError(f"--every-epoch must not be given with --epoch, got {options.epoch}")
    chosen: dict[str, Sequence[int]] = {}
    pictures = looked_at(options, trained, chosen, progress)
    config, dataset = trained.config, trained.dataset
    for epoch in reversed(run.kept_epochs(options.run)[:-1]):
        state = run.load_epoch(options.run, config, run.build(config, dataset), dataset, epoch)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        pictures += looked_at(options, trained._replace(variables=variables, epoch=epoch), chosen, progress)
    return pictures


def looked_at(options: Options, trained: Trained, chosen: dict[str, Sequence[int]], progress: Progress) -> list[Path]:
    """The pictures of one epoch.

    Args:
        chosen: maps by layer; those of layers that it lacks are chosen here, and kept in it.
    """
    split = {"train": trained.dataset.train, "test": trained.dataset.test}[options.split]
    layers = checked_layers(options, trained)
    count = min(9, len(split)) if options.count is None else options.count
    if count > len(split):
        raise InputError(f"--count must be at most the {len(split)} images of the {options.split} split, got {count}")
    for layer in layers:
        row = trained.layers[layer]
        option, maps = ("--maps", len(options.maps)) if options.maps else ("--random-maps", options.random_maps)
        require_tiles(option, min(maps, row.output_shape[-1]), count, row, trained.dataset.image_shape)
    with studying(
        trained, "activations", {"layers": layers, "count": count, "split": options.split}, progress
    ) as parts:

        def search() -> dict[str, np.ndarray]:
            of_all = strongest_of(trained, layers, split, count, progress)
            return {f"{layer} {part}": array for layer in layers for part, array in of_all[layer]._asdict().items()}

        found = parts.get("search", search)
        if options.on is not None and options.split == "test":
            searched = f"the {len(split):,} pictures of {options.on.name}"
        else:
            what = "training" if options.split == "train" else "test"
            searched = f"the {len(split):,} {what} images of {trained.dataset.name}"
        pictures = []
        for layer in progress.over("projecting", layers):
            strongest = Strongest(*(found[f"{layer} {part}"] for part in Strongest._fields))
            first = strongest.at_rank(0)
            if layer not in chosen:
                blank = sees_nothing(split.images, first, trained.layers[layer].fields)
                maps = options.maps or choose_maps(first, options.random_maps, options.maps_seed, blank)
                chosen[layer] = [int(number) for number in maps]
            maps = chosen[layer]
            among = "that some image excites and that see more than one colour"
            by_lot = drawn_by_lot(len(maps), len(first.value), options.maps_seed, among)
            how = "named" if options.maps else by_lot
            seen = tiles_of(trained, layer, strongest, maps, split, options.rule)
            made = made_of(trained, layer, seen, split, options.rule, how)
            pictures.append(draw(trained, seen, layer, searched, options.split, made))
        progress.say(f"figures in {trained.figures}")
    return pictures


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
