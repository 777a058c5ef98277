"""A sweep in its folder: which members are trained together, until when, and what is kept of them.

sweep.json       config, members, and how they are trained: everything needed to repeat the sweep
members.csv      a row a member: its values, what became of it, its last numbers, its errors by epoch
curves.csv       a row a member, epoch and split: loss and errors
chunks/R-G-K/    chunk K of group G in rung R: metrics.jsonl and checkpoints, with a member axis

Every result is read from the checkpoints, whose digests are compared. Beside its arrays each holds sweep.json and
chunk.json, which say whose it is, metrics.jsonl, and seconds.json: how long the chunk had been trained by then.
"""

import contextlib
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.atomic import check_tree, write_text
from cnnjax.config import Config, differences, from_json
from cnnjax.data.dataset import Dataset
from cnnjax.environment import changes, environment
from cnnjax.errors import InputError
from cnnjax.settings import pinned
from cnnjax.sweep import engine
from cnnjax.sweep.engine import Group, MembersTraining
from cnnjax.sweep.ranking import by_setting, criterion
from cnnjax.sweep.space import Member, by_program, from_record
from cnnjax.sweep.tables import curves_table, members_table
from cnnjax.sweep.waiting import PATIENCE_SECONDS, Watch, held_since
from cnnjax.train import run
from cnnjax.train.checkpoints import KINDS, Checkpoints, Damaged, Kept, of_texts, read, verify
from cnnjax.train.lock import InUse, locked
from cnnjax.train.training import Programs, Progress

MOST_DEVICES = 65536


class Halving(NamedTuple):
    """Successive halving: at each of these epochs only the best share of the settings goes on, with all its seeds."""

    epochs: tuple[int, ...] = ()
    share: float = 0.5

    def check(self, config: Config) -> None:
        """Raises InputError for an epoch that is not reached, or a share that is none."""
        if any(not 1 <= epoch < config.train.epochs for epoch in self.epochs):
            raise InputError(f"--halve-at must be epochs from 1 to {config.train.epochs - 1}, got {self.epochs}")
        if list(self.epochs) != sorted(set(self.epochs)):
            raise InputError(f"--halve-at must be rising epochs, got {self.epochs}")
        if not 0 < self.share < 1:
            raise InputError(f"--keep must be a share between 0 and 1, got {self.share}")

    def kept(self, count: int) -> int:
        """How many of `count` settings go on at one of the epochs."""
        return max(1, math.ceil(count * self.share))

    def left(self, count: int) -> int:
        """How many of `count` settings go on to the last epoch."""
        return functools.reduce(lambda staying, _: self.kept(staying), self.epochs, count)


NO_HALVING = Halving()


class Result(NamedTuple):
    """What came of one member."""

    member: Member
    state: str  # "finished", "diverged at epoch E, step N of M" (as a run alone counts them), "stopped at epoch E"
    metrics: list[dict[str, Any]]  # a line an epoch, as a run's own
    seconds: float  # its share of the time of its chunks
    parts: "list[Part]"
    diverged: tuple[int, int] | None = None  # epoch and step, counted from 1


class Sweep(NamedTuple):
    """A finished sweep."""

    config: Config
    results: list[Result]  # in the order of the members
    plans: list[engine.Plan]  # of each group
    state_of: Callable[[Member, int], Any]  # (member, kept epoch) -> its TrainState
    criterion: str = "test_error"  # the field of the metrics that members are ranked by


def check(workdir: Path, config: Config, members: Sequence[Member], halving: Halving, join: bool = False) -> None:
    """Refuses a folder that holds something else than this sweep, or where there is none to join; writes nothing.

    Raises:
        InputError: it is no folder, has other files, or holds another sweep (naming what differs).
    """
    check_config(config)
    try:
        if not _begun(workdir):
            if join:
                raise InputError(f"--join must find a sweep that was begun without it, and {workdir} has no sweep.json")
            if workdir.exists() and {one.name for one in workdir.iterdir()} - {"lock", "sweep.json.tmp"}:
                raise InputError(
                    f"--workdir must be new, empty or a sweep's, and {workdir} has files and no sweep.json"
                )
            return
        check_tree(workdir)
        record = _record(workdir)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be read and written, got {workdir}: {error}") from None
    fields = differences(config, _config_of(record, workdir))
    for name, ours in (("members", _plain(members)), ("halving", json.loads(json.dumps(halving)))):
        if record.get(name) != ours:
            fields.append(f"other {name}")
    if fields:
        raise InputError(f"--workdir {workdir} holds another sweep ({'; '.join(fields)})")
    _plans_of(record, workdir, len(by_program(members)))


