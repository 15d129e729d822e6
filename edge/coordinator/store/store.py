"""What the coordinator knows, kept. The broker is never asked what was true yesterday.

Every write is durable when the method returns; inside of `Store.transaction`, when that ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edge.coordinator.store.access import AccessLog
from edge.coordinator.store.alerts import AlertLog
from edge.coordinator.store.checkpoints import CheckpointLog
from edge.coordinator.store.confusions import Confusions
from edge.coordinator.store.contributions import Contributions
from edge.coordinator.store.database import Database
from edge.coordinator.store.devices import Devices
from edge.coordinator.store.enrolment import EnrolmentLog
from edge.coordinator.store.evaluations import EvaluationLog
from edge.coordinator.store.events import EventLog
from edge.coordinator.store.parts import Parts
from edge.coordinator.store.questions import QuestionLog
from edge.coordinator.store.receipts import ReceiptLog
from edge.coordinator.store.releases import ReleaseLog
from edge.coordinator.store.rollouts import RolloutLog
from edge.coordinator.store.telemetry import TelemetryLog


class Store:
    """The database of one coordinator, by subject.

    Args:
        where: A SQLite file, created, or the address of a PostgreSQL database.
        is_shared: Whether a coordinator may use it at this moment; tables that are there are left as they are.

    Attributes:
        devices: Devices, their models and tags.
        telemetry: What devices measured.
        confusions: What models answered to labels.
        contributions: What devices learned, and what merges must remember.
        releases: What was pushed, and the bundles behind it.
        events: What happened.
        rollouts: How releases go out, and settings of the fleet.
        access: Tokens of the HTTP API, and what was asked for there.
        checkpoints: What devices learned, whole; and what they are to do once.
        alerts: What people are told of without asking.
        enrolment: Tokens by which devices join, and by what they log in to the broker.
        receipts: Of forgetting.
        questions: Labels that a person is asked for.
        evaluations: Heads that devices judge before a rollout begins.
        parts: Whose learning is in the contributions of sites.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, where: Path | str, *, is_shared: bool = False) -> None:
        self._database = Database.existing(where, or_new=True) if is_shared else Database(where)
        self.devices = Devices(self._database)
        self.telemetry = TelemetryLog(self._database)
        self.confusions = Confusions(self._database)
        self.contributions = Contributions(self._database)
        self.releases = ReleaseLog(self._database)
        self.events = EventLog(self._database)
        self.rollouts = RolloutLog(self._database)
        self.access = AccessLog(self._database)
        self.checkpoints = CheckpointLog(self._database)
        self.enrolment = EnrolmentLog(self._database)
        self.receipts = ReceiptLog(self._database)
        self.alerts = AlertLog(self._database)
        self.questions = QuestionLog(self._database)
        self.evaluations = EvaluationLog(self._database)
        self.parts = Parts(self._database)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done inside is one change: whole, or, when something is raised, none.

        What must be told whatever becomes of the change is told outside.
        """
        with self._database.transaction():
            yield

    def claim(self) -> None:
        """Have the database for this coordinator alone; see `Database.claim`.

        Raises:
            ConfigError: Another coordinator has it.
        """
        self._database.claim()

    def close(self) -> None:
        """Give the database free."""
        self._database.close()
