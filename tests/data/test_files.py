"""Names from elsewhere, a command line or a config.json, at every door of the room."""

import os
import socket

import numpy as np
import pytest

from cnnjax.config import DataConfig
from cnnjax.data import load
from cnnjax.data.files import open_regular, read_regular
from cnnjax.errors import InputError

NO_PATHS = ["\0", "a\0b", "\ud800", "x" * 5000, "~nosuchuser", "~nosuchuser/x", "/dev/null", "/dev/zero", "/dev/null/x"]


@pytest.mark.parametrize("text", NO_PATHS)
@pytest.mark.parametrize("field", ["folder", "npz", "manual_dir", "data_dir"])
def test_what_is_no_path_is_one_line(tmp_path, field, text):
    config = DataConfig(**{"name": "mnist", "data_dir": str(tmp_path), "manual_dir": str(tmp_path), field: text})
    with pytest.raises(InputError, match=rf"data\.{field}"):
        load(config)


def test_a_folder_of_images_is_read_without_a_place_to_keep_them(image_folder, caplog):
    images = {f"{name}/{index}.png": np.full((4, 4), index, np.uint8) for name in "ab" for index in range(2)}
    root = image_folder(images)
    for text in NO_PATHS:
        caplog.clear()
        assert len(load(DataConfig(folder=str(root), data_dir=text)).train) == 2
        assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0] and "data.data_dir" in caplog.messages[0]


def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "link").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (*(tmp_path / name for name in ("pipe", "folder", "socket", "none")), "/dev/zero", "/dev/null"):
            with pytest.raises(OSError, match="regular file|No such"):
                open_regular(path)
    assert read_regular(tmp_path / "link") == b"12"
    with pytest.raises(OSError, match="more than 1 bytes"):
        read_regular(tmp_path / "file", most=1)
