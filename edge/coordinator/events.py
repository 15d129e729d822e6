"""Events that the coordinator writes itself, and what it does with faults: they are told, and end nothing.

A fault that repeats is told once in `AGAIN_S`, with how often it came since: whoever sends garbage shall not fill the
database. What the database does not take is logged at once, and offered to it again in a minute.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from edge.contract.clock import Now
from edge.contract.errors import EdgeError, harmless
from edge.coordinator.records import LoggedEvent
from edge.coordinator.store.store import Store

log = logging.getLogger("edge.coordinator")

AGAIN_S = 600.0
# Different faults in that time; more of them are logged only.
MAX_FAULTS = 1000
MAX_DETAIL_CHARS = 500
_OFFER_AGAIN_S = 60.0
_MAX_WAITING = 200


@dataclass(slots=True)
class _Told:
    """When a fault was told, and how often it came since."""

    at_s: float
    since: int = 0


class Events:
    """The coordinator's own events. No method raises: telling of a fault must not be one.

    Args:
        store: Its database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: dict[tuple[str, str, str], _Told] = {}
        self._waiting: deque[LoggedEvent] = deque(maxlen=_MAX_WAITING)
        self._next_offer_s = -math.inf
        self._why = ""

    @property
    def says(self) -> str:
        """That the database takes nothing now, in words; "" where it does."""
        if not self._waiting:
            return ""
        return f"the database takes nothing ({self._why}): what happens is logged, and offered to it again"

    def note(self, device: str, name: str, detail: str, now: Now, model: str = "") -> None:
        """Something happened, perhaps to one model; ``device`` is "" for the coordinator itself."""
        # What came from outside may hold half a character, which no database stores.
        detail = detail.encode(errors="replace").decode()[:MAX_DETAIL_CHARS]
        event = LoggedEvent(device=device, name=name, detail=detail, at_ms=now.wall_ms, model=model)
        fields = {"device": device, "model": model, "event": name, "detail": detail}
        whose = f"{device} {model}".strip() or "coordinator"
        log.info("%s: %s: %s", whose, name, harmless(detail), extra={"fields": fields})
        if self._waiting:  # in order, and no second wait for a locked database
            self._waiting.append(event)
        elif not self._write(event):
            self._waiting.append(event)
            self._next_offer_s = now.s + _OFFER_AGAIN_S

    def fault(self, device: str, name: str, detail: str, now: Now, kind: str = "") -> None:
        """Something went wrong; the same again soon is only counted.

        Args:
            device: Whose it is, "" for none.
            name: Of the event.
            detail: The reason.
            now: The time.
            kind: What tells faults of one name apart.
        """
        key = (device, name, kind)
        told = self._told.get(key)
        if told is not None and now.s - told.at_s < AGAIN_S:
            told.since += 1
            return
        if told is None and len(self._told) >= MAX_FAULTS:
            self._told = {k: t for k, t in self._told.items() if now.s - t.at_s < AGAIN_S}
            if len(self._told) >= MAX_FAULTS:
                log.warning("%s: %s: %s", device or "coordinator", name, detail)
                return
        more = f"; {told.since} more since it was last told" if told is not None and told.since else ""
        self._told[key] = _Told(now.s)
        self.note(device, name, detail[: MAX_DETAIL_CHARS - len(more)] + more, now)

    @contextlib.contextmanager
    def survived(self, device: str, name: str, doing: str, now: Now) -> Iterator[None]:
        """Let nothing that is raised inside end the process: it becomes an event and costs what is inside.

        Args:
            device: Whose it is, "" for none.
            name: Of the event.
            doing: What is being done, for the event.
            now: The time.
        """
        try:
            yield
        except Exception as exc:  # noqa: BLE001  # that is what this is for
            self.unforeseen(device, name, doing, exc, now)

    def unforeseen(self, device: str, name: str, doing: str, exc: BaseException, now: Now) -> None:
        """Tell of something that was raised."""
        if not isinstance(exc, EdgeError):  # those say all of it
            log.error("%s failed; the coordinator goes on", doing, exc_info=exc)
        self.fault(device, name, f"{doing}: {reason(exc)}", now, kind=f"{doing} {type(exc).__name__}")

    def offer_again(self, now: Now) -> None:
        """Write what the database did not take before."""
        if self._waiting and now.s >= self._next_offer_s:
            self._next_offer_s = now.s + _OFFER_AGAIN_S
            while self._waiting and self._write(self._waiting[0]):
                self._waiting.popleft()

    def _write(self, event: LoggedEvent) -> bool:
        try:
            self._store.events.add(event)
        except Exception as exc:
            self._why = " ".join(str(getattr(exc, "orig", exc)).split())[:200]
            log.exception("an event could not be recorded: %s: %s: %s", event.device, event.name, event.detail)
            return False
        return True


def reason(exc: BaseException) -> str:
    """In one line; what is not raised on purpose needs its type to be understood."""
    text = " ".join(str(exc).split())
    return text if isinstance(exc, EdgeError) else f"{type(exc).__name__}: {text}".removesuffix(": ")
