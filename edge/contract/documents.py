"""Documents as frozen dataclasses: one decoder for manifests, profiles and messages, by the types of their fields.

A field is bool, int, float, str, Any, a Literal, another dataclass, ``tuple[T, ...]``, ``Mapping[str, T]`` or
``T | None``; ``Annotated[T, Rule(...)]`` says more about its values. Whole numbers do for floats, true and false are no
numbers. A field with a default may be missing. All faults of a document are found and told together.

What a class does not know is a fault with a suggestion in files that people write, and is kept where machines talk: in
the class's field `extra`, where it has one. `STRICT` refuses it there, too: for objects in which it changes the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

STRICT = object()
_EXTRA = "extra"
# What is done with fields that are not known.
_KEEP, _REFUSE, _SUGGEST = "keep", "refuse", "suggest"
_LARGEST = 2**63

_T = TypeVar("_T")
# Takes a value, its name for messages and the list of faults; returns what it was read as, or anything after a fault.
_Reader = Callable[[Any, str, list[str]], Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """What the values of a field must be beside their type; `expected` completes "must be ..."."""

    holds: Callable[[Any], bool]
    expected: str


def at_least(low: float) -> Rule:
    """Not below a number."""
    return Rule(lambda value: bool(value >= low), f"{low} or more")


def between(low: float, high: float) -> Rule:
    """Both ends included."""
    return Rule(lambda value: bool(low <= value <= high), f"from {low} to {high}")  # False for nan


class DocumentError(ValueError):
    """A document is not what it should be.

    Attributes:
        faults: One sentence each.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


def decode(cls: type[_T], value: object, label: str = "", *, strict: bool = False) -> _T:
    """Read a dataclass out of what JSON or TOML gave.

    Args:
        cls: The dataclass; what its ``__post_init__`` raises as ValueError is a fault, too.
        value: The document.
        label: Its name for messages, "" for the document itself.
        strict: Fields that are not known are faults.

    Raises:
        DocumentError: It has faults; all of them.
    """
    faults: list[str] = []
    found = _object(cls, _SUGGEST if strict else _KEEP, value, label, faults)
    if faults:
        raise DocumentError(faults)
    assert isinstance(found, cls)
    return found


