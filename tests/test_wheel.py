"""The wheel: holds what it should, and works where the source is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a program to its end; what it printed."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    command = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    run(sys.executable, *command, cwd=target)
    return target


def tracked(pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}


def test_it_holds_all_code_and_profiles_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = tracked("edge/**/*.py") | tracked("converter/**/*.py") | tracked("firmware_configs/*.toml")
    assert expected <= names
    assert "edge/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"edge", "converter", "firmware_configs"}
    assert not [name for name in names if "test" in name or "__pycache__" in name or name.endswith((".pyc", ".edge"))]


def test_it_names_its_commands_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
        assert [name for name in archive.namelist() if name.endswith("LICENSE")]
    for command in ("edge-convert", "edge-agent", "edge-coordinator", "edge-fleet", "edge-bundle"):
        assert f"{command} = " in text


def test_it_works_where_the_source_is_not(installed: Path, tmp_path: Path) -> None:
    program = (
        "import converter, edge, firmware_configs\n"
        "from edge.agent import OnDeviceModel\n"
        "from edge.contract.profile import load_profile, shipped_profiles\n"
        "print(edge.__file__)\n"
        "print(load_profile('raspberry-pi-4').name, len(shipped_profiles()))\n"
    )
    where, profile = run(sys.executable, "-c", program, cwd=tmp_path, path=installed).splitlines()
    assert Path(where).is_relative_to(installed)
    assert profile == f"raspberry-pi-4 {len(tracked('firmware_configs/*.toml'))}"


@pytest.mark.parametrize("command", ["edge-convert", "edge-agent", "edge-coordinator", "edge-fleet", "edge-bundle"])
def test_its_commands_say_their_version(installed: Path, tmp_path: Path, command: str) -> None:
    version = run(sys.executable, "-c", "import edge; print(edge.__version__)", cwd=tmp_path, path=installed).strip()
    said = run(sys.executable, installed / "bin" / command, "--version", cwd=tmp_path, path=installed)
    assert version in said
