"""A published table and ours beside it: which trainings it takes, and what they gave.

A table is a YAML file. Paths in it are relative to a root folder, the repository's:

    title: LibriSpeech, CTC + attention
    note: what the published numbers are, and under what conditions    # below the table
    script: recipes/LibriSpeech/train.py
    recipe: recipes/LibriSpeech/hparams/ctc_attention.yaml
    options: {avg_checkpoints: 10}          # of every row; a row's own come after
    metric: wer                             # or cer
    tests: {valid: dev-clean}               # name in results.json: title
    decode:                                 # more tests of a trained model, by the ends of their
      _chunk16_left2: {test_chunk_size: 16, test_left_context: 2}    # names in results.json
    seeds: [1]
    rows:
      - name: Conformer, SummaryMixing
        options: {variant: "conformer,summarymixing"}
        published: {valid: 2.8, gpu_hours: 98, memory_gb: 21}

A row may have a `script`, a `recipe` and `seeds` of its own.
"""

import csv
import dataclasses
import io
import json
import math
import os
import re
import shlex
from pathlib import Path

import ruamel.yaml

from summarymixing.errors import InputError
from summarymixing.files import write_whole
from summarymixing.scoring import bootstrap, metrics, transcripts
from summarymixing.training import results

_DEFAULTS = {"note": "", "options": {}, "metric": "wer", "decode": {}, "seeds": [1]}
_OF_A_ROW = ("script", "recipe", "seeds")


def _is_text(value):
    return isinstance(value, str)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value):
    return _is_number(value) and isinstance(value, int)


def _is_line(value):
    return _is_text(value) and "\n" not in value


def _is_mapping(value, holds=lambda value: True):
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(holds, value.values()))


def _is_list(value, holds=lambda value: True):
    return isinstance(value, list) and value != [] and all(map(holds, value))


# What the values of a table's and a row's keys have to be.
_KINDS = {
    "title": ("a line of text", _is_line),
    "note": ("text", _is_text),
    "script": ("text", _is_text),
    "recipe": ("text", _is_text),
    "options": ("keys and values", _is_mapping),
    "metric": ("wer or cer", lambda value: value in ("wer", "cer")),
    "tests": ("names and titles", lambda value: value != {} and _is_mapping(value, _is_line)),
    "decode": ("endings of names and their options", lambda v: _is_mapping(v, _is_mapping)),
    "seeds": ("a list of integers", lambda value: _is_list(value, _is_integer)),
    "rows": ("a list of rows", _is_list),
    # Also the name of a folder.
    "name": (
        "a line of at most 200 bytes",
        lambda value: _is_line(value) and len(value.encode()) <= 200 and _as_folder(value) != "",
    ),
    "published": ("tests and numbers", lambda value: _is_mapping(value, _is_number)),
}
_EXPLAINED = (
    "Ours: the mean over seeds ± half its 95 % interval (Student), where there are two or more; in "
    "brackets the 95 % interval of the bootstrap over the test set's speakers, or utterances where "
    "these are not known. Minutes and GPU hours are those of one training, without tests; peak "
    "memory is per GPU, or of the process on a CPU."
)
_COSTS = {"gpu_hours": "GPU hours", "memory_gb": "peak GB"}
_PUBLISHED = {"marker": "D", "facecolor": "none", "edgecolor": "#C0504D"}
_SPEAKERS = "#DCE6F2"


