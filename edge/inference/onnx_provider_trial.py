"""Whether one execution provider runs a bundle rightly here, and how fast; meant for a process of its own.

It must take at least a part of the graph (onnxruntime leaves all of it on the CPU without a word), meet the golden
outputs as they are met at opening, answer one sample as the CPU does, and another head as the CPU does.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, EdgeError
from edge.inference.onnx_providers import CPU, NAMES, provider_list
from edge.inference.onnx_session import OnnxSession, check_golden, difference, golden_inputs, open_onnx, session_options

# How long one may take to load, answer and be timed. TensorRT builds its engine in this time.
LIMIT_S = 120.0
_WARM_UP_RUNS, _LEAST_RUNS, _BUDGET_S = 3, 5, 0.5
_Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What came of trying one provider.

    Attributes:
        latency_ms: Median time of a run on one sample; None where it is not to be used.
        why: Why not; empty where it is.
    """

    latency_ms: float | None
    why: str = ""


def trial(
    bundle: Bundle,
    name: str,
    make: Callable[[str], OnnxSession],
    placed: Callable[[str], Mapping[str, int]],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of a run on one sample, in ms.

    Args:
        bundle: Opened.
        name: Of the provider.
        make: Opens the bundle on a provider.
        placed: How many nodes of the graph ran where, by onnxruntime's names.
        clock: A stopwatch, in seconds.

    Raises:
        BundleError: It is not to be used.
    """
    session = make(name)
    check_golden(session, bundle)
    feeds = _one_sample(bundle)
    if name != "cpu":
        where = placed(name)
        if not where.get(NAMES[name]):
            raise BundleError(f"onnxruntime leaves the whole graph on the CPU ({sum(where.values())} nodes)")
        _compare(bundle, session, make("cpu"), feeds)
    times: list[float] = []
    run = session.served  # a head is run on the CPU
    for _ in range(_WARM_UP_RUNS):
        run(feeds)
    end = clock() + _BUDGET_S
    while (begin := clock()) < end or len(times) < _LEAST_RUNS:
        run(feeds)
        times.append(clock() - begin)
    return float(np.median(times)) * 1e3


def _compare(bundle: Bundle, session: OnnxSession, cpu: OnnxSession, feeds: _Feeds) -> None:
    """One sample alone, several times, and another head: what a device asks for and the golden samples do not."""
    heads: list[Mapping[str, Any] | None] = [None, None, None]
    if shipped := bundle.head_parameters():
        heads.append({key: np.float32(-0.5) * array + np.float32(0.1) for key, array in shipped.items()})
    for head in heads:
        what = "one sample" if head is None else "another head"
        if why := difference(bundle, cpu.run(feeds, head), session.run(feeds, head)):
            raise BundleError(f"for {what} it gives other answers than the CPU: {why}")


def _one_sample(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """The first golden sample, or all of them where a graph takes no other number."""
    inputs, found = golden_inputs(bundle), {}
    for spec in bundle.manifest.inputs:
        array, axis = inputs[spec.name], spec.batch_axis
        is_free = axis is not None and bundle.manifest.fixed_batch is None
        found[spec.name] = np.asarray(np.take(array, [0], axis) if is_free else array, order="C")
    return found


def placement(bundle: Bundle, name: str, threads: int) -> dict[str, int]:
    """How many nodes ran where, by onnxruntime's own profile of one run."""
    with tempfile.TemporaryDirectory(prefix="edge-provider-") as folder:
        options = session_options(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "run")
        session = open_onnx(
            bundle.read(m.MODEL), m.MODEL, threads, providers=provider_list(name, threads), options=options
        )
        session.run(None, {**_one_sample(bundle), **bundle.head_parameters()})
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, int] = {}
    for event in events:
        if event.get("cat") == "Node" and (provider := event.get("args", {}).get("provider")):
            found[provider] = found.get(provider, 0) + 1
    return found or {CPU: 0}


def trial_command(bundle: Path, name: str, threads: int) -> list[str]:
    """What tries a provider."""
    return [sys.executable, "-m", "edge.inference.onnx_provider_trial", str(bundle), name, str(threads)]


def in_child(command: Sequence[str], limit_s: float) -> Trial:
    """Try a provider in a process, which may crash, hang or say nonsense.

    Args:
        command: Prints one JSON object: ``{"latency_ms": ...}`` or ``{"error": ...}``.
        limit_s: How long it may take.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    ) as child:
        try:
            said, _ = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return Trial(latency_ms=None, why=f"it did not answer within {limit_s:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # with whatever it started
    if child.returncode < 0:
        return Trial(latency_ms=None, why=f"its process ended with {_signal(-child.returncode)}")
    try:
        found = json.loads(said.splitlines()[-1])
        if "error" in found:
            return Trial(latency_ms=None, why=str(found["error"])[:300])
        latency_ms = float(found["latency_ms"])
        if not (math.isfinite(latency_ms) and latency_ms > 0):
            raise ValueError(latency_ms)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return Trial(latency_ms=None, why=f"its process ended with {child.returncode} and said nothing of use")
    return Trial(latency_ms=round(latency_ms, 4))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main(arguments: list[str]) -> None:
    """Print what came of it as one JSON object; whatever libraries print goes elsewhere."""
    answers = os.dup(1)
    os.dup2(2, 1)
    path, name, threads = arguments[0], arguments[1], int(arguments[2])
    found: dict[str, Any]
    try:
        bundle = Bundle.open(path)
        found = {
            "latency_ms": trial(
                bundle,
                name,
                lambda each: OnnxSession(bundle, threads, provider=each),
                lambda each: placement(bundle, each, threads),
            )
        }
    except EdgeError as exc:
        found = {"error": str(exc)}
    except Exception as exc:  # noqa: BLE001  # it is answered; onnxruntime's exceptions have no common base
        found = {"error": f"{type(exc).__name__}: {exc}"}
    os.write(answers, json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
