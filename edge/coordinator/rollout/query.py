"""Which devices are meant, as people write it: ``profile = "raspberry-pi-4" and tag.site ~ "north-*"``.

::

    query = and {"or" and}        and = not {"and" not}       not = ["not"] (test | "(" query ")")
    test  = field op value | field "in" "(" value {"," value} ")"
    op    = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"        value = "text" | number [min | h | d] | true | false

``heard < 7 d`` means heard within a week. A test of a tag that a device does not have is false, also with ``!=``; and
of ``online`` where that is not known of a device. Where it is known of none it is no answer, but `NotKnownError`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from edge.contract.documents import did_you_mean
from edge.contract.errors import ConfigError, RolloutError

MAX_QUERY_BYTES = 2048
_MAX_DEPTH = 32
_TEXTS = ("id", "profile", "bundle", "backbone", "head", "agent", "state")
_NUMBERS = ("release", "samples")
_TAG = "tag."
FIELDS = (*_TEXTS, *_NUMBERS, "online", "heard", "tag.NAME")
_UNITS = {"min": 60.0, "h": 3600.0, "d": 86_400.0}
_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\["\\])*")|(?P<number>-?\d+(?:\.\d+)?)(?:\s*(?P<unit>min|h|d)\b)?'
    r"|(?P<sign><=|>=|!=|[=<>~(),])|(?P<word>[A-Za-z_][\w.-]*))"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """What a query can ask of a model on a device.

    Attributes:
        id: Name of the device.
        profile: Name of its profile.
        bundle: Digest of the bundle that it runs.
        backbone: Of that bundle.
        head: Digest of its head.
        release: Counter of the release that it settled last.
        agent: Version of its agent.
        state: Of its slot.
        online: Whether it is there; None where that is not known.
        deaf: Why nobody can know that of any device now; "" where the coordinator hears them.
        heard_s: Seconds since it was heard.
        samples: Labelled samples that it has learned.
        tags: What an operator calls it.
    """

    id: str
    profile: str = ""
    bundle: str = ""
    backbone: str = ""
    head: str = ""
    release: int = 0
    agent: str = ""
    state: str = ""
    online: bool | None = False
    deaf: str = ""
    heard_s: float = 0.0
    samples: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)


Query = Callable[[DeviceFacts], bool]


class NotKnownError(RolloutError):
    """What a query asks is not known now."""


def parse(text: str) -> Query:
    """A test of devices; of "" one that all pass.

    Raises:
        ConfigError: The text is no query.
    """
    if len(text.encode(errors="replace")) > MAX_QUERY_BYTES:
        raise ConfigError(f"a query has at most {MAX_QUERY_BYTES} bytes")
    if not text.strip():
        return lambda _: True
    return _Parser(text).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of the text; `value` is what it means."""

    kind: str
    value: Any
    at: int


