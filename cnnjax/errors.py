"""The one error that means "the user can mend this": it is printed as a single line, with exit status 2."""


class InputError(ValueError):
    """Bad input: the message names the argument, the rule and the value, in one line."""
