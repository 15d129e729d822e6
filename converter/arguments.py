"""What is typed for an option of ``edge-convert``, as the plan has it; what cannot be meant is refused by example."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import click

from converter.plan import KINDS, Constant, InputOption
from edge.contract.tensorspec import BATCH, DTYPES

_AXIS = re.compile(r"([A-Za-z_]\w{0,62})(?:@(0|[1-9]\d{0,8}))?(?:%([1-9]\d{0,8}))?", re.ASCII)


def only_input(_context: click.Context, _parameter: click.Parameter, value: str | None) -> InputOption | None:
    """Sizes of the only input, without the batch axis."""
    if value is None:
        return None
    parts = [part.strip() for part in value.replace("x", ",").split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**31 for part in parts):
        raise click.BadParameter(f"{value!r}: expected sizes without the batch axis, e.g. 3,224,224")
    return InputOption(name="", shape=(BATCH, *map(int, parts)))


def inputs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[InputOption, ...]:
    """Axes of inputs."""
    return tuple(one_input(value) for value in values)


def one_input(value: str) -> InputOption:
    """``NAME=AXES[:TYPE]``."""
    name, equals, rest = value.partition("=")
    axes, _, dtype = rest.partition(":")
    if not name or not equals:
        raise click.BadParameter(f"{value!r}: expected NAME=AXES[:TYPE], e.g. tokens={BATCH},128:int64")
    if dtype and dtype not in DTYPES:
        raise click.BadParameter(f"{value!r}: the type {dtype!r} is not one of {', '.join(DTYPES)}")
    shape: list[int | str] = []
    sizes: dict[str, int] = {}
    multiples: dict[str, int] = {}
    for axis in (part.strip() for part in axes.split(",") if part.strip()):
        match = _AXIS.fullmatch(axis)
        if axis.isascii() and axis.isdigit() and 0 < int(axis) < 2**31:
            shape.append(int(axis))
        elif match:
            shape.append(match[1])
            if match[2]:
                sizes[match[1]] = int(match[2])
            if match[3]:
                multiples[match[1]] = int(match[3])
            if match[2] and match[3] and int(match[2]) % int(match[3]):
                raise click.BadParameter(f"{value!r}: {match[2]} is no multiple of {match[3]}")
        else:
            raise click.BadParameter(
                f"{value!r}: the axis {axis!r} is neither a size, nor {BATCH}, nor NAME[@SIZE][%MULTIPLE], a free axis "
                f"to try at SIZE, whose sizes are multiples of MULTIPLE"
            )
    return InputOption(name=name, shape=tuple(shape), dtype=dtype or None, sizes=sizes, multiples=multiples)


def states(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...] | None:
    """Pairs of states; none of them for ``none``; None where nothing was said."""
    if not values:
        return None
    if values == ("none",):
        return ()
    pairs = []
    for value in values:
        name, equals, output = value.partition("=")
        if not name or not equals or not output:
            raise click.BadParameter(f"{value!r}: expected INPUT=OUTPUT, e.g. state=stateN; or none, alone")
        pairs.append((name, output))
    return tuple(pairs)


def outputs(
    _context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Path | None, dict[str, str]]:
    """Where to write, and what outputs are: a value whose text after the last ``=`` is a kind says the latter."""
    paths, kinds = [], {}
    for value in values:
        name, equals, kind = value.rpartition("=")
        if equals and name and kind in KINDS:
            kinds[name] = kind
        else:
            paths.append(Path(value))
    if len(paths) > 1:
        raise click.BadParameter(
            f"{' and '.join(map(str, paths))}: expected one path; NAME=KIND knows the kinds {', '.join(KINDS)}",
            param=parameter,
        )
    return (paths[0] if paths else None), kinds


def constants(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Constant]:
    """Inputs that are always the same, by name."""
    found: dict[str, Constant] = {}
    for value in values:
        name, equals, text = value.partition("=")
        rest, colon, dtype = text.rpartition(":")
        if not colon or dtype not in DTYPES:
            rest, dtype = text, ""
        if not name or not equals or not rest:
            raise click.BadParameter(f"{value!r}: expected NAME=VALUE[:TYPE], e.g. rate=16000")
        if name in found:
            raise click.BadParameter(f"{name} has two values, {found[name].value!r} and {rest}: give one")
        found[name] = Constant(value=_literal(rest), dtype=dtype or None)
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval documents
        return text


def arguments(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments of the function that makes the model."""
    arguments = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{value!r}: expected key=value")
        arguments[key] = _literal(text)
    return arguments
