"""Learning pauses where the device is hot, runs out of battery or has other work, and nothing is lost by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.device import health
from edge.agent.device.allowance import Allowance
from edge.agent.device.health import Strain
from edge.agent.models import Models
from edge.contract.clock import Now
from edge.contract.profile import load_profile

PROFILE = load_profile("generic-x86_64")
LIMITS = PROFILE.learning
HOT = Strain(temperature_c=LIMITS.max_temperature_c + 1)


@pytest.mark.parametrize(
    ("strain", "why"),
    [
        (Strain(), ""),
        (Strain(temperature_c=LIMITS.max_temperature_c), ""),
        (HOT, f"at most {LIMITS.max_temperature_c:.0f}"),
        (Strain(battery_percent=LIMITS.min_battery_percent), ""),
        (Strain(battery_percent=LIMITS.min_battery_percent - 1), f"at least {LIMITS.min_battery_percent:.0f}"),
        (Strain(load_per_core=LIMITS.max_load_per_core), ""),
        (Strain(load_per_core=LIMITS.max_load_per_core + 0.1), f"at most {LIMITS.max_load_per_core:.1f}"),
    ],
)
def test_each_reading_pauses_above_its_limit_only_and_says_so(strain: Strain, why: str) -> None:
    allowance = Allowance(LIMITS, strain=lambda: strain)
    assert allowance.allows(0.0) is (why == "")
    assert allowance.paused.endswith(why)
    assert bool(allowance.paused) is bool(why)


def test_while_it_is_hot_labels_are_kept_and_learned_when_it_has_cooled_down(
    tmp_path: Path, digits_bundle: Path
) -> None:
    now = Now(s=0.0, wall_ms=1_800_000_000_000)
    found = [HOT]
    config = AgentConfig(
        bundles={"m": digits_bundle}, state_dir=tmp_path, fleet="f", device="d", profile=PROFILE, outbox_mb=0.0
    )
    models = Models(config)
    core = AgentCore(config, models, stopwatch=lambda: 0.0, strain=lambda: found[-1])
    shape = next(iter(models.hosts.values())).model.manifest.inputs[0].sample_shape
    for i in range(3):
        core.request({"op": "predict", "id": f"s{i}", "x": np.full(shape, i / 3, np.float32)}, now)
        assert core.request({"op": "label", "id": f"s{i}", "y": i}, now) == {"joined": True, "queued": True}
    core.tick(now)
    status = core.request({"op": "status"}, now)
    why = f"{HOT.temperature_c:.0f} °C, at most {LIMITS.max_temperature_c:.0f}"
    assert (status["samples"], status["waiting"], status["paused"]) == (0, 3, why)
    assert status["waiting_for"] == status["paused"]
    found.append(Strain(temperature_c=LIMITS.max_temperature_c - 20))
    later = Now(s=6.0, wall_ms=now.wall_ms + 6_000)
    core.tick(later)
    status = core.request({"op": "status"}, later)
    assert (status["samples"], status["waiting"], status["paused"]) == (3, 0, "")
    core.close(later)
    models.close()


def test_what_linux_says_is_read_and_what_it_does_not_say_is_left_out(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert health.temperature_c(tmp_path) is None
    assert health.battery_percent(tmp_path) is None
    write("thermal_zone0/temp", "45123\n")
    write("thermal_zone1/temp", "61000\n")
    write("thermal_zone2/temp", "none\n")
    assert health.temperature_c(tmp_path) == 61.0
    write("BAT0/capacity", "80\n")
    write("BAT0/status", "Charging\n")
    assert health.battery_percent(tmp_path) is None
    write("BAT1/capacity", "17\n")
    write("BAT1/status", "Discharging\n")
    assert health.battery_percent(tmp_path) == 17.0
    found = health.strain()
    assert found.load_per_core is not None
    assert found.load_per_core >= 0.0
