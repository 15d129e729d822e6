"""edge-convert beside its peers, on networks trained here: conversion, size, accuracy, latency, start-up, memory.

    python benchmarks/convert_vs_peers.py [--quick] [--peer-python nncf=VENV/bin/python ...] [--json FILE]

Every conversion is one whole process, timed from spawn to exit; its peak memory is the largest sum of the resident
sets of the process and its children, and pages that they share count twice. Every latency is taken in a process of
its own, one thread, batch 1, all variants in turns of a hundredth of a second, so that what the machine does besides
hits all alike (one that shares its cores runs at two speeds, and changes between them by the second): ratios are the
medians of those of the same turn. Start-up is spawn to first output, best round, files in the page cache. Accuracy is
that of the written file, on 500 digits that no training and no calibration saw. The last lines say whether the goals
are met, and the exit status is 1 if one is not.

A peer that cannot live in this environment gets its own: ``python -m venv``, the line that the script prints, and
``--peer-python``. A peer that is not installed is left out, and the script says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console
from rich.table import Table

from benchmarks.networks.training import NETWORKS, Network
from benchmarks.peers import edge_convert
from benchmarks.peers.process import FIRST_OUTPUT

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
PEERS = ("onnxruntime", "edge_convert", "nncf", "executorch", "olive")
FLOAT, OURS = "onnxruntime float", ("edge-convert auto", "edge-convert auto-onnx")
CNNS = ("depthwise_cnn", "residual_cnn", "mobilenet_v2")
VNNI_FLAGS = ("avx512_vnni", "avx_vnni")
CPU_FLAGS = ("avx2", "fma", "avx512f", *VNNI_FLAGS, "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
TIME_LIMIT_S = 900
MIB = 1 << 20

VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


@dataclass(kw_only=True, slots=True)
class Result:
    """One variant on one network.

    Attributes:
        conversion_s: Of the whole process.
        conversion_memory_bytes: Largest resident memory of it and its children.
        size_bytes: Of the file that it wrote.
        accuracy: 0..1, None where the network has random weights.
        latency_ms: Median of each turn; turns of one place are those of the same moment.
        start_up_s: From spawn to first output, each round.
        memory_bytes: Largest resident set of the process that runs the model, each round.
        error: Last words of the process that failed.
    """

    conversion_s: float | None = None
    conversion_memory_bytes: int | None = None
    size_bytes: int | None = None
    accuracy: float | None = None
    latency_ms: list[float] = field(default_factory=list)
    start_up_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to convert.

    Attributes:
        peer: Module in `benchmarks.peers`.
        name: One of the module's ``VARIANTS``.
        python: Interpreter that has the peer.
    """

    peer: str
    name: str
    python: str

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.peer.replace('_', '-')} {self.name}"

    def artifact(self, folder: Path) -> Path:
        """The file that it writes."""
        suffix = edge_convert.suffix(self.name) if self.peer == "edge_convert" else peer_module(self.peer).SUFFIX
        return folder / f"{self.peer}-{self.name}{suffix}"

    def process(self, *arguments: object) -> list[str]:
        """Command line of `benchmarks.peers.process`."""
        return [self.python, "-m", "benchmarks.peers.process", self.peer, *map(str, arguments)]

    def conversion(self, network: Network, folder: Path, artifact: Path, target: str) -> list[str]:
        """Command line that converts."""
        if self.peer == "edge_convert":
            return edge_convert.command(self.python, self.name, network.arch, folder, artifact, target)
        return self.process("convert", self.name, network.arch, folder, artifact)


