"""Checkpoints of a run: whole or not there, and never other values than those that were saved.

`checkpoints/epochs/N` is the state at the end of epoch N, kept for ever; `checkpoints/latest/S` the newest one, by
step. Each is a folder:

    state/           the arrays, written by Orbax
    metrics.jsonl    the run's metrics up to there; config.json, a copy of the run's
    manifest.json    number and kind, the SHA-256 of every array and of every file, and of itself

It is written in `checkpoints/tmp`, brought to the disk and renamed, by one thread while the training goes on. Orbax
returns wrong values after a flipped bit without a word, so every digest is compared when a checkpoint is read. What
is damaged is moved to `checkpoints/damaged`, never deleted; so is what belongs to another run, epoch or step.
"""

import concurrent.futures
import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import cnnjax
from cnnjax.atomic import read_text, sync, sync_tree
from cnnjax.errors import InputError
from cnnjax.train.interruption import held

FORMAT = 1
KINDS = ("epochs", "latest")
COMPARED_FIRST = 2**23  # bytes of arrays, up to which files are compared sooner than Orbax has begun to read them
SILENCE = 0.5  # seconds after which no write beside a failed one is thought to go on


class Damaged(Exception):
    """A checkpoint that is not as it was written, or is none of this run; the message names the file and the fault."""


class Kept(NamedTuple):
    """What one checkpoint holds."""

    state: Any
    texts: dict[str, str]  # files of the run as they were, by name


# (kind, number, what the checkpoint of that name holds) -> why it cannot be that one of the run's, or None. The state
# is None where only the files have been read.
Misfit = Callable[[str, int, Kept], str | None]


def of_any_run(kind: str, number: int, kept: Kept) -> None:
    """The `Misfit` that takes every checkpoint."""


def of_texts(texts: Mapping[str, str]) -> Misfit:
    """The `Misfit` that takes the checkpoints that hold these files, which say whose they are, by name."""

    def misfit(kind: str, number: int, kept: Kept) -> str | None:
        others = (name for name, text in texts.items() if kept.texts.get(name) != text)
        return next((f"belongs to another training, by its {name}" for name in others), None)

    return misfit


def write(folder: Path, temporary: Path, state: Any, texts: Mapping[str, str], kind: str) -> None:
    """Writes a checkpoint at `temporary` and, when all of it is on the disk, renames it to `folder`.

    Args:
        state: a pytree of NumPy arrays.
        texts: small files that go with it, by name.
        kind: one of `KINDS`; `folder` may be a path through a descriptor, which does not tell it.
    """
    import orbax.checkpoint as ocp

    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with _said_once(), contextlib.closing(_checkpointer()) as checkpointer:
        checkpointer.save((temporary / "state").absolute(), args=ocp.args.StandardSave(state))  # pyright: ignore[reportCallIssue]
    for name, text in texts.items():
        (temporary / name).write_text(text)
    manifest = {
        "format": FORMAT,
        "cnnjax": cnnjax.__version__,
        "kind": kind,
        "number": int(folder.name),
        "arrays": {name: _describe(leaf) | {"sha256": _array_digest(leaf)} for name, leaf in _leaves(state).items()},
        "files": {name: _file_digest(temporary / name) for name in _files(temporary)},
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest | {"sha256": _json_digest(manifest)}, indent=1) + "\n")
    sync_tree(temporary)
    temporary.rename(folder)
    sync(folder.parent)


