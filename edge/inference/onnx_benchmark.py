"""Latency and peak memory of an ONNX model, each measured in a fresh process that holds nothing else.

`Benchmark` keeps one small server process (Python, numpy and onnxruntime, no torch) that forks for every measurement:
so a figure costs no interpreter start, and the peak memory is that of a device that runs this one model. In the same
way it runs a model on whatever it is given (`Benchmark.program`): onnxruntime ends the process in which it runs some.
One process runs them all, one after the other, for as long as it lives: to start one takes longer than most models do.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
# After so many rounds a model is timed no longer whose quicker rounds take so much more than the fastest one's slower.
_SURE_ROUNDS, _CLEARLY = 8, 1.1
_PATIENCE_S = 3.0
_DIED = "onnxruntime ended the process that ran it"
_LENGTH = 8  # bytes that say how many follow; arrays go as safetensors
_CLOSED = bytes(_LENGTH)
# A line behind which requests go on: a process that died may have left a part of the one before it unread.
_GO_ON = b"go on, 3f9d0c7b8e1a4562\n"

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
        spread: Largest part by which the ratios of those that were timed to the end differ between even and odd rounds:
            what this machine did besides.
        rounds: How often it was each one's turn.
    """

    latencies_ms: tuple[float, ...]
    spread: float
    rounds: tuple[int, ...]


