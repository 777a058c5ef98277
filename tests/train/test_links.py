"""A run folder that comes from elsewhere, with links, pipes and sockets in it: refused by one line, nothing touched."""

import os
import shutil

import pytest

from cnnjax.config import Config
from cnnjax.errors import InputError
from cnnjax.train import run as running
from tests.test_atomic import NO_FILES, outside  # noqa: F401 - a fixture
from tests.train.small import CONFIG

PLACES = (
    *("lock", "config.json", "config.json.tmp", "metrics.jsonl", "metrics.jsonl.tmp", "figures", "figures/epoch-2"),
    *("throughput.jsonl", "throughput.jsonl.tmp", "tensorboard", "tensorboard/events.out.tfevents.1"),
    *("figures/a.png.tmp", "parts", "parts/occlusion", "checkpoints", "checkpoints/tmp", "checkpoints/latest"),
    *("checkpoints/damaged", "checkpoints/epochs", "checkpoints/epochs/1", "checkpoints/epochs/1/manifest.json"),
    *("checkpoints/epochs/1/state", "checkpoints/epochs/1/state/manifest.ocdbt", "checkpoints/latest/30", "unknown"),
)


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_neither_file_nor_folder_is_refused(dataset, whole, tmp_path, outside, kind):  # noqa: F811
    """By every door: a training, and the config that every study reads first."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[1], workdir)
    for place in PLACES:
        path, aside = workdir / place, tmp_path / "aside"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(aside)
        NO_FILES[kind](path, outside)
        before = sorted(workdir.rglob("*"))
        for door in (
            lambda: running.run(CONFIG, dataset, workdir),
            lambda: running.read_config(workdir / "config.json"),
        ):
            with pytest.raises(
                InputError, match="must be a file or a folder, and is a|config.json does not exist"
            ) as refused:
                door()
            assert str(refused.value).isprintable()
        assert sorted(workdir.rglob("*")) == before
        path.unlink()
        if aside.exists():
            aside.rename(path)


@pytest.mark.parametrize("made", [*NO_FILES.values(), os.link])
def test_a_lock_alone_in_a_folder_is_not_followed(dataset, tmp_path, outside, made):  # noqa: F811
    (tmp_path / "run").mkdir()
    if made is os.link:
        os.link(outside, tmp_path / "run" / "lock")
    else:
        made(tmp_path / "run" / "lock", outside)
    with (
        pytest.raises(InputError, match="lock must be a file"),
        running.claimed(tmp_path / "run", CONFIG, dataset, print),
    ):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_temporary_file_that_is_a_link_is_not_followed(dataset, tmp_path, outside):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.tmp").symlink_to(outside)
    with running.claimed(tmp_path / "run", CONFIG, dataset, print):
        assert running.read_config(tmp_path / "run" / "config.json") == CONFIG


@pytest.mark.parametrize("kind", ["dangling", "loop", "pipe", "device"])
def test_a_workdir_that_leads_nowhere_is_refused(dataset, tmp_path, outside, kind):  # noqa: F811
    NO_FILES[kind](tmp_path / "run", outside)
    with pytest.raises(InputError, match="--workdir must be"):
        running.run(CONFIG, dataset, tmp_path / "run")
    with pytest.raises(InputError, match="must be a run's folder"):
        running.read_config(tmp_path / "run" / "config.json")


def test_a_run_folder_may_be_named_by_a_link(dataset, whole, tmp_path):
    (tmp_path / "name").symlink_to(whole[1])
    assert running.run(CONFIG, dataset, tmp_path / "name").metrics == whole[0].metrics
    assert isinstance(running.read_config(tmp_path / "name" / "config.json"), Config)
