"""Loading a recipe's YAML, with every mistake in it said in one line."""

import difflib
import glob
import io
import os
import re
import traceback
from typing import NamedTuple

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from hyperpyyaml.core import recursive_update
from speechbrain.utils.run_opts import RunOptions

from summarymixing.errors import InputError, one_line

# What a run may change and still continue an earlier one in the same folder.
MAY_CHANGE = (
    "data_folder output_folder number_of_epochs epoch_counter threads tensorboard num_workers "
    "precision eval_precision grad_accumulation_factor batch_seconds max_batch_utterances "
    "global_batch_seconds max_unread screen_audio facts_file ckpt_interval_minutes "
    "ckpt_interval_steps "
    "valid_batch_size valid_search_interval valid_search test_search valid_beam_size "
    "test_beam_size test_ctc_weight temperature lm_file lm_weight ngram_order ngram_file "
    "ngram_weight avg_checkpoints avg_metric "
    "max_symbols_per_frame valid_chunk_size valid_left_context test_chunk_size test_left_context "
    "train_text valid_text test_text batch_bytes variant variants activation_checkpointing"
).split()
# Keys that recipes were given later, and what they were without them.
CAME_LATER = {
    "decoder_mixer": "attention",
    "norm_type": "global",
    "csgu_linear_units": "3072",
}

# What a variant may be. A model has one of each at most, and they are applied in this order.
KINDS = ("encoder", "mixer", "size", "language")

_EQUALS = "\ue000"  # for private use: in no file name


def arguments(argv):
    """As SpeechBrain's `parse_arguments`, which makes spaces of equals signs within values.

    Example
    -------
    >>> arguments(["recipe.yaml", "--data_folder=corpora/lang=fr", "--seed", "7"])[2].splitlines()
    ['data_folder: corpora/lang=fr', 'seed: 7']
    """
    kept = []
    for argument in argv:
        name, equals, value = ("", "", argument)
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
        kept.append(name + equals + value.replace("=", _EQUALS))
    path, run_opts, overrides = sb.parse_arguments(kept)
    return path.replace(_EQUALS, "="), run_opts, overrides.replace(_EQUALS, "=")


def load(path, overrides="", optional=()):
    """The hyperparameters of a recipe, every module built.

    Arguments
    ---------
    path : str
        A HyperPyYAML file. Its own values replace those of its base, see `source`, and those of its
        variants its own: see `with_variants`.
    overrides : str or dict
        YAML that replaces values of the file and of its variants, as SpeechBrain makes it from the
        command line.
    optional : list of str
        Keys that the overrides may have although the file has not.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        For a missing or malformed file, an unknown key in the overrides or in what is handed to an
        included fragment, a value that is required and missing, a class that does not exist or
        refuses its arguments.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
    ...     _ = file.write("width: 4\\ncopy: !ref <width>\\n")
    ...     file.flush()
    ...     load(file.name, "width: 8")
    {'width': 8, 'copy': 8}
    """
    overrides = with_variants(path, overrides)
    check_keys(path, overrides, optional)
    try:
        return load_hyperpyyaml(_stream(path), overrides, overrides_must_match=False)
    except Exception as error:  # YAML runs constructors of any kind: whatever fails is the user's
        reason = _taken_from_no_mapping(path, overrides) or _explain(error, path)
        raise InputError(f"{path}: {reason}") from error


