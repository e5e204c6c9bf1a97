"""scripts/measure_growth.py on two tiny lengths."""

import json

import pytest

from summarymixing.nnet.cell import MODES


def test_every_mode_is_measured(load_script, tmp_path):
    script = load_script("measure_growth")
    measured = {cell.get("mode", MODES[0]) for cell, _ in script.CASES.values()}
    assert measured == {*MODES}
    script.CASES = {name: case for name, case in script.CASES.items() if "mode" in case[0]}
    path = tmp_path / "growth.json"
    script.main(["--frames", "20", "40", "--d_model=8", "--repeats=1", f"--json={path}"])
    content = json.loads(path.read_text())
    assert content["command"] and content["device"] and content["versions"]["torch"]
    rows = content["rows"]
    assert {row["summary"] for row in rows} == {*script.CASES}
    assert all(row["memory_slope"] > 0 for row in rows)


@pytest.mark.parametrize(
    "options, message",
    (
        (["--frames", "20", "0"], "--frames must be a positive integer, got 0"),
        (["--frames", "20"], "--frames must be two lengths or more, got [20]"),
        (["--d_model=7"], "nhead must divide d_model=7"),
        (["--repeats=0"], "--repeats must be a positive integer, got 0"),
        (["--threads=0"], "--threads must be a positive integer, got 0"),
        (["--device=none"], "--device none is of no use here: "),
    ),
)
def test_mistakes(load_script, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        load_script("measure_growth").main(options)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
