"""Every figure and table of Zeiler & Fergus (2014) that a trained run can show, one study after another.

Figure 2 (strongest activations), figure 4 (evolution), figure 5 (invariance), figure 7 (occlusion), figure 8 and table
1 (correspondence), table 2 (errors), table 7 (layer probes); and beside the paper: attribution and activation
maximization. A study that was stopped goes on where it was; one that this network or so few images do not suit is left
out, with the reason. Figure 6 with table 3 trains networks of its own (`experiments.architectures`), and so does table
4 (`experiments.transfer`): they are not among these.
"""

import dataclasses
import shlex
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
    return filter_evolution.main(Arguments(config, options.run, filter_evolution.Options()), progress)


def _study(module: Any) -> Study:
    fields = [field.name for field in dataclasses.fields(RunOptions)]
    return lambda options, progress, trained: module.main(
        module.Options(**{name: getattr(options, name) for name in fields}), progress, trained
    )


STUDIES: dict[str, tuple[str, Study]] = {
    "evolution": ("figure 4: how features form over the epochs", _evolution),
    "activations": ("figure 2: the strongest activations of each map, projected", _study(activations)),
    "invariance": ("figure 5: translation, scale and rotation", _study(invariance)),
    "occlusion": ("figure 7: what the answer rests on", _study(occlusion)),
    "correspondence": ("figure 8, table 1: the same part in several images", _study(correspondence)),
    "classify": ("table 2: the errors, and which classes are taken for which", _study(classify)),
    "probes": ("table 7: what a linear classifier reads from each layer", _study(probes)),
    "attribution": ("not in the paper: saliency, guided backpropagation, Grad-CAM and others", _study(attribution)),
    "maximization": ("not in the paper: images that maximize an activation", _study(maximization)),
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
        title, study = STUDIES[name]
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


def command(name: str, options: RunOptions, trained: Trained) -> str:
    """What draws the figures of this study alone."""
    given: dict[str, Any] = {"network": options.network}
    if trained.is_own:
        given |= {"weights": options.weights, "workdir": options.workdir}
    elif name == "evolution":
        of_code = trained.config.model.name if options.network else None  # a run's record names no code to be run
        given = {"config": options.run / "config.json", "workdir": options.run, "model.name": of_code}
    else:
        given = {"run": options.run, "epoch": trained.epoch} | given
    given |= {f"data.{field}": value for field, value in dataclasses.asdict(options.data).items()}
    words = ["python", "-m", f"experiments.{'filter_evolution' if name == 'evolution' else name}"]
    for option, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{option.replace('_', '-')}", *map(str, values)] if value is not None else []
    return shlex.join(words)


if __name__ == "__main__":
    cli.run_options(main, Options())
