"""Whether the fleet wants this device, as the coordinator said it last; kept, so that a restart knows it, too.

A device that is not approved predicts, learns and keeps telemetry as before. It sends neither what it learned nor
telemetry, which nobody would merge or read, and says so; who it is, states and events go out. It goes on by itself when
it is told that it is approved. It introduces itself again now and then, so that a word that was lost is said again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge.agent.slots.slots import read_record, write_record
from edge.channel.messages import ADMISSIONS, APPROVED
from edge.contract.errors import harmless

FILE = "admission.json"
# So often a device that is not approved introduces itself again.
AGAIN_S = 600.0
_MAX_CHARS, _LATEST_MS = 500, 2**47
_WAYS_OUT = {
    "pending": "until `edge-fleet device approve {device}` lets it in",
    "quarantined": "until `edge-fleet device approve {device}` lets it in again",
    "decommissioned": "for good: stop this agent; `edge-fleet device replace {device}` gives new hardware its place",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What the coordinator said.

    Attributes:
        admission: One of `ADMISSIONS`.
        why: Who decided so and why, for people.
        since_ms: When, ms since 1970 by the coordinator's clock; 0 where that is not known.
    """

    admission: str = APPROVED
    why: str = ""
    since_ms: int = 0


class Admission:
    """See the module.

    Args:
        folder: The state folder.
        device: Name of this device.

    Attributes:
        events: What happened, by kind and text; the caller empties it.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._path, self._device = folder / FILE, device
        warnings: list[str] = []
        found = read_record(self._path, Said, warnings)
        self._said = found if found.admission in ADMISSIONS and found.since_ms < _LATEST_MS else Said()
        self.events = [("warning", text) for text in warnings]

    @property
    def admission(self) -> str:
        """One of `ADMISSIONS`."""
        return self._said.admission

    @property
    def is_approved(self) -> bool:
        """Whether what it sends is merged and read."""
        return self.admission == APPROVED

    @property
    def why_not(self) -> str:
        """Why only what must be said is sent; "" where everything is."""
        if self.is_approved:
            return ""
        since = f" since {datetime.fromtimestamp(self._said.since_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
        why = f" ({self._said.why})" if self._said.why else ""
        is_so = "waits for approval" if self.admission == "pending" else f"is {self.admission}"
        return f"the fleet's coordinator says: this device {is_so}{since if self._said.since_ms else ''}{why}"

    def status(self) -> dict[str, Any]:
        """For an operator: where it stands, and what that means."""
        found: dict[str, Any] = {"is": self.admission}
        if not self.is_approved:
            found |= {"why": self._said.why, "since_ms": self._said.since_ms}
            found["says"] = (
                f"{self.why_not}. It predicts and learns, and sends neither telemetry nor what it learned, "
                f"{_WAYS_OUT[self.admission].format(device=self._device)}"
            )
        return found

    def take(self, said: Mapping[str, Any]) -> str:
        """Take what the coordinator says, with the keys of `Said`; why it is not understood, "" where it is."""
        admission, why, since_ms = said.get("admission"), said.get("why", ""), said.get("since_ms", 0)
        if admission not in ADMISSIONS:
            return f"admission: expected {', '.join(ADMISSIONS)}, got {admission!r:.40}"
        if not isinstance(why, str) or type(since_ms) is not int or not 0 <= since_ms < _LATEST_MS:
            return "expected why as text and since_ms as a number"
        before, self._said = self._said, Said(str(admission), " ".join(harmless(why).split())[:_MAX_CHARS], since_ms)
        if before == self._said:
            return ""
        try:
            write_record(self._path, self._said)
        except OSError as exc:
            self.events.append(("storage", f"{FILE} could not be written, a restart forgets it: {exc.strerror}"))
        if before.admission != self.admission:
            goes_on = "the fleet's coordinator says: this device is approved; all that waited goes out"
            self.events.append(("admission", self.why_not or goes_on))
        return ""
