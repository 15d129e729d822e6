"""edge-convert on trained models that other people ship in their packages, judged by what each model is for.

    python benchmarks/real_models.py [--only WORD ...] [--skip WORD ...] [--json FILE] [--cache FOLDER]

Every model is converted twice, as a person would type it: without any data, and with real samples (`--calibrate`, the
first three quarters of them). The bundle then runs beside the original, on stock onnxruntime or torch, on the rest of
the samples and on other sizes of its free axes. *right*: it still does what it is for
(`benchmarks/trained/judging.py`), a float bundle to 50 dB. *refused*: the command said why, and the reason is one
that `benchmarks/trained/catalogue.py` lists as one which the model's maintainer would accept; any other refusal is
*refused!*. *wrong*: a bundle was written that does not keep it. *crashed*: a traceback, a signal, or no end within
the limit. int8 candidates that were measured at 1.4 times the speed of float and yet not shipped are listed. The exit
status is 1 if anything was wrong, crashed or refused!.

Packages are downloaded by name and version with pip and npm into the cache; no file of theirs is run but the class of a
bare state_dict, and, to speak, the espeak-ng library.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks.trained.catalogue import MODELS, Arch, Model
from benchmarks.trained.judging import FLOAT_DB, comparable, judged, sqnr_db
from benchmarks.trained.packages import DownloadError
from benchmarks.trained.samples import Array, Feed, Source
from edge.contract.bundle import Bundle
from edge.contract.errors import EdgeError
from edge.inference.onnx_session import OnnxSession

SPEED_UP = 1.4  # int8 that is this much faster, and keeps what the model is for, should be shipped
WAYS = {"plain": "without data", "samples": "with samples"}
CLEAR_EXITS = (2, 3, 4, 5)  # usage, configuration, conversion, bundle: each with a message
Run = Callable[[Feed], list[Array]]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came of one conversion.

    Attributes:
        verdict: ``right``, ``refused``, ``refused!``, ``wrong`` or ``crashed``.
        text: The reason, or what was measured.
        command: As typed.
        seconds: Of the conversion.
        chosen: The candidate that was shipped.
        speed: Latency of the original on its stock runtime over that of the bundle, one sample, one thread.
        left: int8 candidates as fast as `SPEED_UP` that were not shipped, as the report lists them.
    """

    verdict: str
    text: str
    command: str = ""
    seconds: float = 0.0
    chosen: str = ""
    speed: float | None = None
    left: list[str] = field(default_factory=list)


# --- originals -----------------------------------------------------------------------------------------------------


def original(path: Path, arch: Path | None, model: Model) -> Run:
    """The model as its own package would run it."""
    if model.arch is None and path.suffix == ".onnx":
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)
    import torch

    torch.set_num_threads(1)
    if model.arch is None:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    else:
        assert arch is not None
        network = built(arch, model.arch, path)

    def run(feed: Feed) -> list[Array]:
        arguments = [torch.from_numpy(a) if a.ndim else a.item() for a in feed.values()]
        if model.arch is None and hasattr(network, "reset_states"):
            network.reset_states()
        with torch.no_grad():
            found = network(*arguments)
        return [part.numpy() for part in (found if isinstance(found, tuple) else (found,))]

    return run


def built(file: Path, arch: Arch, weights: Path) -> Any:
    """The network of a state_dict, as torch loads it."""
    import torch

    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = getattr(module, arch.build)(**{k: _placed(v, weights) for k, v in arch.arguments.items()})
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict(stored[arch.weights] if arch.weights else stored, strict=False)
    return network.eval()


def _placed(value: object, weights: Path) -> object:
    return str(weights) if value == "MODEL" else value


def cut(arch: Arch, package: Path, file: Path) -> Path:
    """Write the classes of a state_dict, with plain assignments and imports of what is installed, into one file."""
    kept: list[ast.stmt] = []
    for source in arch.sources:
        for node in ast.parse((package / source).read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "."] if node.level == 0 else ["."]
            installed = all(name != "." and _installed(name) for name in names)
            wanted = isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in arch.names
            constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            if wanted or constant or isinstance(node, ast.Try) or (names and installed):
                kept.append(node)
    text = ast.unparse(ast.Module(kept, []))
    file.write_text(text.replace(arch.prefix, "") if arch.prefix else text)
    return file


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


# --- one model -----------------------------------------------------------------------------------------------------


def stacked(feeds: list[Feed], axes: Mapping[str, int | None]) -> Feed:
    """Samples as one array for each input, samples first; what has no batch axis is what it is in the first."""
    joined = {}
    for name in feeds[0]:
        axis = axes.get(name, 0)
        joined[name] = (
            feeds[0][name] if axis is None else np.concatenate([np.moveaxis(feed[name], axis, 0) for feed in feeds])
        )
    return joined