def _checkpointer() -> Any:
    """Orbax's, of this process alone: among several it would else wait for the others, which write nothing."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    alone = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Without the log entries and tracebacks that Orbax and its tasks print of a failure, which is raised anyway."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("absl", "asyncio"))}
    hook = sys.unraisablehook
    complained = time.monotonic()

    def quietly(problem: Any) -> None:
        nonlocal complained
        if "Event loop is closed" in str(problem.exc_value):
            complained = time.monotonic()
        else:
            hook(problem)

    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = quietly
    try:
        yield
    except BaseException as error:
        # What is left of the other tasks complains when it is collected: now, and not any time later.
        failed: BaseException | None = error
        while failed is not None:
            traceback.clear_frames(failed.__traceback__)
            failed = failed.__cause__ or failed.__context__
        gc.collect()
        # The writes that were begun beside the failed one go on in threads of their own, and complain as they end.
        complained = time.monotonic()
        while time.monotonic() < complained + SILENCE:
            time.sleep(SILENCE / 10)
        raise
    finally:
        sys.unraisablehook = hook
        for logger, level in levels.items():
            logger.setLevel(level)


def verify(folder: Path, misfit: Misfit = of_any_run) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest of a checkpoint and the texts in it, after every file has been compared with the manifest.

    Raises:
        Damaged: a file is missing or is not the one that was written, or the checkpoint is none of this run.
        InputError: it is of a format that this version cannot read.
    """
    manifest = _manifest(folder)
    _compare_files(folder, manifest["files"])
    return manifest, _fitting_texts(folder, manifest, misfit)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, if it is as it was written and of this folder; raises as `verify`."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(read_text(path))
        given = manifest.pop("sha256")
        # A manifest of another format is checked by the rule that all formats share.
        whole = given == _json_digest(manifest)
        kind, number, version = manifest["kind"], manifest["number"], manifest["format"]
    except FileNotFoundError:
        if (folder / "_CHECKPOINT_METADATA").exists():
            raise InputError(
                f"{folder} is from a cnnjax before 0.2, which kept no digests, so it cannot be trusted; "
                "train again in a new folder, or look into it with that version"
            ) from None
        raise Damaged(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} cannot be read ({type(error).__name__})") from None
    if not whole:
        raise Damaged(f"{path} is not as it was written")
    if version != FORMAT:
        by = "".join(character for character in str(manifest.get("cnnjax")) if character.isprintable())
        raise InputError(
            f"{folder} is of format {version!r}, written by cnnjax {by}; this is cnnjax "
            f"{cnnjax.__version__}, which reads format {FORMAT}: use that version"
        )
    if (kind, str(number)) != (folder.parent.name, folder.name):
        raise Damaged(f"{folder} holds the checkpoint {kind!r} {number!r}")
    if not _is_well_formed(manifest):
        raise Damaged(f"{path} is no manifest of a checkpoint")
    return manifest


def _compare_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raises Damaged, naming the first file that is not there or has another digest."""
    there = {name: folder / name for name in _files(folder)}  # so that no name leads out of the folder
    for name, digest in _in_parallel(_digest_or_none, {name: there.get(name) for name in digests}).items():
        if digest is None:
            raise Damaged(f"{folder / name} is missing or cannot be read")
        if digest != digests[name]:
            raise Damaged(f"{folder / name} is not as it was written")


def _fitting_texts(folder: Path, manifest: Mapping[str, Any], misfit: Misfit) -> dict[str, str]:
    """The texts of a checkpoint, by name; raises Damaged where by them it is none of the run."""
    try:
        texts = {name: read_text(folder / name) for name in manifest["files"] if "/" not in name}
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder} holds a text that cannot be read ({type(error).__name__})") from None
    _check_fits(folder, misfit, Kept(None, texts))
    return texts


def _check_fits(folder: Path, misfit: Misfit, kept: Kept) -> None:
    if (why := misfit(folder.parent.name, int(folder.name), kept)) is not None:
        raise Damaged(f"{folder} {why}")


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Whether the fields of a manifest have the types that `write` gives them."""
    files, arrays = manifest.get("files"), manifest.get("arrays")
    return (
        isinstance(files, dict)
        and all(isinstance(digest, str) for digest in files.values())
        and isinstance(arrays, dict)
        and all(isinstance(one, dict) and one.keys() == {"shape", "dtype", "sha256"} for one in arrays.values())
    )


def read(folder: Path, like: Any, misfit: Misfit = of_any_run) -> Kept:
    """What a checkpoint holds, after every file and every array have been compared with their digests.

    Args:
        like: a pytree of arrays, or of their shapes and types, as the state's.

    Raises:
        Damaged, InputError: as `verify`, and InputError if the state has other arrays than `like`.
    """
    import orbax.checkpoint as ocp

    manifest = _manifest(folder)
    _compare_files(folder, {name: digest for name, digest in manifest["files"].items() if "/" not in name})
    texts = _fitting_texts(folder, manifest, misfit)
    wanted = {name: _describe(leaf) for name, leaf in _leaves(like).items()}
    found = {name: {"shape": one["shape"], "dtype": one["dtype"]} for name, one in manifest["arrays"].items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{folder} must hold the state of this run, and {name} is {_said(found.get(name))} there and "
                f"{_said(wanted.get(name))} here"
            )
    # On the device at once: a copy afterwards would take half as long as all the reading. Of several devices none is
    # named, since an array that was put on one is refused by a program for all.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if jax.device_count() == 1 else None
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like)
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        compared = beside.submit(_compare_files, folder, manifest["files"])
        if sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract)) < COMPARED_FIRST:
            compared.result()
        state = failed = None
        try:
            # Of an interruption, too, Orbax makes an Exception.
            with held(), _said_once(), contextlib.closing(_checkpointer()) as checkpointer:
                state = checkpointer.restore((folder / "state").absolute(), args=ocp.args.StandardRestore(abstract))  # pyright: ignore[reportCallIssue]
        except Exception as error:  # Orbax raises many kinds
            failed = error
        compared.result()  # names the file that is damaged, whatever Orbax says of it
    if failed is not None:
        raise Damaged(f"{folder / 'state'} cannot be read ({type(failed).__name__})") from failed
    for name, digest in _in_parallel(_array_digest, _leaves(state)).items():
        if digest != manifest["arrays"][name]["sha256"]:
            raise Damaged(f"{folder / 'state'}: {name} has other values than were saved")
    kept = Kept(jax.tree.map(jax.numpy.asarray, state), texts)
    _check_fits(folder, misfit, kept)
    return kept


