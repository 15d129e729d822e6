"""The error tree at the roof: one message, one help line, one exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edge.contract import errors
from edge.contract.errors import EdgeError

BRANCHES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeError)]

IMPORTS = "from edge.contract.errors import *\nfrom edge.contract.exits import *"


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A program whose command is this body."""
    program = f"{IMPORTS}\ndef command():\n    {body}\nrun_to_exit(command)\nprint('done')\n"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


def test_every_branch_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in BRANCHES if kind.__bases__ in ((Exception,), (EdgeError,))]
    assert len(codes) == 7
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


def test_what_nobody_foresaw_is_one_line_and_a_traceback_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("{}['size']")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first == "error: the command: KeyError was not foreseen, at <string>:4: KeyError: 'size'"
    assert "EDGE_DEBUG=1" in second
    monkeypatch.setenv("EDGE_DEBUG", "1")
    done = run("{}['size']")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert first in done.stderr


def test_what_the_machine_lacks_is_said_and_is_no_programming_error() -> None:
    for body, words in (
        ("raise MemoryError", "there is not enough memory"),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried')", "there is not enough memory"),
        ("raise OSError(28, 'No space left on device', '/x/y')", "No space left on device (/x/y)"),
        ("raise ValueError('PytorchStreamWriter: No space left on device')", "No space left on device"),
        ("raise PermissionError(13, 'Permission denied', '/x/y')", "Permission denied: /x/y"),
        ("open('/no/such/folder/file')", "No such file or directory: /no/such/folder/file"),
    ):
        done = run(body)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 2), done.stderr
        assert words in done.stderr


def test_signals_end_a_command_with_the_shells_codes() -> None:
    done = run("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n")
    done = run("raise Stopped(15)")
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")


def test_nothing_in_a_message_commands_the_terminal() -> None:
    done = run("raise ConfigError('a' + chr(27) + '[2Jb' + chr(0x9b) + 'c' + chr(0xdcff) + 'd')")
    assert done.returncode == 3
    assert not any(char in done.stderr for char in "\x1b\x9b\udcff")
    assert "[2Jb" in done.stderr


def test_a_reader_that_went_away_ends_the_command_quietly() -> None:
    program = f"{IMPORTS}\nrun_to_exit(lambda: [print(i) for i in range(100000)])"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
