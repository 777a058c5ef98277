"""What a small run says of its own test images and of files, its errors, and every bad input refused."""

import csv
import dataclasses
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from cnnjax import cli
from cnnjax.config import TrainConfig
from cnnjax.data import Split, load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import challenge, classify
from experiments.classify import Options
from experiments.looking import open_run
from experiments.pictures import Picture
from tests.experiments.test_filter_evolution import Quiet

NAMES = ("cat", "dog", "7", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    folder = tmp_path_factory.mktemp("classify") / "run"
    run.run(config, load(config.data), folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return open_run(Options(run=folder), Quiet())


@pytest.fixture
def pictures(trained, tmp_path):
    """Test images 0 to 5 as files, in a folder a class."""
    split = trained.dataset.test
    for number in range(6):
        place = tmp_path / "pictures" / trained.dataset.class_names[split.labels[number]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.images[number, ..., 0]).save(place / f"{number}.png")
    return tmp_path / "pictures"


def kept(trained, name="classify"):
    with np.load(trained.figures / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def errors(trained):
    return json.loads((trained.figures / challenge.ERRORS).read_text())


def probabilities_by_hand(trained, images):
    logits = np.asarray(list(trained.feature_maps(trained.preprocess(images)).values())[-1], np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_errors_of_the_test_split_are_those_of_the_training(folder, trained):
    classify.main(Options(run=folder), Quiet(), trained)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    found = errors(trained)
    assert found["top1"] == pytest.approx(last["test_error"], abs=1e-6)
    assert found["top5"] == pytest.approx(last["test_error_top5"], abs=1e-6)
    split, table = trained.dataset.test, kept(trained)
    assert (found["images"], found["classes"], found["views"], found["epoch"]) == (len(split), 10, "centre", 1)
    expected = probabilities_by_hand(trained, split.images)
    order = np.argsort(-expected, axis=1)[:, :5]
    np.testing.assert_allclose(table["probabilities"], np.take_along_axis(expected, order, axis=1), atol=1e-5)
    assert np.mean(table["classes"] == order) > 0.99
    np.testing.assert_array_equal(table["label"], split.labels)
    counts = kept(trained, "confusion")["counts"]
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(split.labels, minlength=10))
    assert 1 - np.trace(counts) / len(split) == pytest.approx(found["top1"])
    point = challenge.point_of_run(str(folder))
    assert (point.percent, point.note) == (100 * found["top5"], f"10 classes, {len(split)} images, one view")
    with open(trained.figures / "classify.csv") as file:
        header, first, *rest = list(csv.reader(file))
    assert (
        header[:5] == ["image", "label", "place_of_label", "class_1", "probability_1"] and len(rest) == len(split) - 1
    )
    assert first[:4] == ["0", str(split.labels[0]), str(table["place"][0]), str(table["classes"][0, 0])]


def test_ten_views_are_cut_from_the_enlarged_image_and_averaged(folder, trained):
    classify.main(Options(run=folder, views="ten", top=10), Quiet(), trained)
    table, split = kept(trained), trained.dataset.test
    large = np.stack(
        [np.asarray(Image.fromarray(one[..., 0]).resize((9, 9), Image.Resampling.LANCZOS)) for one in split.images[:4]]
    )
    views = [large[:, top : top + 8, left : left + 8] for top, left in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0))]
    views += [view[..., ::-1] for view in views]
    expected = np.mean([probabilities_by_hand(trained, view[..., None]) for view in views], axis=0)
    found = np.zeros((4, 10))
    np.put_along_axis(found, table["classes"][:4], table["probabilities"][:4], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert errors(trained)["views"] == "ten"


def test_files_in_class_folders_are_answered_as_the_test_images_they_are(folder, trained, pictures):
    classify.main(Options(run=folder), Quiet(), trained)
    whole = kept(trained)
    classify.main(Options(run=folder, images=(str(pictures),)), Quiet(), trained)
    table = kept(trained)
    numbers = [int(name.split("/")[1].removesuffix(".png")) for name in table["image"]]
    assert sorted(numbers) == list(range(6))
    for key in ("classes", "label", "place", "answer"):
        np.testing.assert_array_equal(table[key], whole[key][numbers])
    np.testing.assert_allclose(table["probabilities"], whole["probabilities"][numbers], atol=1e-6)
    np.testing.assert_array_equal(table["shown"], trained.dataset.test.images[numbers])
    assert errors(trained)["images"] == 6


def test_the_images_shown_of_a_split_in_order_of_its_classes_are_of_all_classes(folder, trained):
    test = trained.dataset.test
    rows = np.argsort(test.labels, kind="stable")
    ordered = Split(test.images[rows], test.labels[rows])
    assert set(ordered.labels[:12]) == {0}
    in_order = trained._replace(dataset=dataclasses.replace(trained.dataset, test=ordered))
    classify.main(Options(run=folder), Quiet(), in_order)
    classes = {image.tobytes(): label for image, label in zip(ordered.images, ordered.labels.tolist(), strict=True)}
    shown = [classes[image.tobytes()] for image in kept(trained)["shown"]]
    assert shown == sorted(shown) and np.bincount(shown).tolist() == [2, 1, 1, 1, 1, 2, 1, 1, 1, 1]


def test_in_parts_the_answers_are_the_same(folder, trained, monkeypatch):
    classify.main(Options(run=folder, top=2), Quiet(), trained)
    whole, measured = kept(trained), errors(trained)
    monkeypatch.setattr(classify, "MOST_BYTES", 64 * 100)  # 100 images of 8×8 bytes
    classify.main(Options(run=folder, top=2), Quiet(), trained)
    assert len(list((folder / "parts" / "classify").rglob("images-*-100.npz"))) == 1
    assert errors(trained) == measured
    for key, array in kept(trained).items():
        np.testing.assert_array_equal(array, whole[key])


def test_images_without_labels_leave_the_errors_as_they_were(folder, trained, pictures):
    classify.main(Options(run=folder), Quiet(), trained)
    before = errors(trained)
    flat = [str(path) for path in sorted(pictures.glob("*/*.png"))[:2]]
    classify.main(Options(run=folder, images=tuple(flat)), Quiet(), trained)
    table = kept(trained)
    assert table["label"].tolist() == [-1, -1] and "place" not in table
    assert errors(trained) == before
    assert (trained.figures / "classify.csv").read_text().splitlines()[0].startswith("image,class_1,probability_1")


def test_large_and_coloured_files_are_fitted_as_the_runs_images_are(trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = classify.given(trained, Options(images=(str(tmp_path / "a.png"),)), None, Quiet())
    grey = Image.fromarray(pixels).convert("L").resize((8, 8), Image.Resampling.LANCZOS, box=(5, 0, 35, 30))
    np.testing.assert_array_equal(images.pixels[0, ..., 0], np.asarray(grey))
    assert images.labels is None and images.names == ["a.png"]


def test_with_a_shorter_side_files_are_scaled_to_it_and_cut_as_the_run_is(trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = dataclasses.replace(trained.config.data, image_size=8, shorter_side=12, interpolation="bilinear")
    run = trained._replace(config=dataclasses.replace(trained.config, data=data))
    options = Options(images=(str(tmp_path / "a.png"),))
    scaled = np.asarray(Image.fromarray(pixels).resize((16, 12), Image.Resampling.BILINEAR))
    assert classify.scaled_side(run, "ten") == 12
    one, ten = (classify.given(run, options, classify.scaled_side(run, views), Quiet()) for views in ("centre", "ten"))
    np.testing.assert_array_equal(one.pixels[0, ..., 0], scaled[2:10, 4:12])
    np.testing.assert_array_equal(ten.pixels[0, ..., 0], scaled[:, 2:14])
    assert classify.scaled_side(run._replace(config=trained.config), "ten") == round(8 * 256 / 224)


def found_of(*names):
    return [Picture(name, None, None) for name in names]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,label\na,dog2\nb,cat\n", [1, 0]),
        ("\ufefflabel, image,more\ncat, b,1\ncat, a,2\n", [0, 0]),
        ("image,label\na,3\nb,0\n", [3, 0]),
        ("image,label\r\na,7\r\nb,7\r\n", [2, 2]),  # the name of a class before its number
        ('image,label\na,"two, of them"\nb,7\n', [4, 2]),
    ],
)
def test_labels_are_names_or_numbers(tmp_path, text, expected):
    (tmp_path / "labels.csv").write_text(text)
    names = ("cat", "dog2", "7", "dog", "two, of them", "f", "g", "h")
    assert classify.labels_of_file(tmp_path / "labels.csv", found_of("a", "b"), names).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns image,label, and .* has none"),
        ("image,class\na,1\n", "must have the columns image,label, and .* has image,class"),
        ("image,label\na,1\n", "must give every image, and .* lacks b"),
        ("image,label\n", "must give every image, and .* lacks a"),
        ("image,label\na,1\nb,2\na,1\n", "must give each image once, and .* line 4 repeats a"),
        ("image,label\na,1\nc,2\n", "must name images of --images, as a, and .* line 3 has 'c'"),
        ("image,label\na,1\nb,owl\n", "names of classes, all of them, or numbers from 0 to 3, and .* line 3 has 'owl'"),
        ("image,label\na,1\nb,cat\n", "be names of classes, all of them, or numbers from 0 to 3, and .* has 'cat'"),
        ("image,label\na,4\nb,1\n", "numbers from 0 to 3, and .* line 2 has '4'"),
        ("image,label\na,-1\nb,1\n", "numbers from 0 to 3, and .* line 2 has '-1'"),
        ("image,label\na,1.0\nb,1\n", "numbers from 0 to 3, and .* line 2 has '1.0'"),
        ("image,label\na\nb,1\n", "numbers from 0 to 3, and .* line 2 has ''"),
        ("image,label\na,dog\nb,cat\n", "numbers for a name that several classes have, and .* line 2 has 'dog'"),
        (b"image,label\n\xff,1\n", "must be a CSV file that can be read"),
        (f"image,label\na,{'1' * 200_000}\n", "must be a CSV file that can be read"),
    ],
)  # fmt: skip
def test_bad_labels_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as told:
        classify.labels_of_file(tmp_path / "labels.csv", found_of("a", "b"), NAMES)
    assert len(str(told.value)) < 500


