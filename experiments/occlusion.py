"""Covering parts of images with a grey square: figure 7 of Zeiler & Fergus (2014) for a trained network.

For a few test images the square stands at every position of a grid: how active the strongest map of a layer still is,
how probable the true class, and which class is the most probable. Then, over many test images: does a square over the
centre, where the object mostly is, lower the true class more than one in a corner?
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnnjax import cli, ops
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.data import Purpose, address, scale_of
from cnnjax.data.splits import of_all_classes
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.figures import occlusion as occlusion_figure
from cnnjax.visualize.deconvnet import Rule
from cnnjax.visualize.evolution import Projector, Strongest, alike_through_others, tile_units
from cnnjax.visualize.occlusion import Activity, bootstrap_interval, corners_along, falls, make_respond, occlusion
from experiments.looking import (
    PictureOptions,
    Trained,
    example_images,
    look_of,
    looked_at,
    maps_of,
    open_run,
    projector_of,
    strongest_of,
    studying,
)


@dataclasses.dataclass(frozen=True)
class Options(PictureOptions):
    """Which network, and what to cover."""

    images: tuple[int | str, ...] = ()  # test images by number, or files; none: a seeded choice
    random_images: int = 3  # how many that choice takes, of different classes
    layer: str | None = None  # whose strongest map is watched; none: the last convolution, as the paper
    activity: Activity = "sum"  # how active a map is, from its positions: the paper's total, or the maximum
    side: int | None = None  # of the square, in pixels; none: a quarter of the image's shorter side
    step: int | None = None  # at most so many pixels between positions; none: a sixteenth of that side
    grey: int | None = None  # grey level of the square, 0 to 255; none: the mean of the training images
    others: int = 3  # projections of the same map from the training images that excite it most
    rule: Rule = "deconvnet"  # of these projections, at a ReLU on the way down to the pixels
    tested: int = 1000  # test images of all classes, for the centre against the corners; fewer if there are fewer
    seed: int = 0  # of the choice of images, and of the confidence interval

    def __post_init__(self):
        for name, low in (("random_images", 1), ("others", 1), ("tested", 2)):
            if getattr(self, name) < low:
                raise InputError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        check_seed("--seed", self.seed)
        if self.grey is not None and not 0 <= self.grey <= 255:
            raise InputError(f"--grey must be from 0 to 255, got {self.grey}")


class Settings(NamedTuple):
    """The options with what they leave open filled in."""

    layer: str
    activity: Activity
    side: int
    step: int
    grey: int


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained, images = looked_at(opened or open_run(options, progress), options.images, progress)
    test = trained.dataset.test
    settings, labels = checked_settings(options, trained), trained.targets(test)
    decided = settings._asdict() | {"others": options.others, "tested": options.tested, "rule": options.rule}
    with studying(trained, "occlusion", decided, progress) as parts:
        square = {"side": settings.side, "grey": settings.grey}
        in_groups = square | {"group": trained.group}

        def feature_maps(variables, images):
            return trained._replace(variables=variables).feature_maps(images)

        respond = make_respond(feature_maps, settings.layer, trained.logits, trained.preprocess, settings.activity)

        def compare() -> dict[str, Any]:
            fallen = [
                falls(respond, trained.variables, test.images[some], labels[some], **in_groups)
                for some in np.split(tested, range(trained.group, len(tested), trained.group))
            ]
            centre, corners, whole = (np.concatenate(of) for of in zip(*fallen, strict=True))
            return {"centre": centre, "corners": corners, "whole": whole, "labels": labels[tested]}

        tested = of_all_classes(test.labels, options.tested)
        compared = parts.get("compared", compare)
        key = address(options.seed, Purpose.STUDY, 3)
        more = compared["centre"] - compared["corners"].mean(axis=1)
        interval = bootstrap_interval(jax.random.fold_in(key, 1), more)

        def search() -> dict[str, np.ndarray]:
            train, layer = trained.dataset.train, settings.layer
            return strongest_of(trained, look_of(trained, (layer,), options.others), train, progress)[layer]._asdict()

        found = Strongest(**parts.get("search", search))
        projector = projector_of(trained, settings.layer, options.rule)
        rows = []
        chosen = images or example_images(trained, options.random_images, progress, options.seed)
        for number in progress.over("covering", chosen):

            def cover(number=number) -> dict[str, Any]:
                seen = occlusion(respond, trained.variables, test.images[number], step=settings.step, **in_groups)
                watched = int(np.argmax(seen.whole.activity))
                return {
                    "tops": seen.tops,
                    "lefts": seen.lefts,
                    "map": watched,
                    "activity": seen.covered.activity[..., watched],
                    "whole_activity": seen.whole.activity[watched],
                    "probability": seen.covered.probabilities[..., labels[number]],
                    "whole_probability": seen.whole.probabilities[labels[number]],
                    "best": np.argmax(seen.covered.probabilities, axis=-1),
                    **projections(projector, trained, settings.layer, number, watched, found),
                }

            part: dict[str, Any] = {
                key: array if array.ndim else array.item() for key, array in parts.get(f"image_{number}", cover).items()
            }
            file = trained.pictures[number] if trained.pictures else ""
            rows.append(occlusion_figure.Row(int(number), int(labels[number]), test.images[number], **part, file=file))
        figure = occlusion_figure.draw(
            rows, trained.class_names, settings.layer, settings.activity, **square, target=trained.target,
            rule=options.rule,
        )  # fmt: skip
        arrays = {f"{name}_{row.number}": value for row in rows for name, value in row._asdict().items()}
        arrays |= square | {"layer": settings.layer, "activity": settings.activity, "rule": options.rule}
        arrays |= {"class_names": trained.class_names, "images": chosen, "target": trained.target}
        picture = files.save(trained.figures / "occlusion.png", figure, **arrays, **compared, interval=interval)
        progress.say(sentence(settings, compared, more, interval, trained.target))
        progress.say(f"figure in {trained.figures}")
    return [picture]


def checked_settings(options: Options, trained: Trained) -> Settings:
    """The settings, every one of them checked against the run."""
    if options.layer is None and not trained.shown:
        raise InputError(f"--layer must be given for a network without convolutions: {', '.join(trained.layers)}")
    layer = options.layer or trained.shown[-1]
    trained.layer(layer)
    if options.others > len(trained.dataset.train):
        raise InputError(
            f"--others must be at most the {len(trained.dataset.train)} training images, got {options.others}"
        )
    shorter = min(trained.dataset.image_shape[:2])
    side = max(1, shorter // 4) if options.side is None else options.side
    step = max(1, shorter // 16) if options.step is None else options.step
    corners_along(shorter, side, step)
    mean = float(scale_of(trained.config.data, trained.dataset).mean.mean())
    grey = round(min(max(mean, 0.0), 255.0)) if options.grey is None else options.grey
    return Settings(layer, options.activity, side, step, grey)


def projections(
    projector: Projector, trained: Trained, layer: str, number: int, watched: int, found: Strongest
) -> dict[str, np.ndarray]:
    """The map's strongest activation in this test image, projected, then those found in the training images.

    Beside them the patches of these images, and how alike each projection is through another of them.
    """
    own = trained.dataset.test.images[number : number + 1]
    seen = ops.jit(maps_of(trained, (layer,)))(trained.variables, trained.preprocess(own))
    active = seen[layer][0, ..., watched]
    place = np.array(np.unravel_index(np.argmax(active), active.shape), int)
    images = np.concatenate([own, trained.dataset.train.images[found.image[:, watched]]])
    units = np.concatenate([place[None], found.unit[:, watched]])
    every, maps, fields = np.arange(len(images)), np.full(len(images), watched), trained.layers[layer].fields
    variables, group = trained.variables, trained.group
    projected, patches = tile_units(projector, variables, images, every, units, maps, fields, group=group)
    alike = alike_through_others(projector, variables, images, every, units, maps, group=group)
    return {"projections": projected, "patches": patches, "alike": alike}


def sentence(
    settings: Settings, compared: dict[str, np.ndarray], more: np.ndarray, interval: tuple, target: str
) -> str:
    """Whether covering the centre costs the class more than covering a corner, with the numbers."""
    low, high = interval
    verdict = "the centre costs more" if low > 0 else "a corner costs more" if high < 0 else "not decided"
    return (
        f"a square of {settings.side}×{settings.side} px, grey {settings.grey}, on {len(more):,} images lowers "
        f"the probability of the {target} by {compared['centre'].mean():.3f} at the centre and by "
        f"{compared['corners'].mean():.3f} in a corner (mean of four): difference {more.mean():.3f}, "
        f"95 % interval {low:.3f} to {high:.3f}: {verdict}"
    )


if __name__ == "__main__":
    cli.run_options(main, Options())
