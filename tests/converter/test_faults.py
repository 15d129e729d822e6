"""Whatever happens in a conversion: one clear line, the documented exit code, nothing left behind, nothing overwritten.

One conversion runs in a process of its own, on one thread. Where something may fail, the process forks for each kind of
fault: the child has it, ends as the command ends, and is looked at; the parent goes on. So every place is tried in the
state in which it would really fail, for the price of one conversion.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.converter.command import ROOT, environment
from tests.converter.models import labelled, snapshot

DRIVER = r"""
import atexit, contextlib, itertools, json, os, shutil, sys

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # no threads that a fork would lose

import converter.cli
import converter.pipeline
from edge.contract import foreign
from edge.contract.errors import Stopped

FAULTS = {
    "OSError": lambda: OSError(28, "No space left on device"),
    "RuntimeError": lambda: RuntimeError("something odd"),
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SIGTERM": lambda: Stopped(15),
    "SystemExit": lambda: SystemExit(0),
}
found, seen, at, turn = [], set(), os.getpid(), itertools.cycle(FAULTS)
scratch = os.environ["TMPDIR"]


def fail(place, faults):
    '''Fork for each fault: the child has it, the parent notes how it ended.'''
    if place in seen or os.getpid() != at:
        return
    seen.add(place)
    for fault in faults:
        sys.stdout.flush()
        shutil.copytree(scratch, "../kept", dirs_exist_ok=True)  # the child takes away what is the parent's, too
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise FAULTS[fault]()
        os.close(write)
        with open(read, "rb") as stream:
            said = stream.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
        found.append({"place": place, "fault": fault, "code": os.waitstatus_to_exitcode(status), "said": said,
                      "files": sorted(os.listdir(".")), "scratch": os.listdir(scratch)})
        shutil.copytree("../kept", scratch, dirs_exist_ok=True)
        shutil.rmtree("../kept")


plain = foreign.foreign


@contextlib.contextmanager
def watched(what, kind, advice="", **options):
    caller = sys._getframe(2)
    with plain(what, kind, advice, **options):
        fail(f"{caller.f_code.co_filename.rpartition('/')[2]}:{caller.f_code.co_name}", [next(turn), next(turn)])
        yield


for module in list(sys.modules.values()):
    if getattr(module, "foreign", None) is plain:
        module.foreign = watched

tell = converter.pipeline._Clock.__call__


def stage(clock, name):
    tell(clock, name)
    fail(name, [name for name in FAULTS if name != "SystemExit"])


converter.pipeline._Clock.__call__ = stage
try:
    converter.cli.main()
except SystemExit as exc:
    if os.getpid() != at:
        atexit._run_exitfuncs()  # and no more: to take torch down takes long
        os._exit(exc.code or 0)
    print("FOUND" + json.dumps(found))
    raise
"""
ARCH = """\
from torch import nn


def make():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
"""
MEASURED_IN = "verifying.py:robustness_of"
CODES = {
    "OSError": {3},
    "RuntimeError": {1, 3, 4},  # 1: in our own code
    "MemoryError": {3},
    "KeyboardInterrupt": {130},
    "SIGTERM": {143},
    "SystemExit": {3, 4},
}


@pytest.mark.slow
def test_every_stage_and_every_piece_of_foreign_code_may_fail(tmp_path: Path) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "net.py").write_text(ARCH)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = labelled(model, (12,), 40)
    torch.save({"model": model.state_dict(), "x": x, "y": y}, folder / "m.pth")
    (folder / "m.edge").write_bytes(b"an older bundle")
    before = snapshot(folder)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            DRIVER,
            "m.pth",
            "--arch",
            "net.py:make",
            "--max-drop",
            "100",
            "--torchscript",
            "-o",
            "m.edge",
        ],
        cwd=folder,
        env=environment(folder) | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("FOUND")[2])
    places = {row["place"] for row in found}
    assert {"loading the model", "exporting to ONNX", "verifying", "packing"} <= places
    assert {"architecture.py:build_model", "programs.py:run", "checks.py:torchscript_of"} <= places, places
    for row in found:
        # TorchScript and robustness are optional: what fails there costs a note. Robustness is measured in `convert`.
        noted = {"RuntimeError", "SystemExit"} | ({"OSError", "MemoryError"} if row["place"] == MEASURED_IN else set())
        ended_well = row["code"] == 0 and row["fault"] in noted
        assert ended_well or row["code"] in CODES[row["fault"]], row
        assert "Traceback" not in row["said"], row
        lines = [line for line in row["said"].splitlines() if line.strip() and "Warning" not in line]
        if not ended_well:
            assert lines[0].startswith(("error: ", "stopped by ")), row
            assert len(lines) <= 2 or "  " in lines[1], row
        assert row["scratch"] == [], row
        assert row["files"] == sorted(Path(name).name for name in before), row
    assert list(folder.with_name("user-tmp").iterdir()) == []
    assert snapshot(folder) != before  # the parent came to its end
