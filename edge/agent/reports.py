"""What a device says of itself: at once where there is a line, else later, out of its outbox.

Theory of operation. Telemetry and events have numbers of their own kind, so that who reads them removes repeats. Where
there is no line, or the data cap is used up, they wait in the outbox. Where there is a line and no coordinator at its
other end they do both: others read them live, and they wait for the coordinator, which says when it comes and of which
the broker says when it is gone. What was sent in the minute before a connection was lost, of the device or of a
coordinator, waits, too: nobody knows how much of it arrived. A device that never heard of a coordinator has none.

Once there is a line and a coordinator, the outbox goes out in arrays behind live traffic: one that is not acknowledged
at a time, events first, then telemetry from the newest back. The coordinator's word that it has kept an array (not the
broker's) deletes what was in it; without that word it is sent again, ever more rarely.

Where telemetry is said more often than every `SHORT_S`, one message of a model in `BATCH_S` is live, for people and
their tools; those between go together, in an array as the outbox's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from edge.agent.config import AgentConfig
from edge.agent.line.letters import letter
from edge.agent.line.listeners import Listeners
from edge.agent.line.outbox import Key, Outbox, Report
from edge.agent.slots.slots import DeviceRecord
from edge.channel import topics
from edge.channel.codec import MAX_HISTORY_BYTES, batch_of, encode_history, event_document, telemetry_document
from edge.channel.messages import Event, Here, HistoryKept, State, Telemetry
from edge.channel.transport import PACKET_OVERHEAD_BYTES, Publish
from edge.contract.clock import Now

# What was sent so short before a connection was lost may not have arrived: twice the keep-alive of 30 s.
UNSURE_S, _MOST_UNSURE = 60.0, 256
# Backfill begins so long after the connection, and at most as much later again, so that a fleet is spread.
QUIET_S, SPREAD_S = 5.0, 25.0
BETWEEN_S = 1.0  # two arrays: at most 32 KB/s
SHORT_S, BATCH_S = 2.0, 5.0
ANSWER_S, LAST_ANSWER_S = 30.0, 3600.0
_MOST_IN_ARRAY = 200
_MOST_BETWEEN = 50
_UNSET_CLOCK_MS = 1_704_067_200_000  # 2024: no device lives before it, but many begin in 1970


class Reports:
    """See the module.

    Args:
        config: Of the agent.
        record: Of its start.
        outbox: What waits; None where nothing is to wait, for there is no broker.

    Attributes:
        listeners: Who listens at the other end.
    """

    def __init__(self, config: AgentConfig, record: DeviceRecord, outbox: Outbox | None) -> None:
        self._config, self._outbox = config, outbox
        self._boot, self._state_id = record.boot, record.state_id
        self._telemetry_seq = self._event_seq = 0
        self._is_online = self._is_proved = False
        self.listeners = Listeners(is_known=record.has_coordinator)
        self._unsure: deque[Report] = deque(maxlen=_MOST_UNSURE)
        self._max_packet_bytes = MAX_HISTORY_BYTES
        self._live_s: dict[str, float] = {}  # by model, when it was last said at once
        self._between: list[Report] = []  # said since, to go together
        self._between_due_s = math.inf
        self._next_s = math.inf
        self._batch, self._sent = "", list[Key]()
        self._answer_s = ANSWER_S

    @property
    def waiting(self) -> int:
        """Reports in the outbox."""
        return 0 if self._outbox is None else len(self._outbox)

    @property
    def keeps(self) -> bool:
        """Whether what is said without a line is kept."""
        return self._outbox is not None

    def status(self) -> dict[str, int]:
        """What waits, and what had to go since the start."""
        if self._outbox is None:
            return {"waiting": 0, "thinned": 0, "lost": 0}
        return {"waiting": self.waiting, "thinned": self._outbox.thinned, "lost": self._outbox.lost}

    def take_warnings(self) -> list[str]:
        """What went wrong with the outbox and was survived."""
        if self._outbox is None:
            return []
        found, self._outbox.warnings[:] = list(self._outbox.warnings), []
        return found

    # The line

    def online(self, max_packet_bytes: int, now: Now) -> None:
        """There is a connection. Who listens says so anew."""
        self._is_online, self._is_proved = True, False
        self.limit(max_packet_bytes)
        self.listeners.connected()
        self._backfill_soon(now)

    def _backfill_soon(self, now: Now) -> None:
        self._batch, self._answer_s = "", ANSWER_S
        if self.listeners.is_gone:
            self._next_s = math.inf  # nobody would answer
            return
        self._next_s = now.s + QUIET_S + int(self._state_id[-4:] or "0", 16) / 0xFFFF * SPREAD_S

    def here(self, coordinator: str, message: Here, now: Now) -> None:
        """See `Listeners.said`."""
        if self.listeners.said(coordinator, message):
            self._keep_unsure(
                now.s
            )  # who begins anew may not have kept what was sent, and may not have told of its end
            self._backfill_soon(now)

    def answered(self, now: Now) -> None:
        """See `Listeners.answered`."""
        if self.listeners.answered():
            self._backfill_soon(now)

    def offline(self, now: Now) -> None:
        """There is none any more."""
        if self._is_online:
            self._unsure += self._between
            self._keep_unsure(now.s)
        self._unsure.clear()
        self._between.clear()
        self._between_due_s = math.inf
        self._is_online = False

    def _keep_unsure(self, now_s: float) -> None:
        """What was sent of late waits, too."""
        if self._outbox is not None:
            for report in self._unsure:
                if now_s - report.at_s <= UNSURE_S:
                    self._outbox.add(report, now_s)
            self._unsure.clear()

    def limit(self, max_packet_bytes: int) -> None:
        """Packets have at most so many bytes from now on."""
        self._max_packet_bytes = max_packet_bytes

    # What is said

    def telemetry(self, values: Mapping[str, Any], now: Now, *, may_send: bool) -> list[Publish]:
        """Live numbers of a model: what to send of them now."""
        self._telemetry_seq += 1
        head = {"ts": now.wall_ms, "seq": self._telemetry_seq, "boot": self._boot, "state_id": self._state_id}
        message = Telemetry(values={**head, **values})
        report = Report(
            kind="telemetry",
            state_id=self._state_id,
            boot=self._boot,
            seq=self._telemetry_seq,
            model=str(values.get("model", "")),
            at_s=now.s,
            values=telemetry_document(message),
        )
        is_often = self._config.telemetry_interval_s < SHORT_S and self._is_proved
        if is_often and self._is_online and may_send and now.s - self._live_s.get(report.model, -math.inf) < BATCH_S:
            self._between.append(report)
            self._between_due_s = min(self._between_due_s, now.s + BATCH_S)
            return self._together(now.s) if len(self._between) >= _MOST_BETWEEN else []
        if not self._goes_out(report, now, may_send=may_send):
            return []
        self._live_s[report.model] = now.s
        # The first of a connection is acknowledged: a broker that takes none says so only then.
        qos, self._is_proved = int(not self._is_proved), True
        return [letter(self._config, topics.UP_TELE, message, qos=qos)]

    def _together(self, now_s: float) -> list[Publish]:
        """What was said between two live messages, in as few arrays as it fits into."""
        out, documents, size = list[Publish](), list[dict[str, Any]](), 2
        most = self._most_bytes
        for report in self._between:
            self._sent_live(report, now_s)
            more = len(encode_history([report.values]))
            if size + more > most and documents:
                out.append(letter(self._config, topics.UP_HIST, encode_history(documents), qos=1))
                documents, size = [], 2
            documents.append(dict(report.values))
            size += more
        if documents:
            out.append(letter(self._config, topics.UP_HIST, encode_history(documents), qos=1))
        self._between.clear()
        self._between_due_s = math.inf
        return out

    @property
    def _most_bytes(self) -> int:
        topic = topics.build(self._config.fleet, self._config.device, topics.UP_HIST)
        return min(MAX_HISTORY_BYTES, self._max_packet_bytes - PACKET_OVERHEAD_BYTES - len(topic))

    def event(self, name: str, detail: str, model: str, now: Now) -> list[Publish]:
        """Something happened: what to send of it now."""
        self._event_seq += 1
        event = Event(
            ts_ms=now.wall_ms,
            name=name,
            detail=detail[:500],
            model=model,
            boot=self._boot,
            seq=self._event_seq,
            state_id=self._state_id,
        )
        report = Report(
            kind="event",
            state_id=self._state_id,
            boot=self._boot,
            seq=self._event_seq,
            model=model,
            at_s=now.s,
            values=event_document(event),
        )
        goes_out = self._goes_out(report, now, may_send=True)
        return [letter(self._config, topics.UP_EVENT, event, qos=1)] if goes_out else []

    def state(self, state: State, now: Now) -> None:
        """A slot has changed: where nobody listens that is an event, as only where it stands at last is said then."""
        if not self._is_online or self.listeners.is_gone:
            self.event(state.state, f"release {state.release}: {state.detail}".removesuffix(": "), state.model, now)

    def _goes_out(self, report: Report, now: Now, *, may_send: bool) -> bool:
        if self._is_online and may_send:
            self._sent_live(report, now.s)
            return True
        if self._outbox is not None:
            self._outbox.add(report, now.s)
        return False

    def _sent_live(self, report: Report, now_s: float) -> None:
        if self.listeners.is_heard or self._outbox is None:
            self._unsure.append(report)
        else:
            self._outbox.add(report, now_s)

    # The outbox

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        if self._outbox is None:
            return self._between_due_s
        return min(
            self._between_due_s,
            self._outbox.next_deadline_s,
            self._next_s if self._is_online and self.waiting else math.inf,
        )

    def poll(self, now: Now, *, may_send: bool) -> list[Publish]:
        """Write what is due, and send the next array where it is time."""
        live = self._together(now.s) if now.s >= self._between_due_s else []
        if self._outbox is None:
            return live
        self._outbox.poll(now.s)
        if not self._is_online or now.s < self._next_s or not self.waiting:
            return live
        if not may_send:
            self._next_s = now.s + ANSWER_S
            return live
        if self._batch:  # it was not acknowledged: nobody is there, or one from before there was an outbox
            self._answer_s = min(2 * self._answer_s, LAST_ANSWER_S)
        self._next_s = now.s + self._answer_s
        payload = self._array(self._outbox, now)
        self._batch = batch_of(payload)
        return [*live, letter(self._config, topics.UP_HIST, payload, qos=1)]

    def _array(self, outbox: Outbox, now: Now) -> bytes:
        """As much as fits into one message; what would not fit into an empty one is dropped."""
        reports = outbox.some("event", _MOST_IN_ARRAY, now.s)
        reports += outbox.some("telemetry", _MOST_IN_ARRAY, now.s, newest=True)
        most, size, documents = self._most_bytes, 2, list[dict[str, Any]]()
        self._sent = []
        for report in reports:
            document = self._dated(report, now)
            more = len(encode_history([document]))
            if size + more > most and documents:
                break
            self._sent.append(report.key)
            if size + more <= most:
                documents.append(document)
                size += more
        return encode_history(documents)

    def _dated(self, report: Report, now: Now) -> dict[str, Any]:
        """With the time when it was made, as far as it is known by now: a clock may have been set since."""
        values = dict(report.values)
        is_unset = values.get("ts", 0) < _UNSET_CLOCK_MS <= now.wall_ms
        if is_unset and (report.state_id, report.boot) == (self._state_id, self._boot):
            values["ts"] = now.wall_ms - round(1000 * max(0.0, now.s - report.at_s))
        return values

    def kept(self, message: HistoryKept, now: Now) -> None:
        """The coordinator has kept an array; of another one than the last it is ignored."""
        if self._outbox is not None and message.batch == self._batch:
            self._outbox.forget(self._sent, now.s)
            self._batch, self._answer_s = "", ANSWER_S
            self._next_s = now.s + BETWEEN_S

    def close(self, now_s: float) -> None:
        """Keep what waits."""
        if self._outbox is not None:
            for report in self._between:
                self._outbox.add(report, now_s)
            self._outbox.close(now_s)
