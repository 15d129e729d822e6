"""The command ``edge-convert`` run as its users run it, and what a refusal may leave behind: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.converter.models import snapshot

ROOT = Path(__file__).parents[2]
USAGE, CONFIG, CONVERSION = 2, 3, 4


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


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
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
