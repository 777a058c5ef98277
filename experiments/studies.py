"""The studies of a trained network: what they show, where they write it, and the command that does it again."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from experiments.looking import Images


class Study(NamedTuple):
    """One of them."""

    title: str
    pictures: tuple[str, ...]  # patterns of their names, in the figures' folder (evolution) or in that of an epoch


LAYERS = "layers.json"  # the table of layers, beside the figures of the evolution
STUDIES = {
    "evolution": Study(
        "figure 4: how features form over the epochs", ("filters_*.png", "evolution_*.png", "convergence.png")
    ),
    "activations": Study("figure 2: the strongest activations of each map, projected", ("activations_*.png",)),
    "invariance": Study("figure 5: translation, scale and rotation", ("invariance*.png",)),
    "occlusion": Study("figure 7: what the answer rests on", ("occlusion.png",)),
    "correspondence": Study("figure 8, table 1: the same part in several images", ("correspondence.png",)),
    "classify": Study("table 2: the errors, and which classes are taken for which", ("classify.png", "confusion.png")),
    "probes": Study("table 7: what a linear classifier reads from each layer", ("probes.png",)),
    "attribution": Study(
        "not in the paper: saliency, guided backpropagation, Grad-CAM and others", ("attribution*.png",)
    ),
    "maximization": Study("not in the paper: images that maximize an activation", ("maximization.png",)),
}


HERE = Images()  # where they were


def command(
    name: str,
    run: Path | None,
    epoch: int | None = None,
    *,
    network: str | None = None,
    model: str | None = None,
    weights: Path | None = None,
    workdir: Path | None = None,
    data: Images = HERE,
) -> str:
    """What draws the figures of this study alone.

    Args:
        run: its folder; none: `network` has been trained elsewhere.
        epoch: of the run; none: its last. The evolution has all.
        network: the code of the network, if it is somebody's own; a run's record names no code to be run.
        model: the name that the run has for that code.
        weights: of `network`, where there is no run.
        workdir: then, where the figures are.
        data: where the images are now.
    """
    given: dict[str, Any] = {"network": network}
    if run is None:
        given |= {"weights": weights, "workdir": workdir}
    elif name == "evolution":
        given = {"config": run / "config.json", "workdir": run, "model.name": model if network else None}
    else:
        given = {"run": run, "epoch": epoch} | given
    given |= {f"data.{field}": value for field, value in dataclasses.asdict(data).items()}
    words = ["python", "-m", f"experiments.{'filter_evolution' if name == 'evolution' else name}"]
    for option, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{option.replace('_', '-')}", *map(str, values)] if value is not None else []
    return shlex.join(words)
