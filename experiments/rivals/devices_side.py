"""Our training over the simulated devices of a CPU, and with its images streamed; the rivals of suite `scale`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.config import Config, DataConfig, TrainConfig
from cnnjax.data import Dataset, Split
from cnnjax.train import placement
from cnnjax.train.feed import portions
from cnnjax.train.memory import on_a_device
from cnnjax.train.step import make_preprocess
from cnnjax.train.training import Programs, compiled
from experiments.rivals.cases import CLASSES, Case

SIMULATED = 8


def _programs(case: Case, devices: int, streamed: bool) -> tuple[Programs, Config]:
    from experiments.rivals.jax_side import HYPER, UNIT, images_and_labels

    jax.config.update("jax_num_cpu_devices", devices)
    assert case.model is not None
    train = TrainConfig(schedule="constant", epochs=10_000, batch_size=case.batch, onednn=True)
    config = Config(DataConfig(unit=UNIT), case.model, train, HYPER)
    images, labels = images_and_labels(case)
    split = Split(images, labels)
    dataset = Dataset("synthetic", tuple(map(str, range(CLASSES))), split, split)
    preprocess = make_preprocess(np.full(case.shape, 127.5), UNIT)
    mesh = placement.make_mesh(devices)
    return compiled(config, case.network(), preprocess, dataset, mesh, streamed), config


def steps_on(devices: int, streamed: bool = False) -> Callable[[Case], Callable[[int], float]]:
    """The loop of a training; the same global batch on any number of devices."""

    def of(case: Case) -> Callable[[int], float]:
        programs, config = _programs(case, devices, streamed)
        hyper = programs.place(jax.tree.map(jnp.asarray, config.hyper))
        feed, state, step = programs.feeds()[0], programs.init(hyper), 0

        def work(count: int) -> float:
            nonlocal state, step
            for part in portions(feed, hyper, step, step + count):
                state = programs.chunk(hyper, state, *part)
            step += count
            jax.block_until_ready(state)
            return float(state.metrics.loss / state.metrics.count)

        return work

    return of


def memory_on(devices: int) -> Callable[[Case], Callable[[int], float]]:
    """MB of a batch and its activations on each device, by XLA's account: what a step needs beside the gradients."""

    def of(case: Case) -> Callable[[int], float]:
        programs, config = _programs(case, devices, streamed=False)
        hyper = programs.place(jax.tree.map(jnp.asarray, config.hyper))
        state = programs.init(hyper)
        portion, _ = programs.feeds()[0].portion(hyper, 0)
        analysis = programs.chunk.lower(hyper, state, portion, 0, 1).compile().memory_analysis()
        megabytes = (analysis.temp_size_in_bytes - on_a_device(state.params)) / 2**20
        return lambda count: megabytes

    return of
