"""How fast cnnjax is, beside plain Flax, plain lax and PyTorch doing the same work on the same machine.

Every rival is a process of its own, idle while another works; they take turns, round by round, and medians count.
`--device` chooses where all of them work, `--suite` what is measured; `--json FILE` and `--markdown FILE` keep the
rows, written anew after every case, in a page that is there between its markers `benchmark`; `--figure FILE` draws
those of suite `sweep`. PyTorch is the `bench` extra;
without it its rows are left out.

A GPU has suites of its own, the most important cases first, for a card that is at hand for some minutes only:
`--seconds` ends the work in time. `--rehearse` tries the same rivals at tiny sizes on a CPU.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import cli, models
from cnnjax.atomic import write_text
from cnnjax.errors import InputError
from experiments import pages
from experiments.rivals.cases import CASES, Case, Device, cases_of
from experiments.rivals.member_forms import FORMS
from experiments.rivals.process import Rival, warm_up

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
    "startup": (
        "kept programs",
        {"flax": ("flax",), "torch": ("torch",), "compiled anew": ("programs anew",), "oneDNN": ("training",)},
    ),
    "evolution": ("strongest", {"forward pass": ("forward pass",)}),
    "projection": ("projections", {"forward pass": ("forward pass",)}),
    "memory": ("step memory", {"flax": ("flax memory",)}),
    "checkpoints": ("loading", {"orbax": ("orbax loading",)}),
    "input": ("packed files", {"bare decoder": ("bare decoder",), "packed files": ("packed files",)}),
    "scale": ("eight devices", {"one device": ("one device",), "one device memory": ("one device memory",)}),
    "networks": (
        "training",
        {
            "torch": ("torch", "torch channels-last", "torch compiled"),
            "torch forward": ("torch forward", "torch forward channels-last", "torch forward compiled"),
            "torch memory": ("torch memory", "torch memory channels-last", "torch memory compiled"),
        },
    ),
}
GPU_SUITES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "peaks": ("matrix rate", {"torch": ("torch matrix rate",)}),
    "bandwidth": ("copy", {"torch": ("torch copy",)}),
    "step": (
        "training",
        {
            "torch": ("torch", "torch channels-last", "torch graph", "torch graph channels-last"),
            "torch compiled": ("torch compiled",),
            "flax": ("flax",),
        },
    ),
    "sweep": (
        "sweep",
        {
            **{form: (f"members {form}",) for form in FORMS},
            "torch": ("torch", "torch graph channels-last"),
            "torch.func": ("torch func",),
        },
    ),
    "pool": (
        "max_pool",
        {
            "reduce_window": ("reduce_window",),
            "compared": ("compared",),
            "searched twice": ("searched twice",),
            "torch": ("torch pool", "torch pool channels-last"),
        },
    ),
    "loop": ("training", {"python loop": ("python loop",), "known length": ("known length",)}),
    "conv": SUITES["conv"],
}
FORM_RIVALS = tuple(f"members {form}" for form in FORMS)
# one unit of their work is a step of each member
OF_ALL_MEMBERS = ("members", "sweep", "flax members", "torch func", *FORM_RIVALS)
ENGINES = {
    "one after another": "one after another",
    "torch": "PyTorch, one after another",
    "torch.func": "torch.func under vmap",
    "flax": "Flax under jax.vmap",
    "mapped": "a loop in one program",
    "unrolled": "convolutions unrolled",
    "grouped": "convolutions with groups",
    "folded": "one matrix product of patches",
    "folded slices": "one matrix product of slices",
}  # as the figure of suite sweep calls the rivals
WITH_FLOPS = ("step", "loop", "vmap", "sweep", "networks")
MAY_DIFFER = 0.02  # forms of one computation from the same weights; a loss further off is a wrong one


@dataclasses.dataclass(frozen=True)
class Options:
    suite: tuple[str, ...] | None = None  # all of the device
    device: Device | None = None  # what is there
    rounds: int = 7
    seconds: float = math.inf  # no case is begun that would not end in this time
    json: str | None = None  # a file for the rows
    markdown: str | None = None  # a page for the table
    figure: str | None = None  # a .png of suite sweep: members an hour by engine and number of members
    only: str = ""  # cases whose name holds this text
    rehearse: bool = False  # the GPU's suites at tiny sizes on a CPU, their times of no meaning

    def __post_init__(self):
        if self.rehearse and self.device == "gpu":
            raise InputError("--rehearse must be on a CPU, got --device gpu")
        for name in self.suites:
            if name not in self.known:
                raise InputError(f"--suite must be among {', '.join(self.known)}, got {name!r}")
        if self.rounds < 1:
            raise InputError(f"--rounds must be at least 1, got {self.rounds}")
        if not self.seconds > 0:
            raise InputError(f"--seconds must be positive, got {self.seconds}")
        if not self.suites:
            raise InputError("--suite must name at least one, got none")
        if not self.work():
            raise InputError(f"--only must be in the name of a case of {' '.join(self.suites)}, got {self.only!r}")
        if self.figure is not None and not any(suite == "sweep" for suite, _ in self.work()):
            raise InputError(f"--figure draws suite sweep, got --suite {' '.join(self.suites)} --only {self.only!r}")
        if self.figure is not None and not self.figure.endswith(".png"):
            raise InputError(f"--figure must end in .png, got {self.figure!r}")

    @property
    def where(self) -> Device:
        return "cpu" if self.rehearse else self.device or device_there()

    @property
    def known(self) -> dict[str, tuple[str, dict[str, tuple[str, ...]]]]:
        return GPU_SUITES if self.rehearse or self.where == "gpu" else SUITES

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(self.known) if self.suite is None else self.suite

    def work(self) -> list[tuple[str, Case]]:
        """(suite, case), in the order in which they are measured."""
        cases = cases_of(self.where, self.rehearse)
        chosen = [(suite, case) for suite in self.suites for case in cases[suite] if self.only in case.name]
        return sorted(chosen, key=lambda pair: pair[1].turn)


def device_there() -> Device:
    import jax

    # The rivals share the card with this process, which needs none of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return "gpu" if jax.default_backend() == "gpu" else "cpu"


def start(suite: str, case: Case, rivals: dict[str, tuple[str, ...]], ours: str, rehearse: bool) -> list[Rival]:
    """The processes of a case, ours first; each builds its work by itself."""
    ours = case.work or ours
    names = [ours] if case.device == "gpu" or rehearse else [ours, "matrix product"]
    names += [name for rival in groups_of(case, rivals) for name in rivals[rival]]
    return [Rival(name, suite, case, rehearse) for name in names]


def groups_of(case: Case, rivals: dict[str, tuple[str, ...]]) -> list[str]:
    """The rivals that have a bar, without those that are not installed."""
    with_torch = importlib.util.find_spec("torch") is not None
    return [rival for rival in rivals if rival in case.bars and (with_torch or not rival.startswith("torch"))]


def measure(suite: str, processes: list[Rival], rounds: int) -> None:
    """Warms up, then `rounds` times each in turn. A rival that fails says so in its `failure` and the others go on."""
    warm_up(processes)
    _compare_forms(processes)
    for _ in range(rounds):
        for process in processes:
            if suite == "startup" and process.name != "matrix product":
                process.start_anew()
            else:
                process.measure()


def _compare_forms(processes: list[Rival]) -> None:
    """Forms of one computation that begin with the same weights must come to the same loss, or their time is void."""
    losses = {
        process: math.nan if process.first_loss is None else process.first_loss
        for process in processes
        if process.name in FORM_RIVALS and process.failure is None
    }
    middle = statistics.median(losses.values()) if losses else 0.0
    for process, loss in losses.items():
        if not abs(loss - middle) <= MAY_DIFFER * middle:
            process.failure = f"a wrong loss: {loss:.4g} after two steps, {middle:.4g} in the middle of all forms"


def rows_of(suite: str, case: Case, rivals: dict[str, tuple[str, ...]], processes: list[Rival], peak: float | None):
    """One row for each rival that has a bar."""
    by_name = {process.name: process for process in processes}
    if rate := by_name.get("matrix product"):
        peak = None if rate.failure else 2 * 2048**3 / rate.figure / 1e6
    return [
        _row(suite, case, rival, processes[0], peak, [by_name[name] for name in rivals[rival]])
        for rival in groups_of(case, rivals)
    ]


def _row(
    suite: str, case: Case, rival: str, ours: Rival, peak: float | None, candidates: list[Rival]
) -> dict[str, Any]:
    """`peak` in GFLOP/s; the best of the candidates counts."""
    of_memory = ours.name.endswith("memory")

    def figure(process: Rival) -> float | None:
        if process.failure is not None:
            return None
        if of_memory:  # the answer is the figure, in MB, and not a loss
            return process.losses[-1]
        return process.figure / (case.members if process.name in OF_ALL_MEMBERS else 1)

    working = [candidate for candidate in candidates if candidate.failure is None] or candidates
    valid = [candidate for candidate in working if of_memory or not candidate.diverged] or working
    best = min(valid, key=lambda candidate: figure(candidate) or math.inf)
    mine, theirs = figure(ours), figure(best)
    steps = case.model and suite in WITH_FLOPS and case.work in ("", "training")
    flops, size = step_flops(case) if steps else None, None
    if suite == "peaks":
        flops = 2.0 * case.shape[0] ** 3
    if suite == "bandwidth":
        size = 2 * 4 * case.shape[0]
    timed = not of_memory and suite != "startup"
    return {
        "suite": suite, "case": case.name, "ours_ms": mine, "rival": best.name, "rival_ms": theirs,
        "ratio": mine / theirs if mine and theirs else None,
        "bar": bar if math.isfinite(bar := case.bars[rival]) else None,
        "members": case.members, "against": rival, "precision": case.precision,
        "spread": (max(ours.times) - min(ours.times)) / ours.figure if mine and ours.times else None,
        "peak_gflops": peak, "share_of_peak": flops / mine / 1e6 / peak if flops and peak and mine else None,
        "gflops": flops / mine / 1e6 if flops and mine else None,
        "rival_gflops": flops / theirs / 1e6 if flops and theirs else None,
        "gigabytes_a_second": size / mine / 1e6 if size and mine else None,
        "rival_gigabytes_a_second": size / theirs / 1e6 if size and theirs else None,
        "diverged": timed and None not in (mine, theirs) and (ours.diverged or best.diverged),
        "loss": ours.losses[-1] if ours.losses else None, "rival_loss": best.losses[-1] if best.losses else None,
        "first_loss": ours.first_loss, "rival_first_loss": best.first_loss,
        "candidates": {candidate.name: figure(candidate) for candidate in candidates},
        "failed": {process.name: process.failure for process in (ours, *candidates) if process.failure is not None},
    }  # fmt: skip


def step_flops(case: Case) -> float:
    """Floating-point operations of a training step: forward, and twice that backward."""
    return case.batch * models.training_operations(models.layers(case.network(), case.shape))


def machine(device: Device) -> dict[str, Any]:
    """What the figures are measured on."""
    from importlib.metadata import PackageNotFoundError, version

    import jax

    from cnnjax import ops

    versions = {}
    for name in ("jax", "jaxlib", "flax", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions,
        "device": jax.devices(device)[0].device_kind, "driver": driver() if device == "gpu" else None,
        "compiler_options": ops.compiler_options(), "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def driver() -> str | None:
    """The GPU driver's version, where its tool tells it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return answer.stdout.split("\n")[0].strip() or None


