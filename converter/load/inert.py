"""Pickles of ``torch.save`` without anything in them being run, also with objects of other people's classes in it.

Training loops leave their settings beside the weights: an ``argparse.Namespace``, a DictConfig, an enum, a callback.
``weights_only=True`` refuses such a file as a whole. Here every class or function that torch does not know is replaced
by a stand-in that does nothing: it takes its arguments and keeps none of them. So the weights come out, the settings do
not, and no code of the file's choosing is ever imported or called. What only an attacker names is refused all the same;
`getattr` is how Python 3.11.0 to 3.11.3 pickle an enum, and becomes a stand-in, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MAX_STAND_INS = 200
_UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global by default")
_ITEMS = re.compile(r"Can only (?:SETITEMS?|append|extend)\b.*but got <class '(?:[\w.]*\.)?stand_in:(\S+)'>")
_NOT_SETTINGS = re.compile(
    r"(?:builtins\.)?(?:eval|exec|compile|open|setattr|delattr|__import__|print|input|map|filter|vars|globals)"
    r"|(?:os|nt|posix|sys|subprocess|shutil|importlib|runpy|pty|socket|ctypes|code|codeop|pickle|_pickle|operator"
    r"|_operator|webbrowser|urllib|http|ftplib|smtplib|asyncio|multiprocessing|signal|timeit|pdb|bdb|cProfile|profile"
    r"|pip|setuptools|tempfile|io|_io|marshal|types|inspect|gc|site|venv|zipimport|sqlite3|shelve|dill|cloudpickle)\..*"
    r"|torch\.(?:os|sys|hub|jit|load|save|ops|_C|utils\.(?:cpp_extension|_config_module)|distributed\.rpc"
    r"|_inductor|_dynamo|package|classes|library)\b.*|numpy\.(?:load|save|f2py|testing|core\.(?!multiarray)).*"
)


class StandIn:
    """What is left of an object whose class is not ours to run: its name."""

    name = ""

    def __new__(cls, *_arguments: object, **_named: object) -> Any:
        """Nothing of what it was made with is kept."""
        return object.__new__(cls)

    def __init__(self, *_arguments: object, **_named: object) -> None:
        """As `__new__`."""

    def __setstate__(self, _state: object) -> None:
        """Nor of what it was filled with."""


class _Filled(StandIn):
    """One that is filled like a dictionary, so it becomes one."""

    def __new__(cls, *_arguments: object, **_named: object) -> Any:
        return {}


class _Extended(StandIn):
    """One that is extended like a list."""

    def __new__(cls, *_arguments: object, **_named: object) -> Any:
        return []


class UnreadableError(Exception):
    """The file wants something that no settings are; the name of it is the text."""


def load_inert(path: Path, *, mapped: bool) -> Any:
    """What ``torch.save`` wrote, with a `StandIn` for each object of a class that torch itself does not read.

    Args:
        path: The file.
        mapped: Read tensors only when they are used.

    Raises:
        UnreadableError: It names what could run code and is no class of settings.
        Exception: Whatever torch raises for a file that is none or is damaged.
    """
    kinds: dict[str, type[StandIn]] = {}
    numpy = [(function, name) for name, function in _ARRAYS.items()]
    while True:
        stand_ins = [(_made(name, kind), name) for name, kind in kinds.items()]
        try:
            with torch.serialization.safe_globals([*numpy, *stand_ins]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
        except Exception as exc:
            text = str(exc)
            if (unknown := _UNKNOWN.search(text)) and unknown[1] not in kinds:
                name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
                if _NOT_SETTINGS.fullmatch(name) or len(kinds) >= _MAX_STAND_INS:
                    raise UnreadableError(unknown[1]) from exc
                kinds[name] = StandIn
            elif (filled := _ITEMS.search(text)) and kinds.get(filled[1]) is StandIn:
                kinds[filled[1]] = _Extended if "append" in text or "extend" in text else _Filled
            else:
                raise


def _made(name: str, kind: type[StandIn]) -> type[StandIn]:
    return type(f"stand_in:{name}", (kind,), {"name": name})


def _dtype(*arguments: Any) -> np.dtype[Any]:
    return np.dtype(arguments[0]) if arguments and isinstance(arguments[0], str) else np.dtype("O")


class _Type:
    """A numpy type as it is pickled: its name, then its byte order."""

    def __new__(cls, *arguments: Any) -> _Type:
        made = object.__new__(cls)
        made.dtype = _dtype(*arguments)
        return made

    dtype: np.dtype[Any]

    def __init__(self, *_arguments: Any) -> None:
        """See `__new__`."""

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        self.dtype = self.dtype.newbyteorder(">" if order == ">" else "<")


class PickledArray:
    """A numpy array as it is pickled: made empty, then filled.

    Attributes:
        array: It, once it is filled.
    """

    array: np.ndarray[Any, Any]

    def __new__(cls, *_arguments: Any) -> PickledArray:
        """Shape and type come with the state."""
        return object.__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        """See `__new__`."""

    def __setstate__(self, state: Any) -> None:
        """Version, shape, type, whether in Fortran order, and the bytes."""
        _version, shape, kind, fortran, data = state
        if kind.dtype.kind not in "fiub":  # objects, texts: no weights
            self.array = np.zeros(0)
            return
        data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_arguments: Any) -> PickledArray:
    return PickledArray()


def _scalar(kind: Any, data: Any = b"") -> Any:
    if kind.dtype.kind not in "fiub":
        return None
    data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(data, kind.dtype)[0].item()


class _NdArray:
    """Only ever named, never made."""


_ARRAYS: dict[str, Any] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _NdArray,
    "converter.load.inert.PickledArray": PickledArray,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
