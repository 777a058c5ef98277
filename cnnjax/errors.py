"""The error that means "the user can mend this", printed as a single line with exit status 2; and a request to stop."""


class InputError(ValueError):
    """Bad input: the message names the argument, the rule and the value, in one line."""


class Terminated(BaseException):
    """SIGTERM came: what KeyboardInterrupt is for SIGINT."""
