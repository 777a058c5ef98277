"""Which claims of Zeiler & Fergus (2014) hold here, with their spread over seeds: one table, by one command.

For each config and seed the default run is trained into OUT/CONFIG-SEED (or goes on, or is found finished), the studies
look into it with their defaults, and each claim is read from the numbers behind their figures. A cell says for how many
seeds the claim holds and, over the seeds, the mean, the lowest and the highest of its numbers. The config
`architectures` is that of figure 6 and table 3, which train a dozen networks each.

    python -m experiments.claims --configs digits --seeds 0 1 --epochs 2

With `--markdown PAGE` the table stands between the page's markers `claims`; columns of other configs stay there.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax import cli
from cnnjax.atomic import write_text
from cnnjax.cli import Arguments, Progress
from cnnjax.config import Config, check_seed
from cnnjax.errors import InputError
from cnnjax.figures import settings
from cnnjax.figures.convergence import half_way
from cnnjax.train import run
from cnnjax.train.lock import InUse
from cnnjax.visualize import invariance as of_transformations
from experiments import architectures, correspondence, filter_evolution, invariance, occlusion, pages, probes, transfer
from experiments.looking import Place
from experiments.probes import depth_correlation

Arrays = Mapping[str, np.ndarray]


class Found(NamedTuple):
    """What one run says of a claim."""

    holds: bool | None  # None: it is a number and no claim
    numbers: tuple[float, ...]


class Claim(NamedTuple):
    """What the paper says, and how a study's numbers decide it."""

    text: str
    study: str
    decide: Callable[[Arrays], Found]
    form: str = "{:.2f}"  # of each number
    between: str = "; "  # the numbers


def error(arrays: Arrays) -> Found:
    return Found(None, (100 * float(arrays["test_error"]),))


def settles(arrays: Arrays) -> Found:
    distance, epochs = arrays["filter_distance"], tuple(int(epoch) for epoch in arrays["epochs"])
    halves = np.array([half_way(epochs, of_layer / of_layer[0]) for of_layer in distance])
    correlation = depth_correlation(halves)
    return Found(correlation > 0, (correlation, float(halves[0]), float(halves[-1])))


def centre(arrays: Arrays) -> Found:
    more = arrays["centre"] - arrays["corners"].mean(axis=1)
    return Found(bool(arrays["interval"][0] > 0), (float(more.mean()),))


def of_transformation(arrays: Arrays, name: str) -> of_transformations.Claims:
    of = {field: arrays[f"{name}/{field}"] for field in ("distance", "unrelated", "probability", "untouched")}
    amount = invariance.TRANSFORMATIONS[name].amount(arrays[f"{name}/values"])
    return of_transformations.claims(**of, amount=amount)


def shifted(arrays: Arrays) -> Found:
    low, high = (100 * float(share) for share in of_transformation(arrays, "translation").small)
    return Found(high < low, (low, high))


def turned(arrays: Arrays) -> Found:
    shift, scale, turn = (100 * of_transformation(arrays, name).kept for name in ("translation", "scale", "rotation"))
    return Found(turn < min(shift, scale), (shift, scale, turn))


def deeper(arrays: Arrays) -> Found:
    svm = list(arrays["classifiers"]).index("svm")
    trained, untrained = (depth_correlation(of[:, :, svm, -1].mean(axis=0)) for of in arrays["accuracy"])
    return Found(trained > max(0.0, untrained), (trained, untrained))


def together(arrays: Arrays) -> Found:
    part, random = (float(arrays[name][:, 0, 0].mean()) for name in ("part", "random"))
    return Found(part < random, (part, random))


def transferred(arrays: Arrays) -> Found:
    of_method = dict(zip(arrays["methods"], 100 * arrays["accuracy"][:, 0].mean(axis=-1), strict=True))
    scratch, tuned = float(of_method["from scratch"]), float(of_method["fine-tuned"])
    return Found(tuned > scratch, (scratch, tuned))


def measured(arrays: Arrays, name: str, *variants: str) -> tuple[float, ...]:
    """A measure of first-layer filters of some variants."""
    column = list(arrays["measure_names"]).index(name)
    return tuple(float(arrays["measures"][list(arrays["variants"]).index(variant), column]) for variant in variants)


def middle(arrays: Arrays) -> Found:
    base, large = (100 * share for share in measured(arrays, "middle", "base", "first_11_4"))
    return Found(large < base, (base, large))


def aliased(arrays: Arrays) -> Found:
    base, large = (100 * share for share in measured(arrays, "aliased", "base", "first_11_4"))
    return Found(large > base, (base, large))


