"""What a file of weights holds: networks by where they lie, and all of it as a tree for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.data.fit import LABELS, SAMPLES
from converter.load.inert import PickledArray, StandIn

_MAX_DEPTH = 6
_ROWS, _ROWS_OF_ONE = 60, 6
# What training loops keep beside networks, which may hold tensors all the same.
_BESIDE = re.compile(
    r".*(?:optim|sched|scaler|rng|loss|metric|callback|hyper_?param|history|queue|buffer_state).*|opt|opt_[a-z]|cfg"
    r"|config|args|loops|trainer.*|meta|amp",
    re.IGNORECASE,
)
_AVERAGED = re.compile(r".*(?:ema|average|avg|swa|shadow|momentum|teacher).*", re.IGNORECASE)
EXTRA_STATE = "_extra_state"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Network:
    """Weights by name, and where they lie.

    Attributes:
        path: The keys that lead there; none when the file is nothing else.
        tensors: As they were found, with the versions that torch keeps beside them.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The path as it is typed."""
        return ".".join(self.path)

    @property
    def is_averaged(self) -> bool:
        """Whether it calls itself a running mean of another."""
        return any(_AVERAGED.fullmatch(part) for part in self.path)


def networks(document: Any, path: tuple[str, ...] = ()) -> list[Network]:
    """The state_dicts in a document, in its order."""
    inside = [found for key, value in _parts(document, path) for found in networks(value, (*path, key))]
    if inside:
        return inside
    is_one = isinstance(document, Mapping) and "param_groups" not in document and len(path) <= _MAX_DEPTH
    return [Network(path=path, tensors=document)] if is_one and _is_network(document) else []


def modules(document: Any, path: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The whole models with weights in a trusted document, by the keys that lead there."""
    if isinstance(document, nn.Module):
        return {".".join(path): document} if next(document.parameters(), None) is not None else {}
    return {
        name: module for key, value in _parts(document, path) for name, module in modules(value, (*path, key)).items()
    }


def networks_anywhere(document: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Keys of all networks, those that training keeps beside the weights included; not states of optimizers."""
    entries = _entries(document)
    if entries is None or "param_groups" in entries or len(path) > _MAX_DEPTH:
        return []
    if path and _is_network(entries):
        return [".".join(path)]
    return [
        found
        for key, value in entries.items()
        if isinstance(key, str)
        for found in networks_anywhere(value, (*path, key))
    ]


def stand_ins(document: Any, path: tuple[str, ...] = ()) -> list[StandIn]:
    """What was not read of a document, where networks could be."""
    if isinstance(document, StandIn):
        return [document]
    return [found for key, value in _parts(document, path) for found in stand_ins(value, (*path, key))]


def _parts(document: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    """By name what may hold networks."""
    entries = _entries(document)
    if entries is None or "param_groups" in entries or len(path) > _MAX_DEPTH:
        return []
    return [(key, value) for key, value in entries.items() if isinstance(key, str) and not _BESIDE.fullmatch(key)]


def _entries(document: Any) -> Mapping[Any, Any] | None:
    """A dictionary, or a list of dictionaries or modules as one by number; None for everything else."""
    if isinstance(document, list | tuple) and any(isinstance(item, Mapping | nn.Module | StandIn) for item in document):
        return {str(number): item for number, item in enumerate(document)}
    return document if isinstance(document, Mapping) else None


def _is_network(document: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) for key in document) and any(
        is_tensor(value) and (value.ndim > 0 if isinstance(value, torch.Tensor) else True)
        for value in document.values()
    )


def is_tensor(value: object) -> bool:
    """Whether it is a tensor, of torch or, as it was pickled, of numpy."""
    return isinstance(value, torch.Tensor | np.ndarray | PickledArray)


def found_at(document: Any, key: str) -> Any:
    """What lies under a key; dots lead from one dictionary into the next.

    Raises:
        KeyError: Nothing does.
    """
    entries = _entries(document)
    if entries is None:
        raise KeyError(key)
    if key in entries:
        return entries[key]
    for own in sorted((own for own in entries if isinstance(own, str)), key=len, reverse=True):
        if key.startswith(f"{own}."):
            return found_at(entries[own], key[len(own) + 1 :])
    raise KeyError(key)


def tree(document: Any) -> str:
    """What a document holds, as indented lines: names, shapes and types of tensors, kinds of everything else."""
    rows = list(_rows(document, "  "))
    more = [f"  ... and {len(rows) - _ROWS} more lines"] if len(rows) > _ROWS else []
    return "\n".join([*rows[:_ROWS], *more])


def _rows(document: Any, indent: str) -> Iterator[str]:
    document = document if (entries := _entries(document)) is None else entries
    if not isinstance(document, Mapping):
        yield f"{indent}{_described(document)}"
        return
    names = [shown(key) for key in document]
    width = min(44, max(map(len, names), default=0))
    tensors = 0
    for name, value in zip(names, document.values(), strict=True):
        if is_tensor(value) and len(document) > _ROWS_OF_ONE + 2:
            tensors += 1
            if tensors > _ROWS_OF_ONE:
                continue
        yield f"{indent}{name:<{width}} {_described(value)}"
        inner = _entries(value)
        if inner is not None and len(indent) < 2 * _MAX_DEPTH and "param_groups" not in inner:
            yield from _rows(value, indent + "  ")
    if tensors > _ROWS_OF_ONE:
        yield f"{indent}... and {tensors - _ROWS_OF_ONE} more tensors"


def _described(value: Any) -> str:
    if isinstance(value, PickledArray):
        value = value.array
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, StandIn):
        return f"{type(value).name}, not read"
    if isinstance(value, Mapping):
        if "param_groups" in value:
            return "state of an optimizer"
        if _is_network(value):
            held = [item for item in value.values() if isinstance(item, torch.Tensor)]
            return f"{len(value)} tensors, {sum(math.prod(item.shape) for item in held)} numbers"
        return f"{len(value)} entries"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}, a module of {sum(p.numel() for p in value.parameters())} numbers"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, bool | int | float | str):
        return f"{type(value).__name__} {shown(value)[:40]}"
    return type(value).__name__


def shown(name: object) -> str:
    """A name out of a file on one line, with nothing in it that commands a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in str(name)
    )


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ArraysBeside:
    """Samples that lie in a checkpoint beside the weights.

    Attributes:
        x: Samples along axis 0.
        y: Their labels or targets, or None.
        x_name: Its key.
        y_name: Its key, "" without.
    """

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any] | None
    x_name: str
    y_name: str


def arrays_beside(document: Any) -> ArraysBeside | None:
    """Arrays named as samples usually are, at the top of a document whose weights lie deeper; None without."""
    if not isinstance(document, Mapping) or not any(network.path for network in networks(document)):
        return None
    found = {str(key).lower(): (str(key), _array(value)) for key, value in document.items() if is_tensor(value)}
    x_name, x = next((found[name] for name in SAMPLES if name in found), ("", None))
    if x is None or x.ndim < 2 or len(x) < 2:
        return None
    y_name, y = next((found[name] for name in LABELS if name in found), ("", None))
    return ArraysBeside(x=x, y=y, x_name=x_name, y_name=y_name if y is not None else "")


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, PickledArray):
        value = value.array
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            return None
        value = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).detach().numpy()
    return np.asarray(value)
