"""Checkpoints of a run through Orbax: the set epochs, kept for ever, and the newest state, for resuming.

`checkpoints/epochs/N` is the state at the end of epoch N, `checkpoints/latest/S` the newest one, by step.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.errors import InputError
from cnnjax.train.step import TrainState


class Checkpoints:
    """The two Orbax managers of one run folder; use as a context manager, so that pending saves end before it does."""

    def __init__(self, workdir: Path):
        import orbax.checkpoint as ocp

        policies = ocp.checkpoint_managers
        self._ocp = ocp
        self._folder = workdir / "checkpoints"

        def manager(name: str, keep) -> Any:
            options = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True)
            return ocp.CheckpointManager((self._folder / name).absolute(), options=options)

        self._epochs = manager("epochs", policies.preservation_policy.PreserveAll())
        self._latest = manager("latest", policies.LatestN(1))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._epochs.close()
        self._latest.close()

    def epochs(self) -> list[int]:
        """The epochs that are kept, in order."""
        return sorted(self._epochs.all_steps())

    def save_epoch(self, epoch: int, state: TrainState) -> None:
        """Keeps `state` as the end of `epoch`; returns while the files are still being written."""
        self._save(self._epochs, epoch, state)

    def save_latest(self, state: TrainState) -> None:
        """Keeps `state` as the newest; the one before is deleted when this one is whole."""
        self._save(self._latest, int(state.step), state)

    def _save(self, manager: Any, number: int, state: TrainState) -> None:
        # A copy on the host, so that the training may give the device's buffers away while Orbax writes.
        copied = jax.tree.map(lambda leaf: np.array(leaf), state)
        if not manager.save(number, args=self._ocp.args.StandardSave(copied), force=True):
            raise RuntimeError(f"checkpoint {number} was not saved in {manager.directory}")

    def load_epoch(self, epoch: int, like: TrainState) -> TrainState:
        """The state at the end of `epoch`, with the shapes and types of `like`.

        Raises:
            InputError: for an epoch that was not kept; the message lists those that were.
        """
        if epoch not in self.epochs():
            kept = ", ".join(str(kept) for kept in self.epochs()) or "none"
            raise InputError(f"epoch must be one that {self._folder.parent} has kept ({kept}), got {epoch}")
        return self._load(self._epochs, epoch, like)

    def load_newest(self, like: TrainState) -> TrainState | None:
        """The state with the most steps in either folder; None in a new run."""
        latest, epoch = self._latest.latest_step(), self._epochs.latest_step()
        candidates = []
        if latest is not None:
            candidates.append(self._load(self._latest, latest, like))
        if epoch is not None:
            candidates.append(self._load(self._epochs, epoch, like))
        return max(candidates, key=lambda state: int(state.step), default=None)

    def _load(self, manager: Any, number: int, like: TrainState) -> TrainState:
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        try:
            restored = manager.restore(number, args=self._ocp.args.StandardRestore(abstract))
        except Exception as error:  # Orbax raises many kinds
            folder = Path(manager.directory) / str(number)
            raise InputError(f"{folder} cannot be read ({type(error).__name__}); move it away to go on") from error
        return jax.tree.map(jax.numpy.asarray, restored)
