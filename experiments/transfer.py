"""A trained network moved to other images: tables 4 and 5 of Zeiler & Fergus (2014).

The network of a run sees a few images of each class of another data set, brought to the size and the channels of its
input. Either all its layers are frozen and a new softmax is trained on the last hidden one, as in the paper; or its
weights are where a training of all layers starts (fine-tuned); or the same network is trained from random weights
(from scratch). Images, steps and augmentation are the same for the last two, and the mean image of the run is
subtracted in all.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import cli, models, ops
from cnnjax.cli import Progress
from cnnjax.config import DataConfig, Hyperparams, TrainConfig
from cnnjax.data import Dataset, Split, batches, fingerprint, load
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.models import weights
from cnnjax.train.feed import Resident, portions
from cnnjax.train.optimizers import scaled_at_first
from cnnjax.train.step import initial_state, make_order, make_train_chunk
from cnnjax.visualize.probes import class_accuracy, layer_features, make_features, prepared, probe
from experiments.looking import NetworkOptions, Place, Trained, open_network, require_at_most, studying
from experiments.probes import check_draws, draw_fold
from experiments.train import check_heard

# Accuracy, %, of the same network by images of each class: from scratch, and pre-trained on ImageNet and frozen.
PAPER = {
    "Caltech-101": {15: ("22.8 ± 1.5", "83.8 ± 0.5"), 30: ("46.5 ± 1.7", "86.5 ± 0.5")},
    "Caltech-256": {
        15: ("9.0 ± 1.4", "65.7 ± 0.2"),
        30: ("22.5 ± 0.7", "70.6 ± 0.2"),
        45: ("31.2 ± 0.5", "72.7 ± 0.4"),
        60: ("38.8 ± 1.4", "74.2 ± 0.3"),
    },
}
METHODS = ("from scratch", "frozen", "fine-tuned")


@dataclasses.dataclass(frozen=True)
class Options(NetworkOptions):
    """Where the network goes, and how it is trained there."""

    run_data: Place = Place()  # where the images of the network's own run are now

    data: DataConfig = DataConfig(name="digits")  # the other images; size, channels and unit are the network's
    hyper: Hyperparams = Hyperparams(flip=0.0, shift=2.0)  # from scratch and fine-tuned; its seed also draws images
    per_class: tuple[int, ...] = (5, 15)  # training images of each class
    test_per_class: int = 50  # at most; the paper's number
    folds: int = 3  # draws of training and test images; the paper has 5
    tuning_rate: float = 0.1  # share of hyper.learning_rate at which weights of the run are trained on
    steps: int = 200  # from scratch and fine-tuned, up to the end of the epoch
    batch_size: int = 32  # images a step; where there are fewer, all of them
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the frozen network's softmax, to choose from

    def __post_init__(self):
        self.hyper.check()
        check_draws(self.per_class, self.test_per_class, self.folds, self.hyper.seed)
        require_at_most(self, folds=1000, steps=10**6)
        for name in ("image_size", "channels", "shorter_side", "mean", "deviation"):
            if getattr(self.data, name) is not None:
                raise InputError(f"--data.{name.replace('_', '-')} must be None: the network's input decides it")
        if not 0 < self.tuning_rate < np.inf:
            raise InputError(f"--tuning-rate must be a finite number > 0, got {self.tuning_rate}")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not self.strengths or any(not 0 < strength < np.inf for strength in self.strengths):
            raise InputError(f"--strengths must be finite numbers > 0, got {self.strengths}")


def fitted_data(data: DataConfig, trained: Trained, progress: Progress) -> Dataset:
    """The data set in the size and the channels of the network's input, scaled as its own images were."""
    height, width, channels = image_shape = trained.dataset.image_shape
    if height != width:
        raise InputError(f"--run must be of a network for square images, which others can be cut to, got {image_shape}")
    how = {name: getattr(trained.config.data, name) for name in ("shorter_side", "interpolation")}
    return load(dataclasses.replace(data, image_size=height, channels=channels, **how), progress)


def frozen_accuracy(trained: Trained, train: Split, classes: int, test: Split, strengths: tuple[float, ...]) -> float:
    """All layers kept, and a new softmax on the last hidden one.

    Args:
        train: as many images of each class, class by class.
    """
    layer = list(trained.layers)[-2]

    def feature_maps(variables, images):
        return {layer: trained._replace(variables=variables).feature_maps(images)[layer]}

    features = make_features(feature_maps, trained.preprocess, most=1 << 30)
    of_train, of_test = (
        layer_features(features, trained.variables, batches(split, trained.group))[layer] for split in (train, test)
    )
    seen, unseen = prepared(of_train.reshape(classes, -1, of_train.shape[-1]), of_test, standardize=True)
    return probe(seen, unseen, test.labels, classifier="softmax", strengths=strengths)