# Options that do not make another model of what is trained, or that the folder says.
_OF_NO_ACCOUNT = set(
    "data_folder output_folder device threads num_workers tensorboard noprogressbar "
    "ckpt_interval_minutes ckpt_interval_steps test_only facts_file distributed_backend "
    "max_unread valid_batch_size".split()
)
# Options that change the tests and, where avg_metric is not WER, nothing of what is trained.
# --test_only makes no other n-gram model, so that ngram_order is none of them.
_OF_THE_TESTS = set(
    "test_search test_beam_size test_ctc_weight temperature lm_file lm_weight ngram_file "
    "ngram_weight test_chunk_size test_left_context".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training: a row with a seed."""

    row: str
    seed: int
    folder: Path  # what it leaves, as results.json
    base: list[str]  # script, recipe and options
    decode: dict  # as in the table
    metric: str

    @property
    def title(self):
        return f"{self.row}, seed {self.seed}"

    def results(self):
        """The content of its results.json, or None; InputError if another model was trained."""
        found = results.read(self.folder / "results.json", (self.metric,))
        if found and (differs := difference(found["command"], self.base, _OF_THE_TESTS)):
            raise InputError(
                f"{self.folder}: trained with another {differs}; choose another --out, or "
                "delete this folder to have it trained anew"
            )
        return found

    def tests(self):
        """Scores by the options that they would be tested with now, and how the others differ.

        Returns
        -------
        current : dict
            Test to scores.
        others : dict
            Test to `difference`.
        """
        current, others = {}, {}
        found = self.results() or {"tests": {}}
        for name, scores in found["tests"].items():
            if "command" in scores:
                now = self._tested(self._ending(name))
                differs = difference(scores["command"], now)
            else:  # it is the training's
                differs = difference(found["command"], self.base)
            if differs:
                others[name] = differs
            else:
                current[name] = scores
        return current, others

    def missing(self):
        """The arguments of what has to be run next; None when all is there."""
        if self.results() is None:
            return self.base
        there = {self._ending(name) for name in self.tests()[0]}
        for ending in ("", *self.decode):
            if ending not in there:
                return self._tested(ending)
        return None

    def _ending(self, test):
        """Which of `decode` a test is of, or nothing."""
        return max((e for e in self.decode if test.endswith(e)), key=len, default="")

    def _tested(self, ending):
        return [*self.base, "--test_only", *_as_arguments(self.decode.get(ending, {}))]


def difference(command: str, arguments: list[str], aside: set[str] = frozenset()) -> str | None:
    """The first option of a training that differs, those of the machine aside, or None.

    Arguments
    ---------
    command : str
        By which something was trained, as in results.json.
    arguments : list of str
        Script, recipe if there is one, and options, by which it would be now.
    aside : set of str
        Options that may differ as well.

    Example
    -------
    >>> difference("python train.py a.yaml --lr=1e-3 --threads=1", ["train.py", "a.yaml", "--lr=2"])
    'lr: 0.001 then, 2 now'
    """
    then, now = _as_options(shlex.split(command)), _as_options(arguments)
    for key in [*now, *then]:
        pair = [options.get(key, "not given") for options in (then, now)]
        if key not in _OF_NO_ACCOUNT | aside and pair[0] != pair[1]:
            pair = (value if isinstance(value, str) else json.dumps(value) for value in pair)
            return "{}: {} then, {} now".format(key, *pair)
    return None


def read(path) -> dict:
    """A table, checked.

    Arguments
    ---------
    path : path

    Returns
    -------
    dict
        With every key of the module's description; each row has its `name`, `script`, `recipe`,
        `options`, `seeds` and `published`.

    Raises
    ------
    InputError
        For a file that is missing or malformed, a key that is missing or unknown, two rows whose
        names are alike.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "small.yaml")
    >>> _ = path.write_text(
    ...     "title: Small\\nscript: train.py\\nrecipe: a.yaml\\ntests: {test: test}\\n"
    ...     "rows: [{name: Wide, options: {width: 8}}]"
    ... )
    >>> [(row["name"], row["options"], row["seeds"]) for row in read(path)["rows"]]
    [('Wide', {'width': 8}, [1])]
    """
    try:
        with open(path, encoding="utf-8") as file:
            table = ruamel.yaml.YAML(typ="safe", pure=True).load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ruamel.yaml.error.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    known = {"title", "tests", "rows", "script", "recipe", *_DEFAULTS}
    _check(path, "table", table, known, ("title", "tests", "rows"))
    table = {**_DEFAULTS, **table}
    rows, folders = [], {}
    for place, row in enumerate(table["rows"], 1):
        known = {"name", "options", "published", *_OF_A_ROW}
        named = isinstance(row, dict) and "name" in row
        what = f"row {row['name']!r}" if named else f"row {place}"
        _check(path, what, row, known, ("name",))
        row = {key: table[key] for key in _OF_A_ROW if key in table} | row
        _check(path, what, row, known, ("script", "recipe"))
        row["options"] = {**table["options"], **row.get("options", {})}
        for key in ("data_folder", "output_folder", "seed"):
            if key in row["options"]:
                raise InputError(f"{path}: {what}: {key} is no option of a row: the command's is")
        row.setdefault("published", {})
        wrong = row["published"].keys() - {*table["tests"], *_COSTS}
        if wrong:
            raise InputError(
                f"{path}: row {row['name']!r}: published {min(wrong)} is no test of it"
            )
        other = folders.setdefault(_as_folder(row["name"]), row["name"])
        if other in (found["name"] for found in rows):
            raise InputError(f"{path}: the rows {other!r} and {row['name']!r} have names too alike")
        rows.append(row)
    return {**table, "rows": rows}


def _check(path, what, mapping, known, required):
    if not isinstance(mapping, dict):
        raise InputError(f"{path}: {what}: keys and values are expected, got {mapping!r}")
    for key in required:
        if key not in mapping:
            raise InputError(f"{path}: {what}: the key {key!r} is missing")
    for key in mapping:
        if key not in known:
            raise InputError(
                f"{path}: {what}: no key {key!r}; known are {', '.join(sorted(known))}"
            )
    for key, value in mapping.items():
        wanted, holds = _KINDS[key]
        if not holds(value):
            raise InputError(f"{path}: {what}: {key} must be {wanted}, got {value!r}")


def runs(table, root, out, seeds=None, options=()) -> list[Run]:
    """The trainings of a table, a seed of every row before the next seed.

    Those of other seeds than the table's that have results are among them.

    Arguments
    ---------
    table : dict
        As from `read`.
    root : path
        What the paths of scripts and recipes are relative to.
    out : path
        Folder of the trainings' folders.
    seeds : list of int, optional
        Exactly these.
    options : list of str
        Command-line arguments for all of them, stronger than the table's.

    Returns
    -------
    list of Run

    Raises
    ------
    InputError
        If a script or a recipe is not there.
    """
    root, out = Path(root), Path(out)
    found = []
    for row in table["rows"]:
        files = [root / row["script"], root / row["recipe"]]
        for file in files:
            if not file.is_file():
                raise InputError(f"row {row['name']!r}: there is no file {file}")
        given = {argument.split("=")[0].removeprefix("--") for argument in options}
        own = {key: value for key, value in row["options"].items() if key not in given}
        of_row = out / _as_folder(row["name"])
        trained = [path.parent.name for path in sorted(of_row.glob("*/results.json"))]
        known = [*row["seeds"], *(int(name) for name in trained if name.isdecimal())]
        for place, seed in enumerate(dict.fromkeys(seeds or known)):
            folder = of_row / str(seed)
            base = [
                *map(str, files),
                *_as_arguments(own | {"seed": seed, "output_folder": folder}),
                *options,
            ]
            run = Run(row["name"], seed, folder, base, table["decode"], table["metric"])
            found.append((place, run))
    return [run for _, run in sorted(found, key=lambda item: item[0])]


def _as_arguments(options):
    # JSON is YAML, which has other words than Python for None, True and False.
    plain = {
        key: json.dumps(value, ensure_ascii=False, default=str)
        if value is None or isinstance(value, (bool, list, dict))
        else value
        for key, value in options.items()
    }
    return [f"--{key}={value}" for key, value in plain.items()]


def _as_options(command):
    """The options of a command, as values; its script and recipe are among them."""
    start = next((place for place, part in enumerate(command) if part.endswith(".py")), 0)
    files = [part for part in command[start : start + 2] if not part.startswith("--")]
    options, key = {}, None
    for name, file in zip(("script", "recipe"), files):
        options[name] = "/".join(Path(file).parts[-3:])  # wherever the repository is
    for part in command[start + len(files) :]:
        if part.startswith("--"):
            key, equals, value = part.removeprefix("--").partition("=")
            options[key] = _plain(value) if equals else "given"
        elif key is not None:  # --key value
            options[key] = _plain(part)
    return options


def _plain(text):
    """1e-3 is 0.001."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _as_folder(name):
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.")


