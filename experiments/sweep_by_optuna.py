"""A sweep that Optuna drives: it proposes settings in batches, trained together, and learns from their errors.

    python -m experiments.sweep_by_optuna --config digits --sweep.learning-rate log:1e-4:1 --trials 32 --batch 8

Axes as in `experiments.sweep`; what is proposed are settings, each of which is trained with all values of an axis
`seed` and counts by the mean of their errors. WORKDIR/study.json says what is studied, and each batch is a sweep in
WORKDIR/batch-K. A batch is proposed from its own seed and from what those before it have come to, so the same command
goes on after any stop with the members that it would have had. WORKDIR/optuna.db is for Optuna's own tools: it is
written and never read.
Needs `pip install '.[optuna]'`.
"""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import cli
from cnnjax.atomic import check_tree, replacing, write_text
from cnnjax.cli import Arguments, Progress
from cnnjax.config import Config, check_seed, differences, from_json, to_json
from cnnjax.data import load
from cnnjax.data.dataset import Dataset
from cnnjax.errors import InputError
from cnnjax.sweep import engine, ranking, space, study
from cnnjax.sweep.ranking import Setting
from cnnjax.sweep.waiting import Watch
from cnnjax.train import run
from cnnjax.train.lock import locked
from experiments import sweep
from experiments.train import allow_code

OURS = {"study.json", "lock", "study.json.tmp"}  # what a folder may hold where no batch has been begun
MOST_COMBINATIONS = 1000  # of values that change a shape, which are all tried before anything is written


