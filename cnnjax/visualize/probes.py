"""How well each layer's features tell the classes apart: linear classifiers on frozen features.

Zeiler & Fergus 2014, table 7: a linear SVM or a softmax on layer 1, 2, ... of a trained network. What the paper leaves
open is an argument here: large maps are pooled to a bounded number of features, features may be standardized, and the
strength of the penalty is the one that does best on a held-out quarter of the training images.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from cnnjax import ops

Pooling = Literal["mean", "max"]
Classifier = Literal["svm", "softmax"]

_REDUCE: dict[str, Callable[..., Array]] = {"mean": jnp.mean, "max": jnp.max}
_TOLERANCE, _STEPS = 1e-4, 1000  # of the gradient's norm, in nats; of the softmax's descent


def pooled(maps: Float[Array, "batch *space maps"], most: int, how: Pooling = "mean") -> Float[Array, "batch features"]:
    """The activations as one row an image, at most `most` numbers where pooling can do it.

    Maps are pooled over the finest square grid of cells that keeps to `most`, one cell a map at the least; cells of
    unequal size are placed as PyTorch's adaptive pooling does. Maps that are small enough, and dense layers, stay as
    they are.
    """
    space = maps.shape[1:-1]
    if space and np.prod(maps.shape[1:]) > most:
        cells = max(1, int((most // maps.shape[-1]) ** (1 / len(space))))
        for axis, size in enumerate(space, 1):
            maps = _pooled_axis(maps, axis, min(cells, size), _REDUCE[how])
    return maps.reshape(maps.shape[0], -1)


def _pooled_axis(maps: Array, axis: int, cells: int, reduce: Callable[..., Array]) -> Array:
    size = maps.shape[axis]
    edges = [(cell * size // cells, -(-(cell + 1) * size // cells)) for cell in range(cells)]
    return jnp.stack([reduce(lax.slice_in_dim(maps, low, high, axis=axis), axis=axis) for low, high in edges], axis)


def make_features(
    feature_maps: Callable[[Any, Array], Mapping[str, Any]],
    preprocess: Callable[[Any], Array],
    most: int,
    how: Pooling = "mean",
) -> Callable[[Any, Any], dict[str, Array]]:
    """Returns the compiled (variables, images) -> features by layer, as `pooled` makes them.

    Args:
        feature_maps: (variables, network's input) -> activations by layer.
    """

    def features(variables, images):
        return {layer: pooled(maps, most, how) for layer, maps in feature_maps(variables, preprocess(images)).items()}

    return ops.jit(features)


def layer_features(
    features: Callable[[Any, Any], Mapping[str, Any]], variables: Any, batches: Iterable[Any]
) -> dict[str, Float[np.ndarray, "n features"]]:
    """The features of every image of the batches, by layer.

    Args:
        features: from `make_features`.
        batches: at least one, of one shape, with `images` and `mask`, 0 for padding.
    """
    found = []
    for batch in batches:
        real = np.asarray(batch.mask) > 0
        found.append({layer: np.asarray(rows)[real] for layer, rows in features(variables, batch.images).items()})
    return {layer: np.concatenate([part[layer] for part in found]) for layer in found[0]}


def prepared(
    train: Float[np.ndarray, "*rows features"], test: Float[np.ndarray, "m features"], *, standardize: bool
) -> tuple[Float[np.ndarray, "*rows coordinates"], Float[np.ndarray, "m coordinates"]]:
    """Both as the classifiers take them: about the training rows' mean, in the space that the training rows span.

    A linear classifier whose penalty is the length of its weights gives the same scores there (its weights lie in
    that space), at the cost of as many columns as there are training rows or features, whichever are fewer.

    Args:
        standardize: also divide each feature by its standard deviation over the training rows; one that is constant
            becomes 0.
    """
    rows = train.reshape(-1, train.shape[-1]).astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(deviation > 1e-6 * np.abs(mean), deviation, np.inf) if standardize else 1.0
    rows, test = (rows - mean) / scale, (test - mean) / scale
    if len(rows) < rows.shape[1]:
        # Eigenvectors of the small matrix of inner products: a tenth of the time of a QR or SVD of the rows.
        squares, vectors = np.linalg.eigh(rows @ rows.T)
        lengths = np.where(squares > 1e-10 * squares[-1], np.sqrt(np.maximum(squares, 0)), np.inf)
        directions = rows.T @ (vectors / lengths)
        rows, test = rows @ directions, test @ directions
    return rows.reshape(*train.shape[:-1], rows.shape[1]), test


def svm_predictions(
    train: Float[np.ndarray, "n features"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m features"],
    strength: float,
) -> Int[np.ndarray, " m"]:
    """Labels of the test rows by scikit-learn's linear SVM, one class against the rest; `strength` is its C."""
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(C=strength, dual=False, max_iter=10_000)  # pyright: ignore[reportArgumentType]
    return np.asarray(classifier.fit(train, labels).predict(test))


def softmax_predictions(
    train: Float[np.ndarray, "n features"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m features"],
    strength: float,
) -> Int[np.ndarray, " m"]:
    """Labels of the test rows by a softmax; `strength` is scikit-learn's C: 1 / (2 C) the squared weights' price.

    By optax's L-BFGS: 0.03 s for 300 rows of 1944 features where scikit-learn's LogisticRegression took 3 s.
    """
    classes = int(labels.max()) + 1
    rows = jnp.asarray(train, jnp.float32), jnp.asarray(labels)
    kernel, bias = _softmax_weights()(*rows, jnp.float32(strength), classes)
    return np.argmax(test @ np.asarray(kernel) + np.asarray(bias), axis=1)


def _fit_softmax(train: Array, labels: Array, strength: Array, classes: int) -> Any:
    def loss(weights):
        kernel, bias = weights
        errors = optax.softmax_cross_entropy_with_integer_labels(train @ kernel + bias, labels)
        return jnp.mean(errors) + jnp.sum(kernel**2) / (2 * strength * len(train))

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        weights, state, _, count = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(weights, updates), state, optax.tree.norm(gradient), count + 1

    def unfinished(carry):
        return (carry[2] > _TOLERANCE) & (carry[3] < _STEPS)

    weights = jnp.zeros((train.shape[1], classes)), jnp.zeros(classes)
    return lax.while_loop(unfinished, step, (weights, optimizer.init(weights), jnp.inf, 0))[0]


@functools.cache
def _softmax_weights():
    """`_fit_softmax`, compiled once; the compiler options ask for the backend, so not while this is imported."""
    return ops.jit(_fit_softmax, static_argnums=3)


CLASSIFIERS: dict[str, Callable[..., Int[np.ndarray, " m"]]] = {"svm": svm_predictions, "softmax": softmax_predictions}


def class_accuracy(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """The share of right answers of each class that occurs in `labels`, and the mean of that over the classes."""
    return float(np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)]))


