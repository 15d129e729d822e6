"""Latency and peak memory of an ONNX model, each measured in a fresh process that holds nothing else.

`Benchmark` keeps one small server process (Python, numpy and onnxruntime, no torch) that forks for every measurement:
so a figure costs no interpreter start, and the peak memory is that of a device that runs this one model. In the same
way it runs a model on whatever it is given (`Benchmark.program`): onnxruntime ends the process in which it runs some.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import safetensors.numpy

from edge.contract.errors import BundleError
from edge.inference.onnx_bound_run import BoundRun, OneByOne
from edge.inference.onnx_session import open_onnx, worth_keeping

WARM_UP_RUNS = 3
# How long a model is run before it is the next one's turn, and the least part of its budget that may be.
_TURN_S, _TURNS = 0.004, 8
# Where ratios differ by more than this between two halves of the rounds it goes on, up to so many times the budget.
SETTLED, _MOST_BUDGETS = 0.02, 6
_PATIENCE_S = 3.0
_DIED = "onnxruntime ended the process that ran it"
_LENGTH = 8  # bytes that say how many follow; arrays go as safetensors
_CLOSED = bytes(_LENGTH)

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What one process measured.

    Attributes:
        load_s: Time to load the model.
        first_ms: Time of the first run.
        latency_ms: Median time of a run.
        latency_p90_ms: 90th percentile.
        runs: How many were timed.
        peak_memory_bytes: Largest resident set of the whole process.
    """

    load_s: float
    first_ms: float
    latency_ms: float
    latency_p90_ms: float
    runs: int
    peak_memory_bytes: int


def measure_here(model: bytes, feeds: Mapping[str, npt.NDArray[Any]], threads: int, budget_s: float) -> Timing:
    """Measure in this process.

    Args:
        model: ONNX.
        feeds: One batch of inputs by name.
        threads: Of the session.
        budget_s: How long to repeat the run; five runs at least.

    Raises:
        BundleError: The model does not load.
    """
    start = time.perf_counter()
    session = _opened(model, feeds, threads)
    loaded = time.perf_counter()
    names = [output.name for output in session.get_outputs()]
    session.run(names, feeds)
    first = time.perf_counter()
    for _ in range(WARM_UP_RUNS):
        session.run(names, feeds)
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while (begin := time.perf_counter()) < end or len(times) < 5:
        session.run(names, feeds)
        times.append(time.perf_counter() - begin)
    return Timing(
        load_s=loaded - start,
        first_ms=(first - loaded) * 1e3,
        latency_ms=float(np.median(times)) * 1e3,
        latency_p90_ms=float(np.percentile(times, 90)) * 1e3,
        runs=len(times),
        peak_memory_bytes=peak_memory_bytes(),
    )


