"""Train a network and keep its checkpoints; its learning curves are in WORKDIR/figures/curves.png."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cnnjax import cli, models, processes
from cnnjax.cli import Arguments, Progress
from cnnjax.data import Dataset, load
from cnnjax.errors import InputError
from cnnjax.figures import curves, files, settings
from cnnjax.models import foreign
from cnnjax.train import events, run, weight_files
from cnnjax.train.feed import Kind, choose
from experiments.import_weights import as_expected


@dataclasses.dataclass(frozen=True)
class Options(processes.Together):
    """Where the training runs."""

    devices: int | None = dataclasses.field(
        default=None, metadata={"help": "that share each batch; None: the most of all that divide it"}
    )
    feed: Kind = dataclasses.field(
        default="auto", metadata={"help": "images all on the devices, or as they are needed; auto: by their size"}
    )
    log: Literal["tensorboard"] | None = dataclasses.field(
        default=None, metadata={"help": "also write each epoch's numbers for TensorBoard, in WORKDIR/tensorboard"}
    )
    peak_teraflops: float | None = dataclasses.field(
        default=None,
        metadata={
            "help": "of a device, 10^12 operations a second, of which throughput.jsonl tells the share; None: its "
            "maker's number, where that is known here"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.log is not None:
            events.check_installed(f"--log {self.log}")
        if self.peak_teraflops is not None and not 0 < self.peak_teraflops < math.inf:
            raise InputError(f"--peak-teraflops must be a finite number > 0, got {self.peak_teraflops}")


def prepared(arguments: Arguments, progress: Progress) -> tuple[Dataset, list[models.Layer]]:
    """The data, and the table of the network's layers; nothing has been written yet."""
    config = arguments.config
    settings.check()
    allow_code(arguments)
    run.check(arguments.workdir, config)
    dataset = load(config.data, progress)
    network = run.build(config, dataset)
    check_heard(hyperparameters(arguments), [(config.model.name, network)], dataset)
    say_if_held(network, progress)
    return dataset, models.layers(network, dataset.image_shape)


def hyperparameters(arguments: Arguments) -> dict[str, str]:
    """Those that the command line names, by their fields, as they stand there."""
    of_hyper = (option for option in sorted(arguments.given) if option.startswith("--hyper."))
    return {option.removeprefix("--hyper.").replace("-", "_"): option for option in of_hyper}


def check_heard(named: Mapping[str, str], networks: Sequence[tuple[str, Any]], dataset: Dataset) -> None:
    """Raises InputError for a hyperparameter that changes nothing in any of the networks.

    Args:
        named: the options by the fields that they are of.
        networks: each with its name.
    """
    if not named.keys() & models.OF_LAYERS:
        return
    unheard = [set(models.unheard(network, dataset.image_shape)) for _, network in networks]
    for field, layers in models.OF_LAYERS.items():
        if field in named and all(field in of_network for of_network in unheard):
            own = any(isinstance(network, foreign.Foreign) for _, network in networks)
            why = f"whose {layers} its own code sets" if own else f"which has no {layers}"
            raise InputError(f"{named[field]} must be left out for {', '.join(dict(networks))}, {why}")


def say_if_held(network: Any, progress: Progress) -> None:
    """Says where a network begins with the same weights whatever the seed."""
    if isinstance(network, foreign.Foreign) and network.holds:
        progress.say(
            f"{network.name} is an object that holds its weights: each training begins with these, whatever hyper.seed;"
            " name its class, or a partial of it, for weights that are drawn from the seed"
        )


def allow_code(arguments: Arguments) -> None:
    """Runs the file of one's own network, if the command line itself names it."""
    if foreign.is_code(arguments.config.model.name) and "--model.name" in arguments.given:
        foreign.allow(arguments.config.model.name)


def trained(arguments: Arguments, dataset: Dataset, rows: list[models.Layer], progress: Progress) -> run.Run:
    """Shows the table of layers and trains, or goes on, or finds the run finished; draws its learning curves."""
    config = arguments.config
    title = f"{config.model.name} on {dataset.name}, {config.train.batch_size} images a step"
    progress.say(cli.layer_table(rows, title))
    options = arguments.options if isinstance(arguments.options, Options) else Options()
    streamed, why = choose(dataset, options.feed)
    progress.say(f"{'streamed' if streamed else 'all on the devices'}: {why}")
    finished = run.run(
        config,
        dataset,
        arguments.workdir,
        progress,
        progress.say,
        options.devices,
        streamed,
        lambda takes: progress.say(cli.memory_table(takes)),
        operations=models.training_operations(rows),
        peak_teraflops=options.peak_teraflops,
        tensorboard=options.log == "tensorboard",
    )
    if processes.is_first():
        draw_curves(arguments.workdir, f"{config.model.name} on {dataset.name}", finished.metrics)
    last = finished.metrics[-1]
    # A run that was not trained here may have none.
    named = {"validation error": "validation_error", "test error": "test_error"}
    errors = ", ".join(f"{name} {100 * last[field]:.2f} %" for name, field in named.items() if field in last)
    told = f"{errors} after epoch {last['epoch']}".strip()
    progress.say(f"{dataset.name}: {told}, in {arguments.workdir}")
    return finished


def draw_curves(workdir: Path, title: str, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Writes figures/curves.png of a run; of one that was trained elsewhere, without numbers, nothing."""
    of_run = curves.curves_of(workdir.name, metrics)
    measures = curves.measures_of([of_run])
    if measures:
        drawing = curves.draw([of_run], measures, f"Learning curves: {title}")
        files.save(files.make_folder(workdir, "figures") / "curves.png", drawing, **curves.arrays([of_run]))


def started(arguments: Arguments, progress: Progress) -> Arguments:
    """The arguments with what the weights expect that `--train.start` names."""
    start = arguments.config.train.start
    if start is None or "--train.start" not in arguments.given:
        return arguments
    file = weight_files.read(start, "--train.start")
    return arguments._replace(config=as_expected(arguments.config, arguments.given, file, progress))


def main(arguments: Arguments, progress: Progress) -> None:
    arguments = started(arguments, progress)
    trained(arguments, *prepared(arguments, progress), progress)


if __name__ == "__main__":
    cli.run(main, Options())
