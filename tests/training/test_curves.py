"""The learning curve's file, and its picture."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from summarymixing.errors import InputError
from summarymixing.training.curves import COLUMNS, append, compare, draw, read


def run(epochs=30, wer=True):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 80 / epoch, "valid_loss": 90 / epoch, "lr": 1e-3}
        row["valid_accuracy"] = 1 - 0.9 / epoch
        if wer and epoch % 2 == 0:
            row["valid_wer"] = 100 / epoch
        rows.append(row)
    return rows


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved meanwhile."""
    seen = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def test_rows_come_back(tmp_path):
    path = tmp_path / "run" / "curve.csv"
    append(path, 1, step=100, seconds=12.5, lr=1.23456789e-5, train_loss=3.25)
    append(path, 2, step=200, seconds=25, valid_wer=np.float32(50), valid_loss=torch.tensor(0.5))
    first, second = read(path)
    assert list(first) == list(COLUMNS)
    assert (first["epoch"], first["step"], first["seconds"]) == (1, 100, 12.5)
    assert first["lr"] == pytest.approx(1.23456789e-5, rel=1e-7)
    assert first["valid_wer"] is None and second["lr"] is None
    assert (second["valid_wer"], second["valid_loss"]) == (50, 0.5)
    assert isinstance(second["epoch"], int)
    assert path.read_text().startswith("epoch,step,seconds,lr,train_loss,valid_loss,")
    assert [item.name for item in path.parent.iterdir()] == ["curve.csv"]


def test_resumed_run_replaces_the_epochs_it_repeats(tmp_path):
    path = tmp_path / "curve.csv"
    for epoch in range(1, 6):
        append(path, epoch, train_loss=10 - epoch)
    append(path, 3, train_loss=0.5)
    # Epochs 4 and 5 belong to the lost branch of the run.
    assert [(row["epoch"], row["train_loss"]) for row in read(path)] == [(1, 9), (2, 8), (3, 0.5)]
    append(path, 4, train_loss=0.25)
    assert [row["epoch"] for row in read(path)] == [1, 2, 3, 4]


def test_further_columns_may_come_later(tmp_path):
    path = tmp_path / "curve.csv"
    append(path, 1, train_loss=1)
    append(path, 2, valid_perplexity=7.5)
    assert [row["valid_perplexity"] for row in read(path)] == [None, 7.5]
    assert list(read(path)[0]) == [*COLUMNS, "valid_perplexity"]


def test_nan_survives_the_file(tmp_path):
    append(tmp_path / "curve.csv", 1, train_loss=float("nan"), valid_loss=math.inf)
    (row,) = read(tmp_path / "curve.csv")
    assert math.isnan(row["train_loss"]) and row["valid_loss"] == math.inf


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "first line must name an epoch column"),
        ("step,loss\n1,2\n", "first line must name an epoch column"),
        ("epoch,loss\n1,2\n2,x\n", "line 3: every value must be a number"),
        ("epoch,loss\n,2\n", "line 2: every value must be a number"),
        ("epoch,loss\n1\n", "line 2: must have 2 values"),
        ("epoch,loss\n1,2,3\n", "line 2: must have 2 values"),
    ],
)
def test_read_says_where_a_file_is_wrong(tmp_path, content, message):
    path = tmp_path / "curve.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=f"curve.csv.*{message}"):
        read(path)
    with pytest.raises(InputError):
        append(path, 1, train_loss=1)
    assert path.read_text() == content


def test_picture_shows_the_values(tmp_path, figures):
    for row in run():
        append(tmp_path / "curve.csv", **row)
    draw(tmp_path / "curve.csv", tmp_path / "my-run" / "curve.png")
    png = (tmp_path / "my-run" / "curve.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    (figure,) = figures
    loss, wer, rate = figure.axes
    assert loss.get_title() == "my-run"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "valid"]
    assert loss.lines[1].get_ydata()[-1] == pytest.approx(3)
    # Joined over the epochs that have no WER.
    assert list(wer.lines[0].get_xdata()) == list(range(2, 31, 2))
    assert wer.lines[0].get_ydata()[0] == 50
    assert wer.get_title(loc="left") == "best WER 3.33 % (epoch 30)"
    assert (loss.get_ylabel(), wer.get_ylabel()) == ("loss", "validation WER (%)")
    assert (rate.get_ylabel(), wer.get_xlabel()) == ("learning rate", "epoch")
    assert list(rate.lines[0].get_ydata()) == pytest.approx([1e-3] * 30)


def test_wer_is_logarithmic_only_over_a_wide_range(tmp_path, figures):
    draw(run(30), tmp_path / "wide.png")
    draw(run(6), tmp_path / "narrow.png")
    assert [figure.axes[1].get_yscale() for figure in figures] == ["log", "linear"]
    assert figures[1].axes[1].get_ylim()[0] == 0