def processor() -> str:
    """The processor's own name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(options: Options, progress: cli.Progress) -> None:
    if options.device == "gpu" and device_there() != "gpu":
        raise InputError("--device must be one that is there (cpu), got gpu")
    if options.markdown:
        pages.check(Path(options.markdown), "benchmark", "--markdown")
    about = machine(options.where)
    progress.say(", ".join(f"{key}: {value}" for key, value in about.items()))
    if importlib.util.find_spec("torch") is None:
        progress.say("PyTorch is not installed (the `bench` extra): its rows are left out")
    rows, left_out = measure_all(options, progress, about)
    progress.say(result_table(rows))
    for failure in failures(rows):
        progress.say(failure)
    if left_out:
        progress.say(f"left out for want of time: {'; '.join(left_out)}")
    if options.figure:
        draw(Path(options.figure), [row for row in rows if row["suite"] == "sweep"], about)


def measure_all(
    options: Options, progress: cli.Progress, about: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and the cases for which there was no time; both are written after every case."""
    begun, work, rows, peaks, left_out = time.monotonic(), options.work(), [], {}, []
    longest: dict[str, float] = {}  # seconds of a case, by suite
    started: dict[int, list[Rival]] = {}

    def begin(index: int) -> None:
        if index < len(work) and index not in started:
            suite, case = work[index]
            ours, rivals = options.known[suite]
            started[index] = start(suite, case, rivals, ours, options.rehearse)

    try:
        for index, (suite, case) in enumerate(progress.over("measuring", work)):
            now = time.monotonic()
            if now - begun + longest.get(suite, 0.0) > options.seconds:
                left_out.append(f"{suite}: {case.name}")
            else:
                begin(index)
                if case.device == "gpu":  # it has the processor's cores for the next case's beginning
                    begin(index + 1)
                measure(suite, started[index], options.rounds)
                found = rows_of(suite, case, options.known[suite][1], started[index], peaks.get(case.precision))
                rows += [row | _marks(about, time.monotonic() - now) for row in found]
                if suite == "peaks":
                    peaks[case.precision] = max(rate for row in found for rate in _rates(row))
            for process in started.pop(index, []):
                process.close()
            longest[suite] = max(longest.get(suite, 0.0), time.monotonic() - now)
            keep(options, about, rows, left_out)
    finally:
        for processes in started.values():
            for process in processes:
                process.close()
    return rows, left_out