def _in_parallel(function: Callable[[Any], Any], of: Mapping[str, Any]) -> dict[str, Any]:
    """`function` of each value; hashing lets other threads run."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(of, pool.map(function, of.values()), strict=True))


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _describe(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _said(description: dict[str, Any] | None) -> str:
    return f"{description['dtype']}{description['shape']}" if description else "not"


def _array_digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"").hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_or_none(path: Path | None) -> str | None:
    try:
        return None if path is None else _file_digest(path)
    except OSError:
        return None


def _json_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[str]:
    """The files at any depth, by their paths from `folder`."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def numbers(workdir: Path, kind: str) -> list[int]:
    """The checkpoints of one kind that are there, in order, unchecked."""
    folder = workdir / "checkpoints" / kind
    return sorted(int(path.name) for path in folder.glob("*") if _is_number(path.name))


def _is_number(name: str) -> bool:
    return name.isdecimal() and str(int(name)) == name


def read_epoch(workdir: Path, epoch: int, like: Any, misfit: Misfit = of_any_run) -> Any:
    """The state at the end of `epoch`, with the shapes and types of `like`; writes nothing.

    Raises:
        InputError: for an epoch that was not kept (the message lists those that were), or a checkpoint that is damaged
            or none of this run.
    """
    kept = numbers(workdir, "epochs")
    if epoch not in kept:
        listed = ", ".join(str(number) for number in kept) or "none"
        raise InputError(f"epoch must be one that {workdir} has kept ({listed}), got {epoch}")
    try:
        return read(workdir / "checkpoints" / "epochs" / str(epoch), like, misfit).state
    except Damaged as error:
        raise InputError(f"{error}; train again with the same command to have epoch {epoch} made anew") from None


