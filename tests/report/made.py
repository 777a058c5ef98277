"""Runs by hand, whose small pictures have one colour each, so that a page can be asked which of them it shows."""

import io
from typing import Any

import numpy as np
from PIL import Image

from cnnjax.report import records
from cnnjax.report.records import Made

EPOCHS = (0, 1, 5)
LAYERS = (
    records.Layer("conv1", "conv", (8, 8, 3), (8, 8, 3), (3, 3), (1, 1), ((1, 1), (1, 1)), (3, 3), 81, 3, 5184),
    records.Layer("pool1", "pool", (8, 8, 3), (4, 4, 3), (2, 2), (2, 2), ((0, 0), (0, 0)), (4, 4), 0, 0, 0),
    records.Layer("conv2", "conv", (4, 4, 3), (4, 4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (8, 8), 108, 4, 1728),
    records.Layer("fc3", "dense", (64,), (2,), (), (), (), (), 128, 2, 128),
)


def colour(what: int, row: int, column: int) -> tuple[int, int, int]:
    """Of the picture at that place of sheet number `what`."""
    return 40 * what + 10, (30 * row + 20) % 256, 25 * column + 5


def sheet(what: int, rows: int, columns: int, side: int = 4) -> np.ndarray:
    places = [[colour(what, row, column) for column in range(columns)] for row in range(rows)]
    return np.broadcast_to(np.array(places, np.uint8)[:, :, None, None], (rows, columns, side, side, 3)).copy()


def evolution(maps=(1, 3), epochs=EPOCHS, command="draw it") -> records.Evolution:
    """The second map is dead at the first epoch."""
    value = 1.0 + np.arange(len(maps) * len(epochs)).reshape(len(maps), -1)
    value[-1, 0] = 0
    image = np.arange(value.size).reshape(value.shape)
    shown = [sheet(what, *value.shape) for what in (0, 1)]
    places = np.zeros((*value.shape, 2))  # above the middle: of the first map it moves to the right
    places[0, :, 1] = np.arange(len(epochs))
    return records.Evolution(
        np.array(maps),
        np.array(epochs),
        value,
        image,
        *shown,
        "made so",
        Made("figures/e.npz", "figures/e.png", command),
        places,
    )


def strongest(epoch: int, maps=(1, 2), count=3) -> records.Strongest:
    value = 10.0 * epoch + np.arange(len(maps) * count).reshape(len(maps), count)
    shown = [sheet(3 + what, len(maps), count) + np.uint8(epoch) for what in (0, 1)]
    places = np.tile([0.0, min(epoch, 3)], (*value.shape, 1))
    made = Made("t.npz", "t.png", "draw them")
    return records.Strongest(np.array(maps), value, value.astype(int), "test", *shown, "found so", made, places)


def run(name: str = "a run", **changes: Any) -> records.Run:
    """Finished, with something of everything."""
    lives = records.Lives(
        np.ones((4, 3)),
        np.array([1, -1, 0, -1]),
        np.array([1, 2, 0, 0]),
        np.array([0.5, np.nan, 0.1, 0.2]),
        np.array([-1, -1, -1, 1]),
    )
    image = sheet(5, 1, 2)
    explained = records.Explained(
        "attribution", "test", (11,), ("image 11",), (("fc3", 1),), ("image", "gradient"), image, 5
    )
    curves = np.array([[[1, 0.5, 0]] * 2, [[0, 0, 0.1]] * 2, [[np.nan, 1, 0]] * 2])  # either layer the same
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(file, "PNG")
    figure = records.Figure("occlusion, epoch 5", file.getvalue(), Made("o.npz", "o.png"))
    found = records.Run(
        name=name,
        state="finished: 5 epochs",
        citation=(("cnnjax", "0"), ("config", "abc")),
        credit="",
        command="repeat it",
        settings={"train.epochs": "5", "model.name": '"lenet"'},
        metrics=tuple(
            {"epoch": epoch, "train_error": 0.5, "test_error": 0.9 - epoch / 10, "test_loss": 2.0} for epoch in range(6)
        ),
        metrics_link="metrics.jsonl",
        layers=LAYERS,
        filters=records.Filters("conv1", np.array(EPOCHS), sheet(2, 3, 3)),
        evolutions={"conv2": evolution()},
        lives={"conv2": lives},
        convergence=records.Convergence(("conv1", "conv2"), EPOCHS, *curves),
        strongest={"conv2": {1: strongest(1), 5: strongest(5)}},
        maximized={"conv2": records.Maximized(np.array([3]), sheet(5, 1, 1)[:, 0], np.ones(1), np.ones(1), 5)},
        explained=(explained,),
        confusion=records.Confusion(("cat", "dog"), np.array([[3, 1], [0, 4]]), 5),
        class_layer="fc3",
        class_names=("cat", "dog"),
        studies=(
            records.Study("occlusion", "figure 7", "cover it", (figure,)),
            records.Study("probes", "table 7", "probe it", note="Not made. The command makes it:"),
        ),
    )  # fmt: skip
    return found._replace(**changes)
