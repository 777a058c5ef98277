"""A disk that is full, a folder that cannot be written or goes away: one line, and nothing that was kept is lost."""

import contextlib
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

from tests.faults import runs
from tests.faults.counts import count

LONG = pytest.mark.faults
FIGURES = ("experiments.filter_evolution",)


def no_file_beyond(size, workdir, script=runs.SCRIPT):
    """The run, in which a write beyond this many bytes of a file fails as on a full disk."""
    return runs.end(runs.begin(workdir, script=("tests.faults.limited", "FSIZE", str(size), *script)))


def kept(workdir):
    return runs.digests(workdir / "checkpoints" / "epochs")


@pytest.mark.parametrize("number", [pytest.param(runs.times(16), marks=LONG)])
def test_no_room_for_a_file(reference, new, number):
    largest = max(path.stat().st_size for path in runs.files(reference.workdir))
    sizes = np.geomspace(0.5 * largest, 200, number).astype(int).tolist()  # checkpoints first, at last no config

    def chain(sizes):
        workdir = new()
        for size in sizes:
            before = kept(workdir)
            said = runs.one_line(no_file_beyond(size, workdir))
            assert str(workdir) in said
            assert before.items() <= kept(workdir).items()
        runs.finish(workdir)
        runs.same_end(workdir, reference)

    runs.two_at_once(chain, sizes)
    count("no room for a file (a limit on its size)", "refused", number)


@pytest.fixture
def small_disk(new):
    """`make(kilobytes)`: a folder on a disk of its own, where the system lets us mount one."""
    with contextlib.ExitStack() as stack:

        def make(kilobytes):
            folder = new()
            folder.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
            if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
                pytest.skip("no disk can be mounted here")
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield make


@LONG
@pytest.mark.parametrize("kilobytes", [16, 60, 100, 140])
def test_a_full_disk(reference, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    workdir = disk / "run"
    said = runs.one_line(runs.end(runs.begin(workdir)))
    assert str(workdir) in said and "No space left on device" in said
    before = kept(workdir) if workdir.exists() else {}
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    runs.finish(workdir)
    runs.same_end(workdir, reference)
    assert before.items() <= kept(workdir).items()
    count("a full disk", "refused")
    count("a full disk, then room on it", "mended")


@contextlib.contextmanager
def by_mode(workdir):
    places = [workdir, *workdir.rglob("*")]
    for path in places:
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield
    for path in places:
        path.chmod(0o700 if path.is_dir() else 0o600)


@contextlib.contextmanager
def by_mount(workdir):
    subprocess.run(["mount", "-o", "remount,ro", str(workdir.parent)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(workdir.parent)], check=True)


@LONG
def test_a_folder_that_cannot_be_written(reference, new, request):
    """By its mode; root may write anyway, and gets a disk that is read-only."""
    root = os.geteuid() == 0
    workdir = request.getfixturevalue("small_disk")(20_000) / "run" if root else new()
    shutil.copytree(reference.workdir, workdir)
    shutil.rmtree(workdir / "checkpoints" / "epochs" / "3")
    before = runs.digests(workdir)
    with by_mount(workdir) if root else by_mode(workdir):
        assert str(workdir) in runs.one_line(runs.end(runs.begin(workdir)))
    assert runs.digests(workdir) == before
    runs.finish(workdir)
    runs.same_end(workdir, reference)
    count("a folder that cannot be written", "refused")


@LONG
def test_a_folder_that_is_removed_while_running(reference, new):
    """Between two saves, in the middle of one, or while the metrics are written: as it happens."""
    generator = np.random.default_rng(runs.SEED)
    workdir = new()
    elsewhere = workdir.with_name("elsewhere")
    for _ in range(6):
        process = runs.begin(workdir)
        runs.wait_for((workdir / "checkpoints" / "epochs" / "0").exists, process)
        time.sleep(generator.uniform(0, 0.2))
        workdir.rename(elsewhere)
        said = runs.one_line(runs.end(process))
        assert f"{workdir} must stay where it is, and was removed while training" in said
        assert not workdir.exists()
        elsewhere.rename(workdir)
        shutil.rmtree(workdir / "checkpoints" / "epochs")
        shutil.rmtree(workdir / "checkpoints" / "latest")
    runs.finish(workdir)
    runs.same_end(workdir, reference)
    count("a run folder removed while running", "refused", 6)


@LONG
def test_no_room_for_figures(reference, new):
    whole = new()
    runs.finish(whole, script=FIGURES)
    drawn = runs.Reference(whole, runs.everything(whole))
    workdir = new()
    shutil.copytree(reference.workdir, workdir)
    before = runs.digests(workdir)
    for size in (5_000, 20_000, 50_000):
        said = runs.one_line(no_file_beyond(size, workdir, FIGURES))
        assert f"{workdir}/figures/" in said
        assert before.items() <= runs.digests(workdir).items()
        assert not list(workdir.rglob("*.tmp"))
        count("no room for a figure", "refused")
    runs.finish(workdir, script=FIGURES)
    runs.same_end(workdir, drawn)
