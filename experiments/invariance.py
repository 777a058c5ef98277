"""What features and answer notice when an image is moved, enlarged or turned: figure 5 of Zeiler & Fergus (2014).

Some images of the test split are translated vertically, scaled and rotated; drawn are the Euclidean distance of the
features of a low and of a high layer to those of the untouched image, and the probability of the true class. The same
over the first images of every class, with quartiles, and what the paper says of the figure as numbers: is a small
change seen less in the high layer, does its response grow in a straight line, is the answer kept?

Images are transformed in grey levels, before the mean image is subtracted. What moves in from beyond the border is
`--fill`, and a part of every response is to it: only turns by multiples of 90 degrees leave no empty corners.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from cnnjax import cli, models, ops
from cnnjax.cli import Progress
from cnnjax.data import scale_of
from cnnjax.data.dataset import Split
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.figures import invariance as figure
from cnnjax.visualize.invariance import TRANSFORMATIONS, Interpolation, Response, claims, make_respond, warp
from experiments.looking import PictureOptions, Trained, example_images, looked_at, open_run, studying

Range = tuple[float, float, int]
SHOWN = 5  # values of each transformation at which the images themselves are drawn


@dataclasses.dataclass(frozen=True)
class Options(PictureOptions):
    """Figure 5; what the paper leaves open is named."""

    images: tuple[int | str, ...] | None = None  # test images by number, or files; none: five, a seeded choice
    low: str | None = None  # layer; none: the output of the first, after pool and norm (the paper's layer 1)
    high: str | None = None  # layer; none: the last before the logits (the paper's layer 7)
    translation: Range | None = None  # FROM TO STEPS, px; none: ±60/224 of the height as the paper, in whole pixels
    scale: Range = (1.0, 1.8, 17)  # FROM TO STEPS, ratios
    rotation: Range = (0.0, 350.0, 36)  # FROM TO STEPS, degrees counter-clockwise
    fill: Literal["mean", "grey", "zero", "edge"] = "mean"  # beyond the border: the mean image, level 128, 0, or edge
    interpolation: Interpolation = "bilinear"
    distance: Literal["raw", "relative"] = "raw"  # relative: as a share of the norm of the untouched image's features
    per_class: int = 20  # test images of each class (all where it has fewer) that are averaged; 0: no average

    def __post_init__(self):
        for name in TRANSFORMATIONS:
            if (given := getattr(self, name)) is None:
                continue
            start, end, steps = given
            if not (np.isfinite([start, end]).all() and start < end and steps >= 2):
                raise InputError(f"--{name} must be FROM < TO and at least 2 STEPS, got {start} {end} {steps}")
            if max(abs(start), abs(end)) > 1e6 or steps > 10**4:
                rule = f"within ±{1e6:.0f} and at most {10**4} STEPS"
                raise InputError(f"--{name} must be {rule}, got {start} {end} {steps}")
        if self.scale[0] <= 0:
            raise InputError(f"--scale must be ratios above 0, got {self.scale[0]}")
        if self.images is not None and not self.images:
            raise InputError("--images must name at least 1 image, got none")
        if self.per_class < 0:
            raise InputError(f"--per-class must be at least 0, got {self.per_class}")


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained, numbers = looked_at(opened or open_run(options, progress), options.images or (), progress)
    layers, values = chosen_layers(trained, options), amounts(trained, options)
    split = dataclasses.replace(trained.dataset.test, labels=trained.targets(trained.dataset.test))
    images = numbers or example_images(trained, 5, progress)
    background = fill(trained, options.fill)

    def outputs(variables: Any, images: jax.Array):
        maps = trained._replace(variables=variables).feature_maps(trained.preprocess(images))
        return maps[layers[0]], maps[layers[1]], maps[trained.logits]

    respond = make_respond(outputs, background, options.interpolation, group=trained.group)

    def responses(indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Arrays named TRANSFORMATION/FIELD, the images first."""
        found = []
        for place, index in enumerate(indices):
            other = indices[(place + 1) % len(indices)]
            found.append(respond(trained.variables, *_pair(split, index, other), split.labels[index], values))
        whole: dict[str, Response] = jax.tree.map(lambda *parts: np.stack(parts), *found)
        return {f"{name}/{field}": part for name, of in whole.items() for field, part in of._asdict().items()}

    elsewhere = dict.fromkeys(("run", "epoch", "data", "on"))
    settings = {**dataclasses.asdict(options), **elsewhere, "images": images}
    with studying(trained, "invariance", settings, progress) as parts:
        unit = "" if options.distance == "raw" else ",\nshare of the norm"
        chosen = parts.get("images", lambda: responses(images))
        shown = {
            name: every[np.linspace(0, len(every) - 1, SHOWN).round().astype(int)] for name, every in values.items()
        }
        pictures = {
            name: warped(split.images[list(images)], name, at, background, options.interpolation)
            for name, at in shown.items()
        }
        names = [trained.called(index, split.labels[index]) for index in images]
        drawing = figure.draw(
            pictures, shown, values, *curves(chosen, values, options.distance), names, layers, unit, trained.target
        )
        arrays = {f"{name}/values": every for name, every in values.items()}
        words = {
            "layers": layers,
            "distance": options.distance,
            "target": trained.target,
            "per_class": options.per_class,
        }
        drawn = {f"{name}/shown": at for name, at in shown.items()} | {"names": names}
        drawn |= {f"{name}/pictures": of for name, of in pictures.items()}
        path = trained.figures / "invariance.png"
        pictures = [files.save(path, drawing, images=images, **words, **drawn, **arrays, **chosen)]
        if options.per_class:
            labels = range(len(trained.class_names))
            firsts = [np.flatnonzero(split.labels == label)[: options.per_class] for label in labels]
            # One class after another in turn, so that the other image is mostly of another class
            order = [int(of[rank]) for rank in range(options.per_class) for of in firsts if rank < len(of)]
            blocks = [order[start : start + 50] for start in range(0, len(order), 50)]
            kept = [
                parts.get(f"average-{start}", lambda block=block: responses(block))
                for start, block in progress.over("transforming images", list(enumerate(blocks)))
            ]
            average = {key: np.concatenate([part[key] for part in kept]) for key in kept[0]}
            distance, probability = curves(average, values, options.distance)
            level = scaled(average, next(iter(values)), "unrelated", options.distance).mean(axis=0)
            note = f"Over {len(order)} test images, the first {options.per_class} of each class"
            drawing = figure.draw_average(values, distance, probability, level, layers, unit, note, trained.target)
            path = trained.figures / "invariance_average.png"
            pictures.append(files.save(path, drawing, images=order, level=level, **words, **arrays, **average))
            progress.say(claims_table(average, values, layers, len(order), trained.target))
        progress.say(f"figures in {trained.figures}")
    return pictures


