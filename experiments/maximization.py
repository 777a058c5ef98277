"""What excites a unit the most: images grown from noise for units of every layer and for the classes.

Not a reconstruction of one image, as the deconvnet's, but the image of a given contrast at which the unit's activation
is largest (Erhan et al. 2009), with the spectrum and the jitter of Olah et al. (2017). Of a convolution the unit in the
middle is excited: only what it sees is grown, in the middle of the mean image. The colours vary together as those of
the training images do; the contrast is that of the one that excites the unit the most, in what the unit sees of it.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import cli, ops
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.data import Purpose, address, scale_of
from cnnjax.data.splits import of_all_classes
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.figures import maximization as figure
from cnnjax.tracing.relus import feature_maps_of
from cnnjax.visualize.evolution import in_groups
from cnnjax.visualize.maximization import colour_directions, maximize
from experiments.looking import RunOptions, Trained, open_run, require_at_most, studying


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """What is open is named."""

    layers: tuple[str, ...] | None = None  # conv* and fc*; none: all convolutions and the classes
    units: int = 10  # of each layer: the first ones that are alive on the training images
    steps: int = 128  # of Adam
    rate: float = 0.05  # of Adam
    jitter: int = 3  # largest shift, px; at most an eighth of what the unit sees
    decay: float = 1.0  # amplitudes are scaled by 1/frequency to this power
    contrast: float = (
        1.0  # RMS of what the unit sees, as a share of that of the training images (mean image subtracted)
    )
    images: int = 2000  # training images of all classes to compare with
    seed: int = 0  # of the noise

    def __post_init__(self):
        for name, bound in {"units": 1, "steps": 1, "jitter": 0, "images": 1}.items():
            if getattr(self, name) < bound:
                raise InputError(f"--{name} must be at least {bound}, got {getattr(self, name)}")
        require_at_most(self, units=65536, steps=10**6)
        for name in ("rate", "contrast"):
            if not 0 < getattr(self, name) < np.inf:
                raise InputError(f"--{name} must be a finite number > 0, got {getattr(self, name)}")
        check_seed("--seed", self.seed)
        if not np.isfinite(self.decay):
            raise InputError(f"--decay must be a finite number, got {self.decay}")


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained = opened or open_run(options, progress)
    layers = chosen_layers(trained, options)
    settings = {**dataclasses.asdict(options), "run": None, "epoch": None, "data": None, "layers": None}
    with studying(trained, "maximization", settings, progress) as parts:
        found = {
            layer: parts.get(layer, lambda layer=layer: excited(trained, layer, options))
            for layer in progress.over("exciting", layers)
        }
        dead = [layer for layer, of in found.items() if not len(of["units"])]
        if dead and (options.layers is not None or len(dead) == len(found)):
            raise InputError(f"--layers must have units that are alive on the training images, got {', '.join(dead)}")
        for layer in dead:
            progress.say(f"{layer} is left out: none of its units is alive on the training images")
            del found[layer]
        last = trained.logits
        labels = {
            layer: [trained.class_names[unit] if layer == last else f"map {unit}" for unit in of["units"]]
            for layer, of in found.items()
        }
        values, best = ({layer: of[field] for layer, of in found.items()} for field in ("values", "best"))
        note = (
            f"Images that excite a unit the most, at the contrast of its best training image, epoch {trained.epoch}\n"
            f"units: the first {options.units} of each layer that are alive on the training images"
        )
        arrays = {f"{layer}-{field}": of[field] for layer, of in found.items() for field in of}
        arrays |= {f"{layer}-labels": of_layer for layer, of_layer in labels.items()}
        drawing = figure.draw({layer: of["images"] for layer, of in found.items()}, values, best, labels, note)
        pictures = [files.save(trained.figures / "maximization.png", drawing, **arrays)]
        progress.say(f"figures in {trained.figures}")
    return pictures


def excited(trained: Trained, layer: str, options: Options) -> dict[str, Any]:
    """The layer's first live units: `units`, `images` in grey levels, `values` there, `best` of the training images.

    Where none is alive, `units` alone, of length 0. An image is what the unit sees, where that is less than the whole.
    """
    relu, number = trained.layers[layer].relu, list(trained.layers).index(layer)

    def middles(variables: Any, images: jax.Array) -> jax.Array:
        """Of every map, the unit in the middle, before the ReLU, if any."""
        if relu is None:
            outputs = trained._replace(variables=variables).feature_maps(images)[layer]
        else:
            logits = functools.partial(trained.network.apply, variables)
            outputs = feature_maps_of(lambda x: logits(x)[0], before=True)(images)[1][relu]
        return outputs[:, outputs.shape[1] // 2, outputs.shape[2] // 2] if outputs.ndim == 4 else outputs

    split, scale = trained.dataset.train, scale_of(trained.config.data, trained.dataset)
    compared, most = of_all_classes(split.labels, options.images), trained.group

    def pixels(some: np.ndarray) -> np.ndarray:
        """Of these of the images that are compared with."""
        return split.images[compared[some]]

    every = np.arange(len(compared))
    parts = np.split(every, range(most, len(every), most))
    colours = colour_directions(np.asarray(trained.preprocess(pixels(some))) for some in parts)
    look = ops.jit(lambda variables, images: middles(variables, trained.preprocess(images)))
    groups = in_groups(len(compared), most)
    found = np.concatenate([look(trained.variables, pixels(some)) for some in groups])[: len(compared)]
    best = found.max(axis=0)
    alive = np.flatnonzero(best > 0) if layer != trained.logits else np.arange(len(best))
    units = alive[: options.units]
    if not len(units):
        return {"units": units}

    rows, columns = seen(trained, layer)
    whole_shape = trained.dataset.image_shape
    shape = (rows.stop - rows.start, columns.stop - columns.start, whole_shape[-1])

    def climb(variables, keys, units, contrast):
        def objective(patches):
            whole = jnp.zeros((len(units), *whole_shape)).at[:, rows, columns].set(patches)
            return middles(variables, whole)[jnp.arange(len(units)), units]

        search = {"steps": options.steps, "rate": options.rate, "decay": options.decay, "colours": colours}
        return maximize(objective, keys, shape, rms=contrast, jitter=min(options.jitter, min(shape[:2]) // 8), **search)

    compiled, maxima = ops.jit(climb), []
    for some in in_groups(len(units), most):
        patches = np.asarray(trained.preprocess(pixels(found[:, units[some]].argmax(axis=0))))[:, rows, columns]
        contrast = options.contrast * np.sqrt(np.mean(patches**2, axis=(1, 2, 3)))
        keys = jax.vmap(lambda unit: address(options.seed, Purpose.STUDY, 2, number, unit))(units[some])
        maxima.append(compiled(trained.variables, keys, units[some], contrast)[:2])
    images, values = (np.concatenate(parts)[: len(units)] for parts in zip(*maxima, strict=True))
    grey_levels = images * scale.deviation + scale.mean[rows, columns]
    return {"units": units, "images": grey_levels, "values": values, "best": best[units]}


def chosen_layers(trained: Trained, options: Options) -> tuple[str, ...]:
    """Raises InputError for layers that do not exist or hold no weights."""
    layers = options.layers or (*trained.shown, trained.logits)
    good = [name for name, row in trained.layers.items() if row.relu is not None or name == trained.logits]
    for layer in layers:
        if options.layers and layer not in good:
            raise InputError(f"--layers must be of {', '.join(good)}, got {layer!r}")
    return tuple(layers)


def seen(trained: Trained, layer: str) -> tuple[slice, slice]:
    """The rows and columns of the image that the unit in the middle sees."""
    row, sides = trained.layers[layer], trained.dataset.image_shape[:2]
    if row.fields is None:
        return slice(0, sides[0]), slice(0, sides[1])
    firsts = [
        math.ceil(field.start + field.jump * (units // 2) - (field.size - 1) / 2)
        for field, units in zip(row.fields, row.output_shape, strict=False)
    ]
    height, width = (
        slice(max(first, 0), min(first + field.size, side))
        for first, field, side in zip(firsts, row.fields, sides, strict=True)
    )
    return height, width


if __name__ == "__main__":
    cli.run_options(main, Options())
