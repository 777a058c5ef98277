"""A sweep in its folder: which members are trained together, until when, and what is kept of them.

sweep.json       config, members, and how they are trained: everything needed to repeat the sweep
members.csv      a row a member: its values, what became of it, its errors by epoch
chunks/R-G-K/    chunk K of group G in rung R: metrics.jsonl and checkpoints, with a member axis
"""

import contextlib
import csv
import functools
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cnnjax.atomic import write_text
from cnnjax.config import Config, differences, from_json
from cnnjax.data.dataset import Dataset
from cnnjax.errors import InputError
from cnnjax.sweep import engine
from cnnjax.sweep.engine import Group, MembersTraining
from cnnjax.sweep.space import Member, by_program
from cnnjax.train import run
from cnnjax.train.checkpoints import Checkpoints, read_epoch
from cnnjax.train.lock import InUse, locked
from cnnjax.train.training import Programs, Progress

POLL_SECONDS = 1.0  # between two looks at what other processes are at


class Halving(NamedTuple):
    """Successive halving: at each of these epochs only the best share of the members goes on."""

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
        """How many of `count` members go on at one of the epochs."""
        return max(1, math.ceil(count * self.share))

    def left(self, count: int) -> int:
        """How many of `count` members go on to the last epoch."""
        return functools.reduce(lambda staying, _: self.kept(staying), self.epochs, count)


NO_HALVING = Halving()


class Result(NamedTuple):
    """What came of one member."""

    member: Member
    state: str  # "finished", "diverged at step N", "stopped at epoch N"
    metrics: list[dict[str, Any]]  # a line an epoch, as a run's own
    seconds: float  # its share of the time of its chunks
    parts: "list[Part]"


class Sweep(NamedTuple):
    """A finished sweep."""

    config: Config
    results: list[Result]  # in the order of the members
    plans: list[engine.Plan]  # of each group
    state_of: Callable[[Member, int], Any]  # (member, kept epoch) -> its TrainState


def check(workdir: Path, config: Config, members: Sequence[Member], halving: Halving, join: bool = False) -> None:
    """Refuses a folder that holds something else than this sweep, or where there is none to join; writes nothing.

    Raises:
        InputError: it is no folder, has other files, or holds another sweep (naming what differs).
    """
    if config.train.on_nan != "stop":
        raise InputError(f"train.on_nan must be stop in a sweep, whose members stand still, got {config.train.on_nan}")
    path = workdir / "sweep.json"
    try:
        if not path.exists():
            if join:
                raise InputError(f"--join must find a sweep that was begun without it, and {workdir} has no sweep.json")
            if workdir.exists() and {one.name for one in workdir.iterdir()} - {"lock", "sweep.json.tmp"}:
                raise InputError(
                    f"--workdir must be new, empty or a sweep's, and {workdir} has files and no sweep.json"
                )
            return
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be read and written, got {workdir}: {error}") from None
    record = run.read_sealed(path)
    if record is None:
        raise InputError(f"{path} is not as it was written; start again in another folder")
    fields = differences(config, from_json(record["config"]))
    for name, ours in (("members", _plain(members)), ("halving", json.loads(json.dumps(halving)))):
        if record[name] != ours:
            fields.append(f"other {name}")
    if fields:
        raise InputError(f"--workdir {workdir} holds another sweep ({'; '.join(fields)})")


def _plain(members: Sequence[Member]) -> list[dict[str, Any]]:
    return json.loads(json.dumps([member.values for member in members]))


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

    Raises:
        InputError: as `check`; if another process is at work in `workdir`; if not one member fits into the memory.
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
        plans, programs = _plans(config, members, groups, dataset, workdir, halving, size, memory, say)
        trainer = _Trainer(config, groups, plans, programs, dataset, workdir, halving, progress, say)
        alive = [list(group.members) for group in groups]
        bounds = (0, *halving.epochs, config.train.epochs)
        for rung, (first, last) in enumerate(itertools.pairwise(bounds)):
            trainer.train_rung(rung, alive, first, last)
            if last < config.train.epochs:
                alive = trainer.best(alive, last)
        results = [trainer.result(member) for member in members]
        if not join:
            write_text(workdir / "members.csv", members_table(results))
    return Sweep(config, results, plans, trainer.state_of)


