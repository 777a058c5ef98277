"""Filters and feature maps growing out of noise: figure 4 of Zeiler & Fergus (2014) for any network and any images.

Trains (or goes on, or finds the run finished), then looks into every kept epoch: the filters of the first layer; for
a seeded choice of maps of every convolution the strongest activation over all training images, projected to the
pixels by the deconvnet, beside the patch of the image that the unit sees; and how far each layer is from its final
self. Figures and the numbers behind them are in WORKDIR/figures.

With `--network FILE.py:NAME --weights 1=FILE 2=FILE` nothing is trained: the weights are those that another training
loop has kept, by epoch.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cnnjax import cli, models, processes
from cnnjax.atomic import write_text
from cnnjax.cli import Arguments, Progress
from cnnjax.config import check_seed
from cnnjax.data import Dataset, Split, batches, load, scale_of
from cnnjax.errors import InputError
from cnnjax.figures import animation, files, settings
from cnnjax.figures import convergence as convergence_figure
from cnnjax.figures import evolution as evolution_figure
from cnnjax.figures import filters as filters_figure
from cnnjax.figures.projections import Made, drawn_by_lot, masked
from cnnjax.models import foreign
from cnnjax.train import weight_files
from cnnjax.train.lock import locked
from cnnjax.train.step import make_preprocess
from cnnjax.visualize.convergence import Convergence, convergence
from cnnjax.visualize.deconvnet import Rule
from cnnjax.visualize.evolution import (
    Evolution,
    alike_through_others,
    choose_maps,
    group_size,
    make_look,
    make_projector,
    sees_nothing,
    strongest_activations,
    tile_evolution,
    unbounded,
)
from cnnjax.visualize.lives import Lives, lives
from experiments import pictures, report, studies, train
from experiments.looking import place_of, require_tiles


@dataclasses.dataclass(frozen=True)
class Options(train.Options):
    """What the study adds to a run."""

    maps: int = dataclasses.field(default=12, metadata={"help": "feature maps of each layer that are shown"})
    maps_seed: int = dataclasses.field(default=0, metadata={"help": "of their choice"})
    rule: Rule = dataclasses.field(default="deconvnet", metadata={"help": "at a ReLU on the way down to the pixels"})
    contrast: Literal["tile", "map"] = dataclasses.field(
        default="tile", metadata={"help": "of projections: each its own scale, or one a map over the epochs"}
    )
    on: Path | None = dataclasses.field(
        default=None,
        metadata={"help": "a folder or .zip archive of pictures, looked at instead of the training images"},
    )
    network: str | None = dataclasses.field(
        default=None, metadata={"help": "FILE.py:NAME, code that is run: your own network, trained elsewhere"}
    )
    weights: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"help": "EPOCH=FILE of --network, .safetensors or .npz, one an epoch"}
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.network is None) != (not self.weights):
            raise InputError("--network and --weights must be given together")
        if not 1 <= self.maps <= 65536:
            raise InputError(f"--maps must be between 1 and 65536, got {self.maps}")
        check_seed("--maps-seed", self.maps_seed)


class Seen(NamedTuple):
    """A network at several epochs, and what it looks at."""

    network: Any
    rows: list[models.Layer]
    variables: dict[int, Any]  # by epoch
    preprocess: Any  # uint8 images to the network's input
    dataset: Dataset
    images: Any  # uint8, in memory or by index: in which the strongest activations are looked for
    place: str = ""  # of the figures, in their folder
    searched: str = "all training images"

    def shown(self) -> dict[str, models.Layer]:
        """The layers that the study shows. Raises InputError where there are none."""
        shown = {row.name: row for row in models.looked_into(self.rows)}
        if not shown:
            listed = ", ".join(row.name for row in self.rows)
            raise InputError(f"model.name must be a network with convolutions to look into, got one of {listed}")
        return shown

    def check_tiles(self, maps: int) -> None:
        """Raises InputError where a layer has more tiles of so many maps, one an epoch, than there is room for."""
        for row in self.shown().values():
            count = min(maps, row.output_shape[-1])
            require_tiles("--maps", count, len(self.variables), row, self.dataset.image_shape)


def seen_on(seen: Seen, arguments: Arguments, progress: Progress) -> Seen:
    """The same with the pictures that `--on` names, if any."""
    on = arguments.options.on
    if on is None:
        return seen
    found = pictures.find([str(on)], "--on")
    images = pictures.decoded(arguments.config.data, seen.dataset.image_shape, found, "--on", progress)
    return seen._replace(images=images, place=place_of([str(on)]), searched=f"the {len(found):,} pictures of {on.name}")


def trained(arguments: Arguments, progress: Progress) -> Seen:
    """Trains the run's network, or goes on, or finds it finished."""
    arguments = train.started(arguments, progress)
    dataset, rows = train.prepared(arguments, progress)
    # Before anything is trained.
    of_epochs = dict.fromkeys(arguments.config.train.kept_epochs)
    seen = Seen(None, rows, of_epochs, lambda images: images, dataset, dataset.train.images)
    seen.check_tiles(arguments.options.maps)
    seen = seen_on(seen, arguments, progress)
    finished = train.trained(arguments, dataset, rows, progress)
    if not processes.is_first():
        raise SystemExit  # the first has the states, and draws
    states = finished.states.items()
    variables = {epoch: {"params": state.params, "batch_stats": state.batch_stats} for epoch, state in states}
    return seen._replace(network=finished.network, variables=variables, preprocess=finished.preprocess)