def ruling(arrays: Arrays) -> Found:
    base, without = measured(arrays, "ruling", "base", "no_renormalization")
    return Found(without > base, (base, without))


def depth(arrays: Arrays) -> Found:
    top1 = dict(zip(arrays["variants"], arrays["errors"][:, 1], strict=True))
    rises = [float(top1[name] - top1["base"]) for name in ("no_middle", "no_dense", "no_middle_no_dense")]
    return Found(rises[2] > max(0.0, rises[0] + rises[1]), tuple(rises))


CLAIMS = (
    Claim("test error, %", "training", error, "{:.1f}"),
    Claim(
        "lower layers settle before upper ones (rank correlation of depth and the epoch at which the filters are half "
        "way; that of the first and of the last layer)",
        "evolution", settles, "{:.1f}",
    ),
    Claim(
        "covering the centre lowers the class more than covering a corner (mean difference of the probability; holds "
        "where its 95 % interval is above 0)",
        "occlusion", centre, "{:.3f}",
    ),
    Claim(
        "a shift by one pixel moves the top layer less than the first (share of the distance to another image, %)",
        "invariance", shifted, "{:.0f}", " → ",
    ),
    Claim(
        "the answer bears shift and scale better than rotation (probability kept, %: shift; scale; rotation)",
        "invariance", turned, "{:.0f}",
    ),
    Claim(
        "linear probes rise with depth, more than untrained (rank correlation of depth and accuracy of the SVM; "
        "untrained)",
        "probes", deeper,
    ),
    Claim(
        "covering the same place changes the last convolution more alike than random boxes do (Δ of places; of random "
        "boxes)",
        "correspondence", together,
    ),
    Claim(
        "features learned here help on another set (accuracy with fewest images, %: from scratch; fine-tuned)",
        "transfer", transferred, "{:.0f}",
    ),
    Claim(
        "11×11 filters with stride 4 have fewer middle frequencies (energy, %: base; 11×11)",
        "architectures", middle, "{:.0f}",
    ),
    Claim("11×11 filters with stride 4 alias more (energy, %: base; 11×11)", "architectures", aliased, "{:.1f}"),
    Claim(
        "without renormalization one filter rules the others more (strongest filter / median: with; without)",
        "architectures", ruling, "{:.1f}",
    ),
    Claim(
        "without both middle convolutions and dense layers the error rises by more than by both alone (points: no "
        "middle; no dense; neither)",
        "architectures", depth, "{:.1f}",
    ),
)  # fmt: skip
STUDIES = tuple(dict.fromkeys(claim.study for claim in CLAIMS))
ABOUT = "network, epochs, seeds"


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs, and where their numbers go."""

    configs: tuple[str, ...] = ("objects", "photos", "architectures")  # names in configs/
    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, order and augmentation
    only: tuple[str, ...] = STUDIES  # which of the studies
    epochs: int | None = None  # instead of each config's own
    out: Path = Path("runs/claims")  # the folder of the runs, and of claims.json
    data: Place = Place()  # where the images of the configs are, if elsewhere
    markdown: Path | None = None  # a page: between its markers "claims" the table

    def __post_init__(self):
        for option, given, known in (("--configs", self.configs, cli.known_configs()), ("--only", self.only, STUDIES)):
            for name in given or ("none",):
                if name not in known:
                    raise InputError(f"{option} must be among {', '.join(known)}, got {name!r}")
        for option, given in (("--configs", self.configs), ("--seeds", self.seeds), ("--only", self.only)):
            if not given or len(set(given)) < len(given):
                raise InputError(f"{option} must be different ones, at least one, got {' '.join(map(str, given))}")
        for seed in self.seeds:
            check_seed("--seeds", seed)
        if self.epochs is not None and not 1 <= self.epochs <= 10**5:
            raise InputError(f"--epochs must be between 1 and {10**5}, got {self.epochs}")


def main(options: Options, progress: Progress) -> None:
    settings.check()
    if options.markdown is not None:
        pages.check(options.markdown, "claims", "--markdown")
    configs = {(name, seed): config_of(name, seed, options) for name in options.configs for seed in options.seeds}
    found: dict[str, dict[int, dict[str, Arrays]]] = {name: {} for name in options.configs}
    for (name, seed), config in progress.over("runs", list(configs.items())):
        progress.say(f"{name}, seed {seed}")
        found[name][seed] = looked_into(config, options.out / f"{name}-{seed}", name, options.only, progress)
    columns = {name: column(name, options, of_seeds) for name, of_seeds in found.items()}
    write_text(options.out / "claims.json", json.dumps(columns, indent=1, ensure_ascii=False) + "\n")
    if options.markdown is not None:
        known = pages.columns_of(pages.between(options.markdown, "claims")) if options.markdown.exists() else {}
        rows = [ABOUT, *(claim.text for claim in CLAIMS)]
        pages.write(options.markdown, "claims", pages.table_of("claim", known | columns, rows))
    rows = [(text, *(columns[name].get(text, "–") for name in columns)) for text in (ABOUT, *(c.text for c in CLAIMS))]
    progress.say(cli.table("claims", ("", *columns), [(row[0][:60], *row[1:]) for row in rows]))
    progress.say(f"all in {options.out / 'claims.json'}")


def config_of(name: str, seed: int, options: Options) -> Config:
    """The config with this seed, and with the images where they are."""
    config = cli.load_config(name)
    train = config.train if options.epochs is None else dataclasses.replace(config.train, epochs=options.epochs)
    return dataclasses.replace(
        config, hyper=dataclasses.replace(config.hyper, seed=seed), train=train, data=options.data.of(config.data)
    )


def looked_into(config: Config, folder: Path, name: str, only: Sequence[str], progress: Progress) -> dict[str, Arrays]:
    """The numbers of each study of a run, which is trained first; a study that does not suit it is left out."""
    if name == "architectures":
        if "architectures" not in only:
            return {}
        architectures.main(Arguments(config, folder, architectures.Options()), progress)
        return {"architectures": arrays_of(folder / "figures" / "architectures.npz")}
    # Draws figure 4 too, so that the run is there to be looked at.
    filter_evolution.main(Arguments(config, folder, filter_evolution.Options()), progress)
    last = folder / "figures" / f"epoch-{config.train.epochs}"
    other = "photos" if config.data.name == "digits" else "digits"
    target = transfer.Options(run=folder, data=dataclasses.replace(transfer.Options().data, name=other))
    of_run: dict[str, tuple[Callable[[], Any], Path]] = {
        "occlusion": (lambda: occlusion.main(occlusion.Options(run=folder), progress), last / "occlusion.npz"),
        "invariance": (
            lambda: invariance.main(invariance.Options(run=folder), progress), last / "invariance_average.npz"
        ),
        "probes": (lambda: probes.main(probes.Options(run=folder), progress), last / "probes.npz"),
        "correspondence": (
            lambda: correspondence.main(correspondence.Options(run=folder), progress), last / "correspondence.npz"
        ),
        "transfer": (lambda: transfer.main(target, progress), last / f"transfer-{other}.npz"),
    }  # fmt: skip
    found: dict[str, Arrays] = {
        "training": {"test_error": np.asarray(run.read_metrics(folder)[-1]["test_error"])},
        "evolution": arrays_of(folder / "figures" / "convergence.npz"),
    }
    for study, (look, numbers) in of_run.items():
        if study not in only:
            continue
        try:
            look()
        except InUse:
            raise
        except InputError as reason:
            progress.say(f"{study} is left out: {reason}")
            continue
        found[study] = arrays_of(numbers)
    return {study: arrays for study, arrays in found.items() if study in only}


def arrays_of(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def column(name: str, options: Options, of_seeds: Mapping[int, Mapping[str, Arrays]]) -> dict[str, str]:
    """By claim what the runs of one config say of it."""
    config = config_of(name, options.seeds[0], options)
    epochs = f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}"
    cells = {ABOUT: f"{config.model.name}, {epochs}, seeds {' '.join(map(str, of_seeds))}"}
    for claim in CLAIMS:
        found = [claim.decide(of_study[claim.study]) for of_study in of_seeds.values() if claim.study in of_study]
        if found:
            cells[claim.text] = cell(claim, found)
    return cells


def cell(claim: Claim, found: Sequence[Found]) -> str:
    """For how many the claim holds; and of each number the mean, the lowest and the highest."""
    of_each = np.array([one.numbers for one in found]).T
    shown = [[claim.form.format(of) for of in (each.mean(), each.min(), each.max())] for each in of_each]
    spreads = [f"{mean} ({low} to {high})" for mean, low, high in shown]
    holding = [one.holds for one in found if one.holds is not None]
    return (f"{sum(holding)} of {len(holding)}: " if holding else "") + claim.between.join(spreads)


if __name__ == "__main__":
    cli.run_options(main, Options())