def check_config(config: Config) -> None:
    """Raises InputError for a config whose members no sweep can train."""
    if config.train.on_nan != "stop":
        raise InputError(f"train.on_nan must be stop in a sweep, whose members stand still, got {config.train.on_nan}")
    if config.train.start is not None:
        raise InputError(
            f"train.start must be None in a sweep, whose members begin at random, got {config.train.start}"
        )


def begun_with(workdir: Path) -> list[Any] | None:
    """The values of the members of the sweep in `workdir`, as JSON has them; None if none was begun.

    Raises:
        InputError: sweep.json is damaged, and no checkpoint has a copy; or it has no members.
    """
    if not _begun(workdir):
        return None
    values = _record(workdir).get("members")
    if not isinstance(values, list) or not values:
        raise InputError(f"{workdir / 'sweep.json'} must have a list of members, as a sweep writes it")
    return values


def recorded(workdir: Path) -> tuple[list[Member], str]:
    """The members of the sweep in `workdir`, and the SHA-256 of its data.

    Raises:
        InputError: there is none, or its record is not as a sweep writes it.
    """
    values = begun_with(workdir)
    if values is None:
        raise InputError(f"{workdir} must be a sweep's folder, and has no sweep.json")
    record = _record(workdir)
    config = _config_of(record, workdir)
    return [from_record(number, one, config) for number, one in enumerate(values)], record["data"]["sha256"]


def _begun(workdir: Path) -> bool:
    return (workdir / "sweep.json").exists() or (workdir / "chunks").is_dir()


def _record(workdir: Path) -> dict[str, Any]:
    """What sweep.json says, or where it is damaged, what the copy in a sound checkpoint says."""
    path = workdir / "sweep.json"
    record = run.read_sealed(path)
    folders = (one for kind in KINDS for one in sorted((workdir / "chunks").glob(f"*/checkpoints/{kind}/*")))
    while record is None and (folder := next(folders, None)):
        with contextlib.suppress(Damaged):
            verify(folder)
            record = run.read_sealed(folder / "sweep.json")
    if record is None:
        raise InputError(f"{path} is not as it was written and no checkpoint has a copy; start again in another folder")
    return record


def _config_of(record: dict[str, Any], workdir: Path) -> Config:
    try:
        return from_json(record["config"])
    except InputError as error:
        raise InputError(f"{workdir / 'sweep.json'} is of another version of cnnjax: {error}") from None


def _plans_of(record: dict[str, Any], workdir: Path, groups: int) -> list[engine.Plan]:
    """The plan of each group. Raises InputError for a record that no sweep has written, well sealed as it may be."""
    try:
        plans = [engine.Plan(*plan) for plan in record["plans"]]
        numbers = [number for plan in plans for number in (plan.size, plan.devices)]
        sound = all(type(number) is int for number in numbers) and isinstance(record["data"]["sha256"], str)
        sound = sound and all(plan.size >= 0 and 1 <= plan.devices <= MOST_DEVICES for plan in plans)
        sound = sound and all(isinstance(reason, str) for plan in plans for reason in plan.reasons)
    except (KeyError, TypeError):
        plans, sound = [], False
    if not sound or len(plans) != groups:
        raise InputError(f"{workdir / 'sweep.json'} must hold the plans of {groups} programs, as a sweep writes them")
    return plans


def _plain(members: Sequence[Member]) -> list[dict[str, Any]]:
    return json.loads(json.dumps([member.values for member in members]))


