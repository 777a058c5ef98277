"""The main job, small: two epochs on the digits."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cnnjax import cli, models
from cnnjax.config import TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from experiments import filter_evolution


class Quiet:
    def __call__(self, description, done, total):
        pass

    def over(self, description, things):
        return iter(things)

    def say(self, text):
        pass


def test_the_study_writes_every_figure_with_its_numbers(tmp_path):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=2, keep_epochs=(1, 40)))
    arguments = cli.Arguments(config, tmp_path / "run", filter_evolution.Options(maps=5))
    filter_evolution.main(arguments, Quiet())
    folder = tmp_path / "run" / "figures"
    names = {path.name for path in folder.iterdir()}
    pictures = {"filters_conv1.png", "evolution_conv1.png", "evolution_conv2.png", "convergence.png", "evolution.gif"}
    pictures.add("curves.png")
    assert names == pictures | {name.rsplit(".", 1)[0] + ".npz" for name in pictures} | {"layers.json"}
    with Image.open(folder / "evolution.gif") as picture:
        assert picture.n_frames == 3  # epochs 0, 1, 2
    dataset = load(config.data)
    network = models.build(config.model, dataset.image_shape, dataset.num_classes)
    with np.load(folder / "evolution_conv2.npz") as arrays:
        side = {row.name: row for row in models.layers(network, dataset.image_shape)}["conv2"].fields[0].size
        side = min(side, dataset.image_shape[0])
        assert arrays["projections"].shape == (5, 3, side, side, 1)
        assert list(arrays["epochs"]) == [0, 1, 2]
        assert (arrays["image"] < len(dataset.train)).all()
        # Of all maps, so of those that are drawn too.
        np.testing.assert_array_equal(arrays["every_value"][arrays["maps"]], arrays["value"])
        np.testing.assert_array_equal(arrays["every_image"][arrays["maps"]], arrays["image"])
        assert arrays["every_turned"].shape == arrays["every_value"].shape
        assert (arrays["every_turned"][:, 0] > 0).all() and np.abs(arrays["every_turned"][:, -1]).max() < 1e-5
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="conv2/0"' in html and 'href="figures/evolution_conv2.npz"' in html


def test_the_strongest_are_looked_for_in_pictures_of_ones_own(tmp_path):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    images, named = load(config.data).test.images[:5], tmp_path / "my digits"
    named.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(named / f"{number}.png")
    run = tmp_path / "run"
    drawn = filter_evolution.main(cli.Arguments(config, run, filter_evolution.Options(maps=3, on=named)), Quiet())
    assert all(path.parent == run / "figures" / "on-my-digits" for path in drawn)
    assert not (run / "report.html").exists()  # which is of the run's own images
    with np.load(run / "figures" / "on-my-digits" / "evolution_conv1.npz") as arrays:
        for image, unit, patch in zip(arrays["image"].T[1], arrays["unit"][:, 1], arrays["patches"][:, 1], strict=True):
            middle = patch[patch.shape[0] // 2, patch.shape[1] // 2]
            np.testing.assert_array_equal(middle, images[image][tuple(unit)])
    before = sorted(run.rglob("*"))
    bad = filter_evolution.Options(on=tmp_path / "none")
    with pytest.raises(InputError, match="--on must be files or folders that exist, got"):
        filter_evolution.main(cli.Arguments(config, run, bad), Quiet())
    assert sorted(run.rglob("*")) == before


def test_the_rule_and_the_contrast_are_those_of_the_options(tmp_path):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    found = {}
    for rule, contrast in (("deconvnet", "tile"), ("guided", "map"), ("gradient", "tile")):
        options = filter_evolution.Options(maps=4, rule=rule, contrast=contrast)
        filter_evolution.main(cli.Arguments(config, tmp_path / "run", options), Quiet())
        with np.load(tmp_path / "run" / "figures" / "evolution_conv2.npz") as arrays:
            found[rule] = dict(arrays)
        assert (found[rule]["rule"], found[rule]["contrast"], found[rule]["layer"]) == (rule, contrast, "conv2")
        assert "4 of 32, drawn by lot" in str(found[rule]["chosen"]) and found[rule]["field"].shape == (2,)
    same = found["deconvnet"]
    for other in (found["guided"], found["gradient"]):
        for name in ("maps", "value", "image", "unit", "place", "patches"):
            np.testing.assert_array_equal(other[name], same[name])
        assert not np.array_equal(other["projections"], same["projections"])
    assert -1 <= same["alike"] < 1


def test_an_mlp_has_no_convolution_to_look_into(tmp_path):
    arguments = ["--model.name", "mlp", "--model.widths", "None", "--model.filters", "None", "--model.paddings", "None"]
    told = cli.parse(["--config", "digits", "--workdir", str(tmp_path / "run"), *arguments], filter_evolution.Options())
    with pytest.raises(InputError, match="^model.name must be a network with convolutions"):
        filter_evolution.main(told, Quiet())
    assert not (tmp_path / "run").exists()
