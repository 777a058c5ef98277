"""The work that is measured, with the bounds that the project sets itself."""

import dataclasses
import math
from typing import Any, Literal

from cnnjax import models
from cnnjax.config import ModelConfig

CLASSES = 10
IMAGES = 2048  # in the synthetic training set

Device = Literal["cpu", "gpu"]
Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("tf32", "bfloat16", "float32")  # a GPU's, the default of JAX first


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        shape: one example, without the batch.
        bars: the largest allowed ratio of our time over a rival's, by rival; infinite: measured without a bound.
        members: trainings at a time; the times of suites vmap and sweep are a member's.
        precision: of the arithmetic. "float32" is float32 throughout, "tf32" lets the matrix units round operands to
            TensorFloat-32, "bfloat16" casts images and weights, with float32 master weights and a float32 loss.
        turn: the cases of a lower one are measured first, whatever their suite.
        work: of ours, where the suite has cases of several.
    """

    name: str
    shape: tuple[int, ...]
    batch: int
    bars: dict[str, float]
    model: ModelConfig | None = None
    window: int = 0
    stride: int = 1
    width: int = 0  # out channels
    images: int = IMAGES
    in_loop: bool = False
    groups: int = 1  # of channels
    members: int = 1
    device: Device = "cpu"
    precision: Precision = "float32"
    turn: int = 0
    work: str = ""

    def network(self) -> Any:
        assert self.model is not None
        return models.build(self.model, self.shape, CLASSES)


def _lenet(width: int, dense: int) -> ModelConfig:
    return ModelConfig("lenet", widths=(width, 2 * width), filters=(5, 5), paddings=(2, 2), dense=(dense,))


_THREE = ModelConfig(
    "zfnet_small", widths=(64, 128, 256), filters=(3, 3, 3), paddings=(1, 1, 1), pools=(2, 2, 2), dense=(), init="he"
)
_STEP = {"torch": 0.9, "flax": 0.4}
STEPS = [
    Case("LeNet 32-64, 28×28×1", (28, 28, 1), 128, _STEP, _lenet(32, 256)),
    Case("three convolutions, 32×32×3", (32, 32, 3), 128, _STEP | {"torch": 0.8}, _THREE),
    Case("photos default, 32×32×3", (32, 32, 3), 128, _STEP, ModelConfig("zfnet_small")),
    Case("small LeNet W=8, 28×28×1", (28, 28, 1), 64, _STEP, _lenet(8, 64)),
    Case("small LeNet W=16, 28×28×1", (28, 28, 1), 64, _STEP, _lenet(16, 64)),
    Case(
        "ZFNet without norm, 224×224×3", (224, 224, 3), 16, _STEP,
        ModelConfig("zfnet", norm="none", init="he"), images=64,
    ),
    Case(
        "ZFNet, 224×224×3", (224, 224, 3), 16, _STEP, ModelConfig("zfnet", init="he"), images=64
    ),
]  # fmt: skip
_LAX_TORCH = {"lax": 1.0, "torch": 0.9}


def _sweep_bars(members: int) -> dict[str, float]:
    """Those of 16 members; other counts show where training together begins to pay."""
    bars = {"one after another": 1.0, "torch": 0.75, "torch.func": 0.45, "flax": 0.3}
    return bars if members == 16 else dict.fromkeys(bars, math.inf)


def _networks() -> list[Case]:
    """Training step, forward pass and peak memory of known networks; torchvision's modules are the rival."""
    made = []
    for name, size, batch in (
        ("resnet18", 224, 8),
        ("vgg11", 112, 8),
        ("alexnet", 224, 32),
        ("resnet20", 32, 128),
        ("mobilenet_v2", 96, 16),
    ):
        case = Case("", (size, size, 3), batch, {}, ModelConfig(name), images=16 * batch)
        for what, work, rival, bar in (
            ("step", "training", "torch", 1.0),
            ("forward", "inference", "torch forward", 1.0),
            ("memory of a step", "peak memory", "torch memory", 1.2),
        ):
            made.append(
                dataclasses.replace(case, name=f"{name}, {size}×{size}×3, {what}", bars={rival: bar}, work=work)
            )
    return made


def _scale() -> list[Case]:
    """A step of the same batch over eight simulated devices and with streamed images, beside one that has them all."""
    made = []
    for case in (STEPS[0], STEPS[2], Case("ResNet-20, 32×32×3", (32, 32, 3), 128, {}, ModelConfig("resnet20"))):
        for what, work, rival, bar in (
            ("on eight devices", "eight devices", "one device", 1.15),
            ("batch and activations a device", "eight devices memory", "one device memory", 0.15),
            ("streamed", "streamed", "one device", 1.05),
        ):
            made.append(dataclasses.replace(case, name=f"{case.name}, {what}", bars={rival: bar}, work=work))
    return made


