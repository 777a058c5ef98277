"""The lecture on convolutional networks, computed: its examples by this project's own functions.

One figure for each part, with the numbers behind it, and one page of text, all in OUT.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from cnnjax import cli, geometry, models, ops
from cnnjax.atomic import write_text
from cnnjax.cli import Progress
from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, PhotosConfig, TrainConfig, check_seed
from cnnjax.data import load, photos, scale_of
from cnnjax.errors import InputError
from cnnjax.figures import files, settings
from cnnjax.figures import lecture as figures
from cnnjax.figures.lecture import Fit
from cnnjax.train.feed import Resident, in_its_own_order, portions
from cnnjax.train.lock import locked
from cnnjax.train.losses import squared_error
from cnnjax.train.step import initial_state, make_evaluate, make_order, make_preprocess, make_train_chunk
from cnnjax.train.training import evaluated
from experiments import challenge


@dataclasses.dataclass(frozen=True)
class Options:
    """What the lecture can be told."""

    out: Path = Path("runs/lecture")  # where the figures and the page go
    updates: int = 120  # of the small training
    seed: int = 0  # of its weights and its order

    def __post_init__(self):
        if not 1 <= self.updates <= 10**6:
            raise InputError(f"--updates must be between 1 and {10**6}, got {self.updates}")
        check_seed("--seed", self.seed)


# The lecture's inputs. Everything else is computed from them.
BINARY_IMAGE = ("11100", "01110", "00111", "00110", "01100")
BINARY_FILTER = ("101", "010", "101")

RGB_NAMES = ("red", "green", "blue")
RGB_IMAGE = np.array(  # the upper left corner of the animation's image
    [
        [[156, 155, 156, 158], [153, 154, 157, 159], [149, 151, 155, 158], [146, 146, 149, 153]],
        [[167, 166, 167, 169], [164, 165, 168, 170], [160, 162, 166, 169], [156, 156, 159, 163]],
        [[163, 162, 163, 165], [160, 161, 164, 166], [156, 158, 162, 165], [155, 155, 158, 162]],
    ]
)
RGB_FILTER = np.array(
    [[[-1, -1, 1], [0, 1, -1], [0, 1, 1]], [[1, 0, 0], [1, -1, -1], [1, 0, -1]], [[0, 1, 1], [0, 1, 0], [1, -1, 1]]]
)
RGB_BIAS = 1

ROW, FILTER = 7, 3  # pixels
STRIDES = ((1, 0), (2, 0), (3, 0), (3, 1))  # (stride, padding)
KEEPING = (3, 5, 7)  # filters whose padding is to keep the size
VOLUME, VOLUME_FILTER, VOLUME_FILTERS = (32, 32, 3), 5, 6

POOLED_IMAGE = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]])
POOL = 2

CLASSES = ("dog", "cat", "boat", "bird")
BOAT = CLASSES.index("boat")
OUTPUTS = {
    "untrained": (0.2, 0.4, 0.1, 0.3),  # the lecture's
    "after an update": (0.1, 0.1, 0.7, 0.1),  # the lecture's
    "target reached": (0.0, 0.0, 1.0, 0.0),  # ours: where the total error ends
}


class NamedFilter(NamedTuple):
    """Whole weights and what they are divided by (a power of two), so that sums over grey levels are exact."""

    name: str
    weights: Int[np.ndarray, "window window"]
    divisor: int = 1


FILTERS = (
    NamedFilter("vertical edges (Sobel)", np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])),
    NamedFilter("horizontal edges (Sobel)", np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])),
    NamedFilter("spots (Laplacian)", np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])),
    NamedFilter("blur", np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]), 16),
    NamedFilter("sharpen", np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])),
)
SHIFTS = tuple(range(9))  # pixels
POOLS = (2, 4, 8)  # windows
CUTOUT = (31, 88, 64)  # top, left, side: the astronaut's face in the photograph of PHOTOGRAPH_SIDE pixels
CANVAS = 96  # side of the black ground on which the cutout moves
PHOTOGRAPH_SIDE = 288

DIGITS = Config(
    data=DataConfig(name="digits"),
    model=ModelConfig(name="lenet", widths=(8,), filters=(3,), paddings=(1,), pools=(2,), strides=(1,), dense=(32,)),
    train=TrainConfig(epochs=20, batch_size=64, loss="squared_error", schedule="constant"),
    hyper=Hyperparams(learning_rate=0.1, dropout_rate=0.0, weight_decay=0.0, filter_rms=float("inf"), flip=0.0),
)
LOOKS = 20  # times that the error over all images is measured


class Scan(NamedTuple):
    image: Int[np.ndarray, "height width"]
    kernel: Int[np.ndarray, "window window"]
    output: Int[np.ndarray, "rows columns"]


def scan() -> Scan:
    """The binary filter over the binary image."""
    image, kernel = (np.array([list(map(int, row)) for row in rows]) for rows in (BINARY_IMAGE, BINARY_FILTER))
    return Scan(image, kernel, _whole(_conv(image[..., None], kernel[..., None, None]))[..., 0])


class Rgb(NamedTuple):
    padded: Int[np.ndarray, "channels height width"]  # with the zeros at the top and at the left
    sums: Int[np.ndarray, " channels"]  # of the first window
    output: Int[np.ndarray, "rows columns"]  # bias included


def rgb() -> Rgb:
    """The corner of the colour image: zeros where the image ends, none where only the corner does."""
    ring = ((1, 0), (1, 0))
    image, kernel = np.moveaxis(RGB_IMAGE, 0, 2), np.moveaxis(RGB_FILTER, 0, 2)[..., None]
    channels = len(RGB_NAMES)
    # a filter a channel, each over its own channel only
    parts = _conv(image, np.moveaxis(kernel, 2, 3), padding=ring, groups=channels)
    output = _conv(image, kernel, padding=ring)[..., 0] + RGB_BIAS
    return Rgb(np.pad(RGB_IMAGE, ((0, 0), *ring)), _whole(parts[0, 0]), _whole(output))


class Sizes(NamedTuple):
    fits: tuple[Fit, ...]
    refusals: dict[tuple[int, int], str]  # (stride, padding) -> what the error says
    keeping: dict[int, int]  # filter -> the padding with which the size stays
    volume: tuple[int, int, int]
    weights: int


def sizes() -> Sizes:
    """Strides, padding, and the volume that six filters make."""
    fits, refusals = [], {}
    for stride, padding in STRIDES:
        try:
            output = geometry.output_shape((ROW, ROW), FILTER, strides=stride, padding=padding)[0]
        except InputError as error:
            output, refusals[stride, padding] = None, str(error)
        fits.append(Fit(ROW, FILTER, stride, padding, output))
    keeping = {
        window: next(
            padding
            for padding in geometry.fitting_paddings(ROW, window).symmetric
            if geometry.output_size(ROW, window, padding=padding) == ROW
        )
        for window in KEEPING
    }
    window = (VOLUME_FILTER, VOLUME_FILTER)
    height, width = geometry.output_shape(VOLUME[:2], window)
    weights = geometry.weight_count(window, VOLUME[2], VOLUME_FILTERS)
    return Sizes(tuple(fits), refusals, keeping, (height, width, VOLUME_FILTERS), weights)


class MaxPooling(NamedTuple):
    switches: Int[np.ndarray, "rows columns"]
    output: Int[np.ndarray, "rows columns"]


def max_pooling() -> MaxPooling:
    pooled = ops.max_pool_with_switches(jnp.float32(POOLED_IMAGE)[None, ..., None], POOL, rounding="exact")
    return MaxPooling(_whole(pooled.switches[0, ..., 0]), _whole(pooled.values[0, ..., 0]))


def photograph() -> UInt8[np.ndarray, "height width"]:
    """The astronaut in grey (ITU-R 601 luma): NASA's photograph of Eileen Collins, shipped with scikit-image."""
    from PIL import Image

    config = DataConfig(photos=PhotosConfig(shorter_side=PHOTOGRAPH_SIDE))
    colour = photos.photographs(config)[photos.CLASS_NAMES.index("astronaut")]
    return np.asarray(Image.fromarray(colour).convert("L"))


