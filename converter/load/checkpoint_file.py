"""What `converter.save_checkpoint` writes: a dictionary with the key `KEY`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from converter.data.fit import labels_or_targets
from converter.data.samples import Samples
from converter.load.torch_file import read_torchscript
from converter.load.weights import load_weights
from converter.load.wrapped import check_tensor
from converter.program.tensors import Arrays
from edge.contract import strictjson
from edge.contract.errors import ConversionError
from edge.contract.foreign import reason
from edge.contract.tensorspec import AxisRange, TensorSpec

KEY = "edgeloop_checkpoint"
VERSION = 2


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Checkpoint:
    """See `converter.load.source.Source` for the meaning of its parts.

    Attributes:
        decides: Where the model's code decides by values and what is stored does not, "" for nowhere.
    """

    model: torch.jit.ScriptModule
    inputs: tuple[TensorSpec, ...]
    example: Arrays
    output_names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    preprocessing: Mapping[str, Any]
    samples: Samples | None
    ranges: Mapping[str, AxisRange]
    decides: str


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Raise ConversionError unless it can stand in a manifest: texts, finite numbers, lists and objects."""
    try:
        strictjson.dumps(dict(preprocessing))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConversionError(f"preprocessing must be plain JSON: {reason(exc)}") from exc


def check_samples(
    specs: Sequence[TensorSpec], x: Mapping[str, np.ndarray[Any, Any]], y: np.ndarray[Any, Any] | None
) -> None:
    """Raise ValueError unless samples fit the inputs that they are given for, with as many of each, and of labels."""
    counts = {}
    for spec in specs:
        if spec.name in x:
            spec.check(x[spec.name])
            if spec.batch_axis is not None:
                counts[spec.name] = x[spec.name].shape[spec.batch_axis]
    count = next(iter(counts.values()), 1)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise ValueError(f"different numbers of samples: {each}")
    if y is not None and (y.ndim == 0 or len(y) != count):
        raise ValueError(f"y of the shape {y.shape} for {count} samples, expected one y for each")
    if y is not None and y.dtype.kind in "iub":
        labels_or_targets(y)


def is_checkpoint(document: object) -> bool:
    """Whether `converter.save_checkpoint` wrote this."""
    return isinstance(document, dict) and KEY in document


def read_checkpoint(document: Mapping[str, Any], what: str) -> Checkpoint:
    """Take a checkpoint apart.

    Raises:
        ConversionError: It is of another version, or its parts are not what they should be.
    """
    if not (type(document[KEY]) is int and document[KEY] == VERSION):
        raise ConversionError(f"checkpoint version {document[KEY]!r}, this program reads {VERSION}: save it again")
    model = read_torchscript(_array(document, "torchscript").tobytes(), "the checkpoint")
    # The weights stand twice, in the archive and beside it; the ones beside it may have been trained on since.
    load_weights(model, _field(document, "state_dict", dict), what)
    try:
        inputs = tuple(TensorSpec.from_json(item) for item in _field(document, "inputs", list))
    except ValueError as exc:
        raise ConversionError(f"the checkpoint's inputs: {exc}") from exc
    examples = _field(document, "example_inputs", dict)
    if not inputs or list(examples) != [spec.name for spec in inputs]:
        raise ConversionError(f"the checkpoint's example_inputs {list(examples)} are not its inputs")
    example = {spec.name: _array(examples, spec.name) for spec in inputs}
    _check(inputs, example, "example_inputs")
    for spec in inputs:
        if spec.batch_axis is not None and example[spec.name].shape[spec.batch_axis] != 1:
            raise ConversionError(f"the checkpoint's example of {spec.name} is not one sample")
    names = _field(document, "class_names", list)
    preprocessing = _field(document, "preprocessing", dict)
    check_preprocessing(preprocessing)
    return Checkpoint(
        model=model,
        inputs=inputs,
        example=example,
        output_names=tuple(str(name) for name in _field(document, "outputs", list)),
        class_names=tuple(str(name) for name in names) or None,
        preprocessing=preprocessing,
        samples=_samples(document, inputs),
        ranges=_ranges(document),
        decides=_field(document, "decides", str) if "decides" in document else "",
    )


def _ranges(document: Mapping[str, Any]) -> dict[str, AxisRange]:
    """Sizes of free axes, by name; a checkpoint of an earlier version has none."""
    if "axes" not in document:
        return {}
    try:
        return {str(name): AxisRange.from_json(value) for name, value in _field(document, "axes", dict).items()}
    except ValueError as exc:
        raise ConversionError(f"the checkpoint's axes: {exc}") from exc


def _samples(document: Mapping[str, Any], inputs: tuple[TensorSpec, ...]) -> Samples | None:
    if "calibration_x" not in document:
        return None
    what = "the checkpoint's calibration data"
    held = _field(document, "calibration_x", dict)
    names = [spec.name for spec in inputs]
    if not held or set(held) - set(names):
        raise ConversionError(f"{what} {list(held)} are not its inputs")
    x = {name: _array(held, name) for name in names if name in held}
    y = _array(document, "calibration_y") if "calibration_y" in document else None
    try:
        check_samples(inputs, x, y)
    except ValueError as exc:
        raise ConversionError(f"{what}: {exc}") from exc
    if y is not None and y.dtype.kind not in "iufb":
        raise ConversionError(f"{what} have labels of the type {y.dtype}")
    try:
        return Samples(x, None if y is None else labels_or_targets(y))
    except ValueError as exc:
        raise ConversionError(f"{what}: {exc}") from exc


def _check(inputs: tuple[TensorSpec, ...], arrays: Arrays, what: str) -> None:
    for spec in inputs:
        try:
            spec.check(arrays[spec.name])
        except ValueError as exc:
            raise ConversionError(f"the checkpoint's {what}: {exc}") from exc


def _field(document: Mapping[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if not isinstance(value, kind):
        raise ConversionError(f"the checkpoint's {key} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _array(document: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    tensor: torch.Tensor = _field(document, key, torch.Tensor)
    check_tensor(f"the checkpoint's {key}", tensor)
    if tensor.dtype == torch.bfloat16:
        raise ConversionError(f"the checkpoint's {key} is bfloat16; save it as float32")
    array: npt.NDArray[Any] = tensor.detach().numpy()
    return array