def compare_here(
    models: Sequence[bytes],
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    threads: int,
    budget_s: float,
    wanted: Collection[int] | None = None,
) -> Comparison:
    """Measure all models in turn, a few milliseconds each (less of a small budget), so that noise hits all alike.

    One thread is timed by what it ran, not by what it waited for a core. Who is clearly slower than the fastest, or not
    wanted, is timed for the first rounds only; the first model always is, because ratios are to it.

    Args:
        models: ONNX.
        feeds: For each, one batch of inputs by name.
        threads: Of each session.
        budget_s: How long to repeat, divided by all; at least four rounds, up to six times as long where ratios do not
            settle.
        wanted: Which ones the fastest is looked for among; None for all.

    Raises:
        BundleError: A model does not load.
    """
    sessions = [_opened(model, arrays, threads) for model, arrays in zip(models, feeds, strict=True)]
    clock = time.thread_time if threads == 1 else time.perf_counter
    turn_s, each_s = min(_TURN_S, budget_s / (_TURNS * len(models))), budget_s / len(models)
    wanted = range(len(models)) if wanted is None else wanted
    took: list[list[float]] = [[] for _ in models]  # of each model the lower quartile of its turns, seconds
    timed = list(range(len(models)))
    spent_s = 0.0  # by each of those that are timed yet
    while True:
        began_s = time.perf_counter()
        for i in timed:
            session, arrays = sessions[i], feeds[i]
            session.run(None, arrays)  # the one before it emptied the caches
            times: list[float] = []
            turn = time.perf_counter() + turn_s
            while not times or time.perf_counter() < turn:
                begin = clock()
                session.run(None, arrays)
                times.append(clock() - begin)
            took[i].append(sorted(times)[len(times) // 4])
        spent_s += (time.perf_counter() - began_s) / len(timed)
        found = np.array([took[i] for i in timed])
        ratios = found / found[0]
        if len(took[0]) >= 4 and spent_s >= each_s:
            even, odd = np.median(ratios[:, ::2], axis=1), np.median(ratios[:, 1::2], axis=1)
            spread = float((np.maximum(even, odd) / np.minimum(even, odd)).max() - 1)
            if spread <= SETTLED or spent_s > _MOST_BUDGETS * each_s:
                break
        if len(took[0]) >= _SURE_ROUNDS:
            timed = timed_yet(timed, ratios, wanted)
    first_ms = 1e3 * np.quantile(took[0], 0.25)
    medians = [float(np.median(np.array(times) / took[0][: len(times)])) for times in took]
    return Comparison(
        latencies_ms=tuple(float(first_ms * ratio) for ratio in medians),
        spread=spread,
        rounds=tuple(len(times) for times in took),
    )


def timed_yet(timed: Sequence[int], ratios: npt.NDArray[np.float64], wanted: Collection[int]) -> list[int]:
    """Which models are timed further: the first one, and those that may be the fastest of the wanted ones.

    Args:
        timed: Models that were timed in all rounds; the first is the one that ratios are to.
        ratios: ``(models, rounds)``, of each of them.
        wanted: See `compare_here`.
    """
    quicker, slower = np.quantile(ratios, (0.25, 0.75), axis=1)
    least = min((slower[k] for k, i in enumerate(timed) if i in wanted), default=0.0)
    return [i for k, i in enumerate(timed) if k == 0 or (i in wanted and quicker[k] <= _CLEARLY * least)]


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
        self._programs = 0  # that the process which runs them has opened; none where there is no such process

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
        self._end_programs()
        answer = self._ask({"model": str(model), "feeds": str(feeds), "threads": threads, "budget_s": budget_s})
        if "timing" not in answer:
            raise BundleError(f"the model could not be measured: {answer['error']}")
        return Timing(**answer["timing"])

    def compare(
        self,
        files: Sequence[tuple[Path, Path]],
        *,
        threads: int = 1,
        budget_s: float | None = None,
        wanted: Collection[int] | None = None,
    ) -> Comparison:
        """Compare several models, see `compare_here`, in one process of its own.

        Args:
            files: Of each its ONNX file and its safetensors file with one batch of inputs by name.
            threads: Of each session.
            budget_s: How long to repeat the run of each; None for the server's own budget.
            wanted: Which ones the fastest is looked for among; None for all.

        Raises:
            BundleError: One does not load or run, or the process died.
        """
        pairs = [[str(model), str(feeds)] for model, feeds in files]
        budget_s = (self.budget_s if budget_s is None else budget_s) * len(files)
        among = list(range(len(files)) if wanted is None else wanted)
        self._end_programs()
        answer = self._ask({"compare": pairs, "threads": threads, "budget_s": budget_s, "wanted": among})
        if "rounds" not in answer:
            raise BundleError(f"the models could not be compared: {answer['error']}")
        latencies_ms, rounds = tuple(answer["latencies_ms"]), tuple(answer["rounds"])
        return Comparison(latencies_ms=latencies_ms, spread=answer["spread"], rounds=rounds)

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
        """A model as a function of named arrays that runs in another process, until the end of a ``with``.

        Nothing else can be asked for as long. What other models that ran there may have left behind is not held against
        this one: where that process dies it is tried again in a new one.

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

        def opened() -> list[str]:
            self._programs += 1
            answer = self._ask(request)
            if "died" in answer and self._died():
                return opened()
            if "outputs" not in answer:
                raise BundleError(answer["error"])
            outputs: list[str] = answer["outputs"]
            return outputs

        names = opened()

        def run(batch: Arrays) -> dict[str, npt.NDArray[Any]]:
            if not self._programs:
                raise BundleError(_DIED)
            given = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in batch.items()})
            found = self._ask(len(given).to_bytes(_LENGTH, "little") + given)
            if "died" in found and self._died():
                opened()
                return run(batch)
            if "size" not in found:
                raise BundleError(found["error"])
            assert self._server.stdout is not None
            arrays = safetensors.numpy.load(self._server.stdout.read(found["size"]))
            return {name: arrays[name] for name in names}

        try:
            yield run
        except Exception:
            self._close()
            raise
        self._close()  # a signal does not wait for a run: `__exit__` ends it

    def _close(self) -> None:
        if self._programs:
            self._ask(_CLOSED)

    def _died(self) -> bool:
        """Note that the process that runs programs did; whether it had run others, too."""
        before, self._programs = self._programs, 0
        return before > 1

    def _end_programs(self) -> None:
        """End that process: what is measured has the machine alone."""
        if self._programs:
            self._programs = 0
            self._ask({"end": True})

    def _ask(self, request: Mapping[str, Any] | bytes) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
            answer: dict[str, Any] = json.loads(self._server.stdout.readline() or "null")
            if answer and "died" in answer:
                self._server.stdin.write(b"\n" + _GO_ON)
                self._server.stdin.flush()
        except (OSError, ValueError) as exc:
            raise BundleError("the process that measures ended") from exc
        return answer or {"error": "the process that measures ended", "died": True}


def serve(requests: BinaryIO, answers: int) -> None:
    """Answer requests, one JSON object a line, from child processes.

    Args:
        requests: Where they come from.
        answers: File descriptor to answer on.
    """
    np.median([0.0])  # numpy imports more of itself for this: once here, and not in each child
    gc.freeze()  # a child that looked for garbage among all that it was given would copy all of it
    for line in requests:
        child = os.fork()
        if child == 0:
            request = json.loads(line)
            if "program" in request:
                _run_programs(request, requests, answers)
            else:
                _answer(request, answers)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            _write(answers, {"error": _DIED, "died": True})
            while requests.readline() not in (_GO_ON, b""):
                pass


def _answer(request: dict[str, Any], answers: int) -> None:
    try:
        limits = request["threads"], request["budget_s"]
        found: dict[str, Any]
        if "compare" in request:
            models = [Path(model).read_bytes() for model, _ in request["compare"]]
            arrays = [safetensors.numpy.load_file(feeds) for _, feeds in request["compare"]]
            compared = compare_here(models, arrays, *limits, request["wanted"])
            found = {name: getattr(compared, name) for name in Comparison.__slots__}
        else:
            feeds = safetensors.numpy.load_file(request["feeds"])
            timing = measure_here(Path(request["model"]).read_bytes(), feeds, *limits)
            found = {"timing": {name: getattr(timing, name) for name in Timing.__slots__}}
    except Exception as exc:  # noqa: BLE001  # it is answered; onnxruntime's exceptions have no common base
        found = {"error": str(exc)[:500]}
    _write(answers, found)


def _run_programs(request: dict[str, Any], requests: BinaryIO, answers: int) -> None:
    """Run one model after the other until something else is asked for, or nobody asks any more."""
    while "program" in request:
        _run_on(request, requests, answers)
        request = json.loads(requests.readline() or "{}")
    if request:
        _write(answers, {"ended": True})


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
