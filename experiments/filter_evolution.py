"""Filters and feature maps growing out of noise: figure 4 of Zeiler & Fergus (2014) for any network and any images.

Trains (or goes on, or finds the run finished), then looks into every kept epoch: the filters of the first layer; for
a seeded choice of maps of every convolution the strongest activation over all training images, projected to the
pixels by the deconvnet, beside the patch of the image that the unit sees; and how far each layer is from its final
self. Figures and the numbers behind them are in WORKDIR/figures.
"""

import dataclasses
from pathlib import Path

import numpy as np

from cnnjax import cli, models
from cnnjax.cli import Arguments, Progress
from cnnjax.config import check_seed
from cnnjax.data import batches
from cnnjax.errors import InputError
from cnnjax.figures import animation, files, settings
from cnnjax.figures import convergence as convergence_figure
from cnnjax.figures import evolution as evolution_figure
from cnnjax.figures import filters as filters_figure
from cnnjax.train.lock import locked
from cnnjax.visualize.convergence import Convergence, convergence
from cnnjax.visualize.evolution import GROUP, Evolution, choose_maps, make_look, strongest_activations, tile_evolution
from experiments import train


@dataclasses.dataclass(frozen=True)
class Options:
    """What the study adds to a run."""

    maps: int = dataclasses.field(default=12, metadata={"help": "feature maps of each layer that are shown"})
    maps_seed: int = dataclasses.field(default=0, metadata={"help": "of their choice"})

    def __post_init__(self):
        if not 1 <= self.maps <= 65536:
            raise InputError(f"--maps must be between 1 and 65536, got {self.maps}")
        check_seed("--maps-seed", self.maps_seed)


def main(arguments: Arguments, progress: Progress) -> None:
    arguments = train.started(arguments, progress)
    config, options, folder = arguments.config, arguments.options, arguments.workdir / "figures"
    settings.check()
    dataset, rows = train.prepared(arguments, progress)
    shown = {row.name: row for row in models.looked_into(rows)}
    if not shown:
        raise InputError(f"model.name must be a network with convolutions to look into, got {config.model.name!r}")
    layers = tuple(shown)
    finished = train.trained(arguments, dataset, rows, progress)
    network, epochs = finished.network, tuple(finished.states)
    variables = {
        epoch: {"params": state.params, "batch_stats": state.batch_stats} for epoch, state in finished.states.items()
    }

    def feature_maps(variables, images):
        _, maps = network.apply(variables, images)
        return {layer: maps[layer] for layer in layers}

    look = make_look(feature_maps, finished.preprocess)
    strongest = {}
    for epoch in progress.over("looking for the strongest", epochs):
        found = strongest_activations(look, variables[epoch], batches(dataset.train, GROUP))
        strongest[epoch] = {layer: of_layer.at_rank(0) for layer, of_layer in found.items()}
    evolutions = {}
    for layer in progress.over("projecting", layers):
        chosen = choose_maps(strongest[epochs[-1]][layer], options.maps, options.maps_seed)
        of_layer = {epoch: strongest[epoch][layer] for epoch in epochs}
        evolutions[layer] = tile_evolution(
            feature_maps,
            layer,
            variables,
            of_layer,
            chosen,
            dataset.train.images,
            finished.preprocess,
            shown[layer].fields,
        )
    kernels = {
        layer: [models.kernels_of(of_epoch, row) for of_epoch in variables.values()] for layer, row in shown.items()
    }
    curves = convergence(kernels, strongest)
    first = np.stack([of_epoch[0] for of_epoch in kernels[layers[0]]])
    files.make_folder(arguments.workdir, "figures")
    with locked(files.make_folder(arguments.workdir, "parts", "evolution")):  # one process draws at a time
        draw(folder, evolutions, curves, first, progress)
    progress.say(f"figures in {folder}")


def draw(
    folder: Path, evolutions: dict[str, Evolution], curves: Convergence, kernels: np.ndarray, progress: Progress
) -> None:
    """Writes every figure, and the arrays behind it."""
    epochs, first_to_last = curves.epochs, curves.layers
    first = first_to_last[0]
    figure = filters_figure.draw(kernels, epochs, first)
    files.save(folder / f"filters_{first}.png", figure, kernels=kernels, epochs=epochs)
    for layer, evolution in progress.over("drawing", list(evolutions.items())):
        dead = evolution.value <= 0
        figure = evolution_figure.draw(evolution.projections, evolution.patches, dead, evolution.maps, epochs, layer)
        files.save(folder / f"evolution_{layer}.png", figure, **evolution._asdict())
    figure = convergence_figure.draw(epochs, first_to_last, curves.filter_distance, curves.dead, curves.moved)
    files.save(folder / "convergence.png", figure, **curves._asdict())
    projections = {layer: evolution.projections for layer, evolution in evolutions.items()}
    dead = {layer: evolution.value <= 0 for layer, evolution in evolutions.items()}
    frames = animation.draw(kernels, projections, dead, epochs, first)
    animation.save(folder / "evolution.gif", frames)
    files.save_arrays(folder / "evolution.npz", kernels=kernels, epochs=epochs, **projections)


if __name__ == "__main__":
    cli.run(main, Options())
