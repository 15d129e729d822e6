"""What each output of a model is, which decides how it is judged.

It comes from the user, the labels, the names of classes, the end of the graph, the loss, in this order; else an output
is judged as anything: column by column, without a class being read from it.

=================  ==================================================================================
kind               judged by
=================  ==================================================================================
``classes``        the largest of a row: share of right answers, or of the original's; and each class
``sequences``      what is read from the largest of each step: steps, members, and whole sequences
``yes-or-no``      each column at its threshold: share of right answers, or of the original's
``quantities``     each column's R²
``embedding``      the vectors' cosines, about their mean
``boxes``          intersection over union of each box, of those with a score that shows them
``scores``         each column's correlation; one that hardly moves, by its error on the common scale
``anything``       each column's correlation and SQNR about its mean; of integers, the share that is equal
=================  ==================================================================================

Raw scores of classes that nothing names, of which in each row one stands out, are judged by that one as well.
Where rows go with scores (`converter.verify.detections`), those that are shown are judged by themselves as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from converter.graph.links import Links
from converter.plan import ANYTHING, BOXES, CLASSES, EMBEDDING, QUANTITIES, SCORES, SEQUENCES, YES_OR_NO
from converter.program.tensors import Array, Arrays
from converter.verify.columns import column_axis, in_columns, overlaps
from converter.verify.detections import Rows, is_named_boxes, looked_at, rows_of
from converter.verify.sequences import class_axis, has_own_steps, steps_axis
from edge.contract.errors import ConfigError
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, HUBER, MEAN_SQUARED_ERROR
from edge.contract.tensorspec import TensorSpec

# Passed on the way from an output to what made its values.
_MOVES = (
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
_KIND_OF_LOSS = {
    CROSS_ENTROPY: CLASSES, BINARY_CROSS_ENTROPY: YES_OR_NO, MEAN_SQUARED_ERROR: QUANTITIES, HUBER: QUANTITIES,
}  # fmt: skip
SAID, UNKNOWN = "the user says so", "nothing says what it is"
# Behind these stand raw scores, of which none is cut off.
_LINEAR = ("Add", "Conv", "Gemm", "MatMul", "Sub")
_UNIT = 1e-3
# A vector of one or two numbers of length 1 is rather an angle, and is judged column by column.
_LEAST_EMBEDDING = 3
_BOX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How one output is judged.

    Attributes:
        kind: One of `converter.plan.KINDS`.
        because: Where that is known from, in words.
        axis: Where its columns (classes, members of a vector, coordinates) lie; None where there is just one.
        threshold: Above it an answer is yes.
        labelled: Whether the labels are about it.
        rows: Its rows, where these go with scores.
        also: ``classes`` or ``sequences``, where an output that nothing names looks like their raw scores.
        also_axis: Where these classes lie.
    """

    kind: str
    because: str
    axis: int | None
    threshold: float = 0.0
    labelled: bool = False
    rows: Rows | None = None
    also: str | None = None
    also_axis: int | None = None

    @property
    def answers(self) -> Judged | None:
        """How answers are read from it; None where there are none."""
        if self.kind in (CLASSES, SEQUENCES, YES_OR_NO):
            return self
        if self.kind != ANYTHING or self.also is None:
            return None
        return replace(self, kind=self.also, axis=self.also_axis)


def kinds_of(
    outputs: Sequence[TensorSpec],
    reference: Arrays,
    y: Array | None,
    *,
    said: Mapping[str, str],
    class_names: Sequence[str] | None,
    endings: Mapping[str, str],
    inputs: Sequence[TensorSpec] = (),
) -> dict[str, Judged]:
    """What every output is.

    Args:
        outputs: Of the model.
        reference: What it gives on samples.
        y: The labels of these samples, or None.
        said: What the user said, by output.
        class_names: Of the data, the checkpoint or the user; None when nobody named any.
        endings: See `endings_of`.
        inputs: Of the model.

    Raises:
        ConfigError: The user named an output that is not there, or a kind that it cannot be; or no output is what the
            labels are about.
    """
    by_name = {spec.name: spec for spec in outputs}
    if unknown := sorted(set(said) - set(by_name)):
        raise ConfigError(f"--output {unknown[0]}={said[unknown[0]]}: the model gives {', '.join(by_name)}")
    found = {}
    for spec in outputs:
        array, ending = reference[spec.name], endings.get(spec.name, "")
        axis = column_axis(spec, array)
        size = 1 if axis is None else array.shape[axis]
        kind, because = ANYTHING, UNKNOWN
        if spec.name in said:
            kind, because = said[spec.name], SAID
        elif class_names is not None and len(class_names) == size > 1 and array.ndim == 2 and spec.batch_axis == 0:
            kind, because = CLASSES, "it has one value for each class name"
        elif ending in ("Softmax", "LogSoftmax") and array.ndim <= 3 and size > 1:
            kind, because = CLASSES, f"it ends in {ending}"
        elif ending in ("Sigmoid", "Softmax"):
            kind, because = SCORES, f"it ends in {ending}"
        elif _is_unit(spec, array):
            kind, because = EMBEDDING, "its vectors have the length 1"
        if ending in ("Softmax", "LogSoftmax", "LpNormalization") or kind == EMBEDDING:
            axis = axis if array.ndim >= 4 and kind != EMBEDDING else array.ndim - 1
        judged = Judged(kind=kind, because=because, axis=axis, threshold=_threshold(ending, array))
        found[spec.name] = _fitting(spec, array, judged) if spec.name in said else judged
    found = _with_rows(outputs, reference, found)
    found = {s.name: _with_classes(s, reference[s.name], found[s.name], endings, inputs) for s in outputs}
    if y is None:
        return found
    name = _labelled(outputs, reference, y, found, class_names)
    return found | {name: _by_labels(found[name], reference[name], y, said=name in said)}


