"""A few of the kills of scripts/inject_faults.py, in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "inject_faults.py"


@pytest.mark.parametrize(
    ("processes", "kills", "operations", "stride"), [(1, 2, 3, 25), (2, 1, 1, 60)]
)
def test_killed_trainings_end_as_undisturbed_ones(tmp_path, processes, kills, operations, stride):
    options = {"processes": processes, "kills": kills, "operations": operations, "stride": stride}
    command = [sys.executable, str(SCRIPT), f"--folder={tmp_path}"]
    command += [f"--{key}={value}" for key, value in options.items()]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        f"killed {kills} times at random moments: the same, bit by bit",
        f"killed {operations} times at file operations: the same, bit by bit",
    ):
        assert line in done.stdout
