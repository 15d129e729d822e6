"""Programs: a torch model or an ONNX graph as a function of named arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from converter.program.one_run import as_judged, in_runs
from converter.program.tensors import Array, Arrays, Run, batch_size, in_batches, join
from edge.contract.errors import BundleError, ConversionError
from edge.contract.foreign import foreign, shortage
from edge.contract.tensorspec import BATCH, TensorSpec, axis_name
from edge.inference.onnx_session import EXACT, open_onnx

# So many samples, or so many bytes of them, are run at once: larger activations leave the processor's caches, and torch
# asks the system for their memory anew each time.
_BATCH_SIZE = 32
_BATCH_BYTES = 1 << 20
_MAX_THREADS = 4
_MADE_UP = 16


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """For single samples: several threads wait longer for each other than they work."""
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(available_threads())


def named_outputs(value: Any, taken: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors in what a model returned, in order, with a name for each.

    A single tensor is ``output``; the members of a dict, a named tuple or a dataclass keep their names, those of a
    tuple or list are ``output_0``, ``output_1``, ...; nested ones are joined by a dot. None is left out. A name that is
    in `taken`, as a recurrent state's often is, gets ``_out`` behind it.
    """
    found: dict[str, torch.Tensor] = {}

    def walk(item: Any, name: str) -> None:
        if isinstance(item, torch.Tensor):
            if item.is_complex():
                raise ConversionError(
                    f"the model returns complex numbers as {name or 'its output'}: return torch.view_as_real of them, "
                    f"real and imaginary parts along a last axis of 2"
                )
            found[name + "_out" if name in taken else name] = item
        elif isinstance(item, Mapping):
            for key, member in item.items():
                walk(member, f"{name}.{key}" if name else str(key))
        elif isinstance(item, tuple) and hasattr(item, "_fields"):
            walk(dict(zip(item._fields, item, strict=True)), name)
        elif isinstance(item, tuple | list):
            for i, member in enumerate(item):
                walk(member, f"{name}_{i}" if name else f"output_{i}")
        elif dataclasses.is_dataclass(item):
            walk({field.name: getattr(item, field.name) for field in dataclasses.fields(item)}, name)
        elif item is not None:
            raise ConversionError(
                f"the model returns {type(item).__name__} as {name or 'its output'}, expected tensors"
            )

    if isinstance(value, torch.Tensor):
        walk(value, "output")
    else:
        walk(value, "")
    if not found:
        raise ConversionError("the model returns no tensor")
    return found


class Flat(nn.Module):
    """A model that takes its inputs by position and returns a tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All tensors that the model returns, in the order of `named_outputs`."""
        return tuple(named_outputs(self.model(*inputs)).values())


def torch_program(model: nn.Module, inputs: Sequence[TensorSpec], output_names: Sequence[str] | None = None) -> Run:
    """A torch model as a function of named arrays.

    Args:
        model: The model.
        inputs: What it takes, in order.
        output_names: Of what it returns, in order; None to take them from what it returns, see `named_outputs`.

    The function raises ConversionError when the model does not run, or returns something else than tensors.
    """
    names = [spec.name for spec in inputs]

    def run(batch: Mapping[str, Array]) -> Arrays:
        arrays = [torch.tensor(batch[name]) for name in names]  # copies: a model may work on its inputs in place

        def failed() -> str:
            shapes = ", ".join(f"{name} {tuple(batch[name].shape)} {batch[name].dtype}" for name in names)
            return f"the model does not run on a batch of {shapes}"

        with torch.inference_mode(), foreign(failed, ConversionError):  # the model is the user's code
            returned = model(*arrays)
        found = named_outputs(returned, names)
        if output_names is not None:
            if len(found) != len(output_names):
                raise ConversionError(f"the model returns {len(found)} tensors, expected {', '.join(output_names)}")
            found = dict(zip(output_names, found.values(), strict=True))
        return {name: _numpy(tensor) for name, tensor in found.items()}

    return run


def _numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.to(torch.float32)
    array: Array = tensor.detach().numpy()
    return array


def available_threads() -> int:
    """Threads for work that is not timed."""
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


def onnx_program(
    model: onnx.ModelProto,
    what: str,
    constants: Mapping[str, Array] | None = None,
    threads: int | None = None,
    config: Mapping[str, str] = EXACT,
) -> Run:
    """A graph as a function of named arrays, with exact int8 arithmetic: how this CPU rounds says nothing of others.

    A graph that says that it takes a fixed number of samples is run as often as all samples need. So is one in which
    all samples of a run would be quantized on one scale.

    Args:
        model: The graph.
        what: Its name for messages.
        constants: Inputs that are always the same, such as the parameters of a head.
        threads: `available_threads` when None.
        config: Of the session.

    Raises:
        ConversionError: onnxruntime does not load it.
    """
    how = as_judged(model)
    threads = threads or (1 if how is not None and how.size == 1 else None)  # of one sample threads wait for each other
    return in_runs(_program(model.SerializeToString(), what, constants, threads, config), how)


def one_run_program(model: onnx.ModelProto, what: str, constants: Mapping[str, Array] | None = None) -> Run:
    """The same, of exactly as many samples as the graph takes at once; all together where that is free."""
    return _program(model.SerializeToString(), what, constants, None, EXACT)


def onnx_file_program(path: Path, constants: Mapping[str, Array] | None = None) -> Run:
    """An ONNX file as onnxruntime itself reads it, external data and all, with inputs as it states them."""
    return _program(str(path), str(path), constants, None, EXACT)


