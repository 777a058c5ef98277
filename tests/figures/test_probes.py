import numpy as np

from cnnjax.figures import probes
from tests.figures.test_figures import texts


def test_the_curves_are_errors_in_percent_with_their_spread():
    accuracy = np.zeros((2, 3, 2, 2, 2))  # networks, folds, layers, classifiers, counts
    accuracy[0, :, 1, 0, 1] = [0.5, 0.6, 0.7]
    figure = probes.draw(
        accuracy, ("epoch 9", "untrained"), ("pixels", "fc3"), ("svm", "softmax"), (5, 30), 0.1, "LeNet, digits"
    )
    right = figure.axes[1]
    points, _, (bars,) = right.containers[0]
    np.testing.assert_allclose(points.get_ydata(), [100, 40])
    low, high = bars.get_segments()[1][:, 1]
    np.testing.assert_allclose([low, high], 40 + np.std([50, 60, 70]) * np.array([-1, 1]))
    shown = texts(figure)
    assert {"pixels", "fc3", "svm, epoch 9", "softmax, untrained", "chance", "30 training images a class"} <= set(shown)
    assert any(text.endswith("over 3 folds") for text in shown)