def feature_maps(image: Int[np.ndarray, "height width"]) -> Float[np.ndarray, "map_height map_width filters"]:
    """ReLU of the convolution with each of FILTERS."""
    kernel = np.stack([one.weights / one.divisor for one in FILTERS], axis=-1)[:, :, None]
    return np.asarray(jax.nn.relu(_conv(image[..., None], kernel)))


class Invariance(NamedTuple):
    shifts: Int[np.ndarray, " shifts"]
    inputs: Int[np.ndarray, "shifts height width"]
    largest_difference: Float[np.ndarray, " shifts"]  # of the map moved back, from the unshifted map
    strongest: Float[np.ndarray, "shifts filters"]  # of each map
    curves: dict[str, Float[np.ndarray, " shifts"]]  # relative distances


def invariance(image: Int[np.ndarray, "height width"]) -> Invariance:
    """A round cutout of the photograph moves over black ground; its maps, their pools and their maxima."""
    inputs = np.stack([shifted_cutout(image, shift) for shift in SHIFTS])
    maps = np.stack([feature_maps(one) for one in inputs])
    width = maps.shape[2]
    differences = [
        np.abs(moved[:, shift:] - maps[0][:, : width - shift]).max() for shift, moved in zip(SHIFTS, maps, strict=True)
    ]
    pools = {window: np.asarray(ops.max_pool(jnp.asarray(maps), window, rounding="ceil")) for window in POOLS}
    strongest = pools[POOLS[0]].max(axis=(1, 2))
    curves = {
        "input": relative_distance(inputs.astype(float)),
        "convolution and ReLU": relative_distance(maps),
        **{f"then max pooling {window}×{window}": relative_distance(pool) for window, pool in pools.items()},
        "the maximum of each map": relative_distance(strongest),
    }
    return Invariance(np.array(SHIFTS), inputs, np.array(differences), strongest, curves)