def check_complete(path, hparams, required, optional):
    """Raises InputError for a key that is missing, or that nothing reads.

    Arguments
    ---------
    path : str
        The recipe.
    hparams : dict
        Loaded from it.
    required, optional : list of str
        What the library reads; SpeechBrain's run options and what the recipe's own `!ref`s read
        are known besides.
    """
    for key in required:
        if key not in hparams:
            raise InputError(f"{path}: the key {key!r} is missing")
    text, _ = source(path)
    known = {*required, *optional, "variants", "variant", *RunOptions().as_dict()}
    for key in hparams:
        private = key.startswith("__")  # of effects, as of `__set_seed: !apply:…`
        if key not in known and not private and not re.search(rf"<{key}\W", text):
            close = difflib.get_close_matches(key, (known | hparams.keys()) - {key}, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{path}: nothing reads the key {key!r}{hint}")


def check_same_experiment(path, overrides, output_folder):
    """Raises InputError if `output_folder` holds checkpoints of another experiment.

    Another model, seed, corpus, tokenizer or optimizer, say: anything but `MAY_CHANGE`.

    Example
    -------
    >>> check_same_experiment("any.yaml", "", "a/folder/that/is/not/there")
    """
    saved = os.path.join(output_folder, "hyperparams.yaml")
    if not os.path.exists(saved) or not glob.glob(os.path.join(output_folder, "save", "CKPT*")):
        return
    try:
        with open(saved, encoding="utf-8") as file:
            before = _flat(ruamel.yaml.YAML().load(file))
    except (OSError, ValueError, AttributeError, ruamel.yaml.error.YAMLError) as error:
        raise InputError(
            f"{saved}: cannot be read ({_explain(error)}); it says of what experiment the "
            "checkpoints beside it are: remove it if you know that it is this one"
        ) from error
    now = _flat(ruamel.yaml.YAML().load(resolved(path, overrides)))
    # The recipe's own keys before those that they are handed on to.
    for key in sorted(before.keys() | now.keys(), key=lambda key: (key.count("."), key)):
        then = before.get(key, CAME_LATER.get(key.split(".")[-1]))
        if then != now.get(key):
            raise InputError(
                f"output_folder {output_folder} holds a different experiment: {key} was "
                f"{then} and is {now.get(key)} now; choose another --output_folder"
            )


def resolved(path, overrides):
    """The text of a recipe with its base, variants, includes, references and overrides in place."""
    return resolve_references(_stream(path), with_variants(path, overrides), False).getvalue()


def source(path):
    """The text of a recipe, and where the paths in it begin.

    A recipe may be based on another, and then says only what it has of its own:

        base: ../../LibriSpeech/hparams/ctc_attention.yaml
        lr: 0.001
        speed_perturb:
          speeds: [90, 100, 110]
        lr_schedule: !new:summarymixing.training.schedules.WarmupCosine
          peak: !ref <lr>
          warmup_steps: !ref <warmup_steps>

    Its keys replace those of the base, and new ones come last. A mapping without a tag, as
    `speed_perturb` above, replaces keys of the mapping in the base, which keeps its tag and its
    other keys. `base` and `variants` are relative to the file that has them. The base may
    have a base, too; only the last one may include files.

    Arguments
    ---------
    path : str or os.PathLike

    Returns
    -------
    text : str
    place : str
        The file to which `variants` and what is included are relative in this text.

    Raises
    ------
    InputError
        For a file that is missing, malformed or its own base, a base that a run has resolved, a
        mapping without a tag where the base has none, and for what cannot be laid over: anchors
        and aliases, and files that are included.

    Example
    -------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> def write(name, text):
    ...     with open(os.path.join(folder, name), "w") as file:
    ...         _ = file.write(text)
    >>> write("deep.yaml", "width: 4\\ncopy: !ref <width>\\ndepth: 8\\n")
    >>> write("wide.yaml", "base: deep.yaml\\nwidth: 6\\n")
    >>> print(source(os.path.join(folder, "wide.yaml"))[0], end="")
    width: 6
    copy: !ref <width>
    depth: 8
    """
    recipe = _recipe(path)
    return recipe.text, recipe.place


class _Recipe(NamedTuple):
    """A file with its base: its text, what ruamel reads of it, and the file of the last base."""

    text: str
    tree: dict
    place: str


def _recipe(path, above=()):
    text = _text(path)
    tree = _tree(text, path)
    real = os.path.realpath(path)  # where HyperPyYAML looks for what a file includes
    if "base" not in tree:
        return _Recipe(text, tree, real)
    base = tree.pop("base")
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: base: the file of another recipe is expected, got {base!r}")
    base = os.path.realpath(os.path.join(os.path.dirname(real), base))
    shown = os.path.relpath(base)
    if not os.path.isfile(base):
        raise InputError(f"{path}: base: there is no file {shown}")
    if base in (real, *above):
        raise InputError(f"{path}: base: {shown} would be its own base")
    under, merged, place = _recipe(shown, (real, *above))
    if "variants" in merged and merged["variants"] is None:
        raise InputError(
            f"{path}: base: {shown} is what a run has left, all values in their places: nothing "
            "follows from a change; give the recipe of that run"
        )
    _check_simple(under, shown)
    _check_simple(text, path, included=False)
    if "variants" in tree:
        folders = _folders(tree["variants"], path)
        tree["variants"] = [os.path.join(os.path.dirname(real), folder) for folder in folders]
    for key, value in tree.items():
        if _is_plain_mapping(value):
            _must_know([key], merged, path, base)
    _lay_over(merged, tree, path, shown)
    _put_in_order(merged)
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(merged, stream)
    return _Recipe(stream.getvalue(), merged, place)


def _check_simple(text, path, included=True):
    """Raises InputError for what does not keep its meaning in another file."""
    for event in ruamel.yaml.YAML().parse(text):
        if getattr(event, "anchor", None):
            raise InputError(
                f"{path}: a recipe with a base, or that is one, can have no anchor "
                f"({event.anchor}): use !ref"
            )
        if not included and str(getattr(event, "tag", None)).startswith("!include:"):
            raise InputError(
                f"{path}: a recipe with a base cannot include a file ({event.tag}); only the base "
                "can, and a mapping without a tag changes what is included"
            )


def _lay_over(tree, values, where, base):
    for key, value in values.items():
        under = tree.get(key)
        if not _is_plain_mapping(value) or under is None:
            tree[key] = value
        elif isinstance(under, dict):
            _lay_over(under, value, f"{where}: {key}", base)
        else:
            raise InputError(
                f"{where}: {key}: {base} has no mapping there, whose keys these could replace; "
                "give it a tag (!new:…, !name:…) to replace all"
            )


def _put_in_order(tree):
    """HyperPyYAML resolves a reference to a reference only if that one comes first."""
    order = {}

    def put(key):
        if key not in order:
            order[key] = None  # before what it refers to, in case that refers to it
            for name in _references(tree[key]):
                if _tag(tree.get(name)) in _REFERENCES:
                    put(name)
            order[key] = order.pop(key)

    for key in tree:
        put(key)
    for key in order:
        tree.move_to_end(key)


_REFERENCES = ("!ref", "!copy")


def _references(value):
    """The names of keys to which a value refers."""
    if isinstance(value, (dict, list)):
        values = value.values() if isinstance(value, dict) else value
        return [name for part in values for name in _references(part)]
    return re.findall(r"<(\w+)", str(value)) if _tag(value) in _REFERENCES else []


def _tag(value):
    return getattr(getattr(value, "tag", None), "value", None) or ""


def _is_plain_mapping(value):
    return isinstance(value, dict) and not _tag(value)


def _stream(path):
    """As HyperPyYAML takes a recipe, which asks a stream's name where its paths begin."""
    text, place = source(path)
    stream = io.StringIO(text)
    stream.name = place
    return stream


def with_variants(path, overrides=""):
    """The overrides of a recipe with those of its variants, which give way to them.

    A recipe names folders of variants, and those it has by default:

        variants: [../../../hparams/variants, variants]
        variant: conformer,summarymixing

    Each name stands for its files in these folders, NAME.yaml, and NAME.OBJECTIVE.yaml for recipes
    whose `model:` includes OBJECTIVE.yaml: plain values for keys that the recipe has, and `kind`,
    one of `KINDS`. Two of one kind are refused. They are applied in the order of their kinds,
    whatever order they are named in; then those without a kind, from left to right. What is
    resolved has `variants: null`: its variants are applied.

    Arguments
    ---------
    path : str
        The recipe.
    overrides : str or dict
        `variant` in it replaces the recipe's.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        For a name that has no file, a malformed file, a key in one that the recipe has not, two
        names of one kind.

    Example
    -------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> def write(name, text):
    ...     with open(os.path.join(folder, name), "w") as file:
    ...         _ = file.write(text)
    >>> write("recipe.yaml", "variants: [.]\\nvariant: wide\\nwidth: 4\\ndepth: 2\\n")
    >>> write("wide.yaml", "width: 8\\ndepth: 1\\n")
    >>> with_variants(os.path.join(folder, "recipe.yaml"), "depth: 3")
    {'width': 8, 'depth': 3, 'variants': None}
    """
    overrides = read_overrides(overrides)
    _, top, place = _recipe(path)
    if "variants" not in top:
        return overrides
    if "variants" not in overrides and top["variants"] is None:
        if "variant" in overrides:
            raise InputError(f"{path}: its variants are applied already; give its recipe instead")
        return overrides
    if overrides.get("variants"):
        files = _variants(path, path, top, overrides["variants"])
    else:
        files = _variants(path, place, top, top["variants"])
    chosen = []
    for name in _names(overrides.get("variant", top.get("variant"))):
        if name not in files:
            close = difflib.get_close_matches(name, files, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(files)}"
            raise InputError(f"variant: there is no {name!r} for {path}; {hint}")
        values = {}
        for file in files[name]:
            found = _plain(file)
            _must_know(found, {**top, "kind": None}, os.path.relpath(file), path)
            recursive_update(values, found)
        kind = values.pop("kind", None)
        for other, its_kind, _ in chosen:
            if kind is not None and kind == its_kind:
                raise InputError(
                    f"variant: {other!r} and {name!r} both name the {kind}, of which there is one"
                )
        chosen.append((name, kind, values))
    order = (*KINDS, None)
    merged = {}
    for _, _, values in sorted(chosen, key=lambda variant: order.index(variant[1])):
        recursive_update(merged, values)
    recursive_update(merged, overrides)
    return merged | {"variants": None}


def variants(path, kind=None):
    """The names of the variants that a recipe has, in alphabetical order.

    Arguments
    ---------
    path : str
    kind : str, optional
        One of `KINDS`: those of this kind alone.

    Returns
    -------
    list of str
    """
    files = _of_recipe(path)
    return [
        name
        for name in files
        if kind is None or any(_plain(file).get("kind") == kind for file in files[name])
    ]


def _of_recipe(path):
    """The files of each of a recipe's variants; none where they are applied already."""
    _, top, place = _recipe(path)
    if top.get("variants") is None:
        return {}
    return _variants(path, place, top, top["variants"])


def _that_set(path, key):
    """The names of a recipe's variants that have a value for a key."""
    files = _of_recipe(path)
    return [name for name in files if any(key in _plain(file) for file in files[name])]


def _plain(file):
    """The values of a variant's file."""
    values = _tree(_text(file), file, "safe")
    if "kind" in values and values["kind"] not in KINDS:
        raise InputError(
            f"{os.path.relpath(file)}: kind is one of {', '.join(KINDS)}, not {values['kind']!r}"
        )
    return values


def _variants(path, place, top, folders):
    """The files of each variant, in the order in which they are applied."""
    objective = re.fullmatch(r"!include:(?:.*/)?([^/]+)\.yaml", _tag(top.get("model")))
    found = {}
    for folder in _folders(folders, path):
        folder = os.path.normpath(os.path.join(os.path.dirname(place), folder))
        if not os.path.isdir(folder):
            raise InputError(f"{path}: variants: there is no folder {os.path.relpath(folder)}")
        for file in sorted(os.listdir(folder), key=lambda name: name.count(".")):
            name, *only_for = file.removesuffix(".yaml").split(".")
            if file.endswith(".yaml") and (
                not only_for or objective and only_for == [objective[1]]
            ):
                found.setdefault(name, []).append(os.path.join(folder, file))
    return dict(sorted(found.items()))


def _folders(value, path):
    folders = [value] if isinstance(value, str) else value
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise InputError(f"{path}: variants: a list of folders is expected, got {value!r}")
    return folders


def _names(text):
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        raise InputError(f"variant: names with commas between them are expected, got {text!r}")
    return [name.strip() for name in text.split(",")]


def _flat(tree, prefix=""):
    """The identity of an experiment as {"model.d_model": "256", ...}."""
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key in MAY_CHANGE:
            continue
        tag = getattr(getattr(value, "tag", None), "value", None)
        if isinstance(value, dict):
            found[name] = tag
            found |= _flat(value, f"{name}.")
        else:
            found[name] = str(value)
    return found


def read_overrides(overrides):
    """As a dict, from a dict or from SpeechBrain's YAML of a command line."""
    if isinstance(overrides, str):
        try:
            overrides = ruamel.yaml.YAML(typ="safe", pure=True).load(overrides) or {}
        except ruamel.yaml.error.YAMLError as error:
            raise InputError(f"command line: {_explain(error)}") from error
    return overrides


def _text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the YAML file of a recipe") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8; give the YAML file of a recipe") from error


