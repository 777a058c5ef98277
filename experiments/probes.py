"""What each layer knows of the classes: table 7 of Zeiler & Fergus (2014) for any trained network.

The network is frozen. On the features of each layer a linear SVM and a softmax are trained with a few images of each
class, drawn from the training split (which the network was trained on, where the paper has another data set: see
`experiments.transfer`), and tested on images of the test split; drawn anew in every fold. The same with the weights of
epoch 0 shows what the random network does by itself.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnjax import cli, models
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.data import Dataset, Split, batches
from cnnjax.data.splits import random_state
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.figures import probes as probes_figure
from cnnjax.visualize.probes import Classifier, Pooling, layer_features, make_features, prepared, probe
from experiments.looking import RunOptions, Trained, open_run, require_at_most, studying

MOST_BYTES = 2**31  # of the features of a fold and the classifiers' copies
PIXELS = "pixels"  # the network's input, as layer 0

# Accuracy, %, on Caltech-101 (30 images a class) and Caltech-256 (60), by layer.
PAPER = {
    "svm": {1: (44.8, 24.6), 2: (66.2, 39.6), 3: (72.3, 46.0), 4: (76.6, 51.3), 5: (86.2, 65.6), 7: (85.5, 71.7)},
    "softmax": {5: (82.9, 65.7), 7: (85.4, 72.6)},
}


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """What is probed, and how."""

    layers: tuple[str, ...] | None = None  # none: the pixels, and each layer behind its pool and norm
    per_class: tuple[int, ...] | None = None  # training images of each class; none: 30, or what the smallest class has
    test_per_class: int = 50  # at most; the paper's number
    folds: int = 3  # draws of training and test images
    classifiers: tuple[Classifier, ...] = ("svm", "softmax")  # linear: one class against the rest; multinomial
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # C of both, chosen on a held-out quarter; one: taken
    standardize: bool = True  # each feature: the training images' mean subtracted, divided by their deviation
    features: int = 2048  # at most of a layer; larger maps are pooled over a grid of cells
    pooling: Pooling = "mean"  # over those cells
    untrained: bool = True  # the same with the weights of epoch 0, beside it
    seed: int = 0  # of the draws

    def __post_init__(self):
        check_draws((30,) if self.per_class is None else self.per_class, self.test_per_class, self.folds, self.seed)
        require_at_most(self, folds=1000, features=2**30)
        for name in ("layers", "classifiers", "strengths"):
            if getattr(self, name) == ():
                raise InputError(f"--{name} must be at least one, got none")
        if any(not 0 < strength < np.inf for strength in self.strengths):
            raise InputError(f"--strengths must be finite numbers > 0, got {self.strengths}")
        if self.features < 1:
            raise InputError(f"--features must be at least 1, got {self.features}")


def check_draws(per_class: tuple[int, ...], test_per_class: int, folds: int, seed: int) -> None:
    """Raises InputError for an option of the draws that is out of range."""
    if not per_class or min(per_class) < 1:
        raise InputError(f"--per-class must be numbers of at least 1, got {per_class}")
    for name, value, least in (("test-per-class", test_per_class, 1), ("folds", folds, 1)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, got {value}")
    check_seed("--seed", seed)


def draw_per_class(labels: np.ndarray, classes: int, count: int, seed: int, *address: int) -> list[np.ndarray]:
    """For each class the rows of `count` of its images, or of all where there are fewer, in seeded order."""
    return [
        random_state(seed, *address, label).permutation(np.flatnonzero(labels == label))[:count]
        for label in range(classes)
    ]


def draw_fold(dataset: Dataset, per_class: int, test_per_class: int, seed: int, fold: int) -> tuple[np.ndarray, Split]:
    """The rows of the training images, [classes, per_class], and the test images of one fold."""
    train = draw_per_class(dataset.train.labels, dataset.num_classes, per_class, seed, fold, 0)
    for name, rows in zip(dataset.class_names, train, strict=True):
        if len(rows) < per_class:
            rule = f"at most the training images of each class, and {name} of {dataset.name} has {len(rows)}"
            raise InputError(f"--per-class must be {rule}, got {per_class}")
    test = np.concatenate(draw_per_class(dataset.test.labels, dataset.num_classes, test_per_class, seed, fold, 1))
    return np.stack(train), Split(dataset.test.images[test], dataset.test.labels[test])


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained = opened or open_run(options, progress)
    networks = {f"epoch {trained.epoch}": trained}
    if options.untrained and trained.epoch > 0:
        networks["untrained"] = open_run(dataclasses.replace(options, epoch=0), progress)
    table = list(trained.layers.values())
    # Each layer's last feature map, behind its pool and norm; the logits are not among them.
    layers = options.layers or (PIXELS, *(row.name for row in models.stage_outputs(table)))
    for name in layers:
        if name not in (PIXELS, *trained.layers):
            raise InputError(f"--layers must be of {', '.join((PIXELS, *trained.layers))}, got {name!r}")
    if options.per_class is None:
        smallest = int(np.bincount(trained.dataset.train.labels, minlength=trained.dataset.num_classes).min())
        options = dataclasses.replace(options, per_class=(max(1, min(30, smallest)),))
    counts = options.per_class or ()
    most = max(counts)
    require_features(trained, layers, most, options)
    folds = [
        draw_fold(trained.dataset, most, options.test_per_class, options.seed, fold) for fold in range(options.folds)
    ]

    def feature_maps(variables, images):
        maps = {PIXELS: images, **trained._replace(variables=variables).feature_maps(images)}
        return {layer: maps[layer] for layer in layers}

    features = make_features(feature_maps, trained.preprocess, options.features, options.pooling)

    def accuracies(network: Trained, rows: np.ndarray, test: Split) -> np.ndarray:
        """[layers, classifiers, counts] of one fold."""
        split = trained.dataset.train
        shown = Split(split.images[rows.ravel()], split.labels[rows.ravel()])
        of_train = layer_features(features, network.variables, batches(shown, trained.group))
        of_test = layer_features(features, network.variables, batches(test, trained.group))

        def accuracy(layer: str, count: int) -> list[float]:
            train = of_train[layer].reshape(*rows.shape, -1)[:, :count]
            seen, unseen = prepared(train, of_test[layer], standardize=options.standardize)
            return [
                probe(seen, unseen, test.labels, classifier=kind, strengths=options.strengths)
                for kind in options.classifiers
            ]

        by_count = [[accuracy(layer, count) for count in counts] for layer in layers]
        return np.swapaxes(by_count, 1, 2)

    settings = dataclasses.asdict(options) | {"run": None, "epoch": None, "data": None, "folds": None}
    settings["networks"] = {name: network.variables for name, network in networks.items()}
    with studying(trained, "probes", settings, progress) as parts:
        found = {
            (name, fold): parts.get(
                f"{name.replace(' ', '-')}-fold-{fold}",
                lambda name=name, fold=fold: {"accuracy": accuracies(networks[name], *folds[fold])},
            )["accuracy"]
            for name, fold in progress.over(
                "probing", [(name, fold) for name in networks for fold in range(options.folds)]
            )
        }
        accuracy = np.stack([[found[name, fold] for fold in range(options.folds)] for name in networks])
        picture = report(options, trained, tuple(networks), layers, accuracy, progress)
    return [picture]


def require_features(trained: Trained, layers: Sequence[str], per_class: int, options: Options) -> None:
    """Raises InputError where the features of a fold, and what the classifiers make of them, are above MOST_BYTES."""
    shapes = [trained.dataset.image_shape if name == PIXELS else trained.layers[name].output_shape for name in layers]
    sizes = [min(math.prod(shape), max(shape[-1], options.features)) for shape in shapes]  # as `pooled` leaves them
    # Of all layers in single, of one at a time three copies in double precision.
    of_an_image = 4 * sum(sizes) + 3 * 8 * max(sizes)
    images, most = trained.dataset.num_classes * (per_class + options.test_per_class), MOST_BYTES // of_an_image
    if images > most:
        of_a_class = f"{per_class} + {options.test_per_class} images of each of {trained.dataset.num_classes:,} classes"
        raise InputError(
            f"--per-class and --test-per-class must leave at most {most:,} images for the features of {len(layers)}"
            f" layers to stay within {MOST_BYTES / 2**30:g} GiB, got {of_a_class}"
        )


def report(
    options: Options,
    trained: Trained,
    networks: tuple[str, ...],
    layers: tuple[str, ...],
    accuracy: np.ndarray,
    progress: Progress,
) -> Path:
    """Prints table 7 with the paper's numbers beside it, and draws it; returns the picture.

    Args:
        accuracy: [networks, folds, layers, classifiers, counts].
    """
    dataset, counts = trained.dataset, options.per_class or ()
    stages = models.stages(list(trained.layers.values()))
    # As the paper counts; 0 are the pixels, and deeper networks have no layers of the paper's.
    of_paper = enumerate(stages, 1) if len(stages) <= models.FEW else ()
    numbers = {PIXELS: 0} | {row.name: number for number, stage in of_paper for row in stage}
    for column, count in enumerate(counts):
        columns = ["layer"]
        columns += [f"{kind}, {name}" for name in networks for kind in options.classifiers]
        columns += [f"paper's {kind}" for kind in options.classifiers]
        rows = []
        for row, layer in enumerate(layers):
            folds = accuracy[:, :, row, :, column]
            means = [
                f"{100 * mean:.1f} ± {100 * deviation:.1f}"
                for mean, deviation in zip(folds.mean(axis=1).ravel(), folds.std(axis=1).ravel(), strict=True)
            ]
            papers = [PAPER[kind].get(numbers.get(layer, -1)) for kind in options.classifiers]
            rows.append((layer, *means, *("" if p is None else f"{p[0]} / {p[1]}" for p in papers)))
        title = (
            f"accuracy, %, mean over classes, {count} training images of each of {dataset.num_classes} classes of "
            f"{dataset.name}; paper: Caltech-101 / 256, layer of the same number"
        )
        progress.say(cli.table(title, columns, rows))
    for index, name in enumerate(networks):
        ranks = "; ".join(
            f"{kind} {depth_correlation(accuracy[index, :, :, number, -1].mean(axis=0)):.2f}"
            for number, kind in enumerate(options.classifiers)
        )
        progress.say(f"{name}: rank correlation of depth and accuracy with {counts[-1]} images a class: {ranks}")
    path = trained.figures / "probes.png"
    title = f"Linear classifiers on the layers of {trained.config.model.name}, {dataset.name}"
    chance = 1 / dataset.num_classes
    figure = probes_figure.draw(accuracy, networks, layers, options.classifiers, counts, chance, title)
    files.save(
        path, figure, accuracy=accuracy, networks=networks, layers=layers, classifiers=options.classifiers,
        per_class=counts, chance=chance, title=title,
    )  # fmt: skip
    progress.say(f"figure in {path}")
    return path


def depth_correlation(accuracy: np.ndarray) -> float:
    """Spearman's rank correlation of a layer's place and its accuracy; NaN of one layer, or if all are alike."""
    from scipy.stats import spearmanr

    if len(accuracy) < 2 or np.ptp(accuracy) == 0:
        return float("nan")
    return float(spearmanr(np.arange(len(accuracy)), accuracy).statistic)  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    cli.run_options(main, Options())
