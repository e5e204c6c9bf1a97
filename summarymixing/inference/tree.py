"""What a package says is to be built: classes and their arguments, as JSON can hold them.

`{"class": "torch.nn.Linear", "arguments": {...}}` stands for an object, and `{"name": ...}` for the
class itself, or with arguments for a partial of it. Arguments are a dictionary, or a list where
they have no names. `{"file": "lm.safetensors"}` is the path of a file of the package.

A package may come from anywhere: nothing is built but what `ALLOWED` names. Packages are made from
the YAML of trainings, and have the same as YAML for SpeechBrain.
"""

import functools
import inspect
import os
import pydoc
import re

import ruamel.yaml
import yaml

from summarymixing import decoding
from summarymixing.errors import InputError, one_line
from summarymixing.models.mixers import MIXERS
from summarymixing.models.transformer_asr import TransformerASR

_ACTIVATIONS = (
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid "
    "Mish PReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus Softsign Tanh"
).split()
_OF_MIXERS = "summarymixing.models.transformer_asr.TransformerASR"
ALLOWED = (
    "builtins.float",  # for infinity, which JSON has not
    "builtins.tuple",
    "summarymixing.models.features.LogMel",
    "summarymixing.models.frontend.ConvolutionFrontEnd",
    "summarymixing.models.transducer.Joiner",
    "summarymixing.models.transducer.Predictor",
    _OF_MIXERS,
    *(f"summarymixing.decoding.{name}" for name in decoding.__all__),
    "speechbrain.lobes.models.transformer.TransformerLM.TransformerLM",
    "speechbrain.nnet.CNN.Conv1d",
    "speechbrain.nnet.CNN.Conv2d",
    "speechbrain.nnet.activations.Swish",
    "speechbrain.nnet.linear.Linear",
    "speechbrain.nnet.normalization.BatchNorm1d",
    "speechbrain.nnet.normalization.BatchNorm2d",
    "speechbrain.nnet.normalization.LayerNorm",
    "speechbrain.processing.features.InputNormalization",
    *(f"torch.nn.{name}" for name in _ACTIVATIONS),
)
_KINDS = ("class", "name")


def build(tree, folder=None):
    """The objects of a tree.

    Arguments
    ---------
    tree : dict, list, str, number or None
        As from JSON.
    folder : str or os.PathLike, optional
        Where the files are that the tree names.

    Returns
    -------
    The same with an object in the place of each node.

    Raises
    ------
    InputError
        For a class that is not allowed, or refuses its arguments, and for a file outside `folder`.

    Example
    -------
    >>> build({"class": "torch.nn.LeakyReLU", "arguments": {"negative_slope": 0.5}})
    LeakyReLU(negative_slope=0.5)
    >>> build([{"name": "torch.nn.GELU"}, 4])
    [<class 'torch.nn.modules.activation.GELU'>, 4]
    >>> build({"class": "os.system", "arguments": ["ls"]})
    Traceback (most recent call last):
    summarymixing.errors.InputError: os.system is nothing that a package may build
    """
    check(tree)
    return _built(tree, folder)


def check(tree):
    """Raises InputError for a tree that `build` would not build."""
    if isinstance(tree, list):
        for item in tree:
            check(item)
    if not isinstance(tree, dict):
        return
    kind = _kind(tree)
    if kind in _KINDS:
        name, arguments = tree[kind], tree.get("arguments", {})
        if name not in ALLOWED:
            raise InputError(f"{name} is nothing that a package may build")
        if not isinstance(arguments, (dict, list)):
            raise InputError(f"{name}: arguments are a dictionary or a list, got {arguments!r}")
        for key in filter(_is_file, arguments):
            if isinstance(arguments[key], str):
                raise InputError(f"{name}: {key}={arguments[key]} is no file of the package")
        _check_mixers(name, arguments)
    for item in tree.values():
        check(item)


def _as_given(arguments):
    """Positional ones and others."""
    return (arguments, {}) if isinstance(arguments, list) else ([], arguments)


def _check_mixers(name, arguments):
    """A mixer's name may be that of any code that can be imported: not here."""
    if name != _OF_MIXERS:
        return
    args, kwargs = _as_given(arguments)
    try:
        given = inspect.signature(TransformerASR).bind_partial(*args, **kwargs).arguments
    except TypeError:  # it will say itself what it does not take
        return
    match given.get("attention_type", "none"):
        case list(kinds) | {"class": "builtins.tuple", "arguments": [list(kinds)]}:
            pass
        case kind:
            kinds = [kind]
    for kind in kinds:
        if not (isinstance(kind, str) and kind in MIXERS):
            raise InputError(f"attention_type: {kind} is nothing that a package may build")


