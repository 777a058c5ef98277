import os
import struct

import numpy as np
import pytest
from PIL import Image

from cnnjax.config import DataConfig
from cnnjax.data import load
from cnnjax.errors import InputError


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, np.uint8)


COLOUR = random_images(0, 40, 6, 6, 3)


def two_classes(count: int = 10) -> dict[str, np.ndarray]:
    return {
        f"{name}/{index:02d}.png": COLOUR[index + start]
        for name, start in (("cat", 0), ("dog", 20))
        for index in range(count)
    }


@pytest.fixture
def config_of(tmp_path):
    def config(root, **change) -> DataConfig:
        return DataConfig(folder=str(root), data_dir=str(tmp_path / "kept"), **change)

    return config


def test_a_folder_is_split_by_class_and_loses_no_image(image_folder, config_of):
    dataset = load(config_of(image_folder(two_classes()), test_fraction=0.3))
    assert dataset.class_names == ("cat", "dog") and dataset.name == "images"
    np.testing.assert_array_equal(dataset.train.labels, [0] * 7 + [1] * 7)
    np.testing.assert_array_equal(dataset.test.labels, [0] * 3 + [1] * 3)
    for label, start in ((0, 0), (1, 20)):
        found = [
            bytes(image) for split in (dataset.train, dataset.test) for image in split.images[split.labels == label]
        ]
        assert sorted(found) == sorted(bytes(image) for image in COLOUR[start : start + 10])


def test_train_and_test_folders_are_the_splits_in_the_order_of_names(image_folder, config_of):
    images = two_classes(3)
    root = image_folder(
        {"train/" + path: pixels for path, pixels in images.items()}
        | {"test/dog/b.png": COLOUR[30], "test/dog/a.png": COLOUR[31]}
    )
    dataset = load(config_of(root))
    np.testing.assert_array_equal(dataset.train.images, COLOUR[[0, 1, 2, 20, 21, 22]])
    np.testing.assert_array_equal(dataset.test.images, COLOUR[[31, 30]])
    np.testing.assert_array_equal(dataset.test.labels, [1, 1])


