"""What the outputs of a model say of one sample, by their kinds: a class and its name, yes or no, quantities, arrays.

An answer is a document for applications: numbers, texts, lists and numpy arrays (`edge.agent.wire` carries these
exactly). What the output for people says stands at its top, all other outputs by name in ``outputs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.manifest import Manifest, OutputKind
from edge.contract.recipe import TrainingRecipe
from edge.inference.session import Arrays
from edge.learning.calibration import logistic, softmax

CLASSES, YES_OR_NO, QUANTITIES, SCORES = "classes", "yes-or-no", "quantities", "scores"
ANYTHING = OutputKind(kind="anything")


def kinds_of(manifest: Manifest) -> dict[str, OutputKind]:
    """What each output is, with axes as of one sample: as the manifest says, the loss of the head, the class names."""
    found = {}
    states = {pair.output for pair in manifest.states}
    for spec in manifest.together(manifest.outputs):
        if spec.name in states:
            continue
        kind, batch = manifest.kinds.get(spec.name, ANYTHING), spec.batch_axis
        if manifest.head is not None and spec.name == manifest.head.output:
            kind = OutputKind(kind=_kind_of_head(manifest.head.training), axis=1)
        elif spec.name not in manifest.kinds and spec.shape[1:] == (len(manifest.class_names),) and batch == 0:
            kind = OutputKind(kind=CLASSES, axis=1)  # a bundle from before kinds were said
        axis = kind.axis
        if axis is not None and batch is not None:
            axis = None if axis == batch else axis - (batch < axis)
        found[spec.name] = OutputKind(
            kind=kind.kind, axis=axis, threshold=kind.threshold, probabilities=kind.probabilities
        )
    return found


def _kind_of_head(recipe: TrainingRecipe) -> str:
    return CLASSES if recipe.is_classifier else QUANTITIES if recipe.is_regression else YES_OR_NO


def answer_of(manifest: Manifest) -> str:
    """The output for people: that of the head, what the manifest says, or the first that is no state."""
    if manifest.head is not None:
        return manifest.head.output
    states = {pair.output for pair in manifest.states}
    return manifest.answer or next(spec.name for spec in manifest.outputs if spec.name not in states)


def classifying(manifest: Manifest, kinds: Mapping[str, OutputKind]) -> str | None:
    """The output that the class names are about; None where there are none."""
    specs = {spec.name: spec for spec in manifest.outputs}
    for name in (answer_of(manifest), *kinds):
        is_chosen = not specs[name].dtype.startswith("float")  # class numbers, and no value for each class
        fits = is_chosen or len(manifest.class_names) in specs[name].shape
        if manifest.class_names and kinds[name].kind == CLASSES and fits:
            return name
    return None


def document(
    outputs: Arrays,
    kinds: Mapping[str, OutputKind],
    answer: str,
    names: Mapping[str, Sequence[str]],
    temperature: float = 1.0,
) -> dict[str, Any]:
    """What the outputs of one sample say.

    Args:
        outputs: By name, without batch axes.
        kinds: By name, as `kinds_of` gives them.
        answer: Name of the output for people.
        names: Of the classes, by the output that they are about.
        temperature: By which logits of the answer are divided before they become probabilities.
    """
    said = {
        name: _said(array, kinds[name], names.get(name, ()), temperature if name == answer else 1.0)
        for name, array in outputs.items()
    }
    top = said.pop(answer) if "array" not in said[answer] else {}
    others = {name: {"kind": kinds[name].kind, **what} for name, what in said.items()}
    return {**top, "outputs": others} if others else top


def judged(said: dict[str, Any], novelty: float | None) -> tuple[dict[str, Any], bool]:
    """An answer that may be "none of these", and whether it is.

    Args:
        said: As `document` gave it, of an output that chooses a class.
        novelty: How far the sample is from all classes, above 1 for none of them; None where nobody can tell.
    """
    if novelty is None or novelty <= 1.0 or "class" not in said:
        return {**said, "novelty": None if novelty is None else round(novelty, 4)}, False
    nearest = {key: said.pop(key) for key in ("class", "name", "confidence") if key in said}
    return {"class": None, "nearest": nearest, **said, "novelty": round(novelty, 4)}, True


def _said(array: npt.NDArray[Any], kind: OutputKind, names: Sequence[str], temperature: float) -> dict[str, Any]:
    if kind.kind == CLASSES:
        return _classes(array, kind, names, temperature)
    if kind.kind == YES_OR_NO:
        if kind.probabilities or array.dtype.kind != "f":
            return {"yes": _plain(array > kind.threshold), "values": _plain(array)}
        return {
            "yes": _plain(array > kind.threshold),
            "values": _plain(logistic(array / temperature)),
            "logits": _plain(array),
        }
    if kind.kind == QUANTITIES or (kind.kind == SCORES and array.ndim <= 1):
        return {"values": _plain(array)}
    return {"array": array}


def _classes(array: npt.NDArray[Any], kind: OutputKind, names: Sequence[str], temperature: float) -> dict[str, Any]:
    if array.dtype.kind != "f" or kind.axis is None:  # the graph has chosen already
        return _named(int(array.reshape(-1)[0]), names) if array.size == 1 else {"classes": array}
    best = array.argmax(axis=kind.axis)
    raw = {"probabilities" if kind.probabilities else "logits": _plain(array)}
    if array.ndim > 1:  # at each place
        return {"classes": best, **raw}
    likely = array.astype(np.float64) if kind.probabilities else softmax(array / temperature)
    return {**_named(int(best), names), "confidence": round(float(likely[best]), 6), **raw}


def _named(number: int, names: Sequence[str]) -> dict[str, Any]:
    return {"class": number, "name": names[number]} if 0 <= number < len(names) else {"class": number}


def _plain(array: npt.NDArray[Any]) -> Any:
    """One row as a list, where JSON has its numbers; else the array, which is shorter, too."""
    return array.tolist() if array.ndim <= 1 and np.isfinite(array).all() else array
