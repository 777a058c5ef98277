"""A page for a run, or for several side by side: what they have learned, over the epochs, in one file for a browser.

`python -m experiments.report --run DIR` writes DIR/report.html from what the run's studies have left; with several
folders the page compares them. It needs no network and no server. A study that was not made, or whose file is not as it
was written, is left out, with the command that makes it. A page that would be larger than `--megabytes` has its
pictures in a folder beside it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cnnjax import cli
from cnnjax.atomic import read_text, replacing, write_text
from cnnjax.cli import Progress
from cnnjax.config import WITHOUT_EFFECT, to_json
from cnnjax.data import credit_of
from cnnjax.data.files import printable
from cnnjax.errors import InputError
from cnnjax.figures import tiles
from cnnjax.figures.attribution import PERCENTILE
from cnnjax.figures.projections import NAMES, depends_in_words, masked, scales_of, tile_in_words
from cnnjax.figures.projections import Made as Projected
from cnnjax.models import foreign
from cnnjax.report import page, records
from cnnjax.report.records import Made
from cnnjax.train import run as runs
from cnnjax.visualize import lives
from experiments import attribution, studies
from experiments.looking import ON

HATCH = 4  # pixels from one line to the next, of what is outside of an image
MOST_RUNS = 6  # that a page tells apart
ATTRIBUTED = ("images", "classes", "pixels", "class_names", "labels", "rows")  # of the attribution, beside its maps
EMBEDDED = ("invariance", "occlusion", "correspondence", "classify", "probes", "attribution", "maximization")


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs, and where the page goes."""

    run: tuple[Path, ...] = (Path("runs/objects"),)  # folders of runs; several: side by side
    out: Path | None = None  # the page; none: report.html in the run's folder, compared.html in the first of several
    megabytes: float = page.MOST_BYTES / 1e6  # of the page; of a larger one the pictures stand in a folder beside it

    def __post_init__(self):
        if not 1 <= len(self.run) <= MOST_RUNS:
            raise InputError(f"--run must be 1 to {MOST_RUNS} folders of runs, got {len(self.run)}")
        for place, folder in enumerate(self.run):
            if folder in self.run[:place]:
                raise InputError(f"--run must name each folder once, got {folder} twice")
        if self.out is not None and self.out.suffix not in (".html", ".htm"):
            raise InputError(f"--out must be the name of an .html file, got {self.out}")
        if not 0 < self.megabytes < np.inf:
            raise InputError(f"--megabytes must be a finite number > 0, got {self.megabytes}")


def main(options: Options, progress: Progress) -> Path:
    """Returns the page's path."""
    name = "report.html" if len(options.run) == 1 else "compared.html"
    out = options.out or options.run[0] / name
    if options.out is not None and not out.parent.is_dir():
        raise InputError(f"--out must be in a folder that exists, got {out}")
    called = _names(options.run)
    read = [
        Reading(folder, name, out.parent, progress).run()
        for folder, name in progress.over("reading runs", list(zip(options.run, called, strict=True)))
    ]
    title = called[0] if len(read) == 1 else " and ".join(called)
    beside = f"{out.stem}_images"
    made = page.render(read, title=title, beside=beside, most_bytes=round(options.megabytes * 1e6))
    write(out, made, beside)
    megabytes = len(made.html.encode()) / 1e6
    said = f"page in {out}, {megabytes:.1f} MB" + f"; its pictures in {out.parent / beside}" * bool(made.images)
    progress.say(
        said + f"; its text alone is more than --megabytes {options.megabytes:g}" * (megabytes > options.megabytes)
    )
    return out


def write(out: Path, made: page.Page, beside: str) -> None:
    """The page, and the folder of its pictures where it needs one; the old page stays whole until the new one is."""
    folder = out.parent / beside
    if made.images:
        if folder.is_symlink():
            raise InputError(f"{folder} must be a folder of its own, and is a link to {folder.readlink()}")
        folder.mkdir(exist_ok=True)
        for name, png in made.images.items():
            with replacing(folder / name) as file:
                file.write(png)
    write_text(out, made.html)
    if not made.images and folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)  # of a larger page that stood there
    elif made.images:
        for path in folder.iterdir():
            if path.suffix == ".png" and path.name not in made.images:
                path.unlink()


def link(path: Path, base: Path) -> str:
    """The address of a file or folder on a page that stands in the folder `base`."""
    return quote(os.path.relpath(path.absolute(), base.absolute()))


