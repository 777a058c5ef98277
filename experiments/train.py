"""Train a network and keep its checkpoints, without any figure."""

from cnnjax import cli, models
from cnnjax.cli import Arguments, Progress
from cnnjax.data import Dataset, load
from cnnjax.train import run


def trained(arguments: Arguments, progress: Progress) -> tuple[run.Run, Dataset]:
    """Loads the data, shows the table of layers, and trains; or goes on, or finds the run finished."""
    config = arguments.config
    dataset = load(config.data, progress)
    rows = models.layers(run.build(config, dataset), dataset.image_shape)
    progress.say(cli.layer_table(rows, f"{config.model.name} on {dataset.name}, a batch of {config.train.batch_size}"))
    finished = run.run(config, dataset, arguments.workdir, progress)
    progress.say(
        f"{dataset.name}: test error {100 * finished.metrics[-1]['test_error']:.2f} % after epoch "
        f"{config.train.epochs}, in {arguments.workdir}"
    )
    return finished, dataset


def main(arguments: Arguments, progress: Progress) -> None:
    trained(arguments, progress)


if __name__ == "__main__":
    cli.run(main)
