"""Commands of the command line run in this process, as their entry points run them."""

from __future__ import annotations

import contextlib
import io
import sys
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch


def called(name: str, *arguments: object, cwd: Path) -> CompletedProcess[str]:
    """What ``edge-NAME ARGUMENTS`` says and ends with, called in a folder; nothing is on its standard input."""
    words = [f"edge-{name}", *map(str, arguments)]
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        patch.object(sys, "argv", words),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO())),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            import_module(f"edge.cli.{name}").main()
        except SystemExit as exc:
            ended = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    return CompletedProcess(words, ended, out.getvalue(), err.getvalue())
