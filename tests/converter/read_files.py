"""Reads every file in a folder as a user's model or data, in a process of its own, and says what came of it.

``read-files FOLDER KIND`` (see `tests.converter.warm`): one line of JSON for each file; KIND is ``model`` or ``data``.
A reader that hangs ends the process (exit code 1, after `PATIENCE_S`), a reader that crashes ends it with a signal: the
last line printed names the file before.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
from pathlib import Path

from converter.data.stream import open_samples
from converter.data.subset import subset
from converter.load.inputs import Given
from converter.load.load import load_source
from converter.plan import ModelOptions
from edge.contract.errors import EdgeError
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_benchmark import peak_memory_bytes

PATIENCE_S = 30.0
DATA = (TensorSpec(name="x", dtype="float32", shape=("batch", 12)),)
IMAGES = (TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8)),)
SOUNDS = (TensorSpec(name="x", dtype="float32", shape=("batch", "time")),)


def read(path: Path, kind: str, arch: str | None) -> str:
    """What the reader said: ``read``, or the refusal."""
    try:
        if kind == "model":
            load_source(Given(options=ModelOptions(source=path, arch=arch)))
        else:
            names = {item.suffix for item in path.iterdir()} if path.is_dir() else set()
            specs = IMAGES if names & {".png", ".jpg", ".bmp"} else SOUNDS if ".wav" in names else DATA
            subset(open_samples(str(path), "--calibrate", specs), specs, max_samples=64, max_bytes=1 << 20)
    except EdgeError as exc:
        return str(exc)
    return "read"


def main() -> None:
    """Read all files of a folder but Python files, one of which may be the architecture."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    arch = f"{folder / 'arch.py'}:make" if (folder / "arch.py").exists() else None
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py":
            continue
        faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
        start = time.monotonic()
        said = read(path, kind, arch if "whole" not in path.name else None)
        row = {"file": path.name, "said": said, "seconds": time.monotonic() - start, "peak": peak_memory_bytes()}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    faulthandler.cancel_dump_traceback_later()
