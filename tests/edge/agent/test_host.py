"""A bundle on trial, before it goes live."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.model.host import ModelHost
from edge.contract.digest import sha256
from edge.contract.errors import BundleError
from tests.support.fleet import unhurried


@pytest.mark.parametrize("unknown", [False, True])
def test_a_bundle_that_takes_more_than_half_of_the_memory_is_refused(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path, unknown: bool
) -> None:
    config = AgentConfig(bundles={"m": digits_bundle}, state_dir=tmp_path, fleet="f", device="d", profile=unhurried())
    half, read = config.profile.memory_mb // 2, [100.0]
    host = ModelHost(config, "m", tmp_path / "m", resident_mb=lambda: None if unknown else read.pop(0))
    data = other_bundle.read_bytes()
    try:
        for more in (half, half + 1):
            host.slots.keep_artifact(sha256(data), data)
            read[:] = [100.0, 100.0 + more]
            if more == half or unknown:
                host.try_bundle(sha256(data))
                continue
            with pytest.raises(BundleError, match=f"takes {more} MiB of memory, .* allows {half}"):
                host.try_bundle(sha256(data))
        shape = host.model.manifest.inputs[0].sample_shape
        assert host.model.predict(np.zeros((1, *shape), np.float32)).shape == (1, 10)  # it answers on
        assert (host.slots.record.tested, host.slots.record.tests) == ("", 0)
    finally:
        host.close()


@pytest.mark.parametrize(
    ("allowed_ms", "taken_ms", "is_refused"), [(0.0, 50.0, False), (50.0, 49.0, False), (50.0, 51.0, True)]
)
def test_a_bundle_that_is_slower_than_the_profile_allows_is_refused(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path, allowed_ms: float, taken_ms: float, is_refused: bool
) -> None:
    """By how long samples take by the stopwatch; the bundle before answers on."""
    profile, ticks = unhurried(), count()
    profile = replace(profile, inference=replace(profile.inference, max_latency_ms=allowed_ms))
    config = AgentConfig(bundles={"m": digits_bundle}, state_dir=tmp_path, fleet="f", device="d", profile=profile)
    host = ModelHost(config, "m", tmp_path / "m", stopwatch=lambda: next(ticks) * taken_ms / 1e3)
    data = other_bundle.read_bytes()
    host.slots.keep_artifact(sha256(data), data)
    try:
        if is_refused:
            with pytest.raises(BundleError, match=r"takes 51 ms, the profile .* allows 50 .*max_latency_ms"):
                host.try_bundle(sha256(data))
        else:
            cost = host.try_bundle(sha256(data))
            assert cost.text.startswith(f"{taken_ms:g} ms a sample, ")
        shape = host.model.manifest.inputs[0].sample_shape
        assert host.model.predict(np.zeros((1, *shape), np.float32)).shape == (1, 10)
        assert (host.slots.record.tested, host.slots.record.tests) == ("", 0)
    finally:
        host.close()


def test_a_slow_moment_is_no_slow_bundle(tmp_path: Path, digits_bundle: Path, other_bundle: Path) -> None:
    """Something else has the processor while a bundle is timed: it is timed again."""
    profile, ticks = unhurried(), count()
    profile = replace(profile, inference=replace(profile.inference, max_latency_ms=50.0))
    config = AgentConfig(bundles={"m": digits_bundle}, state_dir=tmp_path, fleet="f", device="d", profile=profile)
    now = [0.0]

    def stopwatch() -> float:
        now[0] += 0.2 if next(ticks) < 12 else 0.001
        return now[0]

    host = ModelHost(config, "m", tmp_path / "m", stopwatch=stopwatch)
    data = other_bundle.read_bytes()
    host.slots.keep_artifact(sha256(data), data)
    try:
        assert host.try_bundle(sha256(data)).sample_ms == pytest.approx(1.0)
    finally:
        host.close()