@pinned()
def run_sweep(
    config: Config,
    members: Sequence[Member],
    dataset: Dataset,
    workdir: Path,
    *,
    halving: Halving = NO_HALVING,
    size: int | None = None,
    memory: int | None = None,
    join: bool = False,
    patience: float = PATIENCE_SECONDS,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Sweep:
    """Trains all members to their end, from wherever the folder stands; a finished sweep is only read.

    Several processes, on one machine or on several that share the folder, can work on one sweep: each takes the next
    chunk that nobody is at, and what a dead process leaves behind is taken by another one.

    Args:
        join: work on a sweep that another process has begun and writes the table of.
        size: members that are trained at a time; 0: one after another, each bit for bit as a run alone; None: measured.
        memory: bytes that a program may take; None: half of what there is.
        patience: seconds that it waits for a chunk of which the process that holds it changes no file.
        say: told in one line what was found damaged, and for whom it waits.

    Raises:
        InputError: as `check`; if another process is at work in `workdir`; if not one member fits into the memory; if
            its patience is at its end.
    """
    check(workdir, config, members, halving, join)
    halving.check(config)
    for group in by_program(members):
        run.build(group[0].config, dataset)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error}") from None
    with contextlib.nullcontext() if join else locked(workdir):
        groups = [engine.group_of(group) for group in by_program(members)]
        record, programs = _settled(config, members, groups, dataset, workdir, halving, size, memory, say)
        text, plans = run.sealed(record), _plans_of(record, workdir, len(groups))
        if not join:
            _mend(workdir / "sweep.json", text, say)
        trainer = _Trainer(config, groups, plans, programs, dataset, workdir, halving, text, patience, progress, say)
        alive = [list(group.members) for group in groups]
        bounds = (0, *halving.epochs, config.train.epochs)
        for rung, (first, last) in enumerate(itertools.pairwise(bounds)):
            trainer.train_rung(rung, alive, first, last)
            if last < config.train.epochs:
                alive = trainer.best(alive, last)
        results = [trainer.result(member) for member in members]
        if not join:
            write_text(workdir / "members.csv", members_table(results))
            write_text(workdir / "curves.csv", curves_table(results))
    return Sweep(config, results, plans, trainer.state_of, criterion(dataset))


def _settled(
    config: Config,
    members: Sequence[Member],
    groups: Sequence[Group],
    dataset: Dataset,
    workdir: Path,
    halving: Halving,
    size: int | None,
    memory: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[Programs]]:
    """The record of the sweep, with how each group is cut into chunks: as it was begun, else settled now; its programs.

    Raises:
        InputError: a size is asked for with which this sweep was not begun.
    """
    if not _begun(workdir):
        if size is None:
            budget = engine.memory_at_hand() if memory is None else memory
            settings = by_setting(members, lambda member: member)
            left = min(len(members), halving.left(len(settings)) * max(map(len, settings)))
            plans, programs = zip(*(engine.plan(group, dataset, budget, say, left) for group in groups), strict=True)
        else:
            plans, programs = [engine.Plan(size, ["asked for"], jax.device_count()) for _ in groups], []
        record = run.new_record(config, dataset)
        record |= {"members": _plain(members), "halving": halving, "plans": plans}
        write_text(workdir / "sweep.json", run.sealed(record))
        if programs:
            return _record(workdir), list(programs)
    record = _record(workdir)
    run.check_record(record, workdir, dataset)
    plans = _plans_of(record, workdir, len(groups))
    sizes = {plan.size for plan in plans}
    if size is not None and sizes != {size}:
        known = ", ".join(map(str, sorted(sizes)))
        raise InputError(f"--chunk must be what {workdir} was begun with ({known} members at a time), got {size}")
    return record, [
        engine.programs(group, dataset, plan.size <= 1, plan.devices) for group, plan in zip(groups, plans, strict=True)
    ]


def _mend(path: Path, text: str, say: Callable[[str], None]) -> None:
    """Makes `path` hold `text`, of which checkpoints have copies; says so where it held something else."""
    if path.exists() and path.read_bytes() == text.encode():
        return
    if path.exists():
        path.rename(run.free_name(path.with_name(f"{path.name}.damaged")))
    write_text(path, text)
    say(f"{path} was not as it was written; made anew from a checkpoint's copy")


class Part(NamedTuple):
    """Where a member was trained from the end of one epoch to that of another."""

    folder: Path
    place: int  # of the member in the chunk
    length: int  # of the chunk
    first: int
    last: int

    def holds(self, epoch: int) -> bool:
        return self.first < epoch <= self.last or epoch == self.first == 0


class Piece(NamedTuple):
    """A chunk that is to be trained from the end of one epoch to that of another."""

    folder: Path
    number: int  # of the group
    members: list[Member]
    first: int
    last: int


class End(NamedTuple):
    """What the last checkpoint of a chunk says of its members."""

    lines: list[dict[str, Any]]  # a line an epoch, each number a list with one entry a member
    seconds: float
    step: np.ndarray  # each member's
    unsound: np.ndarray


