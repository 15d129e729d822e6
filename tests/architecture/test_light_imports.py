"""A device needs neither torch nor a server's libraries, and asking a command for help loads nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in set('torch onnx sklearn scipy sqlalchemy fastapi uvicorn httpx rich'.split()):
            raise ImportError(f'{name} is not on a device')
        return None
sys.meta_path.insert(0, Blocked())
"""

DEVICE = (
    BLOCKED
    + """
import numpy as np
from edge.agent import LearningLimits, OnDeviceModel
limits = LearningLimits(reject_unknown=0.05)
for learner in ('statistics', 'sgd', 'auto'):
    options = {'learner': learner, 'mixture': False, 'limits': limits}
    model = OnDeviceModel.open(sys.argv[1], sys.argv[2] + learner, **options)
    shape = (20, *model.manifest.inputs[0].sample_shape)
    x = (np.arange(np.prod(shape)) * 0.618 % 1.0).astype(np.float32).reshape(shape)
    before = model.predict(x)
    model.learn(x, np.arange(20) % 10)
    assert model.predict(x).shape == (20, 10)
    assert not np.array_equal(model.predict(x), before)
    model.predict_sample('a', x[0], 0.0)
    model.metrics.inferred(1.0)
    assert model.telemetry(1.0)['lat_p99_ms'] == 1.0
    assert model.evaluate(x, np.arange(20) % 10).samples == 20
    assert model.novelty(x).shape == (20,)
    model.close()
    again = OnDeviceModel.open(sys.argv[1], sys.argv[2] + learner, **options)
    assert again.n_samples == 20
    again.close()
import edge.agent.service
assert 'lifted' in again.learning.learners
# MiB each, and a half, for nothing
spared = 'numpy.ma numpy.random subprocess tempfile backports.zstd compression.zstd ssl urllib.request _hashlib'
spared += ' tuf cryptography urllib3'
print('learned', sorted(set(spared.split()) & set(sys.modules)))
"""
)

HELP = """
import atexit, sys
sys.argv = [sys.argv[1], '--help']
from {module} import main
heavy = set('torch onnx onnxruntime numpy safetensors sqlalchemy fastapi uvicorn rich paho httpx'.split())
# At the end: edge-convert ends the process.
atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules)), flush=True))
main()
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_device_learns_and_restarts_without_torch_and_what_is_heavy_in_numpy(
    digits_bundle: Path, tmp_path: Path
) -> None:
    done = run(DEVICE, str(digits_bundle), str(tmp_path / "state"))
    assert (done.stdout, done.returncode) == ("learned []\n", 0), done.stderr


FLEET = """
import importlib, pkgutil, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        servers = 'torch onnx sqlalchemy alembic fastapi starlette pydantic uvicorn jinja2 tuf cryptography psycopg'
        if name.partition('.')[0] in servers.split():
            raise ImportError(f'{name} is not in edgeloop[fleet]')
        return None
sys.meta_path.insert(0, Blocked())
from click.testing import CliRunner
from edge.cli import fleet
def walk(command, words):
    done = CliRunner().invoke(fleet.fleet, [*words, '--help'], catch_exceptions=False, terminal_width=80)
    wide = [line for line in done.output.splitlines() if len(line) > 80]
    assert not wide, (words, wide)
    assert chr(92) + 'b' not in done.output, words
    assert words == [] or 'edge-fleet ' in done.output, words
    for name, each in getattr(command, 'commands', {}).items():
        walk(each, [*words, name])
walk(fleet.fleet, [])
done = CliRunner().invoke(fleet.fleet, ['--coordinator', 'http://127.0.0.1:9', 'devices'])
print(type(done.exception).__name__)
"""


def test_the_commands_of_a_fleet_need_no_server_and_fit_80_columns_with_examples() -> None:
    done = run(FLEET)
    assert (done.stdout, done.returncode) == ("ChannelError\n", 0), done.stderr


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("edge-agent", "edge.cli.agent"),
        ("edge-convert", "converter.cli"),
        ("edge-fleet", "edge.cli.fleet"),
        ("edge-bundle", "edge.cli.bundle"),
        ("edge-coordinator", "edge.cli.coordinator"),
    ],
)
def test_help_loads_nothing_heavy(command: str, module: str) -> None:
    done = run(HELP.format(module=module), command)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"
