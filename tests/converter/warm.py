"""``edge-convert``, and the readers of malformed files, in processes of their own without importing torch each time.

``python -m tests.converter.warm`` imports everything once and then forks for each command. It takes one line of JSON
for each (``program``, ``arguments``, ``cwd``, ``environment``, ``stdout``, ``stderr``) and answers with the process's
number, and then with its exit code. Nothing has run in the parent, so that a child is what a fresh process would be
after its imports.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
from typing import Any

import converter.pipeline  # the heavy imports, once
from converter import cli
from edge.inference.onnx_benchmark import Benchmark
from tests.converter import faults, read_files
from tests.converter.models import BUDGET_S

PROGRAMS = {"edge-convert": cli.main, "edge-convert with faults": faults.main, "read-files": read_files.main}


def prepare(call: dict[str, Any]) -> None:
    """Make this process what a shell would have started."""
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (call["stdout"], os.O_WRONLY), (call["stderr"], os.O_WRONLY)]
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["environment"])
    tempfile.tempdir = None  # it was looked up in another environment
    if "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    # Tests that run in the background ignore Ctrl-C, those under nohup SIGHUP, and their children would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.modules["__main__"].__package__ = None  # click names the command by this, and its variable for completion
    sys.argv = [call["program"], *call["arguments"]]
    sys.path[0] = call["cwd"]


def serve() -> None:
    """Until the end of standard input."""
    converter.pipeline.Benchmark = functools.partial(Benchmark, BUDGET_S)  # type: ignore[attr-defined,misc]
    for line in sys.stdin:
        child = os.fork()
        if not child:
            call = json.loads(line)
            prepare(call)
            PROGRAMS[call["program"]]()
            sys.stdout.flush()
            os._exit(0)  # to take torch apart takes long
        os.write(1, f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"{code}\n".encode())


if __name__ == "__main__":
    serve()