def make_training(trained: Trained, options: Options, count: int, classes: int) -> Callable[..., float]:
    """Returns (training images, start, test images) -> accuracy after all layers were trained on `count` images.

    `start` are the parameters to start from, without those of the last layer; {} for random ones.
    """
    network = models.build(
        dataclasses.replace(trained.config.model, classes=None), trained.dataset.image_shape, classes
    )
    batch_size = min(options.batch_size, count)
    steps_per_epoch = -(-count // batch_size)
    config = TrainConfig(epochs=-(-options.steps // steps_per_epoch), batch_size=batch_size)
    order = ops.jit(make_order(config, count))
    chunk = ops.jit(make_train_chunk(network, config, trained.preprocess, count))
    logits = ops.jit(lambda variables, images: network.apply(variables, trained.preprocess(images))[0])

    def accuracy(train: Split, start: dict, test: Split) -> float:
        share = options.tuning_rate if start else 1.0
        rate = share * options.hyper.learning_rate
        hyper = jax.tree.map(jnp.asarray, dataclasses.replace(options.hyper, learning_rate=rate))
        state = initial_state(network, config, hyper, train.images.shape[1:])
        batch_stats = trained.variables["batch_stats"] if start else state.batch_stats
        state = state._replace(params={**state.params, **start}, batch_stats=batch_stats)
        feed, steps = Resident(train, batch_size, order, jax.device_put), config.epochs * steps_per_epoch
        for part in portions(feed, hyper, 0, steps):
            state = chunk(hyper, state, *part)
        if int(state.step) < steps:  # it stands still where its loss is not finite
            raise InputError(f"--hyper.learning-rate must be lower: with {rate} step {state.step} is not finite")
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        predicted = [np.argmax(logits(variables, batch.images), axis=1) for batch in batches(test, trained.group)]
        return class_accuracy(np.concatenate(predicted)[: len(test)], test.labels)

    return accuracy


def main(options: Options, progress: Progress) -> None:
    trained = open_network(options, options.run_data, "--run-data", progress)
    if len(trained.layers) < 2:
        raise InputError("--run must be of a network with a hidden layer to keep, got one layer")
    usual = dataclasses.asdict(Options().hyper)
    given = [name for name, value in dataclasses.asdict(options.hyper).items() if value != usual[name]]
    named = {name: f"--hyper.{name.replace('_', '-')}" for name in given}
    check_heard(named, [(trained.config.model.name, trained.network)], trained.dataset)
    target = fitted_data(options.data, trained, progress)
    classes, most = target.num_classes, max(options.per_class)
    # Filters that were not bounded where the weights come from are not bounded here.
    least = max(options.hyper.filter_rms, trained.config.hyper.filter_rms)
    options = dataclasses.replace(options, hyper=dataclasses.replace(options.hyper, filter_rms=least))
    head = weights.layout(trained.config.model, trained.dataset.image_shape, classes).head
    kept = weights.without({"params": trained.variables["params"]}, head)["params"]
    if told := scaled_at_first(kept, options.hyper.filter_rms):
        progress.say(f"fine-tuned: {told}")
    trainings = {count: make_training(trained, options, count * classes, classes) for count in options.per_class}
    drawn = [draw_fold(target, most, options.test_per_class, options.hyper.seed, fold) for fold in range(options.folds)]

    def accuracy(method: str, count: int, fold: int) -> float:
        rows, test = drawn[fold]
        chosen = rows[:, :count].ravel()
        train = Split(target.train.images[chosen], target.train.labels[chosen])
        if method == "frozen":
            return frozen_accuracy(trained, train, classes, test, options.strengths)
        return trainings[count](train, kept if method == "fine-tuned" else {}, test)

    elsewhere = dict.fromkeys(("run", "run_data", "data", "folds"))
    settings = dataclasses.asdict(options) | elsewhere | {"target": fingerprint(target)}
    with studying(trained, f"transfer-{target.name}", settings, progress) as parts:
        every = list(itertools.product(METHODS, options.per_class, range(options.folds)))
        found = {
            place: float(
                parts.get(
                    f"{place[0].replace(' ', '-')}-{place[1]}-{place[2]}",
                    lambda place=place: {"accuracy": accuracy(*place)},
                )["accuracy"]
            )
            for place in progress.over("training", every)
        }
        shape = len(METHODS), len(options.per_class), options.folds
        accuracies = np.array([found[place] for place in every]).reshape(shape)
        progress.say(result_table(accuracies, options, trained, target))
        path = trained.figures / f"transfer-{target.name}.npz"
        files.save_arrays(path, accuracy=accuracies, methods=METHODS, per_class=options.per_class)
        progress.say(f"numbers in {path}")


def result_table(accuracies: np.ndarray, options: Options, trained: Trained, target: Dataset):
    """Tables 4 and 5; `accuracies` [methods, counts, folds]."""
    rows = []
    for method, by_count in zip(METHODS, accuracies, strict=True):
        cells = [f"{100 * folds.mean():.1f} ± {100 * folds.std():.1f}" for folds in by_count]
        rows.append((f"{trained.dataset.name} to {target.name}: {method}", *cells))
    for name, numbers in PAPER.items():
        for index, method in ((0, "from scratch"), (1, "frozen")):
            cells = [numbers[count][index] if count in numbers else "" for count in options.per_class]
            rows.append((f"paper, ImageNet to {name}: {method}", *cells))
    title = f"accuracy, %, mean over classes, ± deviation over {options.folds} folds, by training images of each class"
    return cli.table(title, ("", *(str(count) for count in options.per_class)), rows)


if __name__ == "__main__":
    cli.run_options(main, Options())
