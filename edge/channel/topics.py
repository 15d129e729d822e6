"""Topic names: ``edge/v1/{fleet}/{device}/{leaf}``.

Promises that what `build` writes `parse` reads, that no identifier can smuggle a slash, a wildcard or a path into a
topic, and that a device needs two access rules only: publish ``.../{device}/up/#``, subscribe ``.../{device}/dn/#`` and
``.../all/dn/#``. Does not know what is inside a message: see `edge.channel.codec`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edge.contract.errors import ChannelError, ConfigError

ROOT = "edge/v1"
ALL = "all"  # pseudo-device: what the coordinator says to the whole fleet

UP_CONN = "up/conn"
UP_BIRTH = "up/birth"
UP_STATE = "up/state"
UP_REQ = "up/req"
UP_TELE = "up/tele"
UP_HIST = "up/hist"
UP_EVENT = "up/event"
UP_REPLY = "up/reply"
DN_DESIRED = "dn/desired"
DN_CMD = "dn/cmd"
DN_HIST = "dn/hist"
DN_META = "dn/meta"
DN_RESTORE = "dn/restore"
DN_CANDIDATE = "dn/candidate"
DN_HERE = "dn/here"

# One level deeper: a retained message of each model of a device with several, and of each coordinator.
_OF_EACH = (UP_STATE, DN_DESIRED, DN_HERE)
_COORDINATORS = "_c"
_FRAMES, _UPLOAD, _UPLOAD_STATUS = "dn/f/", "up/ul/", "dn/ul/"
_ID = re.compile(r"[a-z0-9-]{1,64}")
_LEAF = re.compile(r"(?:up|dn)(?:/[a-z0-9_-]{1,64}){1,3}")
_TOPIC = re.compile(f"{ROOT}/({_ID.pattern})/({_ID.pattern})/({_LEAF.pattern})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A topic taken apart.

    Attributes:
        fleet: Fleet identifier.
        device: Device identifier, or `ALL`.
        leaf: What follows, such as ``up/tele`` or ``dn/f/0123456789abcdef``.
    """

    fleet: str
    device: str
    leaf: str


def check_id(text: str, what: str) -> str:
    """Return an identifier unchanged if it may stand in a topic.

    Args:
        text: The identifier.
        what: What it names, for the message ("device", "fleet").

    Raises:
        ConfigError: It is not 1 to 64 of a-z, 0-9 and dash, or it is the reserved word ``all``.

    >>> check_id("pi-7", "device")
    'pi-7'
    """
    if _ID.fullmatch(text) is None:
        hint = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:64] or f"{what}-1"
        raise ConfigError(f"{what} id: expected 1 to 64 of a-z, 0-9 and dash, got {text[:80]!r}; try {hint!r}")
    if text == ALL:
        raise ConfigError(f"{what} id: {ALL!r} means every device of a fleet; choose another name")
    return text


def build(fleet: str, device: str, leaf: str) -> str:
    """Write a topic.

    Raises:
        ConfigError: `fleet` or `device` is not an identifier.
        ChannelError: `leaf` is not one.

    >>> build("lab", "pi-7", UP_TELE)
    'edge/v1/lab/pi-7/up/tele'
    """
    if _LEAF.fullmatch(leaf) is None:
        raise ChannelError(f"topic leaf: expected up/... or dn/..., got {leaf[:80]!r}; use the constants of topics.py")
    return f"{ROOT}/{check_id(fleet, 'fleet')}/{device if device == ALL else check_id(device, 'device')}/{leaf}"


def parse(topic: str) -> Topic:
    """Read a topic.

    Raises:
        ChannelError: It is not one of ours.
    """
    found = _TOPIC.fullmatch(topic)
    if found is None:
        raise ChannelError(f"topic: expected {ROOT}/fleet/device/up|dn/..., got {topic[:120]!r}; ignore the message")
    fleet, device, leaf = found.groups()
    return Topic(fleet=fleet, device=device, leaf=leaf)


def model_leaf(leaf: str, level: str) -> str:
    """`UP_STATE` or `DN_DESIRED` of one model of several; with the level "" of the only one.

    >>> model_leaf(DN_DESIRED, "voice")
    'dn/desired/voice'
    """
    return f"{leaf}/{level}" if level else leaf