def convert(command: list[str], log: Path, limit_s: float) -> tuple[int, float]:
    """Exit code, -1 where it did not end, and seconds of one conversion."""
    start = time.perf_counter()
    with log.open("w") as file:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
        try:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=limit_s,
                check=False, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            file.write(f"\nno end within {limit_s:.0f} s\n")
            return -1, time.perf_counter() - start
    return done.returncode, time.perf_counter() - start


def said(log: str) -> str:
    """The message of a refusal, on one line."""
    at = max(log.rfind("\nerror: "), log.rfind("\nError: "), 0)
    return " ".join(log[at:].split())[:500]


def answers(bundle: Path, feeds: list[Feed], run: Run) -> tuple[list[list[Array]], list[list[Array]]]:
    """What the original and the bundle give; inputs that were folded into the graph are left out.

    Raises:
        EdgeError: The bundle does not take an input, or does not run.
    """
    session = OnnxSession(Bundle.open(bundle))
    reference, found = [], []
    for feed in feeds:
        reference.append(run(feed))
        outputs = session.run(renamed(feed, [spec.name for spec in session.manifest.inputs]))
        found.append(list(outputs.values()))
    return reference, found


def renamed(feed: Feed, names: list[str]) -> Feed:
    """The feed under the bundle's names: the same ones, or, where a name had to change, by place."""
    if all(name in feed for name in names):
        return {name: feed[name] for name in names}
    arrays = [array for array in feed.values() if array.ndim] if len(names) < len(feed) else list(feed.values())
    return dict(zip(names, arrays, strict=False))


