"""Scanning: small networks that are MLPs scanned over sounds, images and volumes, trained for real.

Spoken digits (1-D), Fashion-MNIST (2-D) and adrenal glands (3-D), read from DATA; beside each error those of a nearest
class mean and of a logistic regression on the raw input.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cnnjax import cli, ops
from cnnjax.atomic import write_text
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.data import Purpose, address, epoch_order, npz
from cnnjax.data.published import read_idx
from cnnjax.errors import InputError
from cnnjax.ops import DenseLayer


class Split(NamedTuple):
    inputs: Float[np.ndarray, "n *spatial channels"]
    labels: Int[np.ndarray, " n"]


class Scan(NamedTuple):
    """An MLP that is moved over what comes before it, ReLU behind each of its layers, then max pooling."""

    window: int
    units: tuple[int, ...]  # of each layer
    strides: int = 1
    pool: int = 1  # window and stride; 1: none


class Network(NamedTuple):
    """The weights. Behind the last scan the maximum over all positions, then scores for the classes."""

    scans: tuple[tuple[DenseLayer, ...], ...]
    scores: tuple[DenseLayer, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """One kind of signal and the network for it."""

    title: str
    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], tuple[Split, Split]]
    scans: tuple[Scan, ...]
    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3  # of AdamW, at its highest; it falls as a cosine
    weight_decay: float = 1e-2
    drop_rate: float = 0.0  # of what the class scores are made of
    shift: int = 0  # largest random shift of a training input along each dimension; what leaves comes in again
    penalty: float = 1.0  # of the logistic regression's weights: 1/C


@dataclasses.dataclass(frozen=True)
class Options:
    """What the study can be told."""

    data: Path = Path("data")  # the folder with spoken_digits.npz, fashion-mnist/ and adrenal3d_32.npz
    only: tuple[str, ...] = ("sound", "image", "volume")
    out: Path = Path("runs/scanning")  # where results.json goes
    epochs: int | None = None  # instead of each network's own
    seed: int = 0  # of the weights, the order and the dropout

    def __post_init__(self):
        for name in self.only:
            if name not in STUDIES:
                raise InputError(f"--only must be among {', '.join(STUDIES)}, got {name!r}")
        if self.epochs is not None and not 1 <= self.epochs <= 10**5:
            raise InputError(f"--epochs must be between 1 and {10**5}, got {self.epochs}")
        check_seed("--seed", self.seed)


def read_sound(paths: Sequence[Path]) -> tuple[Split, Split]:
    """Spoken digits at 8 kHz, each brought to a root mean square of 1 over its length; the published split."""
    arrays = _arrays(paths[0], {"audio_mulaw": 2, "length": 1, "label": 1, "is_test": 1})
    _check_lengths(paths[0], arrays)
    code = arrays["audio_mulaw"].astype(np.float32) / 127
    sound = np.sign(code) * (256 ** np.abs(code) - 1) / 255  # mu-law
    power = np.sum(sound**2, axis=1) / np.maximum(arrays["length"], 1)
    sound /= np.sqrt(np.maximum(power, 1e-12))[:, None]
    is_test = arrays["is_test"].astype(bool)
    train, test = ((sound[rows], arrays["label"][rows]) for rows in (~is_test, is_test))
    return _standard(train, test, paths[0])


def read_images(paths: Sequence[Path]) -> tuple[Split, Split]:
    """Fashion-MNIST, whole."""
    arrays = [read_idx(path.read_bytes(), str(path)) for path in paths]
    return _standard(arrays[:2], arrays[2:], paths[0])


def read_volumes(paths: Sequence[Path]) -> tuple[Split, Split]:
    """Shape masks of adrenal glands, the published training and test split; hyperplasia is class 1."""
    names = {f"{split}_{what}": rank for split in ("train", "test") for what, rank in (("images", 4), ("labels", 2))}
    arrays = _arrays(paths[0], names)
    train, test = ((arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)) for split in ("train", "test"))
    return _standard(train, test, paths[0])


def _arrays(path: Path, ranks: dict[str, int]) -> dict[str, np.ndarray]:
    """The arrays of these names in an npz file, each of the given rank."""
    arrays = npz.read(path, tuple(ranks), called="--data")
    for name, rank in ranks.items():
        if arrays[name].ndim != rank:
            raise InputError(f"{path}: {name} must have {rank} dimensions, got shape {arrays[name].shape}")
    return arrays


def _check_lengths(path: Path, arrays: dict[str, np.ndarray]) -> None:
    first, *others = arrays
    for name in others:
        if len(arrays[name]) != len(arrays[first]):
            raise InputError(
                f"{path}: the arrays must all hold {len(arrays[first])} entries, got {len(arrays[name])} in {name}"
            )


def _standard(train: Sequence[np.ndarray], test: Sequence[np.ndarray], path: Path) -> tuple[Split, Split]:
    """Both splits with the training set's mean, one number, subtracted and divided by its standard deviation."""
    for inputs, labels in (train, test):
        if not len(inputs):
            raise InputError(f"{path}: each split must hold at least 1 input, got 0")
        if len(inputs) != len(labels):
            raise InputError(f"{path}: each split must have a label an input, got {len(inputs)} and {len(labels)}")
    if set(np.unique(train[1])) != set(range(int(train[1].max()) + 1)) or test[1].max() > train[1].max():
        raise InputError(f"{path}: the training labels must be all of 0, 1, ..., got {np.unique(train[1]).tolist()}")
    mean, deviation = np.mean(train[0]), max(float(np.std(train[0])), 1e-6)
    train_split, test_split = (
        Split(((inputs.astype(np.float32) - mean) / deviation).astype(np.float32)[..., None], labels.astype(np.int32))
        for inputs, labels in (train, test)
    )
    return train_split, test_split