def given(arguments: Arguments, progress: Progress) -> Seen:
    """Somebody's own network with the weights of files; writes nothing."""
    options, data = arguments.options, arguments.config.data
    if "--workdir" not in arguments.given:
        raise InputError("--workdir must be given with --network")
    for option in sorted(arguments.given):
        if option.startswith(("--model.", "--train.", "--hyper.")):
            raise InputError(f"{option} goes with a training, and --network is trained elsewhere")
    network, _ = foreign.from_file(options.network)
    files_by_epoch: dict[int, str] = {}
    for entry in options.weights:
        epoch, equals, path = entry.partition("=")
        if not equals or not epoch.isdecimal() or int(epoch) in files_by_epoch:
            raise InputError(f"--weights must be EPOCH=FILE, each epoch once, got {entry!r}")
        files_by_epoch[int(epoch)] = path
    dataset = load(data, progress)
    preprocess, variables, rows = make_preprocess(*scale_of(data, dataset)), {}, []
    with foreign.readable(network):
        for epoch, path in sorted(files_by_epoch.items()):
            arrays = weight_files.read(path, "--weights").arrays
            variables[epoch] = foreign.variables_from(network, arrays, dataset.image_shape)
            if not rows:
                foreign.check_large_enough(network, variables[epoch], dataset.image_shape)
                rows = models.layers_of(network, variables[epoch], dataset.image_shape)
            foreign.check_images_apart(network, variables[epoch], preprocess(dataset.train.images[:2]), network.name)
    seen = Seen(network, rows, variables, preprocess, dataset, dataset.train.images)
    seen.check_tiles(options.maps)
    return seen_on(seen, arguments, progress)