def _marks(about: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a row needs to be read by itself."""
    return {"device": about["device"], "driver": about["driver"], "versions": about["versions"], "seconds": seconds}


def _rates(row: dict[str, Any]) -> list[float]:
    return [row[name] for name in ("gflops", "rival_gflops") if row[name]] or [math.nan]


def keep(options: Options, about: dict[str, Any], rows: list[dict[str, Any]], left_out: list[str]) -> None:
    if options.json:
        found = {"machine": about, "rows": rows, "left_out": left_out}
        write_text(Path(options.json), json.dumps(found, indent=1) + "\n")
    if options.markdown:
        pages.write(Path(options.markdown), "benchmark", markdown(rows, about))


def draw(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Members an hour by engine and number of members, of the rows of suite sweep."""
    from cnnjax.figures import benchmark as figure
    from cnnjax.figures import files

    networks = [row["case"].split(" members, ")[1] for row in rows]
    panels = list(dict.fromkeys(networks))
    rivals = [rival for rival in ENGINES if any(row["against"] == rival for row in rows)]
    counts = sorted({row["members"] for row in rows})
    seconds = np.full((len(panels), 1 + len(rivals), len(counts)), np.nan)  # of a step and member
    for row, network in zip(rows, networks, strict=True):
        panel, column = panels.index(network), counts.index(row["members"])
        seconds[panel, 0, column] = (row["ours_ms"] or math.nan) / 1e3
        seconds[panel, 1 + rivals.index(row["against"]), column] = (row["rival_ms"] or math.nan) / 1e3
    engines = ["together", *(ENGINES[rival] for rival in rivals)]
    batch = CASES["sweep"][0].batch
    steps = 10 * -(-60_000 // batch)
    per_hour = 3600 / (seconds * steps)
    member = f"a member: {steps:,} steps of {batch} images, 10 epochs of Fashion-MNIST"
    machine = f"{about['cores']} cores of {about['processor']}, {about['device']}; compilation left out"
    drawing = figure.draw_crossover(panels, counts, engines, per_hour, member, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save(path, drawing, panels=panels, members=counts, engines=engines, per_hour=per_hour)


COLUMNS = ("suite", "case", "ours", "rival", "its", "ratio", "bar", "", "of matmul")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    missed = row["bar"] and row["ratio"] and row["ratio"] > row["bar"]
    failed = "failed" if row["ratio"] is None else ""
    return (
        row["suite"], row["case"], _number(row["ours_ms"]), row["rival"], _number(row["rival_ms"]),
        f"{row['ratio']:.2f}" if row["ratio"] else "", f"{row['bar']:.2f}" if row["bar"] else "",
        failed or ("diverged" if row["diverged"] else "missed" if missed else ""),
        f"{100 * row['share_of_peak']:.0f} %" if row["share_of_peak"] else "",
    )  # fmt: skip


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What failed, each once, and why."""
    every = [
        f"{row['suite']}: {row['case']}: {name} failed: {why}" for row in rows for name, why in row["failed"].items()
    ]
    return list(dict.fromkeys(every))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def result_table(rows: list[dict[str, Any]]) -> Any:
    return cli.table("ms (memory: MB), medians", COLUMNS, [_cells(row) for row in rows])


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table as it is kept beside the documents, with what it was measured on."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    card = f"{about['device']}, driver {about['driver']}, beside " if about["driver"] else ""
    machine = f"{card}{about['cores']} cores of {about['processor']}; Python {about['python']}, {versions}"
    peaks = [f"{row['case']}: {max(_rates(row)) / 1e3:.0f} TFLOP/s" for row in rows if row["suite"] == "peaks"] + [
        f"{row['case']}: {row['gigabytes_a_second'] or math.nan:.0f} GB/s"
        for row in rows
        if row["suite"] == "bandwidth"
    ]
    lines = [f"{machine}; {about['date']}. Times in ms (memory: MB), medians; a member's where there are members."]
    lines += [f"Measured peaks: {'; '.join(peaks)}."] if peaks else []
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |" for row in rows]
    lines += [""] * bool(said := failures(rows)) + [f"- {failure}" for failure in said]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run_options(main, Options())
