"""Real processes: the demo's own launcher, a real broker, the digits bundle."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
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
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """`examples/01_digits_fleet/processes.py`; its agents learn however busy this machine is beside the tests."""
    folder = tmp_path_factory.mktemp("unhurried")
    shipped = (EXAMPLE.parents[1] / "firmware_configs" / "generic-x86_64.toml").read_text()
    profile, count = re.subn("(?m)^max_load_per_core = .*", "max_load_per_core = 1000.0", shipped)
    assert count == 1
    (folder / "profile.toml").write_text(profile)
    (folder / "agent.toml").write_text(f'profile = "{folder / "profile.toml"}"\n')
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EDGE_CONFIG", str(folder / "agent.toml"))
        yield load("processes")
