"""Somebody at a real broker who listens and speaks, as `mosquitto_sub` and `mosquitto_pub` do."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from types import TracebackType

from edge.channel.mqtt import MqttTransport
from edge.channel.transport import Received, TransportEvent
from edge.channel.url import BrokerUrl


class Ear:
    """A client of a broker on this machine."""

    def __init__(self, port: int, *filters: str) -> None:
        self._transport = MqttTransport(
            BrokerUrl.parse(f"mqtt://127.0.0.1:{port}"), f"ear-{secrets.token_hex(4)}", True
        )
        self._transport.subscribe([(each, 0) for each in filters])
        self._heard: queue.SimpleQueue[Received] = queue.SimpleQueue()

    def __enter__(self) -> Ear:
        def take(event: TransportEvent) -> None:
            if isinstance(event, Received):
                self._heard.put(event)

        self._transport.start(take)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._transport.stop()

    def publish(self, topic: str, payload: bytes) -> None:
        """Say something."""
        self._transport.publish(topic, payload, qos=1)

    def next(self, timeout_s: float = 20.0) -> Received:
        """What is heard next."""
        return self._heard.get(timeout=timeout_s)

    def until(self, say: Callable[[], None], timeout_s: float = 30.0) -> bytes:
        """Say something again and again until something is heard: whoever answers may not be there yet."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            say()
            try:
                return self._heard.get(timeout=1.0).payload
            except queue.Empty:
                continue
        raise TimeoutError
