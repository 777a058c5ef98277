"""Nothing is written elsewhere than where its name says, and nothing is waited for."""

import os
import socket

import pytest

from cnnjax.atomic import append_text, check_tree, read_text, write_text
from cnnjax.errors import InputError
from cnnjax.train.lock import locked


def link(path, outside):
    path.symlink_to(outside)


def link_of_a_folder(path, outside):
    path.symlink_to(outside.parent)


def dangling(path, outside):
    path.symlink_to(outside.with_name("none"))


def loop(path, outside):
    path.symlink_to(path)


def pipe(path, outside):
    os.mkfifo(path)


def bound(path, outside):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's own name must be short
        os.close(here)


def device(path, outside):
    path.symlink_to("/dev/zero")  # a device itself is root's to make


NO_FILES = {made.__name__: made for made in (link, link_of_a_folder, dangling, loop, pipe, bound, device)}


@pytest.fixture
def outside(tmp_path):
    """A file that must stay as it is, in a folder in which nothing may be made."""
    path = tmp_path / "outside" / "file"
    path.parent.mkdir()
    path.write_text("kept")
    yield path
    assert path.read_text() == "kept" and [one.name for one in path.parent.iterdir()] == ["file"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture(params=NO_FILES)
def no_file(request, folder, outside):
    """A name that is none of a file."""
    NO_FILES[request.param](folder / "lock", outside)
    return folder / "lock"


def test_what_is_no_file_is_not_read_added_to_or_locked(no_file):
    for act in (
        lambda: read_text(no_file),
        lambda: append_text(no_file, "x"),
        lambda: locked(no_file.parent).__enter__(),
    ):
        with pytest.raises(InputError, match=r"lock must be a file or a folder, and is a (link|pipe|socket)"):
            act()


def test_a_folder_is_looked_through_to_its_depth(no_file, tmp_path):
    no_file.with_name("file").write_text("")
    with pytest.raises(InputError, match="lock must be a file or a folder, and is a"):
        check_tree(tmp_path)
    no_file.unlink()
    check_tree(no_file.parent)


def test_a_folder_without_end_is_refused(folder):
    deep = folder / "/".join(40 * "a")
    deep.mkdir(parents=True)
    with pytest.raises(InputError, match="must be at most 32 folders deep"):
        check_tree(folder)


def test_a_folder_may_be_named_by_a_link(folder, tmp_path):
    (tmp_path / "name").symlink_to(folder)
    (folder / "inner").mkdir()
    check_tree(tmp_path / "name")


def test_a_file_under_two_names_is_neither_added_to_nor_locked(folder, outside):
    for name in ("lock", "metrics.jsonl"):
        os.link(outside, folder / name)
    with pytest.raises(InputError, match="metrics.jsonl must be a file under one name, and has 3"):
        append_text(folder / "metrics.jsonl", "x")
    with pytest.raises(InputError, match="lock must be a file under one name"), locked(folder):
        pass
    write_text(folder / "lock", "new")  # takes the name, not what is behind it
    assert (folder / "lock").read_text() == "new"


@pytest.mark.parametrize("made", [link, dangling, loop, pipe, os.link])
def test_a_temporary_file_is_new(folder, outside, made):
    if made is os.link:
        os.link(outside, folder / "a.tmp")
    else:
        made(folder / "a.tmp", outside)
    write_text(folder / "a", "text")
    assert (folder / "a").read_text() == "text" and [path.name for path in folder.iterdir()] == ["a"]


def test_a_name_that_is_a_link_is_replaced_and_not_followed(folder, outside):
    link(folder / "a", outside)
    write_text(folder / "a", "text")
    assert not (folder / "a").is_symlink()