def _tree(text, path, kind="rt"):
    """A YAML mapping as ruamel reads it: "rt", whatever its tags stand for, or "safe", plain."""
    try:
        tree = ruamel.yaml.YAML(typ=kind, pure=True).load(text)
    except (ruamel.yaml.error.YAMLError, ValueError) as error:
        raise InputError(f"{path}: {_explain(error)}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a YAML mapping of hyperparameters")
    for key in tree:
        if not isinstance(key, str):
            raise InputError(f"{path}: keys are names, got {key!r}")
    return tree


def check_keys(path, overrides, optional=()):
    """Raises InputError for a key of the overrides, or of an include, that is nowhere known.

    HyperPyYAML takes any key for a nested override: here it must stand in the fragment.

    Arguments
    ---------
    path : str
        The recipe.
    overrides : dict
    optional : list of str
        Keys that the overrides may have although the file has not.
    """
    _, top, place = _recipe(path)
    _must_know(overrides, {**top, **dict.fromkeys(optional)}, "command line", path)
    for key, value in top.items():
        tag = _tag(value)
        if not tag.startswith("!include:"):
            continue
        fragment = os.path.normpath(os.path.join(os.path.dirname(place), tag[len("!include:") :]))
        known = _tree(_text(fragment), fragment)
        if isinstance(value, dict):
            _must_know(value, known, f"{path}: {key}", fragment)
        if isinstance(overrides.get(key), dict):
            _must_know(overrides[key], known, f"command line: {key}", fragment)


