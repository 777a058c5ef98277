"""Preparing the sets of `published.FILES` from the published files, at hand or from the network, without TensorFlow."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnjax.data import prepared
from cnnjax.data.download import download
from cnnjax.data.files import file_sha256, unfinished_folder
from cnnjax.data.prepared import SetName
from cnnjax.data.published import FILES, Builder, make_builder
from cnnjax.errors import InputError
from cnnjax.paths import expanded


def prepare(
    name: SetName,
    data_dir: Path,
    manual_dir: str | None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    url_infos: dict[str, Any] | None = None,
) -> Path:
    """Prepares a set of `published.FILES` under `data_dir`; returns its folder, which appears whole or not at all.

    Args:
        manual_dir: holds the published files; None: they are downloaded.
        url_infos: addresses with size and checksum of the published files; None: those that the library knows.

    Raises:
        InputError: files are missing, not as they were published, or cannot be downloaded; `data_dir` cannot be
            written. Nothing is left behind then.
    """
    try:
        with unfinished_folder(data_dir / "cnnjax_cache" / name.set) as unfinished:
            builder = make_builder(name.set, unfinished, progress=progress, url_infos=url_infos)
            version = str(builder.version)
            if name.config is not None or name.version not in (None, version):
                raise InputError(
                    f"data.name {name.set!r} is prepared here as {name.set}:{version} only, got"
                    f" {name.set}{f'/{name.config}' if name.config else ''}:{name.version or version}"
                )
            final = data_dir / name.set / version
            if final.is_dir() and any(final.iterdir()):
                raise InputError(f"data.data_dir: {str(final)!r} has files but is no prepared set: move it away")
            builder.files = _files(builder, unfinished, data_dir, manual_dir, progress)
            _run(builder)
            prepared.seal(unfinished / name.set / version)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(unfinished / name.set / version, final)
            except OSError:
                if prepared.find(name, data_dir) is None:  # else another process was quicker
                    raise
            return final
    except OSError as error:
        raise InputError(
            f"data.data_dir must be a folder that can be written, got {str(data_dir)!r}: {error}"
        ) from error


def _files(
    builder: Builder,
    unfinished: Path,
    data_dir: Path,
    manual_dir: str | None,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Path]:
    """Where the published files lie, each with the SHA-256 that the library knows."""
    infos = {url.rsplit("/", 1)[1]: (url, info) for url, info in builder.url_infos.items()}
    if manual_dir is None:
        files = {name: unfinished / name for name in FILES[builder.name]}
        for name, path in files.items():
            url, info = infos[name]
            try:
                download(url, path, size=info.size, sha256=info.checksum, progress=progress)
            except InputError as error:
                raise InputError(
                    f"data.name {builder.name} is not prepared under {data_dir} and {error}: put"
                    f" {', '.join(files)} into a folder and name it by --data.manual-dir"
                ) from error
        return files
    try:
        folder = expanded(manual_dir)
        if not folder.is_dir():
            raise InputError(f"data.manual_dir must be a folder, got {manual_dir!r}, which is none")
        files = {name: folder / name for name in FILES[builder.name]}
        missing = [name for name, path in files.items() if not path.exists()]
    except OSError as error:
        raise InputError(f"data.manual_dir must be a folder, got {manual_dir!r}: {error}") from error
    if missing:
        raise InputError(
            f"data.manual_dir must hold the published files of {builder.name}: {manual_dir!r} lacks"
            f" {', '.join(missing)}"
        )
    for name, path in files.items():
        try:
            found = file_sha256(path)
        except OSError as error:
            raise InputError(f"data.manual_dir must hold files that can be read: {error}") from error
        if found != infos[name][1].checksum:
            raise InputError(
                f"data.name {builder.name}: wrong checksum: {str(path)!r} is not the file that was published"
            )
    return files


def _run(builder: Builder) -> None:
    """Lets the library write records and description; the progress bars of its own are off."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    before = tqdm_utils._active
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(
            f"data.name {builder.name} cannot be prepared: {' '.join(str(error).split())[:200]}"
        ) from error
    finally:
        tfds.display_progress_bar(before)
