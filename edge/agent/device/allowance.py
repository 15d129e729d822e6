"""Whether a device may learn now: its budget of time, its temperature, its battery, and what else it has to do."""

from __future__ import annotations

import math
from collections.abc import Callable

from edge.agent.device import health
from edge.agent.device.budget import LearningBudget
from edge.contract.profile import LearningProfile

# Between two looks at temperature, battery and load.
_LOOK_EVERY_S = 5.0
# Who waits for the budget asks no more often than that: what may be learned by then is learned in one go.
_ASK_EVERY_S = 0.05
# A wait that is shorter is over when somebody has read of it.
_WORTH_SAYING_S = 0.05


class Allowance:
    """See the module.

    Args:
        limits: Of the device's profile.
        budget: This model's share of the device's; None for all of it.
        strain: How the device is now.

    Attributes:
        paused: What speaks against learning, but for the budget; empty for nothing.
    """

    def __init__(
        self,
        limits: LearningProfile,
        budget: LearningBudget | None = None,
        strain: Callable[[], health.Strain] = health.strain,
    ) -> None:
        self._limits, self._strain = limits, strain
        self._budget = budget or LearningBudget(limits.budget_ms_per_s)
        self._next_look_s = self._asked_s = -math.inf
        self.paused = ""

    def allows(self, now_s: float) -> bool:
        """Whether a label may be learned now."""
        self._asked_s = now_s
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_EVERY_S
            self.paused = self._why_paused()
        return not self.paused and self._budget.allows(now_s)

    def spend(self, ms: float) -> None:
        """Learning took this long."""
        self._budget.spend(ms)

    @property
    def next_deadline_s(self) -> float:
        """Where labels wait: ask `allows` at this time at the latest."""
        return self._next_look_s if self.paused else self._asked_s + max(self._budget.wait_s, _ASK_EVERY_S)

    @property
    def waiting_for(self) -> str:
        """What labels that wait are waiting for."""
        left_s = self._budget.wait_s
        more = f"; the next one for {left_s:.1f} s" if left_s >= _WORTH_SAYING_S else ""
        return self.paused or f"the learning budget of {self.share_ms_per_s:g} ms/s{more}"

    @property
    def share_ms_per_s(self) -> float:
        """What this model may use in any case; more while others do not use theirs."""
        return self._budget.ms_per_s

    def _why_paused(self) -> str:
        limits, found = self._limits, self._strain()
        hottest, battery, load = found.temperature_c, found.battery_percent, found.load_per_core
        if hottest is not None and hottest > limits.max_temperature_c:
            return f"{hottest:.0f} °C, at most {limits.max_temperature_c:.0f}"
        if battery is not None and battery < limits.min_battery_percent:
            return f"battery at {battery:.0f} %, at least {limits.min_battery_percent:.0f}"
        if load is not None and load > limits.max_load_per_core:
            return f"load of {load:.1f} a core, at most {limits.max_load_per_core:.1f}"
        return ""
