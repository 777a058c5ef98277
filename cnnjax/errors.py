"""The error that means "the user can mend this", printed as a single line with exit status 2; and a request to stop."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: the message names the argument, the rule and the value, in one line."""


@contextlib.contextmanager
def named(what: str, hint: str = "") -> Iterator[None]:
    """Puts `what` before the message of an InputError, and `hint` behind it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}{hint}") from None


class Terminated(BaseException):
    """SIGTERM came: what KeyboardInterrupt is for SIGINT."""