def chosen_layers(trained: Trained, options: Options) -> tuple[str, str]:
    """The low and the high layer; by default the last row of the first layer and the last one before the logits."""
    names, stages = list(trained.layers), models.stages(list(trained.layers.values()))
    low, high = options.low or (stages[0][-1].name if stages else names[0]), options.high or names[-2:][0]
    return trained.layer(low, "--low").name, trained.layer(high, "--high").name


def amounts(trained: Trained, options: Options) -> dict[str, np.ndarray]:
    """The values of every transformation."""
    reach = max(1, round(trained.dataset.image_shape[0] * 60 / 224))
    ranges = {
        "translation": options.translation or (-reach, reach, 2 * reach + 1),
        "scale": options.scale,
        "rotation": options.rotation,
    }
    return {name: np.linspace(*of, dtype=np.float32) for name, of in ranges.items()}


def fill(trained: Trained, name: str) -> np.ndarray | None:
    """What is seen beyond the border of an image, in grey levels; None for its edge."""
    levels = {
        "mean": lambda: scale_of(trained.config.data, trained.dataset).mean,
        "grey": lambda: np.full(trained.dataset.image_shape, 128, np.float32),
        "zero": lambda: np.zeros(trained.dataset.image_shape, np.float32),
        "edge": lambda: None,
    }
    return levels[name]()


def _pair(split: Split, index: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    return split.images[index].astype(np.float32), split.images[other].astype(np.float32)


def warped(
    images: np.ndarray, name: str, values: np.ndarray, background: np.ndarray | None, interpolation: Interpolation
) -> np.ndarray:
    """Each image at each value, [images, values, height, width, channels], in grey levels."""

    def versions(image: jax.Array) -> jax.Array:
        affines = TRANSFORMATIONS[name].affine(values)
        return jax.vmap(lambda affine: warp(image, affine, background, interpolation))(affines)

    return np.asarray(ops.jit(jax.vmap(versions))(images.astype(np.float32)))


def scaled(found: dict[str, np.ndarray], name: str, field: str, distance: str) -> np.ndarray:
    """The distances as they are, or as shares of the norm of the untouched image's features."""
    norm = found[f"{name}/norm"].reshape(-1, 2, *[1] * (found[f"{name}/{field}"].ndim - 2))
    return found[f"{name}/{field}"] / (norm if distance == "relative" else 1)


def curves(
    found: dict[str, np.ndarray], values: dict[str, np.ndarray], distance: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Distances and probabilities by transformation."""
    distances = {name: scaled(found, name, "distance", distance) for name in values}
    return distances, {name: found[f"{name}/probability"] for name in values}


def claims_table(
    found: dict[str, np.ndarray], values: dict[str, np.ndarray], layers: tuple[str, str], count: int, target: str
) -> Any:
    """The paper's claims for every transformation."""
    rows = []
    for name, every in values.items():
        of = {field: found[f"{name}/{field}"] for field in ("distance", "unrelated", "probability", "untouched")}
        said = claims(**of, amount=TRANSFORMATIONS[name].amount(every))
        rows.append((name, *(f"{100 * share:.0f} %" for share in said.small), *(f"{r:.2f}" for r in said.straight)))
        rows[-1] += (f"{100 * said.kept:.0f} %",)
    columns = ("", *(f"{layer}: smallest change" for layer in layers), *(f"{layer}: R²" for layer in layers))
    title = (
        f"Over {count} test images. Smallest change: mean distance as a share of that to another image;\n"
        "R²: of a straight line, mean distance against the size of the change;\n"
        f"answer kept: mean probability of the {target}, as a share of that of the untouched images"
    )
    return cli.table(title, (*columns, "answer kept"), rows)


if __name__ == "__main__":
    cli.run_options(main, Options())
