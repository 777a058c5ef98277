"""The lecture on convolutional networks, computed: its examples by this project's own functions.

One figure for each part, with the numbers behind it, and one page for a browser, OUT/lecture.html. With `--run DIR` the
page also has the filters of that run, growing out of noise. Where a figure shows the opposite of what is said of it,
the page says so.
"""

import dataclasses
import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from cnnjax import cli, geometry, models, ops
from cnnjax.cli import Progress
from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, PhotosConfig, TrainConfig, check_seed
from cnnjax.data import load, photos, scale_of
from cnnjax.errors import InputError
from cnnjax.figures import convergence, files, settings
from cnnjax.figures import lecture as figures
from cnnjax.figures.lecture import Fit
from cnnjax.report import page
from cnnjax.report.records import Figure, Made, Section
from cnnjax.train import run as runs
from cnnjax.train.feed import Resident, in_its_own_order, portions
from cnnjax.train.lock import locked
from cnnjax.train.losses import squared_error
from cnnjax.train.step import initial_state, make_evaluate, make_order, make_preprocess, make_train_chunk
from cnnjax.train.training import evaluated
from experiments import challenge, report, studies


@dataclasses.dataclass(frozen=True)
class Options:
    """What the lecture can be told."""

    out: Path = Path("runs/lecture")  # where the figures and the page go
    updates: int = 120  # of the small training
    seed: int = 0  # of its weights and its order
    run: Path | None = None  # the folder of a run whose filters are shown over the epochs; none: not shown

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
PAGE = "lecture"  # what the page is called
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


def signals(image: Int[np.ndarray, "height width"]) -> Float[np.ndarray, "map_height map_width filters"]:
    """The convolution with each of FILTERS, before the ReLU."""
    kernel = np.stack([one.weights / one.divisor for one in FILTERS], axis=-1)[:, :, None]
    return np.asarray(_conv(image[..., None], kernel))


def feature_maps(image: Int[np.ndarray, "height width"]) -> Float[np.ndarray, "map_height map_width filters"]:
    """ReLU of `signals`."""
    return np.asarray(jax.nn.relu(signals(image)))


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


def gradients(output: Sequence[float]) -> Float[np.ndarray, " classes"]:
    """Of the total error for the image of a boat, by each output."""
    target = jnp.eye(len(CLASSES))[BOAT]
    return np.asarray(jax.grad(lambda output: 0.5 * jnp.sum((target - output) ** 2))(jnp.array(output)))


