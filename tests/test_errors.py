"""How a command ends."""

import subprocess
import sys

_MANY_LINES = """
from summarymixing.errors import said_in_one_line
with said_in_one_line():
    for _ in range(100000):
        print("a line")
"""


def test_a_pipe_that_nobody_reads():
    command = [sys.executable, "-c", _MANY_LINES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1
