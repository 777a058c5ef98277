"""Table 1 of a small run, without and with boxes, and every bad line of a file of boxes."""

import csv
import dataclasses
import itertools
import os

import numpy as np
import pytest
from PIL import Image

from cnnjax import cli, models
from cnnjax.config import ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import correspondence
from experiments.correspondence import Options
from experiments.looking import RunOptions, examples, open_run
from tests.experiments.test_filter_evolution import Quiet

HEADER = "image,part,top,left,height,width"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    folder = tmp_path_factory.mktemp("correspondence") / "run"
    run.run(config, load(config.data), folder)
    return folder


def small(folder, **changes):
    return Options(run=folder, **{"images": 3, "classes": 2, "random": 3, "permutations": 50, **changes})


def boxes(path, *lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


@pytest.mark.long
def test_delta_is_that_of_the_networks_own_features(folder):
    options = small(folder)
    correspondence.main(options, Quiet())
    trained = open_run(options, Quiet())
    with np.load(trained.figures / "correspondence.npz") as arrays:
        found = dict(arrays)
    assert list(found["layers"]) == ["pool2", "fc3"]
    assert list(found["parts"]) == ["centre", "top", "bottom", "left", "right"]
    split, mean = trained.dataset.test, trained.dataset.train.images.mean(axis=0)
    order = examples(trained)
    chosen = [index for label in (0, 1) for index in order[split.labels[order] == label][:3]]
    images = split.images[chosen].astype(np.float32)
    covered = images.copy()
    covered[:, 3:5, 3:5] = mean[3:5, 3:5]  # the centre: a quarter of 8 px
    whole, less = (trained.feature_maps(trained.preprocess(of)) for of in (images, covered))
    for place, layer in enumerate(("pool2", "fc3")):
        change = np.asarray(whole[layer] - less[layer]).reshape(6, -1)
        largest = np.abs(whole[layer]).reshape(6, -1).max(axis=1, keepdims=True)
        signs = np.sign(np.where(np.abs(change) > 1e-6 * largest, change, 0))
        differ = {(i, j): np.mean(signs[i] != signs[j]) for i, j in itertools.combinations(range(6), 2)}
        within = [value for (i, j), value in differ.items() if i // 3 == j // 3]
        between = [value for (i, j), value in differ.items() if i // 3 != j // 3]
        np.testing.assert_allclose(found["part"][0, place, 0], np.mean(within), atol=0.002)
        np.testing.assert_allclose(found["part"][0, place, 1], np.std(within, ddof=1), atol=0.002)
        np.testing.assert_allclose(found["part_between"][0, place, 0], np.mean(between), atol=0.002)
    assert ((found["p"] >= 1 / 51) & (found["p"] <= 1)).all()
    with open(trained.figures / "correspondence.csv") as file:
        header, first, *_, last = list(csv.reader(file))
    assert header == ["covered", *correspondence.COMPARED.values(), "p"]
    assert first[0] == "pool2, centre" and last[0] == "fc3, mean" and last[-1] == ""
    assert first[1] == f"{found['part'][0, 0, 0]:.3f} ± {found['part'][0, 0, 1]:.3f}"


def test_boxes_of_a_file_name_test_images_and_pictures(folder, tmp_path):
    Image.fromarray(np.arange(320, dtype=np.uint8).reshape(16, 20)).save(tmp_path / "other.png")
    lines = ["4,eye,0,1,2,3", "other.png,eye,1,1,2,3", "7,eye,5,5,3,3", "4,nose,4,4,1,1", "7,nose,4,3,2,2"]
    path = boxes(tmp_path / "boxes.csv", *lines, "7,object,4,3,4,5")
    options = small(folder, boxes=path, layers=("conv1", "fc3"), zeros="drop", spread="images")
    trained = open_run(options, Quiet())
    regions = correspondence.boxes_of_file(trained, path)
    assert regions.names == ["4", "other", "7"] and regions.images.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(regions.images[[0, 2]], trained.dataset.test.images[[4, 7]])
    assert {part: (which.tolist(), of.tolist()) for part, (which, of) in regions.parts.items()} == {
        "eye": ([0, 1, 2], [[0, 1, 2, 3], [1, 1, 2, 3], [5, 5, 3, 3]]),
        "nose": ([0, 2], [[4, 4, 1, 1], [4, 3, 2, 2]]),
    }
    assert regions.within.tolist() == [[0, 0, 8, 8], [0, 0, 8, 8], [4, 3, 4, 5]]
    correspondence.main(options, Quiet())
    with np.load(trained.figures / "correspondence.npz") as arrays:
        assert list(arrays["parts"]) == ["eye", "nose"] and arrays["part"].shape == (2, 2, 3)
        assert np.isnan(arrays["part_between"]).all()
        assert np.isnan(arrays["part"][1, :, 1]).all()  # a single pair has no deviation
    with open(trained.figures / "correspondence.csv") as file:
        assert next(csv.reader(file)) == ["covered", "Δ", "random boxes", "p"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["4,eye,7,0,2,2", "5,eye,0,0,2,2"], "inside the image of 8×8 px, and .*line 2 has"),
        (["4,eye,0,0,2,2", "5,eye,-1,0,2,2"], "inside the image of 8×8 px, and .*line 3 has"),
        (["4,eye,0,0,0,2"], "inside the image"),
        (["4,eye,0,0,2,x"], "whole numbers of pixels, and .*line 2 has"),
        (["4,eye,0,0"], "whole numbers of pixels, and .*line 2 has"),
        (["4,eye,0,0,2,2"], "in at least 2 images, and .* gives 'eye' in 1"),
        (["4,object,0,0,2,2"], "a part in at least 2 images, and .* gives none"),
        ([], "a part in at least 2 images, and .* gives none"),
        (["4,eye,0,0,2,2", "4,eye,0,0,2,2"], "each part of an image once, and .* line 3 repeats one"),
        (["4,eye,0,0,3,2", "5,eye,0,0,2,2", "4,object,0,0,2,2"], "no part larger than its object, and 'eye' of 4 is"),
        (["100000,eye,0,0,2,2"], "one of the .* test images, from 0, got 100000"),
        (["none.png,eye,0,0,2,2"], "none.png"),
    ],
)
def test_bad_boxes_are_refused_with_their_line(folder, tmp_path, lines, message):
    path = boxes(tmp_path / "boxes.csv", *lines)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=message):
        correspondence.main(small(folder, boxes=path), Quiet())
    assert sorted(folder.rglob("*")) == before


