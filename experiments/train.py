"""Train a network and keep its checkpoints, without any figure."""

from cnnjax import cli, models
from cnnjax.cli import Arguments, Progress
from cnnjax.data import Dataset, load
from cnnjax.train import run


def prepared(arguments: Arguments, progress: Progress) -> tuple[Dataset, list[models.Layer]]:
    """The data, and the table of the network's layers; nothing has been written yet."""
    config = arguments.config
    run.check(arguments.workdir, config)
    dataset = load(config.data, progress)
    rows = models.layers(run.build(config, dataset), dataset.image_shape)
    return dataset, rows


def trained(arguments: Arguments, dataset: Dataset, rows: list[models.Layer], progress: Progress) -> run.Run:
    """Shows the table of layers and trains; or goes on, or finds the run finished."""
    config = arguments.config
    title = f"{config.model.name} on {dataset.name}, {config.train.batch_size} images a step"
    progress.say(cli.layer_table(rows, title))
    finished = run.run(config, dataset, arguments.workdir, progress, progress.say)
    last = finished.metrics[-1]
    progress.say(
        f"{dataset.name}: test error {100 * last['test_error']:.2f} % after epoch {last['epoch']}, "
        f"in {arguments.workdir}"
    )
    return finished


def main(arguments: Arguments, progress: Progress) -> None:
    trained(arguments, *prepared(arguments, progress), progress)


if __name__ == "__main__":
    cli.run(main)
