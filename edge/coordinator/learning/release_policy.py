"""When a merged head is made and how it goes out, as an operator writes it in TOML: for all, and by group."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from edge.contract.documents import Rule, at_least, between
from edge.contract.durations import Duration, seconds
from edge.contract.errors import ConfigError
from edge.contract.tomlfile import read_toml
from edge.coordinator.records import Contribution
from edge.coordinator.rollout.plan import Plan, of_document
from edge.merging.groups import EVERYBODY
from edge.merging.policy import BY_TAG

Group = Annotated[str, Rule(lambda text: text.startswith(BY_TAG) and "=" in text, 'a group such as "tag.site=north"')]
Labels = Annotated[int, at_least(0)]
Gain = Annotated[float, between(-1.0, 1.0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class When:
    """When a head of a group is merged by itself, and what it must be worth.

    Attributes:
        when: ``new``: when something new came; ``manual``: only when a person asks.
        every_samples: Not before so many new labels.
        every: Not before so long after the one before.
        min_gain: On the coordinator's own holdout over the head before, as a share of answers; needs one.
    """

    when: Literal["new", "manual"] = "new"
    every_samples: Labels = 0
    every: Duration = "0 s"
    min_gain: Gain = 0.0

    def left_s(self, rows: Iterable[Contribution], newest_ms: int, now_ms: int) -> float:
        """How long a merge has to wait by this: 0 for not at all, infinity until something else happens.

        Args:
            rows: What would be merged.
            newest_ms: When the head before was made; 0 for none.
            now_ms: The time.
        """
        if self.when == "manual" or sum(row.version - max(row.merged_version, 0) for row in rows) < self.every_samples:
            return math.inf
        # A clock that was set back makes nobody wait for ever.
        since_s = (now_ms - newest_ms) / 1000 if 0 < newest_ms <= now_ms else math.inf
        return max(0.0, seconds(self.every) - since_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class WhenOf(When):
    """The same of one group.

    Attributes:
        of: ``tag.KEY=VALUE``, as `MergePolicy.merge_by` makes them.
    """

    of: Group


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasePolicy(When):
    """See the module.

    Attributes:
        plan: Of the rollout by which a merged head goes out, without its release; empty: to all at once.
        group: What holds for single groups in place of all else.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    group: tuple[WhenOf, ...] = ()

    def __post_init__(self) -> None:
        """What fields must be to one another."""
        if self.plan:
            if named := {"release", "select", "use"} & self.plan.keys():
                raise ValueError(f"plan.{min(named)}: it is the merge's own; leave it out")
            try:
                self.plan_of(1, "")
            except ConfigError as exc:
                raise ValueError(str(exc).removeprefix("the plan: ")) from exc
        names = [each.of for each in self.group]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two groups are {min(twice)}")

    def of_group(self, meant_for: tuple[str, ...]) -> When:
        """What holds for a group."""
        return next((each for each in self.group if (each.of,) == meant_for), self)

    def plan_of(self, release: int, select: str) -> Plan | None:
        """The plan by which a merged head goes out; None where it goes to all at once."""
        if not self.plan:
            return None
        return of_document({**self.plan, "release": release, "select": select, "use": "compete"})

    def judged_by(self, devices: int) -> ReleasePolicy:
        """The same, but that so many devices judge a merged head before it goes out, by the plan or to all at once.

        Raises:
            ValueError: So many cannot.
        """
        plan = self.plan or {"waves": ["100 %"], "model": "off"}
        return replace(self, plan={**plan, "start": {**plan.get("start", {}), "judges": devices}})

    @property
    def needs_holdout(self) -> bool:
        """Whether something is asked of a head that only samples can tell."""
        return any(each.min_gain for each in (self, *self.group))

    @property
    def is_by_group(self) -> bool:
        """Whether groups may be due at different times."""
        return bool(self.group) or self.every_samples > 0 or seconds(self.every) > 0 or self.when == "manual"


def of_file(path: Path, merge_by: str) -> ReleasePolicy:
    """A policy out of a file.

    Args:
        path: TOML.
        merge_by: How groups are made, see `MergePolicy`.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    found = read_toml(ReleasePolicy, path)
    if strange := [each.of for each in found.group if each.of.partition("=")[0] != merge_by]:
        raise ConfigError(f"{path}: group {strange[0]}: groups are made by --merge-by {merge_by!r}")
    return found


def group_of(merge_by: str, tags: dict[str, str]) -> tuple[str, ...]:
    """The group of a contribution, where that can be said beforehand: by a tag, else everybody's."""
    if merge_by.startswith(BY_TAG):
        return (f"{merge_by}={tags.get(merge_by.removeprefix(BY_TAG), '')}",)
    return EVERYBODY
