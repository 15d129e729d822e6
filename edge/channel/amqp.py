"""A queue of RabbitMQ that several processes take from: the one file that opens pika.

RabbitMQ's MQTT plugin publishes what devices say to the exchange ``amq.topic``, with dots for slashes. A durable quorum
queue bound there keeps it until somebody has taken it and said so: here that is after the handler has returned. What
was taken and not acknowledged goes to another one when the connection ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import pika
from pika.exceptions import AMQPError

from edge.channel.transport import Received
from edge.contract.errors import ConfigError

log = logging.getLogger(__name__)

EXCHANGE = "amq.topic"
# Messages in one batch, and how long one waits for more.
MOST, WAIT_S = 500, 0.1
_AGAIN_S = 2.0


class AmqpQueue:
    """See the module.

    Args:
        url: ``amqp://USER:PASSWORD@HOST:PORT/VHOST``.
        queue: Its name; made where there is none.
        filters: MQTT topic filters, with ``+`` and no ``#``.

    Raises:
        ConfigError: It is no such address.
    """

    def __init__(self, url: str, queue: str, filters: Sequence[str]) -> None:
        try:
            self._options = pika.URLParameters(url)
        except (ValueError, TypeError) as exc:
            raise ConfigError("--intake: expected amqp://USER:PASSWORD@HOST:PORT/VHOST, got no such address") from exc
        self._options.heartbeat = 10
        self._options.blocked_connection_timeout = 20
        self._queue = queue
        self._keys = [each.replace("/", ".").replace("+", "*") for each in filters]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, handle: Callable[[Sequence[Received]], None]) -> None:
        """Give batches to a handler, on a thread of its own; one that raises is given the same again."""
        self._thread = threading.Thread(target=self._run, args=(handle,), name=f"amqp-{self._queue}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _run(self, handle: Callable[[Sequence[Received]], None]) -> None:
        while not self._stopping.is_set():
            try:
                with pika.BlockingConnection(self._options) as connection:
                    self._take(connection.channel(), handle)
            except (AMQPError, OSError) as exc:
                log.warning("the queue %s: %s; trying again", self._queue, exc or type(exc).__name__)
            except Exception:
                log.exception("the queue %s failed", self._queue)
            self._stopping.wait(_AGAIN_S)

    def _take(self, channel: pika.adapters.blocking_connection.BlockingChannel, handle: Callable[..., None]) -> None:
        channel.queue_declare(self._queue, durable=True, arguments={"x-queue-type": "quorum"})
        for key in self._keys:
            channel.queue_bind(self._queue, EXCHANGE, key)
        channel.basic_qos(prefetch_count=2 * MOST)
        batch: list[Received] = []
        last, end_s = 0, 0.0
        for method, _, body in channel.consume(self._queue, inactivity_timeout=WAIT_S):
            if method is not None:
                end_s = end_s if batch else time.monotonic() + WAIT_S
                batch.append(Received(topic=method.routing_key.replace(".", "/"), payload=body, retained=False))
                last = method.delivery_tag
            if batch and (method is None or len(batch) >= MOST or time.monotonic() >= end_s):
                handle(batch)
                channel.basic_ack(last, multiple=True)
                batch = []
            if self._stopping.is_set():
                return
