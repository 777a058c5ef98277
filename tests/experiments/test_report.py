"""What a run folder holds, on its page: files by hand, so that every one can be wrong."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cnnjax.atomic import sealed
from cnnjax.config import Config, ModelConfig, TrainConfig, to_json
from cnnjax.errors import InputError
from experiments import report, studies
from tests.experiments.test_filter_evolution import Quiet
from tests.report.test_page import Read

RANDOM = np.random.default_rng(0)


class Heard(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def begun(folder, config=None, epochs=3):
    """A run that has not got further than its curves."""
    config = config or Config(train=TrainConfig(epochs=5, keep_epochs=(1, 5)))
    folder.mkdir(parents=True)
    record = {
        "config": to_json(config),
        "versions": {"cnnjax": "9.8", "jax": "7.6"},
        "python": "3.1",
        "device": "1 x cpu",
        "data": {"name": "photos", "sha256": "ab" * 32},
    }
    (folder / "config.json").write_text(sealed(record))
    lines = [{"epoch": epoch, "test_error": 0.5, "train_loss": 2.0} for epoch in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def finished(folder, config=None, maps=(0, 2)):
    """A run with the evolution of one layer of three maps, and what other studies leave."""
    begun(folder, config, epochs=6)
    (folder / "checkpoints" / "epochs" / "5").mkdir(parents=True)
    figures = folder / "figures"
    at_end = figures / "epoch-5"
    at_end.mkdir(parents=True)
    row = {
        "name": "conv1", "kind": "conv", "input_shape": [8, 8, 3], "output_shape": [8, 8, 3], "window": [3, 3],
        "strides": [1, 1], "padding": [[1, 1], [1, 1]], "weights": 81, "biases": 3, "multiply_adds": 5184,
        "fields": [{"size": 3, "jump": 1, "start": 0.0}] * 2, "parameters": ["conv1/kernel"], "relu": True,
    }  # fmt: skip
    last = row | {"name": "fc2", "kind": "dense", "output_shape": [2], "window": [], "strides": [], "padding": []}
    (figures / studies.LAYERS).write_text(json.dumps([row, last | {"fields": None}]))
    epochs, tile = np.array([0, 1, 5]), (3, 3, 3)
    np.savez(figures / "filters_conv1.npz", kernels=RANDOM.normal(size=(3, *tile, 3)), epochs=epochs)
    np.savez(
        figures / "evolution_conv1.npz",
        maps=np.array(maps),
        epochs=epochs,
        value=np.ones((len(maps), 3)),
        image=np.zeros((len(maps), 3), int),
        projections=RANDOM.normal(size=(len(maps), 3, *tile)),
        patches=np.full((len(maps), 3, *tile), np.nan),
        every_value=np.array([[1, 1, 1], [1, 1, 0], [0, 2, 3]]),
        every_image=np.array([[4, 5, 5], [1, 1, 1], [0, 7, 8]]),
        every_turned=np.array([[0.25, 0.1, 0], [0.5, 0.1, 0], [0.75, 0.1, 0]]),
    )
    curves = dict.fromkeys(("filter_distance", "dead", "moved"), np.ones((1, 3)))
    np.savez(figures / "convergence.npz", layers=["conv1"], epochs=epochs, **curves)
    np.savez(
        at_end / "activations_conv1.npz",
        maps=np.array([2]),
        value=np.array([[3.0, 2.0]]),
        image=np.array([[11, 12]]),
        unit=np.zeros((1, 2, 2), int),
        projections=RANDOM.normal(size=(1, 2, *tile)),
        patches=np.zeros((1, 2, *tile)),
        split="test",
    )
    np.savez(at_end / "confusion.npz", counts=np.array([[3, 1], [0, 4]]), class_names=["cat", "dog"])
    np.savez(
        at_end / "attribution.npz",
        images=np.array([11]),
        classes=np.array([1]),
        pixels=np.zeros((1, 8, 8, 3), np.uint8),
        class_names=["cat", "dog"],
        gradient=RANDOM.normal(size=(1, 8, 8, 3)),
        **{"grad-cam": np.zeros((1, 8, 8)), "deconvnet": RANDOM.normal(size=(1, 8, 8, 3))},
    )
    np.savez(
        at_end / "maximization.npz",
        **{"fc2-units": np.array([0]), "fc2-images": np.full((1, 8, 8, 3), 300.0)},
        **{"fc2-values": np.ones(1), "fc2-best": np.ones(1)},
    )
    of_image = {
        "number": 7, "label": 0, "image": np.zeros((8, 8, 3), np.uint8), "tops": [0, 4], "lefts": [0, 4], "map": 2,
        "activity": np.array([[1.0, 0], [2, 4]]), "whole_activity": 4.0, "probability": np.full((2, 2), 0.5),
        "whole_probability": 0.5, "best": np.zeros((2, 2), int), "projections": np.zeros((1, *tile)),
    }  # fmt: skip
    np.savez(at_end / "occlusion.npz", layer="conv1", **{f"{name}_7": value for name, value in of_image.items()})
    for path in list(figures.rglob("*.npz")):
        Image.new("RGB", (8, 8)).save(path.with_suffix(".png"))
    return folder


def made(*folders, **options):
    progress = Heard()
    path = report.main(report.Options(run=folders, **options), progress)
    return Read(path.read_text(encoding="utf-8")), progress.said


def test_everything_that_the_studies_left_is_on_the_page(tmp_path):
    read, said = made(finished(tmp_path / "a run"))
    assert len(said) == 1 and "left out" not in read.text
    assert {"conv1/0", "conv1/1", "conv1/2", "fc2/0", "fc2/1", "conv1", "page.attribution.0.5/11"} <= set(read.ids)
    assert "finished: 5 epochs; test error 50.00 % after epoch 5" in read.text
    assert "cnnjax 9.8" in read.text and "data photos abababababab" in read.text and "jax 7.6" in read.text
    assert "Born at epoch 1: from there on its strongest image stays the same; 1 change of" in read.text  # map 0
    assert "its filter has turned by 0.75" in read.text and "fc2 / 1 – dog" in read.text
    assert {"figures/evolution_conv1.npz", "figures/epoch-5/occlusion.npz", "figures/epoch-5/confusion.png"} <= set(
        read.links
    )
    assert all(os.path.exists(tmp_path / "a run" / link) for link in read.links if not link.startswith("#"))
    assert "Not made. The command makes it: python -m experiments.probes --run" in read.text


def test_what_is_outside_of_an_image_is_hatched_and_looks_like_no_grey():
    shown = report._grey_levels(np.array([np.nan] * 16 + [0.0] * 8 + [1.0] * 8).reshape(4, 8, 1))
    assert shown.shape == (4, 8, 3) and set(shown[2].ravel()) == {0} and set(shown[3].ravel()) == {255}
    assert (shown[0, ::4] == round(0.6 * 255)).all() and (shown[0, 1:4] == round(0.95 * 255)).all()
    assert (shown[1, 3::4] == round(0.6 * 255)).all()


def test_projections_are_masked_and_told_how_they_were_made(tmp_path):
    folder = finished(tmp_path / "run")
    path = folder / "figures" / "evolution_conv1.npz"
    with np.load(path) as arrays:
        kept = dict(arrays)
    kept["patches"] = np.zeros(kept["patches"].shape)
    kept["patches"][:, :, 0] = np.nan
    words = {"rule": "guided", "alike": 0.5, "field": [3, 3], "chosen": "named", "contrast": "map"}
    np.savez(path, **kept, **words)
    run = report.Reading(folder, "run", folder, Heard()).run()
    evolution = run.evolutions["conv1"]
    assert (evolution.projections[:, :, 0] == evolution.patches[:, :, 0]).all()
    said = ("maps: named", "projections by guided backpropagation: mid grey 0, contrast by map", "mean cosine 0.50")
    assert all(text in evolution.note for text in said)
    scale = np.percentile(np.abs(kept["projections"][0][:, 1:]), 99.5, axis=(1, 2, 3)).max()  # of the map's epochs
    expected = np.rint(255 * np.clip(0.5 + 0.5 * kept["projections"][0][:, 1:] / scale, 0, 1))
    np.testing.assert_array_equal(evolution.projections[0][:, 1:], expected)


def test_commands_on_the_page_name_the_run(tmp_path):
    read, _ = made(finished(tmp_path / "a run"))
    said = f"python -m experiments.activations --run '{tmp_path / 'a run'}' --epoch 5"
    assert said in [text.strip() for text in read.texts]


def test_the_hash_is_of_the_settings_that_decide_a_run(tmp_path):
    def digest(**data):
        config = Config(data=dataclasses.replace(Config().data, **data), train=TrainConfig(epochs=5))
        name = "-".join(map(str, data.values())) or "plain"
        found = made(begun(tmp_path / name.replace("/", "_"), config))[0].text
        return found.split(" config ")[1][:12]

    assert digest() == digest(data_dir="elsewhere") != digest(unit=32.0)


def test_a_run_that_is_going_on_has_a_page_as_far_as_it_is(tmp_path):
    folder = begun(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "test')  # being written
    read, _ = made(folder)
    assert "not finished: as far as epoch 2 of 5" in read.text and "page.curves" in read.ids
    assert read.text.count("Not made. The command makes it:") == len(studies.STUDIES)


def test_figures_of_a_users_own_pictures_are_on_the_page_by_the_name_of_these(tmp_path):
    folder = finished(tmp_path / "run")
    for place, name in (("on-holiday", "evolution_conv1"), ("epoch-5/on-cats", "activations_conv1")):
        path = folder / "figures" / place / f"{name}.png"
        path.parent.mkdir()
        Image.new("RGB", (4, 4)).save(path)
    read, said = made(folder)
    assert len(said) == 1  # nothing is left out
    for alt in ("evolution_conv1, on-holiday", "activations_conv1, epoch 5, on-cats"):
        assert any(attributes.get("alt", "").endswith(f": {alt}") for tag, attributes in read.elements if tag == "img")


def test_a_run_of_before_that_kept_less_has_a_page_without_it(tmp_path):
    folder = finished(tmp_path / "run")
    (folder / "figures" / studies.LAYERS).unlink()
    for name, without in (
        ("evolution_conv1", "every_"),
        ("epoch-5/occlusion", "layer"),
        ("epoch-5/attribution", "pixels"),
    ):
        path = folder / "figures" / f"{name}.npz"
        with np.load(path) as arrays:
            kept = {key: arrays[key] for key in arrays if not key.startswith(without)}
        np.savez(path, **kept)
    read, said = made(folder)
    assert len(said) == 1 and "conv1/2" in read.ids and "born" not in read.text.lower()
    assert "No table of layers: python -m experiments.filter_evolution --config" in read.text


@pytest.mark.parametrize(
    "name",
    [
        *("evolution_conv1.npz", "filters_conv1.npz", "convergence.npz", "layers.json"),
        *(f"epoch-5/{of}.npz" for of in ("activations_conv1", "confusion", "attribution", "maximization", "occlusion")),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_file_that_is_not_as_its_study_writes_it_is_left_out_and_named(tmp_path, name, damage):
    folder = finished(tmp_path / "run")
    path = folder / "figures" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_text('[{"name": "conv1"}]')
        if path.suffix == ".npz":
            others = {"number_7": 3, "fc2-units": np.arange(2), "pixels": np.zeros((1, 2, 2, 3))}
            np.savez(path, maps=np.zeros(3), counts=np.zeros((2, 3)), class_names=["a"], **others)
    read, said = made(folder)
    assert f"{path.name} is left out" in read.text
    assert len(said) == 2
    assert "page.studies" in read.ids


def test_arrays_that_do_not_fit_one_another_are_left_out(tmp_path):
    folder = finished(tmp_path / "run")
    path = folder / "figures" / "evolution_conv1.npz"
    with np.load(path) as arrays:
        kept = dict(arrays)
    for change in ({"value": np.ones((5, 3))}, {"epochs": np.arange(7)}, {"patches": np.zeros((2, 3, 3, 3, 4))}):
        np.savez(path, **{**kept, **change})
        read, said = made(folder)
        assert "evolution_conv1.npz is left out" in read.text and len(said) == 2


def test_two_runs_of_different_networks_are_compared_in_what_they_share(tmp_path):
    other = Config(model=ModelConfig("lenet"), train=TrainConfig(epochs=5, keep_epochs=(1, 5)))
    a, b = finished(tmp_path / "x" / "run"), finished(tmp_path / "y" / "run", other, maps=(1, 2))
    (b / "figures" / "filters_conv1.npz").rename(b / "figures" / "filters_other.npz")
    (b / "figures" / "epoch-5" / "activations_conv1.npz").rename(b / "figures" / "epoch-5" / "activations_deep2.npz")
    read, _ = made(a, b)
    assert (a / "compared.html").exists() and not (a / "report.html").exists()
    assert "x/run" in read.text and "y/run" in read.text and '"lenet"' in read.text
    assert {"conv1/0", "conv1/1", "conv1/2", "deep2/2", "other/1"} <= set(read.ids)
    assert "../../y/run/figures/epoch-5/activations_deep2.npz" in read.links


def test_pictures_go_to_a_folder_beside_a_large_page_and_leave_it_with_a_smaller_one(tmp_path):
    folder = finished(tmp_path / "run")
    _, said = made(folder, megabytes=0.001)
    assert said[0].endswith("its text alone is more than --megabytes 0.001")
    names = {path.name for path in (folder / "report_images").iterdir()}
    assert len(names) > 8 and all(name.endswith(".png") for name in names)
    (folder / "report_images" / "stale.png").write_bytes(b"")
    made(folder, megabytes=0.001)
    assert {path.name for path in (folder / "report_images").iterdir()} == names
    made(folder)
    assert not (folder / "report_images").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ()}, "--run must be 1 to 6 folders of runs, got 0"),
        ({"run": ("a", "a")}, "--run must name each folder once, got a twice"),
        ({"out": "page.pdf"}, "--out must be the name of an .html file, got page.pdf"),
        ({"megabytes": 0.0}, "--megabytes must be a finite number > 0, got 0.0"),
        ({"megabytes": float("nan")}, "--megabytes must be a finite number > 0, got nan"),
    ],
)
def test_bad_options_are_refused(changes, message):
    from pathlib import Path

    paths = {name: Path(value) for name, value in changes.items() if name == "out"}
    paths |= {name: tuple(map(Path, value)) for name, value in changes.items() if name == "run"}
    with pytest.raises(InputError, match=f"^{message}$"):
        report.Options(**{**changes, **paths})


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="must be a run's folder, and .* does not exist"):
        made(tmp_path)
    folder = begun(tmp_path / "run")
    with pytest.raises(InputError, match="--out must be in a folder that exists, got"):
        made(folder, out=tmp_path / "none" / "a.html")
    (folder / "figures").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        made(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl", "figures"}


def test_a_folder_that_leads_elsewhere_is_not_written_into_and_the_old_page_stays(tmp_path):
    folder, out = finished(tmp_path / "run"), tmp_path / "out" / "page.html"
    (tmp_path / "elsewhere").mkdir()
    out.parent.mkdir()
    out.write_text("old")
    (out.parent / "page_images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="page_images must be a folder of its own, and is a link to"):
        made(folder, out=out, megabytes=0.001)
    assert out.read_text() == "old" and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a folder in which nobody can write, root neither")
def test_a_folder_that_cannot_be_written_ends_in_one_line(tmp_path):
    told = [sys.executable, "-m", "experiments.report", "--run", str(finished(tmp_path / "run"))]
    done = subprocess.run([*told, "--out", "/proc/page.html"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
