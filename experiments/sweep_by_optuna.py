"""A sweep that Optuna drives: it proposes members in batches, which are trained together, and learns from their errors.

    python -m experiments.sweep_by_optuna --config digits --sweep.learning-rate log:1e-4:1 --trials 32 --batch 8

Axes as in `experiments.sweep`. Trials are kept in WORKDIR/optuna.db and each batch is a sweep in WORKDIR/batch-K, so
the same command goes on after any stop. Needs `pip install '.[optuna]'`.
"""

import dataclasses
from typing import Any

from cnnjax import cli
from cnnjax.cli import Arguments, Progress
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.sweep import engine, space, study
from experiments.sweep import take_axes

BATCH = "batch"  # the attribute of a trial that says in which batch it is trained


@dataclasses.dataclass(frozen=True)
class Options:
    """How many members, and how they are proposed."""

    trials: int = dataclasses.field(default=32, metadata={"help": "members in all"})
    batch: int = dataclasses.field(default=8, metadata={"help": "members that are proposed and trained together"})
    sampling_seed: int = dataclasses.field(default=0, metadata={"help": "of the proposals"})

    def __post_init__(self):
        for name in ("trials", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")


def main(arguments: Arguments, progress: Progress) -> None:
    options, config, axes, workdir = arguments.options, arguments.config, arguments.taken, arguments.workdir
    try:
        import optuna
    except ImportError:
        raise InputError("experiments.sweep_by_optuna needs Optuna: pip install '.[optuna]'") from None
    if not axes:
        raise InputError(f"--sweep must be given an axis, one of {', '.join(space.axes())}, got none")
    engine.a_device_for_each_core(options.batch)
    dataset = load(config.data, progress)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir.mkdir(parents=True, exist_ok=True)
    proposals = optuna.create_study(
        storage=f"sqlite:///{workdir / 'optuna.db'}",
        study_name="sweep",
        sampler=optuna.samplers.TPESampler(seed=options.sampling_seed),
        load_if_exists=True,
    )
    distributions = {name: distribution(optuna, values) for name, values in axes.items()}
    while (number := next_batch(optuna, proposals, options, distributions)) is not None:
        trials = [trial for trial in proposals.get_trials() if trial.user_attrs.get(BATCH) == number]
        members = [
            space.member(index, {name: _value(axes[name], trial.params[name]) for name in axes}, config)
            for index, trial in enumerate(trials)
        ]
        swept = study.run_sweep(
            config, members, dataset, workdir / f"batch-{number}", progress=progress, say=progress.say
        )
        for trial, result in zip(trials, swept.results, strict=True):
            if not trial.state.is_finished():
                proposals.tell(trial.number, result.metrics[-1]["test_error"])
        best = proposals.best_trial
        progress.say(f"batch {number}: best so far {100 * proposals.best_value:.2f} % with {best.params}")


def next_batch(optuna: Any, proposals: Any, options: Options, distributions: dict[str, Any]) -> int | None:
    """The number of the batch that is to be trained: one that was begun, else a new one; None when all are told."""
    trials = proposals.get_trials()
    begun = [trial.user_attrs[BATCH] for trial in trials if not trial.state.is_finished() and BATCH in trial.user_attrs]
    if begun:
        return min(begun)
    placed = [trial for trial in trials if BATCH in trial.user_attrs]
    number = 1 + max((trial.user_attrs[BATCH] for trial in placed), default=-1)
    count = min(options.batch, options.trials - len(placed))
    for _ in range(count):
        proposals.ask(distributions).set_user_attr(BATCH, number)
    return number if count > 0 else None


def distribution(optuna: Any, values: Any) -> Any:
    """What Optuna draws an axis from: a range, or one of the listed values by its place in the list."""
    if isinstance(values, space.Draw):
        return optuna.distributions.FloatDistribution(values.low, values.high, log=values.logarithmic)
    return optuna.distributions.CategoricalDistribution(list(range(len(values))))


def _value(values: Any, proposed: Any) -> Any:
    return proposed if isinstance(values, space.Draw) else values[proposed]


if __name__ == "__main__":
    cli.run(main, Options(), workdir="runs/{}-optuna", take=take_axes)
