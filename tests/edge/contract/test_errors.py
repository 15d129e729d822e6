"""The error tree at the roof: one message, one help line, one exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edge.contract import errors
from edge.contract.errors import EdgeError

BRANCHES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeError)]


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A program whose command is this body."""
    program = f"from edge.contract.errors import *\ndef command():\n    {body}\nrun_to_exit(command)\nprint('done')\n"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


def test_every_branch_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in BRANCHES]
    assert len(BRANCHES) == 7
    assert len(set(codes)) == len(codes)
    # 0 is success, 2 is click's for wrong usage, from 126 on they are the shell's
    assert all(0 < code < 126 and code != 2 for code in codes)


@pytest.mark.parametrize("kind", BRANCHES)
def test_every_branch_says_in_one_line_what_to_do(kind: type[EdgeError]) -> None:
    line = kind.help_line
    assert line.endswith(".")
    assert "\n" not in line
    assert "help_line" in vars(kind)


@pytest.mark.parametrize("kind", BRANCHES)
def test_an_error_at_the_roof_is_one_message_without_traceback(kind: type[EdgeError]) -> None:
    done = run(f"raise {kind.__name__}('this went wrong')")
    assert done.returncode == kind.exit_code
    assert done.stderr == f"error: this went wrong\n{kind.help_line}\n"
    assert done.stdout == ""


def test_a_command_that_ends_well_goes_on() -> None:
    done = run("pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_programming_error_keeps_its_traceback() -> None:
    done = run("raise ZeroDivisionError")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_reader_that_went_away_ends_the_command_quietly() -> None:
    program = "from edge.contract.errors import *\nrun_to_exit(lambda: [print(i) for i in range(100000)])"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