def test_character_errors_are_drawn_with_those_of_words(tmp_path, figures):
    rows = [row | {"valid_cer": row["valid_wer"] / 4} for row in run(8)[1::2]]
    draw(rows, tmp_path / "curve.png")
    compare({"a": rows, "b": run(4)}, tmp_path / "curves.png")
    axes, together = figures[0].axes[1], figures[1].axes[1]
    assert axes.get_ylabel() == "validation WER and CER (%)"
    assert axes.get_title(loc="left") == "best WER 12.50 % (epoch 8), CER 3.12 % (epoch 8)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["WER", "CER"]
    # As many points as each has: WER and CER of the first, WER of the second.
    assert [len(line.get_xdata()) for line in together.lines] == [4, 4, 2, 0]
    assert together.lines[1].get_ydata()[-1] == 12.5 / 4
    assert together.get_ylabel() == "validation %: WER —, CER - -"
    assert axes.get_yscale() == together.get_yscale() == "log"


def test_accuracy_stands_in_for_the_wer(tmp_path, figures):
    draw(run(4, wer=False), tmp_path / "curve.png", title="run 1")
    axes = figures[0].axes
    assert axes[0].get_title() == "run 1"
    assert axes[1].get_ylabel() == "validation accuracy (%)"
    assert list(axes[1].lines[0].get_ydata()) == pytest.approx([10, 55, 70, 77.5])


@pytest.mark.parametrize(
    "rows",
    [
        [{"epoch": 1}],
        [{"epoch": 1, "train_loss": 2.0, "valid_wer": 0.0, "lr": 0.0}],
        [{"epoch": 1, "train_loss": float("nan"), "valid_wer": None}],
        [{"epoch": 1, "valid_wer": 0.0}, {"epoch": 2, "valid_wer": 100.0, "lr": math.inf}],
    ],
)
def test_sparse_runs_can_be_drawn(tmp_path, rows, recwarn):
    draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert not [str(warning.message) for warning in recwarn]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="no epoch to draw"):
        draw([], tmp_path / "curve.png")
    with pytest.raises(InputError, match="no such file"):
        draw(tmp_path / "missing.csv", tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_pyplot_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    draw(run(2), tmp_path / "curve.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_drawing_adds_nothing_to_a_log_of_everything(tmp_path):
    # A process of its own: fonts are looked for only once.
    code = """import logging, sys
from summarymixing.training.curves import draw
logging.basicConfig(level=logging.DEBUG)
draw([{"epoch": 1, "train_loss": 2.0}], sys.argv[1])
logging.getLogger("other").debug("that is all")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "curve.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("DEBUG", "INFO"))]
    assert lines == ["DEBUG:other:that is all"]
    assert (tmp_path / "curve.png").exists()


def test_runs_are_drawn_together(figures, tmp_path):
    compare({"a": run(), "b": run(20), "c": run(wer=False)}, tmp_path / "c.png", "Title")
    losses, rates = figures[-1].axes
    assert losses.get_title() == "Title"
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["a", "b", "c"]
    lengths = [len(line.get_xdata()) for line in losses.lines]
    assert lengths == [30, 30, 20, 20, 30, 30]
    assert losses.lines[3].get_ydata()[-1] == 90 / 20
    wers = rates.lines[::2]  # there are no CERs
    assert [list(line.get_ydata())[-1:] for line in wers] == [[100 / 30], [5], []]
    assert len({line.get_color() for line in wers}) == 3
    assert rates.get_ylabel() == "validation %: WER —"
    assert rates.get_yscale() == "log"
    compare({"c": run(wer=False)}, tmp_path / "c.png")
    assert len(figures[-1].axes) == 1


def test_the_command_that_draws_them(load_script, figures, tmp_path, capsys):
    main = load_script("compare_curves").main
    runs = [tmp_path / name / "1" for name in ("attention", "summary")]
    for folder in runs:
        append(folder / "curve.csv", 1, train_loss=2.0)
    runs[1] = runs[1] / "curve.csv"
    png = tmp_path / "c.png"

    def names(*options):
        main([*map(str, runs), f"--out={png}", *options])
        return [text.get_text() for text in figures[-1].axes[0].get_legend().get_texts()]

    def refused(*command):
        with pytest.raises(SystemExit) as caught:
            main([*map(str, command)])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert names() == ["attention", "summary"]
    assert capsys.readouterr().out == f"{png}\n" and png.read_bytes()[1:4] == b"PNG"
    assert names("--names", "x", "y") == ["x", "y"]
    del runs[0]
    assert names() == ["1"]
    runs.append(tmp_path / "attention" / "1")
    capsys.readouterr()
    assert "2 are expected, one a run, got 1" in refused(*runs, "--out=c.png", "--names", "x")
    assert "a name of its own" in refused(runs[0], runs[0], f"--out={png}")
    assert "no such file" in refused(tmp_path / "none", f"--out={png}")
    empty = tmp_path / "curve.csv"
    empty.write_text("epoch\n")
    assert "there is no epoch to draw" in refused(empty, f"--out={png}")
    assert f"{tmp_path}: cannot be written (Is a" in refused(runs[0], f"--out={tmp_path}")
