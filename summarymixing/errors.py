"""The one exception that a user's mistake raises, checks that raise it, and how it is said."""

import argparse
import math
import os
import sys
from contextlib import contextmanager


class InputError(ValueError):
    """Raised for what a user gave wrong: one line that names the thing and what would be right."""


@contextmanager
def said_in_one_line():
    """In a command: an `InputError` becomes a line on the standard error and exit status 2.

    A pipe that nobody reads any longer ends it, with exit status 1.
    """
    try:
        yield
    except InputError as error:
        # From a data worker it comes with the worker's traceback in its text.
        line = str(error).split(f"{type(error).__name__}: ")[-1].strip()
        sys.stderr.write(f"error: {line}\n")  # at once: several processes may say it
        sys.exit(2)
    except BrokenPipeError:  # what reads has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def number_or(word, kind=int):
    """The type of a command's argument that is a number, or a word that is returned as it is.

    Example
    -------
    >>> left_chunks = number_or("unlimited")
    >>> left_chunks("2"), left_chunks("unlimited")
    (2, 'unlimited')
    >>> left_chunks("abc")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: must be an integer or unlimited, got 'abc'
    """

    def convert(text):
        if text == word:
            return word
        try:
            return kind(text)
        except ValueError:
            number = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {number} or {word}, got {text!r}") from None

    return convert


def one_line(error, most=300):
    """What an error says, in one line of at most `most` characters; its type if it says nothing.

    Example
    -------
    >>> one_line(ValueError("no such\\n  thing"))
    'no such thing'
    >>> one_line(MemoryError())
    'MemoryError'
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def check_integer(name, value, least=1, none=None):
    """Raises `InputError` unless a value is an integer, not a bool, from `least` on.

    Where None is right, too, `none` is how the user writes it.

    Example
    -------
    >>> check_integer("beam_size", 0)
    Traceback (most recent call last):
    summarymixing.errors.InputError: beam_size must be a positive integer, got 0
    >>> check_integer("left_context", -1, least=0)
    Traceback (most recent call last):
    summarymixing.errors.InputError: left_context must be an integer of at least 0, got -1
    >>> check_integer("patience", None, none="null")
    >>> check_integer("patience", True, none="null")
    Traceback (most recent call last):
    summarymixing.errors.InputError: patience must be a positive integer or null, got True
    """
    if none is not None and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        otherwise = "" if none is None else f" or {none}"
        raise InputError(f"{name} must be {wanted}{otherwise}, got {value!r}")


def check_number(name, value, range_="finite", holds=lambda value: True):
    """Raises `InputError` unless a value is a finite number for which `holds(value)` is true.

    Example
    -------
    >>> check_number("ctc_weight", 1.5, "in [0, 1]", lambda x: 0 <= x <= 1)
    Traceback (most recent call last):
    summarymixing.errors.InputError: ctc_weight must be a number, in [0, 1], got 1.5
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not holds(value):
        raise InputError(f"{name} must be a number, {range_}, got {value!r}")
