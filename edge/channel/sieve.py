"""Messages taken out of what a broker sends; all other packets stay in the stream, for whoever speaks the protocol.

Theory of operation. A client library in Python reads a packet in several calls and makes some hundred objects of it,
most of them of properties that nobody here looks at. Of a PUBLISH that is there as a whole, of QoS 0 or 1, three things
are wanted. It is read here; whatever else stands at the front, a PUBLISH of which a part is on its way among them, is
handed through byte by byte, and nothing behind it is looked at before that: so the order is that of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

_PUBLISH, _QOS, _RETAIN = 0x30, 0x06, 0x01
_LONGEST_HEADER = 5  # a byte of kind, and at most four of length


@dataclass(frozen=True, slots=True)
class Message:
    """A PUBLISH.

    Attributes:
        topic: Of it.
        payload: Of it.
        retained: Whether the broker kept it.
        number: By which it is acknowledged; 0 for QoS 0.
    """

    topic: str
    payload: bytes
    retained: bool
    number: int


class Sieve:
    """See the module.

    Args:
        is_5: Whether the connection speaks MQTT 5, where messages have properties.
    """

    def __init__(self, *, is_5: bool) -> None:
        self._is_5 = is_5
        self._data, self._at = bytearray(), 0
        self._owed = 0  # bytes of the packet at the front that are not taken here, and were not read yet

    def put(self, data: bytes) -> None:
        """Bytes came."""
        del self._data[: self._at]
        self._at = 0
        self._data += data

    @property
    def pending(self) -> int:
        """Bytes with which something can be done before others come."""
        n = len(self._data) - self._at
        return n if self._owed or self._size() else 0

    def messages(self) -> list[Message]:
        """Take the messages at the front, up to another packet."""
        found = []
        while not self._owed and (size := self._size()):
            message = self._message(size)
            if message is None:
                self._owed = size
            else:
                self._at += size
                found.append(message)
        return found

    def read(self, most: int) -> bytes:
        """Read of the packet at the front what is there of it; nothing where that is a message that can be taken."""
        end = self._at + min(most, self._owed)
        found = bytes(self._data[self._at : end])
        self._at += len(found)
        self._owed -= len(found)
        return found

    def _size(self) -> int:
        """Of the packet at the front, with its header; 0 while that is not whole."""
        size = 0
        for place, byte in enumerate(self._data[self._at + 1 : self._at + _LONGEST_HEADER]):
            size |= (byte & 127) << 7 * place
            if byte < 128:
                return size + place + 2
        return _LONGEST_HEADER if len(self._data) - self._at >= _LONGEST_HEADER else 0  # no length is as long

    def _message(self, size: int) -> Message | None:
        """The packet at the front as a message; None where it is none that is taken here."""
        data, end = self._data, self._at + size
        kind = data[self._at]
        if kind & 0xF0 != _PUBLISH or kind & _QOS > 2 or end > len(data):
            return None
        at = self._at + 2
        try:
            while data[at - 1] > 127:
                at += 1
            topic_end = rest = at + 2 + (data[at] << 8 | data[at + 1])
            topic = data[at + 2 : topic_end].decode()
            number = 0
            if kind & _QOS:
                number = data[rest] << 8 | data[rest + 1]
                rest += 2
            if self._is_5:
                if data[rest] > 127:  # properties that long nobody of ours sends
                    return None
                rest += 1 + data[rest]
        except (UnicodeDecodeError, IndexError):
            return None
        if rest > end or not topic or (kind & _QOS and not number):
            return None
        return Message(topic, bytes(data[rest:end]), bool(kind & _RETAIN), number)