def collect(table, runs) -> list[dict]:
    """What the trainings gave, row by row.

    Arguments
    ---------
    table : dict
        As from `read`.
    runs : list of Run

    Returns
    -------
    list of dict
        One a row of the table, with what is not known None:

        name : str
        seeds, done : lists of int
            All, and those that have results.
        commits : list of str
            By which they were trained, "unknown" being one.
        params : int
        tests : dict
            Test to dict: published, mean, seeds_interval (half its width, see `half_width`),
            speakers_interval (low, high), values (by seed); in percent.
        minutes, gpu_hours, memory_gb : float
            Of a training, the first two are means over the seeds: its time, that times its GPUs,
            and peak memory in 10^9 bytes, per GPU if on GPUs.
        published : dict
            gpu_hours and memory_gb.
    """
    rows = []
    for row in table["rows"]:
        own = sorted((run for run in runs if run.row == row["name"]), key=lambda run: run.seed)
        contents = {run: found for run in own if (found := run.results())}
        current = {run: run.tests()[0] for run in contents}
        tests = {}
        for test in table["tests"]:
            scored = {run: tested[test] for run, tested in current.items() if test in tested}
            values = {r.seed: scores[table["metric"]] for r, scores in scored.items()}
            known = [value for value in values.values() if value is not None]
            tests[test] = {
                "published": row["published"].get(test),
                "mean": _mean(known),
                "seeds_interval": half_width(known),
                "speakers_interval": _over_speakers(scored, test, table["metric"]),
                "values": values,
            }
        seconds = [c["train_seconds"] for c in contents.values() if c.get("train_seconds")]
        gpu_seconds = [
            c["train_seconds"] * (c.get("processes") or 1)
            for c in contents.values()
            if c.get("train_seconds") and str(c.get("device")).startswith("cuda")
        ]
        peaks = [c["peak_memory_bytes"] for c in contents.values() if c.get("peak_memory_bytes")]
        rows.append(
            {
                "name": row["name"],
                "seeds": [run.seed for run in own],
                "done": [run.seed for run in contents],
                "commits": sorted({str(c.get("commit") or "unknown") for c in contents.values()}),
                "params": next((c.get("params") for c in contents.values()), None),
                "tests": tests,
                "minutes": _mean([value / 60 for value in seconds]),
                "gpu_hours": _mean([value / 3600 for value in gpu_seconds]),
                "memory_gb": max(peaks) / 1e9 if peaks else None,
                "published": {key: row["published"].get(key) for key in _COSTS},
            }
        )
    return rows


