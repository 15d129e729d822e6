"""How the device is, for telemetry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.agent.device import health


class Vitals:
    """Reads them; the share of the CPU is that since the last reading.

    Args:
        state_dir: On the disk whose room is told.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._cpu: tuple[float, float] | None = None

    def read(self, now_s: float) -> dict[str, Any]:
        """By key of telemetry; None for what is not known.

        Args:
            now_s: Monotonic time in seconds.
        """
        values: dict[str, Any] = {
            "mem_mb": health.resident_mb(),
            "temp_c": health.temperature_c(),
            "disk_free_mb": health.disk_free_mb(self._state_dir),
        }
        cpu = health.cpu_seconds()
        if self._cpu is not None and now_s > self._cpu[0]:
            values["cpu_pct"] = round(100 * (cpu - self._cpu[1]) / (now_s - self._cpu[0]), 1)
        self._cpu = (now_s, cpu)
        return values