def test_labels_need_images_that_can_be_told_apart(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na,1\n")
    with pytest.raises(InputError, match="has two that are called a"):
        classify.labels_of_file(tmp_path / "labels.csv", found_of("a", "a"), NAMES)
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("none.csv", "pipe.csv"):
        with pytest.raises(InputError, match=f"must be a CSV file that can be read, got .*{name}"):
            classify.labels_of_file(tmp_path / name, found_of("a"), NAMES)


def image(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


def bad(name):
    """A folder's content by the fault that it has, and what is said of it."""

    def make(root):
        image(root / "0" / "a.png")
        if name == "missing":
            return (root / "none",)
        if name == "empty folder":
            (root / "0" / "a.png").unlink()
        elif name == "no images":
            (root / "1").mkdir()
            (root / "1" / ".hidden").touch()
        elif name == "mixed":
            image(root / "b.png")
        elif name == "deep":
            image(root / "0" / "deep" / "b.png")
        elif name == "text":
            (root / "0" / "b.png").write_text("no image")
        elif name == "cut":
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)).save(root / "0" / "b.png")
            os.truncate(root / "0" / "b.png", 1000)
        elif name == "pipe":
            os.mkfifo(root / "0" / "b.png")
        elif name == "some classes":
            image(root / "owls" / "b.png")
        elif name == "twice":
            return (root, root / "0" / "a.png")
        elif name == "link":
            (root / "0" / "b.png").symlink_to(root / "0" / "a.png")
        elif name == "nameless":
            return ("",)
        return (root,)

    return make