STUDIES = {
    "sound": Study(
        "spoken digits", ("spoken_digits.npz",), read_sound, epochs=20, batch_size=32, drop_rate=0.3, penalty=100,
        scans=(Scan(64, (32, 32), 8, 4), Scan(9, (64, 64), 2, 2), Scan(12, (128, 128))),
    ),
    "image": Study(
        "Fashion-MNIST", tuple(
            f"fashion-mnist/{split}-{kind}-ubyte.gz" for split in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ), read_images, epochs=8, batch_size=128, drop_rate=0.3, penalty=100,
        scans=(Scan(5, (16, 16), pool=2), Scan(5, (32, 32), pool=2), Scan(4, (128,))),
    ),
    "volume": Study(
        "adrenal glands", ("adrenal3d_32.npz",), read_volumes, epochs=20, batch_size=32, drop_rate=0.3, penalty=1000,
        scans=(Scan(5, (16, 16), 2, 2), Scan(3, (32, 32))),
    ),
}  # fmt: skip


def initial_network(seed: int, scans: Sequence[Scan], dimensions: int, channels: int, classes: int) -> Network:
    """Random weights (He et al. 2015), biases of 0."""

    def mlp(number: int, sizes: Sequence[int]) -> tuple[DenseLayer, ...]:
        keys = jax.random.split(address(seed, Purpose.INIT, number), len(sizes) - 1)
        return tuple(
            DenseLayer(jax.random.normal(key, (inputs, units)) * np.sqrt(2 / inputs), jnp.zeros(units))
            for key, inputs, units in zip(keys, sizes[:-1], sizes[1:], strict=True)
        )

    layers = []
    for number, scan in enumerate(scans):
        layers.append(mlp(number, (scan.window**dimensions * channels, *scan.units)))
        channels = scan.units[-1]
    return Network(tuple(layers), mlp(len(scans), (channels, classes)))


def features(
    network: Network, scans: Sequence[Scan], inputs: Float[Array, "batch *spatial channels"], scan_form=ops.scan_mlp
) -> Float[Array, "batch units"]:
    """Scan after scan, then for each unit of the last: does what it looks for occur anywhere?"""
    for layers, scan in zip(network.scans, scans, strict=True):
        inputs = jax.nn.relu(scan_form(layers, inputs, scan.window, strides=scan.strides))
        if scan.pool > 1:
            inputs = ops.max_pool(inputs, scan.pool)
    return ops.max_pool(inputs, inputs.shape[1:-1]).reshape(len(inputs), -1)


