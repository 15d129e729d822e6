"""The door by which messages come in that several coordinators share: a shared subscription, or a queue of RabbitMQ.

A shared subscription begins clean: mosquitto goes on dealing messages to a session whose coordinator is gone, for ever
(seen: with three devices and three coordinators one device was heard no more).

Behind it is a `Taker` on a thread of its own, whether this coordinator leads or waits for its turn.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from edge.channel import topics
from edge.channel.transport import Received, Transport, TransportEvent, publish_all
from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.store.database import DatabaseError
from edge.coordinator.store.store import Store
from edge.coordinator.taking import Taker

# Gives batches of messages to a handler, and is told by its return that they are kept.
Listen = Callable[[Callable[[Sequence[Received]], None]], None]

log = logging.getLogger("edge.coordinator")

# Telemetry of a shared subscription that waits for the next batch, and how long that is gathered.
_MOST_WAITING, _GATHER_S, _MOST = 50_000, 0.1, 1000
_AGAIN_S = 1.0


def now() -> Now:
    """The time as the core wants it."""
    return Now(time.monotonic(), time.time_ns() // 1_000_000)


def core_s() -> float:
    """How long this thread has computed so far, in seconds: what it waits does not count."""
    return time.thread_time()


class Door:
    """See the module.

    Args:
        config: Of this coordinator.
        line: To the broker, for answers; with a shared subscription also for what comes.
        listen: Gives batches to a handler, as `edge.channel.amqp.AmqpQueue.start`; None for a shared subscription.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        line: Transport,
        listen: Listen | None,
    ) -> None:
        self._config, self._line, self._listen = config, line, listen
        self._store = Store(config.database, is_shared=True)
        self._taker = Taker(config.fleet, self._store, config.unknown, lambda each: publish_all(line, [each]))
        self._waiting: queue.Queue[Received] = queue.Queue(_MOST_WAITING)
        self._stopping = False

    def open(self) -> None:
        """Take messages in from here on."""
        if self._listen is not None:
            self._line.start(lambda _: None)
            self._listen(self._take)
            return
        threading.Thread(target=self._gather, name="intake", daemon=True).start()
        self._line.subscribe(topics.shared_filters(self._config.fleet))
        self._line.start(self._came)

    def _came(self, event: TransportEvent) -> None:
        if not isinstance(event, Received):
            return
        if event.topic.endswith("/" + topics.UP_TELE):
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                log.warning("telemetry dropped: more came in than can be kept")
            return
        self._take([event])  # here: the broker is told that it has arrived when it is kept

    def _gather(self) -> None:
        while not self._stopping:
            batch = [self._waiting.get()]
            end_s = time.monotonic() + _GATHER_S
            while len(batch) < _MOST and (left_s := end_s - time.monotonic()) > 0:
                try:
                    batch.append(self._waiting.get(timeout=left_s))
                except queue.Empty:
                    break
            self._take(batch)

    def _take(self, batch: Sequence[Received]) -> None:
        while not self._stopping:
            try:
                self._taker.take(batch, now())
            except DatabaseError as exc:
                log.warning("the database does not take what came in, it waits: %s", type(exc).__name__)
                time.sleep(_AGAIN_S)
            else:
                return

    def close(self) -> None:
        """Take nothing more."""
        self._stopping = True
        self._line.stop()
        self._store.close()
