"""Real processes: the demo's own launcher, a real broker, the digits bundle."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "01_digits_fleet"


def load(name: str) -> ModuleType:
    """A module of the example, which is a folder of scripts."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def processes() -> ModuleType:
    """`examples/01_digits_fleet/processes.py`."""
    return load("processes")
