"""What others chose, on a person's terminal: no control characters, no colours, no directions, no lines of its own."""

from __future__ import annotations

import re

import click

from edge.contract.errors import ConfigError, harmless


def shown(text: str, limit: int = 64) -> str:
    """A text of others as one line; what cannot be printed is made visible.

    Give it to rich as `rich.text.Text`, never as a string, which may hold markup.

    >>> shown("disk [/bad]" + chr(10) + "full")
    'disk [/bad] full'
    """
    line = harmless(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


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