def notes(table, runs) -> list[str]:
    """A line for each test set that no run has, and for tests that are not those asked for.

    Arguments
    ---------
    table : dict
        As from `read`.
    runs : list of Run
    """
    known, others = {}, {}
    for run in runs:
        known |= (run.results() or {"tests": {}})["tests"]
        for test, differs in run.tests()[1].items():
            if test in table["tests"]:
                others.setdefault(differs, {})[run.title] = None
    return [
        *(
            f"no run has the test set {test!r} of the table; there are {', '.join(known)}"
            for test in table["tests"]
            if known and test not in known
        ),
        *(
            f"left out, as tested with another {differs}: {'; '.join(titles)}"
            for differs, titles in others.items()
        ),
    ]


def other_corpora(runs) -> list[str]:
    """A line for each --data_folder that results are of, if it is not that of the runs now.

    Where they have none now, all results should be of one. It may be the same corpus elsewhere.

    Arguments
    ---------
    runs : list of Run
    """
    now, done = set(), {}
    for run in runs:
        now |= _corpora([run.base])
        found = run.results() or {"tests": {}}
        commands = [content.get("command", "") for content in (found, *found["tests"].values())]
        for folder in _corpora(map(shlex.split, commands)):
            done.setdefault(folder, []).append(run.title)
    if len(now | done.keys()) < 2:
        return []
    return [
        f"done with --data_folder={folder}: {'; '.join(titles)}"
        for folder, titles in done.items()
        if folder not in now
    ]


def _corpora(commands):
    found = (_as_options(command).get("data_folder") for command in commands)
    return {os.path.normpath(str(folder)) for folder in found if folder is not None}


