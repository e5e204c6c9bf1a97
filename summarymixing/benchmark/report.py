"""Measured rows as a table of ratios, beside the project's targets, and as the paper's figure."""

import statistics
from dataclasses import dataclass, fields
from itertools import pairwise

from summarymixing.benchmark.cases import HOSTS, MIXERS, PRODUCTS, Case
from summarymixing.benchmark.measure import OUT_OF_MEMORY

CASE_FIELDS = tuple(field.name for field in fields(Case))
BASELINES = ("RoPEMHA", "none")
HOST, HOST_FLOOR = "speechbrain/RoPEMHA", "speechbrain/none"


def case_of(row):
    """The case of a row."""
    return Case(**{name: row[name] for name in CASE_FIELDS})


def by_case(rows):
    """{case: {mixer: row}}, in the order of the rows."""
    cases = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row["mixer"]] = row
    return cases


@dataclass(frozen=True)
class Spread:
    """A median with its lowest and highest value."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def spread(values):
    """The `Spread` of some values."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def time_ratio(row, other):
    """Time of one side as a share of another's, turn by turn; None if one has no times.

    Example
    -------
    >>> str(time_ratio({"times": [1, 2, 3]}, {"times": [2, 2, 2]}))
    '1.00 (0.50–1.50)'
    """
    if not (row and other and row.get("times") and other.get("times")):
        return None
    return spread(a / b for a, b in zip(row["times"], other["times"]))


def memory_ratio(row, other):
    """Peak memory of one side as a share of another's, or None."""
    if not (row and other and row.get("peak_bytes") and other.get("peak_bytes")):
        return None
    ratio = row["peak_bytes"] / other["peak_bytes"]
    return Spread(ratio, ratio, ratio)


def rate_share(row, products):
    """Operations a second as a share of the bare products', turn by turn, or None.

    Example
    -------
    >>> row, products = {"times": [4.0], "flops": 6}, {"times": [1.0], "flops": 2}
    >>> rate_share(row, products).median
    0.75
    """
    ratio = time_ratio(products, row)
    if ratio is None or "flops" not in row:
        return None
    more = row["flops"] / products["flops"]
    return Spread(*(more * value for value in (ratio.median, ratio.low, ratio.high)))


HEAD = (
    "encoder", "part", "step", "precision", "graph", "d", "dropout", "padding", "s", "batch",
    "mixer", "ms", "× real time",
    f"to {HOST}", f"to {HOST_FLOOR}", "to RoPEMHA", "to none", "of products", "MiB", "to RoPEMHA",
)  # fmt: skip


def table(rows):
    """The rows as a table in Markdown.

    "× real time" is time over seconds of audio; "to" are ratios of times, then of memory, and "of
    products" is the share of the rate of bare matrix products; medians, lowest and highest.
    """
    lines = [HEAD, ["---"] * len(HEAD)]
    for case, sides in by_case(rows).items():
        for mixer, row in sides.items():
            if mixer == PRODUCTS:
                continue
            cells = [
                case.encoder, _part(case), case.step, case.precision, case.graph,
                case.d_model, f"{case.dropout:g}", f"{case.padding:g}", f"{case.seconds:g}",
                case.batch, mixer,
            ]  # fmt: skip
            if "failed" in row:
                cells += [row["failed"], *[""] * (len(HEAD) - len(cells) - 1)]
            else:
                median = statistics.median(row["times"])
                cells += [
                    f"{1000 * median:.1f}",
                    f"{median / row['audio']:.2g}",
                    *(
                        time_ratio(row, sides.get(other)) or ""
                        for other in (HOST, HOST_FLOOR, *BASELINES)
                    ),
                    rate_share(row, sides.get(PRODUCTS)) or "",
                    f"{row['peak_bytes'] / 2**20:.0f}",
                    _short(memory_ratio(row, sides.get("RoPEMHA"))),
                ]
            lines.append(cells)
    return _markdown(lines)


def by_length(rows):
    """Tables in Markdown of ratios against length, one for each setting measured at several.

    Columns are seconds × utterances; empty is what was not measured. Rows are times: of
    SummaryMixing's kinds, then of what they are compared with, to RoPE attention; then
    SummaryMixing's peak memory, and its share of the rate of bare matrix products.
    """
    settings = {}
    for case, sides in by_case(rows).items():
        settings.setdefault(_setting(case), {})[case.seconds, case.batch] = sides
    return "\n\n".join(
        _against_length(setting, {length: lengths[length] for length in sorted(lengths)})
        for setting, lengths in settings.items()
        if len(lengths) > 1
    )