def shifted_cutout(image: Int[np.ndarray, "height width"], shift: int) -> Int[np.ndarray, "canvas canvas"]:
    """The cutout in the middle of the canvas, faded to black at its rim, `shift` pixels to the right."""
    top, left, side = CUTOUT
    along = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, side)] * 2))  # 0 in the middle, 1 at the rim
    fade = np.clip(4 * (1 - along), 0, 1)
    canvas = np.zeros((CANVAS, CANVAS), int)
    start = (CANVAS - side) // 2
    canvas[start : start + side, start + shift : start + shift + side] = np.rint(
        fade * image[top : top + side, left : left + side]
    )
    return canvas


def relative_distance(values: Float[np.ndarray, "shifts ..."]) -> Float[np.ndarray, " shifts"]:
    """|x_s - x_0| / |x_0| for every shift s."""
    flat = values.reshape(len(values), -1)
    return np.linalg.norm(flat - flat[0], axis=1) / np.linalg.norm(flat[0])


def total_errors() -> Float[np.ndarray, " outputs"]:
    """The total error of each of OUTPUTS for the image of a boat."""
    probabilities = jnp.array(list(OUTPUTS.values()))
    # softmax of a logarithm is the probability itself
    return np.asarray(squared_error(jnp.log(probabilities), jnp.full(len(OUTPUTS), BOAT)))


class Course(NamedTuple):
    updates: Int[np.ndarray, " looks"]
    total_error: Float[np.ndarray, " looks"]  # mean over the training images
    wrong: Float[np.ndarray, " looks"]  # share of them