def kind_of(leaf: str) -> str:
    """A leaf without the level of a model or a coordinator.

    >>> kind_of("up/state/voice"), kind_of(UP_TELE)
    ('up/state', 'up/tele')
    """
    return next((each for each in _OF_EACH if leaf.startswith(f"{each}/")), leaf)


def frame_leaf(xfer: str) -> str:
    """Leaf of the download frames of one transfer."""
    return _FRAMES + xfer


def upload_leaf(xfer: str) -> str:
    """Leaf of the upload frames of one transfer."""
    return _UPLOAD + xfer


def upload_status_leaf(xfer: str) -> str:
    """Leaf on which the coordinator says what it has of an upload."""
    return _UPLOAD_STATUS + xfer


def transfer_of(leaf: str) -> str | None:
    """The transfer that a frame, upload or upload-status leaf names; None for every other leaf.

    >>> transfer_of("dn/f/0123456789abcdef")
    '0123456789abcdef'
    """
    start = next((start for start in (_FRAMES, _UPLOAD, _UPLOAD_STATUS) if leaf.startswith(start)), None)
    return None if start is None else leaf[len(start) :]


def device_filters(fleet: str, device: str) -> list[tuple[str, int]]:
    """What a device subscribes to, with the QoS."""
    own, everyone = (f"{ROOT}/{check_id(fleet, 'fleet')}/{name}/dn/#" for name in (check_id(device, "device"), ALL))
    return [(own, 1), (everyone, 1)]


def own_conn(fleet: str, device: str) -> str:
    """Where a device says that it lives. It listens there itself, to know whether it is heard."""
    return build(fleet, device, UP_CONN)


def coordinator_filters(fleet: str) -> list[tuple[str, int]]:
    """What a coordinator subscribes to, with the QoS: what devices say, and what coordinators try on themselves."""
    own = f"{ROOT}/{check_id(fleet, 'fleet')}"
    return [(f"{own}/+/up/#", 1), (f"{own}/{_COORDINATORS}/dn/#", 1)]


def probe_filters(fleet: str) -> list[tuple[str, int]]:
    """What coordinators try on themselves, where what devices say comes by other filters."""
    own = f"{ROOT}/{check_id(fleet, 'fleet')}/{_COORDINATORS}"
    return [(f"{own}/up/#", 1), (f"{own}/dn/#", 1)]


def coordinator_probe(fleet: str, way: Literal["up", "dn"], coordinator: str) -> str:
    """What a coordinator says to itself, to know whether it hears devices (``up``), or is heard by them (``dn``).

    No device can have the name ``_c``.
    """
    own = f"{ROOT}/{check_id(fleet, 'fleet')}/{_COORDINATORS}"
    return f"{own}/{way}/probe/{check_id(coordinator, 'coordinator')}"


def is_probe(topic: str) -> bool:
    """Whether a topic, or a filter, is one by which a coordinator tries its rights."""
    return topic.split("/")[3:4] == [_COORDINATORS]


# What stands for itself, whoever keeps it; and what one coordinator alone answers.
_SHARED = (UP_TELE, UP_EVENT, UP_HIST)
_LED = (UP_CONN, UP_BIRTH, UP_STATE, f"{UP_STATE}/+", UP_REQ, UP_REPLY, f"{_UPLOAD}+")


def shared_leaves(fleet: str) -> list[str]:
    """Filters of what several coordinators take in together."""
    return [f"{ROOT}/{check_id(fleet, 'fleet')}/+/{leaf}" for leaf in _SHARED]


def led_leaves(fleet: str) -> list[str]:
    """Filters of what goes to the coordinator that leads, where several take in."""
    return [f"{ROOT}/{check_id(fleet, 'fleet')}/+/{leaf}" for leaf in _LED]


def shared_filters(fleet: str) -> list[tuple[str, int]]:
    """What several coordinators subscribe to together, each message going to one of them, with the QoS."""
    return [(f"$share/edge-{fleet}/{each}", 1) for each in shared_leaves(fleet)]


def here_topic(fleet: str, coordinator: str) -> str:
    """Where a coordinator says to all devices that it listens."""
    return build(fleet, ALL, f"{DN_HERE}/{check_id(coordinator, 'coordinator')}")


def coordinator_alert_topic(fleet: str, coordinator: str, number: int) -> str:
    """Where a coordinator says what people should know of, an alert each."""
    return f"{ROOT}/{check_id(fleet, 'fleet')}/_c/{check_id(coordinator, 'coordinator')}/alert/{number}"
