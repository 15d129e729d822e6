"""What a coordinator is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge.coordinator.alerts.rules import AlertRules
from edge.coordinator.learning.release_policy import ReleasePolicy
from edge.coordinator.records import APPROVED
from edge.coordinator.summaries import Keep
from edge.merging.policy import MergePolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteConfig:
    """A coordinator above this one.

    Attributes:
        name: Of this site: a device's name there.
        fleet: That it belongs to there.
        interval_s: Least time between two contributions.
        trust_root: Root document by which releases from above are proved; None takes them unproved.
    """

    name: str
    fleet: str = "default"
    interval_s: float = 60.0
    trust_root: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatorConfig:
    """Options, checked at the roof.

    Attributes:
        fleet: Fleet id.
        name: Id of this coordinator, also its MQTT client id.
        broker: Its address for people, without a login.
        data_dir: Artifacts, and the database where `database` is "".
        database: Address of a PostgreSQL database.
        auto_merge: Whether contributions are merged and pushed without being asked.
        merge_delay_s: Wait that long after the first new contribution for others to come.
        min_devices: Merge by itself only with new contributions of so many devices.
        reassert_s: How often a device that is not where it should be is told again.
        keep: How long telemetry is kept.
        policy: How contributions are merged.
        release_policy: When merged heads are made, and how they go out.
        evaluate: Samples with labels on which they are tested first; None for none.
        keep_free_bytes: That artifacts leave free on the disk; None for a usual part of it.
        unknown: Admission of devices that nobody knows: ``approved``, or ``pending`` until a person approves them.
        signing: Folder with the coordinator's key and the signed metadata; None for a fleet without keys.
        alerts: What people are told of without asking.
        timestamp_days: How long devices believe that nothing newer was signed.
        ask_labels_s: How often devices are asked which labels would help several of them; 0 for never.
        site: Of which fleet this one is a site; None for none.
        is_shared: Whether telemetry, events and reports come in by the door that coordinators share.
    """

    fleet: str
    name: str
    data_dir: Path
    database: str = ""
    broker: str = ""
    auto_merge: bool = True
    merge_delay_s: float = 60.0
    min_devices: int = 1
    reassert_s: float = 60.0
    keep: Keep = field(default_factory=Keep)
    policy: MergePolicy = field(default_factory=MergePolicy)
    release_policy: ReleasePolicy = field(default_factory=ReleasePolicy)
    evaluate: Path | None = None
    keep_free_bytes: int | None = None
    unknown: str = APPROVED
    signing: Path | None = None
    timestamp_days: float = 7.0
    ask_labels_s: float = 0.0
    alerts: AlertRules = field(default_factory=AlertRules)
    site: SiteConfig | None = None
    is_shared: bool = False