def _with_rows(outputs: Sequence[TensorSpec], reference: Arrays, kinds: Mapping[str, Judged]) -> dict[str, Judged]:
    """The same with rows that go with scores, and boxes among them that are plain from name, shape and values."""
    scoring = [name for kind in (SCORES, CLASSES) for name, judged in kinds.items() if judged.kind == kind]
    found = dict(kinds)
    axes = {name: judged.axis for name, judged in kinds.items()}
    for name, row in rows_of(outputs, reference, axes, scoring).items():
        judged = found[name] = replace(kinds[name], rows=row)
        places = [i for i, size in enumerate(reference[name].shape) if size == _BOX and i not in (0, row.axis)]
        if not places or judged.kind not in (ANYTHING, BOXES) or row.scores == name:
            continue
        rows = replace(row, column_axis=places[-1])
        shown, axis = rows.taken(reference[name], looked_at(rows, reference, reference).seen)
        are_boxes = bool(len(shown)) and overlaps(*[in_columns(shown, axis).astype(np.float64)] * 2) is not None
        if judged.kind == BOXES:
            found[name] = replace(judged, rows=rows)
        elif judged.because == UNKNOWN and is_named_boxes(name) and are_boxes:
            because = f"of its name, and because {rows.scores} goes with it"
            found[name] = replace(judged, kind=BOXES, because=because, axis=places[-1], rows=rows)
    return found


def _with_classes(
    spec: TensorSpec, array: Array, judged: Judged, endings: Mapping[str, str], inputs: Sequence[TensorSpec]
) -> Judged:
    """The same, as sequences where the steps are the model's own; and what nothing names, as classes as well."""
    if judged.rows is not None:
        return judged
    if (
        judged.kind == CLASSES
        and judged.because != SAID
        and array.ndim == 3
        and has_own_steps(spec, judged.axis, inputs)
    ):
        return replace(judged, kind=SEQUENCES, because=f"{judged.because}, and its steps are no axis of an input")
    if judged.because != UNKNOWN or endings.get(spec.name) not in _LINEAR:
        return judged
    axis = class_axis(spec, array, judged.axis)
    if axis is None:
        return judged
    also, because = CLASSES, f"{UNKNOWN}; by the largest of each row as well, which stands out"
    if has_own_steps(spec, axis, inputs):
        also, because = SEQUENCES, f"{UNKNOWN}; by what is read of each step as well, as one value stands out there"
    return replace(judged, because=because, also=also, also_axis=axis)


def of_head(
    kinds: Mapping[str, Judged], reference: Arrays, y: Array | None, output: str, loss: str | None
) -> dict[str, Judged]:
    """The same with what the head says: class numbers are about its output, and a loss that was asked for as well.

    Args:
        kinds: As far as they are known without.
        reference: What the model gives on samples.
        y: Their labels.
        output: Of the head.
        loss: That the user asked for, or None.
    """
    judged, array = kinds[output], reference[output]
    found = dict(kinds)
    about = next((name for name, one in kinds.items() if one.labelled), None)
    if (
        y is not None
        and y.dtype.kind in "iu"
        and about not in (None, output)
        and kinds[about or ""].because != SAID
        and array.ndim == 2
        and 0 <= y.min() <= y.max() < array.shape[1]
        and judged.kind in (CLASSES, ANYTHING)
    ):
        found[about or ""] = replace(kinds[about or ""], kind=ANYTHING, because=UNKNOWN, labelled=False)
        return found | {output: _by_labels(judged, array, y, said=False)}
    kind = _KIND_OF_LOSS.get(loss or "")
    if kind is not None and (judged.kind == ANYTHING or (judged.labelled and judged.because != SAID)):
        found[output] = replace(judged, kind=kind, because=f"--loss {loss}")
    return found


