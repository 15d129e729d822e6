"""A group of commands of which each is imported when it is asked for.

A process that runs for years should not keep the code of all the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click

Maker = Callable[[], click.Command]


def found_in(module: str, name: str) -> Maker:
    """Imports a command."""

    def make() -> click.Command:
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    return make


class LaterGroup(click.Group):
    """See the module. Takes what `click.Group` does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._makers: dict[str, Maker] = {}

    def later(self, name: str, make: Maker) -> None:
        """Add a command of this name that is made when somebody asks for it."""
        self._makers[name] = make

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *self._makers})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, made now if it was not yet."""
        if make := self._makers.pop(cmd_name, None):
            self.add_command(make(), cmd_name)
        return super().get_command(ctx, cmd_name)
