"""What is to be told: rules, as people write them in TOML, and the ones that hold without a file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from edge.contract.documents import DocumentError, decode
from edge.contract.documents import Rule as Must
from edge.contract.durations import Duration
from edge.contract.errors import ConfigError
from edge.coordinator.rollout.query import parse

Kind = Literal["threshold", "absence", "drift", "rollout-held", "merge-refused", "data-cap"]
# Events by which a rule of a kind holds, until none came for the rule's `after`.
EVENTS: Mapping[str, frozenset[str]] = {
    "drift": frozenset({"drift", "feature-shift"}),
    "merge-refused": frozenset({"merge-failed", "left-out", "contribution-refused"}),
    "data-cap": frozenset({"data-cap"}),
}
_MAX_BYTES, _MAX_RULES, _MAX_NAME_CHARS = 1 << 18, 200, 64
_Name = Annotated[
    str, Must(lambda text: 0 < len(text) <= _MAX_NAME_CHARS and text.isprintable(), "1 to 64 printable characters")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing to tell of.

    Attributes:
        name: For people.
        kind: ``threshold``: a number of telemetry; ``absence``: a device that is not heard; the others by what happens.
        key: With a threshold: of telemetry.
        above: The rule holds above it; None for no such end.
        below: And below it.
        lasting: With a threshold: it must hold for so long.
        after: With absence: not heard for so long. Of what happens: the alert ends when it did not happen for so long.
        select: Which devices; "" for all.
    """

    name: _Name
    kind: Kind
    key: str = ""
    above: float | None = None
    below: float | None = None
    lasting: Duration = "0 s"
    after: Duration = "1 h"
    select: str = ""

    def __post_init__(self) -> None:
        """Check what depends on more than one field."""
        if self.kind == "threshold" and not (self.key and (self.above, self.below) != (None, None)):
            raise ValueError(f"{self.name}: a threshold needs key, and above or below")
        if not all(math.isfinite(each) for each in (self.above, self.below) if each is not None):
            raise ValueError(f"{self.name}: above and below must be finite: no number is outside of others")
        if self.kind != "threshold" and (self.key or self.above is not None or self.below is not None):
            raise ValueError(f"{self.name}: key, above and below are of a threshold")
        try:
            parse(self.select)
        except ConfigError as exc:
            raise ValueError(f"{self.name}: select: {exc}") from exc

    def excess(self, value: float) -> str:
        """How far a value is outside, in words; "" where it is not."""
        if self.above is not None and value > self.above:
            return f"{self.key} is {value:.4g}, above {self.above:g}"
        if self.below is not None and value < self.below:
            return f"{self.key} is {value:.4g}, below {self.below:g}"
        return ""


_BY_THEMSELVES: tuple[Kind, ...] = ("absence", "rollout-held", "merge-refused", "drift", "data-cap")
DEFAULTS = tuple(Rule(name=kind, kind=kind) for kind in _BY_THEMSELVES)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertRules:
    """What to tell of, and whom beside the page.

    Attributes:
        rule: They.
        mqtt: Whether alerts are published at the broker.
        webhook: Address that each is posted to; "" for none.
    """

    rule: tuple[Rule, ...] = field(default=DEFAULTS)
    mqtt: bool = True
    webhook: str = ""

    def __post_init__(self) -> None:
        """Check what depends on more than one field."""
        names = [each.name for each in self.rule]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rules have the name {min(twice)}")
        if len(names) > _MAX_RULES:
            raise ValueError(f"{len(names)} rules, at most {_MAX_RULES}")
        url = urlsplit(self.webhook)
        if self.webhook and (url.scheme not in ("http", "https") or not url.hostname):
            raise ValueError("webhook: expected an address with http:// or https://")


def of_document(document: Any) -> AlertRules:
    """Rules out of what TOML gave.

    Raises:
        ConfigError: They are none; all that is wrong with them.
    """
    try:
        return decode(AlertRules, document, strict=True)
    except DocumentError as exc:
        raise ConfigError(f"--alerts: {exc}; see docs/alerts.md") from exc


def of_file(path: Path) -> AlertRules:
    """Rules out of a file.

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"--alerts {path}: {len(data)} bytes, at most {_MAX_BYTES} are read")
        document = tomllib.loads(data.decode())
    except OSError as exc:
        raise ConfigError(f"--alerts {path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"--alerts {path} is no TOML: {exc}") from exc
    return of_document(document)