def output_shapes(model: onnx.ModelProto) -> dict[str, list[int | str | None]]:
    """Shapes of the outputs as far as onnxruntime infers them, by name."""
    session = open_onnx(model.SerializeToString(), "the model", 1, EXACT)
    return {output.name: list(output.shape) for output in session.get_outputs()}


def _program(
    model: bytes | str, what: str, constants: Mapping[str, Array] | None, threads: int | None, config: Mapping[str, str]
) -> Run:
    try:
        session = open_onnx(model, what, threads or available_threads(), config)
    except BundleError as exc:  # at conversion there is no bundle yet to be distrusted
        raise shortage(exc, f"{what} does not load in onnxruntime") or ConversionError(str(exc)) from exc
    outputs = [output.name for output in session.get_outputs()]
    fixed = dict(constants or {})

    def run(batch: Mapping[str, Array]) -> Arrays:
        def failed() -> str:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in batch.items())
            return f"{what} does not run on a batch of {shapes}"

        with foreign(failed, ConversionError):
            return dict(zip(outputs, session.run(None, {**batch, **fixed}), strict=True))

    return run


def outputs(run: Run, x: Arrays, inputs: Sequence[TensorSpec], outputs_: Sequence[TensorSpec]) -> Arrays:
    """Outputs on many samples, in batches, so that memory does not grow with them."""
    names = {spec.name for spec in outputs_}
    sample_bytes = max(1, sum(array.nbytes for array in x.values()) // batch_size(x, inputs))
    size = max(2, min(_BATCH_SIZE, _BATCH_BYTES // sample_bytes))
    batches = [
        {name: array for name, array in run(batch).items() if name in names} for batch in in_batches(x, inputs, size)
    ]
    return join(batches, outputs_)


def output_specs(
    run: Run, inputs: Sequence[TensorSpec], example: Arrays, others: Mapping[str, int] | None = None
) -> tuple[TensorSpec, ...]:
    """Names, types and axes of what a program gives: an axis is free if it grows with a free axis of the inputs.

    Args:
        run: The program.
        inputs: What it takes.
        example: One sample.
        others: For each free axis but the batch axis another size that the program takes; one more when None.

    Raises:
        ConversionError: It does not run at another size of a free axis.
    """
    sizes = {
        axis: example[spec.name].shape[i]
        for spec in inputs
        for i, axis in enumerate(spec.shape)
        if isinstance(axis, str)
    }
    if BATCH in sizes:
        sizes[BATCH] = 2  # an axis of 1 could be one that broadcasts
    found = run(resized(example, inputs, sizes))
    usual = resized(example, inputs, {BATCH: sizes[BATCH]} if BATCH in sizes else {})
    axes: dict[str, list[int | str]] = {name: list(array.shape) for name, array in found.items()}
    for axis, size in sizes.items():
        other = size + 1 if axis == BATCH or others is None else others[axis]
        for name, array in _first_that_runs(run, grown(usual, inputs, {axis: other})).items():
            if array.ndim != len(axes[name]):
                raise ConversionError(f"the output {name} has another number of axes when {axis} is {other}")
            for i, (before, after) in enumerate(zip(found[name].shape, array.shape, strict=True)):
                if (before, after) == (size, other):
                    axes[name][i] = axis
                elif after != before:
                    axes[name][i] = axis_name(f"{name[-48:]}_{i}", name, i)
    return tuple(
        TensorSpec(name=name, dtype=str(found[name].dtype), shape=tuple(shape)) for name, shape in axes.items()
    )


def resized(example: Arrays, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Arrays:
    """An example whose free axes have other sizes, by repeating it or cutting it off; made up where it is empty."""
    made: Arrays = {}
    for spec in inputs:
        array = example[spec.name]
        for i, axis in enumerate(spec.shape):
            if isinstance(axis, str) and axis in sizes:
                array = array if array.shape[i] else _made_up(array, i)
                array = np.take(array, np.arange(sizes[axis]) % array.shape[i], axis=i)
        made[spec.name] = np.require(array, requirements="C")  # ascontiguousarray gives a scalar an axis
    return made


def grown(example: Arrays, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Iterator[Arrays]:
    """The example with these sizes; then with another free axis grown by as much, one after the other.

    A mask of what came before and of what comes is as long as both.
    """
    yield resized(example, inputs, sizes)
    before = {axis: example[s.name].shape[i] for s in inputs for i, axis in enumerate(s.shape) if isinstance(axis, str)}
    by = sum(size - before[axis] for axis, size in sizes.items() if axis != BATCH and axis in before)
    for axis, size in before.items():
        if by and axis not in sizes and axis != BATCH and size + by > 0:
            yield resized(example, inputs, {**sizes, axis: size + by})


def _first_that_runs(run: Run, samples: Iterator[Arrays]) -> Arrays:
    fault: ConversionError | None = None
    for sample in samples:
        try:
            return run(sample)
        except ConversionError as exc:
            fault = fault or exc
    assert fault is not None
    raise fault


def _made_up(empty: Array, axis: int) -> Array:
    """Some entries along an axis that has none: standard normal floats, else zeros."""
    shape = (*empty.shape[:axis], _MADE_UP, *empty.shape[axis + 1 :])
    if empty.dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(empty.dtype)
    return np.zeros(shape, empty.dtype)


def has_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether samples can be put together."""
    return any(BATCH in spec.shape for spec in specs)
