"""Topics of a broker as a source: pictures, arrays, JSON, as Frigate, Zigbee2MQTT and the like publish them.

What comes faster than the model answers is dropped, the oldest first: of a camera the newest picture counts. Retained
messages are taken as well, but for labels they are old news all the same: a label that was joined is not joined again.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from edge.agent.sources.payloads import Payload, SourceOptions, Stop
from edge.channel.transport import Disconnected, Received, Refused, Transport, TransportEvent
from edge.contract.errors import ChannelError
from edge.contract.tensorspec import TensorSpec

MOST_WAITING = 64
_LOOK_S = 0.5


class Topics:
    """See the module.

    Args:
        transport: To the broker.
        filters: Topics, perhaps with wildcards.
        options: For their samples.
        name: For people.
    """

    ends_agent = False

    def __init__(self, transport: Transport, filters: Sequence[str], options: SourceOptions, name: str) -> None:
        self._transport, self._filters = transport, filters
        self.options, self.name = options, name
        self._waiting: queue.Queue[TransportEvent] = queue.Queue(MOST_WAITING)
        self._is_started = False
        self.dropped = 0

    def _put(self, event: TransportEvent) -> None:
        while True:
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                with suppress(queue.Empty):
                    self._waiting.get_nowait()
                    self.dropped += 1
                continue
            return

    def payloads(self, stop: Stop, _specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        if not self._is_started:
            self._is_started = True
            self._transport.subscribe([(each, 1) for each in self._filters])
            self._transport.start(self._put)
        try:
            while not stop.is_set():
                try:
                    event = self._waiting.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                match event:
                    case Received(topic=topic, payload=data):
                        if data:  # an empty one clears what was retained
                            yield Payload(name=topic, data=data, stream=topic)
                    case Disconnected(reason=reason):
                        raise ChannelError(f"no broker: {reason}")
                    case Refused(topic=topic, reason=reason):
                        raise ChannelError(f"{topic} is refused: {reason}")
        finally:
            if stop.is_set():
                self._transport.stop()