def _opened(model: bytes, feeds: Mapping[str, npt.NDArray[Any]], threads: int) -> ort.InferenceSession:
    """As `OnnxSession` opens it."""
    keeps = worth_keeping(len(model), sum(array.nbytes for array in feeds.values()))
    return open_onnx(model, "the model", threads, keeps_memory=keeps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Latencies that can be compared.

    Attributes:
        latencies_ms: For each model the time of a run: that of the first, and of each other one the median of its
            ratios to the first in the same round. A core that is shared runs at two speeds, and changes between them.
        spread: Largest part by which these ratios differ between even and odd rounds: what this machine did besides.
    """

    latencies_ms: tuple[float, ...]
    spread: float


def compare_here(
    models: Sequence[bytes], feeds: Sequence[Mapping[str, npt.NDArray[Any]]], threads: int, budget_s: float
) -> Comparison:
    """Measure all models in turn, a few milliseconds each (less of a small budget), so that noise hits all alike.

    One thread is timed by what it ran, not by what it waited for a core.

    Args:
        models: ONNX.
        feeds: For each, one batch of inputs by name.
        threads: Of each session.
        budget_s: How long to repeat, at least four rounds; up to six times as long where ratios do not settle.

    Raises:
        BundleError: A model does not load.
    """
    sessions = [_opened(model, arrays, threads) for model, arrays in zip(models, feeds, strict=True)]
    clock = time.thread_time if threads == 1 else time.perf_counter
    turn_s = min(_TURN_S, budget_s / (_TURNS * len(models)))
    rounds: list[list[float]] = []  # of each model the lower quartile of its turn, seconds
    began_s = time.perf_counter()
    while True:
        rounds.append([])
        for session, arrays in zip(sessions, feeds, strict=True):
            session.run(None, arrays)  # the one before it emptied the caches
            times: list[float] = []
            turn = time.perf_counter() + turn_s
            while not times or time.perf_counter() < turn:
                begin = clock()
                session.run(None, arrays)
                times.append(clock() - begin)
            rounds[-1].append(sorted(times)[len(times) // 4])
        took_s = time.perf_counter() - began_s
        if len(rounds) < 4 or took_s < budget_s:
            continue
        found = np.array(rounds)
        ratios = found / found[:, :1]
        even, odd = np.median(ratios[::2], axis=0), np.median(ratios[1::2], axis=0)
        spread = float((np.maximum(even, odd) / np.minimum(even, odd)).max() - 1)
        if spread <= SETTLED or took_s > _MOST_BUDGETS * budget_s:
            first_ms = 1e3 * np.quantile(found[:, 0], 0.25)
            return Comparison(latencies_ms=tuple((first_ms * np.median(ratios, axis=0)).tolist()), spread=spread)


def peak_memory_bytes() -> int:
    """Largest resident set that this process has had (``VmHWM``; getrusage counts the parent before an exec, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class Benchmark:
    """A server to measure with, started when it is first needed, or before; use it in a ``with`` statement.

    Args:
        budget_s: How long to repeat a run, for each model.
    """

    def __init__(self, budget_s: float = 0.1) -> None:
        self.budget_s = budget_s
        self._running: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Benchmark:
        return self

    def start(self) -> None:
        """Start it, if it does not run: who does this early does not wait for it later."""
        if self._running is not None:
            return
        command = [sys.executable, "-m", "edge.inference.onnx_benchmark"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._running = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us; we end it
        )

    @property
    def _server(self) -> subprocess.Popen[bytes]:
        self.start()
        assert self._running is not None
        return self._running

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is None:
            return
        # It ends by itself when nobody asks any more: killed while it starts, it would leave a temporary file.
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with contextlib.suppress(OSError):
            self._server.stdin.close()
        try:
            self._server.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)  # with the child that measures
            self._server.wait()
        self._server.stdout.close()

    def measure(self, model: Path, feeds: Path, *, threads: int = 1, budget_s: float | None = None) -> Timing:
        """Measure in a process of its own.

        Args:
            model: ONNX file.
            feeds: Safetensors file with one batch of inputs by name.
            threads: Of the session.
            budget_s: How long to repeat the run, five runs at least; None for the server's own budget.

        Raises:
            BundleError: The model does not load, does not run, or the process died.
        """
        budget_s = self.budget_s if budget_s is None else budget_s
        answer = self._ask({"model": str(model), "feeds": str(feeds), "threads": threads, "budget_s": budget_s})
        if "timing" not in answer:
            raise BundleError(f"the model could not be measured: {answer['error']}")
        return Timing(**answer["timing"])

    def compare(
        self, files: Sequence[tuple[Path, Path]], *, threads: int = 1, budget_s: float | None = None
    ) -> Comparison:
        """Compare several models, see `compare_here`, in one process of its own.

        Args:
            files: Of each its ONNX file and its safetensors file with one batch of inputs by name.
            threads: Of each session.
            budget_s: How long to repeat the run of each; None for the server's own budget.

        Raises:
            BundleError: One does not load or run, or the process died.
        """
        pairs = [[str(model), str(feeds)] for model, feeds in files]
        budget_s = (self.budget_s if budget_s is None else budget_s) * len(files)
        answer = self._ask({"compare": pairs, "threads": threads, "budget_s": budget_s})
        if "latencies_ms" not in answer:
            raise BundleError(f"the models could not be compared: {answer['error']}")
        return Comparison(latencies_ms=tuple(answer["latencies_ms"]), spread=answer["spread"])

    @contextlib.contextmanager
    def program(
        self,
        model: Path,
        feeds: Path,
        *,
        threads: int = 1,
        config: Mapping[str, str] | None = None,
        one_by_one: Mapping[str, int] | None = None,
    ) -> Iterator[Callable[[Arrays], dict[str, npt.NDArray[Any]]]]:
        """A model as a function of named arrays that runs in a process of its own, until the end of a ``with``.

        Nothing else can be asked for as long.

        Args:
            model: ONNX file.
            feeds: Safetensors file with inputs that are always the same.
            threads: Of the session.
            config: Of the session, see `edge.inference.onnx_session.session_options`.
            one_by_one: Where samples lie, see `OneByOne`, if each is to be run alone.

        Raises:
            BundleError: The model does not load; from the function: it does not run, or the process died.
        """
        request = {"program": str(model), "feeds": str(feeds), "threads": threads, "config": dict(config or {})}
        request["one_by_one"] = None if one_by_one is None else dict(one_by_one)
        answer = self._ask(request)
        if "outputs" not in answer:
            raise BundleError(answer["error"])
        is_open = True

        def run(batch: Arrays) -> dict[str, npt.NDArray[Any]]:
            nonlocal is_open
            given = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in batch.items()})
            found = self._ask(len(given).to_bytes(_LENGTH, "little") + given)
            if "died" in found or "size" not in found:
                is_open = "died" not in found
                raise BundleError(found["error"])
            assert self._server.stdout is not None
            arrays = safetensors.numpy.load(self._server.stdout.read(found["size"]))
            return {name: arrays[name] for name in answer["outputs"]}

        try:
            yield run
        except Exception:
            self._close(is_open)
            raise
        self._close(is_open)  # a signal does not wait for a run: `__exit__` ends it

    def _close(self, is_open: bool) -> None:
        if is_open:
            self._ask(_CLOSED)

    def _ask(self, request: Mapping[str, Any] | bytes) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
            answer: dict[str, Any] = json.loads(self._server.stdout.readline() or "null")
        except (OSError, ValueError) as exc:
            raise BundleError("the process that measures ended") from exc
        return answer or {"error": "the process that measures ended", "died": True}


