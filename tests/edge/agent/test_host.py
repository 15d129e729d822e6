"""A bundle on trial, before it goes live."""

from __future__ import annotations

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