def endings_of(model: onnx.ModelProto) -> dict[str, str]:
    """The operator that each output's values come from, which Reshape, Slice and their like do not change.

    A softmax or sigmoid is one also where the file has it in pieces, as compilers write it.
    """
    links = Links(model.graph)
    return {info.name: _ending(links, info.name) for info in model.graph.output}


def _ending(links: Links, output: str) -> str:
    node = _behind_moves(links, output)
    if node is None or len(node.input) < 2:
        return "" if node is None else node.op_type
    exponentials, sums = (_behind_moves(links, name) for name in node.input[:2])
    if node.op_type == "Div" and _is_one(links, node.input[0]) and _is_one_and_exponential(links, sums):
        return "Sigmoid"
    if exponentials is None or sums is None:
        return node.op_type
    if node.op_type == "Div" and exponentials.op_type == "Exp" and _is_sum_of(links, sums, exponentials.output[0]):
        return "Softmax"
    if node.op_type == "Sub" and sums.op_type == "Log":  # x - log(sum(exp(x)))
        total = _behind_moves(links, sums.input[0])
        summed = None if total is None else _behind_moves(links, total.input[0])
        if total is not None and summed is not None and summed.op_type == "Exp" and summed.input[0] == node.input[0]:
            return "LogSoftmax" if _is_sum_of(links, total, summed.output[0]) else node.op_type
    return node.op_type


def _is_one(links: Links, name: str) -> bool:
    return name in links.constants and bool((links.array(name) == 1).all())


def _is_one_and_exponential(links: Links, node: onnx.NodeProto | None) -> bool:
    if node is None or node.op_type != "Add" or not any(_is_one(links, name) for name in node.input):
        return False
    others = [links.made_by.get(name) for name in node.input if not _is_one(links, name)]
    return len(others) == 1 and others[0] is not None and others[0].op_type == "Exp"


def _is_sum_of(links: Links, node: onnx.NodeProto, value: str) -> bool:
    made = _behind_moves(links, node.input[0]) if node.op_type == "ReduceSum" else None
    return made is not None and value in made.output


def _behind_moves(links: Links, name: str) -> onnx.NodeProto | None:
    node = links.made_by.get(name)
    while node is not None and node.op_type in _MOVES:  # in a graph nothing goes round
        node = links.made_by.get(node.input[0])
    return node


def _is_unit(spec: TensorSpec, array: Array) -> bool:
    if array.dtype.kind != "f" or array.ndim < 2 or spec.batch_axis == array.ndim - 1:
        return False
    if array.shape[-1] < _LEAST_EMBEDDING or not array.size:
        return False
    lengths = np.sqrt(np.square(array.astype(np.float64)).sum(axis=-1))
    # Vectors with one member that is 1 are one-hot, not directions.
    return bool((np.abs(lengths - 1) < _UNIT).all() and (np.abs(array).max(axis=-1) < 1 - _UNIT).any())


def _threshold(ending: str, array: Array) -> float:
    """0.5 for probabilities, 0 for logits."""
    if array.dtype.kind != "f":
        return 0.5
    if ending:
        return 0.5 if ending in ("Sigmoid", "Softmax", "HardSigmoid", "Clip") else 0.0
    return 0.5 if array.size and array.min() >= 0 and array.max() <= 1 else 0.0


def _fitting(spec: TensorSpec, array: Array, judged: Judged) -> Judged:
    """What the user said, with the axis where it lies.

    Raises:
        ConfigError: An output of these axes cannot be that.
    """
    option = f"--output {spec.name}={judged.kind}: {spec.name} has the shape {spec.describe()}"
    if judged.kind == CLASSES and array.dtype.kind == "f" and (judged.axis is None or array.shape[judged.axis] < 2):
        raise ConfigError(f"{option}; classes need one value for each class: two or more ({YES_OR_NO} needs one)")
    if judged.kind == SEQUENCES and steps_axis(spec, judged.axis if array.dtype.kind == "f" else None) is None:
        raise ConfigError(f"{option}; sequences need steps, and along another axis one value for each class")
    if judged.kind in (CLASSES, SEQUENCES, YES_OR_NO):
        return judged
    if array.dtype.kind != "f" and judged.kind not in (QUANTITIES, ANYTHING):
        raise ConfigError(f"{option}; {judged.kind} are floats")
    if judged.kind == EMBEDDING:
        if array.ndim < 2 or array.shape[-1] < 2:
            raise ConfigError(f"{option}; an embedding needs a vector of two or more numbers for each sample")
        return replace(judged, axis=array.ndim - 1)
    if judged.kind == BOXES:
        places = [i for i in range(array.ndim) if i != spec.batch_axis and array.shape[i] == _BOX]
        if not places:
            raise ConfigError(f"{option}; boxes need an axis of 4: two corners, or centre and size")
        return replace(judged, axis=places[-1])
    return judged


