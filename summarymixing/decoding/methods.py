"""Searches by name: for a YAML with `!apply:`, and for the command line."""

import inspect

import yaml

from summarymixing.decoding.ctc import CTCPrefixBeamSearch
from summarymixing.decoding.rescoring import RescoredCTCSearch
from summarymixing.decoding.searches import CTCGreedySearch, JointBeamSearch
from summarymixing.decoding.transducer import TransducerBeamSearch, TransducerGreedySearch
from summarymixing.errors import InputError


def _attention(**arguments):
    return JointBeamSearch(**arguments, ctc_weight=0.0)


# The class, for its arguments, and what is called with them.
_METHODS = {
    "ctc_greedy": (CTCGreedySearch, CTCGreedySearch),
    "ctc_beam": (CTCPrefixBeamSearch, CTCPrefixBeamSearch),
    "rescore": (RescoredCTCSearch, RescoredCTCSearch),
    "attention": (JointBeamSearch, _attention),
    "joint": (JointBeamSearch, JointBeamSearch),
    "transducer_greedy": (TransducerGreedySearch, TransducerGreedySearch),
    "transducer_beam": (TransducerBeamSearch, TransducerBeamSearch),
}
METHODS = tuple(_METHODS)


def make_search(method, **arguments):
    """The search of a name.

    Arguments
    ---------
    method : str
        "ctc_greedy" (`CTCGreedySearch`), "ctc_beam" (`CTCPrefixBeamSearch`), "rescore"
        (`RescoredCTCSearch`), "joint" (`JointBeamSearch`), "attention" (the same without CTC), or
        for transducers "transducer_greedy" and "transducer_beam".
    **arguments
        Those of its class. In a YAML:

            test_search: !apply:summarymixing.decoding.make_search
              method: !ref <test_method>
              beam_size: !ref <test_beam_size>

    Returns
    -------
    callable
        search(modules, encoded, lengths) → list of token lists.

    Raises
    ------
    InputError
        For a method that there is not, an argument that it does not take, or a value out of range.

    Example
    -------
    >>> make_search("attention", beam_size=4).ctc_weight
    0.0
    >>> make_search("ctc_greedy", beam_size=4)
    Traceback (most recent call last):
    summarymixing.errors.InputError: the search ctc_greedy takes no beam_size, and no arguments
    """
    if method not in _METHODS:
        raise InputError(f"there is no search {method!r}; there are {', '.join(METHODS)}")
    cls, function = _METHODS[method]
    known = list(inspect.signature(cls).parameters)
    if method == "attention":
        known.remove("ctc_weight")
    for name in arguments:
        if name not in known:
            takes = f"but {', '.join(known)}" if known else "and no arguments"
            raise InputError(f"the search {method} takes no {name}, {takes}")
    try:
        return function(**arguments)
    except TypeError as error:  # text where a number is compared
        raise InputError(f"the search {method}: {error}") from error


def parse_search(text):
    """The search that a word or a few of a command line stand for.

    Arguments
    ---------
    text : str
        A method and arguments as name=value, with white space between them; values as in YAML.

    Returns
    -------
    callable
        As from `make_search`.

    Raises
    ------
    InputError
        As `make_search`, and for what is not of that form.

    Example
    -------
    >>> search = parse_search("joint beam_size=20 ctc_weight=0.3")
    >>> search.beam_size, search.ctc_weight
    (20, 0.3)
    """
    method, *pairs = text.split() or [""]
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"a search is METHOD name=value ..., got {pair!r} in {text!r}")
        arguments[name] = yaml.safe_load(value)
    return make_search(method, **arguments)
