"""The command ``edge-convert`` run as its users run it, and what a refusal may leave behind: nothing."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.converter.models import snapshot

ROOT = Path(__file__).parents[2]
USAGE, CONFIG, CONVERSION = 2, 3, 4
TIMEOUT_S = 240
Meanwhile = Callable[[int, Path], None]


def _wait(_process: int, _stdout: Path) -> None:
    """Do nothing meanwhile."""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "converter.cli", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    """The command's own temporary folder is watched too."""
    scratch = folder.with_name(folder.name + "-tmp")
    scratch.mkdir(exist_ok=True)
    ours = {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(scratch), "OMP_NUM_THREADS": "1"}
    ours["MPLCONFIGDIR"] = str(folder.with_name(folder.name + "-fonts"))  # where matplotlib keeps what it found
    # The command itself must turn onnxruntime's telemetry off, which leaves files in these two folders.
    return {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | ours


class _Warm:
    """The process of `tests.converter.warm`, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(
        self,
        folder: Path,
        arguments: Sequence[str],
        more: Mapping[str, str],
        program: str = "edge-convert",
        meanwhile: Meanwhile = _wait,
    ) -> subprocess.CompletedProcess[str]:
        """See `run`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.converter.warm"],
                cwd=ROOT,
                env=environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # what waits in the pipe is seen by `select`
                start_new_session=True,
            )
            atexit.register(self._stop)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as place:
            files = {name: Path(place, name) for name in ("stdout", "stderr")}
            for file in files.values():
                file.touch()
            call = {
                "program": program,
                "arguments": list(arguments),
                "cwd": str(folder.resolve()),
                "environment": environment(folder) | more,
            }
            self._process.stdin.write(json.dumps(call | {n: str(f) for n, f in files.items()}).encode() + b"\n")
            self._process.stdin.flush()
            meanwhile(int(self._process.stdout.readline()), files["stdout"])
            ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
            if not ready:
                self._stop()
                raise subprocess.TimeoutExpired(arguments, TIMEOUT_S)
            code = int(self._process.stdout.readline())
            said = {name: file.read_text(errors="surrogateescape") for name, file in files.items()}
        return subprocess.CompletedProcess(arguments, code, said["stdout"], said["stderr"])

    def _stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


warm = _Warm()


_environment = environment  # `run` has an argument of this name


def run(
    folder: Path,
    *arguments: object,
    cold: bool = False,
    environment: Mapping[str, str] | None = None,
    meanwhile: Meanwhile = _wait,
) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder.

    Args:
        folder: Where.
        arguments: Of the command.
        cold: With its imports, which a test of what these do needs.
        environment: More of it.
        meanwhile: Told its process, and the file into which it writes; not if `cold`.
    """
    more = environment or {}
    done = (
        subprocess.run(
            command(*arguments),
            cwd=folder,
            env=_environment(folder) | more,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if cold
        else warm(folder, [str(argument) for argument in arguments], more, meanwhile=meanwhile)
    )
    assert list(folder.with_name(folder.name + "-tmp").iterdir()) == []
    return done


def refused(folder: Path, code: int, words: tuple[str, ...], *arguments: object) -> str:
    """Run; assert the exit code, one clear message, and that not a byte changed."""
    before = snapshot(folder)
    done = run(folder, *arguments)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert [line[1:7] for line in done.stderr.splitlines()].count("rror: ") == 1, done.stderr
    assert "weights_only=False" not in done.stderr
    assert "set to `False`" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert snapshot(folder) == before
    return done.stderr
