"""What few samples show of a quantized model: counted, and expected from its margins (`converter.verify.expectation`).

    python benchmarks/few_samples.py [--work FOLDER] [NETWORK ...]

Each network is converted with each scheme by ``edge-convert --format onnx --max-drop 100`` and run, beside its float
file, on 500 digits that nobody trained or calibrated on. The loss on all of them is what is to be found out; 200 times
32, 64 or 128 of them are drawn, on which it is counted and expected. Printed are the root mean square errors of both,
in points, of answers that change and of accuracy, and how often each of the two sees a loss of more than 0.5 points
where there is one (*seen*), and where there is none (*false*).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.networks.training import NETWORKS
from benchmarks.peers.onnxruntime import open_model
from converter.plan import CLASSES
from converter.verify.expectation import expected
from converter.verify.kinds import Judged
from edge.contract.tensorspec import TensorSpec

SCHEMES = ("none", "int8", "dynamic", "fp16", "int4")
COUNTS, DRAWS, LIMIT = (32, 64, 128), 200, 0.5
Array = npt.NDArray[np.float32]
SPEC = TensorSpec(name="output", dtype="float32", shape=("batch", 10))
JUDGED = Judged(kind=CLASSES, because="trained so", axis=1)


def outputs(name: str, scheme: str, work: Path) -> Array | None:
    """Logits of a scheme on the digits held out; None where there is nothing for it to quantize."""
    network = NETWORKS[name]
    folder = network.folder(work)
    file = work / f"{name}-{scheme}.onnx"
    shape = ",".join(map(str, network.input_shape))
    done = subprocess.run(
        [
            sys.executable, "-m", "converter.cli", str(folder / "model.pth"), "--arch", network.arch,
            "--input-shape", shape, "--calibrate", str(folder / "calibrate.npz"),
            "--evaluate", str(folder / "evaluate.npz"), "--quantize", scheme, "--max-drop", "100", "--format", "onnx",
            "-o", str(file),
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        return None
    run = open_model(file)
    x = np.load(folder / "evaluate.npz")["x"]
    return np.concatenate([np.asarray(run(x[i : i + 1]), np.float32) for i in range(len(x))])


def loss(wanted: Array, found: Array, y: npt.NDArray[np.int64] | None) -> float:
    """Counted, in points."""
    truth = wanted.argmax(1) if y is None else y
    return 100 * float((wanted.argmax(1) == truth).mean() - (found.argmax(1) == truth).mean())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="*", default=["depthwise_cnn", "residual_cnn", "recurrent", "transformer", "mlp"]
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeloop-few-samples")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.networks.training", "--work", str(arguments.work), *arguments.networks],
        check=True, cwd=ROOT,
    )  # fmt: skip
    console, rng = Console(), np.random.default_rng(0)
    table = Table("loss of", "samples", "error", "expected", "seen", "expected", "false", "expected")
    errors: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for name in arguments.networks:
        wanted = outputs(name, "none", arguments.work)
        assert wanted is not None
        y = np.load(NETWORKS[name].folder(arguments.work) / "evaluate.npz")["y"]
        for scheme in SCHEMES[1:]:
            found = outputs(name, scheme, arguments.work)
            if found is None:
                continue
            for what, labels in (("answers", None), ("accuracy", y)):
                really = loss(wanted, found, labels)
                console.print(f"{name}, {scheme}: {really:.2f} points of {what} on {len(wanted)}")
                for count in COUNTS:
                    for _ in range(DRAWS):
                        rows = rng.permutation(len(wanted))[:count]
                        some = None if labels is None else labels[rows]
                        guess = expected(SPEC, JUDGED, wanted[rows], found[rows], some)
                        assert guess is not None
                        counted = loss(wanted[rows], found[rows], some)
                        errors.setdefault((what, count), []).append((really, counted, guess.loss))
    for (what, count), rows in errors.items():
        real, counted, guessed = np.array(rows).T
        cells = [f"{np.sqrt(np.mean(np.square(one - real))):.2f}" for one in (counted, guessed)]
        for some in (real > LIMIT, real <= LIMIT):
            cells += [f"{100 * np.mean(one[some] > LIMIT):.0f} %" if some.any() else "–" for one in (counted, guessed)]
        table.add_row(what, str(count), *cells)
    console.print(table)


if __name__ == "__main__":
    main()