def serve(requests: BinaryIO, answers: int) -> None:
    """Answer requests, one JSON object a line, each from a child process.

    Args:
        requests: Where they come from.
        answers: File descriptor to answer on.
    """
    np.median([0.0])  # numpy imports more of itself for this: once here, and not in each child
    for line in requests:
        child = os.fork()
        if child == 0:
            request = json.loads(line)
            if "program" in request:
                _run_on(request, requests, answers)
            else:
                _answer(request, answers)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            _write(answers, {"error": _DIED, "died": True})


def _answer(request: dict[str, Any], answers: int) -> None:
    try:
        limits = request["threads"], request["budget_s"]
        found: dict[str, Any]
        if "compare" in request:
            models = [Path(model).read_bytes() for model, _ in request["compare"]]
            arrays = [safetensors.numpy.load_file(feeds) for _, feeds in request["compare"]]
            compared = compare_here(models, arrays, *limits)
            found = {"latencies_ms": compared.latencies_ms, "spread": compared.spread}
        else:
            feeds = safetensors.numpy.load_file(request["feeds"])
            timing = measure_here(Path(request["model"]).read_bytes(), feeds, *limits)
            found = {"timing": {name: getattr(timing, name) for name in Timing.__slots__}}
    except Exception as exc:  # noqa: BLE001  # it is answered; onnxruntime's exceptions have no common base
        found = {"error": str(exc)[:500]}
    _write(answers, found)


def _run_on(request: dict[str, Any], requests: BinaryIO, answers: int) -> None:
    """Run one model on arrays until there are no more."""
    try:
        fixed = safetensors.numpy.load_file(request["feeds"])
        session = open_onnx(request["program"], "the model", request["threads"], request["config"])
        names = [output.name for output in session.get_outputs()]
        run: Callable[[Arrays], dict[str, npt.NDArray[Any]]] = BoundRun(session, names)
        if request["one_by_one"] is not None:
            run = OneByOne(BoundRun(session, names), request["one_by_one"])
    except Exception as exc:  # noqa: BLE001  # as above
        _write(answers, {"error": str(exc)[:500]})
        return
    _write(answers, {"outputs": names})
    while size := int.from_bytes(requests.read(_LENGTH), "little"):
        arrays = requests.read(size)
        if len(arrays) < size:  # who asked is gone
            return
        try:
            batch = safetensors.numpy.load(arrays)
            found = run({**batch, **fixed})
            given = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in found.items()})
        except Exception as exc:  # noqa: BLE001  # as above
            _write(answers, {"error": str(exc)[:500]})
        else:
            _write(answers, {"size": len(given)}, given)
    _write(answers, {"closed": True})


def _write(answers: int, found: Mapping[str, Any], arrays: bytes = b"") -> None:
    data = memoryview(json.dumps(found).encode() + b"\n" + arrays)
    while data:
        data = data[os.write(answers, data) :]


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.fileno())
