"""What a page is made of: plain records, and arrays of grey levels that are ready to be shown.

Nothing here is HTML. Every text may hold what it likes: the templates escape it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8


class Made(NamedTuple):
    """Where numbers that a page shows come from."""

    npz: str = ""  # the file behind them, as a link from the page; empty: none
    picture: str = ""  # the figure of the same numbers, likewise
    command: str = ""  # what makes both again


class Layer(NamedTuple):
    """A row of the table of layers."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]  # height, width, channels, or units alone
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    sees: tuple[int, ...]  # pixels of the input along height and width; () where a unit sees the whole image
    weights: int
    biases: int
    multiply_adds: int


class Evolution(NamedTuple):
    """Some maps of a layer over the epochs; the rest of its maps in numbers."""

    maps: Int[np.ndarray, " rows"]
    epochs: Int[np.ndarray, " epochs"]
    value: Float[np.ndarray, "rows epochs"]  # 0: dead at that epoch
    image: Int[np.ndarray, "rows epochs"]  # of the training images
    projections: UInt8[np.ndarray, "rows epochs height width 3"]
    patches: UInt8[np.ndarray, "rows epochs height width 3"]
    note: str = ""  # how they were made, in words
    made: Made = Made()
    places: Float[np.ndarray, "rows epochs 2"] | None = None  # of the units in their patches, (row, column) in pixels


class Lives(NamedTuple):
    """Of every map of a layer, a column an epoch of the evolution; empty arrays where a study did not keep them.

    `born` and `died` are indices of epochs, -1 for never.
    """

    value: Float[np.ndarray, "maps epochs"]
    born: Int[np.ndarray, " maps"]
    changes: Int[np.ndarray, " maps"]
    drift: Float[np.ndarray, " maps"]  # NaN where a map has no filter of its own
    died: Int[np.ndarray, " maps"]


class Filters(NamedTuple):
    """The filters of the first layer over the epochs."""

    layer: str
    epochs: Int[np.ndarray, " epochs"]
    tiles: UInt8[np.ndarray, "filters epochs height width 3"]
    made: Made = Made()


class Strongest(NamedTuple):
    """The images that excite some maps of a layer most, at one epoch."""

    maps: Int[np.ndarray, " rows"]
    value: Float[np.ndarray, "rows count"]  # 0 where fewer images excite the map
    image: Int[np.ndarray, "rows count"]
    split: str  # which images were searched
    projections: UInt8[np.ndarray, "rows count height width 3"]
    patches: UInt8[np.ndarray, "rows count height width 3"]
    note: str = ""
    made: Made = Made()
    places: Float[np.ndarray, "rows count 2"] | None = None  # likewise


class Maximized(NamedTuple):
    """Images made to excite units of a layer."""

    units: Int[np.ndarray, " units"]
    tiles: UInt8[np.ndarray, "units height width 3"]
    value: Float[np.ndarray, " units"]
    best: Float[np.ndarray, " units"]  # of the training images
    epoch: int
    made: Made = Made()


class Explained(NamedTuple):
    """Images of which a study says what an answer rests on: a row an image, a column a picture of it."""

    title: str
    split: str
    numbers: tuple[int, ...]  # of the images, a row each
    captions: tuple[str, ...]  # likewise
    units: tuple[tuple[str, int] | None, ...]  # likewise: the layer and the unit that is explained, where it is known
    columns: tuple[str, ...]
    tiles: UInt8[np.ndarray, "images columns height width 3"]
    epoch: int
    made: Made = Made()


class Confusion(NamedTuple):
    """Rows are true classes, columns answers."""

    names: tuple[str, ...]
    counts: Int[np.ndarray, "classes classes"]
    epoch: int
    made: Made = Made()


class Convergence(NamedTuple):
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    filter_distance: Float[np.ndarray, "layers epochs"]
    dead: Float[np.ndarray, "layers epochs"]
    moved: Float[np.ndarray, "layers epochs"]
    made: Made = Made()


class Figure(NamedTuple):
    """A picture as it was drawn."""

    name: str
    png: bytes
    made: Made


class Section(NamedTuple):
    """A part of a page of text."""

    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()  # the first row and the first column are headings
    figures: tuple[Figure, ...] = ()
    contrary: tuple[str, ...] = ()  # where a figure shows the opposite of what is said of it
    links: tuple[tuple[str, str], ...] = ()  # text, address


class Study(NamedTuple):
    """What one study of a run has left."""

    name: str
    title: str
    command: str  # what makes it, or makes it again
    figures: tuple[Figure, ...] = ()
    shown_above: tuple[Made, ...] = ()  # figures whose numbers the page shows elsewhere
    note: str = ""  # why something is missing


class Run(NamedTuple):
    """All that a page says of one run. What a run does not have is None or empty."""

    name: str
    state: str  # how far it is, in words
    citation: tuple[tuple[str, str], ...]  # what to cite it by: names and values
    credit: str  # whose the photographs are, where that has to be said
    command: str  # what repeats it
    settings: Mapping[str, str]  # of its config, by dotted name
    metrics: tuple[Mapping[str, float], ...]  # a line an epoch, with "epoch"
    metrics_link: str = ""
    layers: tuple[Layer, ...] = ()
    layers_note: str = ""
    filters: Filters | None = None
    evolutions: Mapping[str, Evolution] = {}
    lives: Mapping[str, Lives] = {}
    convergence: Convergence | None = None
    strongest: Mapping[str, Mapping[int, Strongest]] = {}  # by layer and epoch
    maximized: Mapping[str, Maximized] = {}
    explained: tuple[Explained, ...] = ()
    confusion: Confusion | None = None
    class_layer: str = ""  # whose units are the classes
    class_names: tuple[str, ...] = ()
    studies: tuple[Study, ...] = ()
