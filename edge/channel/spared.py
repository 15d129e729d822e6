"""Modules that a library imports and few agents ever use: they are imported when they are used first.

paho imports `urllib.request`, behind which are http.client and email (1.9 MiB resident), for proxies, `ssl` (1.2 MiB)
for TLS, and `hashlib`, behind which is OpenSSL (3.5 MiB), for web sockets. Nothing is compressed (0.4 MiB) before there
is something large to send.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _NeverRaised(Exception):  # noqa: N818
    """Stands for the errors of a module that nobody imported yet."""


class _Spared(ModuleType):
    """Stands for a module until it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system, which is no use
            raise AttributeError(name)
        if name.endswith("Error") and self.__name__ not in sys.modules:
            return _NeverRaised  # `except ssl.SSLError` is no use, either
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def spared(*names: str) -> Iterator[None]:
    """What is imported within gets stand-ins for these modules, but for those that are there already.

    Args:
        names: Of modules; a parent is imported.
    """
    made = {name: _Spared(name) for name in names if name not in sys.modules}
    for name, each in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(importlib.import_module(parent), child, each)  # until the import of the real one takes its place
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
