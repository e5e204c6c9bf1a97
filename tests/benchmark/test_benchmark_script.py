"""scripts/benchmark.py: what it measures, keeps, skips, and shows."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from summarymixing import machine
from summarymixing.benchmark import report
from summarymixing.benchmark.measure import DeviceLostError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

TINY = ["--d_model=16", "--layers=1", "--repeats=2", "--threads=1"]


@pytest.fixture
def benchmark(load_script, capsys, tmp_path, monkeypatch):
    """benchmark(*arguments) → exit status, standard output, last line of the error output."""
    script = load_script("benchmark")
    monkeypatch.setattr(script, "limit_memory", lambda: None)  # it would hold for all tests
    monkeypatch.setattr("summarymixing.benchmark.measure.SECONDS_A_TURN", 0.0)

    def call(*arguments, json_file=tmp_path / "speed.json"):
        capsys.readouterr()
        status = 0
        try:
            script.main([f"--json={json_file}", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, (err.splitlines() or [""])[-1]

    call.main = script.main
    return call


def test_rows_are_kept_skipped_and_added_to(benchmark, tmp_path, monkeypatch):
    path = tmp_path / "speed.json"
    few = [*TINY, "--encoders=conformer", "--steps=forward", "--mixers=SummaryMixing"]
    status, out, _ = benchmark(*few, "--seconds", 1)
    assert status == 0
    first = json.loads(path.read_text())
    assert first["machine"]["device"] and first["machine"]["versions"]["torch"]
    assert [row["mixer"] for row in first["rows"]] == [
        "products", "none", "SummaryMixing", "RoPEMHA"
    ]  # fmt: skip
    assert "| SummaryMixing |" in out and "| products |" not in out

    benchmark(*few, "--seconds", 1, 2)
    both = json.loads(path.read_text())
    assert both["rows"][:4] == first["rows"]  # not measured again
    before = path.read_bytes()
    benchmark(*few, "--seconds", 2, 1)
    assert path.read_bytes() == before
    assert [row["seconds"] for row in both["rows"]] == [1] * 4 + [2] * 4
    assert len(both["commands"]) == 2

    turns = ["--repeats=3", "--again"]
    benchmark(*few, *turns, "--seconds", 1, f"--plot={tmp_path / 'a.png'}")
    again = json.loads(path.read_text())
    assert again["rows"][4:] == both["rows"][4:]  # of what is not named nothing is lost
    assert [len(row["times"]) for row in again["rows"]] == [3] * 4 + [2] * 4
    assert {row["commit"] for row in again["rows"]} == {machine.commit()}
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"

    benchmark(
        *TINY, "--encoders=conformer", "--steps=forward", "--mixers=hypermixing", "--seconds=1"
    )
    more = json.loads(path.read_text())["rows"]
    assert [row["mixer"] for row in more[:5]] == [
        "products", "none", "SummaryMixing", "RoPEMHA", "hypermixing"
    ]  # fmt: skip
    assert {len(row["times"]) for row in more[:5]} == {2}  # all of them took turns
    assert more[5:] == again["rows"][4:]

    before = path.read_bytes()
    status, _, error = benchmark(*few, "--seed=3", "--again")
    assert status == 2 and "another seed" in error and "another --json, or remove it" in error
    assert path.read_bytes() == before


def test_a_side_that_takes_the_device_along_is_left_behind(benchmark, monkeypatch):
    measured = []

    def lost(case, mixers, *rest):
        measured.append(mixers)
        rows = [{**vars(case), "audio": 1.0, "mixer": mixer, "times": [1.0], "peak_bytes": 1}
                for mixer in mixers]  # fmt: skip
        if "hypermixing" in mixers:
            row = rows[mixers.index("hypermixing")] | {"failed": "illegal access"}
            raise DeviceLostError(row)
        return rows

    monkeypatch.setitem(benchmark.main.__globals__, "measure", lost)
    few = [*TINY, "--encoders=conformer", "--steps=forward", "--mixers=hypermixing", "--seconds"]
    status, out, error = benchmark(*few, 1, 2)
    assert status == 1 and len(measured) == 1  # nothing else is asked of the device
    assert error == "  hypermixing, conformer layers forward float32 eager 1.0 s: illegal access"
    status, out, _ = benchmark(*few, 1)
    assert measured[1] == ["none", "RoPEMHA"]
    assert status == 1 and out.count("1000.0") == 2


@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_a_default_case_is_twice_there_for_untried_kernels_only(device, benchmark, monkeypatch):
    script = benchmark.main.__globals__
    parsed = {}
    monkeypatch.setitem(script, "check", lambda arguments: parsed.update(vars(arguments)))
    with pytest.raises(AttributeError):
        script["main"]([])
    found = script["cases"](SimpleNamespace(**parsed), device)
    seen = set()
    for case, sides in found:
        assert case not in seen or not set(sides).isdisjoint(script["TRITON"])
        seen.add(case)
    aims = [case for case, _ in found[:3]]
    assert device == "cpu" or [case.seconds for case in aims] == [10, 40, 100]
    assert device == "cpu" or set(found[0][1]).isdisjoint(script["TRITON"])


def test_no_case_begins_after_the_minutes(benchmark, tmp_path):
    few = [*TINY, "--encoders=conformer", "--steps=forward", "--mixers=none"]
    status, _, error = benchmark(*few, "--seconds", 1, 2, "--minutes=1e-9")
    assert status == 0 and error == "2 cases are left: the same command goes on"


def test_sides_that_cannot_be_are_left_out(load_script, tmp_path, monkeypatch, capsys):
    script, asked = load_script("benchmark"), {}

    def measure(case, mixers, *rest):
        asked[case.encoder, case.part, case.step, case.graph] = set(mixers)
        return []

    monkeypatch.setattr(script, "limit_memory", lambda: None)
    monkeypatch.setattr(script, "measure", measure)
    script.main([*TINY, "--seconds=1", "--parts", "cell", "layers", "--graphs", "eager", "compile",
                 "--mixers", "SummaryMixing", "speechbrain/RoPEMHA", "speechbrain/RelPosMHAXL",
                 f"--json={tmp_path / 'speed.json'}"])  # fmt: skip
    everywhere, rope = {"SummaryMixing", "RoPEMHA"}, {"RoPEMHA", "speechbrain/RoPEMHA"}
    layers = {*everywhere, "none", "speechbrain/RelPosMHAXL"}
    assert asked["branchformer", "cell", "training", "eager"] == everywhere
    assert asked["branchformer", "layers", "training", "eager"] == layers
    assert asked["conformer", "layers", "training", "eager"] == layers | rope
    assert asked["conformer", "layers", "forward", "compile"] == layers | rope
    assert asked["conformer", "layers", "training", "compile"] == layers - rope
    assert "which crashes on a CPU: RoPEMHA, speechbrain/RoPEMHA\n" in capsys.readouterr().err


def test_a_step_of_a_recipe(benchmark, tmp_path):
    tiny = ["d_model=16", "nhead=2", "num_encoder_layers=1", "num_decoder_layers=1", "d_ffn=16",
            "csgu_linear_units=16", "cnn_channels=4", "output_neurons=20"]  # fmt: skip
    mixers = ["SummaryMixing", "RoPEMHA", "SummaryMixing+checkpointing"]
    options = [*TINY, "--minutes=1e-9", "--mixers", *mixers, "--recipe", "--recipe_seconds=2"]
    options += ["--override", *tiny]
    status, out, error = benchmark(*options)
    assert status == 0, error
    rows = json.loads((tmp_path / "speed.json").read_text())["recipes"]
    assert [row["mixer"] for row in rows] == mixers
    for row in rows:
        assert len(row["times"]) == len(row["read_times"]) == 2
        assert row["audio"] == 2 and row["peak_bytes"] > 1e5
    assert "ctc_attention.yaml --d_model=16" in out
    benchmark(*options)
    assert json.loads((tmp_path / "speed.json").read_text())["recipes"] == rows
    benchmark(*(("none" if option in mixers else option) for option in options))
    rows = json.loads((tmp_path / "speed.json").read_text())["recipes"]
    assert {row["mixer"] for row in rows} == {*mixers, "none"}  # nothing is lost


@pytest.mark.parametrize(
    "arguments, said",
    (
        (["--seed", "-1"], "--seed must be from 0 to 4294967295, got -1"),
        (["--minutes", "inf"], "--minutes must be more than 0 and finite, got inf"),
        (["--parts", "cell", "--mixers", "none"], "--mixers none: in no case that is asked for"),
        (["--json", "/proc/speed.json"], "--json /proc/speed.json: No such file"),
        (["--seconds", "0"], "--seconds must be more than 0, got [0.0]"),
        (["--repeats", "0"], "--repeats must be more than 0 and finite, got 0"),
        (["--padding", "1.5"], "--padding must be in (0, 1], got 1.5"),
        (["--d_model", "20"], "--d_model must be a multiple of 16, got 20"),
        (["--mixers", "none+triton"], "--mixers none+triton: kernels run on a GPU only"),
        (["--device", "nonsense"], "--device nonsense is of no use here"),
        (["--seconds", "5", "inf"], "--seconds must be more than 0"),
        (["--plot", "nowhere/speed.png"], "--plot must be a .png"),
        (["--plot", "speed.txt"], "--plot must be a .png"),
        (["--report", "missing.json"], "missing.json is no file of results"),
        (["--recipe", "missing.yaml"], "missing.yaml"),
    ),
)
def test_mistakes_are_one_line(arguments, said, benchmark):
    status, out, error = benchmark(*arguments)
    assert status == 2 and out == ""
    assert error.startswith("error: ") and said in error


def test_a_device_that_computes_but_is_not_measured(benchmark, monkeypatch):
    monkeypatch.setattr("summarymixing.machine.check_device", torch.device)
    status, _, error = benchmark("--device=mps")
    assert status == 2 and error == "error: --device must be cpu or cuda, got mps"


def _rows(case, **sides):
    return [
        {**vars(case), "mixer": mixer, "audio": 10.0, **({"failed": "out of memory"} if not times
         else {"times": times, "peak_bytes": peak, "flops": 8})}
        for mixer, (times, peak) in sides.items()
    ]  # fmt: skip


@pytest.fixture
def case():
    return report.Case("conformer", "layers", 2, 10.0, 2, 0.8)


def test_ratios_are_of_the_same_turn(case):
    rows = _rows(
        case, products=([1, 1, 1], 1), none=([2, 4, 6], 2**20), RoPEMHA=([4, 8, 6], 2**22),
        SummaryMixing=([3, 4, 9], 2**21), RelPosMHAXL=(None, None),
        **{"speechbrain/RoPEMHA": ([6, 8, 9], 2**22), "speechbrain/none": ([3, 5, 9], 2**20)},
    )  # fmt: skip
    lines = {line.split(" | ")[10]: line for line in report.table(rows).splitlines()}
    assert lines["SummaryMixing"] == (
        "| conformer | 2 layers | training | float32 | eager | 512 | 0.1 | 0.8 | 10 | 2 "
        "| SummaryMixing | 4000.0 | 0.4 | 0.50 (0.50–1.00) | 1.00 (0.80–1.00) | 0.75 (0.50–1.50) "
        "| 1.50 (1.00–1.50) | 0.25 (0.11–0.33) | 2 | 0.50 |"
    )
    assert "| RelPosMHAXL | out of memory |" in lines["RelPosMHAXL"]


def test_targets_say_what_was_measured(case):
    rows = _rows(case, RoPEMHA=([10, 10, 10], 1), SummaryMixing=([7, 8, 9], 1))
    lines = report.targets(rows, "cpu")
    where = "conformer, layers, float32, d_model 512, training, padding 0.8, batch 2, 10 s"
    assert [line for line in lines if "≤ 0.85" in line] == [
        f"time to RoPEMHA, {where}: target ≤ 0.85: 0.80 (0.70–0.90) met (eager, dropout 0.1)",
        f"time to speechbrain/RoPEMHA, {where}: target ≤ 0.85: not measured yet",
    ]
    assert sum("not measured yet" in line for line in lines) == len(lines) - 1
    rows = _rows(case, RoPEMHA=(None, None), SummaryMixing=([7], 1))
    lines = "".join(report.targets(rows, "cpu"))
    assert f"{where}: target ≤ 0.85: RoPEMHA: out of memory (eager, " in lines
    rows = _rows(case, RoPEMHA=([10], 1), SummaryMixing=([9], 1))
    assert "0.90 (0.90–0.90) MISSED" in "".join(report.targets(rows, "cpu"))
    rows = _rows(case, RoPEMHA=([1000], 1), SummaryMixing=([851], 1))
    line = "≤ 0.85: 0.85 (0.85–0.85), in full 0.8510, MISSED"
    assert line in "".join(report.targets(rows, "cpu"))


def test_twenty_minutes_fit_or_do_not(case):
    long = replace(case, part="encoder", seconds=1200, batch=1)

    def line(rope):
        return report.targets(_rows(long, SummaryMixing=([1], 2**20), RoPEMHA=rope), "cuda")[-1]

    what = "twenty minutes in one sample, where RoPEMHA runs out of memory: "
    assert line(([1], 2**21)) == what + "SummaryMixing 1 MiB, RoPEMHA 2 MiB: MISSED"
    assert line((None, None)) == what + "SummaryMixing 1 MiB, RoPEMHA out of memory: met"
    assert report.targets([], "cuda")[-1] == what + "not measured yet"


def test_a_picture_for_what_was_measured_at_several_lengths(case, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    shapes = []
    subplots = Figure.subplots
    monkeypatch.setattr(
        Figure, "subplots", lambda self, *a, **k: shapes.append(a) or subplots(self, *a, **k)
    )

    def draw(*cases):
        rows = [row for case in cases for row in _rows(case, none=([1.0], 1))]
        report.plot([{"rows": rows, "machine": {"device": "one"}}], str(tmp_path / "a.png"))

    several = [replace(case, seconds=seconds) for seconds in (5, 10, 40)]
    draw(*several, *(replace(case, dropout=0.0) for case in several), replace(case, part="cell"))
    draw(case, replace(case, part="cell"))
    assert shapes == [(2, 3), (2, 3)]


def test_ratios_against_length(case):
    longer = replace(case, seconds=40.0, batch=1)
    rows = _rows(
        case, products=([1, 1], 1), none=([2, 4], 2**20), RoPEMHA=([4, 8], 2**21),
        SummaryMixing=([3, 4], 2**20),
    )  # fmt: skip
    rows += _rows(longer, products=([1], 1), RoPEMHA=(None, None), SummaryMixing=([2], 2**20))
    rows += _rows(replace(case, dropout=0.0), SummaryMixing=([3], 1), RoPEMHA=([4], 1))
    setting = "conformer 2 layers, training, float32, eager, d 512, padding 0.8, dropout 0.1"
    assert report.by_length(rows[::-1]).splitlines() == [
        f"| {setting} | 10 s × 2 | 40 s × 1 |",
        "| --- | --- | --- |",
        "| SummaryMixing to RoPEMHA | 0.62 (0.50–0.75) | RoPEMHA: out of memory |",
        "| SummaryMixing to none | 1.25 (1.00–1.50) |  |",
        "| none to RoPEMHA | 0.50 (0.50–0.50) |  |",
        "| SummaryMixing to RoPEMHA, peak memory | 0.50 | RoPEMHA: out of memory |",
        "| SummaryMixing, of the rate of products | 0.29 (0.25–0.33) | 0.50 (0.50–0.50) |",
    ]
    assert report.by_length(rows[:4]) == ""


@pytest.mark.parametrize("written", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_reports_in_the_repository_are_those_of_their_figures(written, benchmark):
    status, out, _ = benchmark("--report", written.with_suffix(".json"))
    assert status == 0 and out == written.read_text(encoding="utf-8")
