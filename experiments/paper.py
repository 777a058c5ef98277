"""Every figure and table of Zeiler & Fergus (2014) that a trained run can show, one study after another.

Figure 2 (strongest activations), figure 4 (evolution), figure 5 (invariance), figure 7 (occlusion), figure 8 and table
1 (correspondence), table 2 (errors), table 7 (layer probes); and beside the paper: attribution and activation
maximization. A study that was stopped goes on where it was; one that this network or so few images do not suit is left
out, with the reason. Figure 6 with table 3 trains networks of its own (`experiments.architectures`), and so does table
4 (`experiments.transfer`): they are not among these.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnjax import cli
from cnnjax.atomic import write_text
from cnnjax.cli import Arguments, Progress
from cnnjax.errors import InputError
from cnnjax.train import run
from cnnjax.train.lock import InUse
from experiments import (
    activations,
    attribution,
    classify,
    correspondence,
    filter_evolution,
    invariance,
    maximization,
    occlusion,
    probes,
    report,
    studies,
)
from experiments.looking import RunOptions, Trained, examples, open_run

Study = Callable[[RunOptions, Progress, Trained], list[Path]]  # the pictures that it has drawn


def _evolution(options: RunOptions, progress: Progress, trained: Trained) -> list[Path]:
    config = trained.config
    if trained.is_own:
        raise InputError("--weights must be one file an epoch for the evolution, by experiments.filter_evolution")
    if config.train.epochs not in run.kept_epochs(options.run):
        raise InputError(f"--run must be finished for the evolution; {options.run} has not kept {config.train.epochs}")
    config = dataclasses.replace(config, data=options.data.of(config.data))
    arguments = Arguments(config, options.run, filter_evolution.Options())
    return filter_evolution.main(arguments, progress, with_page=False)  # which has the other studies too, at the end


def _of_run(options: RunOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(RunOptions)}


def _study(module: Any) -> Study:
    return lambda options, progress, trained: module.main(module.Options(**_of_run(options)), progress, trained)


def _activations(options: RunOptions, progress: Progress, trained: Trained) -> list[Path]:
    """Of every kept epoch, which the page's slider moves through; the list of figures has those of the last one."""
    every = not trained.is_own and options.epoch is None
    made = activations.main(activations.Options(**_of_run(options), every_epoch=every), progress, trained)
    return [path for path in made if path.parent == trained.figures]


STUDIES: dict[str, Study] = {
    "evolution": _evolution,
    "activations": _activations,
    "invariance": _study(invariance),
    "occlusion": _study(occlusion),
    "correspondence": _study(correspondence),
    "classify": _study(classify),
    "probes": _study(probes),
    "attribution": _study(attribution),
    "maximization": _study(maximization),
}


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Which studies of which run."""

    only: tuple[str, ...] = tuple(STUDIES)  # which of the studies

    def __post_init__(self):
        for name in self.only or ("none",):
            if name not in STUDIES:
                raise InputError(f"--only must be among {', '.join(STUDIES)}, got {name!r}")


def main(options: Options, progress: Progress) -> None:
    trained = open_run(options, progress)  # so that what cannot be looked into is refused before anything is written
    trained, rows = trained._replace(order=examples(trained)), []
    for name in progress.over("studies", list(options.only)):
        title, study = studies.STUDIES[name].title, STUDIES[name]
        progress.say(f"{name} – {title}")
        pictures, started, why = [], time.monotonic(), ""
        try:
            pictures = study(options, progress, trained)
        except InUse:
            raise
        except InputError as error:
            why = f"left out: {error}"
            progress.say(f"{name} is {why}")
        rows.append((name, title, f"{time.monotonic() - started:.0f}", pictures, why))
    if all(why for *_, why in rows):
        raise InputError(f"--only must be studies that suit the run, and none does; {rows[0][0]} is {rows[0][-1]}")
    folder = trained.folder / "figures"
    lines = [f"# {trained.folder.name}: the figures of Zeiler & Fergus (2014)", ""]
    for name, title, _, pictures, why in rows:
        lines += [f"## {title}", f"`{command(name, options, trained)}`", ""]
        lines += [f"![{path.stem}]({path.relative_to(folder)})" for path in pictures] + [why] * bool(why)
        lines += [""]
    write_text(folder / "paper.md", "\n".join(lines))
    cells = [(name, seconds, len(pictures), "left out" * bool(why)) for name, _, seconds, pictures, why in rows]
    progress.say(cli.table("studies", ("study", "seconds", "figures", ""), cells))
    progress.say(f"all in {folder}, listed in paper.md")
    if not trained.is_own:
        report.main(report.Options(run=(trained.folder,)), progress)


def command(name: str, options: RunOptions, trained: Trained) -> str:
    """What draws the figures of this study alone."""
    where = {"network": options.network, "data": options.data}
    if trained.is_own:
        return studies.command(name, None, weights=options.weights, workdir=options.workdir, **where)
    return studies.command(name, options.run, trained.epoch, model=trained.config.model.name, **where)


if __name__ == "__main__":
    cli.run_options(main, Options())
