"""Samples from the user's own code: ``FILE.py:NAME`` or ``package.module:NAME``.

NAME is called without arguments whenever samples are read and gives an iterable, e.g. a generator or a DataLoader. Each
item is one *batch*, samples along axis 0: ``x``, ``(x,)`` or ``(x, y)``. ``x`` is a numpy array or a torch tensor, or a
dict of them by input name; `y` has one class number (integers) or target (floats) for each sample, or is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from converter.data.fit import Fitter
from converter.data.samples import Samples
from converter.program.tensors import Array, batch_size, select
from converter.program.user_code import folder_of, importing_from, named_object
from edge.contract.errors import ConfigError
from edge.contract.foreign import foreign

_END = object()


class CallableSamples:
    """What a callable gives, see the module."""

    def __init__(self, value: str, option: str, fitter: Fitter) -> None:
        self.origin = value
        self.class_names: tuple[str, ...] | None = None
        self._fitter = fitter
        self._call: Callable[[], Any] = named_object(value, option)
        self._folder = folder_of(value.rpartition(":")[0])
        self._last: Iterator[Any] | None = None

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`."""
        fitter = self._fitter
        labelled: bool | None = None
        for item in self._items():
            samples = self._fitted(item)
            if labelled is None:
                labelled = samples.y is not None
            if labelled != (samples.y is not None):
                raise ConfigError(f"{fitter.what} gives y with some batches only; expected it with all or none")
            for start in range(0, batch_size(samples.x, fitter.inputs), size):
                rows = slice(start, start + size)
                yield Samples(select(samples.x, fitter.inputs, rows), None if samples.y is None else samples.y[rows])
        if labelled is None:
            raise ConfigError(f"{fitter.what} gives no batches; expected at least one")

    def _items(self) -> Iterator[Any]:
        failed = f"{self._fitter.what} failed"
        with importing_from(self._folder), foreign(failed, ConfigError):
            iterator = iter(self._call())
        if iterator is self._last:
            raise ConfigError(f"{self._fitter.what} gives the same iterator again; make a new one with each call")
        self._last = iterator
        while True:
            with importing_from(self._folder), foreign(failed, ConfigError):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item

    def _fitted(self, item: Any) -> Samples:
        fitter = self._fitter
        x, y = item, None
        if isinstance(item, tuple | list):
            if len(item) not in (1, 2):
                raise ConfigError(f"{fitter.what} gives {len(item)} things for a batch; expected x, (x,) or (x, y)")
            x, y = (*item, None)[:2]
        if not isinstance(x, Mapping):
            if len(fitter.inputs) > 1:
                names = ", ".join(spec.name for spec in fitter.inputs)
                raise ConfigError(f"{fitter.what} gives one array; expected a dict with one for each input: {names}")
            x = {"x": x}
        keys = fitter.keys(map(str, x))
        arrays = {name: self._array(x[key]) for name, key in keys.items()}
        return fitter.fit(arrays, None if y is None else self._array(y))

    def _array(self, value: Any) -> Array:
        what = f"{self._fitter.what} gives {type(value).__name__}; expected a numpy array or a torch tensor"
        with foreign(what, ConfigError):
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu()
                value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            array: Array = np.asarray(value)
        return array
