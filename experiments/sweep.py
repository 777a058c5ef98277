"""Many trainings at once: a sweep over hyperparameters, its table, its figures and its best member.

    python -m experiments.sweep --config digits --sweep.learning-rate 1e-3,1e-2,1e-1 --sweep.seed 0:4

An axis is any number of `--hyper` (its bare name), or a field of the network or the training that changes a shape
(`--sweep.model.filters 5x3,7x3`, `--sweep.train.batch-size 64,128`). Values are a list by commas, a range of whole
numbers START:STOP, or drawn: log:LOW:HIGH, uniform:LOW:HIGH. Started again in its folder with more values, or more
`--samples`, a sweep trains the new members only.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import cli, models
from cnnjax.cli import Arguments, Progress
from cnnjax.config import Config, check_seed, differences
from cnnjax.data import load
from cnnjax.data.dataset import Dataset
from cnnjax.errors import InputError
from cnnjax.figures import files, settings
from cnnjax.figures import sweep as figure
from cnnjax.sweep import engine, ranking, results, space, study, widening
from cnnjax.sweep.ranking import Setting
from cnnjax.sweep.study import Halving, Sweep
from cnnjax.train import run
from experiments.train import allow_code, check_heard, draw_curves, hyperparameters, say_if_held


def _help(text: str, default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Training:
    """How members are trained, whoever proposes them."""

    engine: str = _help("together: members at a time as measured; sequential: one after another", "together")
    chunk: int | None = _help("members at a time, instead of what is measured")
    memory_gb: float | None = _help("that a program may take; none: half of what there is")
    best: Path | None = _help("also write the best member into this folder, as an ordinary run")
    join: bool = _help("work on the sweep that another process has begun in this folder with the same command", False)
    wait_minutes: float = _help("for another process that changes no file, before it ends with one line", 60.0)

    def __post_init__(self):
        if self.engine not in ("together", "sequential"):
            raise InputError(f"--engine must be together or sequential, got {self.engine!r}")
        if self.chunk is not None and (self.chunk < 1 or self.engine == "sequential"):
            raise InputError(f"--chunk must be at least 1 and goes with --engine together, got {self.chunk}")
        for name in ("memory_gb", "wait_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name.replace('_', '-')} must be a finite number > 0, got {value}")

    @property
    def told(self) -> dict[str, Any]:
        """As `study.run_sweep` takes them."""
        return {
            "size": 0 if self.engine == "sequential" else self.chunk,
            "memory": None if self.memory_gb is None else int(self.memory_gb * 2**30),
            "join": self.join,
            "patience": 60 * self.wait_minutes,
        }


@dataclasses.dataclass(frozen=True)
class Options(Training):
    """What a sweep adds to a config; the axes are read from the command line before the rest."""

    members: Path | None = _help("a CSV file with one member a line, in place of --sweep axes")
    samples: int = _help("how many times the drawn axes are drawn", 16)
    sampling_seed: int = _help("of the draws", 0)
    halve_at: tuple[int, ...] = _help("epochs at which only the best settings go on, with all their seeds", ())
    keep: float = _help("share of the settings that goes on at each of those epochs", 0.5)
    yes: bool = _help("train more than 100,000 members", False)

    def __post_init__(self):
        super().__post_init__()
        check_seed("--sampling-seed", self.sampling_seed)


def take_axes(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The axes, `--sweep.NAME VALUES`, and the other arguments."""
    axes, rest, waiting = {}, [], None
    for argument in arguments:
        if waiting is not None:
            axes[waiting], waiting = space.parse_axis(waiting, argument), None
        elif argument.startswith("--sweep."):
            name, equals, text = argument.removeprefix("--sweep.").partition("=")
            name = name.replace("-", "_")
            space.check_axis(name, "--sweep.NAME")
            if name in axes:
                raise InputError(f"--sweep.{name} must be given once, got it twice")
            if equals:
                axes[name] = space.parse_axis(name, text)
            else:
                waiting = name
        else:
            rest.append(argument)
    if waiting is not None:
        raise InputError(f"--sweep.{waiting} must be followed by values, got nothing")
    return axes, rest


