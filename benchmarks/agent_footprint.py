"""What an agent costs on a device: modules, resident memory, and time from start to the first answer.

    python benchmarks/agent_footprint.py [--bundle model.edge] [--runs 7] [--trust root.json]

Starts the real process `edge-agent run` with the digits bundle (made first when none is given), asks for a prediction
over its socket as soon as that is there, then learns 200 labels and looks again, and after 1,000; with a profile of no
budget and no limit of load, as labels that only wait take less. With --trust (`edge-fleet keys init`) it is the agent
of a fleet with keys; what looks at releases is a process of its own and not counted. The baseline, in the same run: a
Python process that imports onnxruntime and numpy and runs the same backbone once, which is the least that any program
on onnxruntime can cost. One thread. The goals: torch not imported, at most 80 MiB resident, at most 0.6 s.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edge.agent.client import AgentClient
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import ChannelError

ROOT = Path(__file__).resolve().parent.parent
LABELS = (200, 1000)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
BASELINE = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shapes = {each.name: [size if isinstance(size, int) else 1 for size in each.shape] for each in session.get_inputs()}
session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
print(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
"""


def make_bundle(folder: Path) -> Path:
    """Train and convert the digits example."""
    model = folder / "model.pth"
    subprocess.run([sys.executable, ROOT / "examples/01_digits_fleet/model.py", model], check=True, env=ENVIRONMENT)
    line = [sys.executable, "-m", "converter.cli", model]
    subprocess.run(line, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    return model.with_suffix(".edge")


def resident_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def unhurried(path: Path) -> Path:
    """Write a device profile with which labels are learned at once, whatever else this machine does."""
    shipped = (ROOT / "firmware_configs" / "generic-x86_64.toml").read_text()
    for name, value in (("max_load_per_core", 1000.0), ("budget_ms_per_s", 1000.0)):
        shipped, count = re.subn(rf"(?m)^{name} = .*", f"{name} = {value}", shipped)
        assert count == 1
    path.write_text(shipped)
    return path


def run_agent(bundle: Path, folder: Path, shape: tuple[int, ...], *options: str | Path) -> tuple[float, ...]:
    """Seconds to the first answer; MiB then, after each of `LABELS`, and at the peak; whether torch is loaded."""
    path = folder / "agent.sock"
    line = [sys.executable, "-m", "edge.cli.agent", "run", bundle, "--state-dir", folder, "--device", "bench"]
    line += ["--profile", unhurried(folder.with_suffix(".toml")), *options]
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    # A broker that is not there: the channel's code is loaded and tries, as on a device without a network.
    process = subprocess.Popen([*line, "--broker", "mqtt://127.0.0.1:1"], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                agent = AgentClient(path)
                break
            except ChannelError:
                if time.perf_counter() - start > 30:
                    raise
                time.sleep(0.002)
        agent.predict("first", np.zeros(shape, np.float32))
        first_s = time.perf_counter() - start
        first_mib = resident_mib(process.pid)
        learned_mib = []
        for i in range(max(LABELS)):
            agent.predict(str(i), rng.random(shape, np.float32))
            agent.label(str(i), i % 10)
            if i + 1 in LABELS:
                while agent.status()["waiting"]:
                    time.sleep(0.01)
                learned_mib.append(resident_mib(process.pid))
        torch_loaded = "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
        return first_s, first_mib, *learned_mib, resident_mib(process.pid, "VmHWM"), torch_loaded
    finally:
        process.terminate()
        process.wait()


def run_baseline(backbone: Path) -> tuple[float, float]:
    """Seconds and MiB of the smallest onnxruntime program."""
    start = time.perf_counter()
    line = [sys.executable, "-c", BASELINE, backbone]
    done = subprocess.run(line, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    return time.perf_counter() - start, int(done.stdout) / 1024


def main() -> int:
    """Print the table; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--trust", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = options.bundle or make_bundle(folder)
        opened = Bundle.open(bundle)
        shape = opened.manifest.inputs[0].sample_shape
        backbone = folder / "backbone.onnx"
        backbone.write_bytes(opened.read(m.MODEL))
        trust = ("--trust", options.trust) if options.trust else ()
        agents, baselines = [], []
        for i in range(options.runs):
            baselines.append(run_baseline(backbone))
            agents.append(run_agent(bundle, folder / f"state-{i}", shape, *trust))
    least_s, least_mib = (statistics.median(column) for column in zip(*baselines, strict=True))
    first_s, first_mib, *learned_mib, peak_mib, _ = (statistics.median(column) for column in zip(*agents, strict=True))
    torch_loaded = any(row[-1] for row in agents)
    print(f"medians of {options.runs} runs, 1 thread            agent   onnxruntime alone   ratio   goal")
    print(f"start to first answer, s             {first_s:8.3f} {least_s:16.3f} {first_s / least_s:9.2f}   <= 0.6")
    print(
        f"resident at the first answer, MiB    {first_mib:8.1f} {least_mib:16.1f} {first_mib / least_mib:9.2f}   <= 80"
    )
    for count, mib in zip(LABELS, learned_mib, strict=True):
        what = f"resident after {count} labels, MiB"
        print(f"{what:34}{mib:11.1f} {least_mib:16.1f} {mib / least_mib:9.2f}   <= 80")
    print(f"peak, MiB                            {peak_mib:8.1f}")
    print(f"torch loaded                         {'yes' if torch_loaded else 'no':>8}                              no")
    return int(torch_loaded or max(first_mib, *learned_mib) > 80 or first_s > 0.6)


if __name__ == "__main__":
    sys.exit(main())
