"""Whatever happens in a conversion: one clear line, the documented exit code, nothing left behind, nothing overwritten.

One conversion runs in a process of its own, on one thread, and forks where something may fail, see
`tests.converter.faults`: so every place is tried in the state in which it would really fail, for the price of one
conversion.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.converter.command import warm
from tests.converter.faults import EVERY, THOROUGH
from tests.converter.models import labelled, snapshot

ARCH = """\
from torch import nn


def make():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
"""
MEASURED_IN = "verifying.py:robustness_of"
# A cache of torch.export, one for each user, which torch keeps.
TORCHS_OWN = "torchinductor_"
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
    arguments = ["m.pth", "--arch", "net.py:make", "--max-drop", "100", "--torchscript", "-o", "m.edge"]
    done = warm(folder, arguments, {}, "edge-convert with faults")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("FOUND")[2])
    places = {row["place"] for row in found}
    assert {"loading the model", "exporting to ONNX", "verifying", "packing"} <= places
    for stage in THOROUGH:
        assert [row["fault"] for row in found if row["place"] == stage] == EVERY
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
        assert [name for name in row["scratch"] if not name.startswith(TORCHS_OWN)] == [], row
        assert row["files"] == sorted(Path(name).name for name in before), row
    left = [path.name for path in folder.with_name("user-tmp").iterdir()]
    assert [name for name in left if not name.startswith(TORCHS_OWN)] == []
    assert snapshot(folder) != before  # the parent came to its end
