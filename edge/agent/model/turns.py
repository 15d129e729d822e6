"""Threads that use one model take turns: what is in the middle of learning is seen by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import getattr_static, isfunction
from threading import RLock
from typing import Any, TypeVar

T = TypeVar("T")


def turn() -> Any:
    """What an instance of a class that is `in_turns` has as ``_turn``: a lock that a thread may take again."""
    return RLock()


def in_turns(kind: type[T]) -> type[T]:
    """Let the public methods and properties of a class, and those it inherits, wait for each other.

    What is reached through a plain attribute (``model.state.save()``) does not wait.
    """
    for name in dir(kind):
        found = getattr_static(kind, name)
        if name.startswith("_"):
            continue
        if isfunction(found):
            setattr(kind, name, _waiting(found))
        elif isinstance(found, property) and found.fget is not None:
            setattr(kind, name, property(_waiting(found.fget), found.fset, found.fdel, found.__doc__))
    return kind


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def waits(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            return method(self, *args, **kwargs)

    return waits