def _plans(
    config: Config,
    members: Sequence[Member],
    groups: Sequence[Group],
    dataset: Dataset,
    workdir: Path,
    halving: Halving,
    size: int | None,
    memory: int | None,
    say: Callable[[str], None],
) -> tuple[list[engine.Plan], list[Programs]]:
    """How each group is cut into chunks, as sweep.json has it, else settled now and written there; and its programs.

    Raises:
        InputError: a size is asked for with which this sweep was not begun.
    """
    path = workdir / "sweep.json"
    record = run.read_sealed(path)
    programs = []
    if record is None:
        if size is None:
            budget = memory or engine.memory_at_hand()
            left = halving.left(len(members))
            plans, programs = zip(*(engine.plan(group, dataset, budget, say, left) for group in groups), strict=True)
        else:
            plans = [engine.Plan(size, ["asked for"], jax.device_count()) for _ in groups]
        record = run.new_record(config, dataset)
        record |= {"members": _plain(members), "halving": halving, "plans": plans}
        write_text(path, run.sealed(record))
    run.check_record(record, workdir, dataset)
    plans = [engine.Plan(*plan) for plan in record["plans"]]
    sizes = {plan.size for plan in plans}
    if size is not None and sizes != {size}:
        known = ", ".join(map(str, sorted(sizes)))
        raise InputError(f"--chunk must be what {workdir} was begun with ({known} members at a time), got {size}")
    if not programs:
        programs = [
            engine.programs(group, dataset, plan.size <= 1, plan.devices)
            for group, plan in zip(groups, plans, strict=True)
        ]
    return plans, list(programs)


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
        report: Progress | None,
        say: Callable[[str], None],
    ):
        self.config, self.groups, self.plans, self.halving = config, groups, plans, halving
        self.dataset, self.workdir, self.say = dataset, workdir, say
        self.report = report or (lambda description, done, total: None)
        self.kept = tuple(sorted({*config.train.kept_epochs, *halving.epochs}))
        self.texts = {"sweep.json": (workdir / "sweep.json").read_text()}
        self.programs = programs
        self.parts: dict[int, list[Part]] = {}  # by member
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
        done, waiting = 0, pieces
        while waiting:
            busy = []
            for piece in waiting:
                try:
                    self._train(piece, done, len(pieces))
                    done += 1
                except InUse:
                    busy.append(piece)
            if len(busy) == len(waiting):
                time.sleep(POLL_SECONDS)
            waiting = busy

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
        with locked(folder):
            started = time.monotonic()
            with Checkpoints(folder, self.say) as checkpoints:
                epochs = tuple(epoch for epoch in self.kept if first < epoch <= last or epoch == first == 0)
                if set(epochs) <= set(checkpoints.epochs()):
                    return
                training = MembersTraining(
                    group.config, self.programs[number], self.dataset, folder, checkpoints, report, self.say, self.texts
                )
                training.hyper, training.kept_epochs = engine.stacked(group, members), epochs
                if first > 0:
                    states = [self.state_of(member, first) for member in members]
                    training.start = (first, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
                for epoch in epochs:
                    if epoch not in checkpoints.epochs():
                        training.go_to(epoch)
                checkpoints.drop_latest()
            write_text(folder / "seconds.json", json.dumps(_seconds(folder) + time.monotonic() - started) + "\n")

    def state_of(self, member: Member, epoch: int) -> Any:
        """One member's state at the end of a kept epoch."""
        part = next(part for part in self.parts[member.number] if part.holds(epoch))
        state = self._state_of_chunk(part.folder, epoch, part.length, self.group_of[member.number])
        return jax.tree.map(lambda leaf: leaf[part.place], state)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one trainer a process
    def _state_of_chunk(self, folder: Path, epoch: int, length: int, number: int) -> Any:
        group = self.groups[number]
        hyper = engine.stacked(group, engine.padded(group.members[:length], length))
        return read_epoch(folder, epoch, jax.eval_shape(self.programs[number].init, hyper))

    def metrics_of(self, member: Member) -> list[dict[str, Any]]:
        """A line an epoch, as a run's own."""
        lines = []
        for part in self.parts[member.number]:
            for line in run.read_metrics(part.folder):
                own = {name: value[part.place] for name, value in line.items() if isinstance(value, list)}
                lines.append(
                    {"epoch": line["epoch"]} | {name: value for name, value in own.items() if value is not None}
                )
        return lines

    def best(self, alive: list[list[Member]], epoch: int) -> list[list[Member]]:
        """The best share of all that are alive, by test error at the end of `epoch`; who has diverged goes first."""
        everyone = [member for members in alive for member in members]

        def rank(member: Member) -> tuple[bool, float, int]:
            diverged = int(self.state_of(member, epoch).unsound) > 0
            return diverged, self.metrics_of(member)[-1]["test_error"], member.number

        staying = sorted(everyone, key=rank)[: self.halving.kept(len(everyone))]
        numbers = {member.number for member in staying}
        self.say(f"epoch {epoch}: {len(everyone) - len(numbers)} of {len(everyone)} members are stopped")
        return [[member for member in members if member.number in numbers] for members in alive]

    def result(self, member: Member) -> Result:
        parts = self.parts[member.number]
        last = parts[-1].last
        state = self.state_of(member, last)
        if int(state.unsound):
            end = f"diverged at step {int(state.step)}"
        else:
            end = "finished" if last == self.config.train.epochs else f"stopped at epoch {last}"
        seconds = sum(_seconds(part.folder) / part.length for part in parts)
        return Result(member, end, self.metrics_of(member), seconds, parts)


def _seconds(folder: Path) -> float:
    """How long a chunk has been trained; what a stopped process had not written is missing."""
    try:
        return float(json.loads((folder / "seconds.json").read_text()))
    except (OSError, ValueError, TypeError):
        return 0.0


def members_table(results: Sequence[Result]) -> str:
    """members.csv: the axes' values, the state, seconds, and the test error at the end of each epoch."""
    epochs = sorted({line["epoch"] for result in results for line in result.metrics})
    names = list(results[0].member.values)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["member", *names, "state", "seconds", *(f"test_error_{epoch}" for epoch in epochs)])
    for result in results:
        errors = {line["epoch"]: line["test_error"] for line in result.metrics}
        values = ["x".join(map(str, v)) if isinstance(v, tuple) else v for v in result.member.values.values()]
        row = [result.member.number, *values, result.state, f"{result.seconds:.2f}"]
        writer.writerow(row + [f"{errors[epoch]:.6f}" if epoch in errors else "" for epoch in epochs])
    return file.getvalue()
