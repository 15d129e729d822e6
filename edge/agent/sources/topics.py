"""Topics of a broker as a source: pictures, arrays, JSON, as Frigate, Zigbee2MQTT and the like publish them.

What comes faster than the model answers is dropped, the oldest first: of a camera the newest picture counts. That is
told. A label is not dropped for a sample: somebody said it once. Retained messages are taken as well, but for labels
they are old news all the same: a label that was joined is not joined again.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from edge.agent.sources.payloads import Payload, SourceOptions, Stop, may_be_label
from edge.channel.transport import Disconnected, Received, Refused, Transport, TransportEvent
from edge.contract.errors import ChannelError
from edge.contract.tensorspec import TensorSpec

MOST_WAITING = 64
MOST_LABELS = 16_384
_MOST_LABEL_BYTES = 8 << 20
_LOOK_S = 0.5


class _Waiting(queue.Queue[TransportEvent]):
    """What came, in its order; a label has room of its own.

    Attributes:
        dropped: Samples that were dropped, the oldest of more than `MOST_WAITING`.
        lost: Labels that were dropped.
    """

    def _init(self, _maxsize: int) -> None:
        # With numbers, which say what came first.
        self._samples: deque[tuple[int, TransportEvent]] = deque(maxlen=MOST_WAITING)
        self._labels: deque[tuple[int, Received]] = deque()
        self._label_bytes = self._number = self.dropped = self.lost = 0

    def _qsize(self) -> int:
        return len(self._samples) + len(self._labels)

    def _put(self, event: TransportEvent) -> None:
        self._number += 1
        if not (isinstance(event, Received) and may_be_label(event.payload)):
            self.dropped += len(self._samples) == MOST_WAITING
            self._samples.append((self._number, event))
        elif len(self._labels) < MOST_LABELS and self._label_bytes + len(event.payload) <= _MOST_LABEL_BYTES:
            self._label_bytes += len(event.payload)
            self._labels.append((self._number, event))
        else:
            self.lost += 1

    def _get(self) -> TransportEvent:
        if not self._labels or (self._samples and self._samples[0][0] < self._labels[0][0]):
            return self._samples.popleft()[1]
        _, label = self._labels.popleft()
        self._label_bytes -= len(label.payload)
        return label

    def next(self) -> TransportEvent | None:
        """The next that came, None where nothing did for a while."""
        try:
            return self.get(timeout=_LOOK_S)
        except queue.Empty:
            return None


class Topics:
    """See the module.

    Args:
        transport: To the broker.
        filters: Topics, perhaps with wildcards.
        options: For their samples.
        name: For people.
    """

    ends_agent = waits = False

    def __init__(self, transport: Transport, filters: Sequence[str], options: SourceOptions, name: str) -> None:
        self._transport, self._filters = transport, filters
        self.options, self.name = options, name
        self._waiting = _Waiting()
        self._is_started = self._is_told = False
        self._lost_before = 0

    def _told(self) -> Iterator[Payload]:
        """What was dropped: of samples, which is how a fast camera is dealt with, once."""
        if self._waiting.dropped and not self._is_told:
            self._is_told = True
            yield Payload(
                name="samples", data=b"", fault="they come faster than they are answered: of more than "
                f"{MOST_WAITING} that wait the oldest are dropped, which is not told again",
            )  # fmt: skip
        if self._waiting.lost > self._lost_before:
            self._lost_before = self._waiting.lost
            yield Payload(
                name="labels", data=b"", fault="they come faster than they are taken, and some were dropped: send "
                f"at most {MOST_LABELS} at once",
            )  # fmt: skip

    def payloads(self, stop: Stop, _specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        if not self._is_started:
            self._is_started = True
            self._transport.subscribe([(each, 1) for each in self._filters])
            self._transport.start(self._waiting.put)
        try:
            while not stop.is_set():
                match self._waiting.next():
                    case Received(topic=topic, payload=data):
                        if data:  # an empty one clears what was retained
                            yield Payload(name=topic, data=data, stream=topic)
                    case Disconnected(reason=reason):
                        raise ChannelError(f"no broker: {reason}")
                    case Refused(topic=topic, reason=reason):
                        raise ChannelError(f"{topic} is refused: {reason}")
                yield from self._told()
        finally:
            if stop.is_set():
                self._transport.stop()