def members_of(arguments: Arguments) -> list[space.Member]:
    """The members that the command line asks for."""
    options, config, axes = arguments.options, arguments.config, arguments.taken
    if options.members is None:
        return space.grid_and_draws(config, axes, options.samples, options.sampling_seed, options.yes)
    if axes:
        raise InputError(f"--members and --sweep exclude each other, got both ({', '.join(axes)})")
    return space.read_members(config, options.members, options.yes)


def main(arguments: Arguments, progress: Progress) -> None:
    options, config = arguments.options, arguments.config
    settings.check()
    members = members_of(arguments)
    halving = Halving(options.halve_at, options.keep)
    halving.check(config)
    widening.check(arguments.workdir, config, members, halving, options.join)
    check_best(options.best, arguments.workdir, [member.config for member in members])
    engine.a_device_for_each_core(len(members))
    allow_code(arguments)  # which may be the first to use JAX
    dataset = load(config.data, progress)
    check_networks(arguments, [member.config for member in members], members[0].values, dataset, progress)
    swept = widening.run(
        config,
        members,
        dataset,
        arguments.workdir,
        halving=halving,
        progress=progress,
        say=progress.say,
        **options.told,
    )
    if options.join:
        progress.say(
            f"all chunks are trained; the process that began the sweep writes table and figures in {arguments.workdir}"
        )
        return
    for plan in swept.plans:
        size_text = f"{plan.size} members at a time" if plan.size else "one member after another"
        progress.say(f"{size_text} ({'; '.join(plan.reasons)})")
    settings_found = ranking.ranked(swept.results, swept.criterion)
    progress.say(best_table(settings_found, swept.criterion))
    draw(files.make_folder(arguments.workdir, "figures"), swept, settings_found)
    draw_filters(arguments.workdir / "figures", swept, dataset, settings_found)
    progress.say(f"tables and figures in {arguments.workdir}")
    for line in said_of(settings_found, swept.criterion):
        progress.say(line)
    if options.best is not None:
        write_best(options.best, swept, settings_found[0].results[0], dataset, progress)


def check_networks(
    arguments: Arguments, configs: Sequence[Config], axes: Iterable[str], dataset: Dataset, progress: Progress
) -> None:
    """Builds the network of each program; says what begins alike at every seed.

    Raises:
        InputError: one does not fit the images, or a hyperparameter that is given or swept changes none of them.
    """
    by_program = {(config.model, config.train): config for config in configs}
    networks = [(config.model.name, run.build(config, dataset)) for config in by_program.values()]
    check_heard(hyperparameters(arguments) | {name: f"--sweep.{name}" for name in axes}, networks, dataset)
    for network in dict(networks).values():
        say_if_held(network, progress)


def said_of(found: Sequence[Setting], criterion: str) -> list[str]:
    """What is to be known of the best setting: its error with its spread, and once that of the test images."""
    winner, states = found[0], [result.state for one in found for result in one.results]
    if not winner.error.count:
        diverged = sum(state.startswith("diverged") for state in states)
        rest = f"{diverged} diverged, {len(states) - diverged} were stopped"
        return [f"no member has finished: {f'all {diverged} diverged' if diverged == len(states) else rest}"]
    over = f" over {winner.error.count} seeds" if winner.error.count > 1 else ""
    told = f"best setting: {named(winner.values)}: {figure.split_of(criterion)} error {winner.error.percent()}{over}"
    if criterion == "test_error":
        rule = "--data.validation-fraction 0.1 leaves the test images unseen"
        return [told, f"ranked by the test error, which is no fair choice: that of the best is too good; {rule}"]
    finished = [result for result in winner.results if result.state == "finished"]
    test = ranking.spread([result.metrics[-1]["test_error"] for result in finished])
    return [f"{told}; its test error, by which nothing was chosen: {test.percent()}"]


def named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {figure.text_of(value)}" for name, value in values.items()) or "the only one"