def _must_know(keys, known, where, path):
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise InputError(f"{where}: no key {key!r} in {os.path.relpath(path)}; {hint}")


def _taken_from_no_mapping(path, overrides):
    """What to say of a key that refers into another one, if the overrides made this null, say."""
    for key, other in re.findall(r"^(\w+): !ref <(\w+)\[", source(path)[0], re.M):
        if not isinstance(overrides.get(other, {}), dict) and key not in overrides:
            return f"{key} is a part of {other}, which is no mapping now: give --{key}=…, too"
    return None


def _explain(error, path=None):
    """What an exception of the loading (of this recipe) says, on one line."""
    text = " ".join(str(part) for part in error.args) or str(error)
    if isinstance(error, ruamel.yaml.constructor.DuplicateKeyError):
        return re.search(r'duplicate key "(.*?)"', error.problem)[1] + " is given twice"
    if isinstance(error, ruamel.yaml.error.MarkedYAMLError):
        text = str(error)
    missing = re.search(r"'(\w+)' is a !PLACEHOLDER", text)
    if missing:
        key = missing[1]
        names = [] if path is None else _that_set(path, key)
        by_variant = f"add one of {', '.join(names)} to --variant, or " if names else ""
        return f"{key} is required: {by_variant}give --{key}=…"
    if isinstance(error, (InputError, ImportError, FileNotFoundError)):
        return one_line(error, None)
    if isinstance(error, AssertionError) and not text:
        text = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: " + " ".join(text.split())