@dataclasses.dataclass(frozen=True)
class Options(sweep.Training):
    """How many settings, and how they are proposed."""

    trials: int = dataclasses.field(default=32, metadata={"help": "settings in all"})
    batch: int = dataclasses.field(default=8, metadata={"help": "settings that are proposed and trained together"})
    sampling_seed: int = dataclasses.field(default=0, metadata={"help": "of the proposals"})

    def __post_init__(self):
        super().__post_init__()
        for name in ("trials", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        check_seed("--sampling-seed", self.sampling_seed)


def main(arguments: Arguments, progress: Progress) -> None:
    options, config, axes, workdir = arguments.options, arguments.config, arguments.taken, arguments.workdir
    try:
        import optuna
    except ImportError:
        raise InputError("experiments.sweep_by_optuna needs Optuna: pip install '.[optuna]'") from None
    check_axes(config, axes)
    study.check_config(config)
    asked = {"axes": json.loads(json.dumps(axes)), "sampling_seed": options.sampling_seed}
    check(workdir, config, asked, options.join)
    sweep.check_best(options.best, workdir, None)
    engine.a_device_for_each_core(options.batch * len(seeds_of(axes)))
    allow_code(arguments)
    dataset = load(config.data, progress)
    check_networks(arguments, dataset, progress)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.join:
        return _train(optuna, arguments, dataset, progress)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        check(workdir, config, asked, options.join)
        if (record := run.read_sealed(workdir / "study.json")) is not None:
            run.check_record(record, workdir, dataset)
        else:
            write_text(workdir / "study.json", run.sealed(run.new_record(config, dataset) | asked))
        _train(optuna, arguments, dataset, progress)


def _train(optuna: Any, arguments: Arguments, dataset: Dataset, progress: Progress) -> None:
    """Batch after batch, those read that are finished."""
    options, config, axes, workdir = arguments.options, arguments.config, arguments.taken, arguments.workdir
    distributions = {name: distribution(optuna, values) for name, values in axes.items() if name != "seed"}
    trials: list[Any] = []
    found: list[tuple[Path, study.Sweep, Setting]] = []  # the best so far, with where it is
    for number in itertools.count():
        folder = workdir / f"batch-{number}"
        if len(trials) >= options.trials:
            break
        if options.join:
            watch = Watch(60 * options.wait_minutes, progress.say)
            while study.begun_with(folder) is None:
                watch.wait(f"{folder} (that the process that began the study has yet to begin)", workdir)
        if (begun := study.begun_with(folder)) is not None:
            params = params_of_batch(axes, begun, folder)
        else:
            count = min(options.batch, options.trials - len(trials))
            params = propose(optuna, trials, count, (options.sampling_seed, number), distributions)
        with_seeds = [one | {"seed": place} for one in params for place in range(len(seeds_of(axes)))]
        members = [
            space.member(index, {name: value_of(axes[name], one[name]) for name in axes}, config)
            for index, one in enumerate(with_seeds)
        ]
        new = not (folder / "members.csv").exists()
        swept = study.run_sweep(config, members, dataset, folder, progress=progress, say=progress.say, **options.told)
        count = len(seeds_of(axes))
        of_each = (swept.results[start : start + count] for start in range(0, len(members), count))
        settings = [ranking.ranked(own, swept.criterion)[0] for own in of_each]
        trials += [trial(optuna, *pair, distributions, number) for pair in zip(params, settings, strict=True)]
        found += [(folder, swept, setting) for setting in settings]
        found = [min(found, key=lambda one: ranking.order_key(one[2]))]
        if options.join:
            continue
        if new or len(trials) >= options.trials:
            write_store(optuna, workdir / "optuna.db", trials, config, axes)
        where, _, best = found[0]
        progress.say(f"batch {number}: {said(best, where)}")
    if options.join:
        progress.say(f"all chunks are trained; the process that began the study writes its store in {workdir}")
        return
    _, swept, best = found[0]
    for line in sweep.said_of([best], swept.criterion):
        progress.say(line)
    if options.best is not None:
        sweep.write_best(options.best, swept, best.results[0], dataset, progress)


def seeds_of(axes: Mapping[str, Any]) -> list[int]:
    """Those that each setting is trained with; one that is not listed, where they are no axis."""
    return axes.get("seed", [0])


def check_axes(config: Config, axes: Mapping[str, Any]) -> None:
    """Raises InputError where there is no axis, or a value of one cannot be that of a member."""
    if not axes:
        raise InputError(f"--sweep must be given an axis, one of {', '.join(space.axes())}, got none")
    if set(axes) == {"seed"}:
        raise InputError("--sweep must be given an axis besides seed, whose values are not chosen, got seed alone")
    for name, values in axes.items():
        for value in (values.low, values.high) if isinstance(values, space.Draw) else values:
            try:
                space.member(0, {name: value}, config)
            except InputError as error:
                raise InputError(str(error).replace("member 0", f"--sweep.{name}")) from None


def check_networks(arguments: Arguments, dataset: Dataset, progress: Progress) -> None:
    """As a sweep's, of all values that change a shape, which a batch later on may propose together."""
    config, axes = arguments.config, arguments.taken
    shapes = {name: values for name, values in axes.items() if "." in name and not isinstance(values, space.Draw)}
    combinations = itertools.islice(itertools.product(*shapes.values()), MOST_COMBINATIONS)
    members = [space.member(0, dict(zip(shapes, values, strict=True)), config) for values in combinations]
    sweep.check_networks(arguments, [member.config for member in members], axes, dataset, progress)


def check(workdir: Path, config: Config, asked: Mapping[str, Any], join: bool) -> None:
    """Refuses a folder that holds something else than this study, or where there is none to join; writes nothing.

    Args:
        asked: the axes in their order and the seed of the proposals, as JSON has them.

    Raises:
        InputError: it is no folder, has other files, or holds another study (naming what differs).
    """
    path = workdir / "study.json"
    try:
        if (workdir / "optuna.db").is_dir():
            raise InputError(f"{workdir / 'optuna.db'} must be a file, or not be there, and is a folder")
        if not path.exists():
            if join:
                raise InputError(f"--join must find a study that was begun without it, and {workdir} has no study.json")
            if workdir.exists() and {one.name for one in workdir.iterdir()} - OURS:
                raise InputError(
                    f"--workdir must be new, empty or a study's, and {workdir} has files and no study.json"
                )
            return
        check_tree(workdir)
        record = run.read_sealed(path)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be read and written, got {workdir}: {error}") from None
    if record is None:
        raise InputError(f"{path} is not as it was written; start again in another folder")
    try:
        fields = differences(config, from_json(record["config"]))
    except InputError as error:
        raise InputError(f"{path} is of another version of cnnjax: {error}") from None
    if record.get("axes") != asked["axes"] or list(record["axes"]) != list(asked["axes"]):
        fields.append(f"axes: {json.dumps(asked['axes'])} here, {json.dumps(record.get('axes'))} there")
    if record.get("sampling_seed") != asked["sampling_seed"]:
        fields.append(f"sampling_seed: {asked['sampling_seed']} here, {record.get('sampling_seed')} there")
    if fields:
        raise InputError(f"--workdir {workdir} holds another study ({'; '.join(fields)})")
    if not isinstance(record["data"]["sha256"], str):
        raise InputError(f"{path} must hold the digest of the data, as a study writes it")


def propose(
    optuna: Any, trials: Sequence[Any], count: int, address: tuple[int, int], distributions: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """`count` proposals: a function of the trials before them and of `address`, the seed and the batch."""
    seed = int(np.random.SeedSequence(address).generate_state(1)[0])
    asked = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    asked.add_trials(trials)
    return [asked.ask(dict(distributions)).params for _ in range(count)]


def trial(optuna: Any, params: Mapping[str, Any], setting: Setting, distributions: Any, batch: int) -> Any:
    """What Optuna is told of a setting: its error, the mean over its seeds; if one diverged, that it was pruned."""
    states = optuna.trial.TrialState
    results = sorted(setting.results, key=lambda result: result.member.number)
    return optuna.trial.create_trial(
        params=dict(params),
        distributions=dict(distributions),
        value=setting.error.mean if setting.has_all else None,
        state=states.COMPLETE if setting.has_all else states.PRUNED,
        user_attrs={
            "batch": batch,
            "members": [result.member.number for result in results],
            "states": [result.state for result in results],
        },
    )


def said(best: Setting, folder: Path) -> str:
    if not best.error.count:
        return "no member has finished, all have diverged"
    place = f"member {best.results[0].member.number} of {folder}"
    return f"best so far {best.error.percent()} with {sweep.named(best.values)} ({place})"


def write_store(optuna: Any, path: Path, trials: Sequence[Any], config: Config, axes: Mapping[str, Any]) -> None:
    """All trials as a study of Optuna's in a SQLite file, made anew: Optuna's way to name one knows no % or ?."""
    with tempfile.TemporaryDirectory() as folder:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/optuna.db")
        stored = optuna.create_study(storage=storage, study_name="sweep")
        stored.set_user_attr("config", to_json(config))
        stored.set_user_attr("axes", axes)
        stored.add_trials(trials)
        storage.remove_session()
        storage.engine.dispose()
        with replacing(path) as file:
            file.write((Path(folder) / "optuna.db").read_bytes())


def distribution(optuna: Any, values: Any) -> Any:
    """What Optuna draws an axis from: a range, or one of the listed values by its place in the list."""
    if isinstance(values, space.Draw):
        return optuna.distributions.FloatDistribution(values.low, values.high, log=values.logarithmic)
    return optuna.distributions.CategoricalDistribution(list(range(len(values))))


def value_of(values: Any, proposed: Any) -> Any:
    return proposed if isinstance(values, space.Draw) else values[proposed]


def params_of_batch(axes: Mapping[str, Any], begun: Sequence[Any], folder: Path) -> list[dict[str, Any]]:
    """What was proposed for the batch in `folder`, from the values of its members."""
    params = [params_of(axes, values, folder) for values in begun]
    seeds = [one.pop("seed", 0) for one in params]
    count = len(seeds_of(axes))
    proposed = params[::count]
    if params != [one for one in proposed for _ in range(count)] or seeds != list(range(count)) * len(proposed):
        raise InputError(f"{folder / 'sweep.json'} must have all seeds of each setting, {count}, and has others")
    return proposed


def params_of(axes: Mapping[str, Any], values: Any, folder: Path) -> dict[str, Any]:
    """The inverse for a member of the batch in `folder`, whose values are as JSON has them."""
    wrong = InputError(
        f"{folder / 'sweep.json'} must have members of this study's axes, got {json.dumps(values)[:200]}"
    )
    if not isinstance(values, dict) or list(values) != list(axes):
        raise wrong
    params = {}
    for name, axis in axes.items():
        if isinstance(axis, space.Draw):
            if not isinstance(values[name], float) or not axis.low <= values[name] <= axis.high:
                raise wrong
            params[name] = values[name]
        else:
            listed = json.loads(json.dumps(axis))
            if values[name] not in listed:
                raise wrong
            params[name] = listed.index(values[name])
    return params


if __name__ == "__main__":
    cli.run(main, Options(), workdir="runs/{}-optuna", take=sweep.take_axes)
