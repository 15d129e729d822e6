"""What others chose, on a person's terminal: no control characters, no colours, no directions, no lines of its own."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import click

from edge.channel.topics import check_id
from edge.contract.errors import ConfigError, harmless

# Of a name in an address.
_MOST_CHARS = 200


def shown(text: str, limit: int = 64) -> str:
    """A text of others as one line; what cannot be printed is made visible.

    Give it to rich as `rich.text.Text`, never as a string, which may hold markup.

    >>> shown("disk [/bad]" + chr(10) + "full")
    'disk [/bad] full'
    """
    line = harmless(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def read_whole(path: Path, most: int, what: str) -> bytes:
    """All that is in a file that somebody named, which may be a link, a FIFO or a device.

    Args:
        path: It.
        most: So many bytes at most; no more than one beyond is read.
        what: It should be, for people.

    Raises:
        ConfigError: It cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > most:
        raise ConfigError(f"{path} has more than {most} bytes: {what} has at most that")
    return data


def device_path(name: str, *more: str) -> str:
    """The address of a device, or of something of it, at the coordinator.

    Raises:
        ConfigError: No device can have this name.

    >>> device_path("cam-1", "checkpoints")
    '/api/v1/devices/cam-1/checkpoints'
    """
    return under("/api/v1/devices", check_id(name, "device"), *more)


def under(address: str, *names: str) -> str:
    """An address with names behind it, each as one step of it, whatever is in them.

    Raises:
        ConfigError: It cannot be one step.

    >>> under("/api/v1/metrics", "cam-1", "lat ms")
    '/api/v1/metrics/cam-1/lat%20ms'
    """
    for name in names:
        if not 0 < len(name) <= _MOST_CHARS or name in (".", "..") or "/" in name or not name.isprintable():
            raise ConfigError(
                f"{shown(name, 80)!r} names nothing: expected 1 to {_MOST_CHARS} characters that can be shown, and no /"
            )
    return "/".join([address, *(quote(name, safe="") for name in names)])


def say(text: str) -> None:
    """Print a line in which others have a word."""
    click.echo(harmless(text))


UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def seconds(text: str, option: str) -> float:
    """A span of time, such as ``90min`` or ``7d``, in seconds.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:[.][0-9]{1,9})?) ?(s|min|h|d)", text)
    if found is None:
        raise ConfigError(f"{option} {text!r:.40}: expected a number and s, min, h or d, such as 90min")
    return float(found[1]) * UNITS_S[found[2]]


def many(n: int, what: str) -> str:
    """So many of something.

    >>> many(1, "sample"), many(2, "sample")
    ('1 sample', '2 samples')
    """
    return f"{n} {what}" + "s" * (n != 1)
