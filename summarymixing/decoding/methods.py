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


# The class, for its arguments; what is called with them; and the heads it searches.
_METHODS = {
    "ctc_greedy": (CTCGreedySearch, CTCGreedySearch, {"ctc_lin"}),
    "ctc_beam": (CTCPrefixBeamSearch, CTCPrefixBeamSearch, {"ctc_lin"}),
    "rescore": (RescoredCTCSearch, RescoredCTCSearch, {"ctc_lin", "seq_lin"}),
    "attention": (JointBeamSearch, _attention, {"seq_lin"}),
    "joint": (JointBeamSearch, JointBeamSearch, {"ctc_lin", "seq_lin"}),
    "transducer_greedy": (TransducerGreedySearch, TransducerGreedySearch, {"predictor", "joiner"}),
    "transducer_beam": (TransducerBeamSearch, TransducerBeamSearch, {"predictor", "joiner"}),
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
    cls, function, _ = _METHODS[method]
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


def parse_search(text, modules, recipe=None):
    """The search that a word or a few of a command line stand for.

    Arguments
    ---------
    text : str
        A method and arguments as name=value, with white space between them; values as in YAML.
    modules : dict of str to torch.nn.Module
        Of the model that will be searched.
    recipe : callable, optional
        Gives the search of the model's own recipe, whose `lm` is what `lm_file` is a checkpoint
        of: words cannot say it. Called for an `lm_file` only.

    Returns
    -------
    callable
        As from `make_search`.

    Raises
    ------
    InputError
        As `make_search`, and for what is not of that form or not for this model.

    Example
    -------
    >>> search = parse_search("ctc_beam beam_size=20 length_bonus=0.3", {"ctc_lin": None})
    >>> search.beam_size, search.length_bonus
    (20, 0.3)
    """
    method, arguments = split_search(text)
    if arguments.get("lm") is not None:
        raise InputError(f"lm={arguments['lm']} is for a recipe's YAML: here give lm_file alone")
    search = make_search(method, **_with_lm(arguments, recipe))
    if not _METHODS[method][2] <= modules.keys():
        possible = [name for name in METHODS if _METHODS[name][2] <= modules.keys()]
        raise InputError(f"the search {method} is not for this model; {', '.join(possible)} are")
    return search


def _with_lm(arguments, recipe):
    file = arguments.get("lm_file")
    if file is None or recipe is None:
        return arguments
    lm = getattr(recipe(), "lm", None)
    if lm is None:
        raise InputError(
            f"lm_file={file} needs a recipe whose own test_search has an lm, its class"
        )
    return arguments | {"lm": lm}


def as_search(value, modules):
    """A recipe's search: built by its YAML already, or a text for `parse_search`.

    Arguments
    ---------
    value : str or callable
    modules : dict of str to torch.nn.Module

    Example
    -------
    >>> as_search("ctc_beam beam_size=20", {"ctc_lin": None}).beam_size
    20
    """
    return parse_search(value, modules) if isinstance(value, str) else value


def split_search(text):
    """The method and the arguments in a text for `parse_search`.

    Example
    -------
    >>> split_search("ctc_beam beam_size=20 ngram_file=4gram.arpa")
    ('ctc_beam', {'beam_size': 20, 'ngram_file': '4gram.arpa'})
    """
    method, *pairs = text.split() or [""]
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"a search is METHOD name=value ..., got {pair!r} in {text!r}")
        arguments[name] = yaml.safe_load(value)
    return method, arguments
