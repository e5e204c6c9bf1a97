"""How a command ends, and what every check of an integer refuses."""

import socket
import subprocess
import sys

import pytest

from summarymixing.errors import InputError, check_integer, one_line

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


@pytest.mark.parametrize("value", (True, False, 2.0, "2", -1, None))
def test_no_integer(value):
    for least in (0, 1):
        wanted = "a positive integer" if least else "an integer of at least 0"
        with pytest.raises(InputError) as caught:
            check_integer("size", value, least)
        assert str(caught.value) == f"size must be {wanted}, got {value!r}"
        if value is None:
            check_integer("size", value, least, none="null")
        else:
            with pytest.raises(InputError, match=f"{wanted} or null, got"):
                check_integer("size", value, least, none="null")
    for right in (1, 2, 10**20):
        check_integer("size", right)


def test_one_line():
    assert one_line(ValueError("  no\n such\tfile  ")) == "no such file"
    assert one_line(ValueError("a" * 400)) == "a" * 300
    assert one_line("many words", most=4) == "many"
    assert one_line(ValueError("\n")) == "ValueError"


_A_MISTAKE = """
from summarymixing.errors import InputError, said_in_one_line
with said_in_one_line():
    raise InputError("width: 3 is too narrow")
"""


def test_processes_that_say_the_same_do_not_mix_it():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:  # what is written at once is received at once
        command = [sys.executable, "-u", "-c", _A_MISTAKE]  # as torchrun starts it
        assert subprocess.run(command, stderr=there, timeout=60).returncode == 2
        assert here.recv(1000) == b"error: width: 3 is too narrow\n"
