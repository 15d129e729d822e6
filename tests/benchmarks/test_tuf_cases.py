"""python-tuf's own cases of its client pass through our fetcher and messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_python_tuf_s_own_cases_pass_through_our_fetcher() -> None:
    """``EDGE_TUF_CASES`` names a folder with its tests: they are in no wheel, and not ours to keep."""
    source = os.environ.get("EDGE_TUF_CASES", "")
    if not source:
        pytest.skip("EDGE_TUF_CASES names no folder with python-tuf's tests; .ci/run fetches them")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tuf_cases.py"), "--source", source],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    passed = [line for line in done.stdout.splitlines() if line.startswith("passed")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(passed) >= 57
