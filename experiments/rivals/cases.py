"""The work that is measured, with the bounds that the project sets itself."""

import dataclasses
import math

from cnnjax import models
from cnnjax.config import ModelConfig

CLASSES = 10
IMAGES = 2048  # in the synthetic training set


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        shape: one example, without the batch.
        bars: the largest allowed ratio of our time over a rival's, by rival; infinite: measured without a bound.
        members: trainings at a time; the times of suites vmap and sweep are a member's.
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
    members: int = 1

    def network(self) -> models.ConvNet:
        assert self.model is not None
        return models.build(self.model, self.shape, CLASSES)


def _lenet(width: int, dense: int) -> ModelConfig:
    return ModelConfig("lenet", widths=(width, 2 * width), filters=(5, 5), paddings=(2, 2), dense=(dense,))


_THREE = ModelConfig(
    "zfnet_small", widths=(64, 128, 256), filters=(3, 3, 3), paddings=(1, 1, 1), pools=(2, 2, 2), dense=(), init="he"
)
STEPS = [
    Case("LeNet 32-64, 28×28×1", (28, 28, 1), 128, {"torch": 1.0, "flax": 0.45}, _lenet(32, 256)),
    Case("three convolutions, 32×32×3", (32, 32, 3), 128, {"torch": 0.8, "flax": 0.4}, _THREE),
    Case("photos default, 32×32×3", (32, 32, 3), 128, {"torch": 0.9, "flax": 0.5}, ModelConfig("zfnet_small")),
    Case("small LeNet W=8, 28×28×1", (28, 28, 1), 64, {"torch": 1.3, "flax": 0.6}, _lenet(8, 64)),
    Case("small LeNet W=16, 28×28×1", (28, 28, 1), 64, {"torch": 1.3, "flax": 0.6}, _lenet(16, 64)),
    Case(
        "ZFNet without norm, 224×224×3", (224, 224, 3), 16, {"torch": 1.05, "flax": 0.55},
        ModelConfig("zfnet", norm="none", init="he"), images=64,
    ),
    Case(
        "ZFNet, 224×224×3", (224, 224, 3), 16, {"torch": 1.05, "flax": 0.55}, ModelConfig("zfnet", init="he"), images=64
    ),
]  # fmt: skip
_LAX_TORCH = {"lax": 1.0, "torch": 1.3}


def _sweep_bars(members: int) -> dict[str, float]:
    """Those of 16 members; other counts show where training together begins to pay."""
    bars = {"one after another": 1.0, "torch": 1.0, "torch.func": 0.5, "flax": 0.3}
    return bars if members == 16 else dict.fromkeys(bars, math.inf)


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
        dataclasses.replace(STEPS[0], name="process start to the first step, LeNet", bars={"flax": 1.3, "torch": 2.0})
    ],
    "evolution": [
        dataclasses.replace(STEPS[2], batch=64, name="strongest activations of every layer", bars={"forward pass": 1.3})
    ],
    "projection": [
        dataclasses.replace(STEPS[2], batch=64, name="projections of conv5", bars={"forward pass": 2.0})
    ],
    "checkpoints": [
        Case(f"weights and momentum, {megabytes} MB", (28, 28, 1), 128, {"orbax": 1.5}, _lenet(32, units))
        for megabytes, units in ((60, 2376), (250, 9925))
    ],
    "memory": [dataclasses.replace(case, bars={"flax": 1.0}) for case in (STEPS[0], STEPS[1], STEPS[5])],
}  # fmt: skip
