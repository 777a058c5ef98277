import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import Split, batches
from cnnjax.visualize.probes import (
    CLASSIFIERS,
    class_accuracy,
    layer_features,
    make_features,
    pooled,
    prepared,
    probe,
    softmax_predictions,
)
from tests.cases import some


def clusters(per_class, features=40, classes=3, seed=0, distance=1.0):
    """[classes, per_class, features] around a random place for each class."""
    generator = np.random.default_rng(seed)
    places = distance * np.random.default_rng(99).normal(size=(classes, 1, features))
    return (places + generator.normal(size=(classes, per_class, features))).astype(np.float32)


@pytest.mark.parametrize(("how", "reduce"), [("mean", np.mean), ("max", np.max)])
@pytest.mark.parametrize("most", [3, 12, 29, 60])
def test_maps_are_pooled_as_a_loop_over_cells_does(how, reduce, most):
    maps = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    cells = {3: 1, 12: 2, 29: 3, 60: 4}[most]  # the largest with cells² times 3 maps at most `most`
    expected = np.zeros((2, cells, cells, 3))
    for row in range(cells):
        for column in range(cells):
            rows = slice(row * 7 // cells, -(-(row + 1) * 7 // cells))
            columns = slice(column * 5 // cells, -(-(column + 1) * 5 // cells))
            expected[:, row, column] = reduce(maps[:, rows, columns], axis=(1, 2))
    np.testing.assert_allclose(pooled(jnp.asarray(maps), most, how), expected.reshape(2, -1), rtol=1e-5, atol=1e-6)


def test_small_maps_and_dense_layers_stay_as_they_are():
    maps = jnp.arange(2 * 4 * 4 * 2.0).reshape(2, 4, 4, 2)
    np.testing.assert_array_equal(pooled(maps, 32), maps.reshape(2, -1))
    units = jnp.ones((2, 300))
    np.testing.assert_array_equal(pooled(units, 10), units)


@pytest.mark.parametrize("batch_size", [3, 7, 10])
def test_features_do_not_depend_on_the_batches(batch_size):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1)).astype(np.uint8)
    features = make_features(lambda scale, x: {"conv1": scale * x, "fc2": x.sum(axis=(1, 2))}, lambda x: x / 64, 4)
    found = layer_features(features, 2.0, batches(Split(images, np.zeros(7, np.int32)), batch_size))
    cells = images.reshape(7, 2, 2, 2, 2).mean(axis=(2, 4)).reshape(7, 4) / 32
    np.testing.assert_allclose(found["conv1"], cells, rtol=1e-6)
    np.testing.assert_allclose(found["fc2"], images.sum(axis=(1, 2)) / 64, rtol=1e-6)


@pytest.mark.parametrize("features", [5, 100])
def test_prepared_rows_keep_lengths_and_angles_of_standardized_ones(features):
    train, test = clusters(4, features), clusters(6, features, seed=1)[0]
    train[..., 2] = 7  # constant
    seen, unseen = prepared(train, test, standardize=True)
    rows = train.reshape(-1, features).astype(float)
    scale = np.where(np.arange(features) == 2, np.inf, rows.std(axis=0))
    rows, others = (rows - rows.mean(axis=0)) / scale, (test - rows.mean(axis=0)) / scale
    width = min(12, features)
    assert seen.shape == (3, 4, width) and unseen.shape == (6, width)
    flat = seen.reshape(12, width)
    np.testing.assert_allclose(flat @ flat.T, rows @ rows.T, atol=1e-8)
    np.testing.assert_allclose(unseen @ flat.T, others @ rows.T, atol=1e-6)


def test_features_that_are_all_constant_become_zeros():
    seen, unseen = prepared(np.ones((2, 3, 4)), np.ones((5, 4)), standardize=True)
    assert not seen.any() and not unseen.any()


@pytest.mark.parametrize("classifier", ["svm", "softmax"])
@pytest.mark.parametrize("standardize", some([True, False], True))
def test_the_classifiers_answer_as_scikit_learns_on_all_features(classifier, standardize):
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    train, test = clusters(8, distance=0.5), clusters(30, seed=1, distance=0.5).reshape(-1, 40)
    labels, rows = np.repeat(np.arange(3), 8), train.reshape(-1, 40)
    mean, scale = rows.mean(axis=0), rows.std(axis=0) if standardize else 1
    theirs = {"svm": LinearSVC(C=0.01, tol=1e-8), "softmax": LogisticRegression(C=0.01, tol=1e-8)}[classifier]
    theirs.fit((rows - mean) / scale, labels)
    seen, unseen = prepared(train, test, standardize=standardize)
    ours = CLASSIFIERS[classifier](seen.reshape(24, -1), labels, unseen, 0.01)
    assert np.mean(ours == theirs.predict((test - mean) / scale)) > 0.97


def test_the_softmax_is_at_the_minimum_of_its_loss():
    train, labels = clusters(8).reshape(24, 40), np.repeat(np.arange(3), 8)
    from cnnjax.visualize.probes import _softmax_weights

    weights = _softmax_weights()(jnp.asarray(train), jnp.asarray(labels), jnp.float32(0.1), 3)

    def loss(weights):
        logits = train @ weights[0] + weights[1]
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[:, None], axis=1)
        return -jnp.sum(right) * 0.1 + 0.5 * jnp.sum(weights[0] ** 2)  # as scikit-learn writes it

    gradient = jax.grad(loss)(weights)
    assert max(float(jnp.abs(part).max()) for part in gradient) < 1e-3
    assert class_accuracy(softmax_predictions(train, labels, train, 0.1), labels) == 1


def test_every_class_counts_alike():
    labels = np.array([0] * 8 + [1] * 2 + [3])
    predicted = np.array([0] * 8 + [0, 1] + [2])
    assert class_accuracy(predicted, labels) == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.parametrize("classifier", ["svm", "softmax"])
def test_separate_classes_are_told_apart_and_noise_is_not(classifier):
    labels = np.repeat(np.arange(3), 60)
    for distance, low, high in ((3.0, 0.99, 1.0), (0.0, 0.2, 0.47)):
        train, test = clusters(10, distance=distance), clusters(60, seed=1, distance=distance).reshape(180, 40)
        seen, unseen = prepared(train, test, standardize=True)
        assert low <= probe(seen, unseen, labels, classifier=classifier, strengths=(1e-3, 1e-2)) <= high


def test_the_strength_is_the_one_that_does_best_on_the_held_out_quarter():
    train, test = clusters(8, distance=0.4), clusters(40, seed=1, distance=0.4).reshape(-1, 40)
    labels, strengths = np.repeat(np.arange(3), 40), (1e-4, 1e-2, 1.0)
    held, held_labels = train[:, -2:].reshape(-1, 40), np.repeat(np.arange(3), 2)
    tried = [probe(train[:, :-2], held, held_labels, strengths=(c,)) for c in strengths]
    alone = [probe(train, test, labels, strengths=(c,)) for c in strengths]
    best = int(np.argmax(tried))
    assert len(set(tried)) > 1 and alone[best] not in alone[:best] + alone[best + 1 :]
    assert probe(train, test, labels, strengths=strengths) == alone[best]


def test_one_image_a_class_takes_the_middle_strength():
    seen, unseen = prepared(
        clusters(1, distance=3.0), clusters(5, seed=1, distance=3.0).reshape(15, 40), standardize=False
    )
    assert probe(seen, unseen, np.repeat(np.arange(3), 5), strengths=(1e-9, 0.1, 1e9)) == 1
