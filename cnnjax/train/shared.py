"""Checkpoints of a training in several processes: the first one's, which the others hear of."""

from collections.abc import Mapping, Sequence
from typing import Any

from cnnjax import processes
from cnnjax.train.checkpoints import Checkpoints, Kept


class SharedCheckpoints:
    """As `Checkpoints`, called by all processes alike: the first one reads and writes, and sends what it has read.

    The state is the same in all processes, so that the first one's is all of it.
    """

    def __init__(self, own: Checkpoints | None):
        """`own` is there in the first process, and in no other."""
        self._own = own

    def epochs(self) -> list[int]:
        return processes.by_first(lambda: self._first.epochs())

    def steps(self, steps_per_epoch: int) -> dict[int, tuple[str, int]]:
        found = processes.by_first(lambda: list(self._first.steps(steps_per_epoch).items()))
        return {step: (kind, number) for step, (kind, number) in found}

    def load(self, kind: str, number: int, like: Any) -> Kept | None:
        kept: Kept | None = None

        def texts() -> dict[str, str] | None:
            nonlocal kept
            kept = self._first.load(kind, number, like)
            return None if kept is None else kept.texts

        if (found := processes.by_first(texts)) is None:
            return None
        return Kept(processes.arrays_of_first(kept and kept.state, like), found)

    def load_all(self, epochs: Sequence[int], like: Any) -> dict[int, Kept] | None:
        """All of these epochs, in the first process alone with their states; None if one of them cannot be read."""
        states: dict[int, Any] = {}

        def texts() -> dict[str, dict[str, str]] | None:
            found = {epoch: self._first.load("epochs", epoch, like) for epoch in epochs}
            states.update({epoch: kept.state for epoch, kept in found.items() if kept is not None})
            return None if None in found.values() else {str(epoch): kept.texts for epoch, kept in found.items() if kept}

        found = processes.by_first(texts)
        return found and {epoch: Kept(states.get(epoch), found[str(epoch)]) for epoch in epochs}

    def save_epoch(self, epoch: int, state: Any, texts: Mapping[str, str]) -> None:
        if self._own is not None:
            self._own.save_epoch(epoch, state, texts)

    def save_latest(self, step: int, state: Any, texts: Mapping[str, str], *, instead_of_later: bool = False) -> None:
        if self._own is not None:
            self._own.save_latest(step, state, texts, instead_of_later=instead_of_later)

    def drop_latest(self) -> None:
        if self._own is not None:
            self._own.drop_latest()

    def wait(self) -> None:
        processes.by_first(lambda: self._first.wait())

    @property
    def _first(self) -> Checkpoints:
        assert self._own is not None
        return self._own
