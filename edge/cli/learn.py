"""``edge-agent replay`` and ``edge-agent explain``: what a bundle would learn from a file, and why it answers so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.rehearsal import Rehearsal, evaluate, rehearse
from edge.agent.model.served_model import NO_HEAD
from edge.cli.plots import check_plot, draw_explanation, draw_rehearsal
from edge.cli.tensorboard import open_folder, write_rehearsal
from edge.cli.terminal_plot import heat_map, line_plot
from edge.contract.errors import ConfigError, LearningError
from edge.contract.files import check_writable, replace_file
from edge.contract.tensorspec import TensorSpec
from edge.inference.named_arrays import read_arrays

if TYPE_CHECKING:
    from rich.console import Console

Arrays = dict[str, Any]


def read_samples(path: Path, inputs: Mapping[str, TensorSpec]) -> Arrays:
    """The labels y, and perhaps weights, of a file; and under x the samples by input.

    Args:
        path: An ``.npz``.
        inputs: What the model takes, by name; of one input the array may be called x.

    Raises:
        ConfigError: One is missing or there are others, or they have other lengths.
    """
    arrays = read_arrays(path)
    names = list(inputs) if len(inputs) > 1 or inputs.keys() <= arrays.keys() else ["x"]
    if not {*names, "y"} <= arrays.keys() <= {*names, "y", "weights"}:
        found = ", ".join(arrays) or "none"
        raise ConfigError(f"{path}: expected the arrays {', '.join(names)} and y, and perhaps weights; got {found}")
    axes = dict.fromkeys(arrays, 0) | {n: s.batch_axis for n, s in zip(names, inputs.values(), strict=True)}
    lengths = {
        name: array.shape[axis] if array.ndim > (axis := axes[name] or 0) else 0
        for name, array in arrays.items()
        if axes[name] is not None
    }
    if len(set(lengths.values())) != 1 or not lengths["y"]:
        raise ConfigError(f"{path}: expected as many y as {', '.join(names)}, one at least; got {lengths}")
    x = {name: arrays.pop(stored) for name, stored in zip(inputs, names, strict=True)}
    return {**arrays, "x": x}


def numbered(y: Any, model: OnDeviceModel, path: Path, add_classes: bool) -> Any:
    """Class names as numbers; names that the model does not know are added to it, or are an error."""
    if y.dtype.kind != "U":
        return y
    if not model.task.is_classifier:
        raise ConfigError(f"{path}: y has names, and this model gives no classes; expected targets")
    unknown = sorted(set(y.tolist()) - set(model.class_names))
    if unknown and not add_classes:
        raise ConfigError(f"{path}: the model has no class {unknown[0]!r}; add new ones with --add-classes")
    for name in unknown:
        model.add_class(name)
    return np.array([model.class_names.index(name) for name in y.tolist()], np.int64)


def check_samples(arrays: Arrays, model: OnDeviceModel, path: Path) -> None:
    """Raise ConfigError for samples, labels or weights that cannot be learned, wherever in the file they stand."""
    try:
        arrays["x"] = model.serving.many(arrays["x"])
        features = model.answering.features_in_parts(arrays["x"])
        finite = np.isfinite(features.reshape(len(features), -1)).all(axis=1)
        if not finite.all():
            raise LearningError(f"sample {int(finite.argmin())} has features that are not finite numbers")
        if arrays["y"].dtype.kind != "U":
            model.task.check(arrays["y"], len(arrays["y"]))
    except LearningError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    weights = arrays.get("weights")
    if weights is not None and not (weights.dtype.kind in "fiub" and weights.ndim == 1 and _within_one(weights)):
        raise ConfigError(f"{path}: weights must be numbers from 0 to 1, one for each sample")


def _within_one(weights: Any) -> bool:
    return bool(((weights >= 0) & (weights <= 1)).all())  # False for NaN


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _say_warnings(model: OnDeviceModel, console: Console) -> None:
    for text in model.warnings:
        console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
    model.warnings.clear()


def ordered(arrays: Arrays, model: OnDeviceModel, order: str, seed: int) -> Arrays:
    """The samples in another order: ``shuffled``, or one class after another (``class``)."""
    if order == "file":
        return arrays
    rows = np.random.default_rng(seed).permutation(len(arrays["y"]))
    if order == "class":
        if arrays["y"].ndim != 1:
            raise ConfigError("--order class needs one class for each sample")
        rows = rows[np.argsort(arrays["y"][rows], kind="stable")]
    return {name: model.serving.rows(array, rows) if name == "x" else array[rows] for name, array in arrays.items()}


def learn_file(
    model: OnDeviceModel,
    data: Path,
    test: Path | None,
    *,
    order: str,
    late: int,
    seed: int,
    add_classes: bool,
    plot: Path | None,
    report: Path | None,
    tensorboard: Path | None,
    console: Console,
) -> None:
    """Replay a labelled file through a model and say what came of it."""
    for written in (plot, report):
        if written is not None and any(read is not None and _is_same(written, read) for read in (data, test)):
            raise ConfigError(f"{written} is the file that is read; it would be lost")
    if plot is not None:
        check_plot(plot)
    if report is not None:
        check_writable(report)
    writer = None if tensorboard is None else open_folder(tensorboard)
    _say_warnings(model, console)
    if not model.learns:
        raise LearningError(NO_HEAD)
    files = {path: read_samples(path, model.serving.inputs) for path in (data, test) if path is not None}
    for path, each in files.items():  # all of it, before anything changes
        check_samples(each, model, path)
    for path, each in files.items():
        each["y"] = numbered(each["y"], model, path, add_classes)
        model.task.check(each["y"], len(each["y"]))
    arrays, held_out = ordered(files[data], model, order, seed), None if test is None else files[test]
    first = None if held_out is None else evaluate(model, held_out["x"], held_out["y"])
    found = Rehearsal()
    with _progress(console, len(arrays["y"])) as advance:
        for found in rehearse(model, arrays["x"], arrays["y"], arrays.get("weights"), late):
            advance(found)
    last = None if held_out is None else evaluate(model, held_out["x"], held_out["y"])
    what = "loss" if model.task.is_regression else "accuracy"
    n = len(found.scores)
    numbers: dict[str, Any] = {
        "bundle": model.bundle.digest,
        "learners": list(model.learning.learners),
        "samples": n,
        f"predict_then_learn_{what}": round(found.mean(), 6),
        f"without_learning_{what}": round(found.mean_before, 6),
        f"last_quarter_{what}": round(found.mean(max(1, n // 4)), 6),
        "believed": model.learned.mixture.believed,
        "temperature": round(model.learned.temperature, 4),
        "learn_ms_median": round(float(np.median(found.learn_ms)), 3),
        "events": [{"sample": at, "kind": kind, "text": text} for at, kind, text in found.events],
    }
    if held_out is not None:
        numbers |= {f"test_{what}": round(last or 0.0, 6), f"test_{what}_before": round(first or 0.0, 6)}
    _print(console, model, data, found, numbers, what)
    if plot is not None:
        draw_rehearsal(found, plot, what, f"{model.manifest.name}: {', '.join(model.learning.learners)} on {data.name}")
        console.print(f"wrote {plot}", highlight=False, markup=False, soft_wrap=True)
    if writer is not None:
        write_rehearsal(writer, found, what, numbers)
        console.print(f"wrote {tensorboard}", highlight=False, markup=False, soft_wrap=True)
    if report is not None:
        _write(report, json.dumps(numbers, indent=1).encode() + b"\n")


def _print(
    console: Console, model: OnDeviceModel, data: Path, found: Rehearsal, numbers: dict[str, Any], what: str
) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    window = found.window
    learners = ", ".join(model.learning.learners)
    say(f"{model.manifest.name}: {len(found.scores)} samples of {data.name}, learners {learners}")
    say(f"  predict-then-learn {what:<9} {found.mean():8.4f}   without learning {found.mean_before:8.4f}")
    last_quarter = numbers[f"last_quarter_{what}"]
    say(f"  in the last quarter           {last_quarter:8.4f}")
    if f"test_{what}" in numbers:
        before, after = numbers[f"test_{what}_before"], numbers[f"test_{what}"]
        say(f"  on the test file, afterwards  {after:8.4f}   before           {before:8.4f}")
    say(f"  believed most: {model.learned.mixture.believed}, {model.learned.mixture.weights.max():.0%}")
    say(f"  learning took {numbers['learn_ms_median']} ms a label (median)")
    say("")
    say(line_plot(found.running(window), f"{what}, mean of the last {window} samples", console.width - 2))
    for at, kind, text in found.events:
        say(f"  after {at} samples  {kind}: {text}")


# What rounding alone makes of an importance, as a share of the answer.
_ROUNDED = 1e-6


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Any]:
    """A bar on a terminal, a line every tenth elsewhere."""
    if console.is_terminal:
        from rich.progress import Progress

        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("learning", total=total)
            yield lambda found: progress.update(task, completed=len(found.scores))
        return
    step = max(1, total // 10)

    def tell(found: Rehearsal) -> None:
        n = len(found.scores)
        if n % step == 0 and n < total:
            console.print(f"- {n} of {total} samples, {found.mean(step):.3f} on the last {step}", highlight=False)

    with nullcontext():
        yield tell


def _write(path: Path, document: bytes) -> None:
    try:
        with replace_file(path) as file:
            file.write(document)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc


def _one_sample(arrays: Arrays, model: OnDeviceModel, data: Path, index: int) -> Arrays:
    """A sample of a file, by input."""
    inputs = model.serving.inputs
    names = list(inputs) if len(inputs) > 1 or inputs.keys() <= arrays.keys() else ["x"]
    if not set(names) <= arrays.keys():
        wanted = f"an array {names[0]}" if len(names) == 1 else f"the arrays {', '.join(names)}"
        raise ConfigError(f"{data}: expected {wanted}; got {', '.join(arrays) or 'none'}")
    found = {}
    for stored, (name, spec) in zip(names, inputs.items(), strict=True):
        array, axis = arrays[stored], spec.batch_axis
        count = array.shape[axis] if axis is not None and array.ndim > axis else 0
        if axis is not None and not count:
            raise ConfigError(f"{data}: expected samples, one at least; {stored} has the shape {array.shape}")
        if axis is not None and not 0 <= index < count:
            raise ConfigError(f"--index {index}: {data} has the samples 0 to {count - 1}")
        found[name] = array if axis is None else array.take(index, axis)
    return found


def _said_of(novelty: float | None, model: OnDeviceModel) -> str:
    """Whether a sample is of none of the classes."""
    judge = model.rejection.judge(model.learned)
    if novelty is None or isinstance(judge, str):
        return f"whether it is none of these cannot be judged: {judge}"
    verdict = "none of these" if novelty > 1.0 else "one of these"
    share = f"all but {model.rejection.share:.1%} of {judge.basis}"
    return f"{verdict}: {novelty:.2f} times as far from all classes as {share}"


def explain_file(
    model: OnDeviceModel,
    data: Path,
    *,
    index: int,
    output: str | None,
    on: str,
    window: int | None,
    plot: Path | None,
    console: Console,
) -> None:
    """Show which regions of one sample of a file mattered."""
    if plot is not None:
        check_plot(plot)
    _say_warnings(model, console)
    x = _one_sample(read_arrays(data), model, data, index)
    number = None
    if output is not None:
        names = model.class_names
        if output not in names and not output.isdecimal():
            wanted = f"a number or one of {', '.join(names)}" if names else "a number"
            raise ConfigError(f"--output {output!r}: expected {wanted}")
        number = names.index(output) if output in names else int(output)
        if model.learns and number >= model.task.n_outputs:
            raise ConfigError(f"--output {output}: expected 0 to {model.task.n_outputs - 1}")
    try:
        found = model.explain(x, number, on=on, window=window)
    except LearningError as exc:
        option = f"--window {window}: " if "window" in str(exc) else f"{data}, sample {index}: "
        raise ConfigError(f"{option}{exc}") from exc
    name = model.class_names[found.output] if found.output < len(model.class_names) else f"output {found.output}"
    title = f"{model.manifest.name}, sample {index}: {name} with {found.score:.3f}"
    console.print(title, highlight=False, markup=False)
    if model.learns and model.rejection.share:
        console.print(_said_of(found.novelty, model), highlight=False, markup=False, soft_wrap=True)
    if found.importance.max() > _ROUNDED * abs(found.score):
        picture = found.importance if found.importance.ndim == 2 else found.importance[None]
        console.print(heat_map(picture, console.width - 2), highlight=False, markup=False)
        console.print("darker: covering this place lowers the answer more", highlight=False)
    else:
        console.print("nothing to show: wherever it is covered, this answer is not lowered", highlight=False)
    if plot is not None:
        shown = None if on == "features" else next(iter(x.values())) if on == "input" else x[on]
        draw_explanation(shown, found, plot, title)
        console.print(f"wrote {plot}", highlight=False, markup=False, soft_wrap=True)
