"""Frozen values as named arrays, and back: the one way in which anything that was learned is written down.

A value is a frozen dataclass, a tuple or a mapping with text keys, of values; an array, a number, a truth or a text; or
None. An array is found under its path, joined by dots: ``sent.0.statistics.moment``. Numbers, truths and texts are
arrays, too. What an array cannot say stands under the path of the whole: of a tuple how long it is, of a mapping its
keys in order, of None that there is nothing.

Reading compares with a *template*, a value of the same kind: that is the one place where shapes and types are checked.

* An array must have the template's type and shape; an axis that has length 0 there may have any.
* A tuple of any length (``tuple[T, ...]``) may have any number of elements, each like the template's first.
* A mapping must have the template's keys; the key ``*`` there stands for any number of others.
* Where a field says so (``T | None``), and is not None in the template, there may be nothing.
* A field with the metadata `UNWRITTEN` is not written; what is read has the template's.

Values are not checked beyond that: a dataclass that knows better refuses them in ``__post_init__``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[Any]]

ANY_KEY = "*"
UNWRITTEN: Mapping[str, bool] = types.MappingProxyType({"unwritten": True})
# Behind each key of a mapping; no key has it inside.
_END = "\0"
_SCALARS: dict[type, type[np.generic]] = {bool: np.bool_, int: np.int64, float: np.float64}


def flatten(value: Any) -> Arrays:
    """A value as arrays by name. They are the value's own: whoever writes into them changes it.

    Raises:
        TypeError: There is something else in it.
    """
    found: Arrays = {}
    _flatten(value, "", found)
    return found


def build(like: T, arrays: Mapping[str, npt.NDArray[Any]]) -> T:
    """The value that `flatten` gave these arrays of; they are copied.

    Args:
        like: A template, see the module.
        arrays: By name.

    Raises:
        LearningError: One is missing, unknown, or of another shape or type.
    """
    left = dict(arrays)
    found: T = _build(like, type(like), "", left)
    if left:
        raise LearningError(f"of what was saved, {len(left)} arrays are unknown, among them {min(left)!r}")
    return found


def keys(arrays: Mapping[str, npt.NDArray[Any]], path: str) -> list[str]:
    """The keys of the mapping under a path, for who makes a template of what there is.

    Raises:
        LearningError: There is none.
    """
    *found, rest = _text(path, dict(arrays)).split(_END)
    if rest:
        raise LearningError(f"the saved {path} does not say its keys")
    return found


def _flatten(value: Any, path: str, found: Arrays) -> None:
    if value is None:
        found[path] = np.zeros(0, np.bool_)
    elif isinstance(value, np.ndarray):
        found[path] = value
    elif type(value) in _SCALARS:
        found[path] = np.array(value, _SCALARS[type(value)])
    elif isinstance(value, str):
        found[path] = _bytes(value)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if not field.metadata.get("unwritten"):
                _flatten(getattr(value, field.name), _join(path, field.name), found)
    elif isinstance(value, tuple):
        found[path] = np.array(len(value), np.int64)
        for i, item in enumerate(value):
            _flatten(item, _join(path, str(i)), found)
    elif isinstance(value, Mapping):
        keys = sorted(value)  # the same value gives the same bytes, whoever made it
        found[path] = _bytes("".join(key + _END for key in keys))
        for key in keys:
            _flatten(value[key], _join(path, _escaped(key)), found)
    else:
        raise TypeError(f"{path}: a {type(value).__name__} cannot be written down as arrays")


def _bytes(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _escaped(key: str) -> str:
    """A key without dots: those of two mappings, one in the other, are not mistaken."""
    if _END in key:
        raise TypeError("the key of a mapping has a zero byte in it")
    return key.replace("%", "%25").replace(".", "%2E")


def _build(like: Any, hint: Any, path: str, left: Arrays) -> Any:
    """What stands under a path; what was used is taken out of `left`."""
    kind, may_be_none = _without_none(hint)
    if may_be_none and path in left and left[path].dtype == np.bool_ and left[path].shape == (0,):
        del left[path]
        return None
    if is_dataclass(like) and not isinstance(like, type):
        hints = _hints(type(like))
        parts = {field.name: getattr(like, field.name) for field in fields(like)}
        for field in fields(like):
            if not field.metadata.get("unwritten"):
                parts[field.name] = _build(parts[field.name], hints[field.name], _join(path, field.name), left)
        return type(like)(**parts)
    if isinstance(like, tuple):
        return _tuple(like, kind, path, left)
    if isinstance(like, Mapping):
        return _mapping(like, kind, path, left)
    if isinstance(like, np.ndarray):
        return _array(path, left, like.dtype, like.shape).copy()
    if isinstance(like, str):
        return _text(path, left)
    if type(like) in _SCALARS:
        return type(like)(_array(path, left, _SCALARS[type(like)], ()))
    raise TypeError(f"{path}: a {type(like).__name__} is no template")


def _tuple(like: tuple[Any, ...], kind: Any, path: str, left: Arrays) -> tuple[Any, ...]:
    length = int(_array(path, left, np.int64, ()))
    kinds = typing.get_args(kind)
    is_free = not kinds or kinds[-1] is Ellipsis
    if length < 0 or (is_free and length and not like) or (not is_free and length != len(like)):
        raise LearningError(f"the saved {path or 'tuple'} has {length} elements")
    if is_free:
        item = kinds[0] if kinds else Any
        return tuple(_build(like[0], item, _join(path, str(i)), left) for i in range(length))
    return tuple(_build(each, kinds[i], _join(path, str(i)), left) for i, each in enumerate(like))


def _mapping(like: Mapping[str, Any], kind: Any, path: str, left: Arrays) -> dict[str, Any]:
    *keys, rest = _text(path, left).split(_END)
    if rest or len(set(keys)) != len(keys):
        raise LearningError(f"the saved {path or 'mapping'} does not say its keys")
    expected = like.keys() - {ANY_KEY}
    if expected - set(keys) or (ANY_KEY not in like and set(keys) - expected):
        raise LearningError(f"the saved {path or 'mapping'} has {_listed(keys)}, expected {_listed(expected)}")
    kinds = typing.get_args(kind)
    item = kinds[1] if len(kinds) == 2 else Any
    return {key: _build(like[key if key in like else ANY_KEY], item, _join(path, _escaped(key)), left) for key in keys}


def _listed(keys: Iterable[str]) -> str:
    names = sorted(repr(key)[:40] for key in keys)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _text(path: str, left: Arrays) -> str:
    try:
        return _array(path, left, np.uint8, (0,)).tobytes().decode()
    except UnicodeDecodeError as exc:
        raise LearningError(f"the saved {path} is no text") from exc


def _array(path: str, left: Arrays, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The array under a path; axes that are 0 in the shape may have any length."""
    found = left.pop(path, None)
    if found is None:
        raise LearningError(f"what was saved has no {path or 'value'}; it is of something else")
    fits = found.ndim == len(shape) and all(n in (0, m) for n, m in zip(shape, found.shape, strict=True))
    if not fits or found.dtype != np.dtype(dtype):
        raise LearningError(f"the saved {path} is {found.dtype} {found.shape}, expected {np.dtype(dtype)} {shape}")
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@cache
def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without ``| None``, and whether it had that."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return (kinds[0] if len(kinds) == 1 else Any), len(kinds) < len(typing.get_args(hint))