def shifted(
    key: PRNGKeyArray, inputs: Float[Array, "batch *spatial channels"], largest: int
) -> Float[Array, "batch *spatial channels"]:
    """Each input moved around by its own whole number of pixels, up to `largest` along each spatial dimension."""
    if largest == 0:
        return inputs
    axes = tuple(range(inputs.ndim - 2))  # of one input
    steps = jax.random.randint(key, (len(inputs), len(axes)), -largest, largest + 1)
    return jax.vmap(lambda one, step: jnp.roll(one, step, axes))(inputs, steps)


def make_train_chunk(study: Study, seed: int, optimizer: optax.GradientTransformation, n: int) -> Callable[..., Any]:
    """Returns the pure chunk (state, inputs, labels, epoch, start, stop) -> (state, the last step's mean loss).

    The state is (network, optimizer state); `start` and `stop` count the steps within the epoch and are traced.
    """

    def loss(network: Network, place, inputs, labels, mask):
        key = address(seed, Purpose.DROPOUT, *place)
        inputs = shifted(address(seed, Purpose.AUGMENT, *place), inputs, study.shift)
        seen = ops.dropout(key, features(network, study.scans, inputs), study.drop_rate)
        losses = optax.softmax_cross_entropy_with_integer_labels(ops.apply_mlp(network.scores, seen), labels)
        return jnp.sum(losses * mask) / jnp.sum(mask)

    def train_chunk(state, inputs, labels, epoch, start, stop):
        order, masks = epoch_order(seed, epoch, n, study.batch_size)

        def body(step, carry):
            (network, optimizer_state), _ = carry
            batch = (inputs[order[step]], labels[order[step]], masks[step])
            value, gradient = jax.value_and_grad(loss)(network, (epoch, step), *batch)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, network)
            return (optax.apply_updates(network, updates), optimizer_state), value

        return lax.fori_loop(start, stop, body, (state, jnp.float32(0)))

    return train_chunk


def train(study: Study, split: Split, epochs: int, seed: int, progress: Progress) -> tuple[Network, float]:
    """The trained network and its last loss."""
    chunk_steps = 20  # between two movements of the bar
    inputs, labels = jnp.asarray(split.inputs), jnp.asarray(split.labels)
    steps = -(-len(labels) // study.batch_size)
    rate = optax.cosine_decay_schedule(study.learning_rate, epochs * steps)
    optimizer = optax.adamw(rate, weight_decay=study.weight_decay)
    classes = int(split.labels.max()) + 1
    network = initial_network(seed, study.scans, inputs.ndim - 2, inputs.shape[-1], classes)
    state, loss = (network, optimizer.init(network)), jnp.inf
    train_chunk = ops.jit(make_train_chunk(study, seed, optimizer, len(labels)))
    for epoch in range(epochs):
        for start in range(0, steps, chunk_steps):
            stop = min(start + chunk_steps, steps)
            state, loss = train_chunk(state, inputs, labels, epoch, start, stop)
            jax.block_until_ready(loss)
            progress(f"train on {study.title}", epoch * steps + stop, epochs * steps)
    return state[0], float(loss)


def class_scores(study: Study, network: Network, inputs: np.ndarray) -> Float[np.ndarray, "n classes"]:
    def one(signal):
        return ops.apply_mlp(network.scores, features(network, study.scans, signal[None]))[0]

    # in blocks: all test inputs at once would need gigabytes
    return np.asarray(ops.jit(lambda inputs: lax.map(one, inputs, batch_size=100))(inputs))


def nearest_mean(train: Split, inputs: np.ndarray) -> Float[np.ndarray, "n classes"]:
    """Minus half the squared distance to each class's mean, up to a term that all classes share."""
    flat, samples = (part.reshape(len(part), -1) for part in (train.inputs, inputs))
    means = np.stack([flat[train.labels == label].mean(axis=0) for label in range(train.labels.max() + 1)])
    return samples @ means.T - 0.5 * np.sum(means**2, axis=1)


def logistic_regression(train: Split, inputs: np.ndarray, penalty: float) -> Float[np.ndarray, "n classes"]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / penalty, max_iter=1000, tol=1e-3)
    model.fit(train.inputs.reshape(len(train.inputs), -1), train.labels)
    scores = model.decision_function(inputs.reshape(len(inputs), -1))
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def majority(train: Split, inputs: np.ndarray) -> Float[np.ndarray, "n classes"]:
    """The same for every input: how often each class occurs."""
    return np.tile(np.bincount(train.labels) / len(train.labels), (len(inputs), 1))