def _against_length(setting, lengths):
    pairs = [("SummaryMixing", other) for other in (*BASELINES, *HOSTS, "RelPosMHAXL")]
    pairs += [(mixer, "RoPEMHA") for mixer in MIXERS if mixer not in ("SummaryMixing", "RoPEMHA")]
    lines = [[setting, *(f"{seconds:g} s × {batch}" for seconds, batch in lengths)]]
    lines.append(["---"] * len(lines[0]))

    def add(name, mixer, other, ratio):
        cells = []
        for sides in lengths.values():
            both = [sides[side] for side in (mixer, other) if side in sides]
            failed = [f"{row['mixer']}: {row['failed']}" for row in both if "failed" in row]
            cells.append(len(both) == 2 and ("; ".join(failed) or ratio(*both)) or "")
        if any(cells):
            lines.append([name, *cells])

    for mixer, other in pairs:
        add(f"{mixer} to {other}", mixer, other, time_ratio)
    for other in ("RoPEMHA", "RelPosMHAXL"):
        add(
            f"SummaryMixing to {other}, peak memory", "SummaryMixing", other,
            lambda one, other: _short(memory_ratio(one, other)),
        )  # fmt: skip
    add("SummaryMixing, of the rate of products", "SummaryMixing", PRODUCTS, rate_share)
    return _markdown(lines)


def _setting(case):
    """What cases of all lengths have in common, in words."""
    return (
        f"{case.encoder} {_part(case)}, {case.step}, {case.precision}, {case.graph}, "
        f"d {case.d_model}, padding {case.padding:g}, dropout {case.dropout:g}"
    )


def _markdown(lines):
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def recipe_table(rows):
    """Training steps of recipes as a table in Markdown.

    "to RoPEMHA" is of times, then of memory; "loader" is the time in which the recipe's data
    workers read a batch as a share of the step that they have to keep up with.
    """
    head = (
        "recipe", "s a batch", "precision", "mixer", "s a step", "× real time", "to RoPEMHA",
        "MiB", "to RoPEMHA", "loader",
    )  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in rows:
        rope = next(
            other
            for other in [*rows, {}]
            if not other or other["mixer"] == "RoPEMHA" and recipe_of(other) == recipe_of(row)
        )
        name = " ".join([row["recipe"], *row["overrides"]])
        cells = [name, f"{row['batch_seconds']:g}"]
        if "failed" in row:
            cells += ["", row["mixer"], row["failed"], "", "", "", "", ""]
        else:
            median = statistics.median(row["times"])
            reading = spread(
                read / row["workers"] / step for read, step in zip(row["read_times"], row["times"])
            )
            cells += [
                row["precision"], row["mixer"], f"{median:.3f}", f"{median / row['audio']:.2g}",
                time_ratio(row, rope) or "", f"{row['peak_bytes'] / 2**20:.0f}",
                _short(memory_ratio(row, rope)), f"{100 * reading.median:.0f} %",
            ]  # fmt: skip
        lines.append(cells)
    return _markdown(lines)


def recipe_of(row):
    """What rows of a recipe have in common that took turns."""
    return row["recipe"], tuple(row["overrides"]), row["batch_seconds"]


def _short(ratio):
    return f"{ratio.median:.2f}" if ratio else ""


