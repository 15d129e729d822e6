"""Architectures: the user's own class or function that makes the model which a state_dict belongs to."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from converter.program.user_code import folder_of, importing_from, named_object
from edge.contract.errors import ConfigError
from edge.contract.foreign import foreign

_MAX_FILES = 200
_MAX_BYTES = 1 << 20


def build_model(arch: str, arguments: Mapping[str, Any], known: Mapping[str, Any]) -> nn.Module:
    """Make the model that ``FILE.py:NAME`` or ``package.module:NAME`` names. This runs the user's own code.

    Args:
        arch: What the user typed.
        arguments: Keyword arguments that the user gave.
        known: More that the checkpoint holds; those that the architecture takes are passed on.

    Raises:
        ConfigError: There is no such thing, or it does not give a module.
    """
    place, _, name = arch.rpartition(":")
    factory = named_object(arch, "--arch")
    accepted = _accepted(factory)
    given = {key: value for key, value in known.items() if key in accepted} | dict(arguments)
    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
    takes = f"; it takes {', '.join(accepted)}: give --arch-arg key=value" if accepted else ""
    with importing_from(folder_of(place)), foreign(f"--arch: {call} failed", ConfigError, takes):
        model = factory(**given)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--arch: {name} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def suggestions(weights: Iterable[str], folders: Iterable[Path]) -> list[str]:
    """``FILE.py:CLASS`` of classes nearby that could own these weights, the likeliest first. Nothing is run.

    Args:
        weights: Names in the state_dict.
        folders: Where to look for Python files.
    """
    tops = {name.partition(".")[0] for name in weights}
    found: dict[str, float] = {}
    for file in sorted({file.resolve() for folder in folders for file in folder.glob("*.py")})[:_MAX_FILES]:
        try:
            if file.stat().st_size > _MAX_BYTES:
                continue
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                own = {
                    target.attr
                    for item in ast.walk(node)
                    if isinstance(item, ast.Assign | ast.AnnAssign)
                    for target in (item.targets if isinstance(item, ast.Assign) else [item.target])
                    if isinstance(target, ast.Attribute)
                }
                share = len(tops & own) / len(tops)
                if share > 0.5:
                    near = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
                    found[f"{near}:{node.name}"] = share
    return sorted(found, key=lambda name: -found[name])


def _accepted(factory: Any) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
