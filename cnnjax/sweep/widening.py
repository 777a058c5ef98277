"""A sweep with more members than it was begun with: those that it has are not trained again.

What makes two members the same is their config, not their number. WORKDIR itself is the first sweep; members that are
asked for and that it does not have are a sweep of their own in WORKDIR/wider-1, the next ones in WORKDIR/wider-2. They
are numbered through in that order, so that a member keeps its number, and the tables in WORKDIR are of all.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax.atomic import write_text
from cnnjax.config import Config
from cnnjax.data.dataset import Dataset
from cnnjax.errors import InputError
from cnnjax.sweep import study
from cnnjax.sweep.space import Member, from_record
from cnnjax.sweep.study import NO_HALVING, Halving, Sweep
from cnnjax.sweep.tables import curves_table, members_table


class Part(NamedTuple):
    """The members that are a sweep of their own."""

    folder: Path
    own: list[Member]  # as that sweep has numbered them
    through: list[Member]  # the same, numbered through, with their values as they are asked for


def check(workdir: Path, config: Config, members: Sequence[Member], halving: Halving, join: bool = False) -> list[Part]:
    """Refuses a folder that holds something else than this sweep or a part of it; writes nothing.

    Returns:
        What is a sweep of its own, those that are begun first.

    Raises:
        InputError: as `study.check`; if members are to be added to a sweep that stops some of them early.
    """
    study.check_config(config)
    parts, others = _divided(workdir, config, members)
    for part in parts:
        study.check(part.folder, config, part.own, halving, join)
    if others:
        first = ", ".join(f"{name} {value}" for name, value in others[0].values.items())
        rule = f"{len(others)} other members, which are not asked for, the first with {first}"
        raise InputError(f"--workdir {workdir} holds another sweep ({rule})")
    if len(parts) > 1 and halving != NO_HALVING:
        rule = "must be left out for a sweep that is widened, because who goes on depends on all members"
        raise InputError(f"--halve-at {rule}, got {halving.epochs}")
    return parts


def run(
    config: Config,
    members: Sequence[Member],
    dataset: Dataset,
    workdir: Path,
    *,
    halving: Halving = NO_HALVING,
    join: bool = False,
    say: Callable[[str], None] = print,
    **how: Any,
) -> Sweep:
    """As `study.run_sweep`, of which `how` are the other arguments, where some of the members may be there already.

    Raises:
        InputError: as `check` and `study.run_sweep`.
    """
    parts = check(workdir, config, members, halving, join)
    swept: list[Sweep] = []
    for part in parts:
        if part.folder != workdir:
            say(f"{len(part.own)} members more than those before, in {part.folder}")
        swept.append(
            study.run_sweep(config, part.own, dataset, part.folder, halving=halving, join=join, say=say, **how)
        )
    results = [
        result._replace(member=member)
        for part, one in zip(parts, swept, strict=True)
        for member, result in zip(part.through, one.results, strict=True)
    ]
    place = {
        member.number: (one, own)
        for part, one in zip(parts, swept, strict=True)
        for own, member in zip(part.own, part.through, strict=True)
    }

    def state_of(member: Member, epoch: int) -> Any:
        one, own = place[member.number]
        return one.state_of(own, epoch)

    if len(parts) > 1 and not join:
        write_text(workdir / "members.csv", members_table(results))
        write_text(workdir / "curves.csv", curves_table(results))
    plans = [plan for one in swept for plan in one.plans]
    return Sweep(config, results, plans, state_of, swept[0].criterion)


def recorded(workdir: Path) -> tuple[list[Member], str]:
    """As `study.recorded`, of all members, numbered through."""
    members, data = study.recorded(workdir)
    for folder in _begun(workdir)[1:]:
        more, _ = study.recorded(folder)
        members += [member._replace(number=len(members) + place) for place, member in enumerate(more)]
    return members, data


def _divided(workdir: Path, config: Config, members: Sequence[Member]) -> tuple[list[Part], list[Member]]:
    """The members by the sweeps that have them, and as the last one those that none has; members that are there and
    are not asked for."""
    asked: dict[Config, list[Member]] = {}
    for member in members:
        asked.setdefault(member.config, []).append(member)
    parts: list[Part] = []
    others: list[Member] = []
    count, begun = 0, _begun(workdir)
    for folder in begun:
        own = [from_record(number, one, config) for number, one in enumerate(study.begun_with(folder) or [])]
        through = []
        for member in own:
            if same := asked.get(member.config):
                through.append(same.pop(0)._replace(number=count))
            else:
                others.append(member)
            count += 1
        parts.append(Part(folder, own, through))
    left = {id(member) for those in asked.values() for member in those}
    new = [member for member in members if id(member) in left]
    if new and not others:
        folder = _wider(workdir, len(begun)) if begun else workdir
        through = [member._replace(number=count + place) for place, member in enumerate(new)]
        parts.append(Part(folder, [member._replace(number=place) for place, member in enumerate(new)], through))
    return parts, others


def _begun(workdir: Path) -> list[Path]:
    """The folders of the sweeps in WORKDIR, in their order."""
    folders = []
    while study.begun_with(folder := _wider(workdir, len(folders))) is not None:
        folders.append(folder)
    return folders


def _wider(workdir: Path, number: int) -> Path:
    return workdir / f"wider-{number}" if number else workdir