def check_best(best: Path | None, workdir: Path, configs: list[Config] | None) -> None:
    """Refuses a folder that cannot become the run of one of the members; writes nothing.

    Args:
        configs: the members'; None: not known yet.

    Raises:
        InputError: it is the sweep's, in it or around it; it has other files, or a run of another config.
    """
    if best is None:
        return
    if any(character in "[]*?" for character in str(best)):  # as a run folder's name
        raise InputError(f"--best must be a name without [ ] * ?, got {str(best)!r}")
    try:
        ours, sweeps = best.resolve(), workdir.resolve()
        if ours == sweeps or sweeps in ours.parents or ours in sweeps.parents:
            raise InputError(f"--best must be a folder apart from --workdir, got {best} and {workdir}")
        if (best / "config.json").exists():
            theirs = run.read_config(best / "config.json")
            if configs is not None and all(differences(config, theirs) for config in configs):
                raise InputError(f"--best must be new, empty or the run of a member, and {best} holds another run")
        elif best.exists() and any(best.iterdir()):
            raise InputError(f"--best must be new, empty or a run's, and {best} has files and no config.json")
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise InputError(f"--best must be a folder that can be read and written, got {best}: {error}") from None


def write_best(folder: Path, swept: Sweep, best: study.Result, dataset: Dataset, progress: Progress) -> None:
    """The best member as an ordinary run, with its learning curves.

    Raises:
        InputError: it has not finished, and so no other has.
    """
    if best.state != "finished":
        raise InputError(f"--best must have a member that finished, and none did; {folder} is not written")
    config = best.member.config
    states = {epoch: swept.state_of(best.member, epoch) for epoch in config.train.kept_epochs}
    run.export(folder, config, dataset, states, best.metrics, progress.say)
    draw_curves(folder, f"{config.model.name} on {dataset.name}", best.metrics)
    progress.say(f"member {best.member.number} is in {folder}")


def best_table(found: Sequence[Setting], criterion: str) -> Any:
    """The ten best settings."""
    rows = [
        (
            _numbers([result.member.number for result in one.results]), *map(figure.text_of, one.values.values()),
            one.results[0].state if len(one.results) == 1 else f"{one.error.count} of {len(one.results)} finished",
            one.error.percent() if one.error.count else "", f"{sum(result.seconds for result in one.results):.1f}",
        )
        for one in found[:10]
    ]  # fmt: skip
    columns = ("members", *found[0].values, "state", f"{figure.split_of(criterion)} error", "seconds")
    return cli.table(f"the best of {len(found)} settings", columns, rows)


def _numbers(numbers: list[int]) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed)) if len(listed) <= 4 else f"{listed[0]}, … {listed[-1]}"


def draw(folder: Path, swept: Sweep, found: Sequence[Setting]) -> None:
    """Every figure of errors; all but the curves leave out members that were stopped before the last epoch.

    A member that diverged counts with the error of the weights at which it stands still.
    """
    names, split = list(swept.results[0].member.values), figure.split_of(swept.criterion)
    epochs = list(range(swept.config.train.epochs + 1))
    errors = np.full((len(swept.results), len(epochs)), np.nan)
    for row, result in zip(errors, swept.results, strict=True):
        for line in result.metrics:
            row[line["epoch"]] = line[swept.criterion]
    finished = [result for result in swept.results if len(result.metrics) == len(epochs)]
    final = np.array([result.metrics[-1][swept.criterion] for result in finished])
    columns = [[result.member.values[name] for result in finished] for name in names]
    varied = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    main_axis = _main_axis(swept)
    by_axis = [results.errors_by_value(columns[index], final) for index in varied]
    if varied:
        shown = [names[index] for index in varied]
        drawing = figure.draw_axes(
            shown,
            [one.values for one in by_axis],
            [one.mean for one in by_axis],
            [one.low for one in by_axis],
            [one.high for one in by_axis],
            swept.config.train.epochs,
            split,
        )
        files.save(folder / "axes.png", drawing, errors=final, **_columns(names, columns))
        shares = results.importance([columns[index] for index in varied], final)
        drawing = figure.draw_importance(shown, shares, split)
        files.save(folder / "importance.png", drawing, axes=shown, shares=shares)
    order = sorted(
        range(len(errors)), key=lambda index: results.order_key(swept.results[index].member.values[main_axis])
    )
    numbers = [result.member.number for result in swept.results]
    labels = [f"{result.member.number}: {named(result.member.values)}" for result in swept.results]
    values = [swept.results[index].member.values[main_axis] for index in order]
    best = [order.index(numbers.index(result.member.number)) for one in found for result in one.results]
    shown = [labels[index] for index in order]
    drawing = figure.draw_curves(epochs, errors[order], main_axis, values, shown, best, split)
    files.save(folder / "curves.png", drawing, errors=errors, epochs=epochs, members=numbers, names=labels)
    pairs = [index for index in varied if names[index] != "seed"]
    if len(pairs) >= 2:
        first, second = sorted(pairs, key=lambda index: names[index] != main_axis)[:2]
        rows, across, cells = results.heat_map(columns[first], columns[second], final)
        drawing = figure.draw_heat(names[first], rows, names[second], across, cells, swept.config.train.epochs, split)
        files.save(folder / "heat.png", drawing, cells=cells, rows=_array(rows), columns=_array(across))


