"""Choosing an architecture: figure 6 and table 3 of Zeiler & Fergus (2014) for any network with convolutions.

Trains variants of the config, each in its own run folder WORKDIR/VARIANT, so that a stopped study goes on and a
finished variant is only loaded: other filters and strides in layer 1, no renormalization of filters, layers taken out,
other widths. Draws their first-layer filters side by side and measures what the paper sees in them, and draws what
excites maps of layer 2 most, where aliasing shows. Without --config it is configs/architectures.py, of few epochs;
quicker still:

    python -m experiments.architectures --train.epochs 4 --variants base first_11_4
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import cli, models, ops
from cnnjax.atomic import check_tree
from cnnjax.cli import Arguments, Progress
from cnnjax.config import Config, ModelConfig, check_seed
from cnnjax.data import Dataset, load
from cnnjax.errors import InputError
from cnnjax.figures import architectures as architectures_figure
from cnnjax.figures import files, settings
from cnnjax.figures.projections import Made, drawn_by_lot, masked
from cnnjax.train import run
from cnnjax.train.feed import in_its_own_order
from cnnjax.train.lock import locked
from cnnjax.train.step import make_evaluate
from cnnjax.train.training import evaluated
from cnnjax.visualize.activations import Activations, tile_activations
from cnnjax.visualize.deconvnet import Rule
from cnnjax.visualize.evolution import choose_maps
from cnnjax.visualize.filters import BANDS, FilterMeasures, dead_filters, measure, power_spectrum, radial_power
from experiments.looking import look_of, made_of, opened, projector_of, strongest_of

SECOND = "conv2"  # the layer in which the paper sees aliasing
MEASURED_IMAGES = 256  # test images whose responses tell how much is aliased

Tuples = dict[str, tuple[int, ...]]  # the fields of ModelConfig with an entry a layer


def first_layer(filter: int, stride: int) -> Callable[[Tuples], Tuples]:
    """Another filter and stride in layer 1. The image is made smaller as much as before by the end of layer 2: what the
    stride takes is taken out of the pools, the second one first. (The paper took it out of layer 2's stride.)"""

    def changed(layers: Tuples) -> Tuples:
        pools, factor = list(layers["pools"]), stride / layers["strides"][0]
        for index in range(min(2, len(pools)) - 1, -1, -1):
            while factor > 1 and pools[index] % 2 == 0:
                pools[index], factor = pools[index] // 2, factor / 2
        if factor != 1:
            raise InputError(f"needs pools from which a stride of {stride} can be taken, got {layers['pools']}")
        first = {"filters": filter, "strides": stride, "paddings": filter // 2}
        return {**layers, **{name: (value, *layers[name][1:]) for name, value in first.items()}, "pools": tuple(pools)}

    return changed


def without_middle(layers: Tuples) -> Tuples:
    """The convolutions between the second and the last are left out: layers 3 and 4 of the paper's five."""
    _require(len(layers["widths"]) > 3, "at least 4 convolutions", len(layers["widths"]))
    return {name: values if name == "dense" else (*values[:2], values[-1]) for name, values in layers.items()}


def without_last_dense(layers: Tuples) -> Tuples:
    """The last hidden dense layer is left out: the paper's layer 7."""
    _require(len(layers["dense"]) > 1, "at least 2 hidden dense layers", len(layers["dense"]))
    return {**layers, "dense": layers["dense"][:-1]}


def without_dense(layers: Tuples) -> Tuples:
    """No hidden dense layer: without the paper's layers 6 and 7."""
    _require(len(layers["dense"]) > 0, "a hidden dense layer", 0)
    return {**layers, "dense": ()}


def dense_times(factor: float) -> Callable[[Tuples], Tuples]:
    """Layers 6 and 7 with so many times their units."""

    def changed(layers: Tuples) -> Tuples:
        _require(len(layers["dense"]) > 0, "a hidden dense layer", 0)
        return {**layers, "dense": tuple(round(factor * units) for units in layers["dense"])}

    return changed


def wide_middle(layers: Tuples) -> Tuples:
    """The last three convolutions wider by the paper's factors: 384, 384, 256 to 512, 1024, 512."""
    _require(len(layers["widths"]) > 3, "at least 4 convolutions", len(layers["widths"]))
    *first, third, fourth, fifth = layers["widths"]
    return {**layers, "widths": (*first, round(third * 4 / 3), round(fourth * 8 / 3), 2 * fifth)}


def _require(rule: bool, text: str, value: Any) -> None:
    if not rule:
        raise InputError(f"needs {text}, got {value}")


LAYERS: dict[str, Callable[[Tuples], Tuples]] = {
    "base": lambda layers: layers,
    "first_7_2": first_layer(7, 2),  # the paper's own layer 1
    "first_11_4": first_layer(11, 4),  # that of Krizhevsky et al. 2012
    "no_renormalization": lambda layers: layers,
    "no_middle": without_middle,
    "no_last_dense": without_last_dense,
    "no_dense": without_dense,
    "no_middle_no_dense": lambda layers: without_dense(without_middle(layers)),
    "half_dense": dense_times(0.5),
    "double_dense": dense_times(2),
    "wide_middle": wide_middle,
    "double_dense_wide_middle": lambda layers: dense_times(2)(wide_middle(layers)),
}

# Errors in %: training top-1, validation top-1 and top-5; of the paper's own model, or else of its replica of
# Krizhevsky et al. 2012, whose layers are the ones taken out.
OURS, REPLICA = "own model", "replica"
PAPER = {
    "base": ((33.1, 38.4, 16.5), OURS),
    "first_11_4": ((35.1, 40.5, 18.1), REPLICA),
    "no_middle": ((41.8, 45.4, 22.1), REPLICA),
    "no_last_dense": ((27.4, 40.0, 18.4), REPLICA),
    "no_dense": ((27.4, 44.8, 22.4), REPLICA),
    "no_middle_no_dense": ((71.1, 71.3, 50.1), REPLICA),
    "half_dense": ((38.2, 40.2, 17.6), OURS),
    "double_dense": ((22.0, 38.8, 17.0), OURS),
    "wide_middle": ((18.8, 37.5, 16.0), OURS),
    "double_dense_wide_middle": ((10.0, 38.3, 16.9), OURS),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the study adds to a config."""

    variants: tuple[str, ...] = dataclasses.field(
        default=tuple(name for name in LAYERS if name != "no_last_dense"),
        metadata={"help": f"which, of {', '.join(LAYERS)}"},
    )
    maps: int = dataclasses.field(default=24, metadata={"help": "feature maps of layer 2 that are shown"})
    maps_seed: int = dataclasses.field(default=0, metadata={"help": "of their choice"})
    rule: Rule = dataclasses.field(default="deconvnet", metadata={"help": "at a ReLU on the way down to the pixels"})

    def __post_init__(self):
        if not 1 <= self.maps <= 65536:
            raise InputError(f"--maps must be between 1 and 65536, got {self.maps}")
        check_seed("--maps-seed", self.maps_seed)
        for name in self.variants or ("none",):
            if name not in LAYERS:
                raise InputError(f"--variants must be among {', '.join(LAYERS)}, got {name!r}")


def variant(config: Config, network: models.ConvNet, name: str) -> Config:
    """The config of a variant; that of "base" is the config itself.

    Raises:
        InputError: the network has not the layers that the variant changes.
    """
    if name == "base":
        return config
    if name == "no_renormalization":
        return dataclasses.replace(config, hyper=dataclasses.replace(config.hyper, filter_rms=math.inf))
    convolutions = network.convolutions
    layers: Tuples = {
        "widths": tuple(layer.width for layer in convolutions),
        "filters": tuple(layer.filter for layer in convolutions),
        "strides": tuple(layer.stride for layer in convolutions),
        "paddings": tuple(layer.padding for layer in convolutions),
        "pools": tuple(layer.pool.stride if layer.pool else 1 for layer in convolutions),
        "dense": network.dense,
    }
    try:
        changed: Any = LAYERS[name](layers)
    except InputError as error:
        raise InputError(f"--variants: {name} {error}") from None
    # Sizes that a stride does not divide are rounded down, where the network itself would refuse them.
    rounding: Any = "floor" if name.startswith("first") and network.rounding == "exact" else config.model.rounding
    return dataclasses.replace(config, model=_model(config.model, changed, rounding))


def _model(model: ModelConfig, layers: Any, rounding: Any) -> ModelConfig:
    return dataclasses.replace(model, **layers, rounding=rounding)


def main(arguments: Arguments, progress: Progress) -> None:
    config, options, folder = arguments.config, arguments.options, arguments.workdir
    if (folder / "config.json").exists():
        raise InputError(f"--workdir must be a folder for all variants, and {folder} holds one run")
    settings.check()
    check_tree(folder)
    dataset = load(config.data, progress)
    network = run.build(config, dataset)
    if not isinstance(network, models.ConvNet) or not network.convolutions:
        chains = ", ".join(sorted(models.NETWORKS.keys() - models.KNOWN.keys() - {"mlp"}))
        raise InputError(f"model.name must be one of {chains}, whose layers can be changed, got {config.model.name!r}")
    configs = {name: variant(config, network, name) for name in options.variants}
    for name, changed in configs.items():  # all of them, before anything is written
        first = models.layers(run.build(changed, dataset), dataset.image_shape)[0].window[0]
        if first > min(dataset.image_shape[:2]):
            rule = f"images of at least {first} pixels, got {dataset.image_shape}"
            raise InputError(f"--variants: {name} needs {rule}")
        run.check(folder / name, changed)
    finished = {}
    for number, (name, changed) in enumerate(configs.items()):
        where = f"{number + 1}/{len(configs)} {name}"
        finished[name] = run.run(
            changed,
            dataset,
            folder / name,
            lambda _, done, total, where=where: progress(where, done, total),
            progress.say,
        )
    errors = {name: clean_errors(one, dataset) for name, one in finished.items()}
    progress.say(error_table(errors, config, dataset))
    kernels = {name: first_kernel(one) for name, one in finished.items()}
    images = next(iter(finished.values())).preprocess(dataset.test.images[:MEASURED_IMAGES])
    measures = {
        name: measure(kernel, np.asarray(images), finished[name].network.convolutions[0].stride)
        for name, kernel in progress.over("measuring filters", list(kernels.items()))
    }
    progress.say(measure_table(measures, len(images)))
    seen = {
        name: second_layer(one, dataset, folder / name, options, progress)
        for name, one in progress.over("layer 2", list(finished.items()))
        if len(one.network.convolutions) > 1
    }
    figures = files.make_folder(folder, "figures")
    with locked(folder):  # one process draws at a time
        draw(figures, errors, kernels, measures, progress)
        if seen:
            draw_second(figures, seen, dataset, progress)


def second_layer(
    finished: run.Run, dataset: Dataset, folder: Path, options: Options, progress: Progress
) -> tuple[Activations, Made]:
    """The strongest activation over all test images of a seeded choice of layer 2's maps, projected."""
    trained = opened(finished, dataset, folder)
    strongest = strongest_of(trained, look_of(trained, (SECOND,), 1), dataset.test, progress)[SECOND]
    maps = choose_maps(strongest.at_rank(0), options.maps, options.maps_seed)
    projector, fields = projector_of(trained, SECOND, options.rule), trained.layers[SECOND].fields
    seen = tile_activations(
        projector, trained.variables, strongest, maps, dataset.test.images, fields, group=trained.group
    )
    by_lot = drawn_by_lot(len(maps), strongest.value.shape[1], options.maps_seed, "that some image excites")
    return seen, made_of(trained, SECOND, projector, seen, dataset.test, options.rule, by_lot)


def clean_errors(finished: run.Run, dataset: Dataset) -> tuple[float, float, float]:
    """Errors at the end, in %: training top-1, test top-1 and test top-5; no augmentation, no dropout."""
    last, split = finished.metrics[-1], dataset.train
    config = finished.config.train
    evaluate = ops.jit(make_evaluate(finished.network, config, finished.preprocess))
    feed = in_its_own_order(split, config.batch_size, jax.device_put)
    hyper = jax.tree.map(jnp.asarray, finished.config.hyper)
    sums = evaluated(evaluate, feed, hyper, finished.states[max(finished.states)])
    return 100 * float(sums.errors) / len(split), 100 * last["test_error"], 100 * last["test_error_top5"]


def first_kernel(finished: run.Run) -> np.ndarray:
    return np.asarray(finished.states[max(finished.states)].params["conv1"]["kernel"])


def error_table(errors: dict[str, tuple[float, float, float]], config: Config, dataset: Dataset) -> Any:
    """Table 3, the paper's numbers beside each variant that it has."""
    rows = []
    for name, numbers in errors.items():
        paper, model = PAPER.get(name, ((), ""))
        rows.append((name, *(f"{number:.1f}" for number in numbers), *(paper or ("", "", "")), model))
    title = f"errors, %, of variants of {config.model.name} on {dataset.name} after {config.train.epochs} epochs"
    columns = ("variant", "train top-1", "test top-1", "test top-5", "paper: train", "val top-1", "val top-5", "of its")
    return cli.table(title, columns, rows)


def measure_table(measures: dict[str, FilterMeasures], images: int) -> Any:
    rows = [
        (
            name, f"{100 * one.dead:.0f}", f"{one.ruling:.1f}",
            *(f"{100 * share:.1f}" for share in (one.low, one.middle, one.high, one.aliased)),
        )
        for name, one in measures.items()
    ]  # fmt: skip
    title = (
        f"filters of layer 1; energy in % below, within and above {BANDS[0]} to {BANDS[1]} cycles a pixel; aliased: "
        f"energy of the responses to {images} test images that the stride folds"
    )
    columns = ("variant", "dead, %", "strongest / median", "low", "middle", "high", "aliased, %")
    return cli.table(title, columns, rows)


def draw(
    folder: Path,
    errors: dict[str, tuple[float, float, float]],
    kernels: dict[str, np.ndarray],
    measures: dict[str, FilterMeasures],
    progress: Progress,
) -> None:
    """Writes the figure, and all the numbers behind it and the tables."""
    notes, spectra, frequencies = [], [], np.zeros(0)
    for name, kernel in kernels.items():
        alive = kernel[..., ~dead_filters(kernel)]
        frequencies, rings = radial_power(power_spectrum(alive, max(32, *kernel.shape[:2])))
        spectra.append(rings.mean(axis=1) if rings.shape[1] else np.full(len(rings), np.nan))
        one = measures[name]
        notes.append(
            f"dead {100 * one.dead:.0f} %, middle {100 * one.middle:.0f} %,\n"
            f"aliased {100 * one.aliased:.0f} %, strongest {one.ruling:.1f}× median"
        )
    figure = architectures_figure.draw(
        list(kernels.values()), list(kernels), notes, frequencies, np.stack(spectra), BANDS
    )
    path = folder / "architectures.png"
    files.save(
        path, figure, variants=list(kernels), errors=list(errors.values()), measures=list(measures.values()),
        measure_names=FilterMeasures._fields, frequencies=frequencies, spectra=spectra,
        **{f"kernel_{name}": kernel for name, kernel in kernels.items()},
    )  # fmt: skip
    progress.say(f"figure in {path}")


def draw_second(folder: Path, seen: dict[str, tuple[Activations, Made]], dataset: Dataset, progress: Progress) -> None:
    """Writes the figure of layer 2, and the numbers behind it."""
    figure = architectures_figure.draw_projections(
        [masked(one.projections[:, 0], one.patches[:, 0]) for one, _ in seen.values()],
        [one.value[:, 0] <= 0 for one, _ in seen.values()],
        list(seen),
        [made for _, made in seen.values()],
        SECOND,
        f"the {len(dataset.test):,} test images of {dataset.name}",
    )
    path = folder / f"architectures_{SECOND}.png"
    arrays = {
        f"{part}_{name}": array
        for name, (one, made) in seen.items()
        for part, array in (one._asdict() | made.arrays()).items()
    }
    files.save(path, figure, variants=list(seen), **arrays)
    progress.say(f"figure in {path}")


if __name__ == "__main__":
    cli.run(main, Options(), config="architectures")
