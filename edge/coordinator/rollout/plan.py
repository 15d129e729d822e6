"""What a person writes to say how a release goes out: TOML, read strictly, all faults told at once.

All but the release has a default that is meant to be used.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from edge.contract.documents import DocumentError, Rule, at_least, between, decode, encode
from edge.contract.durations import Duration, seconds
from edge.contract.errors import ConfigError
from edge.coordinator.rollout import query
from edge.coordinator.rollout.window import Window

MAX_PLAN_BYTES = 16 * 1024
_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


def share(text: str) -> float | None:
    """What ``"25 %"`` says, from 0 to 1; None for what is no share above 0."""
    found = _SHARE.fullmatch(text)
    return float(found[1]) / 100 if found and 0 < float(found[1]) <= 100 else None


Share = Annotated[str, Rule(lambda text: share(text) is not None, 'a share such as "25 %"')]
Size = Annotated[int, at_least(1)] | Share
"""Of a wave and those before it: so many devices, or a share of them."""
Fraction = Annotated[float, between(0.0, 1.0)]
Limit = tuple[Fraction, Annotated[int, at_least(1)]]
"""Failures: more than this share, and so many at least."""
Count = Annotated[int, at_least(0)]


def n_liars(n_devices: int, share: float) -> int:
    """How many of these devices may say anything."""
    return math.ceil(round(share * n_devices, 9))


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """When it begins.

    Attributes:
        at: ``now``, or a moment such as ``2026-12-01T02:00:00+01:00``.
        approvals: By so many others than the author.
        join: Whether devices that come to match later are offered the release, too.
        judges: Not before so many devices that agree have tried the head on their last labels, and the middle of them
            found it no worse; 0 asks none.
        within: How long they are waited for.
        unjudged: What follows where too few have answered by then: ``hold``, or ``go`` all the same.
    """

    at: str = "now"
    approvals: Count = 0
    join: bool = True
    judges: Annotated[int, between(0, 1000)] = 0
    within: Duration = "1 h"
    unjudged: Literal["hold", "go"] = "hold"

    @property
    def at_ms(self) -> int:
        """Milliseconds since 1970; 0 for now."""
        return 0 if self.at == "now" else int(datetime.fromisoformat(self.at).timestamp() * 1000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How much at once.

    Attributes:
        transfers: Devices that fetch at one time, at most.
        bytes_per_s: Of the whole rollout; 0 for no limit.
        device_mb_per_day: Of one device, 10^6 bytes each; 0 for no limit. A lower cap of its own stops it before.
    """

    transfers: Annotated[int, at_least(1)] = 50
    bytes_per_s: Count = 0
    device_mb_per_day: Count = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadline:
    """How long a target may take: the first two of the time that the device is connected, the last of any time."""

    fetch: Duration = "1 d"
    activate: Duration = "7 d"
    probation: Duration = "2 h"


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What failures do; see `edge.coordinator.rollout.gates.health`.

    Attributes:
        pause: From which on the rollout stops.
        revert: From which on those touched get the older bytes, whatever the plan says else.
        quorum: Share of a wave that must not be absent.
    """

    pause: Limit = (0.05, 2)
    revert: Limit = (0.20, 5)
    quorum: Fraction = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """How the model is judged; see `edge.coordinator.rollout.gates.model`.

    Attributes:
        margin: What a release may cost, as a share of answers.
        liars: Share of canaries that may say anything.
        wait: How long for pairs, before it is held.
        judge_by: Tags; the canaries of each value must pass by themselves.
        off: Nothing judges the model, and everybody is told so.
    """

    margin: Annotated[float, between(0.001, 0.5)] = 0.02
    liars: Annotated[float, between(0.0, 0.4)] = 0.10
    wait: Duration = "7 d"
    judge_by: tuple[str, ...] = ()
    off: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One plan for one release.

    Attributes:
        release: Counter of the release.
        select: Whom it is for, see `edge.coordinator.rollout.query`; "" for every device that the release fits.
        seed: Of the order in which devices come; "" is drawn at the start and kept, so nobody foresees a canary.
        use: ``replace`` what answers, or ``compete`` with it.
        waves: Sizes, cumulative; a count is at most a quarter of the selection, and empty waves fall away.
        soak: Least time after a wave has settled; the last entry holds for all further waves. Empty for the default.
        start: When it begins.
        on_stop: What becomes of those touched when it stops.
        pace: How much at once.
        window: In which activation may happen, see `edge.coordinator.rollout.window`; "" at any time.
        deadline: How long targets may take.
        health: What failures do.
        model: How the model is judged, after all waves but the first and the last.
    """

    release: Annotated[int, between(1, 2**63 - 1)]
    select: str = ""
    seed: Annotated[str, Rule(lambda text: len(text) <= 64, "at most 64 characters")] = ""
    use: Literal["replace", "compete"] = "replace"
    waves: tuple[Size, ...] = (10, 100, "25 %", "50 %", "100 %")
    soak: tuple[Duration, ...] = ()
    start: Start = field(default_factory=Start)
    on_stop: Literal["pause", "revert"] = "pause"
    pace: Pace = field(default_factory=Pace)
    window: str = ""
    deadline: Deadline = field(default_factory=Deadline)
    health: Health = field(default_factory=Health)
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        """What fields must be to one another."""
        faults = []
        try:
            query.parse(self.select)
        except ConfigError as exc:
            faults.append(f"select: {exc}")
        shares = [share(size) or 0.0 for size in self.waves if isinstance(size, str)]
        if not self.waves or self.waves[-1] != "100 %":
            faults.append('waves: the last must be "100 %"')
        counts = [size for size in self.waves if isinstance(size, int)]
        if sorted(shares) != shares or sorted(counts) != counts:
            faults.append("waves: each contains those before it, so sizes must not go down")
        if len(self.soak) > len(self.waves):
            faults.append(f"soak: at most one for each of the {len(self.waves)} waves, got {len(self.soak)}")
        if self.start.at != "now":
            try:
                is_there = datetime.fromisoformat(self.start.at).tzinfo is not None
            except ValueError:
                is_there = False
            if not is_there:
                faults.append('start.at must be "now" or a moment with its zone, such as "2026-12-01T02:00:00+01:00"')
        needed = self.start.judges
        if needed and needed <= 2 * n_liars(needed, self.model.liars):
            faults.append(
                f"start.judges: of {needed}, {n_liars(needed, self.model.liars)} may say anything (model.liars), and "
                f"the others do not outvote them: ask more, 3 at least, or set model.liars to 0"
            )
        if self.window:
            try:
                Window.parse(self.window)
            except ValueError as exc:
                faults.append(f"window: {exc}")
        if faults:
            raise ValueError("; ".join(faults))

    def is_open(self, wall_ms: int, offset_min: int) -> bool:
        """Whether a device may activate now whose local time is so far ahead of UTC."""
        return not self.window or Window.parse(self.window).is_open(wall_ms, offset_min)