def _names(folders: tuple[Path, ...]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = [printable("/".join(of[-count:])) for of in parts]
        if len(set(names)) == len(names):
            return names
    return [printable(str(folder)) for folder in folders]


class Reading:
    """A run folder, read for a page that stands in the folder `base`."""

    def __init__(self, folder: Path, name: str, base: Path, progress: Progress):
        self._folder, self._name, self._base, self._progress = folder, name, base, progress
        self._figures = folder / "figures"
        self._notes: dict[str, list[str]] = {}  # by study
        self._epochs = self._studied()

    def run(self) -> records.Run:
        """All of it. Raises InputError where there is no run."""
        config = runs.read_config(self._folder / "config.json")
        record = runs.read_sealed(self._folder / "config.json") or {}
        metrics = tuple(runs.read_metrics(self._folder))
        done, epochs = (int(metrics[-1]["epoch"]) if metrics else 0), config.train.epochs
        finished = epochs in runs.kept_epochs(self._folder)
        last = metrics[-1] if metrics else {}
        state = f"finished: {epochs} epochs" if finished else f"not finished: as far as epoch {done} of {epochs}"
        if "test_error" in last:
            state += f"; test error {100 * last['test_error']:.2f} % after epoch {done}"
        evolutions, every = self._evolutions()
        layers, layers_note = self._layers()
        class_layer = layers[-1].name if layers else ""
        confusion = self._confusion()
        names = confusion.names if confusion is not None else ()
        maximized = self._maximized()
        return records.Run(
            name=self._name,
            state=state,
            citation=_citation(record),
            credit=credit_of(config.data),
            command=_repeat(self._folder, config),
            settings=_flat(to_json(config)),
            metrics=metrics,
            metrics_link=self._link(self._folder / "metrics.jsonl") if metrics else "",
            layers=layers,
            layers_note=layers_note,
            filters=self._filters(),
            evolutions=evolutions,
            lives=every,
            convergence=self._convergence(),
            strongest=self._strongest(),
            maximized=maximized,
            explained=tuple(one for one in (self._occlusion(), self._attribution(class_layer)) if one is not None),
            confusion=confusion,
            class_layer=class_layer,
            class_names=names,
            studies=self._listed(),
        )

    def _studied(self) -> list[int]:
        """The epochs of which there are figures of their own."""
        found = [path.name.removeprefix("epoch-") for path in self._figures.glob("epoch-*") if path.is_dir()]
        return sorted(int(number) for number in found if number.isascii() and number.isdecimal())

    def _link(self, path: Path) -> str:
        return link(path, self._base)

    def _command(self, study: str, epoch: int | None = None) -> str:
        return studies.command(study, self._folder, epoch)

    def _made(self, study: str, npz: Path, epoch: int | None = None) -> Made:
        picture = npz.with_suffix(".png")
        return Made(self._link(npz), self._link(picture) if picture.is_file() else "", self._command(study, epoch))

    @contextlib.contextmanager
    def _reading(self, study: str, path: Path) -> Iterator[None]:
        """Notes a file that is not as its study writes it, and goes on without what is in it."""
        try:
            yield
        except (
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            note = f"{printable(path.name)} is left out, because it is not as its study writes it ({printable(said)})"
            self._notes.setdefault(study, []).append(note)
            self._progress.say(f"{self._folder}: {note}")

    def _newest(self, name: str) -> tuple[int, Path] | None:
        """That file of the last epoch that has it."""
        for epoch in reversed(self._epochs):
            if (path := self._figures / f"epoch-{epoch}" / name).is_file():
                return epoch, path
        return None

    def _layers(self) -> tuple[tuple[records.Layer, ...], str]:
        path = self._figures / studies.LAYERS
        note = f"No table of layers: {self._command('evolution')} makes it."
        if not path.is_file():
            return (), note
        found: list[records.Layer] = []
        with self._reading("evolution", path):
            for row in json.loads(read_text(path)):
                known = {name: row[name] for name in records.Layer._fields if name != "sees"}
                known = {name: _tuples(value) for name, value in known.items()}
                sees = tuple(int(field["size"]) for field in row["fields"] or ())
                found.append(records.Layer(**known, sees=sees))
                if not found[-1].output_shape or not _are_whole([found[-1][2:], sees]):
                    raise ValueError(f"{found[-1]} is no layer")
            return tuple(found), ""
        return (), note

    def _evolutions(self) -> tuple[dict[str, records.Evolution], dict[str, records.Lives]]:
        found: dict[str, records.Evolution] = {}
        every: dict[str, records.Lives] = {}
        for path in _in_order(self._figures.glob("evolution_*.npz")):
            layer = path.stem.removeprefix("evolution_")
            with self._reading("evolution", path):
                of = _arrays(
                    path, "maps epochs image", maps="rows", epochs="epochs", value="rows epochs", image="rows epochs",
                    projections="rows epochs height width channels", patches="rows epochs height width channels",
                )  # fmt: skip
                one = records.Evolution(
                    of["maps"],
                    of["epochs"],
                    of["value"].astype(float),
                    of["image"],
                    _projections(of, str(of.get("contrast", "tile"))),
                    _grey_levels(of["patches"] / 255),
                    _in_words(of, str(of.get("contrast", "tile"))),
                    self._made("evolution", path),
                    _unit_places(of),
                )
                if "every_value" in of:  # a run of before has none
                    axes = {f"every_{name}": "maps epochs" for name in lives.Lives._fields}
                    of = _arrays(path, "every_image", epochs="epochs", **axes)
                    alive = lives.Lives(*(of[name] for name in axes))
                    every[layer] = records.Lives(alive.value, *lives.measures(alive))
                found[layer] = one
        return found, every

    def _filters(self) -> records.Filters | None:
        for path in self._figures.glob("filters_*.npz"):
            with self._reading("evolution", path):
                of = _arrays(path, "epochs", epochs="epochs", kernels="epochs height width channels filters")
                by_filter = np.moveaxis(of["kernels"], 4, 0)
                scale = np.abs(by_filter).max(axis=(1, 2, 3, 4), keepdims=True)
                shown = _grey_levels(tiles.signed(by_filter, scale))
                layer = path.stem.removeprefix("filters_")
                return records.Filters(layer, of["epochs"], shown, self._made("evolution", path))
        return None

    def _convergence(self) -> records.Convergence | None:
        path = self._figures / "convergence.npz"
        if path.is_file():
            with self._reading("evolution", path):
                axes = dict.fromkeys(("filter_distance", "dead", "moved"), "layers epochs")
                of = _arrays(path, "epochs", layers="layers", epochs="epochs", **axes)
                layers, epochs = tuple(map(str, of["layers"])), tuple(map(int, of["epochs"]))
                distance, dead, moved = (of[name].astype(float) for name in axes)
                made = self._made("evolution", path)
                return records.Convergence(layers, epochs, distance, dead, moved, made)
        return None

    def _strongest(self) -> dict[str, dict[int, records.Strongest]]:
        found: dict[str, dict[int, records.Strongest]] = {}
        for epoch in self._epochs:
            for path in _in_order((self._figures / f"epoch-{epoch}").glob("activations_*.npz")):
                with self._reading("activations", path):
                    of = _arrays(
                        path, "maps image", maps="rows", value="rows count", image="rows count",
                        projections="rows count height width channels", patches="rows count height width channels",
                    )  # fmt: skip
                    one = records.Strongest(
                        of["maps"],
                        of["value"].astype(float),
                        of["image"],
                        str(of["split"]) if "split" in of else "searched",
                        _projections(of, "tile"),
                        _grey_levels(of["patches"] / 255),
                        _in_words(of, "tile"),
                        self._made("activations", path, epoch),
                        _unit_places(of),
                    )
                    found.setdefault(path.stem.removeprefix("activations_"), {})[epoch] = one
        return found

    def _maximized(self) -> dict[str, records.Maximized]:
        newest, found = self._newest("maximization.npz"), {}
        if newest is not None:
            epoch, path = newest
            with self._reading("maximization", path):
                of = _arrays(path)
                for layer in [name.removesuffix("-units") for name in of if name.endswith("-units")]:
                    axes = {"images": "units height width channels", "values": "units", "best": "units"}
                    _arrays(path, f"{layer}-units", **{f"{layer}-{name}": axis for name, axis in axes.items()})
                    images = _grey_levels(np.clip(of[f"{layer}-images"] / 255, 0, 1))
                    value, best = (of[f"{layer}-{name}"].astype(float) for name in ("values", "best"))
                    made = self._made("maximization", path, epoch)
                    found[layer] = records.Maximized(of[f"{layer}-units"], images, value, best, epoch, made)
        return found

    def _occlusion(self) -> records.Explained | None:
        newest = self._newest("occlusion.npz")
        if newest is None:
            return None
        epoch, path = newest
        with self._reading("occlusion", path):
            of = _arrays(path)
            numbers = [int(of[name]) for name in of if name.startswith("number_")]
            layer = str(of["layer"]) if "layer" in of else None  # a study of before did not keep it
            columns = ("image", "activity of the map, covered there", "probability of the class, covered there")
            rows, captions, units = [], [], []
            for number in numbers:
                image, watched = of[f"image_{number}"], int(of[f"map_{number}"])
                activity, probability = of[f"activity_{number}"], of[f"probability_{number}"]
                top = max(float(activity.max()), float(of[f"whole_activity_{number}"]))
                heat = (activity / top if top > 0 else activity, probability)
                shown = [_enlarged(map, image.shape[:2])[..., None] for map in heat]
                rows.append(np.stack([_grey_levels(one) for one in (image / 255, *shown)]))
                captions.append(f"test image {number}: a square over a dark place silences map {watched}, or the class")
                units.append((layer, watched) if layer is not None else None)
            made = self._made("occlusion", path, epoch)
            return records.Explained(
                "occlusion", "test", tuple(numbers), tuple(captions), tuple(units), columns, np.stack(rows), epoch, made
            )
        return None

    def _attribution(self, class_layer: str) -> records.Explained | None:
        newest = self._newest("attribution.npz")
        if newest is None:
            return None
        epoch, path = newest
        with self._reading("attribution", path):
            of = _arrays(path)
            if "pixels" not in of:  # a study of before did not keep the images
                return None
            names = [str(name) for name in of["class_names"]]
            methods = {name: maps for name, maps in of.items() if name not in ATTRIBUTED}
            columns = [_grey_levels(of["pixels"] / 255), *(_of_method(*one) for one in methods.items())]
            numbers, explained = [int(number) for number in of["images"]], [int(label) for label in of["classes"]]
            captions = [
                f"test image {number}: what speaks for {names[label]}"
                for number, label in zip(numbers, explained, strict=True)
            ]
            return records.Explained(
                "attribution",
                "test",
                tuple(numbers),
                tuple(captions),
                tuple((class_layer, label) if class_layer else None for label in explained),
                ("image", *(name.replace("_", " ") for name in methods)),
                np.stack(columns, axis=1),
                epoch,
                self._made("attribution", path, epoch),
            )
        return None

    def _confusion(self) -> records.Confusion | None:
        newest = self._newest("confusion.npz")
        if newest is None:
            return None
        epoch, path = newest
        with self._reading("classify", path):
            of = _arrays(path, "counts", class_names="classes", counts="classes classes")
            names = tuple(map(str, of["class_names"]))
            return records.Confusion(names, of["counts"], epoch, self._made("classify", path, epoch))
        return None

    def _folders(self, study: str) -> list[tuple[int | None, str, Path]]:
        """Where a study leaves its figures: (epoch, "", folder); those of a user's own pictures in folders in these."""
        folders: list[tuple[int | None, Path]] = [(e, self._figures / f"epoch-{e}") for e in self._epochs]
        if study == "evolution":
            folders = [(None, self._figures)]
        own = [(epoch, printable(of.name), of) for epoch, folder in folders for of in _in_order(folder.glob(f"{ON}*"))]
        return [*((epoch, "", folder) for epoch, folder in folders), *own]

    def _listed(self) -> tuple[records.Study, ...]:
        """Every study, made or not."""
        listed = []
        for name, study in studies.STUDIES.items():
            figures, above, epochs = [], [], []
            for epoch, own, folder in self._folders(name):
                for path in _in_order(path for pattern in study.pictures for path in folder.glob(pattern)):
                    npz = path.with_suffix(".npz")
                    made = Made(self._link(npz) if npz.is_file() else "", self._link(path), "")
                    if not own:
                        epochs.append(epoch)
                    if own or name in EMBEDDED:
                        called = [path.stem, f"epoch {epoch}" if epoch is not None else "", own]
                        with self._reading(name, path):
                            figures.append(records.Figure(", ".join(filter(None, called)), path.read_bytes(), made))
                    else:
                        above.append(made)
            notes = [f"{note}." for note in self._notes.get(name, [])]
            if not epochs:
                notes.append("Not made. The command makes it:")
            command = self._command(name, epochs[-1] if epochs else None)
            listed.append(records.Study(name, study.title, command, tuple(figures), tuple(above), " ".join(notes)))
        return tuple(listed)


def _arrays(path: Path, whole: str = "", **axes: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz.

    Args:
        whole: names of those that hold whole numbers.
        axes: of those with these names; an axis has one size wherever it is named.

    Raises:
        KeyError, ValueError: they are not so, or it is no .npz.
    """
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
        arrays = dict(found)
    for name in whole.split():
        if arrays[name].dtype.kind not in "iu":
            raise ValueError(f"{name} must be whole numbers, got {arrays[name].dtype}")
    sizes: dict[str, int] = {}
    for name, names in axes.items():
        shape = arrays[name].shape
        fits = len(shape) == len(names.split())
        for axis, size in zip(names.split(), shape, strict=False):
            fits = fits and sizes.setdefault(axis, size) == size
        if not fits:
            raise ValueError(f"{name} must have the axes {names} of {sizes}, got {shape}")
    return arrays


def _in_order(paths: Any) -> list[Path]:
    """By name, conv2 before conv10."""
    return sorted(
        paths, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _are_whole(value: Any) -> bool:
    """Whether all in it are whole numbers."""
    return all(map(_are_whole, value)) if isinstance(value, tuple | list) else isinstance(value, int)


def _grey_levels(values: np.ndarray) -> np.ndarray:
    """Of 0 to 1, [..., height, width, 1 or 3]: what a screen shows, [..., 3]; NaN, outside of the image, hatched."""
    if values.shape[-1] not in (1, 3):
        raise ValueError(f"{values.shape[-1]} channels cannot be shown as colour")
    diagonals = np.add.outer(np.arange(values.shape[-3]), np.arange(values.shape[-2])) % HATCH == 0
    outside = np.where(diagonals, float(tiles.HATCH_GREY), tiles.OUTSIDE)[..., None]
    levels = np.rint(255 * np.clip(np.where(np.isnan(values), outside, values), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (*values.shape[:-1], 3)))


def _projections(of: Mapping[str, np.ndarray], contrast: str) -> np.ndarray:
    """As the figure draws them."""
    shown = masked(of["projections"], of["patches"])
    return _grey_levels(tiles.signed(shown, scales_of(shown, contrast)[:, :, None, None, None]))


def _in_words(of: Mapping[str, np.ndarray], contrast: str) -> str:
    """How the projections were made; a study of before has not kept it."""
    if "rule" not in of:
        return ""
    field = tuple(map(int, of["field"]))
    made = Projected(str(of["rule"]), float(of["alike"]), (field[0], field[1]) if field else None, str(of["chosen"]))
    height, width = of["projections"].shape[2:4]
    by = f"projections by {NAMES[made.rule]}: mid grey 0, contrast by {contrast}"
    cross = "+: the unit's place" if "place" in of else ""
    said = (f"maps: {made.chosen}", tile_in_words(made, (height, width)), cross, by, depends_in_words(made))
    return "; ".join(filter(None, said))


def _unit_places(of: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Of the units in their patches, (row, column); a study of before has not kept them."""
    if "place" not in of:
        return None
    if of["place"].shape != (*of["value"].shape, 2):
        raise ValueError(f"place must have the axes of value and 2, got {of['place'].shape}")
    return of["place"].astype(float)


def _enlarged(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each number as a block, so that the whole has this height and width."""
    rows, columns = (np.arange(side) * count // side for side, count in zip(shape, values.shape, strict=True))
    return values[rows][:, columns]


def _of_method(name: str, maps: np.ndarray) -> np.ndarray:
    """As the figure shows them: projections around mid grey, magnitudes from black; each on its own scale."""
    if name in map(attribution.slug, attribution.COLOURED):
        return _grey_levels(np.stack([tiles.signed(tile, tiles.robust_scale(tile)) for tile in maps]))
    bright = attribution.brightness(maps)
    top = np.percentile(bright, PERCENTILE, axis=(1, 2), keepdims=True)
    return _grey_levels(np.clip(bright / np.where(top > 0, top, 1), 0, 1)[..., None])


def _citation(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a run is known by: hash of the settings that decide it, fingerprint of the data, versions, device.

    Of the settings as they were recorded, so that a run keeps its hash when a later version knows more of them.
    """
    settings = {name: value for name, value in _flat(record["config"]).items() if name not in WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    versions = {str(name): str(version) for name, version in dict(record.get("versions", {})).items()}
    return (
        ("cnnjax", versions.pop("cnnjax", "?")),
        ("config", digest[:12]),
        (f"data {record['data']['name']}", record["data"]["sha256"][:12]),
        *versions.items(),
        ("Python", str(record.get("python", "?"))),
        ("on", str(record.get("device", "?"))),
    )


def _repeat(folder: Path, config: Any) -> str:
    """What trains the same network anew, in a folder beside; somebody's own code is named, or it is not run."""
    own = ["--model.name", config.model.name] if foreign.is_code(config.model.name) else []
    place = ["--config", str(folder / "config.json"), "--workdir", f"{folder}-again"]
    return shlex.join(["python", "-m", "experiments.filter_evolution", *place, *own])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """By dotted name, as text."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: json.dumps(value)}
    return found


if __name__ == "__main__":
    cli.run_options(main, Options())
