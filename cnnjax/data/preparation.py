"""Preparing a set of TensorFlow Datasets from published files or the network, with one readable line when it cannot be.

No attempt hangs: a server that does not answer is noticed before the library's downloader, which has no limit, begins.
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from cnnjax.config import DataConfig
from cnnjax.data import published
from cnnjax.data.published import Builder
from cnnjax.errors import InputError

_MAX_RETRIES = 2  # of each download; the library's own 10 take minutes to say that there is no network
_TIMEOUT = 10.0  # seconds until a server that does not answer counts as unreachable


def is_prepared(builder: Builder) -> bool:
    """Whether the set stands under its builder's data_dir, in whatever file format."""
    # The library writes under another name and renames, so a folder that is there is whole.
    return (Path(builder.data_path) / "dataset_info.json").is_file()


def prepare(builder: Builder, config: DataConfig) -> None:
    """Prepares a set under its builder's data_dir from `config.manual_dir` or the network; prints nothing.

    Raises:
        InputError: if that cannot be done; no part of a set is left behind that would count as prepared.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    _require_source(builder, config)
    tfds.disable_progress_bar()
    own = builder.name in published.FILES
    download_config = tfds.download.DownloadConfig(
        manual_dir=Path(config.manual_dir).expanduser() if config.manual_dir else None,
        try_download_gcs=False,
        force_checksums_validation=own,
    )
    # Not around our own builders: progress bars that the caller draws on stdout would vanish.
    silence = contextlib.nullcontext() if own else contextlib.redirect_stdout(io.StringIO())
    try:
        with silence, _bounded_retries():
            builder.download_and_prepare(file_format="array_record", download_config=download_config)
    except InputError:
        raise
    except NonMatchingChecksumError as error:
        wrong = _wrong_file(builder, config.manual_dir)
        what = f"{str(wrong)!r} is not the file that was published" if wrong else one_line(error)
        raise InputError(f"data.name {builder.name}: wrong checksum: {what}") from error
    except Exception as error:  # the code of more than two hundred builders
        if is_prepared(builder):  # another process was quicker, so the final renaming failed
            return
        raise InputError(_refusal(builder, config, error)) from error


def _require_source(builder: Builder, config: DataConfig) -> None:
    """Raises InputError at once if files are missing in `config.manual_dir`, or without it if there is no network."""
    files = published.FILES.get(builder.name, ())
    if config.manual_dir is not None:
        folder = Path(config.manual_dir).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.manual_dir must be a folder, got {config.manual_dir!r}, which is none")
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise InputError(
                f"data.manual_dir must hold the published files of {builder.name}: {config.manual_dir!r} lacks"
                f" {', '.join(missing)}"
            )
        return
    unreachable = _unreachable(url for url in builder.url_infos or {} if not _is_downloaded(builder, url))
    if unreachable:
        remedy = f"put {', '.join(files) or 'its published files'} into a folder and name it by --data.manual-dir"
        raise InputError(
            f"data.name {builder.name} is not prepared under {config.data_dir} and {unreachable} cannot be reached:"
            f" {remedy}"
        )


def _is_downloaded(builder: Builder, url: str) -> bool:
    """Whether an earlier attempt got this file and left it in the library's own folder of downloads."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    name = get_dl_fname(url, builder.url_infos[url].checksum)
    return any(Path(builder.data_dir_root, "downloads").glob(f"**/{name}"))


def _unreachable(urls: Iterable[str]) -> str | None:
    """The first address, if its server does not answer; the library itself would wait without a limit."""
    import requests

    for url in urls:
        if not url.startswith("http"):
            continue
        try:
            requests.head(url, timeout=_TIMEOUT)
        except requests.RequestException:
            return url
        return None
    return None


@contextlib.contextmanager
def _bounded_retries() -> Iterator[None]:
    """Few retries, which are not logged one by one."""
    from tensorflow_datasets.core.download import downloader

    logger = logging.getLogger("urllib3.connectionpool")
    before, level = downloader.MAX_RETRIES, logger.level
    downloader.MAX_RETRIES = _MAX_RETRIES
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before
        logger.setLevel(level)


def _wrong_file(builder: Builder, manual_dir: str | None) -> Path | None:
    for info in (builder.url_infos or {}).values():
        path = Path(manual_dir).expanduser() / info.filename if manual_dir and info.filename else None
        if path and path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != info.checksum:
                    return path
    return None


def _refusal(builder: Builder, config: DataConfig, error: BaseException) -> str:
    import requests

    start = f"data.name {builder.name} is not prepared under {config.data_dir} and"
    for cause in _causes(error):
        if isinstance(cause, ModuleNotFoundError):
            package = (cause.name or "tensorflow").split(".")[0]
            return f"{start} preparing it needs {package}: pip install {package}"
        if isinstance(cause, requests.RequestException):
            return f"{start} its files cannot be downloaded: {one_line(cause)}"
    return f"{start} cannot be prepared: {one_line(error)}"


def missing_package(error: BaseException) -> str | None:
    """The package whose absence is behind this error, however deep."""
    names = (cause.name for cause in _causes(error) if isinstance(cause, ModuleNotFoundError) and cause.name)
    return next((name.split(".")[0] for name in names), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(error: BaseException) -> str:
    """The error's text without line breaks, cut where it becomes a lecture."""
    return " ".join(str(error).split())[:200] or type(error).__name__
