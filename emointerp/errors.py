"""The errors that emointerp raises itself, so that callers can tell bad input from a bug.

Every message says what was given, what was expected and what to do. ``exit_code`` is what the command line returns.
"""


class EmointerpError(Exception):
    """Base of all errors raised on purpose; the command line prints its message without a traceback."""

    exit_code = 1


class InputError(EmointerpError, ValueError):
    """A value that the user gave (picture, event, number) cannot be used."""

    exit_code = 2


class ModelError(EmointerpError):
    """A model cannot be found, opened or understood."""

    exit_code = 3


class OutputError(EmointerpError, OSError):
    """A result cannot be written where the user asked."""

    exit_code = 4