def train(config: Config, updates: int, progress: Progress) -> Course:
    """The five steps on handwritten digits; the training images are measured after every few updates."""
    split = (dataset := load(config.data)).train
    network = models.build(config.model, dataset.image_shape, dataset.num_classes)
    preprocess = make_preprocess(*scale_of(config.data, dataset))
    size = config.train.batch_size
    chunk = ops.jit(make_train_chunk(network, config.train, preprocess, len(split)), donate_argnums=1)
    evaluate = ops.jit(make_evaluate(network, config.train, preprocess))
    feed = Resident(split, size, ops.jit(make_order(config.train, len(split))), jax.device_put)
    measured = in_its_own_order(split, size, jax.device_put)

    hyper = jax.tree.map(jnp.asarray, config.hyper)
    state = initial_state(network, config.train, hyper, dataset.image_shape)  # step 1
    looks = sorted({*range(0, updates, max(updates // LOOKS, 1)), updates})
    course = []
    for done, update in progress.over("the five steps", list(itertools.pairwise([0, *looks]))):
        for part in portions(feed, hyper, done, update):  # steps 2 to 5
            state = chunk(hyper, state, *part)
        sums = evaluated(evaluate, measured, hyper, state)
        course.append((update, float(sums.loss / sums.count), float(sums.errors / sums.count)))
    return Course(*(np.array(column) for column in zip(*course, strict=True)))


def main(options: Options, progress: Progress) -> None:
    settings.check()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    scanned, colour, size, pooled, errors = scan(), rgb(), sizes(), max_pooling(), total_errors()
    image = photograph()
    maps, moved = feature_maps(image), invariance(image)
    config = dataclasses.replace(DIGITS, hyper=dataclasses.replace(DIGITS.hyper, seed=options.seed))
    course = train(config, options.updates, progress)

    with locked(out):  # one process draws at a time
        files.save(out / "scanner.png", figures.draw_scanner(*scanned), **scanned._asdict())
        figure = figures.draw_rgb(colour.padded, RGB_FILTER, colour.sums, RGB_BIAS, int(colour.output[0, 0]), RGB_NAMES)
        files.save(out / "rgb.png", figure, kernel=RGB_FILTER, bias=RGB_BIAS, **colour._asdict())
        windows = np.array([fit._replace(output=fit.output or 0) for fit in size.fits])
        files.save(out / "strides.png", figures.draw_strides(size.fits), columns=Fit._fields, fits=windows)
        figure = figures.draw_pooling(POOLED_IMAGE, pooled.switches, pooled.output, POOL)
        files.save(out / "pooling.png", figure, image=POOLED_IMAGE, **pooled._asdict())
        names, weights, divisors = ([getattr(one, field) for one in FILTERS] for field in NamedFilter._fields)
        figure = figures.draw_feature_maps(image, maps, names, weights, divisors)
        files.save(
            out / "feature_maps.png",
            figure,
            photograph=image,
            maps=maps,
            names=names,
            weights=weights,
            divisors=divisors,
        )
        ends = [0, -1]
        figure = figures.draw_invariance(moved.inputs[ends], moved.shifts[ends], moved.shifts, moved.curves)
        arrays = {name: value for name, value in moved._asdict().items() if name != "curves"}
        curves = np.stack(list(moved.curves.values()))
        files.save(out / "invariance.png", figure, curves=curves, curve_names=list(moved.curves), **arrays)
        target = np.eye(len(CLASSES))[BOAT]
        outputs = {name: np.array(values) for name, values in OUTPUTS.items()}
        title = f"a small network learns handwritten {config.data.name}"
        figure = figures.draw_training(CLASSES, target, outputs, errors, *course, title)
        probabilities = np.stack(list(outputs.values()))
        files.save(
            out / "training.png", figure, target=target, outputs=probabilities, errors=errors, **course._asdict()
        )
        challenge.save(out / "challenge.png", [])
        text = page(scanned, colour, size, pooled, maps, moved, errors, course)
        write_text(out / "lecture.md", text)
    progress.say(f"{out / 'lecture.md'} and its figures are in {out}")


def page(
    scanned: Scan,
    colour: Rgb,
    size: Sizes,
    pooled: MaxPooling,
    maps: Float[np.ndarray, "map_height map_width filters"],
    moved: Invariance,
    errors: Float[np.ndarray, " outputs"],
    course: Course,
) -> str:
    """The page of text; every number in it comes from an argument or from the lecture's inputs above."""
    terms = " + ".join(f"({part})" if part < 0 else f"{part}" for part in colour.sums)
    lines = []
    for fit in size.fits:
        rule = f"({fit.size} - {fit.window} + 2·{fit.padding})/{fit.stride} + 1"
        refusal = size.refusals.get((fit.stride, fit.padding))
        lines.append(f"- stride {fit.stride}, padding {fit.padding}: " + (refusal or f"{rule} = {fit.output}"))
    keeping = ", ".join(f"P = {padding} for F = {window}" for window, padding in size.keeping.items())
    filters = "\n".join(
        f"- {one.name}: {100 * (maps[..., index] > 0).mean():.0f} % of its outputs pass the ReLU"
        for index, one in enumerate(FILTERS)
    )
    distances = "\n".join(
        "| {} | {} |".format(name, " | ".join(f"{curve[shift]:.3f}" for shift in moved.shifts))
        for name, curve in moved.curves.items()
    )
    same = len({tuple(row) for row in moved.strongest}) == 1
    vectors = "\n".join(
        f"- {name}: output ({_listed(OUTPUTS[name])}), total error "
        + " + ".join(f"½({float(index == BOAT):g} - {value:g})²" for index, value in enumerate(OUTPUTS[name]))
        + f" = {error:.4g}"
        for name, error in zip(OUTPUTS, errors, strict=True)
    )
    winners = "; ".join(f"{of.year} {of.team} {of.percent:g} %" for of, _ in challenge.FACTS if of.kind == "winner")
    height, width, depth = VOLUME
    window = f"{VOLUME_FILTER}×{VOLUME_FILTER}"
    return f"""# The lecture, computed

From the lecture's inputs, `python -m experiments.lecture` computed every number here; behind each figure is an `.npz`
with its arrays.

## 1. A filter scans an image

{_rows(scanned.image)} scanned by {_rows(scanned.kernel)} with stride 1. The first window gives
{scanned.output[0, 0]}; the whole output is {_rows(scanned.output)}.

![binary scanner](scanner.png)

## 2. Three channels, one output

Over the first window the {len(RGB_NAMES)} channels ({", ".join(RGB_NAMES)}) add up to {_listed(colour.sums)};
with the bias {RGB_BIAS} the first output is {terms} + {RGB_BIAS} = {colour.output[0, 0]}.
The corner's whole output: {_rows(colour.output, " ")}.

![colour image](rgb.png)

## 3. Strides, padding, and what does not fit

A filter of {FILTER}×{FILTER} on {ROW}×{ROW} pixels has (N - F + 2P)/S + 1 outputs along each side:

{chr(10).join(lines)}

With stride 1 the padding P = (F - 1)/2 keeps the size: {keeping}.
{VOLUME_FILTERS} filters of {window} on {height}×{width}×{depth} give {"×".join(map(str, size.volume))} and have
(F·F·D)·K + K = ({VOLUME_FILTER}·{VOLUME_FILTER}·{depth})·{VOLUME_FILTERS} + {VOLUME_FILTERS} = {size.weights} weights.

![strides](strides.png)

## 4. Max pooling

F = {POOL}, S = {POOL}: {_rows(POOLED_IMAGE, " ")} becomes {_rows(pooled.output, " ")}.

![max pooling](pooling.png)

## 5. Feature maps of a photograph

Each filter, then ReLU; maps of {maps.shape[0]}×{maps.shape[1]}:

{filters}

![feature maps](feature_maps.png)

## 6. Position

A cutout of the photograph moves to the right by {moved.shifts[0]} to {moved.shifts[-1]} pixels. The feature maps move
with it: moved back, they differ from the unshifted ones by at most {moved.largest_difference.max():g} (equivariance).
The largest value of each map {"is the same for every shift" if same else "changes with the shift"} (invariance):
{_listed(moved.strongest[0])}.
In between, the larger the pool, the less its output changes. Distance from the unshifted one, as a share of its norm,
by shift:

| | {" | ".join(map(str, moved.shifts))} |
| --- |{" ---: |" * len(moved.shifts)}
{distances}

![position](invariance.png)

## 7. Training

Total error = Σ ½ (target - output)². For the image of a {CLASSES[BOAT]} among {", ".join(CLASSES)}:

{vectors}

The five steps – (1) random weights, (2) forward, (3) total error, (4) gradients, (5) update – on handwritten digits:
after {course.updates[-1]} updates with {DIGITS.train.batch_size} images each the total error an image has gone from
{course.total_error[0]:.3f} to {course.total_error[-1]:.3f}, and the share of wrong classes among the training images
from {100 * course.wrong[0]:.1f} % to {100 * course.wrong[-1]:.1f} %.

![training](training.png)

## 8. The ImageNet challenge

Share of the test images whose class is not among the five most probable ones: {winners}. A person: about
{challenge.HUMAN:g} %. {challenge.NOTE}

![challenge](challenge.png)
"""


def _conv(image, kernel, **options) -> jax.Array:
    """`ops.conv` of one image."""
    return ops.conv(jnp.float32(image)[None], jnp.float32(kernel), **options)[0]


def _whole(values) -> np.ndarray:
    """Exact whole numbers, as integers."""
    return np.rint(np.asarray(values)).astype(int)


def _rows(grid: np.ndarray, between: str = "") -> str:
    separated = between or (" " if grid.max() > 1 else "")
    return "`" + " / ".join(separated.join(map(str, row)) for row in grid) + "`"


def _listed(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    cli.run_options(main, Options())
