"""Scanning: small networks that are MLPs scanned over sounds, images and volumes, trained for real.

Spoken digits (1-D), Fashion-MNIST (2-D) and adrenal glands (3-D), read from DATA; beside each error those of a nearest
class mean and of a logistic regression on the raw input.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from cnnjax import cli, ops
from cnnjax.atomic import write_text
from cnnjax.cli import Progress
from cnnjax.config import Hyperparams, TrainConfig, check_seed
from cnnjax.data import Dataset, Split, batches, checked_dataset, npz
from cnnjax.data.published import read_idx
from cnnjax.errors import InputError
from cnnjax.ops import DenseLayer
from cnnjax.train.feed import Resident, portions
from cnnjax.train.step import Preprocess, initial_state, make_order, make_train_chunk
from experiments import pages


class Signals(NamedTuple):
    """The inputs of a study, each a byte a sample, in rows as the training loop takes images."""

    dataset: Dataset
    shape: tuple[int, ...]  # of one input: spatial, then channels
    preprocess: Preprocess  # to the network's inputs, still in rows

    def inputs(self, split: Split) -> Float[np.ndarray, "n inputs"]:
        """The network's inputs, flattened."""
        return np.asarray(self.preprocess(np.asarray(split.images))).reshape(len(split), -1)


class Scan(NamedTuple):
    """An MLP that is moved over what comes before it, ReLU behind each of its layers, then max pooling."""

    window: int
    units: tuple[int, ...]  # of each layer
    strides: int = 1
    pool: int = 1  # window and stride; 1: none


class Weights(NamedTuple):
    """Behind the last scan the maximum over all positions, then scores for the classes."""

    scans: tuple[tuple[DenseLayer, ...], ...]
    scores: tuple[DenseLayer, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """One kind of signal and the network for it."""

    title: str
    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], Signals]
    scans: tuple[Scan, ...]
    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3  # of AdamW, at its highest; it falls as a cosine
    weight_decay: float = 1e-2
    drop_rate: float = 0.0  # of what the class scores are made of
    penalty: float = 1.0  # of the logistic regression's weights: 1/C


@dataclasses.dataclass(frozen=True)
class Options:
    """What the study can be told."""

    data: Path = Path("data")  # the folder with spoken_digits.npz, fashion-mnist/ and adrenal3d_32.npz
    only: tuple[str, ...] = ("sound", "image", "volume")
    out: Path = Path("runs/scanning")  # where results.json goes
    epochs: int | None = None  # instead of each network's own
    seed: int = 0  # of the weights, the order and the dropout
    markdown: Path | None = None  # a page: between its markers "scanning" a table, with the rows of what was run

    def __post_init__(self):
        for name in self.only:
            if name not in STUDIES:
                raise InputError(f"--only must be among {', '.join(STUDIES)}, got {name!r}")
        if self.epochs is not None and not 1 <= self.epochs <= 10**5:
            raise InputError(f"--epochs must be between 1 and {10**5}, got {self.epochs}")
        check_seed("--seed", self.seed)


SILENCE = 128  # the code of 0
LEVELS = (np.arange(256) - SILENCE) / 127
EXPANDED = np.sign(LEVELS) * (256 ** np.abs(LEVELS) - 1) / 255  # of mu-law


def read_sound(paths: Sequence[Path]) -> Signals:
    """Spoken digits at 8 kHz, in mu-law as they were published, with the published split.

    Each is brought to a root mean square of 1 over its length, which ends with its last sample that is not silent.
    """
    arrays = _arrays(paths[0], {"audio_mulaw": 2, "label": 1, "is_test": 1})
    _check_lengths(paths[0], arrays)
    if arrays["audio_mulaw"].dtype != np.int8:
        raise InputError(f"{paths[0]}: audio_mulaw must be int8, got {arrays['audio_mulaw'].dtype}")
    code = (arrays["audio_mulaw"].astype(np.int16) + SILENCE).astype(np.uint8)[:, :, None, None]
    is_test = arrays["is_test"].astype(bool)
    train, test = ((code[rows], arrays["label"][rows]) for rows in (~is_test, is_test))
    return _signals(train, test, (code.shape[1], 1), paths[0], decoded)


