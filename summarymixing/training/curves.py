"""The learning curve of a run: one row an epoch in `curve.csv`, and pictures of one or several."""

import csv
import logging
import math
import os
from io import BytesIO, StringIO
from pathlib import Path

from summarymixing.errors import InputError
from summarymixing.files import write_whole

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "lr",
    "train_loss",
    "valid_loss",
    "valid_accuracy",
    "valid_wer",
    "valid_cer",
)

# Above this ratio of worst to best WER, a linear axis flattens the end, which is what matters.
_LOG_ABOVE = 8

_TRAIN, _VALID, _CER, _RATE = "#4477AA", "#CC3311", "#EE7733", "#999999"
_ERRORS = (("valid_wer", "WER", "-", _VALID), ("valid_cer", "CER", "--", _CER))
# Runs that are compared: Paul Tol's bright colours.
_EACH = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")


def append(path: str | os.PathLike, epoch: int, **values: float | None) -> None:
    """Add the row of an epoch.

    A run that resumes repeats epochs it had already logged: the rows from `epoch` on are replaced.

    Arguments
    ---------
    path : path
        The CSV file, made when missing.
    epoch : int
    **values : float or None
        The other columns, `COLUMNS` or more; None or left out where not measured. `valid_accuracy`
        is a share of 1, `valid_wer` and `valid_cer` are in percent.

    Raises
    ------
    InputError
        If the file is there and is not such a curve.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append(f"{folder}/curve.csv", 1, train_loss=3.5)
    ...     append(f"{folder}/curve.csv", 2, train_loss=2.5, valid_wer=80)
    ...     [(row["epoch"], row["valid_wer"]) for row in read(f"{folder}/curve.csv")]
    [(1, None), (2, 80.0)]
    """
    earlier = read(path) if Path(path).exists() else []
    rows = [row for row in earlier if row["epoch"] < epoch]
    rows.append({"epoch": int(epoch)} | values)
    names = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    text = StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def read(path: str | os.PathLike) -> list[dict]:
    """Rows of a curve, oldest first: column to number, or None where there is none.

    Raises
    ------
    InputError
        If there is no such file, it has no `epoch` column, or a value is not a number.

    Example
    -------
    >>> read("nowhere.csv")
    Traceback (most recent call last):
    summarymixing.errors.InputError: learning curve nowhere.csv: no such file
    """
    if not Path(path).is_file():
        raise InputError(f"learning curve {path}: no such file")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "epoch" not in (reader.fieldnames or []):
            raise InputError(f"learning curve {path}: the first line must name an epoch column")
        rows = []
        for row in reader:
            where = f"learning curve {path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{where}: must have {len(reader.fieldnames)} values")
            try:
                row = {name: float(value) if value else None for name, value in row.items()}
                rows.append(row | {"epoch": int(row["epoch"])})
            except (TypeError, ValueError, OverflowError) as error:
                raise InputError(f"{where}: every value must be a number, or empty") from error
    return rows


def draw(
    source: str | os.PathLike | list[dict],
    png_path: str | os.PathLike,
    title: str | None = None,
) -> None:
    """Draw the losses, and the error rates with the learning rate, over the epochs.

    Without any error rate the lower panel shows the validation accuracy instead.

    Arguments
    ---------
    source : path or list of dict
        A CSV file, or rows as `read` returns them.
    png_path : path
    title : str, optional
        Name of the experiment; by default of the folder that the picture is in.

    Raises
    ------
    InputError
        If the file cannot be read, or there is no row.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw([{"epoch": 1, "train_loss": 2.0}], f"{folder}/curve.png")
    ...     Path(folder, "curve.png").stat().st_size > 1000
    True
    """
    rows = source if isinstance(source, list) else read(source)
    if not rows:
        raise InputError("learning curve: there is no epoch to draw")
    figure, (upper, lower) = _panels(2)
    upper.set_title(title or Path(png_path).resolve().parent.name)
    _draw_losses(upper, rows)
    _draw_quality(lower, rows)
    _draw_rate(lower, rows)
    _save(figure, png_path)


