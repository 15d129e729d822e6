"""Files of TOML that people write, read strictly as frozen dataclasses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from edge.contract.documents import DocumentError, decode
from edge.contract.errors import ConfigError

_T = TypeVar("_T")


def read_toml(cls: type[_T], path: Path) -> _T:
    """Read a file; what the class does not know is a fault, and all faults are told at once.

    Raises:
        ConfigError: It cannot be read, is not TOML, or has what it must not have.
    """
    try:
        return decode(cls, tomllib.loads(path.read_bytes().decode()), strict=True)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: expected text in UTF-8: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: expected TOML: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: expected TOML, it is nested too deeply") from exc
    except DocumentError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
