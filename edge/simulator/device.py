"""One simulated device: an agent as it is, with an application that asks it and labels what it answered."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.models import Models
from edge.channel.transport import Publish, TransportEvent
from edge.contract.clock import Now
from edge.contract.durations import seconds
from edge.contract.errors import EdgeError
from edge.simulator.scenario import Fault, Scenario
from edge.simulator.world import Recording, camera_of, rows_of, wrong_label


@dataclass(slots=True)
class Tally:
    """What a device went through.

    Attributes:
        samples: Asked about.
        judged: Of those, the ones whose answer is a class.
        right: Of those, right answers: the true class, whatever the label said.
        labels: That were taken.
        refused: Requests that the agent refused.
        messages, sent_bytes: Handed to the broker; payloads.
        events: By kind.
    """

    samples: int = 0
    judged: int = 0
    right: int = 0
    labels: int = 0
    refused: int = 0
    messages: int = 0
    sent_bytes: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def numbers(self) -> dict[str, int]:
        """All but the events."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "events"}


@dataclass(frozen=True, order=True, slots=True)
class _Label:
    due_s: float
    sample_id: str
    row: int


class SimulatedDevice:
    """See the module. Its clock is the caller's.

    Args:
        config: Of the agent.
        recording: What it may see.
        scenario: What it goes through.
        index: Its number in the fleet: all that is drawn for it follows from this and the scenario's seed.
        now: When it starts.

    Raises:
        EdgeError: The agent cannot start.
    """

    def __init__(self, config: AgentConfig, recording: Recording, scenario: Scenario, index: int, now: Now) -> None:
        self.name = config.device
        self.tally = Tally()
        self._config = config
        self._recording = recording
        self._samples = scenario.samples
        self._rng = np.random.default_rng([scenario.seed, index])
        self._rows = rows_of(recording, scenario.samples.classes, self._rng)
        self._camera = self._usual = camera_of(scenario.world, recording, self._rng)
        self._n_classes = int(recording.y.max()) + 1 if recording.is_of_classes else 0
        self._wrong = scenario.samples.wrong
        self._late_s = seconds(scenario.samples.late)
        self._between_s = 60.0 / scenario.samples.per_minute if scenario.samples.per_minute else math.inf
        # Applications do not all ask at the same moment.
        self._next_sample_s = now.s + self._rng.random() * self._between_s
        self._labels: list[_Label] = []
        self._core: AgentCore | None = None
        self.start()

    def start(self) -> None:
        """Start the agent, from what is on disk."""
        self._models = Models(self._config)
        try:
            self._core = AgentCore(self._config, self._models)
        except BaseException:
            self._models.close()
            raise

    def stop(self, now: Now) -> list[Publish]:
        """Stop it in good order; what it says at last."""
        if self._core is None:
            return []
        said, core, self._core = self._core.farewell(now), self._core, None
        core.close(now)
        self._models.close()
        self._labels.clear()  # the application forgets what it asked about
        return said

    @property
    def core(self) -> AgentCore:
        """Of the running agent."""
        assert self._core is not None
        return self._core

    @property
    def is_running(self) -> bool:
        """Whether there is an agent."""
        return self._core is not None

    def begin(self, fault: Fault) -> None:
        """What it sees, or how it is labelled, becomes another."""
        if fault.kind == "drift":
            self._camera = camera_of(fault.world, self._recording, self._rng)
        elif fault.kind == "wrong":
            self._wrong = fault.wrong

    def end(self, fault: Fault) -> None:
        """And is as it was before."""
        if fault.kind == "drift":
            self._camera = self._usual
        elif fault.kind == "wrong":
            self._wrong = self._samples.wrong

    @property
    def due_s(self) -> float:
        """Call `step` at this time at the latest."""
        if self._core is None:
            return math.inf
        label_s = self._labels[0].due_s if self._labels else math.inf
        return min(self._core.next_deadline_s, self._next_sample_s, label_s)

    def take(self, event: TransportEvent, now: Now) -> None:
        """Take an event of its connection."""
        if self._core is not None:
            self._core.transport(event, now)

    def step(self, now: Now) -> tuple[list[Publish], float]:
        """Do what is due.

        Returns:
            What is to be sent, and when to come again at the latest.
        """
        if self._core is None:
            return [], math.inf
        if now.s >= self._next_sample_s:
            self._ask(now)
            # Who is late leaves samples out, as a camera does.
            self._next_sample_s = max(self._next_sample_s + self._between_s, now.s)
        while self._labels and self._labels[0].due_s <= now.s:
            self._tell(heapq.heappop(self._labels), now)
        said = self._core.tick(now)
        self.tally.messages += len(said)
        self.tally.sent_bytes += sum(len(each.payload) for each in said)
        self.tally.events.update(kind for _, kind, _ in self._core.news)
        self._core.news.clear()
        return said, self.due_s

    def _ask(self, now: Now) -> None:
        row = int(self._rows[self.tally.samples % len(self._rows)])
        x, sample_id = self._camera.see(self._recording.x[row], self._rng), f"s{self.tally.samples}"
        self.tally.samples += 1
        answer = self._request({"op": "predict", "id": sample_id, "x": x[None]}, now)
        if answer is None:
            return
        if self._n_classes and "class" in answer:
            self.tally.judged += 1
            self.tally.right += answer["class"] == int(self._recording.y[row])
        if self._rng.random() < self._samples.labelled:
            heapq.heappush(self._labels, _Label(now.s + self._late_s, sample_id, row))

    def _tell(self, label: _Label, now: Now) -> None:
        y = self._recording.y[label.row]
        said: Any = y.tolist()
        if self._n_classes and self._rng.random() < self._wrong:
            said = wrong_label(int(y), self._n_classes, self._rng)
        answer = self._request({"op": "label", "id": label.sample_id, "y": said}, now)
        self.tally.labels += bool(answer and answer.get("joined"))

    def _request(self, request: dict[str, Any], now: Now) -> dict[str, Any] | None:
        try:
            return self.core.request(request, now)
        except EdgeError:
            self.tally.refused += 1
            return None
