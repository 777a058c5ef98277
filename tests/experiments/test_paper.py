"""All studies of one run, by one command: what it lists, and what it refuses before anything is written."""

import dataclasses
import importlib
import re
import shlex
import shutil

import numpy as np
import pytest

from cnnjax import cli
from cnnjax.config import Config, DataConfig, ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import paper, transfer
from experiments.looking import Images, Place, RunOptions, open_run
from experiments.paper import Options
from tests.experiments.test_filter_evolution import Quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "run"
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    run.run(config, load(config.data), folder)
    return folder


@pytest.mark.long
def test_the_page_lists_every_figure_that_was_made(folder):
    paper.main(Options(run=folder, only=("activations",)), Quiet())
    page = (folder / "figures" / "paper.md").read_text()
    made = sorted(str(path.relative_to(folder / "figures")) for path in (folder / "figures").rglob("*.png"))
    assert made == [f"epoch-{epoch}/activations_{layer}.png" for epoch in (0, 1) for layer in ("conv1", "conv2")]
    assert re.findall(r"]\((.*?)\)", page) == made[2:]  # of the last epoch; the page of the run has all
    assert f"experiments.activations --run {folder}" in page


def test_an_epoch_that_was_not_kept_is_refused_before_the_first_study(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=r"--epoch must be one that .* has kept \(0, 1\), got -1"):
        paper.main(Options(run=folder, epoch=-1), Quiet())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A run on 12 training and 3 test images of two classes, in few.npz beside it."""
    base = tmp_path_factory.mktemp("few")
    images = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 1), np.uint8)
    labels = np.arange(12) % 2
    np.savez(base / "few.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
    model = ModelConfig("lenet", widths=(2,), filters=(3,), strides=(1,), paddings=(1,), pools=(2,), dense=(4,))
    train = TrainConfig(epochs=1, batch_size=4, keep_epochs=(1,))
    config = Config(data=DataConfig(npz=str(base / "few.npz")), model=model, train=train)
    run.run(config, load(config.data), base / "run")
    return base


def test_studies_take_as_many_images_as_there_are_and_one_that_nothing_suits_is_left_out(few, monkeypatch):
    said, progress = [], Quiet()
    progress.say = said.append

    def too_many(options, progress, trained):
        return paper.probes.main(paper.probes.Options(run=options.run, per_class=(7,)), progress)

    monkeypatch.setitem(paper.STUDIES, "occlusion", too_many)
    folder = few / "run"
    only = ("activations", "correspondence", "classify", "probes", "occlusion")
    paper.main(Options(run=folder, only=only), progress)
    figures = folder / "figures" / "epoch-1"
    with np.load(figures / "activations_conv1.npz") as of_three, np.load(figures / "probes.npz") as of_six:
        assert of_three["value"].shape == (2, 3) and of_six["per_class"].tolist() == [6]
    page = (folder / "figures" / "paper.md").read_text()
    names = ["activations_conv1", "correspondence", "classify", "confusion", "probes"]
    assert re.findall(r"!\[(\w+)\]\(epoch-1/\w+.png\)", page) == names
    assert "left out: --per-class must be at most the training images of each class" in page
    paper.main(Options(run=folder, only=only), progress)  # drawn again from what is kept, whatever the clock says
    assert (folder / "figures" / "paper.md").read_text() == page
    with pytest.raises(InputError, match="--only must be studies that suit the run, and none does; occlusion is left"):
        paper.main(Options(run=folder, only=("occlusion",)), progress)


@pytest.mark.parametrize("name", paper.STUDIES)
def test_the_command_of_each_study_is_read_by_its_script(few, name):
    trained = open_run(RunOptions(run=few / "run"), Quiet())
    of_run = RunOptions(run=few / "a b", data=Images(npz="c d.npz"))
    of_code = dataclasses.replace(of_run, network="net.py:net")
    own = RunOptions(network="net.py:net", weights=few / "w.npz", workdir=few / "x y", data=Images(image_size=8))
    words = shlex.split(paper.command(name, of_run, trained))
    if name == "evolution":
        shutil.copytree(few / "run", few / "a b", dirs_exist_ok=True)
        told = cli.parse(words[3:], paper.filter_evolution.Options())
        assert words[:3] == ["python", "-m", "experiments.filter_evolution"] and told.workdir == few / "a b"
        assert told.config == dataclasses.replace(trained.config, data=of_run.data.of(trained.config.data))
        return
    module = importlib.import_module(words[2])
    assert words[:3] == ["python", "-m", f"experiments.{name}"]
    for options, opened in ((of_run, trained), (of_code, trained), (own, trained._replace(is_own=True))):
        told = cli.parse_options(shlex.split(paper.command(name, options, opened))[3:], module.Options())
        asked = options if opened.is_own else dataclasses.replace(options, epoch=trained.epoch)
        assert {field: getattr(told, field) for field in vars(asked)} == vars(asked)


def test_data_that_moved_are_known_by_their_digest(few, tmp_path):
    shutil.copytree(few, tmp_path / "there")
    folder, elsewhere = tmp_path / "there" / "run", tmp_path / "moved.npz"
    config = run.read_config(folder / "config.json")
    (few / "few.npz").rename(elsewhere)
    try:
        with pytest.raises(InputError, match=r"does not exist \(--data.npz and --data.folder say where"):
            open_run(RunOptions(run=folder), Quiet())
        trained = open_run(RunOptions(run=folder, data=Place(npz=str(elsewhere))), Quiet())
        assert len(trained.dataset.train) == 12 and trained.config == config
        with pytest.raises(InputError, match="--run-data.npz and --run-data.folder say where"):
            transfer.main(transfer.Options(run=folder), Quiet())
        moved = dataclasses.replace(config, data=Place(npz=str(elsewhere)).of(config.data))
        assert run.run(moved, load(moved.data), folder).metrics[-1]["epoch"] == 1
        with np.load(elsewhere) as arrays:
            np.savez(tmp_path / "other.npz", **{**arrays, "x_test": arrays["x_test"] ^ 1})
        with pytest.raises(InputError, match="holds a run on other data"):
            open_run(RunOptions(run=folder, data=Place(npz=str(tmp_path / "other.npz"))), Quiet())
    finally:
        elsewhere.rename(few / "few.npz")


def test_a_folder_takes_the_place_of_a_file_and_the_rest_stays():
    config = DataConfig(npz="x.npz", image_size=8, channels=1, data_dir="a")
    assert Place().of(config) == config
    assert Place(folder="f", data_dir="b").of(config) == DataConfig(folder="f", image_size=8, channels=1, data_dir="b")


@pytest.mark.parametrize(("only", "got"), [(("evolutoin",), "'evolutoin'"), ((), "'none'")])
def test_studies_that_do_not_exist_are_refused(only, got):
    with pytest.raises(InputError, match=f"--only must be among evolution, .*, got {got}"):
        Options(only=only)