@pytest.mark.parametrize("views", ["centre", "ten"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "must be files or folders that exist, got '.*none'"),
        ("nameless", "must be files or folders that exist, got ''"),
        ("empty folder", "must hold images, and the folder .*0 holds none"),
        ("no images", "must hold images, and the folder .*1 holds none"),
        ("mixed", "must hold images or a folder a class, and has 0 and b.png"),
        ("deep", "must hold images only, and has the folder deep"),
        ("text", "b.png is not an image of a known format"),
        ("cut", "b.png cannot be decoded"),
        ("pipe", "b.png cannot be decoded: .*not a regular file"),
        ("some classes", "all or none, and .*owls/b.png is in the folder owls"),
        ("twice", "must name each image once, got .*a.png twice"),
        ("link", "must name each image once, got .*b.png twice"),
    ],
)
def test_bad_images_are_named_and_nothing_is_written(folder, trained, tmp_path, name, message, views):
    given = tuple(str(path) for path in bad(name)(tmp_path / "images"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=message):
        classify.main(Options(run=folder, images=given, views=views), Quiet(), trained)
    assert sorted(folder.rglob("*")) == before


class Told(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_folders_of_other_names_give_no_labels_and_this_is_said(trained, tmp_path):
    image(tmp_path / "in" / "owls" / "a.png")
    told = Told()
    images = classify.given(trained, Options(images=(str(tmp_path / "in"),)), None, told)
    assert images.labels is None
    assert told.said == ["no folder has the name of a class of the network: errors are not measured"]


def test_small_images_are_enlarged_as_the_runs_own_would_be_and_this_is_said(trained, tmp_path):
    for name, size in (("a", (8, 9)), ("b", (7, 100)), ("c", (5, 5))):
        image(tmp_path / "in" / f"{name}.png", size)
    told = Told()
    assert classify.given(trained, Options(images=(str(tmp_path / "in"),)), None, told).pixels.shape == (3, 8, 8, 1)
    assert len(told.said) == 1
    assert re.fullmatch(
        r"2 of 3 images, as \S*b.png, must be enlarged: less than 8 pixels at the shorter side", told.said[0]
    )


def test_a_network_of_few_classes_has_no_top_5_error(folder, trained, pictures):
    names = trained.dataset.class_names[:5]
    model = dataclasses.replace(trained.config.model, classes=names)  # of imported weights
    config = dataclasses.replace(trained.config, model=model, train=TrainConfig(epochs=0, keep_epochs=(), start="file"))
    few = trained._replace(dataset=dataclasses.replace(trained.dataset, class_names=names), config=config)
    images = classify.Images(np.zeros((2, 8, 8, 1), np.uint8), None, ["a", "b"], np.array([0, 1], np.int32), "two")
    table = {"place": np.array([1, 3]), "answer": np.array([0, 2])}
    (folder / "figures" / "epoch-1").mkdir(parents=True, exist_ok=True)
    _, said = classify.save_errors(few, Options(run=folder), images, table, "sha", "note")
    assert said == "top-1 error 50.00 %, no top-5 error: there are only 5 classes, over 2 images"
    assert errors(trained)["top5"] is None
    with pytest.raises(InputError, match="has only 5 classes"):
        challenge.point_of_run(str(folder))


def test_outputs_that_are_no_numbers_are_refused(folder, trained):
    broken = trained._replace(preprocess=lambda images: trained.preprocess(images) * np.nan)
    with pytest.raises(InputError, match="outputs are numbers, and for image 0 they are not"):
        classify.main(Options(run=folder, top=3), Quiet(), broken)


def test_ten_views_need_squares(trained):
    split = Split(np.zeros((3, 8, 6, 1), np.uint8), np.zeros(3, np.int32))
    wide = trained._replace(dataset=dataclasses.replace(trained.dataset, train=split))
    with pytest.raises(InputError, match="--views must be centre for images of 8×6 px"):
        classify.scaled_side(wide, "ten")
    assert classify.scaled_side(wide, "centre") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 0}, "--top must be from 1 to 20, got 0"),
        ({"shown": 61}, "--shown must be from 1 to 60, got 61"),
        ({"labels": "a.csv"}, "--labels must be of --images"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Options(**changes)
