"""The page of a run, or of several side by side: what belongs together is brought together here, and rendered."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from cnnjax.report import charts, records
from cnnjax.report.charts import Chart, Line
from cnnjax.report.sheets import Sheet, sheet

MOST_BYTES = 25_000_000  # of a page with its pictures in it; of a larger one they stand in a folder beside
NAMED_CLASSES = 30  # at most, of a table of confusions


class Page(NamedTuple):
    """A file, and those that it needs in a folder beside it; none where it holds its pictures itself."""

    html: str
    images: dict[str, bytes]


class Tile(NamedTuple):
    """A small picture of a sheet. Places are CSS: a number, or what the chosen epoch decides."""

    sheet: str
    x: str
    y: str
    alt: str
    dead: bool = False  # there is no picture, and that is said
    marks: tuple[str, ...] = ()  # "across down" in %: where a cross stands, of each epoch or always; "": nowhere


class Life(NamedTuple):
    """A unit over the epochs of a run."""

    epochs: tuple[tuple[int, int], ...]  # (place on the slider, epoch)
    projections: tuple[Tile, ...]
    patches: tuple[Tile, ...]
    values: tuple[str, ...]
    images: tuple[int, ...]


class Top(NamedTuple):
    """The images that excite a unit most."""

    places: str  # on the slider, of the epochs that it was looked for at
    epochs: tuple[int, ...]
    split: str
    projections: tuple[Tile, ...]
    patches: tuple[Tile, ...]
    values: tuple[tuple[str, ...], ...]  # of each picture at the slider's places
    images: tuple[tuple[str, ...], ...]
    links: tuple[tuple[str, str], ...]  # (text, anchor) of what else was made of these images
    note: str
    made: records.Made


class OfRun(NamedTuple):
    """What a run has of a unit."""

    run: int
    sentence: str
    life: Life | None
    life_made: records.Made | None
    filters: tuple[Tile, ...]
    filter_epochs: tuple[tuple[int, int], ...]
    top: Top | None
    maximized: Tile | None
    maximized_note: str
    maximized_made: records.Made | None
    explained: tuple["ExplainedRow", ...]


class ExplainedRow(NamedTuple):
    title: str
    anchor: str
    unit_anchor: str  # of the unit that is explained; empty: none is known
    caption: str
    tiles: tuple[tuple[str, Tile], ...]
    made: records.Made


class Unit(NamedTuple):
    layer: str
    number: int
    called: str
    anchor: str
    runs: tuple[OfRun, ...]


class Grid(NamedTuple):
    """Some maps of a layer at the chosen epoch, or its filters."""

    title: str
    run: int
    places: str  # on the slider
    last: int  # column at first
    rows: tuple[tuple[str, str, tuple[Tile, ...], tuple[str, ...]], ...]  # unit, anchor, tiles, numbers at the places
    made: records.Made
    note: str


class Brief(NamedTuple):
    """The life of a unit in a line of a table."""

    number: int
    anchor: str
    shown: bool  # it has a place of its own on the page
    cells: tuple[tuple[str, ...], ...]  # of each run: born, changes, drift, died, strongest activation


class LayerPart(NamedTuple):
    name: str
    anchor: str
    grids: tuple[Grid, ...]
    units: tuple[Unit, ...]
    briefs: tuple[Brief, ...]


class Box(NamedTuple):
    """A layer in the drawing of the network."""

    layer: records.Layer
    anchor: str  # empty: there is nothing of it on the page
    wide: float
    high: float
    size: str
    rule: str
    sees: str


class _Sheets:
    """Those that the page needs, each once."""

    def __init__(self) -> None:
        self.all: list[Sheet] = []

    def add(self, label: str, tiles: Any) -> Sheet:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()
        self.all.append(sheet(f"s{len(self.all)}-{stem}", tiles))
        return self.all[-1]


def render(runs: Sequence[records.Run], *, title: str, beside: str, most_bytes: int = MOST_BYTES) -> Page:
    """The page of these runs.

    Args:
        beside: name of the folder where pictures go that the page has no room for.
        most_bytes: of the page.
    """
    sheets = _Sheets()
    epochs = slider_epochs(runs)
    last = max([*epochs, *(int(line["epoch"]) for run in runs for line in run.metrics)], default=0)
    explained = [_explained(number, run, sheets) for number, run in enumerate(runs)]
    context = {
        "title": title,
        "runs": runs,
        "several": len(runs) > 1,
        "epochs": epochs,
        "shares": [epoch / max(last, 1) for epoch in epochs],
        "charts": [charts.drawn(chart, epochs, last) for chart in _charts(runs, epochs)],
        "drawing": charts,
        "differences": differences(runs),
        "networks": _networks(runs),
        "confusions": [
            (number, run.confusion, _shares(run.confusion))
            for number, run in enumerate(runs)
            if run.confusion is not None and len(run.confusion.names) <= NAMED_CLASSES
        ],
        "layers": _layers(runs, epochs, sheets, explained),
        "explained": [(number, group) for number, groups in enumerate(explained) for group in groups],
        "sheets": sheets.all,
        "slug": slug,
    }
    figures = {(n, f.name): f.png for n, run in enumerate(runs) for study in run.studies for f in study.figures}
    return fitted("run.html", context, sheets.all, figures, beside, most_bytes)


def render_text(
    title: str, lead: str, sections: Sequence[records.Section], *, beside: str, most_bytes: int = MOST_BYTES
) -> Page:
    """A page of text with figures; arguments as of `render`."""
    figures = {(number, one.name): one.png for number, section in enumerate(sections) for one in section.figures}
    context = {"title": title, "lead": lead, "sections": sections, "sheets": [], "slug": slug}
    return fitted("text.html", context, [], figures, beside, most_bytes)


def fitted(
    template: str,
    context: Mapping[str, Any],
    sheets: Iterable[Sheet],
    figures: Mapping[tuple[int, str], bytes],
    beside: str,
    most_bytes: int,
) -> Page:
    """The page with its pictures in it; where it is larger than `most_bytes`, with links to files beside it.

    Args:
        figures: by run and name.
        beside: the folder of those files.
    """
    names = {key: f"{number:03d}-{slug(key[1])}.png" for number, key in enumerate(figures)}
    files = {f"{one.name}.png": one.png for one in sheets} | {names[key]: png for key, png in figures.items()}

    def rendered(address: Any) -> str:
        urls = {name: address(name, png) for name, png in files.items()}
        return (
            _environment()
            .get_template(template)
            .render(
                **context,
                urls={one.name: urls[f"{one.name}.png"] for one in sheets},
                figure_urls={key: urls[name] for key, name in names.items()},
            )
        )

    html = rendered(lambda name, png: "data:image/png;base64," + base64.b64encode(png).decode())
    if len(html.encode()) <= most_bytes:
        return Page(html, {})
    return Page(rendered(lambda name, png: f"{quote(beside)}/{quote(name)}"), files)


def _environment() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("cnnjax.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    return environment


def slug(text: str) -> str:
    """Of letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def anchor(layer: str, unit: int | None = None) -> str:
    """The id of a layer or of one of its units on the page: "conv3", "conv3/17"; an id has no white space."""
    name = re.sub(r"\s", "_", layer)
    return name if unit is None else f"{name}/{unit}"