def test_jpegs_of_mixed_size_and_mode_need_both_options(image_folder, config_of):
    images = {f"{name}/{index}.jpg": random_images(index, 30 + index, 40, 3) for name in "ab" for index in range(4)}
    images["b/9.jpg"] = random_images(9, 50, 40)  # grey
    root = image_folder(images)
    with pytest.raises(
        InputError, match=r"data.image_size must be given .*a/0.jpg has 40x30 pixels, .*a/1.jpg has 40x31"
    ):
        load(config_of(root))
    with pytest.raises(
        InputError, match=r"data.channels must be given \(1: grey, 3: RGB\).*a/.*jpg is colour, .*b/9.jpg is grey"
    ):
        load(config_of(root, image_size=8))
    for channels in (1, 3):
        assert load(config_of(root, image_size=8, channels=channels)).image_shape == (8, 8, channels)
    assert not list((root.parent / "kept").rglob("*.tmp.*"))  # what was refused left nothing behind


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_and_still_like_the_whole(image_folder, config_of):
    smooth = np.add.outer(np.arange(400), np.arange(600)) // 4
    picture = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=-1).astype(np.uint8)
    root = image_folder({f"{name}/{index}.jpg": picture for name in "ab" for index in range(2)}, quality=95)
    image = load(config_of(root, image_size=16)).train.images[0]
    whole = Image.fromarray(picture).crop((100, 0, 500, 400)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.abs(image.astype(int) - np.asarray(whole)).max() <= 4


def test_exif_orientation_is_applied(image_folder, config_of):
    root = image_folder(two_classes(2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for path in root.rglob("*.png"):
        Image.open(path).save(path, exif=exif)
    dataset = load(config_of(root, split_seed=0))
    found = {bytes(image) for split in (dataset.train, dataset.test) for image in split.images}
    assert found == {bytes(np.ascontiguousarray(np.rot90(COLOUR[index], -1))) for index in (0, 1, 20, 21)}


def test_hidden_files_and_files_beside_the_classes_are_not_seen(image_folder, config_of):
    root = image_folder(two_classes(3))
    for path in ("README.txt", "cat/.DS_Store", ".git/config"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("no image")
    assert load(config_of(root)).class_names == ("cat", "dog")


def test_progress_counts_up_to_the_number_of_images(image_folder, config_of):
    seen = []
    load(config_of(image_folder(two_classes())), progress=lambda *report: seen.append(report))
    assert [description for description, _, _ in seen] == ["decode images"] * len(seen)
    assert seen[-1][1:] == (20, 20)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold a folder for each class, at least 2; it holds no folder"),
        ({"cat/a.png": "image"}, "it holds only 'cat'"),
        ({"cat/a.png": "image", "dog/.x": "text"}, "the class folder '.*dog' holds no images"),
        ({"cat/a.png": "image", "cat/b.png": "image", "dog/a.png": "image"}, "needs at least 2 images of each class"),
        (
            {"cat/a.png": "image", "cat/b.txt": "text", "dog/a.png": "image", "dog/b.png": "image"},
            "cat/b.txt is not an image",
        ),
        (
            {"cat/a.png": "image", "cat/b.png": "cut", "dog/a.png": "image", "dog/b.png": "image"},
            "cat/b.png cannot be decoded",
        ),
        (
            {"cat/in/a.png": "image", "dog/a.png": "image"},
            "a class folder must hold images only, but '.*in' is no file",
        ),
        ({"train/cat/a.png": "image", "val/cat/a.png": "image"}, "has train/ and so must have test/ as well"),
        (
            {
                "train/cat/a.png": "image",
                "train/dog/a.png": "image",
                "test/cow/a.png": "image",
                "test/dog/a.png": "image",
            },
            "which lacks 'cow'",
        ),
    ],
)
def test_a_folder_is_refused_by_one_line(tmp_path, config_of, files, message):
    root = tmp_path / "images"
    root.mkdir()
    Image.fromarray(COLOUR[0]).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    for path, kind in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes({"image": good, "text": b"no image", "cut": good[:-60]}[kind])
    with pytest.raises(InputError, match=f"data.folder.*{message}") as error:
        load(config_of(root))
    assert "\n" not in str(error.value)


def test_a_folder_that_is_missing_or_a_file_is_refused(tmp_path, config_of):
    with pytest.raises(InputError, match=r"data.folder must be a folder .*which does not exist"):
        load(config_of(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="which is a file"):
        load(config_of(tmp_path / "file"))


@pytest.mark.parametrize("side", [8_200, 15_000])  # the second is beyond Pillow's own limit
def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(image_folder, config_of, side):
    root = image_folder(two_classes(2))
    Image.new("1", (side, side)).save(root / "cat" / "bomb.png")  # a few kilobytes
    with pytest.raises(InputError, match=r"at most 64,000,000 pixels, but .*bomb\.png has more"):
        load(config_of(root))


def test_an_unchanged_folder_is_not_decoded_again_wherever_it_lies(image_folder, config_of):
    root = image_folder(two_classes(3))
    first = load(config_of(root), lambda *report: None)
    moved = root.rename(root.with_name("moved"))
    os.utime(moved / "cat" / "00.png")
    again = load(config_of(moved), lambda *report: pytest.fail("decoded again"))
    np.testing.assert_array_equal(again.train.images, first.train.images)
    assert again.name == "moved"


@pytest.mark.parametrize("suffix", ["bmp", "png"])
def test_other_content_of_the_same_names_sizes_and_times_is_decoded(image_folder, config_of, suffix):
    images = {f"{name}/{index}.{suffix}": COLOUR[index] for name in "ab" for index in range(2)}
    root = image_folder(images)
    config = config_of(root, test_fraction=0.5)
    load(config)
    status = (root / "a" / f"0.{suffix}").stat()
    first, second = root / "a" / f"0.{suffix}", root / "b" / f"0.{suffix}"
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), (COLOUR[2], COLOUR[3]), strict=True):
        Image.fromarray(content).save(path)
        if suffix == "png":  # a chunk that no reader minds makes up for the compression
            whole = max(len(contents[0]), len(path.read_bytes()))
            path.write_bytes(path.read_bytes().ljust(whole, b"\0"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    dataset = load(config)
    found = {bytes(image) for split in (dataset.train, dataset.test) for image in split.images}
    assert found == {bytes(COLOUR[index]) for index in (1, 2, 3)}


def test_a_file_that_changes_between_its_key_and_its_pixels_is_refused(image_folder, config_of):
    root = image_folder(two_classes(3))

    def change(*report):  # after the training images
        for path in root.rglob("*.png"):
            Image.fromarray(COLOUR[39]).save(path)

    with pytest.raises(InputError, match=r"\.png cannot be decoded: .*changed while it was read"):
        load(config_of(root), change)


@pytest.mark.parametrize("path", ["cat/00.png", "cat"])
def test_a_pipe_is_refused_at_once(image_folder, config_of, path):
    root = image_folder(two_classes(3))
    if (root / path).is_dir():
        os.mkfifo(root / "cat" / "pipe.png")
    else:
        (root / path).unlink()
        os.mkfifo(root / path)
    with pytest.raises(InputError, match=r"a class folder must hold images only, but '.*\.png' is no file"):
        load(config_of(root))


def test_a_home_that_nobody_knows_is_one_line(config_of):
    with pytest.raises(InputError, match=r"data\.folder must be .*~nosuchuser/x"):
        load(config_of("~nosuchuser/x"))


def test_one_image_with_odd_metadata_refuses_no_set(image_folder, config_of):
    root = image_folder(two_classes(3))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHHHIII", 2, 0x0112, 3, 1, 3, 0, 0x011A, 2, 1, 0, 0)
    Image.fromarray(COLOUR[0]).save(root / "cat" / "00.png", exif=exif)
    dataset = load(config_of(root))
    found = {bytes(image) for split in (dataset.train, dataset.test) for image in split.images}
    assert bytes(np.ascontiguousarray(COLOUR[0][::-1, ::-1])) in found


def test_a_shorter_side_and_an_interpolation_reach_the_pixels_and_are_kept_apart(image_folder, config_of):
    large = {f"{name}/{index}.png": random_images(index, 40, 30, 3) for name in ("a", "b") for index in range(4)}
    root = image_folder(large)
    first = Image.fromarray(large["a/0.png"])
    seen = {}
    for how in (
        {},
        {"interpolation": "bicubic"},
        {"shorter_side": 12},
        {"shorter_side": 12, "interpolation": "bilinear"},
    ):
        dataset = load(config_of(root, image_size=10, test_fraction=0.25, **how))
        resampling = Image.Resampling[how.get("interpolation", "lanczos").upper()]
        if "shorter_side" in how:
            expected = np.asarray(first.resize((12, 16), resampling))[3:13, 1:11]
        else:
            expected = np.asarray(first.resize((10, 10), resampling, box=(0, 5, 30, 35)))
        images = np.concatenate([dataset.train.images, dataset.test.images])
        assert (images == expected).all(axis=(1, 2, 3)).sum() == 2, how
        seen[images.tobytes()] = how
    assert len(seen) == 4