def encode(document: Any, *, defaults: bool = True) -> dict[str, Any]:
    """What `decode` reads, with the fields that were not known.

    Args:
        document: A dataclass.
        defaults: Write fields that have their default value; those of objects inside are always written.
    """
    left_out = {} if defaults else {item.name: item for item in dataclasses.fields(document)}
    values = {item.name: getattr(document, item.name) for item in dataclasses.fields(document)}
    known = {
        name: _plain(value)
        for name, value in values.items()
        if name != _EXTRA and not (name in left_out and value == _default(left_out[name]))
    }
    return {**values.get(_EXTRA, {}), **known}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _near(word: str, known: Iterable[str]) -> list[str]:
    """The nearest known word, if one is near."""
    from difflib import get_close_matches  # here: devices seldom need it

    return get_close_matches(word, known, n=1)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message that names the nearest known word; empty when none is near.

    >>> did_you_mean("raspbery-pi-4", ["raspberry-pi-4", "jetson-orin-nano"])
    "; did you mean 'raspberry-pi-4'?"
    """
    near = _near(word, known)
    return f"; did you mean {near[0]!r}?" if near else ""


@cache
def _fields(cls: Any, unknown: str) -> tuple[dict[str, _Reader], frozenset[str]]:
    """Readers by field, and the fields that must be there."""
    hints = get_type_hints(cls, include_extras=True)
    items = [item for item in dataclasses.fields(cls) if item.name != _EXTRA]
    needed = frozenset(item.name for item in items if _default(item) is dataclasses.MISSING)
    return {item.name: _reader(hints[item.name], unknown) for item in items}, needed


def _object(cls: Any, unknown: str, value: Any, label: str, faults: list[str]) -> Any:
    """An object of the dataclass, or None after noting faults; reads every field before it gives up."""
    if not isinstance(value, dict):
        kind = f"a table [{label}]" if unknown == _SUGGEST and label else "an object"
        faults.append(f"{label or 'it'} must be {kind}, got {_named(value)}")
        return None
    before = len(faults)
    prefix = f"{label}." if label else ""
    readers, needed = _fields(cls, unknown)
    others = {str(key): item for key, item in value.items() if key not in readers}
    meant: set[str] = set()
    for key in () if unknown == _KEEP else others:
        near = _near(key, readers.keys() - value.keys())
        meant.update(near)  # the misspelt key is one fault, not two
        advice = did_you_mean(key, near or readers) if unknown == _SUGGEST else ": update edgeloop"
        faults.append(f"{prefix}{key[:60]} is not known{advice}")
    faults += [f"{prefix}{name} is missing" for name in sorted(needed - value.keys() - meant)]
    values = {name: read(value[name], prefix + name, faults) for name, read in readers.items() if name in value}
    if len(faults) > before:
        return None
    if unknown == _KEEP and _EXTRA in cls.__dataclass_fields__:
        values[_EXTRA] = others
    try:
        return cls(**values)
    except ValueError as exc:
        faults.append(f"{label}: {exc}" if label else str(exc))
        return None


def _reader(hint: Any, unknown: str) -> _Reader:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        unknown = _REFUSE if unknown == _KEEP and STRICT in arguments else unknown
        rules = tuple(rule for rule in arguments[1:] if isinstance(rule, Rule))
        return _ruled(_reader(arguments[0], unknown), rules)
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, UnionType):
        return _either([_reader(kind, unknown) for kind in arguments], arguments)
    if origin is tuple:
        repeated = arguments[-1] is Ellipsis
        readers = [_reader(kind, unknown) for kind in arguments if kind is not Ellipsis]
        return _list(readers, None if repeated else len(readers))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(None if arguments[1] is Any else _reader(arguments[1], unknown))
    if dataclasses.is_dataclass(hint):
        return lambda value, label, faults: _object(hint, unknown, value, label, faults)
    return _SCALARS[hint]


def _scalar(holds: Callable[[Any], bool], expected: str, made: Callable[[Any], Any] = lambda v: v) -> _Reader:
    def read(value: Any, label: str, faults: list[str]) -> Any:
        if not holds(value):
            faults.append(f"{label} must be {expected}, got {_named(value)}")
            return None
        return made(value)

    return read


def _is_number(value: Any) -> bool:  # `type`, because bool is a subclass of int
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST)


_SCALARS: dict[Any, _Reader] = {
    bool: _scalar(lambda value: isinstance(value, bool), "true or false"),
    int: _scalar(lambda value: type(value) is int, "an integer"),
    float: _scalar(_is_number, "a number", float),
    str: _scalar(lambda value: isinstance(value, str), "a text"),
    type(None): _scalar(lambda value: value is None, "nothing"),
    Any: _scalar(lambda _: True, "anything"),
}


def _ruled(base: _Reader, rules: tuple[Rule, ...]) -> _Reader:
    def read(value: Any, label: str, faults: list[str]) -> Any:
        before = len(faults)
        found = base(value, label, faults)
        if len(faults) == before:
            faults += [f"{label} must be {r.expected}, got {value!r:.60}" for r in rules if not r.holds(found)][:1]
        return found

    return read


def _choice(choices: tuple[str, ...]) -> _Reader:
    def read(value: Any, label: str, faults: list[str]) -> Any:
        if not isinstance(value, str) or value not in choices:
            hint = did_you_mean(value, choices) if isinstance(value, str) else ""
            faults.append(f"{label} must be {' or '.join(map(repr, choices))}, got {value!r:.60}{hint}")
        return value

    return read


def _either(readers: list[_Reader], kinds: tuple[Any, ...]) -> _Reader:
    """The first that takes the value; the faults of the first, where none does and it is not the nothing of another."""

    def read(value: Any, label: str, faults: list[str]) -> Any:
        told: list[list[str]] = []
        for one in readers:
            tried: list[str] = []
            found = one(value, label, tried)
            if not tried:
                return found
            told.append(tried)
        if type(None) in kinds or len(readers) == 1:
            faults += told[0]
        else:
            faults.append(f"{label} must be {' or '.join(map(_expected, kinds))}, got {_named(value)}")
        return None

    return read


def _expected(kind: Any) -> str:
    """A type in words: those of its rule, else its name."""
    rules = [rule.expected for rule in get_args(kind)[1:] if isinstance(rule, Rule)]
    return " and ".join(rules) if rules else str(kind.__name__)


def _list(readers: list[_Reader], length: int | None) -> _Reader:
    """All items alike, or as many as there are readers."""

    def read(value: Any, label: str, faults: list[str]) -> Any:
        if not isinstance(value, list) or length not in (None, len(value)):
            of = "" if length is None else f" of {length}"
            faults.append(f"{label} must be a list{of}, got {_named(value)}")
            return None
        each = readers * len(value) if length is None else readers
        return tuple(one(item, f"{label}[{i}]", faults) for i, (one, item) in enumerate(zip(each, value, strict=True)))

    return read


def _mapping(of: _Reader | None) -> _Reader:
    def read(value: Any, label: str, faults: list[str]) -> Any:
        if not isinstance(value, dict):
            faults.append(f"{label} must be an object, got {_named(value)}")
            return None
        if of is None:
            return value
        return {key: of(item, f"{label}.{str(key)[:60]}", faults) for key, item in value.items()}

    return read


def _named(value: object) -> str:
    return f"{type(value).__name__} {value!r:.40}"
