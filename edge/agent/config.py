"""What an agent is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.contract.profile import DeviceProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """Options of one agent, checked at the roof.

    Attributes:
        bundle: The bundle the device came with.
        state_dir: Everything the agent keeps.
        fleet: Fleet id.
        device: Device id; also its MQTT client id.
        profile: What the device can do.
        learner: One of `edge.contract.choices.LEARNERS`.
        executor: Of training steps, one of `edge.contract.choices.EXECUTORS`.
        mixture: Whether heads compete; else the first learner answers alone.
        telemetry_interval_s: Between two telemetry messages.
        sync_interval_s: Least time between two uploads of what was learned.
        probation_s: How long a pushed head or bundle is watched before it counts as active.
        probation_labels: A probation also ends, judged, after so many labels.
        seed: Of SGD's replay draws.
    """

    bundle: Path
    state_dir: Path
    fleet: str
    device: str
    profile: DeviceProfile
    learner: str = "auto"
    executor: str = "auto"
    mixture: bool = True
    telemetry_interval_s: float = 60.0
    sync_interval_s: float = 600.0
    probation_s: float = 60.0
    probation_labels: int = 32
    seed: int = 0
