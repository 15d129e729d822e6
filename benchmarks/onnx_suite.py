"""The ONNX backend tests through ``edge-convert --quantize none``: is what onnxruntime runs carried, and right?

    python benchmarks/onnx_suite.py [--draw N --seed S] [--only WILDCARD] [--given-data] [--json FILE]

Taken are all tests of the installed ``onnx`` package (of single operators, simple models, and those that torch once
wrote) that stock onnxruntime passes with default options and whose inputs and outputs are tensors. Each model is
written to a file, converted in this process, and the bundle is opened and run on the test's own inputs, as a device
does it. Right means that every output is that of the test, with its tolerances, and that of onnxruntime on the file.

Without ``--given-data`` the converter sees the model alone; with it, the test's inputs are its ``--example``. The exit
status is 1 when one is wrong, or fewer than 98 % are right.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.loader import load_model_tests
from rich.console import Console
from rich.table import Table

from converter.pipeline import convert
from converter.plan import ConversionPlan
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, EdgeError
from edge.contract.profile import load_profile
from edge.inference.onnx_benchmark import Benchmark
from edge.inference.onnx_session import OnnxSession

GOAL = 0.98
KINDS = ("simple", "pytorch-operator", "pytorch-converted")
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Case:
    """A backend test.

    Attributes:
        name: Of the test.
        model: The file.
        inputs: By name.
        wanted: What it has to give, in order.
        rtol: Relative tolerance of the test.
        atol: Absolute one.
    """

    name: str
    model: onnx.ModelProto
    inputs: Arrays
    wanted: list[npt.NDArray[Any]]
    rtol: float
    atol: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a test: ``right``, ``refused``, ``wrong`` or ``crashed``, why, and how it was packed."""

    name: str
    status: str
    why: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def cases(modules: Collection[str] = ()) -> Iterator[Case]:
    """All backend tests with tensors in and out.

    Args:
        modules: Of the tests of single operators only those in these modules; the arithmetic of all takes long.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own arithmetic divides by zero on purpose
        for name in modules:
            importlib.import_module(f"{node.__name__}.{name}")  # which puts its tests into a list
        found = node._NodeTestCases if modules else node.collect_testcases()
    for test in found:
        for inputs, wanted in test.data_sets:
            yield from _case(test.name, test.model, inputs, wanted, test.rtol, test.atol)
    for kind in KINDS:
        for test in load_model_tests(kind=kind):
            folder = Path(test.model_dir)
            data = folder / "test_data_set_0"
            tensors = [
                [_tensor(data / f"{what}_{i}.pb") for i in range(len(list(data.glob(f"{what}_*.pb"))))]
                for what in ("input", "output")
            ]
            if all(item is not None for items in tensors for item in items):
                yield from _case(test.name, onnx.load(folder / "model.onnx"), *tensors, test.rtol, test.atol)


def _tensor(path: Path) -> npt.NDArray[Any] | None:
    try:
        return np.asarray(numpy_helper.to_array(onnx.load_tensor(path)))
    except Exception:  # noqa: BLE001  # a sequence or an optional value, which is no tensor
        return None


def _case(
    name: str, model: onnx.ModelProto, inputs: Sequence[Any], wanted: Sequence[Any], rtol: float, atol: float
) -> Iterator[Case]:
    given = {tensor.name for tensor in model.graph.initializer}
    names = [info.name for info in model.graph.input if info.name not in given]
    if not all(info.type.HasField("tensor_type") for info in [*model.graph.input, *model.graph.output]):
        return
    arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x) for x in inputs]
    if len(names) > len(arrays):  # the rest are initializers, too
        return
    outputs = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x) for x in wanted]
    yield Case(
        name=name, model=model, inputs=dict(zip(names, arrays, strict=False)), wanted=outputs, rtol=rtol, atol=atol
    )


def passes(case: Case) -> list[npt.NDArray[Any]] | None:
    """What stock onnxruntime gives with default options, None where it does not pass the test."""
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, case.inputs)
    except Exception:  # noqa: BLE001  # onnxruntime's exceptions have no common base
        return None
    return found if _same(case, found, case.wanted) is None else None


def _same(case: Case, found: Sequence[Any], wanted: Sequence[Any]) -> str | None:
    """What differs, None for nothing."""
    if len(found) != len(wanted):
        return f"{len(found)} outputs instead of {len(wanted)}"
    for got, expected in zip(map(np.asarray, found), map(np.asarray, wanted), strict=True):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return f"{got.dtype} {got.shape} instead of {expected.dtype} {expected.shape}"
        if expected.dtype.kind in "OUS":
            close = bool((got == expected).all())
        else:
            close = np.allclose(got, expected, rtol=case.rtol, atol=case.atol, equal_nan=True)
        if not close:
            return "other values"
    return None


def outcome(
    case: Case, own: Sequence[npt.NDArray[Any]], folder: Path, benchmark: Benchmark, *, given_data: bool
) -> Outcome:
    """Convert a model and run its bundle."""
    source, target = folder / f"{case.name}.onnx", folder / f"{case.name}.edge"
    source.write_bytes(case.model.SerializeToString())
    options: Mapping[str, Any] = {}
    if given_data and case.inputs:
        np.savez(folder / "example.npz", **case.inputs)  # type: ignore[arg-type]
        options = {"example": folder / "example.npz"}
    profile = load_profile("generic-x86_64")
    begin = time.perf_counter()
    notes: tuple[str, ...] = ()

    def done(status: str, why: str) -> Outcome:
        return Outcome(name=case.name, status=status, why=why, notes=notes, seconds=time.perf_counter() - begin)

    try:
        plan = ConversionPlan(source=source, output=target, profile=profile, quantize="none", **options)
        found = convert(plan, benchmark=benchmark)
        notes = tuple(found.report["notes"])
    except EdgeError as exc:
        return done("refused", str(exc))
    except Exception as exc:  # noqa: BLE001  # which a command would print as a traceback
        return done("crashed", f"{type(exc).__name__}: {exc}")
    try:
        session = OnnxSession(Bundle.open(target))
        outputs = session.run(case.inputs)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is wrong
        if isinstance(exc, ConfigError) and not all(array.size for array in case.inputs.values()):
            return done("refused", f"a device takes no empty input: {exc}")
        return done("wrong", f"the bundle does not run: {exc}")
    arrays = [outputs[info.name] for info in case.model.graph.output if info.name in outputs]
    fault = _same(case, arrays, case.wanted) or _same(case, arrays, own)
    return done("right", "") if fault is None else done("wrong", fault)


def _group(why: str, name: str) -> str:
    """A reason without names and numbers."""
    why = re.sub(r"/\S+", "FILE", why.replace(name, "TEST"))
    return re.sub(r"\d+", "N", why)[:160]


def main() -> int:
    """Run the suite and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="N tests at random instead of all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="*", metavar="WILDCARD", help="tests of this name")
    parser.add_argument("--given-data", action="store_true", help="give the test's inputs as --example")
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    options = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    chosen = [case for case in cases() if fnmatch.fnmatch(case.name, options.only)]
    if options.draw:  # shuffled before it is known which ones onnxruntime passes
        random.Random(options.seed).shuffle(chosen)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, Benchmark() as benchmark:
        for case in chosen:
            own = passes(case)
            if own is None:
                continue
            outcomes.append(outcome(case, own, Path(folder), benchmark, given_data=options.given_data))
            if sys.stderr.isatty():
                print(f"\r{len(outcomes)} {case.name[:60]:60}", end="", file=sys.stderr)
            for path in Path(folder).iterdir():
                path.unlink()
            if options.draw and len(outcomes) == options.draw:
                break
    if options.json:
        options.json.write_text(
            json.dumps([{f: getattr(o, f) for f in o.__dataclass_fields__} for o in outcomes], indent=1)
        )
    return _show(outcomes)


