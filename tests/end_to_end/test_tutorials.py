"""The tutorials, as a reader would follow them, by `examples/03_tutorials/follow.py`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "03_tutorials" / "follow.py"


@pytest.fixture(scope="module")
def follow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("follow", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["follow"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reader(follow: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One for all pages: later ones go on with the model of the first."""
    return follow.Reader(tmp_path_factory.mktemp("reader"), follow.free_ports())


@pytest.mark.broker
@pytest.mark.parametrize("page", ["three-devices", "corrections", "rollout", "secured-fleet"])
def test_what_the_page_says_works(follow: ModuleType, reader: Any, page: str) -> None:
    reader.follow(follow.PAGES / f"{page}.md")


def test_what_does_not_come_as_it_is_said_is_told(follow: ModuleType, tmp_path: Path) -> None:
    page, said = tmp_path / "page.md", list[str]()
    page.write_text('```python title="a.py"\nprint(1883)\n```\n```sh\npython a.py\n```\n```sh\nexit 4\n```\n')
    with pytest.raises(follow.NotAsSaidError, match="ended with 4"):
        follow.Reader(tmp_path, {"1883": "7", "8470": "8"}, said.append).follow(page)
    assert said == ["wrote a.py", "python a.py\n7\n"]
    wrong = subprocess.run([sys.executable, SCRIPT, "nothing"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "three-devices" in wrong.stderr) == (2, True)
