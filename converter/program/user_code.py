"""The user's own Python code: imported by the name that stands on the command line, and run."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.contract.errors import ConfigError
from edge.contract.foreign import foreign


def named_object(value: str, option: str) -> Any:
    """The callable that ``FILE.py:NAME`` or ``package.module:NAME`` names. Importing it runs the user's own code.

    Raises:
        ConfigError: There is no such thing, or it cannot be called.
    """
    place, _, name = value.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"{option} {value!r}: expected FILE.py:NAME or package.module:NAME")
    module = imported(place, option)
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__]
        near = get_close_matches(name, own)
        raise ConfigError(f"{option}: {place} has no {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return found


def imported(place: str, option: str) -> ModuleType:
    """The module that a file or a dotted name stands for.

    Raises:
        ConfigError: It is not there or cannot be imported.
    """
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise ConfigError(f"{option}: {place} does not exist")
    with importing_from(folder_of(place)), foreign(f"{option}: {place} cannot be imported", ConfigError):
        return _import_file(Path(place)) if is_file else importlib.import_module(place)


def folder_of(place: str) -> Path:
    """Where the code is that a file or a dotted name stands for."""
    return Path(place).parent if place.endswith(".py") else Path()


def _import_file(file: Path) -> ModuleType:
    # TorchScript writes the module's name into its code and knows ASCII only.
    name = f"edgeloop_user_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as when it is run by itself, and leave no compiled files beside it."""
    added, wrote_bytecode = str(folder.absolute()), sys.dont_write_bytecode
    sys.path.insert(0, added)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_bytecode
        if added in sys.path:
            sys.path.remove(added)
