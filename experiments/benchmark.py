"""How fast cnnjax is, beside plain Flax, plain lax and PyTorch doing the same work on the same machine.

Every rival is a process of its own, idle while another works; they take turns, round by round, and medians count.
`--suite` chooses; `--json FILE` keeps the rows, `--figure FILE` draws those of suite `sweep`. PyTorch is the `bench`
extra; without it its rows are left out.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import cli, models
from cnnjax.atomic import write_text
from cnnjax.errors import InputError
from experiments.rivals.cases import CASES, Case

# suite -> our work, then each rival and the processes whose best counts for it
SUITES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "step": ("training", {"torch": ("torch", "torch channels-last", "torch compiled"), "flax": ("flax",)}),
    "loop": ("training", {"python loop": ("python loop",)}),
    "pool": ("max_pool", {"reduce_window": ("reduce_window",)}),
    "conv": ("conv", {"lax": ("lax",), "torch": ("torch conv", "torch conv channels-last")}),
    "norm": ("response norm", {"torch": ("torch norm", "torch norm channels-last")}),
    "vmap": ("members", {"single step": ("single step",), "flax": ("flax members",)}),
    "sweep": (
        "sweep",
        {
            "one after another": ("training",),
            "torch": ("torch", "torch channels-last"),
            "torch.func": ("torch func",),
            "flax": ("flax members",),
        },
    ),
    "startup": ("training", {"flax": ("flax",), "torch": ("torch",)}),
    "evolution": ("strongest", {"forward pass": ("forward pass",)}),
    "projection": ("projections", {"forward pass": ("forward pass",)}),
    "memory": ("step memory", {"flax": ("flax memory",)}),
    "checkpoints": ("loading", {"orbax": ("orbax loading",)}),
}
OF_ALL_MEMBERS = ("members", "sweep", "flax members", "torch func")  # one unit of their work is a step of each member
ROUND_SECONDS = 0.4
ENGINES = {
    "one after another": "one after another",
    "torch": "PyTorch, one after another",
    "torch.func": "torch.func under vmap",
    "flax": "Flax under jax.vmap",
}  # as the figure of suite sweep calls the rivals
MAY_GROW = 1.5  # the loss of one batch varies; beyond this share of the first one the training has diverged


@dataclasses.dataclass(frozen=True)
class Options:
    suite: tuple[str, ...] = tuple(SUITES)
    rounds: int = 7
    json: str | None = None  # a file for the rows
    figure: str | None = None  # a .png of suite sweep: members an hour by engine and number of members
    only: str = ""  # cases whose name holds this text

    def __post_init__(self):
        for name in self.suite:
            if name not in SUITES:
                raise InputError(f"--suite must be among {', '.join(SUITES)}, got {name!r}")
        if self.rounds < 1:
            raise InputError(f"--rounds must be at least 1, got {self.rounds}")
        if not self.suite:
            raise InputError("--suite must name at least one, got none")
        if not any(self.cases(name) for name in self.suite):
            raise InputError(f"--only must be in the name of a case of {' '.join(self.suite)}, got {self.only!r}")
        if self.figure is not None and not ("sweep" in self.suite and self.cases("sweep")):
            raise InputError(f"--figure draws suite sweep, got --suite {' '.join(self.suite)} --only {self.only!r}")
        if self.figure is not None and not self.figure.endswith(".png"):
            raise InputError(f"--figure must end in .png, got {self.figure!r}")

    def cases(self, suite: str) -> list[Case]:
        return [case for case in CASES[suite] if self.only in case.name]


class Rival:
    """A process that does the work of one case when told to."""

    def __init__(self, rival: str, suite: str, case: Case):
        command = [sys.executable, "-m", "experiments.rivals", rival, suite, case.name]
        self.command = command
        self.process = self._start()
        self.name, self.repetitions, self.times, self.losses, self.first_loss = rival, 1, [], [], None

    def _start(self) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def work(self, repetitions: int) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{repetitions}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early with status {self.process.wait()}")
        return json.loads(line)

    def warm_up(self) -> None:
        """Compiles, then settles how often the work fits into a round."""
        self.first_loss = self.work(2)["loss"]
        seconds = self.work(2)["seconds"] / 2
        self.repetitions = max(1, min(10_000, round(ROUND_SECONDS / max(seconds, 1e-6))))

    def measure(self) -> None:
        answer = self.work(self.repetitions)
        self.times.append(1e3 * answer["seconds"] / self.repetitions)
        self.losses.append(answer["loss"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.process.wait()

    def start_anew(self) -> None:
        """Measures a whole process, up to the end of its first step."""
        self.close()
        started = time.perf_counter()
        self.process = self._start()
        self.losses.append(self.work(1)["loss"])
        self.times.append(1e3 * (time.perf_counter() - started))

    @property
    def figure(self) -> float:
        return statistics.median(self.times)

    @property
    def diverged(self) -> bool:
        """A loss that was a number is none any more, or has grown."""
        last = self.losses[-1]
        return self.first_loss is not None and (last is None or last > MAY_GROW * self.first_loss)


def measure(suite: str, case: Case, rounds: int) -> list[dict[str, Any]]:
    """The rows of one case, one for each rival that has a bar."""
    ours_name, rivals = SUITES[suite]
    with_torch = importlib.util.find_spec("torch") is not None
    groups = {
        rival: names
        for rival, names in rivals.items()
        if rival in case.bars and (with_torch or not rival.startswith("torch"))
    }
    processes = [Rival(ours_name, suite, case), Rival("matrix product", suite, case)]
    try:
        processes += [Rival(name, suite, case) for names in groups.values() for name in names]
        for process in processes:
            process.warm_up()
        for _ in range(rounds):
            for process in processes:
                if suite == "startup" and process.name != "matrix product":
                    process.start_anew()
                else:
                    process.measure()
    finally:
        for process in processes:
            process.close()
    ours, rate, *others = processes
    by_name = {process.name: process for process in others}
    return [_row(suite, case, rival, ours, rate, [by_name[name] for name in names]) for rival, names in groups.items()]


def _row(suite: str, case: Case, rival: str, ours: Rival, rate: Rival, candidates: list[Rival]) -> dict[str, Any]:
    if suite == "memory":  # the answer is the figure, in MB, and not a loss
        ours_figure, best, other = ours.losses[-1], candidates[0], candidates[0].losses[-1]
    else:
        valid = [candidate for candidate in candidates if not candidate.diverged] or candidates
        best = min(valid, key=lambda candidate: candidate.figure)
        ours_figure, other = (
            process.figure / (case.members if process.name in OF_ALL_MEMBERS else 1) for process in (ours, best)
        )
    peak = 2 * 2048**3 / rate.figure / 1e6  # GFLOP/s
    flops = step_flops(case) if suite in ("step", "loop", "vmap", "sweep") else None
    return {
        "suite": suite, "case": case.name, "ours_ms": ours_figure, "rival": best.name, "rival_ms": other,
        "ratio": ours_figure / other, "bar": bar if math.isfinite(bar := case.bars[rival]) else None,
        "members": case.members, "against": rival,
        "spread": (max(ours.times) - min(ours.times)) / ours.figure,
        "peak_gflops": peak, "share_of_peak": flops / ours_figure / 1e6 / peak if flops else None,
        "diverged": suite not in ("memory", "startup") and (ours.diverged or best.diverged),
        "loss": ours.losses[-1], "rival_loss": best.losses[-1],
    }  # fmt: skip


def step_flops(case: Case) -> float:
    """Floating-point operations of a training step: forward, and twice that backward."""
    rows = models.layers(case.network(), case.shape)
    return 3 * 2 * case.batch * sum(row.multiply_adds for row in rows)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from importlib.metadata import PackageNotFoundError, version

    import jax

    from cnnjax import ops

    versions = {}
    for name in ("jax", "jaxlib", "flax", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions,
        "device": jax.devices()[0].device_kind, "compiler_options": ops.compiler_options(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }  # fmt: skip


def processor() -> str:
    """The processor's own name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(options: Options, progress: cli.Progress) -> None:
    about = machine()
    progress.say(", ".join(f"{key}: {value}" for key, value in about.items()))
    if importlib.util.find_spec("torch") is None:
        progress.say("PyTorch is not installed (the `bench` extra): its rows are left out")
    work = [(suite, case) for suite in options.suite for case in options.cases(suite)]
    rows = [row for suite, case in progress.over("measuring", work) for row in measure(suite, case, options.rounds)]
    progress.say(result_table(rows))
    if options.json:
        write_text(Path(options.json), json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    if options.figure:
        draw(Path(options.figure), [row for row in rows if row["suite"] == "sweep"], about)


def draw(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Members an hour by engine and number of members, of the rows of suite sweep."""
    from cnnjax.figures import benchmark as figure
    from cnnjax.figures import files

    networks = [row["case"].split(" members, ")[1] for row in rows]
    panels = list(dict.fromkeys(networks))
    counts = sorted({row["members"] for row in rows})
    seconds = np.full((len(panels), 1 + len(ENGINES), len(counts)), np.nan)  # of a step and member
    for row, network in zip(rows, networks, strict=True):
        panel, column = panels.index(network), counts.index(row["members"])
        seconds[panel, 0, column] = row["ours_ms"] / 1e3
        seconds[panel, 1 + list(ENGINES).index(row["against"]), column] = row["rival_ms"] / 1e3
    engines = ["together", *ENGINES.values()]
    batch = CASES["sweep"][0].batch
    steps = 10 * -(-60_000 // batch)
    per_hour = 3600 / (seconds * steps)
    member = f"a member: {steps:,} steps of {batch} images, 10 epochs of Fashion-MNIST"
    machine = f"{about['cores']} cores of {about['processor']}, {about['device']}; compilation left out"
    drawing = figure.draw_crossover(panels, counts, engines, per_hour, member, machine)
    files.save(path, drawing, panels=panels, members=counts, engines=engines, per_hour=per_hour)


def result_table(rows: list[dict[str, Any]]) -> Any:
    lines = [
        (
            row["suite"], row["case"], f"{row['ours_ms']:.3g}", row["rival"], f"{row['rival_ms']:.3g}",
            f"{row['ratio']:.2f}", f"{row['bar']:.2f}" if row["bar"] else "",
            "diverged" if row["diverged"] else "missed" if row["bar"] and row["ratio"] > row["bar"] else "",
            f"{100 * row['share_of_peak']:.0f} %" if row["share_of_peak"] else "",
        )
        for row in rows
    ]  # fmt: skip
    columns = ("suite", "case", "ours", "rival", "its", "ratio", "bar", "", "of matmul")
    return cli.table("ms (memory: MB), medians", columns, lines)


if __name__ == "__main__":
    cli.run_options(main, Options())
