"""Arrays in ``.npy`` and ``.npz`` files: data only, never code, and no more of them than asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import ConfigError
from edge.contract.files import replace_file
from edge.contract.tensorspec import TensorSpec

MAX_BYTES = 1 << 30


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file, at most 1 GiB of them.

    Raises:
        ConfigError: Missing, damaged, too large, or it holds objects.
    """
    import zipfile  # here: few devices read such files

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise ConfigError(f"{path} holds {size} bytes of arrays, at most {MAX_BYTES} are read at once; split it")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} does not exist") from exc
    except ConfigError:
        raise
    except Exception as exc:  # a broken archive raises OSError, ValueError, BadZipFile, zlib.error, ...
        raise ConfigError(f"{path} is not an .npz of plain arrays: {str(exc)[:200]}") from exc


def read_array(path: Path) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file, at most 1 GiB of it.

    Raises:
        ConfigError: Missing, damaged, too large, or it holds objects.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path} has {size} bytes, at most {MAX_BYTES} are read at once; split it")
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} does not exist") from exc
    except ConfigError:
        raise
    except Exception as exc:  # as above
        raise ConfigError(f"{path} is not an .npy of a plain array: {str(exc)[:200]}") from exc
    if not isinstance(found, np.ndarray):
        raise ConfigError(f"{path} is not an .npy: it holds several arrays; give it a name that ends with .npz")
    return found


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays whole or not at all.

    Raises:
        ConfigError: The disk is full or the folder cannot be written.
    """
    try:
        with replace_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc


def fitted(arrays: Mapping[str, npt.NDArray[Any]], specs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[Any]]:
    """The arrays that a model takes, in its number types; the array of a model with one input may have any name.

    Raises:
        ConfigError: One is missing, not known, of another shape, or its numbers do not fit.
    """
    names = [spec.name for spec in specs]
    found = dict(arrays)
    if len(specs) == 1 and len(found) == 1:
        found = {names[0]: next(iter(found.values()))}
    missing = [name for name in names if name not in found]
    unknown = [name for name in found if name not in names]
    if missing or unknown:
        expected = ", ".join(f"{spec.name} {spec.describe()} {spec.dtype}" for spec in specs)
        raise ConfigError(f"expected the arrays {expected}; got {', '.join(found) or 'none'}")
    made = {}
    for spec in specs:
        array, target = found[spec.name], np.dtype(spec.dtype)
        whole = target.kind in "iub" and array.dtype.kind == "f"
        if array.dtype.kind not in "fiub" or whole:
            raise ConfigError(f"{spec.name}: expected {spec.dtype}, got {array.dtype}")
        if target.kind in "iu" and array.size and array.dtype != target:
            limits = np.iinfo(target)
            if array.min() < limits.min or array.max() > limits.max:
                raise ConfigError(f"{spec.name}: values from {array.min()} to {array.max()} do not fit {spec.dtype}")
        array = np.asarray(array.astype(target, copy=False), order="C")
        if array.ndim == len(spec.shape) - 1 and spec.batch_axis == 0:
            array = array[None]  # one sample without its batch axis
        try:
            spec.check(array)
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc
        made[spec.name] = array
    return made
