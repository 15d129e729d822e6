"""What others chose, on a person's terminal: no control characters, no colours, no directions, no lines of its own."""

from __future__ import annotations

import click

from edge.contract.errors import harmless


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