def latency_ms(calls: list[Callable[[], object]], seconds: float = 0.15, rounds: int = 5) -> list[float]:
    """Median of the best round of each, in turn."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            taken, end = [], time.perf_counter() + seconds
            while not taken or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            best[index] = min(best[index], float(np.median(taken)))
    return [1e3 * value for value in best]


def judge(model: Model, bundle: Path, feeds: list[Feed], run: Run, floating: bool) -> tuple[bool, str]:
    """Whether the bundle keeps what the model is for, and what was measured of each output."""
    try:
        reference, found = answers(bundle, feeds, run)
    except EdgeError as exc:
        return False, f"the bundle does not run: {exc}"
    if any(len(one) != len(other) for one, other in zip(reference, found, strict=True)):
        return False, f"{len(found[0])} outputs instead of {len(reference[0])}"
    kept, texts = True, []
    for index, rule in enumerate(model.rules):
        r, f = [one[index] for one in reference], [one[index] for one in found]
        ratio = sqnr_db(r, f) if comparable(r, f) is None else -200.0
        result = judged(rule, r, f)
        exact = not floating or ratio >= FLOAT_DB or np.array_equal(r[0], f[0])
        kept &= result.kept and exact
        texts.append(f"{result.text}, {ratio:.0f} dB" if rule else result.text)
    return kept, "; ".join(texts)


def read_report(file: Path) -> tuple[str, bool, list[str]]:
    """The candidate that was shipped, whether it is float, and fast int8 candidates that were not."""
    report = json.loads(file.read_text())
    chosen = report["chosen"]["name"] if isinstance(report.get("chosen"), dict) else str(report.get("chosen"))
    rows = {row["name"]: row for row in report.get("candidates", [])}
    base = rows.get("float", {}).get("latency_ms")
    left = []
    for name, row in rows.items():
        quick = base and row.get("latency_ms") and row["latency_ms"] * SPEED_UP <= base
        if quick and name.startswith("int8") and not chosen.startswith(("int8", "fp16", "int4")):
            left.append(f"{name}: {base / row['latency_ms']:.2f} x")
    return chosen, chosen == "float", left


def attempt(
    model: Model,
    source: Source,
    arch: Path | None,
    work: Path,
    *,
    with_samples: bool,
    arguments: list[str],
    limit_s: float,
) -> Outcome:
    """Convert in one of the two ways, and judge what came."""
    made = model.samples(source)
    share = max(1, len(made.like) * 3 // 4)
    bundle, report, log = (work / f"model.{end}" for end in ("edge", "json", "log"))
    for stale in (bundle, report):
        stale.unlink(missing_ok=True)
    command = ["edge-convert", str(source.path), *model.options, *arguments]
    if model.arch is not None:
        command += ["--arch", f"{arch}:{model.arch.build}"]
        command += [f"--arch-arg={k}={_placed(v, source.path)}" for k, v in model.arch.arguments.items()]
    if with_samples:
        np.savez(work / "samples.npz", **stacked(made.like[:share], model.batch_axis))
        command += ["--calibrate", str(work / "samples.npz")]
    command += ["-o", str(bundle), "--json", str(report)]
    code, seconds = convert([sys.executable, "-m", "converter.cli", *command[1:]], log, limit_s)
    text = log.read_text(errors="replace")
    shown = " ".join(command).replace(str(source.cache) + "/", "").replace(str(work) + "/", "")
    outcome = Outcome(verdict="crashed", text=said(text), command=shown, seconds=round(seconds, 1))
    if "Traceback (most recent call last)" in text or code not in (0, *CLEAR_EXITS):
        outcome.text = f"exit {code}: " + " ".join(text.split())[-300:]
        return outcome
    if code != 0:
        accepted = any(re.search(reason, outcome.text) for reason in model.refusals)
        outcome.verdict = "refused" if accepted else "refused!"
        return outcome
    outcome.chosen, floating, outcome.left = read_report(report)
    run = original(source.path, arch, model)
    kept, outcome.text = judge(model, bundle, made.like[share:], run, floating)
    if made.others and kept:
        kept, other = judge(model, bundle, made.others, run, floating)
        outcome.text += f" | other sizes: {other}"
    outcome.verdict = "right" if kept else "wrong"
    if kept:
        session = OnnxSession(Bundle.open(bundle))
        feed = made.like[0]
        ours = renamed(feed, [spec.name for spec in session.manifest.inputs])
        theirs_ms, ours_ms = latency_ms([lambda: run(feed), lambda: session.run(ours)])
        outcome.speed = round(theirs_ms / ours_ms, 2)
    return outcome


def examine(model: Model, cache: Path, ways: list[str], arguments: list[str], limit_s: float) -> dict[str, Outcome]:
    """One model, in each way."""
    package = model.package.unpacked(cache)
    source = Source(cache, package / model.file)
    work = cache / "work" / re.sub(r"\W+", "-", model.name)
    work.mkdir(parents=True, exist_ok=True)
    arch = cut(model.arch, package, work / "arch.py") if model.arch else None
    found = {}
    for way in ways:
        (work / way).mkdir(exist_ok=True)
        found[way] = attempt(
            model, source, arch, work / way, with_samples=way == "samples", arguments=arguments, limit_s=limit_s
        )
    return found


def show(results: Mapping[str, Mapping[str, Outcome]], console: Console) -> None:
    """The table, the reasons, and the sums."""
    ways = list(next(iter(results.values()), {}))
    table = Table("model", *(cell for way in ways for cell in (WAYS[way], "shipped", "x")), "s", title="Trained models")
    colours = {"right": "green", "refused": "cyan", "refused!": "yellow", "wrong": "red", "crashed": "red"}
    for name, outcomes in results.items():
        cells = [name]
        for outcome in outcomes.values():
            cells += [
                f"[{colours[outcome.verdict]}]{outcome.verdict}[/]",
                outcome.chosen,
                "" if outcome.speed is None else f"{outcome.speed:.2f}",
            ]
        table.add_row(*cells, f"{sum(outcome.seconds for outcome in outcomes.values()):.0f}")
    console.print(table)
    for name, outcomes in results.items():
        for way, outcome in outcomes.items():
            console.print(f"{name}, {way}: {outcome.verdict}: {outcome.text}", markup=False, soft_wrap=True)
            if outcome.left:
                console.print(f"    fast and not shipped: {', '.join(outcome.left)}", markup=False, soft_wrap=True)
    for way in ways:
        verdicts = [outcomes[way].verdict for outcomes in results.values()]
        sums = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in colours if verdict in verdicts)
        console.print(f"{way}: {len(verdicts)} models: {sums}")


def main() -> int:
    """Run all, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="models whose name holds one of these")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / ".cache" / "trained")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="of one conversion")
    parser.add_argument("--skip", nargs="*", default=[], metavar="WORD", help="none of these")
    parser.add_argument("--list", action="store_true", help="name the models, and stop")
    parser.add_argument("arguments", nargs="*", help="more options for edge-convert, behind --")
    options = parser.parse_args()
    chosen = [model for model in MODELS if not options.only or any(word in model.name for word in options.only)]
    chosen = [model for model in chosen if not any(word in model.name for word in options.skip)]
    if options.list or not chosen:
        for model in chosen or MODELS:
            print(f"{model.name:<24}{model.package!s:<36}{Path(model.file).name:<34}{model.does}")
        return 0 if chosen else 2
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    results: dict[str, dict[str, Outcome]] = {}
    for model in chosen:
        try:
            results[model.name] = examine(model, cache, options.ways, options.arguments, options.limit)
        except DownloadError as exc:
            console.print(f"left out: {exc}", markup=False)
            continue
        line = "; ".join(f"{w}: {o.verdict} {o.chosen} {o.speed or ''}" for w, o in results[model.name].items())
        console.print(f"{model.name}: {line}", markup=False, soft_wrap=True)
        if options.json:
            document = {name: {way: asdict(o) for way, o in ways.items()} for name, ways in results.items()}
            options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    show(results, console)
    bad = {"wrong", "crashed", "refused!"}
    return 1 if any(outcome.verdict in bad for ways in results.values() for outcome in ways.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