class _Parser:
    """Recursive descent, one method for each line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text, self._next = text, 0
        self._tokens: list[_Token] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                raise ConfigError(f"expected a field, a value or an operator at {text[at : at + 20].strip()!r}")
            self._tokens.append(_token(found, at))
            at = found.end()

    def whole(self) -> Query:
        found = self._either(0)
        if (rest := self._peek()) is not None:
            raise self._wrong(rest, 'the end, "and" or "or"')
        return found

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _wrong(self, token: _Token | None, expected: str) -> ConfigError:
        came = "it ends" if token is None else f"got {self._text[token.at : token.at + 20].strip()!r}"
        return ConfigError(f"expected {expected}, {came}")

    def _take(self, expected: str, holds: Callable[[_Token], bool]) -> _Token:
        token = self._peek()
        if token is None or not holds(token):
            raise self._wrong(token, expected)
        self._next += 1
        return token

    def _takes(self, kind: str, *values: str) -> bool:
        token = self._peek()
        if token is not None and token.kind == kind and token.value in values:
            self._next += 1
            return True
        return False

    def _either(self, depth: int) -> Query:
        parts = [self._both(depth)]
        while self._takes("word", "or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else lambda facts: any(part(facts) for part in parts)

    def _both(self, depth: int) -> Query:
        parts = [self._negated(depth)]
        while self._takes("word", "and"):
            parts.append(self._negated(depth))
        return parts[0] if len(parts) == 1 else lambda facts: all(part(facts) for part in parts)

    def _negated(self, depth: int) -> Query:
        is_not = self._takes("word", "not")
        if self._takes("sign", "("):
            if depth >= _MAX_DEPTH:
                raise ConfigError(f"at most {_MAX_DEPTH} parentheses inside one another")
            found = self._either(depth + 1)
            self._take('")"', lambda token: token.kind == "sign" and token.value == ")")
        else:
            found = self._test()
        return (lambda facts: not found(facts)) if is_not else found

    def _test(self) -> Query:
        token = self._take(f"a field ({', '.join(FIELDS)})", lambda token: token.kind == "word")
        name = token.value
        is_tag = name.startswith(_TAG) and len(name) > len(_TAG)
        if not is_tag and name not in FIELDS[:-1]:
            raise ConfigError(f"there is no field {name!r}{did_you_mean(name, FIELDS)}; there are {', '.join(FIELDS)}")
        kind = "text" if is_tag or name in _TEXTS else name if name in ("online", "heard") else "number"
        read = _reader(name)
        if self._takes("word", "in"):
            self._take('"("', lambda token: token.kind == "sign" and token.value == "(")
            values = [self._value(name, kind)]
            while self._takes("sign", ","):
                values.append(self._value(name, kind))
            self._take('")" or ","', lambda token: token.kind == "sign" and token.value == ")")
            return lambda facts: (value := read(facts)) is not None and value in values
        signs = {"text": ("=", "!=", "~"), "online": ("=", "!=")}.get(kind, tuple(_COMPARE))
        sign = self._take(
            f"one of {' '.join(signs)} or in after {name}", lambda token: token.kind == "sign" and token.value in signs
        ).value
        wanted = self._value(name, kind)
        if sign == "~":
            return lambda facts: (value := read(facts)) is not None and fnmatchcase(value, wanted)
        compare = _COMPARE[sign]
        return lambda facts: (value := read(facts)) is not None and compare(value, wanted)

    def _value(self, name: str, kind: str) -> Any:
        expected = {
            "text": 'a text in "..."', "online": "true or false", "heard": 'a number and a unit, such as "7 d"',
            "number": "a number",
        }[kind]  # fmt: skip
        wanted = {"text": "text", "online": "truth", "heard": "duration", "number": "number"}[kind]
        return self._take(f"{expected} for {name}", lambda token: token.kind == wanted).value


def _token(found: re.Match[str], at: int) -> _Token:
    if (text := found["text"]) is not None:
        return _Token("text", re.sub(r"\\(.)", r"\1", text[1:-1]), at)
    if (number := found["number"]) is not None:
        unit = found["unit"]
        return _Token("duration" if unit else "number", float(number) * _UNITS.get(unit, 1.0), at)
    if (word := found["word"]) in ("true", "false"):
        return _Token("truth", word == "true", at)
    return _Token("word", word, at) if word is not None else _Token("sign", found["sign"], at)


def _reader(name: str) -> Callable[[DeviceFacts], Any]:
    """What a field is of a device; None for a tag that it does not have."""
    if name.startswith(_TAG):
        key = name.removeprefix(_TAG)
        return lambda facts: facts.tags.get(key)
    if name == "online":
        return _online
    attribute = "heard_s" if name == "heard" else name
    return operator.attrgetter(attribute)


def _online(facts: DeviceFacts) -> bool | None:
    if facts.online is None and facts.deaf:
        raise NotKnownError(
            f"the query asks which devices are online, and that is not known: {facts.deaf}; ask again when there is a "
            f"line, or by `heard`, such as heard < 5 min"
        )
    return facts.online
