"""The same run again and again: small arrays are copied into buffers that stay bound to the session.

Of a model that takes some microseconds, handing arrays to onnxruntime and taking them back costs a third of the time.
A session that keeps the memory of its runs gives it back after one of quite another size, as of many samples at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.inference.out_of_bounds import OutOfBoundsError, out_of_bounds

Array = npt.NDArray[Any]

# Of more than this, copying takes longer than handing over.
_MOST_BYTES = 64 << 10
# Inputs of two runs are of about one size within this factor: texts, but not one sample and many.
_ALIKE = 4
_GIVE_BACK = {"memory.enable_memory_arena_shrinkage": "cpu:0"}


class BoundRun:
    """Runs a session on the CPU for some outputs. From the second time that shapes and types are the same, it is bound.

    Threads may share it: one that comes while another one runs takes the usual way.

    Args:
        session: On the CPU provider.
        outputs: Names.
        keeps_memory: Whether the session does.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Sequence[str], keeps_memory: bool = False) -> None:
        self._session, self._outputs = session, list(outputs)
        self._gives_back = ort.RunOptions()
        for key, value in _GIVE_BACK.items() if keeps_memory else ():
            self._gives_back.add_run_config_entry(key, value)
        self._free: list[_Bound] = []  # one or none: who takes it out has it alone
        self._before: list[tuple[Any, ...]] = []

    def __call__(
        self, feeds: Mapping[str, Array], check: Callable[[Mapping[str, Array]], None] | None = None
    ) -> dict[str, Array]:
        """Run once; outputs by name.

        Args:
            feeds: By name.
            check: Asked about feeds that are not like those of the run before; raises where they are wrong.

        Raises:
            OutOfBoundsError: A number in the feeds names a row of a table that does not have it.
        """
        try:
            bound = self._free.pop()
        except IndexError:
            return self._usual(feeds, check)
        if not bound.takes(feeds):
            return self._usual(feeds, check)
        try:
            found = bound.run()
        except Exception:  # noqa: BLE001  # sizes of its outputs go by values; or it fails the usual way, too
            return self._run(feeds)
        self._free.append(bound)
        return found

    def _run(self, feeds: Mapping[str, Array], options: ort.RunOptions | None = None) -> dict[str, Array]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feeds, options), strict=True))
        except Exception as exc:  # the door: onnxruntime's exceptions have no common base
            if said := out_of_bounds(str(exc)):
                raise OutOfBoundsError(said) from exc
            raise

    def _usual(
        self, feeds: Mapping[str, Array], check: Callable[[Mapping[str, Array]], None] | None
    ) -> dict[str, Array]:
        seen = [(name, array.shape, array.dtype) for name, array in feeds.items()]
        again = seen == self._before
        if check is not None and not again:
            check(feeds)
        found = self._run(feeds, None if again or self._is_alike(feeds) else self._gives_back)
        self._before = seen
        arrays = [*feeds.values(), *found.values()]
        if (
            again
            and not self._free
            and all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in arrays)
            and sum(array.nbytes for array in arrays) <= _MOST_BYTES
        ):
            self._free.append(_Bound(self._session, feeds, found))
        return found

    def _is_alike(self, feeds: Mapping[str, Array]) -> bool:
        """Whether the run before had inputs of about these sizes."""
        sizes = [max(1, math.prod(shape)) for _, shape, _ in self._before]
        return len(sizes) == len(feeds) and all(
            one <= _ALIKE * max(1, array.size) and array.size <= _ALIKE * one
            for one, array in zip(sizes, feeds.values(), strict=True)
        )


class OneByOne:
    """Runs each sample alone, and gives the outputs of all as one run would: one sees nothing of the others.

    Args:
        run: Of as many samples as it is given.
        axes: By input and output, the axis along which samples lie; what is not there is the same for all.
    """

    def __init__(self, run: BoundRun, axes: Mapping[str, int]) -> None:
        self._run, self._axes = run, axes

    def __call__(
        self, feeds: Mapping[str, Array], check: Callable[[Mapping[str, Array]], None] | None = None
    ) -> dict[str, Array]:
        """Run once for each sample, see `BoundRun`."""
        axes = {name: self._axes[name] for name in feeds if name in self._axes}
        count = next((feeds[name].shape[axis] for name, axis in axes.items() if axis < feeds[name].ndim), 1)
        if count < 2:
            return self._run(feeds, check)
        if check is not None:
            check(feeds)
        found = [
            self._run({name: np.take(a, [i], axes[name]) if name in axes else a for name, a in feeds.items()})
            for i in range(count)
        ]
        return {
            name: np.concatenate([one[name] for one in found], self._axes[name]) if name in self._axes else array
            for name, array in found[0].items()
        }


class _Bound:
    """Buffers for inputs and outputs of these shapes and types, bound to a session."""

    def __init__(self, session: ort.InferenceSession, feeds: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        self._session, self._binding = session, session.io_binding()
        self._feeds = {name: np.empty(array.shape, array.dtype) for name, array in feeds.items()}
        self._found = {name: np.empty(array.shape, array.dtype) for name, array in found.items()}
        for name, buffer in self._feeds.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(buffer))
        for name, buffer in self._found.items():
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(buffer))

    def takes(self, feeds: Mapping[str, Array]) -> bool:
        """Take over feeds of these names, shapes and types; False where they have others."""
        buffers = self._feeds
        if feeds.keys() != buffers.keys():
            return False
        for name, array in feeds.items():
            buffer = buffers[name]
            if array.shape != buffer.shape or array.dtype != buffer.dtype:
                return False
            buffer[...] = array
        return True

    def run(self) -> dict[str, Array]:
        """Run on what was taken over."""
        self._session.run_with_iobinding(self._binding)
        return {name: buffer.copy() for name, buffer in self._found.items()}