def half_width(values) -> float | None:
    """Half the width of the 95 % interval of a mean, by Student's distribution; None for one value.

    Example
    -------
    >>> round(half_width([7.0, 8.0, 9.0]), 2)
    2.48
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float(t.ppf(0.975, len(values) - 1)) * math.sqrt(variance / len(values))


def _mean(values):
    return sum(values) / len(values) if values else None


def _over_speakers(scored, test, metric):
    """The bootstrap's interval of the mean over seeds: the same speakers are drawn for all."""
    counts, speakers, ids = [], [], []
    for run, scores in scored.items():
        # In chunks it is the same set.
        references = run.folder / "manifests" / f"{test.split('_chunk')[0]}.csv"
        hypotheses = run.folder / f"hypotheses_{test}.txt"
        if not references.is_file() or not hypotheses.is_file():
            return None
        references, texts = transcripts.read(references), transcripts.read(hypotheses).texts
        try:
            found = metrics.count(references.texts, texts)
        except InputError as error:
            raise InputError(f"{hypotheses}: {error}") from None
        counted, rate = getattr(found.scores(), metric), scores[metric]
        if rate is not None and not math.isclose(counted, rate, abs_tol=1e-6):
            raise InputError(
                f"{hypotheses}: its {metric} is {counted}, and that of results.json {rate}; test "
                f"again: {shlex.join(['python', *run.base, '--test_only'])}"
            )
        of_words = metric == "wer"
        counts += zip(
            found.errors if of_words else found.character_errors,
            found.words if of_words else found.characters,
        )
        ids += found.ids
        speakers += [(references.speakers or {}).get(i, i) for i in found.ids]
    if not counts:
        return None
    # One speaker alone would always be drawn again.
    blocks = speakers if len(set(speakers)) > 1 else ids
    sums = bootstrap.resampled_sums(bootstrap.by_block(counts, blocks))
    low, high = bootstrap.interval(bootstrap.percent(sums[:, 0], sums[:, 1]))
    return None if math.isnan(low) else (low, high)


def write(table, rows, path) -> str:
    """Writes a table as `path`.md, .csv and .png; returns the Markdown.

    Arguments
    ---------
    table : dict
        As from `read`.
    rows : list of dict
        As from `collect`.
    path : path
        Without a suffix.
    """
    text = markdown(table, rows)
    path = Path(path)
    write_whole(path.with_name(f"{path.name}.md"), text)
    write_whole(path.with_name(f"{path.name}.csv"), as_csv(table, rows))
    image = io.BytesIO()
    figure(table, rows).savefig(image, format="png")
    write_whole(path.with_name(f"{path.name}.png"), image.getvalue())
    return text


def markdown(table, rows) -> str:
    """A table for people; what is in its cells is said below it."""
    columns = [("model", lambda row: row["name"]), ("M parameters", _params)]
    for test, title in table["tests"].items():
        unit = f"{title} {table['metric'].upper()} %"
        if any(row["tests"][test]["published"] is not None for row in rows):
            columns.append(
                (
                    f"{unit}, published",
                    lambda row, test=test: _number(row["tests"][test]["published"]),
                )
            )
        columns.append((unit, lambda row, test=test: _rate(row["tests"][test])))
    columns.append(("minutes", lambda row: _number(row["minutes"], ".1f")))
    for key, title in _COSTS.items():
        if any(row["published"][key] is not None for row in rows):
            columns.append(
                (f"{title}, published", lambda row, key=key: _number(row["published"][key], "g"))
            )
        if key != "gpu_hours" or any(row[key] is not None for row in rows):
            columns.append((title, lambda row, key=key: _number(row[key], ".1f")))
    columns.append(("seeds", _seeds))
    lines = [f"# {table['title']}", ""]
    lines.append(_line(title for title, _ in columns))
    lines.append("|---" * len(columns) + "|")
    lines += [_line(cell(row) for _, cell in columns) for row in rows]
    lines += ["", _EXPLAINED]
    if mixed := [row["name"] for row in rows if len(row["commits"]) > 1]:
        lines += ["", f"Seeds trained by different commits: {'; '.join(mixed)}."]
    note = " ".join(table["note"].split())
    return "\n".join([*lines, *(["", note] if note else [])]) + "\n"


def _line(cells):
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _params(row):
    return _number(row["params"] and row["params"] / 1e6, ".1f")


def _seeds(row):
    done, seeds = len(row["done"]), len(row["seeds"])
    if not done:
        return "not run"
    return str(seeds) if done == seeds else f"{done} of {seeds}"