class _Trainer:
    """Trains rung after rung, and finds again what has been trained."""

    def __init__(
        self,
        config: Config,
        groups: list[Group],
        plans: list[engine.Plan],
        programs: list[Programs],
        dataset: Dataset,
        workdir: Path,
        halving: Halving,
        text: str,
        patience: float,
        report: Progress | None,
        say: Callable[[str], None],
    ):
        self.config, self.groups, self.plans, self.halving = config, groups, plans, halving
        self.dataset, self.workdir, self.say = dataset, workdir, say
        self.report = report or (lambda description, done, total: None)
        self.kept = tuple(sorted({*config.train.kept_epochs, *halving.epochs}))
        self.text, self.patience = text, patience  # `text` is that of sweep.json
        self.others = "; ".join(changes(environment(), json.loads(text)))  # what is not as it was recorded, until said
        self.programs = programs
        self.parts: dict[int, list[Part]] = {}  # by member
        self.ends: dict[Path, End] = {}
        self.group_of = {member.number: index for index, group in enumerate(groups) for member in group.members}

    def train_rung(self, rung: int, alive: list[list[Member]], first: int, last: int) -> None:
        """Trains those alive from the end of epoch `first` to that of `last`."""
        pieces = []
        for number, (members, plan) in enumerate(zip(alive, self.plans, strict=True)):
            length = engine.chunk_length(len(members) or 1, plan.size, plan.devices)
            for index, chunk in enumerate(engine.chunks(members, plan.size)):
                folder = self.workdir / "chunks" / f"{rung}-{number}-{index}"
                pieces.append(Piece(folder, number, engine.padded(chunk, length), first, last))
                for place, member in enumerate(chunk):
                    self.parts.setdefault(member.number, []).append(Part(folder, place, length, first, last))
        done, waiting, watch = 0, pieces, Watch(self.patience, self.say)
        while waiting:
            busy = []
            for piece in waiting:
                try:
                    self._train(piece, done, len(pieces))
                    done += 1
                except InUse as error:
                    busy.append((piece, error.holder))
            if len(busy) == len(waiting):
                (piece, holder), *more = busy
                whom = (
                    f"chunk {piece.folder.name} of {self.workdir} (held by {holder}, since {held_since(piece.folder)})"
                )
                others = f" and {len(more)} more" if more else ""
                watch.wait(whom + others, *(piece.folder for piece, _ in busy))
            waiting = [piece for piece, _ in busy]

    def _train(self, piece: "Piece", done: int, total: int) -> None:
        """Trains a chunk, where that is still to be done; `done` of `total` are finished.

        Raises:
            InUse: another process is at it.
        """
        folder, number, members, first, last = piece
        group = self.groups[number]

        def report(_, step: int, of: int) -> None:
            span, begin = ((of * epochs) // self.config.train.epochs for epochs in (last - first, first))
            self.report(f"members, to epoch {last}", done * span + step - begin, total * span)

        for place in (folder.parent, folder):  # and none above, should the whole folder be removed
            place.mkdir(exist_ok=True)
        chunk = {"chunk": folder.name, "epochs": [first, last], "members": [member.number for member in members]}
        texts = {"sweep.json": self.text, "chunk.json": json.dumps(chunk) + "\n"}
        with locked(folder), Checkpoints(folder, self.say, of_texts(texts)) as checkpoints:
            epochs = tuple(epoch for epoch in self.kept if first < epoch <= last or epoch == first == 0)
            missing = [epoch for epoch in epochs if epoch not in checkpoints.epochs()]
            if missing:
                if self.others:
                    self.say(f"it goes on otherwise than it began, so it may end with other bits ({self.others})")
                    self.others = ""
                training = MembersTraining(
                    group.config, self.programs[number], self.dataset, folder, checkpoints, report, self.say, texts
                )
                training.hyper, training.kept_epochs = engine.stacked(group, members), epochs
                training.since = time.monotonic()
                begun = checkpoints.steps(training.steps_per_epoch)
                newest = max((step for step in begun if step <= missing[0] * training.steps_per_epoch), default=None)
                if newest is not None:
                    kind, name = begun[newest]
                    training.seconds = engine.seconds_of(folder / "checkpoints" / kind / str(name))
                if first > 0:
                    states = [self.state_of(member, first) for member in members]
                    training.start = (first, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
                for epoch in missing:
                    training.go_to(epoch)
            checkpoints.drop_latest()
            metrics = (folder / "checkpoints" / "epochs" / str(last) / "metrics.jsonl").read_text()
            if missing:  # what was trained once more may have come before the last epoch
                write_text(folder / "metrics.jsonl", metrics)
            else:
                _mend(folder / "metrics.jsonl", metrics, self.say)

    def state_of(self, member: Member, epoch: int) -> Any:
        """One member's state at the end of a kept epoch."""
        part = next(part for part in self.parts[member.number] if part.holds(epoch))
        state = self._kept(part.folder, epoch, part.length, self.group_of[member.number]).state
        return jax.tree.map(lambda leaf: leaf[part.place], state)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one trainer a process
    def _kept(self, folder: Path, epoch: int, length: int, number: int) -> Kept:
        group = self.groups[number]
        hyper = engine.stacked(group, engine.padded(group.members[:length], length))
        try:
            place = folder / "checkpoints" / "epochs" / str(epoch)
            return read(place, jax.eval_shape(self.programs[number].init, hyper))
        except Damaged as error:
            raise InputError(f"{error}; the same command makes it anew") from None

    def _end(self, member: Member, part: Part) -> End:
        if part.folder not in self.ends:
            state, texts = self._kept(part.folder, part.last, part.length, self.group_of[member.number])
            try:
                lines = [json.loads(line) for line in texts["metrics.jsonl"].splitlines()]
                epochs = [line["epoch"] for line in lines]
                whole = all(len(line["test_error"]) == part.length for line in lines)
            except (KeyError, TypeError, ValueError, RecursionError):
                epochs, lines, whole = [], [], False
            if not whole or epochs != [epoch for epoch in range(part.last + 1) if part.holds(epoch)]:
                rule = f"a line for each epoch and a number for each of {part.length} members"
                raise InputError(f"metrics.jsonl in the checkpoints of {part.folder} must hold {rule}")
            seconds = engine.seconds_of(part.folder / "checkpoints" / "epochs" / str(part.last))
            self.ends[part.folder] = End(lines, seconds, np.asarray(state.step), np.asarray(state.unsound))
        return self.ends[part.folder]

    def metrics_of(self, member: Member) -> list[dict[str, Any]]:
        """A line an epoch, as a run's own."""
        lines = []
        for part in self.parts[member.number]:
            for line in self._end(member, part).lines:
                own = {name: value[part.place] for name, value in line.items() if isinstance(value, list)}
                lines.append(
                    {"epoch": line["epoch"]} | {name: value for name, value in own.items() if value is not None}
                )
        return lines

    def best(self, alive: list[list[Member]], epoch: int) -> list[list[Member]]:
        """The best share of all settings that are alive, by their error at the end of `epoch`, averaged over seeds.

        One of which a member has diverged goes first.
        """
        everyone = [member for members in alive for member in members]
        settings = by_setting(everyone, lambda member: member)

        def rank(members: list[Member]) -> tuple[int, float, int]:
            sound = [member for member in members if not self._has_diverged(member)]
            errors = [self.metrics_of(member)[-1][criterion(self.dataset)] for member in sound]
            return len(members) - len(sound), float(np.mean(errors)) if errors else np.inf, members[0].number

        staying = sorted(settings, key=rank)[: self.halving.kept(len(settings))]
        numbers = {member.number for members in staying for member in members}
        self.say(f"epoch {epoch}: {len(everyone) - len(numbers)} of {len(everyone)} members are stopped")
        return [[member for member in members if member.number in numbers] for members in alive]

    def _has_diverged(self, member: Member) -> bool:
        part = self.parts[member.number][-1]
        return bool(self._end(member, part).unsound[part.place])

    def result(self, member: Member) -> Result:
        parts = self.parts[member.number]
        last, end, diverged = parts[-1].last, self._end(member, parts[-1]), None
        if self._has_diverged(member):
            steps = -(-len(self.dataset.train) // member.config.train.batch_size)
            epoch, step = divmod(int(end.step[parts[-1].place]), steps)
            diverged = epoch + 1, step + 1
            became = f"diverged at epoch {epoch + 1}, step {step + 1} of {steps}"
        else:
            became = "finished" if last == self.config.train.epochs else f"stopped at epoch {last}"
        seconds = sum(self._end(member, part).seconds / part.length for part in parts)
        return Result(member, became, self.metrics_of(member), seconds, parts, diverged)