def slider_epochs(runs: Sequence[records.Run]) -> tuple[int, ...]:
    """The epochs that the page can be set to: those with pictures, of any run; where there are none, all epochs."""
    pictured: set[int] = set()
    for run in runs:
        pictured |= {int(epoch) for one in run.evolutions.values() for epoch in one.epochs}
        pictured |= {epoch for by_epoch in run.strongest.values() for epoch in by_epoch}
        pictured |= set(map(int, run.filters.epochs)) if run.filters is not None else set()
        pictured |= set(run.convergence.epochs) if run.convergence is not None else set()
    return tuple(sorted(pictured or {int(line["epoch"]) for run in runs for line in run.metrics}))


def differences(runs: Sequence[records.Run]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, with their values; a run without a setting has an empty text."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name, "") for run in runs] for name in names}
    return [(name, of_runs) for name, of_runs in values.items() if len(set(of_runs)) > 1]


_SPLITS = ("train", "validation", "test")
_METRICS = {"error": "share of wrong answers", "error_top5": "share not among the five most probable", "loss": "loss"}


def _charts(runs: Sequence[records.Run], epochs: Sequence[int]) -> list[Chart]:
    """Learning curves: a colour a run and a dash a split, or of one run a colour a split; then the convergence."""
    found = []
    for metric, unit in _METRICS.items():
        lines = []
        for number, run in enumerate(runs):
            for place, split in enumerate(_SPLITS):
                key = f"{split}_{metric}"
                points = [(line["epoch"], float(line[key])) for line in run.metrics if key in line]
                if points:
                    name, colour = (f"{run.name}, {split}", number) if len(runs) > 1 else (split, place)
                    lines.append(Line(name, *zip(*points, strict=True), colour=colour, dash=place))
        if lines:
            found.append(Chart(metric.replace("_", ", "), unit, tuple(lines)))
    return found + _convergence(runs)


def _convergence(runs: Sequence[records.Run]) -> list[Chart]:
    have = [(number, run, run.convergence) for number, run in enumerate(runs) if run.convergence is not None]
    kept = tuple(sorted({epoch for *_, of in have for epoch in of.epochs}))
    panels = (
        (
            "filter_distance",
            "filters: distance to their last epoch",
            "1 − cosine, mean of a layer, as a share of the first",
        ),
        ("dead", "dead maps", "share of a layer that is zero on every training image"),
        ("moved", "maps whose strongest image is another", "share of a layer, than at the kept epoch before"),
    )
    found = []
    layers = list(dict.fromkeys(layer for *_, of in have for layer in of.layers))
    for field, title, unit in panels:
        lines = []
        for number, run, of in have:
            for layer, values in zip(of.layers, getattr(of, field), strict=True):
                values = values / values[0] if field == "filter_distance" and values[0] > 0 else values
                name = f"{run.name}, {layer}" if len(runs) > 1 else layer
                place = layers.index(layer)
                dash = number if len(runs) > 1 else place // charts.COLOURS
                lines.append(Line(name, of.epochs, [float(value) for value in values], place, dash))
        if lines:
            found.append(Chart(title, unit, tuple(lines), kept))
    return found


def _shares(confusion: records.Confusion) -> list[list[int]]:
    """Of each true class, in percent."""
    return [[round(100 * int(count) / max(1, int(row.sum()))) for count in row] for row in confusion.counts]


def _networks(runs: Sequence[records.Run]) -> list[tuple[int, list[Box]]]:
    """A drawing a run; of runs with the same network the first one's only."""
    drawings: list[tuple[int, list[Box]]] = []
    for number, run in enumerate(runs):
        if run.layers and not any(runs[other].layers == run.layers for other, _ in drawings):
            on_page = {layer for one in runs for layer in _pictured(one)}
            drawings.append((number, [_box(layer, layer.name in on_page) for layer in run.layers]))
    return drawings


def _pictured(run: records.Run) -> list[str]:
    """The layers of which the page has something, in network order."""
    have = {*run.evolutions, *run.strongest, *run.maximized}
    have |= {run.filters.layer} if run.filters is not None else set()
    have |= {of[0] for one in run.explained for of in one.units if of is not None}
    order = [layer.name for layer in run.layers]
    return [*(name for name in order if name in have), *sorted(have.difference(order))]


def _box(layer: records.Layer, on_page: bool) -> Box:
    side = max(layer.output_shape[:2]) if len(layer.output_shape) == 3 else 1
    channels = layer.output_shape[-1]
    return Box(
        layer,
        anchor(layer.name) if on_page else "",
        wide=round(min(8 + 6 * channels.bit_length(), 80), 1),
        high=round(min(10 + 9 * side.bit_length(), 90), 1),
        size="×".join(map(str, layer.output_shape)),
        rule=_rule(layer),
        sees="×".join(map(str, layer.sees)) if layer.sees else "all",
    )


def _rule(layer: records.Layer) -> str:
    """Window, stride and zeros, as "5×5, stride 2, 1 zero around"."""
    if not layer.window:
        return ""
    words = ["×".join(map(str, layer.window))]
    if max(layer.strides) > 1:
        words.append("stride " + "×".join(map(str, dict.fromkeys(layer.strides))))
    if zeros := max(max(pair) for pair in layer.padding):
        words.append(f"zeros {zeros}")
    return ", ".join(words)


def _explained(number: int, run: records.Run, sheets: _Sheets) -> list[tuple[records.Explained, list[ExplainedRow]]]:
    groups = []
    for one in run.explained:
        drawn = sheets.add(f"{number} {one.title} {one.epoch}", one.tiles)
        rows = [
            ExplainedRow(
                one.title,
                f"page.{slug(one.title)}.{number}.{one.epoch}/{image}",
                "" if unit is None else anchor(*unit),
                caption,
                tuple(
                    (column, Tile(drawn.name, str(x), str(y), f"{one.title}, {one.split} image {image}: {column}"))
                    for x, column in enumerate(one.columns)
                ),
                one.made,
            )
            for y, (image, caption, unit) in enumerate(zip(one.numbers, one.captions, one.units, strict=True))
        ]
        groups.append((one, rows))
    return groups


def _layers(runs: Sequence[records.Run], epochs: Sequence[int], sheets: _Sheets, explained: Any) -> list[LayerPart]:
    order = dict.fromkeys(layer for run in runs for layer in _pictured(run))
    parts = []
    for layer in order:
        of_runs = [_of_layer(number, run, layer, epochs, sheets, explained[number]) for number, run in enumerate(runs)]
        numbers = sorted({unit for of in of_runs for unit in of.units})
        classes = next((run.class_names for run in runs if run.class_layer == layer), ())
        units = tuple(
            Unit(
                layer,
                unit,
                classes[unit] if unit < len(classes) else "",
                anchor(layer, unit),
                tuple(of.units[unit] for of in of_runs if unit in of.units),
            )
            for unit in numbers
        )
        count = max((len(of.cells) for of in of_runs), default=0)
        briefs = tuple(
            Brief(
                unit,
                anchor(layer, unit),
                unit in numbers,
                tuple(of.cells[unit] if unit < len(of.cells) else ("",) * 5 for of in of_runs),
            )
            for unit in range(count)
        )
        grids = tuple(grid for of in of_runs for grid in of.grids)
        parts.append(LayerPart(layer, anchor(layer), grids, units, briefs))
    return parts


class _OfLayer(NamedTuple):
    grids: list[Grid]
    units: dict[int, OfRun]
    cells: list[tuple[str, ...]]


def _of_layer(
    number: int, run: records.Run, layer: str, epochs: Sequence[int], sheets: _Sheets, explained: Any
) -> _OfLayer:
    """What one run has of a layer."""
    evolution, lives = run.evolutions.get(layer), run.lives.get(layer)
    filters = run.filters if run.filters is not None and run.filters.layer == layer else None
    tops, maximized = run.strongest.get(layer, {}), run.maximized.get(layer)
    grids: list[Grid] = []
    life: dict[int, Life] = {}
    of_filter: dict[int, tuple[Tile, ...]] = {}
    filter_epochs: tuple[tuple[int, int], ...] = ()
    if filters is not None:
        drawn = sheets.add(f"{number} {layer} filters", filters.tiles)
        filter_epochs = _placed(filters.epochs, epochs)
        moving = [
            Tile(drawn.name, "var(--c)", str(y), f"{layer}, filter {y}, at the chosen epoch") for y in range(drawn.rows)
        ]
        rows = tuple((str(y), anchor(layer, y), (tile,), ()) for y, tile in enumerate(moving))
        note = "one contrast a filter over all epochs; mid grey is 0"
        grids.append(Grid("filters", number, _places(filter_epochs), drawn.columns - 1, rows, filters.made, note))
        of_filter = {
            y: tuple(
                Tile(drawn.name, str(x), str(y), f"{layer}, filter {y}, epoch {e}")
                for x, (_, e) in enumerate(filter_epochs)
            )
            for y in range(drawn.rows)
        }
    if evolution is not None:
        placed = _placed(evolution.epochs, epochs)
        pair = [sheets.add(f"{number} {layer} {what}", getattr(evolution, what)) for what in ("projections", "patches")]
        life = _lives(layer, evolution, placed, pair)
        grids.append(_grid(number, layer, evolution, placed, pair))
    top = _tops(number, layer, tops, epochs, sheets, explained)
    made_tile: dict[int, tuple[Tile, str]] = {}
    if maximized is not None:
        drawn = sheets.add(f"{number} {layer} maximized", maximized.tiles[:, None])
        is_map = any(row.name == layer and len(row.output_shape) == 3 for row in run.layers)
        which = "of the unit in the middle of the map, " * is_map
        for y, unit in enumerate(maximized.units):
            note = (
                f"{charts.text_of(float(maximized.value[y]))} here, {charts.text_of(float(maximized.best[y]))} at the "
                f"best of the training images that it is compared with, both {which}before any ReLU, at epoch "
                f"{maximized.epoch}"
            )
            alt = f"{layer}, map {unit}: an image made to excite it"
            made_tile[int(unit)] = (Tile(drawn.name, "0", str(y), alt), note)
    rows_of: dict[int, list[ExplainedRow]] = {}
    for one, rows in explained:
        for of, row in zip(one.units, rows, strict=True):
            if of is not None and of[0] == layer:
                rows_of.setdefault(of[1], []).append(row)
    units = {
        unit: OfRun(
            number,
            _sentence(unit, evolution, lives),
            life.get(unit),
            evolution.made if evolution is not None else None,
            of_filter.get(unit, ()),
            filter_epochs,
            top.get(unit),
            made_tile[unit][0] if unit in made_tile else None,
            made_tile[unit][1] if unit in made_tile else "",
            maximized.made if maximized is not None else None,
            tuple(rows_of.get(unit, ())),
        )
        for unit in {*life, *of_filter, *top, *made_tile, *rows_of}
    }
    return _OfLayer(grids, units, _cells(evolution, lives))


def _placed(epochs: Iterable[Any], slider: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(place on the slider, epoch) of each."""
    return tuple((slider.index(int(epoch)), int(epoch)) for epoch in epochs)


def _places(placed: Iterable[tuple[int, int]]) -> str:
    return " ".join(str(place) for place, _ in placed)


def _lives(
    layer: str, of: records.Evolution, placed: tuple[tuple[int, int], ...], pair: Sequence[Sheet]
) -> dict[int, Life]:
    """By unit; `pair` is the sheet of the projections and that of the patches."""
    found = {}
    for y, unit in enumerate(of.maps):
        dead = of.value[y] <= 0
        projections, patches = (
            tuple(
                Tile(drawn.name, str(x), str(y), f"{layer}, map {unit}, epoch {epoch}: {what}", bool(dead[x]))
                for x, (_, epoch) in enumerate(placed)
            )
            for drawn, what in zip(pair, ("projection", "image patch"), strict=True)
        )
        patches = tuple(
            one._replace(
                marks=_marks(None if of.places is None else of.places[y, [x]], dead[[x]], of.patches.shape[2:4])
            )
            for x, one in enumerate(patches)
        )
        values = tuple(charts.text_of(float(value)) for value in of.value[y])
        found[int(unit)] = Life(placed, projections, patches, values, tuple(map(int, of.image[y])))
    return found


def _marks(places: np.ndarray | None, dead: np.ndarray, shape: Sequence[int]) -> tuple[str, ...]:
    """A cross at each place (row, column), in percent of a picture of this height and width; once, if all are alike."""
    if places is None:
        return ()
    across, down = (100 * (places[:, axis] + 0.5) / shape[axis] for axis in (1, 0))
    found = [
        "" if lost or not np.isfinite(x + y) else f"{x:.1f} {y:.1f}"
        for x, y, lost in zip(across, down, dead, strict=True)
    ]
    return tuple(found[:1] if len(set(found)) == 1 else found)


def _grid(
    number: int, layer: str, of: records.Evolution, placed: tuple[tuple[int, int], ...], pair: Sequence[Sheet]
) -> Grid:
    """All units at the chosen epoch, on the same sheets."""
    rows = []
    for y, unit in enumerate(of.maps):
        tiles = tuple(
            Tile(drawn.name, "var(--c)", str(y), f"{layer}, map {unit}, at the chosen epoch: {what}")
            for drawn, what in zip(pair, ("projection", "image patch"), strict=True)
        )
        marks = _marks(None if of.places is None else of.places[y], of.value[y] <= 0, of.patches.shape[2:4])
        tiles = (tiles[0], tiles[1]._replace(marks=marks))
        values = tuple("dead" if value <= 0 else charts.text_of(float(value)) for value in of.value[y])
        rows.append((str(unit), anchor(layer, int(unit)), tiles, values))
    note = (
        "left the projection of each unit's strongest activation over all training images, right what the unit sees of "
        "that image"
    )
    note += f"; {of.note}" if of.note else ""
    if pair[0].reduced_from:
        note += f"; scaled down to {pair[0].width}×{pair[0].height} px here"
    return Grid("projections and patches", number, _places(placed), len(placed) - 1, tuple(rows), of.made, note)


def _tops(
    number: int,
    layer: str,
    by_epoch: Mapping[int, records.Strongest],
    slider: Sequence[int],
    sheets: _Sheets,
    explained: Any,
) -> dict[int, Top]:
    """By unit. A sheet's rows are the epochs of the first unit, then those of the second, and so on."""
    if not by_epoch:
        return {}
    epochs = tuple(sorted(by_epoch))
    first = by_epoch[epochs[-1]]
    shape = first.projections.shape[1:]
    alike = [
        epoch
        for epoch in epochs
        if by_epoch[epoch].projections.shape[1:] == shape and by_epoch[epoch].split == first.split
    ]
    placed = _placed(alike, slider)
    units = sorted({int(unit) for epoch in alike for unit in by_epoch[epoch].maps})
    blank = np.full((2, len(units), len(alike), *shape), 255, np.uint8)
    values = np.full((len(units), len(alike), shape[0]), np.nan)
    images, places = np.full(values.shape, -1), np.full((*values.shape, 2), np.nan)
    for column, epoch in enumerate(alike):
        of = by_epoch[epoch]
        rows = [units.index(int(unit)) for unit in of.maps]
        blank[0, rows, column], blank[1, rows, column] = of.projections, of.patches
        values[rows, column], images[rows, column] = of.value, of.image
        if of.places is not None:
            places[rows, column] = of.places
    flat = blank.reshape(2, len(units) * len(alike), *shape)
    pair = [
        sheets.add(f"{number} {layer} strongest {what}", part)
        for what, part in zip(("projections", "patches"), flat, strict=True)
    ]
    known = [
        (one.title, one.split, image, row.anchor)
        for one, rows in explained
        for image, row in zip(one.numbers, rows, strict=True)
    ]
    found = {}
    for place, unit in enumerate(units):
        projections, patches = (
            tuple(
                Tile(
                    drawn.name, str(x), f"calc({place * len(alike)} + var(--c))",
                    f"{layer}, map {unit}: number {x + 1} of its strongest {first.split} images, {what}",
                )
                for x in range(shape[0])
            )
            for drawn, what in zip(pair, ("projected", "patch"), strict=True)
        )  # fmt: skip
        patches = tuple(
            one._replace(marks=_marks(places[place, :, x], values[place, :, x] <= 0, shape[1:3]))
            for x, one in enumerate(patches)
        )
        shown = {int(image) for image in images[place].ravel()}
        links = tuple(
            (f"{title} of {split} image {image}", link)
            for title, split, image, link in known
            if split == first.split and image in shown
        )
        found[unit] = Top(
            _places(placed), tuple(alike), first.split, projections, patches,
            tuple(tuple(charts.text_of(float(value)) for value in of) for of in values[place]),
            tuple(tuple("" if image < 0 else str(image) for image in of) for of in images[place]),
            links, first.note, first.made,
        )  # fmt: skip
    return found


def _sentence(unit: int, evolution: records.Evolution | None, lives: records.Lives | None) -> str:
    """The life of a unit in words."""
    if lives is None or evolution is None or unit >= len(lives.born):
        return ""
    epochs = [int(epoch) for epoch in evolution.epochs]
    born, died, changes = int(lives.born[unit]), int(lives.died[unit]), int(lives.changes[unit])
    words = []
    if died == 0:
        return "Dead at every kept epoch: zero on every training image."
    if died > 0:
        words.append(f"dead from epoch {epochs[died]} on: zero on every training image")
    elif born >= 0:
        words.append(f"born at epoch {epochs[born]}: from there on its strongest image stays the same")
    else:
        words.append(
            f"not settled: its strongest image is another at epoch {epochs[-1]} than before"
            if len(epochs) > 1
            else "seen at one epoch"
        )
    words.append(f"{changes} change{'' if changes == 1 else 's'} of its strongest image")
    if (drift := charts.text_of(float(lives.drift[unit]))) != "":
        words.append(f"its filter has turned by {drift} (1 − cosine, epoch {epochs[0]} to {epochs[-1]})")
    return "; ".join(words).capitalize() + "."


def _cells(evolution: records.Evolution | None, lives: records.Lives | None) -> list[tuple[str, ...]]:
    """Of every map: born, changes, drift, died, strongest activation at the last epoch."""
    if lives is None or evolution is None:
        return []
    epochs = [int(epoch) for epoch in evolution.epochs]

    def epoch_of(index: int) -> str:
        return "–" if index < 0 else str(epochs[index])

    return [
        (
            epoch_of(int(lives.born[unit])),
            str(int(lives.changes[unit])),
            charts.text_of(float(lives.drift[unit])) or "–",
            epoch_of(int(lives.died[unit])),
            charts.text_of(float(lives.value[unit, -1])),
        )
        for unit in range(len(lives.born))
    ]