def decoded(code: UInt8[Array | np.ndarray, "batch length 1 1"]) -> Float[Array, "batch length 1 1"]:
    """The sound of mu-law codes, at a root mean square of 1 up to its last sample that is not silent."""
    sound = jnp.asarray(EXPANDED, jnp.float32)[code]
    place = jnp.arange(1, code.shape[1] + 1)[:, None, None]
    length = jnp.max(jnp.where(jnp.asarray(code) == SILENCE, 0, place), axis=1, keepdims=True)
    power = jnp.sum(sound**2, axis=1, keepdims=True) / jnp.maximum(length, 1)
    return sound / jnp.sqrt(jnp.maximum(power, 1e-12))


def read_images(paths: Sequence[Path]) -> Signals:
    """Fashion-MNIST, whole."""
    arrays = [read_idx(path.read_bytes(), str(path)) for path in paths]
    train, test = ((images[..., None], labels) for images, labels in (arrays[:2], arrays[2:]))
    return _signals(train, test, (*arrays[0].shape[1:], 1), paths[0])


def read_volumes(paths: Sequence[Path]) -> Signals:
    """Shape masks of adrenal glands, the published training and test split; hyperplasia is class 1.

    The slices of a volume stand one below the other.
    """
    names = {f"{split}_{what}": rank for split in ("train", "test") for what, rank in (("images", 4), ("labels", 2))}
    arrays = _arrays(paths[0], names)
    shape = arrays["train_images"].shape[1:]

    def of(split: str) -> tuple[np.ndarray, np.ndarray]:
        volumes = arrays[f"{split}_images"]
        return volumes.reshape(len(volumes), -1, volumes.shape[-1], 1), arrays[f"{split}_labels"].reshape(-1)

    return _signals(of("train"), of("test"), (*shape, 1), paths[0])


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