def draw_filters(folder: Path, swept: Sweep, dataset: Dataset, found: Sequence[Setting]) -> None:
    """First-layer filters at each value of one axis, all else as in the best member where there is such a member.

    None are drawn of a network without a convolution, nor of a member that was stopped before the last epoch.
    """
    last_epoch, axis = swept.config.train.epochs, _main_axis(swept)
    ranked = [result for one in found for result in one.results if result.metrics[-1]["epoch"] == last_epoch]
    configs = {result.member.config.model: result.member.config for result in ranked}
    rows = {model: models.layers(run.build(config, dataset), dataset.image_shape) for model, config in configs.items()}
    firsts = {model: first for model, of in rows.items() if (first := models.first_convolution(of)) is not None}
    ranked = [result for result in ranked if result.member.config.model in firsts]
    if not ranked:
        return

    def unlike_the_best(result: study.Result) -> int:
        best = ranked[0].member.values
        return sum(value != best[name] for name, value in result.member.values.items() if name != axis)

    chosen: dict[Any, study.Result] = {}
    for result in sorted(ranked, key=unlike_the_best):
        chosen.setdefault(result.member.values[axis], result)
    ordered = [chosen[value] for value in results.value_order(list(chosen))][:12]
    epochs = swept.config.train.kept_epochs
    kernels: list[list[np.ndarray]] = [[] for _ in ordered]
    in_chunks = sorted(zip(kernels, ordered, strict=True), key=lambda pair: [part.folder for part in pair[1].parts])
    for epoch in epochs:  # members of one chunk beside each other, so that each checkpoint is read once
        for row, result in in_chunks:
            params = swept.state_of(result.member, epoch).params
            row.append(models.kernels_of({"params": params}, firsts[result.member.config.model])[0])
    labels = [f"{axis} {figure.text_of(result.member.values[axis])}" for result in ordered]
    last = np.array([result.metrics[-1][swept.criterion] for result in ordered])
    of_members = [np.stack(row) for row in kernels]
    drawing = figure.draw_filters(of_members, labels, epochs, axis, last, figure.split_of(swept.criterion))
    numbers = [result.member.number for result in ordered]
    arrays = {f"kernels_{number}": row for number, row in zip(numbers, of_members, strict=True)}
    files.save(folder / "filters.png", drawing, epochs=epochs, members=numbers, **arrays)


def _main_axis(swept: Sweep) -> str:
    """The axis that explains most, the seed set aside; it is what the other figures are ordered by."""
    finished = [result for result in swept.results if result.metrics[-1]["epoch"] == swept.config.train.epochs]
    columns = {name: [result.member.values[name] for result in finished] for name in swept.results[0].member.values}
    varied = [name for name, column in columns.items() if len(set(column)) > 1]
    chosen = [name for name in varied if name != "seed"] or varied
    if not chosen:
        return next(iter(columns))
    final = np.array([result.metrics[-1][swept.criterion] for result in finished])
    return chosen[int(np.argmax(results.importance([columns[name] for name in chosen], final)))]


def _array(values: list[Any]) -> np.ndarray:
    return np.array([figure.text_of(value) for value in values])


def _columns(names: list[str], columns: list[list[Any]]) -> dict[str, np.ndarray]:
    return {name.replace(".", "_"): _array(column) for name, column in zip(names, columns, strict=True)}


if __name__ == "__main__":
    cli.run(main, Options(), workdir="runs/{}-sweep", take=take_axes)
