"""What `--help` of each command says."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from edge.cli.agent import agent
from edge.cli.bundle import bundle
from edge.cli.coordinator import coordinator
from edge.cli.fleet import fleet


def pages(command: click.Command, parent: click.Context | None = None) -> Iterator[str]:
    settings = dict(command.context_settings)
    context = click.Context(command, parent, command.name, **settings)
    yield command.get_help(context)
    for below in getattr(command, "commands", {}).values():
        yield from pages(below, context)


@pytest.mark.parametrize("command", [agent, bundle, coordinator, fleet], ids=lambda each: each.name)
def test_a_default_is_said_once_and_none_is_said_to_be_an_empty_text(command: click.Command) -> None:
    for text in pages(command):
        said = " ".join(text.split())
        assert '[default: ""' not in said, said[:80]
        assert "] [default:" not in said, said[:80]