# Soak of a plan that gives none.
_SOAK = ("30 min", "1 d", "1 d", "1 d")
# Below so many devices nothing can be told by waiting (a quarter would be fewer than 5 canaries): unless the plan says
# otherwise a wave is followed by the next as soon as its devices have passed their own probation.
SMALL_FLEET = 20


def soak_s(plan: Plan, wave: int, n_devices: int) -> float:
    """How long a wave is watched after it has settled.

    Args:
        plan: The plan.
        wave: Number of the wave in the plan, from 0.
        n_devices: How many are selected.
    """
    if wave >= len(plan.waves) - 1 and len(plan.soak) < len(plan.waves):
        return 0.0  # nothing comes after the last one
    if plan.soak:
        return seconds(plan.soak[min(wave, len(plan.soak) - 1)])
    return 0.0 if n_devices < SMALL_FLEET else seconds(_SOAK[min(wave, len(_SOAK) - 1)])


def of_document(document: Any) -> Plan:
    """A plan out of what TOML or JSON gave.

    Raises:
        ConfigError: It is none; all that is wrong with it.
    """
    if isinstance(document, dict) and "model" in document:
        if document["model"] == "off":
            document = document | {"model": {"off": True}}
        elif isinstance(document["model"], str):
            raise ConfigError(f'the plan: model must be "off" or a table, got {document["model"]!r:.40}')
    try:
        return decode(Plan, document, strict=True)
    except DocumentError as exc:
        raise ConfigError(f"the plan: {exc}; see docs/rollouts.md") from exc


def of_toml(data: bytes) -> Plan:
    """A plan out of a file.

    Raises:
        ConfigError: It is none; all that is wrong with it.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise ConfigError(f"the plan has {len(data)} bytes, at most {MAX_PLAN_BYTES} are read")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"the plan is no TOML: {exc}") from exc
    return of_document(document)


def to_document(plan: Plan) -> dict[str, Any]:
    """What `of_document` reads."""
    return encode(plan)