CASES: dict[str, list[Case]] = {
    "step": STEPS,
    "loop": [dataclasses.replace(case, bars={"python loop": 1.05}) for case in STEPS[:5]],
    "pool": [
        Case(
            f"max pool {window}×{window}/{stride}{', in a loop' if in_loop else ''}", (32, 32, 32), 64,
            {"reduce_window": 0.25}, window=window, stride=stride, in_loop=in_loop,
        )
        for window, stride in ((2, 2), (3, 2))
        for in_loop in (False, True)
    ],
    "conv": [
        Case("first layer 5×5, 28×28×1 → 8, forward", (28, 28, 1), 64, {"lax": 0.35}, window=5, width=8),
        Case("first layer 5×5, 32×32×3 → 32, forward", (32, 32, 3), 64, {"lax": 0.75}, window=5, width=32),
        Case("1-D 9, 8000×16 → 16, with gradients", (8000, 16), 64, _LAX_TORCH, window=9, width=16),
        Case("3-D 3×3×3, 32³×8 → 8, with gradients", (32, 32, 32, 8), 16, _LAX_TORCH, window=3, width=8),
        Case(
            "depthwise 3×3, 56×56×64, with gradients", (56, 56, 64), 32, _LAX_TORCH, window=3, width=64, groups=64
        ),
        Case(
            "3×3, 32×32×64 → 64 in bfloat16, forward", (32, 32, 64), 64, _LAX_TORCH, window=3, width=64,
            precision="bfloat16",
        ),
    ],
    "norm": [Case("local response normalization, with gradient", (55, 55, 96), 16, {"torch": 1.0})],
    "vmap": [
        dataclasses.replace(case, name=f"8 members, {case.name}", bars={"single step": 1.0, "flax": 0.3}, members=8)
        for case in STEPS[3:5]
    ],
    "sweep": [
        dataclasses.replace(case, name=f"{count} members, {case.name}", bars=_sweep_bars(count), members=count)
        for case in STEPS[3:5]
        for count in (1, 4, 16, 64)
    ],
    "startup": [
        dataclasses.replace(
            STEPS[0],
            name="process start to the first step, LeNet",
            bars={"flax": 1.0, "torch": 1.0, "compiled anew": 0.5, "oneDNN": math.inf},
        )
    ],
    "evolution": [
        dataclasses.replace(
            STEPS[2], batch=64, name="strongest activations of every layer", bars={"forward pass": 1.3}
        ),
        Case(
            "nine strongest activations of VGG-16's last convolution, 224×224×3", (224, 224, 3), 16,
            {"forward pass": 1.3}, ModelConfig("vgg16"), images=16, work="nine strongest",
        ),
    ],
    "projection": [
        dataclasses.replace(STEPS[2], batch=64, name="projections of conv5", bars={"forward pass": 2.0})
    ],
    "checkpoints": [
        Case(f"weights and momentum, {megabytes} MB", (28, 28, 1), 128, {"orbax": 1.5}, _lenet(32, units))
        for megabytes, units in ((60, 2376), (250, 9925))
    ],
    "input": [
        Case("photographs, 500×375 to 224×224, as files", (224, 224, 3), 128, {"bare decoder": 1.18}, images=512),
        Case(
            "photographs, 256×256 to 224×224, as pixels", (224, 224, 3), 128, {"packed files": 0.2}, images=512,
            work="packed pixels",
        ),
    ],
    "memory": [dataclasses.replace(case, bars={"flax": 1.0}) for case in (STEPS[0], STEPS[1], STEPS[5])],
    "scale": _scale(),
    "networks": _networks(),
}  # fmt: skip


# --- GPU -----------------------------------------------------------------------------------------------------------


def _of_gpu(case: Case, precision: Precision, turn: int, bars: dict[str, float], **changes: Any) -> Case:
    name = f"{changes.pop('name', case.name)}, {precision}"
    return dataclasses.replace(case, name=name, precision=precision, turn=turn, bars=bars, device="gpu", **changes)


def _gpu_steps() -> list[Case]:
    """LeNet and ZFNet before the others, and float32, which the matrix units do not take, last."""
    lenet, three, photos, *_, without_norm, zfnet = STEPS
    small, large = {"images": 16384}, {"batch": 128, "images": 256}  # a new order every 128 steps, or every 2
    made = []
    for case, turn, changes in (
        (lenet, 1, small),
        (without_norm, 1, large),
        (three, 3, small),
        (photos, 3, small),
        (zfnet, 5, large),
    ):
        for precision in PRECISIONS:
            bars = {"torch": 0.97, "flax": 1.0}
            if (case, precision) in ((lenet, "tf32"), (without_norm, "bfloat16")):
                bars["torch compiled"] = math.inf  # compiles for half a minute
            made.append(_of_gpu(case, precision, turn + 3 * (precision == "float32"), bars, **changes))
    return made