def _rate(scores):
    if scores["mean"] is None:
        return "-"
    text = _number(scores["mean"])
    if scores["seeds_interval"] is not None:
        text += f" ± {scores['seeds_interval']:.2f}"
    if scores["speakers_interval"] is not None:
        text += " ({:.1f}–{:.1f})".format(*scores["speakers_interval"])
    return text


def _number(value, form=".2f"):
    return "-" if value is None else format(value, form)


def as_csv(table, rows) -> str:
    """A table for programs: the same figures unrounded, empty where not known."""
    flat = []
    for row in rows:
        line = {"model": row["name"], "params": row["params"]}
        line |= {"seeds": " ".join(map(str, row["done"])), "seeds_wanted": len(row["seeds"])}
        line["commits"] = " ".join(row["commits"])
        for test in table["tests"]:
            scores, name = row["tests"][test], f"{test}_{table['metric']}"
            low, high = scores["speakers_interval"] or (None, None)
            line[f"{name}_published"] = scores["published"]
            line[name] = scores["mean"]
            line[f"{name}_seeds_half_width"] = scores["seeds_interval"]
            line[f"{name}_speakers_low"], line[f"{name}_speakers_high"] = low, high
            line[f"{name}_values"] = " ".join(map(str, scores["values"].values()))
        line["minutes"] = row["minutes"]
        for key in _COSTS:
            line |= {f"{key}_published": row["published"][key], key: row[key]}
        flat.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def figure(table, rows):
    """A table as a `matplotlib.figure.Figure`: a panel a test, and those of time and memory."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    time = "gpu_hours" if any(row["gpu_hours"] is not None for row in rows) else "minutes"
    panels = [*table["tests"], time, "memory_gb"]
    titles = {**table["tests"], "minutes": "minutes of training", **_COSTS}
    names = [_no_formula(row["name"]) for row in rows]
    places = range(len(rows), 0, -1)
    widths = [3.2 if panel in table["tests"] else 1.8 for panel in panels]
    size = (2.2 + sum(widths), 1.3 + 0.32 * len(rows))
    whole = Figure(figsize=size, dpi=120, layout="constrained", facecolor="white")
    shape = {"sharey": True, "squeeze": False, "width_ratios": widths}
    for axes, panel in zip(whole.subplots(1, len(panels), **shape)[0], panels):
        for place, row in zip(places, rows):
            if panel in table["tests"]:
                scores = row["tests"][panel]
                published, mean, error = (
                    scores[key] for key in ("published", "mean", "seeds_interval")
                )
                seeds = [value for value in scores["values"].values() if value is not None]
                if scores["speakers_interval"] is not None:
                    low, high = scores["speakers_interval"]
                    axes.barh(place, high - low, 0.5, low, color=_SPEAKERS, zorder=1.5)
                axes.plot(seeds, [place] * len(seeds), ".", color="#7FA8D1", markersize=5, zorder=2)
            else:
                published, mean, error = row["published"].get(panel), row[panel], None
            if published is not None:
                axes.scatter([published], [place], s=34, zorder=3, **_PUBLISHED)
            if mean is not None:
                axes.errorbar([mean], [place], xerr=error, fmt="o", color="#1F4E8C", markersize=4,
                              capsize=2, zorder=4)  # fmt: skip
        axes.set_title(_no_formula(titles[panel]), fontsize=10)
        if panel in table["tests"]:
            axes.set_xlabel(f"{table['metric'].upper()} %")
        else:
            axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
        axes.grid(True, color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(list(places), names)
        axes.set_ylim(0.4, len(rows) + 0.6)
    marks = [axes.scatter([], [], color="#1F4E8C", s=16, label="ours: mean, 95 % over seeds")]
    if any(score["speakers_interval"] for row in rows for score in row["tests"].values()):
        marks.append(Patch(color=_SPEAKERS, label="95 % over speakers"))
    known = [row["published"] for row in rows]
    known += [{"test": scores["published"]} for row in rows for scores in row["tests"].values()]
    if any(value is not None for published in known for value in published.values()):
        marks.append(axes.scatter([], [], s=34, label="published", **_PUBLISHED))
    whole.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    whole.suptitle(_no_formula(table["title"]), fontsize=11)
    return whole


def _no_formula(text):
    """For matplotlib, to which what is between two dollars is one."""
    return text.replace("$", r"\$")
