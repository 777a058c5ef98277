"""Signals that ask a training to stop, put off until its state can be saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from cnnjax.errors import Terminated

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Asked:
    """`exception` is what the first signal that came would have raised; None before."""

    exception: type[BaseException] | None = None


@contextlib.contextmanager
def deferred() -> Iterator[Asked]:
    """Within the block SIGINT and SIGTERM are noted, not raised; the second SIGINT is raised at once.

    Only the main thread hears signals; in another one nothing changes.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and asked.exception is KeyboardInterrupt:
            raise KeyboardInterrupt
        asked.exception = asked.exception or SIGNALS[signal.Signals(number)]

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within the block no signal is answered; behind it the first one is, as if it had come then."""
    asked = Asked()
    try:
        with deferred() as asked:
            yield
    finally:
        for number, exception in SIGNALS.items():
            if asked.exception is exception:
                signal.raise_signal(number)