@dataclass(frozen=True)
class Target:
    """What a ratio of a mixer has to be in the cases with these fields; `at_least` or at most."""

    device: str
    measure: str  # "time", "memory" or "rate"
    other: str
    limit: float
    where: dict
    mixer: str = "SummaryMixing"
    at_least: bool = False

    def found(self, rows):
        """(case, Spread) of every case that the target is about and that was measured.

        Of one in which a side failed, (case, str): which, and why.
        """
        ratio = {"time": time_ratio, "memory": memory_ratio, "rate": rate_share}[self.measure]
        for case, sides in by_case(rows).items():
            if all(getattr(case, name) == value for name, value in self.where.items()):
                found = ratio(sides.get(self.mixer), sides.get(self.other))
                if found is not None:
                    yield case, found
                for name in (self.mixer, self.other):
                    if "failed" in sides.get(name, {}):
                        yield case, f"{name}: {sides[name]['failed']}"

    def met(self, found):
        """Whether a median is what it has to be."""
        median = found.median
        return median >= self.limit if self.at_least else median <= self.limit

    def __str__(self):
        what = {
            "time": f"time to {self.other}",
            "memory": f"memory to {self.other}",
            "rate": "share of the matrix rate",
        }[self.measure]
        where = ", ".join(
            f"{value:g} s" if name == "seconds" else f"{name} {value:g}"
            if isinstance(value, (int, float)) else value
            for name, value in self.where.items()
        )  # fmt: skip
        return f"{what}, {where}: target {'≥' if self.at_least else '≤'} {self.limit:.2f}"


_CPU = {"encoder": "conformer", "part": "layers", "precision": "float32", "d_model": 512}
_CPU_TRAINING = {**_CPU, "step": "training", "padding": 0.8, "batch": 2}
_GPU = {"encoder": "conformer", "d_model": 512}
_GPU_TRAINING = {
    **_GPU, "part": "encoder", "precision": "bf16", "step": "training", "graph": "eager"
}  # fmt: skip
TARGETS = (
    *(
        Target("cpu", "time", other, limit, {**_CPU_TRAINING, "seconds": seconds})
        for other in ("RoPEMHA", HOST)
        for seconds, limit in ((10, 0.85), (40, 0.50), (120, 0.20))
    ),
    *(
        Target("cpu", "time", other, limit, {**_CPU, "step": step})
        for other in ("none", HOST_FLOOR)
        for step, limit in (("forward", 1.20), ("training", 1.22))
    ),
    Target("cpu", "rate", PRODUCTS, 0.85, {**_CPU, "step": "forward"}, at_least=True),
    *(
        Target("cuda", "time", other, limit, {**_GPU_TRAINING, "seconds": seconds})
        for other in ("RoPEMHA", HOST)
        for seconds, limit in ((10, 0.90), (40, 0.75), (100, 0.60))
    ),
    Target("cuda", "time", "RelPosMHAXL", 0.45, {**_GPU_TRAINING, "seconds": 100}),
    Target("cuda", "memory", "RoPEMHA", 0.60, {**_GPU_TRAINING, "seconds": 100}),
    Target("cuda", "memory", "RelPosMHAXL", 0.30, {**_GPU_TRAINING, "seconds": 100}),
    *(
        Target("cuda", "time", other, limit, {**_GPU, "step": step})
        for other in ("none", HOST_FLOOR)
        for step, limit in (("forward", 1.20), ("training", 1.22))
    ),
    Target(
        "cuda", "rate", PRODUCTS, 0.45,
        {**_GPU, "part": "layers", "step": "training", "precision": "bf16", "graph": "compile"},
        at_least=True,
    ),
)  # fmt: skip


def targets(rows, device):
    """A line for each target on this kind of device ("cpu" or "cuda"), with what was measured."""
    lines = []
    for target in TARGETS:
        if target.device != device:
            continue
        found = list(target.found(rows))
        if not found:
            lines.append(f"{target}: not measured yet")
        for case, value in found:
            rest = ", ".join(
                text
                for name, text in (
                    ("part", case.part),
                    ("precision", case.precision),
                    ("seconds", f"{case.seconds:g} s"),
                    ("graph", case.graph),
                    ("padding", f"padding {case.padding:g}"),
                    ("dropout", f"dropout {case.dropout:g}"),
                )
                if name not in target.where
            )
            if isinstance(value, Spread):
                met = target.met(value)
                if f"{value.median:.2f}" == f"{target.limit:.2f}" and not met:
                    value = f"{value}, in full {value.median:.4f},"  # not to look like the limit
                value = f"{value} {'met' if met else 'MISSED'}"
            lines.append(f"{target}: {value} ({rest})")
    return lines + [_twenty_minutes(rows)] * (device == "cuda")


