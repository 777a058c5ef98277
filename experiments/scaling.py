"""What training on ImageNet takes on 1 to 512 devices, computed: the time a step by each limit, and where it ends.

Three limits are looked at. *Operations*: three times those of a forward pass, at a share of the device's peak.
*Gradients*: all devices add theirs up around a ring, 2 (n - 1) / n times their bytes through each device's link (that
of its host, or the slower one between hosts), with a delay at each of the 2 (n - 1) hops; nothing of it is hidden
behind the backward pass, which a compiler may do better. *Images*: read and decoded by each host while the step before
runs. A step takes the longer of images, and operations with gradients. The batch grows with the devices up to
`--most-batch`, and is divided further from there on.

The machine's numbers are options, and the named ones are peaks as their makers give them, not measurements. The model
is held against published runs of ResNet-50, and `docs/scaling.md` keeps both.
"""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax import cli, models
from cnnjax.atomic import write_text
from cnnjax.cli import Progress
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.figures import files, settings
from cnnjax.figures import scaling as figure
from cnnjax.train.throughput import PEAKS

IMAGES, PAPER_EPOCHS, CLASSES, SIDE = 1_281_167, 70, 1000, 224
NETWORKS = {"zfnet": "ZFNet", "resnet50": "ResNet-50"}
DEVICES = tuple(2**power for power in range(10))
LEAST_EFFICIENCY = 0.5  # below it another device is not worth its while
JPEG_BYTES = 110_000  # of an image of ImageNet on average: 140 GB / 1.28 million


class Machine(NamedTuple):
    """A device, its links, and what feeds it."""

    teraflops: float  # peak, of the precision that is trained in
    share: float  # of the peak that convolutions reach
    host: int  # devices of a host, or of what else its links join
    link: float  # of these links, bytes a second, in 10^9
    network: float  # between hosts, for each device, bytes a second, in 10^9
    delay: float  # of a hop, in 10^-6 s
    images: float  # a second, read and decoded for each device
    source: str


MACHINES = {
    "v100": Machine(
        PEAKS["Tesla V100-SXM2-16GB"], 0.2, 8, 25, 1.5, 5, 1300,
        "NVIDIA: 125 TFLOP/s in mixed precision, NVLink 2 of 25 GB/s a direction; a network of 100 Gbit/s a host",
    ),
    "h100": Machine(
        PEAKS["NVIDIA H100 80GB HBM3"], 0.3, 8, 450, 50, 5, 12_000,
        "NVIDIA: 989 TFLOP/s in bfloat16, NVLink 4 of 450 GB/s a direction, a network of 400 Gbit/s a device; "
        "images as resized pixels, of which 2.4 GB a second are read for each device (of JPEGs about 2,500)",
    ),
    "tpu-v3": Machine(
        PEAKS["TPU v3"], 0.4, 2048, 70, 70, 2, 1500,
        "Google: 123 TFLOP/s in bfloat16 a chip of two cores, links of 70 GB/s through the whole pod",
    ),
    "two-cores": Machine(
        0.11, 0.7, 1, 10, 1, 50, 200, "measured here: a product of matrices on two cores, and a step of ZFNet"
    ),
}  # fmt: skip
NUMBERS = ("teraflops", "share", "link", "network", "delay", "images")


class Published(NamedTuple):
    """A run of ResNet-50 that others have published."""

    machine: str
    devices: int
    batch: int
    images_a_second: float
    source: str


