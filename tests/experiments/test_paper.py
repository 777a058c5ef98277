"""All studies of one run, by one command: what it lists, and what it refuses before anything is written."""

import dataclasses

import pytest

from cnnjax import cli
from cnnjax.config import TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.train import run
from experiments import paper
from experiments.paper import Options
from tests.experiments.test_filter_evolution import Quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "run"
    config = dataclasses.replace(cli.load_config("digits"), train=TrainConfig(epochs=1, keep_epochs=(1,)))
    run.run(config, load(config.data), folder)
    return folder


def test_the_page_lists_every_figure_that_was_made(folder):
    paper.main(Options(run=folder, only=("activations",)), Quiet())
    page = (folder / "figures" / "paper.md").read_text()
    made = sorted(path.relative_to(folder / "figures") for path in (folder / "figures").rglob("*.png"))
    assert [path.name for path in made] == ["activations_conv1.png", "activations_conv2.png"]
    assert all(f"]({path})" in page for path in made) and f"experiments.activations --run {folder}" in page


def test_an_epoch_that_was_not_kept_is_refused_before_the_first_study(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=r"--epoch must be one that .* has kept \(0, 1\), got -1"):
        paper.main(Options(run=folder, epoch=-1), Quiet())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(("only", "got"), [(("evolutoin",), "'evolutoin'"), ((), "'none'")])
def test_studies_that_do_not_exist_are_refused(only, got):
    with pytest.raises(InputError, match=f"--only must be among evolution, .*, got {got}"):
        Options(only=only)