class Course(NamedTuple):
    updates: Int[np.ndarray, " looks"]
    total_error: Float[np.ndarray, " looks"]  # mean over the training images
    wrong: Float[np.ndarray, " looks"]  # share of them
    weights: Float[np.ndarray, "window window filters"]  # of the first layer, at the start


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
    weights = np.array(state.params["conv1"]["kernel"])[:, :, 0]  # the steps give the state's arrays away
    looks = sorted({*range(0, updates, max(updates // LOOKS, 1)), updates})
    course = []
    for done, update in progress.over("the five steps", list(itertools.pairwise([0, *looks]))):
        for part in portions(feed, hyper, done, update):  # steps 2 to 5
            state = chunk(hyper, state, *part)
        sums = evaluated(evaluate, measured, hyper, state)
        course.append((update, float(sums.loss / sums.count), float(sums.errors / sums.count)))
    counts, total_error, wrong = (np.array(column) for column in zip(*course, strict=True))
    return Course(counts, total_error, wrong, weights)


class Lecture(NamedTuple):
    """Everything that was computed."""

    scanned: Scan
    colour: Rgb
    sizes: Sizes
    pooled: MaxPooling
    photograph: UInt8[np.ndarray, "height width"]
    before: Float[np.ndarray, "map_height map_width filters"]  # the ReLU
    maps: Float[np.ndarray, "map_height map_width filters"]
    moved: Invariance
    errors: Float[np.ndarray, " outputs"]
    gradients: Float[np.ndarray, " classes"]
    course: Course


def main(options: Options, progress: Progress) -> None:
    settings.check()
    out = options.out
    of_run = [] if options.run is None else [growing(options.run, out)]  # what is wrong with it is said first
    out.mkdir(parents=True, exist_ok=True)
    image = photograph()
    config = dataclasses.replace(DIGITS, hyper=dataclasses.replace(DIGITS.hyper, seed=options.seed))
    computed = Lecture(
        scan(),
        rgb(),
        sizes(),
        max_pooling(),
        image,
        signals(image),
        feature_maps(image),
        invariance(image),
        total_errors(),
        gradients(next(iter(OUTPUTS.values()))),
        train(config, options.updates, progress),
    )
    with locked(out):  # one process draws at a time
        draw(out, computed)
        parts = [*sections(out, computed), *of_run, of_challenge(out)]
        lead = (
            "Every number here was computed from the lecture's inputs; behind each figure is an .npz with its arrays."
        )
        made = page.render_text("The lecture, computed", lead, parts, beside=f"{PAGE}_images")
        report.write(out / f"{PAGE}.html", made, f"{PAGE}_images")
    progress.say(f"{out / PAGE}.html and its figures are in {out}")


def draw(out: Path, of: Lecture) -> None:
    """Every figure, and the arrays behind it."""
    files.save(out / "scanner.png", figures.draw_scanner(*of.scanned), **of.scanned._asdict())
    total = int(of.colour.output[0, 0])
    figure = figures.draw_rgb(of.colour.padded, RGB_FILTER, of.colour.sums, RGB_BIAS, total, RGB_NAMES)
    files.save(out / "rgb.png", figure, kernel=RGB_FILTER, bias=RGB_BIAS, **of.colour._asdict())
    windows = np.array([fit._replace(output=fit.output or 0) for fit in of.sizes.fits])
    files.save(out / "strides.png", figures.draw_strides(of.sizes.fits), columns=Fit._fields, fits=windows)
    figure = figures.draw_pooling(POOLED_IMAGE, of.pooled.switches, of.pooled.output, POOL)
    files.save(out / "pooling.png", figure, image=POOLED_IMAGE, **of.pooled._asdict())

    names, weights, divisors = ([getattr(one, field) for one in FILTERS] for field in NamedFilter._fields)
    figure = figures.draw_feature_maps(of.photograph, of.maps, names, weights, divisors)
    arrays = {"names": names, "weights": weights, "divisors": divisors}
    files.save(out / "feature_maps.png", figure, photograph=of.photograph, maps=of.maps, **arrays)
    figure = figures.draw_relu(of.before, of.maps, names)
    files.save(out / "relu.png", figure, before=of.before, after=of.maps, names=names)

    ends, moved = [0, -1], of.moved
    figure = figures.draw_invariance(moved.inputs[ends], moved.shifts[ends], moved.shifts, moved.curves)
    arrays = {name: value for name, value in moved._asdict().items() if name != "curves"}
    curves = np.stack(list(moved.curves.values()))
    files.save(out / "invariance.png", figure, curves=curves, curve_names=list(moved.curves), **arrays)

    target = np.eye(len(CLASSES))[BOAT]
    outputs = {name: np.array(values) for name, values in OUTPUTS.items()}
    for number, (figure, arrays) in enumerate(five_steps(of, target, outputs), 1):
        files.save(out / f"step_{number}.png", figure, **arrays)
    title = f"a small network learns handwritten {DIGITS.data.name}"
    course = (of.course.updates, of.course.total_error, of.course.wrong)
    figure = figures.draw_training(CLASSES, target, outputs, of.errors, *course, title)
    arrays = {"target": target, "outputs": np.stack(list(outputs.values())), "errors": of.errors}
    files.save(out / "training.png", figure, **arrays, **of.course._asdict())
    challenge.save(out / "challenge.png", [])


def five_steps(of: Lecture, target: np.ndarray, outputs: dict[str, np.ndarray]) -> list[tuple[Any, dict[str, Any]]]:
    """A figure a step, with its arrays: the lecture's numbers for the image of a boat."""
    untrained, updated = (outputs[name] for name in ("untrained", "after an update"))
    before, after = (float(of.errors[list(outputs).index(name)]) for name in ("untrained", "after an update"))
    terms = " + ".join(f"½({goal:g} − {value:g})²" for goal, value in zip(target, untrained, strict=True))
    weights, slopes = of.course.weights, of.gradients
    bars = figures.draw_bars
    return [
        (figures.draw_weights(weights, "Step 1: weights are random"), {"weights": weights}),
        (
            bars(CLASSES, {"output": untrained}, "Step 2: forward, from the image to probabilities", "", "probability"),
            {"output": untrained},
        ),
        (
            bars(
                CLASSES,
                {"target": target, "output": untrained},
                "Step 3: the total error",
                f"{terms} = {before:.4g}",
                "probability",
            ),
            {"target": target, "output": untrained, "error": before},
        ),
        (
            bars(
                CLASSES,
                {"gradient": slopes},
                "Step 4: gradients, here of the total error by each output",
                "output − target: what is to rise has a negative one",
                "gradient",
            ),
            {"gradient": slopes},
        ),
        (
            bars(
                CLASSES,
                {"before": untrained, "after": updated},
                "Step 5: the weights are updated, against the gradient",
                f"the total error falls from {before:.4g} to {after:.4g}",
                "probability",
            ),
            {"before": untrained, "after": updated, "errors": np.array([before, after])},
        ),
    ]


def figure_of(folder: Path, name: str, base: Path) -> Figure:
    """A figure that stands in `folder`, for a page in the folder `base`."""
    path = folder / f"{name}.png"
    return Figure(name, path.read_bytes(), Made(report.link(path.with_suffix(".npz"), base), report.link(path, base)))


def sections(out: Path, of: Lecture) -> list[Section]:
    """The text; every number in it comes from what was computed or from the lecture's inputs above."""
    scanned, colour, size, maps, moved, course = of.scanned, of.colour, of.sizes, of.maps, of.moved, of.course
    terms = " + ".join(f"({part})" if part < 0 else f"{part}" for part in colour.sums)
    rules = []
    for fit in size.fits:
        rule = f"({fit.size} - {fit.window} + 2·{fit.padding})/{fit.stride} + 1"
        refusal = size.refusals.get((fit.stride, fit.padding))
        rules.append(f"stride {fit.stride}, padding {fit.padding}: " + (refusal or f"{rule} = {fit.output}"))
    keeping = ", ".join(f"P = {padding} for F = {window}" for window, padding in size.keeping.items())
    height, width, depth = VOLUME
    window = f"{VOLUME_FILTER}×{VOLUME_FILTER}"
    passing = {one.name: float((maps[..., index] > 0).mean()) for index, one in enumerate(FILTERS)}
    same = len({tuple(row) for row in moved.strongest}) == 1
    distances = [(name, *(f"{curve[shift]:.3f}" for shift in moved.shifts)) for name, curve in moved.curves.items()]
    vectors = [
        f"{name}: output ({_listed(OUTPUTS[name])}), total error "
        + " + ".join(f"½({float(index == BOAT):g} - {value:g})²" for index, value in enumerate(OUTPUTS[name]))
        + f" = {error:.4g}"
        for name, error in zip(OUTPUTS, of.errors, strict=True)
    ]

    def drawn(*names: str) -> tuple[Figure, ...]:
        return tuple(figure_of(out, name, out) for name in names)

    return [
        Section(
            "A filter scans an image",
            (
                f"{_rows(scanned.image)} scanned by {_rows(scanned.kernel)} with stride 1. The first window gives "
                f"{scanned.output[0, 0]}; the whole output is {_rows(scanned.output)}.",
            ),
            figures=drawn("scanner"),
        ),
        Section(
            "Three channels, one output",
            (
                f"Over the first window the {len(RGB_NAMES)} channels ({', '.join(RGB_NAMES)}) add up to "
                f"{_listed(colour.sums)}; with the bias {RGB_BIAS} the first output is {terms} + {RGB_BIAS} = "
                f"{colour.output[0, 0]}. The corner's whole output: {_rows(colour.output, ' ')}.",
            ),
            figures=drawn("rgb"),
        ),
        Section(
            "Strides, padding, and what does not fit",
            (
                f"With stride 1 the padding P = (F - 1)/2 keeps the size: {keeping}.",
                f"{VOLUME_FILTERS} filters of {window} on {height}×{width}×{depth} give "
                f"{'×'.join(map(str, size.volume))} and have (F·F·D)·K + K = "
                f"({VOLUME_FILTER}·{VOLUME_FILTER}·{depth})·{VOLUME_FILTERS} + {VOLUME_FILTERS} = "
                f"{size.weights} weights.",
                f"A filter of {FILTER}×{FILTER} on {ROW}×{ROW} pixels has (N - F + 2P)/S + 1 outputs along each side:",
            ),
            items=tuple(rules),
            figures=drawn("strides"),
        ),
        Section(
            "Max pooling",
            (f"F = {POOL}, S = {POOL}: {_rows(POOLED_IMAGE, ' ')} becomes {_rows(of.pooled.output, ' ')}.",),
            figures=drawn("pooling"),
        ),
        Section(
            "Feature maps of a photograph, before and after the ReLU",
            (
                f"Each filter gives a map of {maps.shape[0]}×{maps.shape[1]}; the ReLU sets to zero what is negative. "
                "Of the outputs there pass:",
            ),
            items=tuple(f"{name}: {100 * share:.0f} %" for name, share in passing.items()),
            figures=drawn("feature_maps", "relu"),
            contrary=_idle_relus(of.before),
        ),
        Section(
            "Position",
            (
                f"A cutout of the photograph moves to the right by {moved.shifts[0]} to {moved.shifts[-1]} pixels. The "
                "feature maps move with it: moved back, they differ from the unshifted ones by at most "
                f"{moved.largest_difference.max():g} (equivariance). The largest value of each map "
                f"{'is the same for every shift' if same else 'changes with the shift'} (invariance): "
                f"{_listed(moved.strongest[0])}.",
                "In between, the larger the pool, the less its output changes. Distance from the unshifted one, as a "
                "share of its norm, by shift:",
            ),
            table=(("", *map(str, moved.shifts)), *distances),
            figures=drawn("invariance"),
            contrary=_less_invariant(moved),
        ),
        Section(
            "Training in five steps",
            (
                "(1) random weights, (2) forward, (3) total error, (4) gradients, (5) update; then (2) again.",
                f"The gradient of the total error by each output of the untrained network is "
                f"({_listed(of.gradients)}).",
                f"The same five steps on handwritten {DIGITS.data.name}: after {course.updates[-1]} updates with "
                f"{DIGITS.train.batch_size} images each the total error an image has gone from "
                f"{course.total_error[0]:.3f} to {course.total_error[-1]:.3f}, and the share of wrong classes among "
                f"the training images from {100 * course.wrong[0]:.1f} % to {100 * course.wrong[-1]:.1f} %.",
                f"Total error = Σ ½ (target - output)². For the image of a {CLASSES[BOAT]} among {', '.join(CLASSES)}:",
            ),
            items=tuple(vectors),
            figures=drawn(*(f"step_{number}" for number in range(1, 6)), "training"),
            contrary=_rises(course),
        ),
    ]


def _idle_relus(before: Float[np.ndarray, "map_height map_width filters"]) -> tuple[str, ...]:
    """Filters after which the ReLU does nothing."""
    idle = [one.name for index, one in enumerate(FILTERS) if before[..., index].min() >= 0]
    said = "nothing is negative on this photograph, and the ReLU leaves the map as it is"
    return (f"after {' and '.join(idle)} {said}.",) if idle else ()


def _less_invariant(moved: Invariance) -> tuple[str, ...]:
    """Where a layer changes more with a shift than the layer before it."""
    names = list(moved.curves)
    found = []
    for less, more in zip(names[1:], names, strict=False):
        worse = [str(shift) for shift in moved.shifts[1:] if moved.curves[less][shift] > moved.curves[more][shift]]
        if worse:
            found.append(f"“{less}” changes more than “{more}” at a shift of {', '.join(worse)} pixels.")
    return tuple(found)


def _rises(course: Course) -> tuple[str, ...]:
    """Where the training makes it worse."""
    found = []
    for name, curve in (("total error", course.total_error), ("share of wrong classes", course.wrong)):
        rising = np.flatnonzero(np.diff(curve) > 0)
        if curve[-1] >= curve[0]:
            found.append(f"the {name} is not lower at the end than at the start.")
        elif len(rising):
            places = ", ".join(f"{course.updates[place]} and {course.updates[place + 1]}" for place in rising)
            found.append(f"the {name} rises between the updates {places}.")
    return tuple(found)


def growing(folder: Path, base: Path) -> Section:
    """The filters of a run over the epochs.

    Raises:
        InputError: there is no run, or none whose evolution was made.
    """
    runs.read_config(folder / "config.json")
    path = folder / "figures" / "convergence.npz"
    names = sorted(path.stem for path in path.parent.glob("filters_*.png"))
    if not path.is_file() or not names:
        command = studies.command("evolution", folder)
        raise InputError(f"--run must have the figures of its evolution, and {folder} has none: {command} makes them")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            layers, distance = [str(name) for name in arrays["layers"]], arrays["filter_distance"].astype(float)
            epochs = tuple(int(epoch) for epoch in arrays["epochs"])
        half = [convergence.half_way(epochs, of / (of[0] or 1)) for of in distance]
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} must be as experiments.filter_evolution writes it: {error}") from None
    said = [f"{layer}: epoch {epoch:.1f}" for layer, epoch in zip(layers, half, strict=True)]
    earlier = [
        f"{upper} is half way at epoch {there:.1f}, before {lower} below it (epoch {here:.1f})."
        for lower, upper, here, there in zip(layers, layers[1:], half, half[1:], strict=False)
        if there < here
    ]
    links = [("figures of the run", report.link(folder / "figures", base))]
    if (folder / "report.html").is_file():
        links.insert(
            0, ("the page of the run: every layer and unit over the epochs", report.link(folder / "report.html", base))
        )
    return Section(
        "Filters grow out of noise, lower layers first",
        (
            f"A network of {folder.name}, looked at after epoch {', '.join(map(str, epochs))}. Half of the way from "
            "the random filters to the last ones is gone at:",
        ),
        items=tuple(said),
        figures=tuple(figure_of(path.parent, name, base) for name in (*names, "convergence")),
        contrary=tuple(earlier),
        links=tuple(links),
    )


def of_challenge(out: Path) -> Section:
    winners = [of for of, _ in challenge.FACTS if of.kind == "winner"]
    listed = "; ".join(f"{of.year} {of.team} {of.percent:g} %" for of in winners)
    rising = [
        f"{later.year} is worse than {earlier.year}."
        for earlier, later in itertools.pairwise(winners)
        if later.percent > earlier.percent
    ]
    return Section(
        "The ImageNet challenge: fewer errors every year",
        (
            f"Share of the test images whose class is not among the five most probable ones: {listed}. A person: about "
            f"{challenge.HUMAN:g} %. {challenge.NOTE}",
        ),
        figures=(figure_of(out, "challenge", out),),
        contrary=tuple(rising),
    )


def _conv(image, kernel, **options) -> jax.Array:
    """`ops.conv` of one image."""
    return ops.conv(jnp.float32(image)[None], jnp.float32(kernel), **options)[0]


def _whole(values) -> np.ndarray:
    """Exact whole numbers, as integers."""
    return np.rint(np.asarray(values)).astype(int)


def _rows(grid: np.ndarray, between: str = "") -> str:
    separated = between or (" " if grid.max() > 1 else "")
    return " / ".join(separated.join(map(str, row)) for row in grid)


def _listed(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    cli.run_options(main, Options())