class Checkpoints:
    """The checkpoints of a run folder that this process alone writes to; a context manager that ends with all saved.

    Checkpoints that are damaged, or for which `misfit` has a reason, are moved aside, and `say` is told which and why.
    """

    def __init__(self, workdir: Path, say: Callable[[str], None] = lambda text: None, misfit: Misfit = of_any_run):
        self._workdir, self._folder, self._say, self._misfit = workdir, workdir / "checkpoints", say, misfit
        self._folder.mkdir(exist_ok=True)
        shutil.rmtree(self._folder / "tmp", ignore_errors=True)  # saves that were cut off
        for name in ("tmp", *KINDS):
            (self._folder / name).mkdir(exist_ok=True)
        # Held open, so that no folder that is made later can pass for one of these.
        places = (workdir, *(self._folder / name for name in ("tmp", *KINDS)))
        self._places = {place: os.open(place, os.O_RDONLY) for place in places}
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: concurrent.futures.Future | None = None
        self._failed = False
        self._saved = {kind: set[int]() for kind in KINDS}
        for kind in KINDS:
            for path in sorted((self._folder / kind).iterdir()):
                self._take_in(path)

    def _take_in(self, path: Path) -> None:
        try:
            if not path.is_dir() or not _is_number(path.name):
                raise Damaged(f"{path} is no checkpoint")
            verify(path, self._misfit)
        except Damaged as error:
            self._move_aside(path, error)
        else:
            self._saved[path.parent.name].add(int(path.name))

    def _move_aside(self, path: Path, why: Damaged) -> None:
        damaged = self._folder / "damaged"
        damaged.mkdir(exist_ok=True)
        names = (f"{path.parent.name}-{path.name}-{count}" for count in range(1, 10**6))
        target = next(damaged / name for name in names if not (damaged / name).exists())
        path.rename(target)
        sync(damaged)
        self._say(f"{why}; moved to {target}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._writer.shutdown(wait=True)
        try:
            if kind is None:
                self.wait()
            elif issubclass(kind, InputError | OSError):
                self._check_in_place()  # whatever file was missed first, this is why
        finally:
            # After a failed save what was begun beside it may go on, and must find no other folder by these numbers.
            for descriptor in self._places.values() if not self._failed else ():
                os.close(descriptor)

    def epochs(self) -> list[int]:
        """The epochs that are kept, in order, those included that are still being written."""
        return sorted(self._saved["epochs"])

    def steps(self, steps_per_epoch: int) -> dict[int, tuple[str, int]]:
        """Kind and number of the checkpoint at each step; of two the latest, which may have been rewound."""
        epochs = {epoch * steps_per_epoch: ("epochs", epoch) for epoch in self._saved["epochs"]}
        return epochs | {step: ("latest", step) for step in self._saved["latest"]}

    def load(self, kind: str, number: int, like: Any) -> Kept | None:
        """A checkpoint by kind and number; None where it turns out to be damaged or none of the run: it is moved aside.

        Raises:
            InputError: it is of another network.
        """
        self.wait()
        path = self._folder / kind / str(number)
        try:
            return read(path, like, self._misfit)
        except Damaged as error:
            self._check_in_place()
            self._saved[kind].discard(number)
            if path.exists():
                self._move_aside(path, error)
            else:
                self._say(str(error))
            return None

    def save_epoch(self, epoch: int, state: Any, texts: Mapping[str, str]) -> None:
        """Keeps `state` as the end of `epoch`; returns while the files are still being written."""
        self._save("epochs", epoch, state, texts)

    def save_latest(self, step: int, state: Any, texts: Mapping[str, str], *, instead_of_later: bool = False) -> None:
        """Keeps `state` as the newest, by `step`; those before it, or all others, are deleted when it is whole."""
        self._save("latest", step, state, texts, instead_of_later)

    def _save(self, kind: str, number: int, state: Any, texts: Mapping[str, str], alone: bool = False) -> None:
        # A copy on the host, so that the training may give the device's buffers away while the files are written.
        copied = jax.tree.map(lambda leaf: np.array(leaf), state)
        self.wait()
        self._saved[kind].add(number)
        self._pending = self._writer.submit(self._write, kind, number, copied, dict(texts), alone)

    def _write(self, kind: str, number: int, state: Any, texts: dict[str, str], alone: bool) -> None:
        self._check_in_place()
        folder, temporary = self._folder / kind / str(number), self._through("tmp") / f"{kind}-{number}"
        try:
            if folder.exists():  # the same step once more, with another learning rate
                self._delete(folder)
            write(self._through(kind) / folder.name, temporary, state, texts, kind)
        except Exception as error:
            self._failed = True
            self._saved[kind].discard(number)
            shutil.rmtree(temporary, ignore_errors=True)
            self._check_in_place()
            # The reason, such as a full disk, stands at the end of what Orbax says, before what TensorStore adds.
            said = re.sub(r" \[(tensorstore_spec|os_error_code)=.*", "", " ".join(str(error).split()))
            said = said.replace(str(temporary.parent), str(self._folder / "tmp"))
            raise InputError(f"checkpoint {folder} could not be saved: {said[-300:]}") from error
        self._check_in_place()
        if kind == "latest":
            self._delete_latest(lambda step: step < number or (alone and step > number))

    def _through(self, name: str) -> Path:
        """A path to `checkpoints/NAME` that leads to the folder held open, wherever it is by now.

        Orbax and TensorStore make every folder above a file that they write, so that by its name a folder that was
        removed in the meantime would be made anew. Where there is no /proc the name must do.
        """
        place = self._folder / name
        through = Path(f"/proc/self/fd/{self._places[place]}")
        return through if through.exists() else place

    def _check_in_place(self) -> None:
        try:
            there = os.path.samestat(os.stat(self._workdir), os.fstat(self._places[self._workdir]))
        except FileNotFoundError:
            there = False
        if not there:
            raise InputError(f"--workdir {self._workdir} must stay where it is, and was removed while training")

    def _delete_latest(self, which: Callable[[int], bool]) -> None:
        for step in sorted(filter(which, self._saved["latest"])):
            self._delete(self._folder / "latest" / str(step))
            self._saved["latest"].discard(step)

    def _delete(self, folder: Path) -> None:
        """Renamed first, so that no half of it is ever taken for damage."""
        gone = self._folder / "tmp" / f"deleted-{folder.name}"
        folder.rename(gone)
        shutil.rmtree(gone)

    def drop_latest(self) -> None:
        """Deletes the newest state: the last epoch's is kept for ever."""
        self.wait()
        self._delete_latest(lambda step: True)

    def wait(self) -> None:
        """Returns when the last save is on the disk; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