def peer_module(name: str) -> Any:
    """Its libraries are not imported by that."""
    return importlib.import_module(f"benchmarks.peers.{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A process that ended.

    Attributes:
        seconds: From spawn to exit.
        peak_memory_bytes: Largest resident memory, children included; 0 if nobody looked.
        answer: The JSON object in its last line; empty if there is none.
        error: Last lines of standard error if it failed.
    """

    seconds: float
    peak_memory_bytes: int
    answer: dict[str, float]
    error: str | None


def run(command: list[str], log: Path, watched: bool = False) -> Ended:
    """Run a process to its end.

    Args:
        command: Its command line.
        log: File for its standard error.
        watched: Look at the memory of it and its children all the time.
    """
    lines: list[str] = []
    start = time.perf_counter()
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=ENVIRONMENT, start_new_session=True
        ) as process,
    ):
        limit = threading.Timer(TIME_LIMIT_S, process.kill)
        limit.start()
        memory = MemoryWatch(process.pid, watched)
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
        process.wait()
        seconds = time.perf_counter() - start
        limit.cancel()
    error = None
    if process.returncode != 0:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        error = f"exit {process.returncode}: " + " | ".join((said or lines)[-2:])[-400:]
    try:
        answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    except ValueError:
        answer = {}
    return Ended(seconds=seconds, peak_memory_bytes=memory.stop(), answer=answer, error=error)


class MemoryWatch:
    """The largest resident memory of a process and its children, looked at every 30 ms.

    Not ``ru_maxrss``: that counts what the parent had before the exec, and of several children only the largest.
    """

    def __init__(self, pid: int, active: bool) -> None:
        self._pid, self._peak, self._done = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if active:
            self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.03):
            family_bytes = sum(resident_bytes(pid, "VmRSS:") for pid in family(self._pid))
            self._peak = max(self._peak, family_bytes, resident_bytes(self._pid, "VmHWM:"))

    def stop(self) -> int:
        """End, and say the largest sum in bytes; 0 if it was not active."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        return self._peak


def family(pid: int) -> Iterator[int]:
    """The process and its children, theirs, and so on."""
    yield pid
    try:
        texts = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it, or a thread of it, has ended
        return
    for child in " ".join(texts).split():
        yield from family(int(child))


def resident_bytes(pid: int, entry: str) -> int:
    """``VmRSS:`` (now) or ``VmHWM:`` (the most so far) of a process; 0 when it is gone."""
    try:
        found = Path(f"/proc/{pid}/status").read_text().partition(entry)[2].split()
    except OSError:
        return 0
    return int(found[0]) * 1024 if found else 0


def cpu() -> tuple[str, list[str]]:
    """Name of the processor and those of its instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    fields = {key.strip().lower(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", fields.get("features", "")).split()
    return fields.get("model name", platform.machine()), [flag for flag in CPU_FLAGS if flag in flags]


def installed_variants(names: list[str], pythons: dict[str, str], console: Console) -> list[Variant]:
    """The variants of the peers that are there; says of each peer what it is or how to install it."""
    variants = []
    for name in names:
        module, python = peer_module(name), pythons.get(name, sys.executable)
        asked = subprocess.run(
            [python, "-c", VERSIONS, *module.DISTRIBUTIONS], capture_output=True, text=True, check=True
        )
        found: dict[str, str | None] = json.loads(asked.stdout)
        missing = [distribution for distribution, version in found.items() if version is None]
        if missing:
            console.print(f"  {name}: not installed ({', '.join(missing)} missing): {module.INSTALL}", soft_wrap=True)
            console.print(f"    then: --peer-python {name}=VENV/bin/python", soft_wrap=True)
            continue
        console.print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in found.items()), soft_wrap=True)
        variants += [Variant(peer=name, name=variant, python=python) for variant in module.VARIANTS]
    return variants


def convert_all(
    network: Network, variants: list[Variant], folder: Path, target: str, console: Console
) -> dict[str, Result]:
    """Convert with every variant, and take size and accuracy of each file."""
    results = {}
    output = folder / "converted"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    for variant in variants:
        results[variant.label] = result = Result()
        artifact = variant.artifact(output)
        log = output / f"{artifact.name}.log"
        ended = run(variant.conversion(network, folder, artifact, target), log, watched=True)
        result.conversion_s, result.conversion_memory_bytes = ended.seconds, ended.peak_memory_bytes
        result.error = ended.error or (None if artifact.exists() else "no file was written")
        if result.error is None:
            result.size_bytes = artifact.stat().st_size
            if (folder / "evaluate.npz").exists():
                ended = run(variant.process("evaluate", artifact, folder), log)
                result.error, result.accuracy = ended.error, ended.answer.get("accuracy")
        outcome = result.error or f"converted in {result.conversion_s:.1f} s"
        console.print(f"  {network.name}, {variant.label}: {outcome}", markup=False, soft_wrap=True)
    return results


class Measuring:
    """A process that runs one variant and times it when asked.

    Args:
        command: Its command line.
        log: File for its standard error.

    Attributes:
        start_up_s: From spawn to first output.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self.start_up_s = 0.0

    def __enter__(self) -> Measuring:
        start = time.perf_counter()
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        self._limit = threading.Timer(TIME_LIMIT_S, self._process.kill)
        self._limit.start()
        try:
            while self._line() != FIRST_OUTPUT:
                pass
        except BaseException:
            self.__exit__()
            raise
        self.start_up_s = time.perf_counter() - start
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # it may have ended with a line on its way
                assert pipe is not None
                pipe.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = [each.strip() for each in self._log.read_text(errors="replace").splitlines() if each.strip()]
            raise RuntimeError(f"exit {self._process.wait()}: " + " | ".join(said[-2:])[-400:])
        return line.strip()

    def turn(self) -> float:
        """Time it for a moment: milliseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(json.loads(self._line())["latency_ms"])

    def end(self) -> int:
        """End it: the largest resident set that it had, in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return int(json.loads(self._line())["peak_memory_bytes"])


def measure_all(
    variants: list[Variant], folder: Path, results: dict[str, Result], rounds: int, turns: int, seconds: float
) -> None:
    """Latency, start-up and memory: each round starts all variants, another one first, and times them in turns."""
    output = folder / "converted"
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            running: dict[str, Measuring] = {}

            def failed(label: str, error: Exception, running: dict[str, Measuring] = running) -> None:
                results[label] = replace(results[label], error=str(error), latency_ms=[])
                running.pop(label, None)

            ready = [variant for variant in variants if results[variant.label].error is None]
            for variant in ready[number % max(len(ready), 1) :] + ready[: number % max(len(ready), 1)]:
                artifact = variant.artifact(output)
                command = variant.process("measure", artifact, folder, "--seconds", seconds)
                try:
                    one = stack.enter_context(Measuring(command, output / f"{artifact.name}.log"))
                except RuntimeError as exc:
                    failed(variant.label, exc)
                    continue
                running[variant.label] = one
                results[variant.label].start_up_s.append(one.start_up_s)
            for _ in range(turns):
                for label, one in list(running.items()):
                    try:
                        results[label].latency_ms.append(one.turn())
                    except (RuntimeError, OSError) as exc:
                        failed(label, exc)
            for label, one in running.items():
                results[label].memory_bytes.append(one.end())


def ratio(ours: Result, other: Result) -> float | None:
    """How many times as long as another one it takes: the median of the turns; None where one was not measured."""
    pairs = list(zip(ours.latency_ms, other.latency_ms, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def table(network: Network, results: dict[str, Result]) -> Table:
    """One network."""
    found = Table(title=f"{network.name} {network.input_shape}", title_justify="left")
    found.add_column("variant", no_wrap=True)
    headings = ("convert s", "MiB", "file KiB", "accuracy", "loss, points", "ms", "x float", "start-up s", "run MiB")
    for heading in headings:
        found.add_column(heading, justify="right")
    base = results.get(FLOAT, Result())
    for label, result in results.items():
        cells = ["-"] * len(headings)
        if result.conversion_s is not None and result.conversion_memory_bytes is not None:
            cells[:2] = [f"{result.conversion_s:.1f}", f"{result.conversion_memory_bytes / MIB:.0f}"]
        if result.size_bytes is not None:
            cells[2] = f"{result.size_bytes / 1024:.0f}"
        if result.accuracy is not None:
            cells[3] = f"{result.accuracy:.4f}"
            if base.accuracy is not None:
                cells[4] = f"{100 * (base.accuracy - result.accuracy):+.1f}"
        if result.latency_ms:
            cells[5] = f"{statistics.median(result.latency_ms):.4f}"
            if (speed := ratio(base, result)) is not None:
                cells[6] = f"{speed:.2f}"
            cells[7:] = [f"{min(result.start_up_s):.2f}", f"{min(result.memory_bytes) / MIB:.0f}"]
        found.add_row(label, *cells)
    return found


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the verdict: met, not met, or None for what cannot be seen in this run."""

    text: str
    met: bool | None
    seen: str

    @classmethod
    def limit(
        cls, text: str, value: float | None, unit: str, *, ours: Result | None, most: float = 0, least: float = 0
    ) -> Goal:
        """Compare a value with what it may be at most, or must be at least.

        Args:
            text: The goal.
            value: What was measured, or None.
            unit: Of the value, with a space before it.
            ours: What the goal is about: without a value, it fails if that failed and is open if it was not run.
            most: Largest value allowed, if not 0.
            least: Smallest value allowed, if not 0.
        """
        if value is None:
            error = ours.error if ours is not None else None
            return cls(text, False if error else None, error or "not run")
        rounding = 1e-9  # one sample in 500 is 0.2 points, and must not fail by the last bit of a float
        met = value >= least - rounding and (not most or value <= most + rounding)
        return cls(text, met, f"{value:.2f}{unit}")


def goals(results: dict[str, dict[str, Result]], vnni: bool) -> list[Goal]:
    """What the converter promises, against what was measured."""
    found = []
    for network, rows in results.items():
        for label in OURS:
            if label in rows:
                found += network_goals(network, label, rows, vnni)
    for network, mode, most in (("mlp", "auto", 5), ("mobilenet_v2", "int8", 10), ("mobilenet_v2", "auto", 45)):
        row = results.get(network, {}).get(f"edge-convert {mode}")
        took = row.conversion_s if row is not None and row.error is None else None
        text = f"{network}, --quantize {mode}: converted within {most} s"
        found.append(Goal.limit(text, took, " s", ours=row, most=most))
    peaks = [
        row.conversion_memory_bytes / MIB
        for rows in results.values()
        for label, row in rows.items()
        if label.startswith("edge-convert") and row.error is None and row.conversion_memory_bytes is not None
    ]
    text = "edge-convert: peak memory at most 1 GiB"
    return [*found, Goal.limit(text, max(peaks, default=None), " MiB", ours=None, most=1024)]


def network_goals(network: str, label: str, rows: dict[str, Result], vnni: bool) -> list[Goal]:
    """Accuracy and latency on one network."""
    found = []
    base, ours, prefix = rows.get(FLOAT, Result()), rows[label], f"{network}, {label}"
    if NETWORKS[network].size:
        drop = None
        if base.accuracy is not None and ours.accuracy is not None:
            drop = 100 * (base.accuracy - ours.accuracy)
        found.append(Goal.limit(f"{prefix}: loses at most 0.5 points", drop, " points", ours=ours, most=0.5))
        if network == "depthwise_cnn" and vnni:
            text = f"{prefix}: the same where stock per-channel U8S8 saturates"
            found.append(Goal(text, None, "this CPU has VNNI, which does not saturate"))
    others = {name: row for name, row in rows.items() if row.latency_ms and not name.startswith("edge-convert")}
    times = {name: ratio(ours, row) for name, row in others.items()}
    peer = max(times, key=lambda name: times[name] or 0.0, default=None)
    text = f"{prefix}: latency at most 1.02 of the best peer's ({peer})"
    found.append(Goal.limit(text, times[peer] if peer else None, " x", ours=ours, most=1.02))
    if network in CNNS:
        speed = ratio(base, ours)
        text = f"{prefix}: 1.5 times as fast as float on a CPU without VNNI"
        if vnni:
            seen = "" if speed is None else f"; {speed:.2f} x with it"
            found.append(Goal(text, None, f"this CPU has VNNI{seen}"))
        else:
            found.append(Goal.limit(text, speed, " x", ours=ours, least=1.5))
    return found


def peer_pythons(values: list[str]) -> dict[str, str]:
    """``NAME=PATH`` pairs."""
    pairs = dict(value.partition("=")[::2] for value in values)
    for name, path in pairs.items():
        if name not in PEERS or not Path(path).is_file():
            raise SystemExit(f"--peer-python {name}={path}: expected one of {', '.join(PEERS)}, = and a Python")
    return pairs


def main() -> int:
    """Print the tables and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / ".cache", help="folder for all files")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="separated by commas")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--target", help="device profile for edge-convert; by default that of this CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=100, help="in one round")
    parser.add_argument("--seconds", type=float, default=0.01, help="of timing in one turn")
    parser.add_argument("--quick", action="store_true", help="one round, onnxruntime and edge-convert only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    names = ["onnxruntime", "edge_convert"] if options.quick else options.peers.split(",")
    unknown = [*({*names} - {*PEERS}), *({*options.networks.split(",")} - {*NETWORKS})]
    if unknown:
        parser.error(f"{', '.join(unknown)}: the peers are {', '.join(PEERS)}, the networks {', '.join(NETWORKS)}")
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    name, flags = cpu()
    vnni = any(flag in flags for flag in VNNI_FLAGS)
    x86 = platform.machine() == "x86_64"
    target = options.target or ("x86_64-vnni" if vnni else "generic-x86_64" if x86 else "generic-arm64")
    console.print(f"CPU: {name}, {os.cpu_count()} cores; {' '.join(flags)}; load {os.getloadavg()[0]:.1f}")
    if vnni:
        console.print("This CPU has VNNI: what is claimed for CPUs without it cannot be observed here.")
    console.print(f"edge-convert --target {target}; one thread, batch 1. Peers:")
    variants = installed_variants(names, peer_pythons(options.peer_python), console)
    rounds = 1 if options.quick else options.rounds
    work, chosen = options.work.resolve(), options.networks.split(",")
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    training = [sys.executable, "-m", "benchmarks.networks.training", "--work", str(work), *chosen]
    subprocess.run(training, check=True, cwd=ROOT, env=ENVIRONMENT)
    results = {}
    for network in (NETWORKS[name] for name in chosen):
        folder = network.folder(work)
        results[network.name] = convert_all(network, variants, folder, target, console)
        measure_all(variants, folder, results[network.name], rounds, options.turns, options.seconds)
        console.print(table(network, results[network.name]))
    verdict = goals(results, vnni)
    for goal in verdict:
        word = "NOT SEEN" if goal.met is None else "PASS" if goal.met else "FAIL"
        console.print(f"{word:<8}  {goal.text}: {goal.seen}", markup=False, soft_wrap=True)
    if options.json:
        document = {
            "cpu": name,
            "flags": flags,
            "target": target,
            "rounds": rounds,
            "turns": options.turns,
            "results": {network: {key: asdict(row) for key, row in rows.items()} for network, rows in results.items()},
            "goals": [asdict(goal) for goal in verdict],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(goal.met is False for goal in verdict) else 0


if __name__ == "__main__":
    sys.exit(main())
