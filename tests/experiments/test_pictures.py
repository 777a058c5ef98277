"""Pictures that a user names instead of a run's test images, and which test images stand in every figure."""

import dataclasses
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax.data.dataset import Split
from cnnjax.errors import InputError
from experiments import activations, attribution, classify, correspondence, invariance, occlusion, pictures
from experiments.looking import BEYOND_DOUBT, SURE, PictureOptions, example_images, examples, looked_at, open_run
from tests.experiments.test_activations import trained
from tests.experiments.test_filter_evolution import Quiet

SHORT = {
    activations: {"count": 2, "random_maps": 2, "layers": ("conv1",)},
    occlusion: {"tested": 3, "others": 1},
    invariance: {"per_class": 0, "translation": (-1, 1, 3), "scale": (0.9, 1.1, 3), "rotation": (-9, 9, 3)},
    correspondence: {"random": 3, "permutations": 9, "images": 2},
    attribution: {"sanity_images": 0, "steps": 2, "samples": 2},
    classify: {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("pictures") / "run")


@pytest.fixture(scope="module")
def digits(folder, tmp_path_factory):
    """Six of the run's test images as files, and a hidden one that is none."""
    made = tmp_path_factory.mktemp("named") / "my digits"
    made.mkdir()
    images = open_run(PictureOptions(run=folder), Quiet()).dataset.test.images
    for number in range(6):
        Image.fromarray(images[number, ..., 0]).save(made / f"{number}.png")
    (made / ".hidden").write_text("no picture")
    return made


def zipped(folder, to, within=""):
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{within}{path.name}")
        archive.writestr("__MACOSX/._0.png", b"no picture")
    return to


def own_files(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not {"on-my-digits", "parts"} & {*path.parts}]
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("study", SHORT, ids=lambda study: study.__name__.rpartition(".")[2])
def test_every_study_of_test_images_looks_at_a_folder_instead(folder, digits, study):
    before = own_files(folder)
    drawn = study.main(study.Options(run=folder, on=digits, **SHORT[study]), Quiet())
    assert drawn and all(path.parent.name == "on-my-digits" and path.is_file() for path in drawn)
    assert own_files(folder) == before  # the run's own figures are left alone


def test_a_folder_and_an_archive_are_the_same_pictures(folder, digits, tmp_path):
    ways = [digits, zipped(digits, tmp_path / "a.zip"), zipped(digits, tmp_path / "B.ZIP", "deep/inside/")]
    opened = [open_run(PictureOptions(run=folder, on=way), Quiet()) for way in ways]
    own = open_run(PictureOptions(run=folder), Quiet())
    for one in opened:
        np.testing.assert_array_equal(one.dataset.test.images, own.dataset.test.images[:6])
        np.testing.assert_array_equal(one.dataset.test.labels, own.answers(own.dataset.test)[:6])
        assert one.target == "network's answer" and own.target == "true class"
    assert opened[0].called(2, 7) == "7 (2.png)" and own.called(2, 7) == "7 (2)"


def test_files_are_looked_at_as_numbers_are(folder, digits):
    own = open_run(PictureOptions(run=folder), Quiet())
    assert looked_at(own, (3, 1), Quiet()) == (own, (3, 1))
    named, numbers = looked_at(own, [str(digits / "3.png"), str(digits / "1.png")], Quiet())
    assert numbers == (0, 1) and named.pictures == ("3.png", "1.png")
    np.testing.assert_array_equal(named.dataset.test.images, own.dataset.test.images[[3, 1]])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((3, "a.png"), "--images must be numbers of test images or files, not both, got 3 a.png"),
        (("none.png",), "--images must be files or folders that exist, got 'none.png'"),
        ((0, 10**6), "--images must be files, or numbers of test images from 0 to .*, got 1000000"),
    ],
)
def test_what_names_no_image_is_refused(folder, images, said):
    with pytest.raises(InputError, match=said):
        looked_at(open_run(PictureOptions(run=folder), Quiet()), images, Quiet())


@pytest.mark.parametrize("content", ["empty", "no archive", "no picture", "twice"])
def test_what_is_no_archive_of_pictures_is_refused(folder, digits, tmp_path, content):
    path, given = tmp_path / "pictures.zip", []
    if content == "no archive":
        path.write_bytes(b"PK\3\4" + bytes(40))
    elif content == "twice":
        zipped(digits, path)
        given = [str(path)]
    else:
        with zipfile.ZipFile(path, "w") as archive:
            if content == "no picture":
                archive.writestr("0.png", b"no picture")
    said = {"empty": "the archive .* holds none", "no archive": "an archive that can be read, got .*pictures.zip"}
    said |= {"no picture": r"pictures.zip:0.png", "twice": "must name each image once, got .*pictures.zip:0.png twice"}
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=said[content]):
        if given:
            pictures.find([*given, *given], "--on")
        else:
            open_run(PictureOptions(run=folder, on=path), Quiet())
    assert sorted(folder.rglob("*")) == before


def test_examples_are_right_not_blank_and_of_different_classes_first(folder):
    opened = open_run(PictureOptions(run=folder), Quiet())
    test = opened.dataset.test
    answers = opened.answers(test)
    (right, *_) = np.flatnonzero(answers == test.labels)
    images = test.images.copy()
    blank = np.flatnonzero(test.labels == test.labels[right])[:5]
    images[blank] = 255
    opened = opened._replace(dataset=dataclasses.replace(opened.dataset, test=Split(images, test.labels)))
    chosen = examples(opened)
    assert sorted(chosen) == list(range(len(test)))
    good = (opened.answers(opened.dataset.test) == test.labels) & (images.std(axis=(1, 2, 3)) >= 16)
    assert 10 < good.sum() < len(test)
    np.testing.assert_array_equal(good[chosen], np.sort(good)[::-1])  # all of them before all others
    known = len(np.unique(test.labels[good]))
    assert len(set(test.labels[chosen[:known]].tolist())) == known
    np.testing.assert_array_equal(examples(opened), chosen)
    assert not np.array_equal(examples(opened, 1), chosen)
    assert example_images(opened, 3, Quiet()) == tuple(chosen[:3])


def test_examples_are_sure_but_not_so_sure_that_nothing_in_them_matters(folder):
    opened = open_run(PictureOptions(run=folder), Quiet())
    surer = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 128 * leaf if opened.logits in str(path) else leaf, opened.variables
    )
    opened = opened._replace(variables=surer)
    test, chosen = opened.dataset.test, examples(opened)
    probabilities = opened.probabilities(test)
    of_class, right = probabilities[np.arange(len(test)), test.labels], np.argmax(probabilities, axis=1) == test.labels
    telling = right & (of_class >= SURE) & (of_class <= BEYOND_DOUBT)
    assert 10 < telling.sum() < right.sum()
    for label in np.unique(test.labels[telling]):
        assert telling[next(number for number in chosen if test.labels[number] == label)]
