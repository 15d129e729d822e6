"""Random damage to a real checkpoint: the loader gives a model or an `EdgeError`, in bounded time, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.load import Source, load_source
from edge.contract.errors import ConfigError, ConversionError, EdgeError
from tests.converter.models import mlp, plan, save, snapshot


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(mlp(), tmp_path_factory.mktemp("whole") / "m.pth", (12,), calibrated=8)


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written as torch before 1.6 wrote: a bare pickle, which no checksum protects."""
    path = tmp_path_factory.mktemp("legacy") / "m.pth"
    torch.save(mlp().state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def load(source: Path, **options: str) -> Source | EdgeError:
    """The model, or the refusal; any other exception is a failure of the test that calls this."""
    try:
        return load_source(plan(source, **options))
    except EdgeError as error:
        return error


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Some changes: what, where (0 to 1 of the file), and a byte or a length."""
    kinds = st.sampled_from(["flip", "set", "cut", "insert", "remove"])
    return draw(
        st.lists(st.tuples(kinds, st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)
    )


def damaged(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    for kind, where, value in changes:
        at = int(where * len(data))
        if not data:
            break
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
        elif kind == "set":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + bytes([value]) * (1 + value) + data[at:]
        else:
            data = data[:at] + data[at + 1 + value :]
    return data


ARCH = """\
from torch import nn


def make():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
"""


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=2000, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damage())
def test_a_damaged_checkpoint_is_read_rightly_or_refused(
    tmp_path: Path, checkpoint: Path, changes: list[tuple[str, float, int]]
) -> None:
    source = tmp_path / "m.pth"
    source.write_bytes(damaged(checkpoint.read_bytes(), changes))
    before = snapshot(tmp_path)
    found = load(source)
    if not isinstance(found, EdgeError):  # what no checksum covers, e.g. padding, does not matter
        for name, tensor in mlp().state_dict().items():
            torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert snapshot(tmp_path) == before


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=2000, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damage())
def test_damaged_weights_of_the_old_format_are_read_or_refused(
    tmp_path: Path, legacy: Path, changes: list[tuple[str, float, int]]
) -> None:
    source, arch = tmp_path / "m.pth", tmp_path / "arch.py"
    arch.write_text(ARCH)
    source.write_bytes(damaged(legacy.read_bytes(), changes))
    before = snapshot(tmp_path)
    load(source, arch=f"{arch}:make")
    assert snapshot(tmp_path) == before


@settings(max_examples=60, deadline=2000, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "m.pth"
    source.write_bytes(data)
    with pytest.raises((ConversionError, ConfigError)):
        load_source(plan(source))


@settings(max_examples=60, deadline=2000, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=damage())
def test_a_checkpoint_with_damaged_torchscript_inside_is_refused_or_read(
    tmp_path: Path, checkpoint: Path, changes: list[tuple[str, float, int]]
) -> None:
    """The inner archive is damaged and the outer one is whole, as whoever forges a file would do it."""
    document = torch.load(checkpoint, weights_only=True)
    inner = damaged(document["torchscript"].numpy().tobytes(), changes)
    document["torchscript"] = torch.frombuffer(bytearray(inner or b"\0"), dtype=torch.uint8)
    source = tmp_path / "m.pth"
    torch.save(document, source)
    load(source)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 0.99, 0.9999])
def test_a_checkpoint_cut_anywhere_is_refused(tmp_path: Path, checkpoint: Path, share: float) -> None:
    data = checkpoint.read_bytes()
    source = tmp_path / "m.pth"
    source.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ConversionError):
        load_source(plan(source))
