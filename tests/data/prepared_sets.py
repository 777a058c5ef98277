"""A set "own_set" that no catalogue knows, prepared by TensorFlow Datasets as array_record."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(seed: int, height: int, width: int, mode: str = "RGB") -> bytes:
    few = Image.fromarray(np.random.RandomState(seed).randint(0, 256, (5, 6, 3), np.uint8)).convert(mode)
    few.resize((width, height), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def prepare_own(
    data_dir: Path,
    images: Mapping[str, Sequence[Any]],
    features: dict[str, Any] | None = None,
    generate: Callable[[int], dict[str, Any]] | None = None,
    shards: int | None = None,
) -> None:
    """`images` by split; `generate` makes an example of an index, else it has these pixels, and classes alternate."""

    with registered.skip_registration():

        class OwnSet(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            name = "own_set"
            pkg_dir_path = None

            def _info(self):
                default = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["even", "odd"])}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features or default))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(part) for split, part in images.items()}

            def _generate_examples(self, part):
                for index, pixels in enumerate(part):
                    yield index, generate(index) if generate else {"image": png(pixels), "label": index % 2}

        builder = OwnSet(data_dir=str(data_dir))
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards),
    )


def rewrite(path: Path, change: Callable[[list[Example]], list[Example]]) -> None:
    """Replaces the records of a shard."""
    reader = ArrayRecordReader(str(path))
    examples = [Example.FromString(content) for content in reader.read_all()]
    reader.close()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in change(examples):
        writer.write(example.SerializeToString())
    writer.close()