PUBLISHED = (
    Published("v100", 8, 2048, 8270, "Flax's ImageNet example, mixed precision"),
    Published("tpu-v3", 8, 1024, 8090, "Flax's ImageNet example"),
    Published("tpu-v3", 32, 1024, 16900, "Flax's ImageNet example"),
    Published("tpu-v3", 512, 32768, 480_000, "a public thread of 2020, code of MLPerf"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The machine, and the training; a number that is given takes the place of the named machine's."""

    machine: str = "h100"
    teraflops: float | None = None  # peak of a device, 10^12 operations a second
    share: float | None = None  # of the peak that is reached
    link: float | None = None  # between devices of a host, 10^9 bytes a second
    network: float | None = None  # between hosts, for each device, 10^9 bytes a second
    delay: float | None = None  # 10^-6 s a hop
    images: float | None = None  # a second, read and decoded for each device
    batch: int = 128  # images of a step on each device
    most_batch: int = 8192  # of all devices: beyond it errors rise (Goyal et al. 2017)
    out: Path = Path("runs/scaling")  # for scaling.png, its .npz and scaling.md

    def __post_init__(self):
        if self.machine not in MACHINES:
            raise InputError(f"--machine must be one of {', '.join(MACHINES)}, got {self.machine!r}")
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name} must be a finite number > 0, got {value}")
        if self.share is not None and self.share > 1:
            raise InputError(f"--share must be at most 1, got {self.share}")
        if not 1 <= self.batch <= self.most_batch <= 10**6:
            rule = "must be from 1 to --most-batch, and that at most 1000000"
            raise InputError(f"--batch {rule}, got {self.batch} and {self.most_batch}")

    def chosen(self) -> Machine:
        given = {name: getattr(self, name) for name in NUMBERS}
        return MACHINES[self.machine]._replace(**{name: value for name, value in given.items() if value is not None})


class Work(NamedTuple):
    """What a network asks for."""

    operations: float  # of a training step, an image: 2 a multiply-add, three passes
    gradient_bytes: int  # float32


class Step(NamedTuple):
    """A step on some devices, in seconds."""

    batch: int  # of all devices
    operations: float
    gradients: float
    images: float

    @property
    def seconds(self) -> float:
        return max(self.images, self.operations + self.gradients)

    @property
    def limit(self) -> str:
        if self.images > self.operations + self.gradients:
            return "images"
        return "operations" if self.operations >= self.gradients else "gradients"

    @property
    def images_a_second(self) -> float:
        return self.batch / self.seconds


def work_of(name: str) -> Work:
    """Traced from the network itself, at 224×224 and 1000 classes."""
    shape = (SIDE, SIDE, 3)
    rows = models.layers(models.build(ModelConfig(name), shape, CLASSES), shape)
    return Work(models.training_operations(rows), 4 * sum(row.weights + row.biases for row in rows))


def step(work: Work, machine: Machine, devices: int, batch: int) -> Step:
    """A step of `batch` images over all devices."""
    share = math.ceil(batch / devices)
    operations = share * work.operations / (machine.share * machine.teraflops * 1e12)
    slowest = machine.link if devices <= machine.host else machine.network
    sent = 2 * (devices - 1) / devices * work.gradient_bytes / (slowest * 1e9)
    return Step(batch, operations, sent + 2 * (devices - 1) * machine.delay * 1e-6, share / machine.images)


def batch_of(options: Options, devices: int) -> int:
    return max(devices, min(options.batch * devices, options.most_batch))


def last_that_pays(steps: list[Step]) -> int:
    """The most of `DEVICES` that each do at least half of what one alone does."""
    alone = steps[0].images_a_second
    paying = [n for n, one in zip(DEVICES, steps, strict=True) if one.images_a_second >= LEAST_EFFICIENCY * n * alone]
    return max(paying)


def hours(one: Step) -> float:
    return PAPER_EPOCHS * math.ceil(IMAGES / one.batch) * one.seconds / 3600


COLUMNS = (
    "devices", "batch", "operations, ms", "gradients, ms", "images, ms", "a step, ms", "limit", "images/s",
    "efficiency", "hours",
)  # fmt: skip


def rows_of(steps: list[Step]) -> list[tuple[str, ...]]:
    return [
        (
            str(devices), str(one.batch), *(f"{1e3 * part:.2f}" for part in one[1:]), f"{1e3 * one.seconds:.2f}",
            one.limit, f"{one.images_a_second:,.0f}",
            f"{100 * one.images_a_second / devices / steps[0].images_a_second:.0f} %", f"{hours(one):.2f}",
        )
        for devices, one in zip(DEVICES, steps, strict=True)
    ]  # fmt: skip


def published_rows() -> list[tuple[str, ...]]:
    """The model, with its defaults, beside what others have measured."""
    work = work_of("resnet50")
    rows = []
    for run in PUBLISHED:
        computed = step(work, MACHINES[run.machine], run.devices, run.batch).images_a_second
        ratio = computed / run.images_a_second
        words = run.machine, str(run.devices), str(run.batch), f"{run.images_a_second:,.0f}", f"{computed:,.0f}"
        rows.append((*words, f"{ratio:.2f}", run.source))
    return rows


def page(options: Options, machine: Machine, works: dict[str, Work], steps: dict[str, list[Step]]) -> str:
    """docs/scaling.md."""

    def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
        ruled = "| " + " | ".join("---" if place == 0 else "--:" for place in range(len(columns))) + " |"
        return ["| " + " | ".join(columns) + " |", ruled, *("| " + " | ".join(row) + " |" for row in rows), ""]

    lines = [
        "# What ImageNet takes on 1 to 512 devices", "",
        f"Written by `python -m experiments.scaling --machine {options.machine}`. Computed, not measured: "
        "the docstring of the script says how. "
        f"{IMAGES:,} images, {PAPER_EPOCHS} epochs as in the paper, images of {SIDE}×{SIDE}.", "",
        f"The device: {machine.teraflops:g} TFLOP/s at its peak, of which {100 * machine.share:.0f} % are reached; "
        f"links of {machine.link:g} GB/s between the {machine.host} of a host, {machine.network:g} GB/s for each "
        f"between hosts, {machine.delay:g} µs a hop; {machine.images:,.0f} images a second for each device. "
        f"{machine.source}. Each device has {options.batch} images of a step, all together at most "
        f"{options.most_batch:,}.", "",
        "![Hours for 70 epochs by number of devices](scaling.png)", "",
    ]  # fmt: skip
    for name, title in NETWORKS.items():
        work, last = works[name], last_that_pays(steps[name])
        read = steps[name][0].images_a_second * JPEG_BYTES / 1e6
        lines += [
            f"## {title}", "",
            f"{work.operations / 1e9:.2f} GFLOP a training image; {work.gradient_bytes / 1e6:.0f} MB of gradients are "
            f"summed at each step; one device reads {read:,.0f} MB of JPEGs a second. Up to {last} devices each does "
            f"at least {100 * LEAST_EFFICIENCY:.0f} % of what one alone does.", "",
            *table(COLUMNS, rows_of(steps[name])),
        ]  # fmt: skip
    lines += [
        "## The model beside published runs of ResNet-50", "",
        *table(("device", "devices", "batch", "images/s", "computed", "ratio", "whose"), published_rows()),
        "The shares of the peak are chosen by the first run of each device. Of the 32 cores each has 32 images of a "
        "step, and reaches half of what it does with 128 or 64: the model does not know that.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(options: Options, progress: Progress) -> None:
    settings.check()
    machine, works = options.chosen(), {name: work_of(name) for name in NETWORKS}
    steps = {
        name: [step(work, machine, devices, batch_of(options, devices)) for devices in DEVICES]
        for name, work in works.items()
    }
    for name, title in NETWORKS.items():
        progress.say(cli.table(f"{title} on {options.machine}: {PAPER_EPOCHS} epochs", COLUMNS, rows_of(steps[name])))
    every = np.array([[hours(one) for one in of] for of in steps.values()])
    perfect = np.array([[hours(of[0]) / devices for devices in DEVICES] for of in steps.values()])
    last = [last_that_pays(of) for of in steps.values()]
    drawn = figure.draw(DEVICES, tuple(NETWORKS.values()), every, perfect, last, options.machine, PAPER_EPOCHS)
    options.out.mkdir(parents=True, exist_ok=True)
    files.save(
        options.out / "scaling.png", drawn, devices=DEVICES, networks=list(NETWORKS), hours=every, perfect=perfect
    )
    write_text(options.out / "scaling.md", page(options, machine, works, steps))
    progress.say(f"{options.out}/scaling.md, scaling.png")


if __name__ == "__main__":
    cli.run_options(main, Options())