def _gpu_sweeps() -> list[Case]:
    """Every form of the batching rule, unrolled up to 64 members."""
    made = []
    for count, turn in ((64, 2), (8, 3), (512, 4), (1, 5)):
        for case in STEPS[3:5]:
            bars = {"mapped": math.inf, "grouped": math.inf, "folded": math.inf, "folded slices": math.inf}
            bars |= {"torch": math.inf, "torch.func": math.inf}
            if count <= 64:
                bars["unrolled"] = math.inf
            if count > 64:
                del bars["folded"]  # as much memory as the slices, and no room for both
            if count == 64:
                bars |= {"mapped": 0.2, "torch": 0.1}
            for precision in ("tf32", "bfloat16") if count == 64 else ("tf32",):
                later = 2 * (precision == "bfloat16")
                name = f"{count} members, {case.name}"
                made.append(_of_gpu(case, precision, turn + later, bars, name=name, members=count, images=8192))
    return made


def _gpu_pools() -> list[Case]:
    bars = {"reduce_window": 1.0, "compared": math.inf, "searched twice": math.inf, "torch": 1.0}
    work = [((2, 2), (32, 32, 64)), ((3, 2), (110, 110, 96)), ((2, 2), (28, 28, 8))]
    turns: dict[Precision, int] = {"float32": 2, "bfloat16": 4}
    made = []
    for precision, turn in turns.items():
        for (window, stride), shape in work:
            name = f"max pool {window}×{window}/{stride} of {'×'.join(map(str, shape))}"
            case = Case(name, shape, 128, {}, window=window, stride=stride)
            made.append(_of_gpu(case, precision, turn, bars))
    return made


def _gpu_convolutions() -> list[Case]:
    bars = {"lax": 1.0, "torch": 1.0}
    depthwise = Case("depthwise 3×3, 56×56×128, with gradients", (56, 56, 128), 64, {}, window=3, width=128, groups=128)
    layers = [*CASES["conv"][:2], *(dataclasses.replace(case, batch=4 * case.batch) for case in CASES["conv"][2:])]
    # PyTorch's work has the gradients, so it stands beside ours only where ours has them too
    return [
        _of_gpu(case, "tf32", 5, bars if "gradients" in case.name else {"lax": 1.0}) for case in (*layers, depthwise)
    ]


GPU_CASES: dict[str, list[Case]] = {
    "peaks": [
        _of_gpu(Case("matrix product 8192³", (8192, 8192), 1, {}), precision, 0, {"torch": math.inf})
        for precision in PRECISIONS
    ],
    "bandwidth": [_of_gpu(Case("1 GiB read and written", (2**28,), 1, {}), "float32", 0, {"torch": math.inf})],
    "step": _gpu_steps(),
    "sweep": _gpu_sweeps(),
    "pool": _gpu_pools(),
    "loop": [_of_gpu(case, "tf32", 2, {"python loop": math.inf, "known length": math.inf}) for case in STEPS[:2]],
    "conv": _gpu_convolutions(),
}


def rehearsal() -> dict[str, list[Case]]:
    """The GPU's suites at a size at which a CPU tries every rival in every precision."""
    return {suite: [_small(case) for case in _unlike(cases)] for suite, cases in GPU_CASES.items()}


def _unlike(cases: list[Case]) -> list[Case]:
    """One case for every precision and set of rivals."""
    return list({(case.precision, *case.bars): case for case in reversed(cases)}.values())


def _small(case: Case) -> Case:
    small: dict[str, Any] = {"batch": 4, "images": 16, "members": min(case.members, 3), "device": "cpu"}
    if case.model is not None:
        small |= {"shape": (12, 12, 1), "model": _lenet(2, 8)}
    elif len(case.shape) < 3:
        small |= {"shape": (64,) * len(case.shape)}
    else:
        channels = min(case.shape[-1], 4)
        small |= {"shape": (*(12,) * (len(case.shape) - 1), channels), "groups": min(case.groups, channels), "width": 4}
    return dataclasses.replace(case, **small)


def cases_of(device: Device, rehearse: bool = False) -> dict[str, list[Case]]:
    """Suite -> its cases."""
    return rehearsal() if rehearse else CASES if device == "cpu" else GPU_CASES