def _show(outcomes: Sequence[Outcome]) -> int:
    console = Console(width=150, highlight=False)
    counts = Counter(outcome.status for outcome in outcomes)
    table = Table("status", "tests", "share", title=f"{len(outcomes)} backend tests that onnxruntime passes")
    for status in ("right", "refused", "wrong", "crashed"):
        table.add_row(status, str(counts[status]), f"{100 * counts[status] / max(1, len(outcomes)):.1f} %")
    console.print(table)
    carried = sum(any("carried as it is" in note for note in outcome.notes) for outcome in outcomes)
    seconds = sorted(outcome.seconds for outcome in outcomes)
    if outcomes:
        console.print(f"{carried} carried as they are; {seconds[len(seconds) // 2]:.2f} s for one, the median")
    for status in ("crashed", "wrong", "refused"):
        groups: dict[str, list[Outcome]] = {}
        for each in outcomes:
            if each.status == status:
                groups.setdefault(_group(each.why, each.name), []).append(each)
        for members in sorted(groups.values(), key=len, reverse=True):
            console.print(f"{status} {len(members)}: {members[0].why[:400]}", markup=False)
            console.print("    " + ", ".join(each.name for each in members[:4]) + (", ..." if members[4:] else ""))
    good = counts["right"] >= GOAL * len(outcomes) and not counts["wrong"] and not counts["crashed"]
    console.print(f"goal, {GOAL:.0%} right and none wrong: {'met' if good else 'missed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