def compare(
    curves: dict[str, str | os.PathLike | list[dict]], png_path: str | os.PathLike, title: str = ""
) -> None:
    """Draw several runs' losses over the epochs, and their error rates where one has any.

    Arguments
    ---------
    curves : dict
        Name of a run to its CSV file, or rows as `read` returns them.
    png_path : path
    title : str, optional

    Raises
    ------
    InputError
        If a file cannot be read, or a run has no epoch.

    Example
    -------
    >>> import tempfile
    >>> runs = {name: [{"epoch": 1, "train_loss": 2.0}] for name in ("with", "without")}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compare(runs, f"{folder}/curves.png")
    ...     Path(folder, "curves.png").stat().st_size > 1000
    True
    """
    curves = {
        name: source if isinstance(source, list) else read(source)
        for name, source in curves.items()
    }
    empty = [name for name, rows in curves.items() if not rows]
    if empty or not curves:
        raise InputError(f"learning curve {', '.join(empty)}: there is no epoch to draw")
    known = {
        f"{name} {'—' if line == '-' else '- -'}": values
        for column, name, line, _ in _ERRORS
        if (values := [value for rows in curves.values() for value in _known(rows, column)[1]])
    }
    figure, panels = _panels(2 if known else 1)
    panels[0].set_title(title)
    panels[0].set_ylabel("loss: training —, validation - -")
    for i, (name, rows) in enumerate(curves.items()):
        color = _EACH[i % len(_EACH)]
        for column, line, label in (("train_loss", "-", name), ("valid_loss", "--", None)):
            epochs, values = _known(rows, column)
            panels[0].plot(epochs, values, line, color=color, linewidth=1.4, label=label)
        for column, _, line, _ in _ERRORS if known else ():
            epochs, values = _known(rows, column)
            panels[1].plot(epochs, values, line, color=color, **_style(values))
    panels[0].legend(frameon=False, fontsize=8)
    if known:
        panels[1].set_ylabel(f"validation %: {', '.join(known)}")
        _percents(panels[1], sum(known.values(), []))
    _save(figure, png_path)


def _panels(number):
    # It lists every font of the machine at DEBUG level, which a run's log has.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # Slow to import, and needed once a run at most. The figure is made without pyplot, which would
    # choose a backend for the whole process.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3 * number), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]
    panels[-1].set_xlabel("epoch")
    integers = MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    panels[-1].xaxis.set_major_locator(integers)
    for axes in panels:
        axes.grid(True, which="major", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _save(figure, png_path):
    image = BytesIO()
    figure.savefig(image, format="png")
    write_whole(png_path, image.getvalue())


def _draw_losses(axes, rows):
    axes.set_ylabel("loss")
    for column, name, color in (("train_loss", "train", _TRAIN), ("valid_loss", "valid", _VALID)):
        epochs, values = _known(rows, column)
        if values:
            axes.plot(epochs, values, label=name, color=color, **_style(values))
    if axes.lines:
        axes.legend(frameon=False)


def _draw_quality(axes, rows):
    found = [(*_known(rows, column), *how) for column, *how in _ERRORS]
    found = [error for error in found if error[1]]
    if not found:
        epochs, values = _known(rows, "valid_accuracy")
        axes.set_ylabel("validation accuracy (%)")
        axes.plot(epochs, [100 * value for value in values], color=_VALID, **_style(values))
        return
    axes.set_ylabel(f"validation {' and '.join(name for _, _, name, *_ in found)} (%)")
    best = []
    for epochs, values, name, line, color in found:
        axes.plot(epochs, values, line, color=color, label=name, **_style(values))
        lowest = min(values)
        epoch = epochs[values.index(lowest)]
        axes.plot([epoch], [lowest], "o", markersize=8, markerfacecolor="none", color=color)
        best.append(f"{name} {lowest:.2f} % (epoch {epoch})")
    _percents(axes, [value for _, values, *_ in found for value in values])
    # A box over the curve's own corner would hide it: the numbers go above the panel.
    axes.set_title(f"best {', '.join(best)}", loc="left", fontsize=9, color=_VALID)
    if len(found) > 1:
        axes.legend(frameon=False, fontsize=8)


def _percents(axes, values):
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    low, high = min(values), max(values)
    if low <= 0 or high <= _LOG_ABOVE * low:
        axes.set_ylim(0, 1.08 * high or 1)
        return
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.25)
    # 1, 2, 5 times powers of ten, written out: people read percents, not exponents.
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_rate(axes, rows):
    epochs, values = _known(rows, "lr")
    if not values:
        return
    twin = axes.twinx()
    twin.plot(epochs, values, color=_RATE, linewidth=0.9, linestyle="--")
    twin.set_ylabel("learning rate", color=_RATE, fontsize=8)
    twin.tick_params(axis="y", colors=_RATE, labelsize=7)
    twin.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    twin.yaxis.get_offset_text().set(color=_RATE, fontsize=7)
    twin.set_ylim(0, 1.1 * max(values) or 1)
    for side, spine in twin.spines.items():
        spine.set_visible(side == "right")
        spine.set_color(_RATE)
    # The WER stays in front of it.
    axes.set_zorder(twin.get_zorder() + 1)
    axes.patch.set_visible(False)


def _known(rows, column):
    """Epochs and values of the rows that have a finite number in a column."""
    known = [
        (row["epoch"], float(row[column]))
        for row in rows
        if row.get(column) is not None and math.isfinite(row[column])
    ]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _style(values):
    # Markers show where a sparse curve was measured, and hide a dense one.
    return {"linewidth": 1.6, "marker": "o" if len(values) <= 40 else None, "markersize": 3.5}


def _cell(value):
    if value is None:
        return ""
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.8g}" if isinstance(value, float) else value