def probe(
    train: Float[np.ndarray, "classes per_class features"],
    test: Float[np.ndarray, "m features"],
    test_labels: Int[np.ndarray, " m"],
    *,
    classifier: Classifier = "svm",
    strengths: Sequence[float] = (1.0,),
) -> float:
    """Mean accuracy over the classes of a linear classifier that has seen so many images of each class.

    Args:
        train: features of the training images, row c those of label c; as `prepared` gives them, as is `test`.
        strengths: the C of the classifier to choose from: a quarter of each class's images (the last ones, one at the
            least) is held out, the first C that does best there is taken, and all images are then trained on. A single
            one is taken as it is; with one image a class, where nothing can be held out, the middle one.
    """
    classes, count, _ = train.shape

    def accuracy(shown: np.ndarray, rows: np.ndarray, labels: np.ndarray, strength: float) -> float:
        shown_labels = np.repeat(np.arange(classes), shown.shape[1])
        predicted = CLASSIFIERS[classifier](shown.reshape(-1, shown.shape[-1]), shown_labels, rows, strength)
        return class_accuracy(predicted, labels)

    best = strengths[len(strengths) // 2]
    if len(strengths) > 1 and count > 1:
        held = max(1, count // 4)
        rows, labels = train[:, -held:].reshape(-1, train.shape[-1]), np.repeat(np.arange(classes), held)
        best = strengths[int(np.argmax([accuracy(train[:, :-held], rows, labels, c) for c in strengths]))]
    return accuracy(train, test, test_labels, best)
