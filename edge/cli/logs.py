"""Lines of the log: as text for people, as ``key=value`` or JSON for programs; and not too many of one kind.

The standard library's logging with one handler, see docs/adr/0037. Code of the house logs as any library does; who
wants fields of a line gives ``extra={"fields": {...}}``.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal, get_args

Style = Literal["text", "keys", "json"]
STYLES: tuple[str, ...] = get_args(Style)
# Lines of one kind in one span of time. A kind is a logger, a level, a message without its arguments, and an event.
MOST, SPAN_S = 60, 60.0
_MOST_KINDS = 500
_PLAIN = re.compile(r"[^\s\"=]+")


class Limit(logging.Filter):
    """Lets `MOST` lines of a kind through in `SPAN_S`, and says with the next one how many it did not.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}  # when its span began, and lines since

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class."""
        now_s = self._clock()
        kind = (record.name, record.levelno, f"{record.msg} {_fields(record).get('event', '')}")
        began_s, count = self._kinds.get(kind, (now_s, 0))
        left_out = 0
        if now_s - began_s >= SPAN_S:
            left_out, began_s, count = max(0, count - MOST), now_s, 0
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = began_s, count + 1
        record.left_out = left_out
        return count < MOST


class Lines(logging.Formatter):
    """One line a record, in a style; a traceback follows as text, and is a field of JSON.

    Args:
        style: Of the lines.
    """

    def __init__(self, style: Style) -> None:
        super().__init__("%(asctime)s %(message)s")
        self._lines_are = style

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        left_out = getattr(record, "left_out", 0)
        if self._lines_are == "text":
            more = f" ({left_out} more of these lines were left out)" if left_out else ""
            return super().format(record) + more
        values: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **_fields(record),
        }
        if left_out:
            values["left_out"] = left_out
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._lines_are == "json":
            return json.dumps(values | ({"trace": trace} if trace else {}), ensure_ascii=False, default=str)
        line = " ".join(f"{key}={_shown(value)}" for key, value in values.items())
        return f"{line}\n{trace}" if trace else line


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found = getattr(record, "fields", {})
    return found if isinstance(found, Mapping) else {}


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def configure(style: Style, level: int = logging.INFO, stream: IO[str] | None = None) -> None:
    """Have all lines go to standard error, or to a stream, in a style."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines(style))
    handler.addFilter(Limit())
    logging.basicConfig(level=level, handlers=[handler])
