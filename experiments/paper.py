"""Every figure and table of Zeiler & Fergus (2014) that a trained run can show, one study after another.

Figure 2 (strongest activations), figure 4 (evolution), figure 5 (invariance), figure 7 (occlusion), figure 8 and table
1 (correspondence), table 7 (layer probes); and beside the paper: attribution and activation maximization. A study that
was stopped goes on where it was; one that this network or so few images do not suit is left out, with the reason.
Figure 6 with table 3 trains networks of its own (`experiments.architectures`), and
so does table 4 (`experiments.transfer`): they are not among these.
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
    correspondence,
    filter_evolution,
    invariance,
    maximization,
    occlusion,
    probes,
)
from experiments.looking import RunOptions, Trained, open_run


def _evolution(options: RunOptions, progress: Progress, trained: Trained) -> None:
    config = trained.config
    if config.train.epochs not in run.kept_epochs(options.run):
        raise InputError(f"--run must be finished for the evolution; {options.run} has not kept {config.train.epochs}")
    config = dataclasses.replace(config, data=options.data.of(config.data))
    filter_evolution.main(Arguments(config, options.run, filter_evolution.Options()), progress)


def _study(module: Any) -> Callable[[RunOptions, Progress, Trained], None]:
    return lambda options, progress, trained: module.main(
        module.Options(run=options.run, epoch=options.epoch, data=options.data), progress, trained
    )


STUDIES: dict[str, tuple[str, Callable[[RunOptions, Progress, Trained], None]]] = {
    "evolution": ("figure 4: how features form over the epochs", _evolution),
    "activations": ("figure 2: the strongest activations of each map, projected", _study(activations)),
    "invariance": ("figure 5: translation, scale and rotation", _study(invariance)),
    "occlusion": ("figure 7: what the answer rests on", _study(occlusion)),
    "correspondence": ("figure 8, table 1: the same part in several images", _study(correspondence)),
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
    rows = []
    for name in progress.over("studies", list(options.only)):
        title, study = STUDIES[name]
        progress.say(f"{name} – {title}")
        before, started, why = _pictures(options.run), time.monotonic(), ""
        try:
            study(options, progress, trained)
        except InUse:
            raise
        except InputError as error:
            why = f"left out: {error}"
            progress.say(f"{name} is {why}")
        made = [path for path, changed in _pictures(options.run).items() if before.get(path) != changed]
        rows.append((name, title, f"{time.monotonic() - started:.0f}", made, why))
    if all(why for *_, why in rows):
        raise InputError(f"--only must be studies that suit the run, and none does; {rows[0][0]} is {rows[0][-1]}")
    lines = [f"# {options.run.name}: the figures of Zeiler & Fergus (2014)", ""]
    for name, title, _, made, why in rows:
        lines += [f"## {title}", f"`{command(name, options, trained.epoch)}`", ""]
        lines += [f"![{path.stem}]({path.relative_to(options.run / 'figures')})" for path in made] + [why] * bool(why)
        lines += [""]
    write_text(options.run / "figures" / "paper.md", "\n".join(lines))
    cells = [(name, seconds, len(made), "left out" * bool(why)) for name, _, seconds, made, why in rows]
    progress.say(cli.table("studies", ("study", "seconds", "figures", ""), cells))
    progress.say(f"all in {options.run / 'figures'}, listed in paper.md")


def command(name: str, options: RunOptions, epoch: int) -> str:
    """What draws the figures of this study alone."""
    if name == "evolution":
        config = str(options.run / "config.json")
        words = ["filter_evolution", "--config", config, "--workdir", str(options.run)]
    else:
        words = [name, "--run", str(options.run), "--epoch", str(epoch)]
    for field, place in dataclasses.asdict(options.data).items():
        words += [f"--data.{field.replace('_', '-')}", place] if place else []
    return shlex.join(["python", "-m", f"experiments.{words[0]}", *words[1:]])


def _pictures(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted((folder / "figures").rglob("*.png"))}


if __name__ == "__main__":
    cli.run_options(main, Options())
