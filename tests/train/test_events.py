"""TensorBoard's events, read by their published layout: no code of the library that writes them."""

import dataclasses
import json
import shutil
import struct
import sys

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cnnjax import cli
from cnnjax.errors import InputError
from cnnjax.train import run as running
from experiments import train
from tests.train.small import CONFIG


def messages():
    """Event, as TensorFlow's event.proto and summary.proto number its fields."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="read.proto", package="read", syntax="proto3")
    for name, fields in {
        "Value": [("tag", 1, field.TYPE_STRING), ("simple_value", 2, field.TYPE_FLOAT)],
        "Summary": [("value", 1, "Value")],
        "SessionLog": [("status", 1, field.TYPE_INT32)],
        "Event": [
            ("wall_time", 1, field.TYPE_DOUBLE), ("step", 2, field.TYPE_INT64), ("file_version", 3, field.TYPE_STRING),
            ("summary", 5, "Summary"), ("session_log", 7, "SessionLog"),
        ],
    }.items():  # fmt: skip
        message = file.message_type.add(name=name)
        for called, number, kind in fields:
            of = {"type": kind} if isinstance(kind, int) else {"type": field.TYPE_MESSAGE, "type_name": f".read.{kind}"}
            label = field.LABEL_REPEATED if called == "value" else field.LABEL_OPTIONAL
            message.field.add(name=called, number=number, label=label, **of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("read.Event"))


EVENT = messages()
START = 1  # of a session: what was told of its step and of later ones is void


def masked_crc32c(data):
    """CRC-32C (Castagnoli), bit by bit, rotated and moved as in a TFRecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_checksum_is_the_published_one():
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        assert struct.unpack("<I", content[8:12]) == (masked_crc32c(content[:8]),)
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked_crc32c(data),)
        yield EVENT.FromString(data)
        content = content[16 + length :]


def shown(workdir):
    """What TensorBoard shows: by tag, the value of each epoch."""
    found = {}
    files = sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for number, event in enumerate(event for path in files for event in events(path)):
        assert number or event.file_version == "brain.Event:2"
        if event.session_log.status == START:
            found = {tag: {at: value for at, value in by.items() if at < event.step} for tag, by in found.items()}
        for value in event.summary.value:
            assert event.step not in found.setdefault(value.tag, {}), "told twice"
            found[value.tag][event.step] = value.simple_value
    return found


def agree(found, metrics):
    for line in metrics:
        for name, value in line.items():
            split, _, what = name.partition("_")
            assert name == "epoch" or found[f"{what}/{split}"][line["epoch"]] == np.float32(value)
    assert {tag for tag in found if not tag.startswith("throughput/")} == {
        f"{what}/{split}" for what in ("loss", "error", "error_top5") for split in ("train", "test")
    }


class Stop(Exception):
    pass


@pytest.mark.extra
@pytest.mark.parametrize("at_first", [True, False])
def test_tensorboard_shows_the_metrics_of_a_run_in_two_sittings(dataset, tmp_path, at_first):
    """And all of them where it is asked for in the second one only."""
    pytest.importorskip("tensorboardX")

    def stop(description, done, total):
        if done >= 30:
            raise Stop

    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, save_every_seconds=1e-9))
    with pytest.raises(Stop):
        running.run(config, dataset, tmp_path, stop, tensorboard=at_first)
    assert (tmp_path / "tensorboard").exists() == at_first
    finished = running.run(config, dataset, tmp_path, tensorboard=True)
    found = shown(tmp_path)
    agree(found, finished.metrics)
    speed = json.loads((tmp_path / "throughput.jsonl").read_text().splitlines()[-1])
    assert found["throughput/images_per_second"][2] == np.float32(speed["images_per_second"])


@pytest.mark.extra
def test_an_epoch_that_is_mended_leaves_the_later_ones_there(dataset, whole, tmp_path):
    pytest.importorskip("tensorboardX")
    shutil.copytree(whole[1], tmp_path / "run")
    running.run(CONFIG, dataset, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run" / "tensorboard").exists()  # a finished run is not trained again
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "epochs" / "1")
    running.run(CONFIG, dataset, tmp_path / "run", tensorboard=True)
    agree(shown(tmp_path / "run"), whole[0].metrics)


def test_without_the_library_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"^--log tensorboard needs tensorboardX: pip install '.\[tensorboard\]'$"):
        cli.parse(["--log", "tensorboard"], train.Options())
