"""scripts/measure_growth.py on two tiny lengths."""

import json

from summarymixing.nnet.cell import MODES


def test_every_mode_is_measured(load_script, tmp_path):
    script = load_script("measure_growth")
    measured = {cell.get("mode", MODES[0]) for cell, _ in script.CASES.values()}
    assert measured == {*MODES}
    script.CASES = {name: case for name, case in script.CASES.items() if "mode" in case[0]}
    path = tmp_path / "growth.json"
    script.main(["--frames", "20", "40", "--d_model=8", "--repeats=1", f"--json={path}"])
    rows = json.loads(path.read_text())["rows"]
    assert {row["summary"] for row in rows} == {*script.CASES}
    assert all(row["memory_slope"] > 0 for row in rows)