def _twenty_minutes(rows):
    what = "twenty minutes in one sample, where RoPEMHA runs out of memory"
    for case, sides in by_case(rows).items():
        if (case.part, case.step, case.seconds, case.batch) == ("encoder", "training", 1200, 1):
            ours, rope = (sides.get(mixer, {}) for mixer in ("SummaryMixing", "RoPEMHA"))
            if ours and rope:
                found = [
                    f"{row['mixer']} {row.get('failed') or _mebibytes(row)}" for row in (ours, rope)
                ]
                met = "times" in ours and rope.get("failed") == OUT_OF_MEMORY
                return f"{what}: {', '.join(found)}: {'met' if met else 'MISSED'}"
    return f"{what}: not measured yet"


def _mebibytes(row):
    return f"{row['peak_bytes'] / 2**20:.0f} MiB"


def failures(content):
    """A line for each side that failed for another reason than memory.

    Arguments
    ---------
    content : dict
        Of a file of results.
    """
    for row in [*content["rows"], *content["recipes"]]:
        reason = row.get("failed", OUT_OF_MEMORY)
        if reason != OUT_OF_MEMORY:
            keys = "recipe encoder part step precision graph seconds batch_seconds".split()
            where = " ".join(f"{row[key]}" for key in keys if key in row)
            yield f"{row['mixer']}, {where} s: {reason}"


def plot(contents, path):
    """Draws time, memory and real-time factor against length, one line a mixer.

    Arguments
    ---------
    contents : list of dict
        Of files of results: their "rows", and their "machine" with its "device". Each machine,
        encoder, part, step, precision, graph and dropout has its own row of pictures, those
        measured at one or two lengths only if all are. Mixers that ran out of memory end at their
        last point, and those measured at one length of several have none.
    path : str
        Of the PNG.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    colours = dict(zip(MIXERS, [*colormaps["tab10"].colors, *colormaps["Dark2"].colors]))

    groups = {}
    for content in contents:
        for case, sides in by_case(content["rows"]).items():
            name = f"{_setting(case)}: {content['machine']['device']}"
            for mixer, row in sides.items():
                if mixer != PRODUCTS and "failed" not in row:
                    groups.setdefault(name, {}).setdefault(mixer, []).append(row)
    lengths = {
        name: {row["seconds"] for rows in mixers.values() for row in rows}
        for name, mixers in groups.items()
    }
    if any(len(seconds) > 2 for seconds in lengths.values()):
        groups = {name: groups[name] for name in groups if len(lengths[name]) > 2}
    measures = {
        "seconds a step": lambda row: statistics.median(row["times"]),
        "peak memory, MiB": lambda row: row["peak_bytes"] / 2**20,
        "time / audio": lambda row: statistics.median(row["times"]) / row["audio"],
    }
    figure = Figure(figsize=(13, 3.6 * max(1, len(groups))), layout="constrained")
    grid = figure.subplots(max(1, len(groups)), 3, squeeze=False)
    for line, (name, mixers) in zip(grid, groups.items()):
        seconds = sorted(lengths[name])
        for axes, (measure, value) in zip(line, measures.items()):
            for mixer, rows in mixers.items():
                rows = sorted(rows, key=lambda row: row["seconds"])
                xs, ys = [row["seconds"] for row in rows], [value(row) for row in rows]
                if len(xs) > 1 or len(seconds) == 1:
                    colour = colours[mixer.removeprefix("speechbrain/")]
                    style = "o--" if MIXERS[mixer].host else "o-"
                    axes.plot(xs, ys, style, color=colour, label=mixer, markersize=3)
            axes.set(xlabel="seconds of audio", ylabel=measure, xscale="log")
            # Numbers that would overlap give way to the longer one.
            near = {x for x, longer in pairwise(seconds) if longer < 1.4 * x}
            axes.set_xticks(seconds, ["" if x in near else f"{x:g}" for x in seconds])
            axes.xaxis.set_minor_locator(NullLocator())
            if measure == "time / audio":
                axes.set_ylim(bottom=0)
            else:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
        line[0].set_title(name, loc="left", fontsize=10)
        line[-1].legend(fontsize=7, handlelength=3)  # long enough to show dashes
    figure.savefig(path, dpi=120)


def _part(case):
    layers = f"{case.layers} layer{'s' * (case.layers > 1)}"
    return {"cell": "cell", "layers": layers, "encoder": f"encoder of {layers}"}[case.part]