def _labelled(
    outputs: Sequence[TensorSpec],
    reference: Arrays,
    y: Array,
    kinds: Mapping[str, Judged],
    class_names: Sequence[str] | None,
) -> str:
    """The output that the labels are about."""
    if y.dtype.kind == "f":
        size = y.size // max(1, len(y))
        fits = [
            s.name for s in outputs if s.batch_axis is not None and reference[s.name].size == y.size
            and kinds[s.name].kind not in (EMBEDDING, BOXES) and reference[s.name].dtype.kind == "f"
        ]  # fmt: skip
        if not fits:
            sizes = ", ".join(f"{s.name} {reference[s.name].size // max(1, len(y))}" for s in outputs)
            raise ConfigError(
                f"the data have {size} numbers for each sample as y, but no output has as many ({sizes}): expected "
                f"targets of an output's size, class numbers as integers (n,), or no y"
            )
        return max(fits, key=lambda name: kinds[name].because == SAID)
    rows = [s for s in outputs if s.batch_axis == 0]
    tables = [s for s in rows if reference[s.name].ndim == 2 and reference[s.name].shape[1] > 1]
    tables = [s for s in tables if s.dtype.startswith("float") and kinds[s.name].kind in (CLASSES, ANYTHING)]
    if tables:
        known = [s for s in tables if kinds[s.name].kind == CLASSES] or tables
        fitting = [s for s in known if y.min() >= 0 and y.max() < reference[s.name].shape[1]]
        if not fitting:
            check_labels(y, max(reference[s.name].shape[1] for s in known), class_names)
        # Of several that they fit, the one that the model knows them in.
        right = {s.name: float((reference[s.name].argmax(axis=1) == y.reshape(-1)).mean()) for s in fitting}
        return max(fitting, key=lambda s: (kinds[s.name].because == SAID, right[s.name])).name
    ones = [s for s in rows if reference[s.name].size == len(y)]
    numbers = [s for s in ones if not s.dtype.startswith("float")]
    if numbers:
        return numbers[0].name
    if ones and set(np.unique(y)) <= {0, 1}:
        return ones[0].name
    few = f" other than 0 and 1 ({ones[0].name} has one value: give quantities as floats)" if ones else ""
    answers = next((s for s in rows if kinds[s.name].kind in (SCORES, YES_OR_NO) and reference[s.name].ndim == 2), None)
    if answers is not None and reference[answers.name].shape[1] > 1:
        name, size = answers.name, reference[answers.name].shape[1]
        few = f"; {name} gives {size} answers that are yes or no each: give y of 0 and 1 (n, {size}), or say "
        few += f"--output {name}={CLASSES}, if one of them is right"
        raise ConfigError(f"the data have class numbers as y{few}")
    raise ConfigError(f"the data have class numbers as y{few}, but no output has one value for each class")


def check_labels(labels: Array, n_classes: int, class_names: Sequence[str] | None = None) -> None:
    """Raise ConfigError unless labels are class numbers of so many classes, which may have names."""
    if not (labels.min() >= 0 and labels.max() < n_classes):
        hint = "; count from 0" if (labels.min(), labels.max()) == (1, n_classes) else ""
        if class_names is not None and {str(label) for label in np.unique(labels)} <= set(class_names):
            hint = f"; these are names of classes, {', '.join(class_names)}: give the place of each name, from 0"
        elif labels.min() < 0:
            hint = "; leave out samples whose class is not known"
        raise ConfigError(
            f"labels from {labels.min()} to {labels.max()}, but the model has {n_classes} outputs: "
            f"expected 0 to {n_classes - 1}{hint}"
        )


def _by_labels(judged: Judged, array: Array, y: Array, *, said: bool) -> Judged:
    if y.dtype.kind != "f":
        single = array.size == len(y)
        kind = YES_OR_NO if single and array.dtype.kind in "fb" else CLASSES
        if judged.kind in (YES_OR_NO, CLASSES):
            kind = judged.kind
        return replace(judged, kind=kind, because="the labels are class numbers", labelled=True)
    if said and judged.kind in (QUANTITIES, SCORES, ANYTHING):
        return replace(judged, kind=QUANTITIES, labelled=True)
    if bool(np.isin(y, (0.0, 1.0)).all()):
        return replace(judged, kind=YES_OR_NO, because="the labels are 0 and 1", labelled=True)
    return replace(judged, kind=QUANTITIES, because="the labels are quantities", labelled=True)