def _as_numbers(images: UInt8[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(images).astype(jnp.float32)


def _signals(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, ...],
    path: Path,
    decode: Callable[..., Array] = _as_numbers,
) -> Signals:
    """Both splits; the training set's mean, one number, is subtracted, and its standard deviation is 1."""
    if not all(len(labels) for _, labels in (train, test)):
        raise InputError(f"{path}: each split must hold at least 1 input, got 0")
    found = np.unique(train[1])
    if not np.array_equal(found, np.arange(len(found))):
        raise InputError(f"{path}: the training labels must be all of 0, 1, ..., got {found.tolist()}")
    dataset = checked_dataset(str(path), [str(label) for label in found], train=train, test=test)
    numbers = np.asarray(decode(train[0]))
    mean, deviation = (np.float32(of(numbers, dtype=np.float64)) for of in (np.mean, np.std))
    scale = max(deviation, np.float32(1e-6))
    return Signals(dataset, shape, lambda images: (decode(images) - mean) / scale)


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


@dataclasses.dataclass(frozen=True)
class Scanned:
    """The scans of a study, and scores for its classes, as the training loop takes a network."""

    scans: tuple[Scan, ...]
    shape: tuple[int, ...]  # of one input: spatial, then channels
    classes: int

    def init(self, key: PRNGKeyArray, images: Float[Array, "batch height width channels"]) -> dict[str, Weights]:
        """Random weights (He et al. 2015), biases of 0."""

        def mlp(number: int, sizes: Sequence[int]) -> tuple[DenseLayer, ...]:
            keys = jax.random.split(jax.random.fold_in(key, number), len(sizes) - 1)
            return tuple(
                DenseLayer(jax.random.normal(key, (inputs, units)) * np.sqrt(2 / inputs), jnp.zeros(units))
                for key, inputs, units in zip(keys, sizes[:-1], sizes[1:], strict=True)
            )

        *spatial, channels = self.shape
        layers = []
        for number, scan in enumerate(self.scans):
            layers.append(mlp(number, (scan.window ** len(spatial) * channels, *scan.units)))
            channels = scan.units[-1]
        return {"params": Weights(tuple(layers), mlp(len(self.scans), (channels, self.classes)))}

    def apply(
        self,
        variables: dict[str, Any],
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        dropout_rate: Any = 0.0,
        rngs: Any = None,
        mutable: Sequence[str] = (),
        **_: Any,  # of layers that it does not have
    ) -> tuple[Any, dict]:
        """The scores and no feature maps; with what has changed, which is nothing, where something may."""
        weights = variables["params"]
        seen = features(weights, self.scans, images.reshape(-1, *self.shape))
        if train:
            seen = ops.dropout(rngs["dropout"], seen, dropout_rate)
        scores = ops.apply_mlp(weights.scores, seen)
        return ((scores, {}), {}) if mutable else (scores, {})


def features(
    weights: Weights, scans: Sequence[Scan], inputs: Float[Array, "batch *spatial channels"], scan_form=ops.scan_mlp
) -> Float[Array, "batch units"]:
    """Scan after scan, then for each unit of the last: does what it looks for occur anywhere?"""
    for layers, scan in zip(weights.scans, scans, strict=True):
        inputs = jax.nn.relu(scan_form(layers, inputs, scan.window, strides=scan.strides))
        if scan.pool > 1:
            inputs = ops.max_pool(inputs, scan.pool)
    return ops.max_pool(inputs, inputs.shape[1:-1]).reshape(len(inputs), -1)


CHUNK_STEPS = 20  # between two movements of the bar


def train(
    study: Study, signals: Signals, epochs: int, seed: int, progress: Progress
) -> tuple[Scanned, dict[str, Any], float]:
    """The network, its trained variables, and the mean loss of the last epoch."""
    split = signals.dataset.train
    network = Scanned(study.scans, signals.shape, signals.dataset.num_classes)
    config = TrainConfig(epochs=epochs, batch_size=study.batch_size, optimizer="adamw", schedule="cosine")
    hyper = Hyperparams(
        learning_rate=study.learning_rate, weight_decay=study.weight_decay, dropout_rate=study.drop_rate,
        filter_rms=math.inf, flip=0.0, seed=seed,
    )  # fmt: skip
    hyper = jax.tree.map(jnp.asarray, hyper)
    chunk = ops.jit(make_train_chunk(network, config, signals.preprocess, len(split)), donate_argnums=1)
    feed = Resident(split, study.batch_size, ops.jit(make_order(config, len(split))), jax.device_put)
    state = initial_state(network, config, hyper, split.image_shape)
    steps = epochs * feed.steps
    for start in range(0, steps, CHUNK_STEPS):
        stop = min(start + CHUNK_STEPS, steps)
        for part in portions(feed, hyper, start, stop):
            state = chunk(hyper, state, *part)
        jax.block_until_ready(state)
        progress(f"train on {study.title}", stop, steps)
    if int(state.step) < steps:  # it stands still where its loss is not finite
        raise InputError(f"--data: the training on {study.title} must stay finite, and its step {state.step} is not")
    return network, {"params": state.params}, float(state.metrics.loss / state.metrics.count)


def class_scores(network: Scanned, variables: dict[str, Any], signals: Signals) -> Float[np.ndarray, "n classes"]:
    """Of the test inputs."""
    test = signals.dataset.test
    scores = ops.jit(lambda variables, images: network.apply(variables, signals.preprocess(images))[0])
    return np.concatenate([scores(variables, batch.images) for batch in batches(test, 100)])[: len(test)]


def nearest_mean(
    seen: Float[np.ndarray, "seen size"], labels: Int[np.ndarray, " seen"], inputs: Float[np.ndarray, "n size"]
) -> Float[np.ndarray, "n classes"]:
    """Minus half the squared distance to each class's mean, up to a term that all classes share."""
    means = np.stack([seen[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    return inputs @ means.T - 0.5 * np.sum(means**2, axis=1)


def logistic_regression(
    seen: Float[np.ndarray, "seen size"],
    labels: Int[np.ndarray, " seen"],
    inputs: Float[np.ndarray, "n size"],
    penalty: float,
) -> Float[np.ndarray, "n classes"]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / penalty, max_iter=1000, tol=1e-3)
    model.fit(seen, labels)
    scores = model.decision_function(inputs)
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def majority(labels: Int[np.ndarray, " seen"], count: int) -> Float[np.ndarray, "n classes"]:
    """The same for each of `count` inputs: how often each class occurs."""
    return np.tile(np.bincount(labels) / len(labels), (count, 1))


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


def run_study(study: Study, signals: Signals, options: Options, progress: Progress) -> dict[str, Any]:
    """The network and the baselines, trained and tested: one entry of results.json."""
    train_split, test = signals.dataset.train, signals.dataset.test

    def measured(method: str, scores: Callable[[], np.ndarray]) -> dict[str, Any]:
        started = time.perf_counter()
        made = scores()
        return {"method": method, **errors(made, test.labels)._asdict(), "seconds": time.perf_counter() - started}

    epochs = options.epochs or study.epochs
    started = time.perf_counter()
    network, variables, loss = train(study, signals, epochs, options.seed, progress)
    training_seconds = time.perf_counter() - started
    ours = measured("scanned network", lambda: class_scores(network, variables, signals))
    ours["seconds"] += training_seconds
    rows = [ours]
    seen, labels, inputs = signals.inputs(train_split), train_split.labels, signals.inputs(test)
    baselines: dict[str, Callable[[], np.ndarray]] = {
        "logistic regression": lambda: logistic_regression(seen, labels, inputs, study.penalty),
        "nearest class mean": lambda: nearest_mean(seen, labels, inputs),
        "most frequent class": lambda: majority(labels, len(test)),
    }
    for method in progress.over(f"baselines, {study.title}", list(baselines)):
        rows.append(measured(method, baselines[method]))
    return {
        "data": study.title, "train": len(train_split), "test": len(test), "epochs": epochs,
        "weights": sum(leaf.size for leaf in jax.tree.leaves(variables)),
        "scans": [scan._asdict() for scan in study.scans], "train_loss": loss, "rows": rows,
    }  # fmt: skip


def main(options: Options, progress: Progress) -> None:
    studies = {name: STUDIES[name] for name in options.only}
    for path in (options.data / file for study in studies.values() for file in study.files):
        if not path.is_file():
            raise InputError(f"--data must hold {path.relative_to(options.data)}, and {path} is not there")
    if options.markdown is not None:
        pages.check(options.markdown, "scanning", "--markdown")
    signals = {
        name: study.read([options.data / file for file in study.files])
        for name, study in zip(studies, progress.over("read", list(studies.values())), strict=True)
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results = {name: run_study(study, signals[name], options, progress) for name, study in studies.items()}
    write_text(options.out / "results.json", json.dumps({"seed": options.seed, **results}, indent=1) + "\n")
    if options.markdown is not None:
        known = pages.between(options.markdown, "scanning") if options.markdown.exists() else ""
        pages.write(options.markdown, "scanning", page_table(results, options.seed, known))
    progress.say(result_table(results))


METHODS = ("scanned network", "logistic regression", "nearest class mean", "most frequent class")


def page_table(results: dict[str, dict[str, Any]], seed: int, known: str) -> str:
    """A row a data set; in `known`, such a table, the rows of others stay."""

    def cell(row: dict[str, Any]) -> str:
        return f"{100 * row['error']:.1f} %" + ("" if row["auc"] is None else f" (AUC {row['auc']:.3f})")

    rows = {
        line.split(":")[0]: line for line in known.splitlines() if line.startswith(tuple(f"| {n}" for n in STUDIES))
    }
    for name, result in results.items():
        about = f"{name}: {result['data']}, {result['train']:,} to train, {result['test']:,} to test, seed {seed}"
        by_method = {row["method"]: cell(row) for row in result["rows"]}
        rows[f"| {name}"] = f"| {about} | {' | '.join(by_method[method] for method in METHODS)} |"
    order = [rows[f"| {name}"] for name in STUDIES if f"| {name}" in rows]
    return "\n".join([f"| test errors | {' | '.join(METHODS)} |", "| --- | --: | --: | --: | --: |", *order])


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