def main(arguments: Arguments, progress: Progress, *, with_page: bool = True) -> list[Path]:
    """Returns the pictures; with the page of the run, where there is a run and its own images are looked at."""
    options = arguments.options
    settings.check()
    seen = (trained if options.network is None else given)(arguments, progress)
    variables, shown, images = seen.variables, seen.shown(), seen.images
    folder = arguments.workdir / "figures" / seen.place
    searched = Split(images, np.zeros(len(images), np.int32))
    layers, epochs, group = tuple(shown), tuple(seen.variables), group_size(seen.rows)

    def of_network(variables, images):
        _, maps = seen.network.apply(variables, images)
        return {layer: maps[layer] for layer in layers}

    feature_maps = unbounded(of_network, seen.rows)
    look = make_look(feature_maps, seen.preprocess)
    strongest = {}
    for epoch in progress.over("looking for the strongest", epochs):
        found = strongest_activations(look, variables[epoch], batches(searched, group), group=group)
        strongest[epoch] = {layer: of_layer.at_rank(0) for layer, of_layer in found.items()}
    evolutions, made = {}, {}
    for layer in progress.over("projecting", layers):
        last, fields = strongest[epochs[-1]][layer], shown[layer].fields
        blank = sees_nothing(images, last, fields)
        chosen = choose_maps(last, options.maps, options.maps_seed, blank)
        of_layer = {epoch: strongest[epoch][layer] for epoch in epochs}
        projector = make_projector(feature_maps, layer, seen.preprocess, rule=options.rule)
        evolutions[layer] = tile_evolution(projector, variables, of_layer, chosen, images, fields, group=group)
        alike = alike_through_others(
            projector, variables[epochs[-1]], images, last.image[chosen], last.unit[chosen], chosen, group=group
        )
        among = "that are alive at the last epoch and see more than one colour"
        by_lot = drawn_by_lot(len(chosen), len(last.value), options.maps_seed, among)
        made[layer] = Made.of(options.rule, alike, fields, by_lot)
    kernels = {
        layer: [models.kernels_of(of_epoch, row) for of_epoch in variables.values()] for layer, row in shown.items()
    }
    curves = convergence(kernels, strongest)
    of_maps = {layer: lives(kernels[layer], {epoch: of[layer] for epoch, of in strongest.items()}) for layer in layers}
    first = models.first_convolution(seen.rows)
    assert first is not None  # what is shown are convolutions
    filters = np.stack([models.kernels_of(of_epoch, first)[0] for of_epoch in variables.values()])
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    files.make_folder(arguments.workdir, *folder.relative_to(arguments.workdir).parts)
    with locked(files.make_folder(arguments.workdir, "parts", "evolution")):  # one process draws at a time
        write_text(folder / studies.LAYERS, json.dumps([record(row) for row in seen.rows], indent=1) + "\n")
        pictures = draw(
            folder, evolutions, of_maps, made, curves, first.name, filters, options.contrast, seen.searched, progress
        )
    progress.say(f"figures in {folder}")
    if with_page and options.network is None and not seen.place:
        report.main(report.Options(run=(arguments.workdir,)), progress)
    return pictures


def record(row: models.Layer) -> dict[str, Any]:
    """What JSON can hold of a row of the table of layers; without what the code alone understands."""
    shown = {name: value for name, value in row._asdict().items() if name not in ("relu", "kernel", "kernel_axes")}
    return shown | {"relu": row.relu is not None, "fields": row.fields and [field._asdict() for field in row.fields]}


def draw(
    folder: Path,
    evolutions: dict[str, Evolution],
    of_maps: dict[str, Lives],
    made: dict[str, Made],
    curves: Convergence,
    first: str,
    kernels: np.ndarray,
    contrast: str,
    searched: str,
    progress: Progress,
) -> list[Path]:
    """Writes every figure, and the arrays behind it; returns the pictures that are no film."""
    epochs, first_to_last = curves.epochs, curves.layers
    figure = filters_figure.draw(kernels, epochs, first)
    pictures = [files.save(folder / f"filters_{first}.png", figure, kernels=kernels, epochs=epochs)]
    for layer, evolution in progress.over("drawing", list(evolutions.items())):
        figure = evolution_figure.draw(
            evolution.projections, evolution.patches, evolution.place, evolution.value <= 0, evolution.maps, epochs,
            layer, made[layer], contrast, searched,
        )  # fmt: skip
        words = made[layer].arrays() | {"contrast": contrast, "layer": layer}
        words |= {f"every_{name}": array for name, array in of_maps[layer]._asdict().items()}  # of all maps
        pictures.append(files.save(folder / f"evolution_{layer}.png", figure, **evolution._asdict(), **words))
    figure = convergence_figure.draw(epochs, first_to_last, curves.filter_distance, curves.dead, curves.moved)
    pictures.append(files.save(folder / "convergence.png", figure, **curves._asdict()))
    projections = {layer: masked(of.projections, of.patches) for layer, of in evolutions.items()}
    dead = {layer: evolution.value <= 0 for layer, evolution in evolutions.items()}
    frames = animation.draw(kernels, projections, dead, epochs, first)
    animation.save(folder / "evolution.gif", frames)
    arrays = {layer: evolution.projections for layer, evolution in evolutions.items()}
    arrays |= {f"{layer}/dead": of_layer for layer, of_layer in dead.items()}
    arrays |= {f"{layer}/outside": np.isnan(of_layer).any(axis=-1) for layer, of_layer in projections.items()}
    files.save_arrays(folder / "evolution.npz", kernels=kernels, epochs=epochs, **arrays)
    return pictures


if __name__ == "__main__":
    cli.run(main, Options())
