"""The one exception that a user's mistake raises, and how a command says it."""

import sys
from contextlib import contextmanager


class InputError(ValueError):
    """Raised for what a user gave wrong: one line that names the thing and what would be right."""


@contextmanager
def said_in_one_line():
    """In a command: an `InputError` becomes a line on the standard error and exit status 2."""
    try:
        yield
    except InputError as error:
        # From a data worker it comes with the worker's traceback in its text.
        line = str(error).split(f"{type(error).__name__}: ")[-1].strip()
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