class Errors(NamedTuple):
    error: float  # share of the test inputs
    balanced_error: float  # mean over the classes
    auc: float | None  # area under the ROC curve, of two classes


def errors(scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Errors:
    from sklearn.metrics import roc_auc_score

    wrong = scores.argmax(axis=1) != labels
    by_class = [wrong[labels == label].mean() for label in np.unique(labels)]
    two = scores.shape[1] == 2 and len(by_class) == 2
    auc = float(roc_auc_score(labels, scores[:, 1] - scores[:, 0])) if two else None
    return Errors(float(wrong.mean()), float(np.mean(by_class)), auc)


def run_study(study: Study, splits: tuple[Split, Split], options: Options, progress: Progress) -> dict[str, Any]:
    """The network and the baselines, trained and tested: one entry of results.json."""
    train_split, test = splits

    def measured(method: str, scores: Callable[[], np.ndarray]) -> dict[str, Any]:
        started = time.perf_counter()
        made = scores()
        return {"method": method, **errors(made, test.labels)._asdict(), "seconds": time.perf_counter() - started}

    epochs = options.epochs or study.epochs
    started = time.perf_counter()
    network, loss = train(study, train_split, epochs, options.seed, progress)
    training_seconds = time.perf_counter() - started
    ours = measured("scanned network", lambda: class_scores(study, network, test.inputs))
    ours["seconds"] += training_seconds
    rows = [ours]
    baselines: dict[str, Callable[[], np.ndarray]] = {
        "logistic regression": lambda: logistic_regression(train_split, test.inputs, study.penalty),
        "nearest class mean": lambda: nearest_mean(train_split, test.inputs),
        "most frequent class": lambda: majority(train_split, test.inputs),
    }
    for method in progress.over(f"baselines, {study.title}", list(baselines)):
        rows.append(measured(method, baselines[method]))
    weights = sum(leaf.size for leaf in jax.tree.leaves(network))
    return {
        "data": study.title, "train": len(train_split.labels), "test": len(test.labels), "epochs": epochs,
        "weights": weights, "scans": [scan._asdict() for scan in study.scans], "last_loss": loss, "rows": rows,
    }  # fmt: skip


def main(options: Options, progress: Progress) -> None:
    studies = {name: STUDIES[name] for name in options.only}
    for path in (options.data / file for study in studies.values() for file in study.files):
        if not path.is_file():
            raise InputError(f"--data must hold {path.relative_to(options.data)}, and {path} is not there")
    splits = {
        name: study.read([options.data / file for file in study.files])
        for name, study in zip(studies, progress.over("read", list(studies.values())), strict=True)
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results = {name: run_study(study, splits[name], options, progress) for name, study in studies.items()}
    write_text(options.out / "results.json", json.dumps({"seed": options.seed, **results}, indent=1) + "\n")
    progress.say(result_table(results))


def result_table(results: dict[str, dict[str, Any]]) -> Any:
    lines = [
        (
            result["data"] if row is result["rows"][0] else "", row["method"], f"{100 * row['error']:.1f} %",
            f"{100 * row['balanced_error']:.1f} %", "" if row["auc"] is None else f"{row['auc']:.3f}",
            f"{row['seconds']:.1f}",
        )
        for result in results.values()
        for row in result["rows"]
    ]  # fmt: skip
    return cli.table("test errors", ("data", "method", "error", "mean over classes", "AUC", "seconds"), lines)


if __name__ == "__main__":
    cli.run_options(main, Options())
