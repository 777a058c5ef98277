import numpy as np

from cnnjax.figures import maximization


def test_each_unit_has_its_tile_and_its_numbers():
    images = {"conv1": np.full((2, 3, 3, 1), 127.5), "fc2": np.full((3, 8, 8, 1), 300.0)}
    values = {"conv1": np.array([2.0, 3.0]), "fc2": np.arange(3.0)}
    best = {"conv1": np.array([1.0, 1.5]), "fc2": np.ones(3)}
    labels = {"conv1": ["map 0", "map 4"], "fc2": ["cat", "dog", "cow"]}
    figure = maximization.draw(images, values, best, labels, "note")
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == ["map 0", "map 4", "cat", "dog", "cow"]
    assert [axes.get_xlabel() for axes in drawn][:2] == ["2 | 1", "3 | 1.5"]
    assert [float(np.max(axes.images[0].get_array())) for axes in drawn] == [0.5, 0.5, 1, 1, 1]  # clipped at white