def _built(tree, folder):
    if isinstance(tree, list):
        return [_built(item, folder) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = _kind(tree)
    if kind == "file":
        return _path(tree["file"], folder)
    if kind is None:
        return {key: _built(item, folder) for key, item in tree.items()}
    name, arguments = tree[kind], _built(tree.get("arguments", {}), folder)
    found = pydoc.locate(name)
    args, kwargs = _as_given(arguments)
    try:
        if kind == "name":
            return functools.partial(found, *args, **kwargs) if arguments else found
        return found(*args, **kwargs)
    except Exception as error:  # classes check their arguments in many ways
        raise InputError(f"{name}: {type(error).__name__}: {one_line(error)}") from error


def read_yaml(text):
    """A recipe's resolved YAML as a tree; nothing of it is run.

    Arguments
    ---------
    text : str
        HyperPyYAML without references, as in the output folder of a training.

    Returns
    -------
    dict
        As `build` takes it, but for names that are not allowed. What is the same object in the
        YAML, by an alias, is the same dictionary.

    Raises
    ------
    InputError
        If it is no YAML, or has other tags than !new, !name, !apply and tuples.

    Example
    -------
    >>> found = read_yaml("activation: !name:torch.nn.GELU\\nwidths: (3, 4)")
    >>> found["activation"], found["widths"]
    ({'name': 'torch.nn.GELU'}, {'class': 'builtins.tuple', 'arguments': [[3, 4]]})
    """
    try:
        tree = yaml.load(text, Loader=_Recorder)
    except ruamel.yaml.error.YAMLError as error:
        raise InputError(one_line(error)) from error
    if not isinstance(tree, dict):
        raise InputError("not a YAML mapping of hyperparameters")
    return tree


def to_yaml(tree):
    """A tree as HyperPyYAML; `Reference` stands for another key of it.

    Example
    -------
    >>> node = {"class": "torch.nn.LeakyReLU", "arguments": {"negative_slope": 0.5}}
    >>> print(to_yaml({"activation": node, "again": Reference("activation")}), end="")
    activation: !new:torch.nn.LeakyReLU
      negative_slope: 0.5
    again: !ref '<activation>'
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def allowed(tree):
    """The tree with the names of `ALLOWED` in the place of others of the same classes.

    Raises
    ------
    InputError
        For a class that a package may not build, and for an object that is in two places.
    """
    return _allowed(tree, set())


def with_files(tree, put):
    """The tree with what `put(key, value)` gives in the place of each file among the arguments.

    Files are the arguments whose names end in `_file`; what is None stays.
    """
    if isinstance(tree, list):
        return [with_files(item, put) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: put(key, item) if _is_file(key) and item is not None else with_files(item, put)
        for key, item in tree.items()
    }


class Reference(str):
    """`!ref <key>`."""


def _allowed(tree, seen):
    if isinstance(tree, list):
        return [_allowed(item, seen) for item in tree]
    if isinstance(tree, float) and not abs(tree) < float("inf"):
        return {"class": "builtins.float", "arguments": [str(tree)]}
    if not isinstance(tree, dict):
        return tree
    kind = _kind(tree)
    if kind not in _KINDS:
        return {key: _allowed(item, seen) for key, item in tree.items()}
    name, arguments = tree[kind], tree.get("arguments", {})
    if kind == "class" and arguments and id(tree) in seen:
        raise InputError(f"{name} is in two places of the model, which a package cannot say")
    seen.add(id(tree))
    found = _known().get(pydoc.locate(name))
    if found is None:
        raise InputError(f"{name} is nothing that a package may build")
    _check_mixers(found, arguments)
    node = {kind: found}
    return node | {"arguments": _allowed(arguments, seen)} if arguments else node


@functools.cache
def _known():
    return {pydoc.locate(name): name for name in ALLOWED}


def _is_file(key):
    return isinstance(key, str) and key.endswith("_file")


def _kind(tree):
    """Of a node; None for a dictionary that is none."""
    for kind in _KINDS:
        if kind in tree and tree.keys() <= {kind, "arguments"} and isinstance(tree[kind], str):
            return kind
    return "file" if tree.keys() == {"file"} else None


def _path(name, folder):
    if folder is None or not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} is no file of the package")
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file, and the package names it")
    return path


class _Recorder(ruamel.yaml.SafeLoader):
    """Notes what HyperPyYAML would build."""


def _record(kind):
    def construct(loader, name, node):
        if isinstance(node, ruamel.yaml.MappingNode):
            arguments = loader.construct_mapping(node, deep=True)
        elif isinstance(node, ruamel.yaml.SequenceNode):
            arguments = loader.construct_sequence(node, deep=True)
        else:
            arguments = None
        return {kind: name, "arguments": arguments} if arguments else {kind: name}

    return construct


def _tuple(loader, node):
    items = ruamel.yaml.YAML(typ="safe", pure=True).load(f"[{node.value[1:-1]}]")
    return {"class": "builtins.tuple", "arguments": [items]}


for _tag, _as in (("!new:", "class"), ("!apply:", "class"), ("!name:", "name")):
    _Recorder.add_multi_constructor(_tag, _record(_as))
_Recorder.add_constructor("!tuple", _tuple)
_Recorder.add_implicit_resolver("!tuple", re.compile(r"^\(.*\)$"), ["("])


class _Dumper(yaml.SafeDumper):
    """Writes what `read_yaml` reads."""


def _represent(dumper, tree):
    kind = _kind(tree)
    if kind not in _KINDS:
        return dumper.represent_mapping("tag:yaml.org,2002:map", tree)
    arguments = tree.get("arguments")
    builds = "new" if inspect.isclass(pydoc.locate(tree[kind])) else "apply"
    tag = f"!{builds if kind == 'class' else 'name'}:{tree[kind]}"
    if not arguments:
        return dumper.represent_scalar(tag, "")
    if isinstance(arguments, list):
        return dumper.represent_sequence(tag, arguments)
    return dumper.represent_mapping(tag, arguments)


_Dumper.add_representer(dict, _represent)
_Dumper.add_representer(
    Reference, lambda dumper, reference: dumper.represent_scalar("!ref", f"<{reference}>")
)