def test_files_that_are_no_boxes_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="--boxes must be a CSV file that can be read"):
        correspondence.main(small(folder, boxes=tmp_path / "none.csv"), Quiet())
    (tmp_path / "other.csv").write_text("image,part\n")
    with pytest.raises(InputError, match=f"must have the columns {HEADER}"):
        correspondence.main(small(folder, boxes=tmp_path / "other.csv"), Quiet())
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match=f"must have the columns {HEADER}, and .*empty.csv has none"):
        correspondence.main(small(folder, boxes=tmp_path / "empty.csv"), Quiet())


def test_a_pipe_is_not_waited_for(folder, tmp_path):
    os.mkfifo(tmp_path / "boxes.csv")
    with pytest.raises(InputError, match="--boxes must be a file, got .*boxes.csv"):
        correspondence.main(small(folder, boxes=tmp_path / "boxes.csv"), Quiet())


def test_what_the_run_does_not_have_is_refused(folder):
    with pytest.raises(InputError, match="--layers must be one of conv1, .*, got 'conv9'"):
        correspondence.main(small(folder, layers=("conv9", "fc3")), Quiet())
    with pytest.raises(InputError, match=r"--images must be at most \d+, the test images of '0', got 5000"):
        correspondence.main(small(folder, images=5000), Quiet())
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=r"--random must be at most \d+ for so many images of a part, got 65537"):
        correspondence.main(small(folder, random=65537), Quiet())
    assert sorted(folder.rglob("*")) == before


def test_an_mlp_needs_its_layers_named(folder):
    trained = open_run(Options(run=folder), Quiet())
    mlp = models.build(ModelConfig(name="mlp"), trained.dataset.image_shape, 10)
    layers = {row.name: row for row in models.layers(mlp, trained.dataset.image_shape)}
    with pytest.raises(InputError, match="--layers must be two of fc1, fc2, fc3 for a network without convolutions"):
        correspondence.chosen_layers(trained._replace(layers=layers), Options())
    named = Options(layers=("fc1", "fc2"))
    assert correspondence.chosen_layers(trained._replace(layers=layers), named) == ("fc1", "fc2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 1}, "--images must be at least 2, got 1"),
        ({"random": 0}, "--random must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be between 0 and 2147483647, got -1"),
        ({"side": 0.6}, "--side must be above 0 and at most 0.5, got 0.6"),
        ({"side": float("nan")}, "--side must be above 0 and at most 0.5, got nan"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Options(**changes)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (ModelConfig("lenet", widths=(2, 2), filters=(3, 3), paddings=(1, 1), dense=(4,)), ("pool2", "fc3")),
        (ModelConfig("lenet", widths=(2, 2), filters=(3, 3), paddings=(1, 1), dense=()), ("pool1", "pool2")),
        (ModelConfig("lenet", widths=(2,), filters=(3,), paddings=(1,), dense=()), ("pool1", "pool1")),
        (ModelConfig("squeezenet1_1", width=0.1), ("features.12", "classifier.1")),
    ],
    ids=str,
)
def test_two_layers_are_compared_where_there_are_two(folder, config, found):
    trained = open_run(RunOptions(run=folder), Quiet())
    side = 32 if config.width else 8
    rows = models.layers(models.build(config, (side, side, 1), 10), (side, side, 1))
    trained = trained._replace(layers={row.name: row for row in rows})
    assert correspondence.chosen_layers(trained, Options()) == found
