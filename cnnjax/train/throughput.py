"""How fast a training goes: images a second, the share of the time that waits for data, the share of the peak.

Measured of the training steps alone: tests and checkpoints count in nothing here. The first step of a process may wait
for the compiler and for the first images. Its seconds are told by themselves, and it counts in nothing else.
"""

from typing import Any, NamedTuple

# The peak of a device by the name that JAX has for it, 10^12 operations a second: dense products of 16-bit numbers that
# are added up in 32 bits, as its maker gives it. On a TPU of up to version 3 a device is one of a chip's two cores.
# What a product of matrices reaches at a start is no peak: others use the machine too, and shares of it would not be of
# one thing. So of a device that is not here none is told.
PEAKS = {
    "Tesla V100-SXM2-16GB": 125.0,
    "Tesla V100-SXM2-32GB": 125.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
}


class Work(NamedTuple):
    """What a share of the peak is computed from."""

    operations: float  # of a training step, an image
    teraflops: float  # peak of all devices together, 10^12 operations a second


class Meter:
    """Adds up what the chunks of an epoch took, as far as this process trains it."""

    def __init__(self, images: int, batch_size: int):
        """`images` are those of an epoch."""
        self._all_images, self._batch_size = images, batch_size
        self._steps_per_epoch = -(-images // batch_size)
        self._first_step: float | None = None  # seconds, until they have been told
        self._is_first = True
        self.go_on_from(0)

    def go_on_from(self, step: int) -> None:
        """Begins anew: the next chunk's first step is `step`."""
        self._from = step % self._steps_per_epoch
        self._steps = self._images = 0
        self._waited = self._worked = 0.0

    def add(self, start: int, stop: int, waited: float, worked: float) -> None:
        """A chunk of the steps from `start` to `stop`, within an epoch: seconds for its images, and for its steps."""
        if self._is_first:
            self._is_first, self._first_step = False, waited + worked
            return
        position = start % self._steps_per_epoch
        behind = min((position + stop - start) * self._batch_size, self._all_images)
        self._images += behind - position * self._batch_size
        self._steps += stop - start
        self._waited += waited
        self._worked += worked

    @property
    def waiting(self) -> float:
        """Share of the time that waited for images, in [0, 1]; 0 where nothing has been counted."""
        seconds = self._waited + self._worked
        return self._waited / seconds if seconds else 0.0

    def end_epoch(self, epoch: int, waiting: float, work: Work | None) -> dict[str, Any]:
        """What is known of the epoch that has ended here; the next one begins.

        Args:
            waiting: of the process that has waited longest, where there are several.
            work: None where the network's work or the devices' peak is not known.
        """
        line: dict[str, Any] = {"epoch": epoch, "from_step": self._from, "steps": self._steps}
        if self._first_step is not None:
            line["first_step_seconds"], self._first_step = round(self._first_step, 3), None
        seconds = self._waited + self._worked
        if self._steps and seconds:
            rate = self._images / seconds
            line |= {"seconds": round(seconds, 3), "images_per_second": _rounded(rate), "waiting": round(waiting, 6)}
            if work is not None:
                line |= {
                    "peak_share": _rounded(work.operations * rate / (1e12 * work.teraflops)),
                    "peak_teraflops": work.teraflops,
                }
        self.go_on_from(0)
        return line


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
