"""Names of weights without what wrappers put before and between them, as the model has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converter.load.contents import Network

_MAX_PREFIX = 4
# What torch puts into names where it wraps a module; DataParallel's `module` only where the model has no such part.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")


def placed_names(tensors: Mapping[str, Any], own: set[str], strip: str | None) -> tuple[dict[str, str], list[str]]:
    """Names in the model by those in the file, and the names that have no place in it.

    The prefix, if any, is the one under which most of the model's names stand. Where the user says it, it is that.
    """
    plain = _without_wrappers(tensors, own)
    if strip is not None:
        prefix = strip if strip.endswith(".") else f"{strip}."
        if not any(name.startswith(prefix) for name in plain):
            plain = {name: name for name in tensors}
        return _under(plain, prefix)
    tops = {name.partition(".")[0] for name in own}

    def score(prefix: str) -> tuple[int, int, bool, int]:
        inside = [name.removeprefix(prefix) for name in plain if name.startswith(prefix)]
        near = sum(name.partition(".")[0] in tops for name in inside)
        averaged = Network(path=tuple(prefix.split(".")), tensors={}).is_averaged
        return sum(name in own for name in inside), near, not averaged, -len(prefix)

    return _under(plain, max(_prefixes(plain), key=score))


def _without_wrappers(tensors: Mapping[str, Any], own: set[str]) -> dict[str, str]:
    parts = {part for name in own for part in name.split(".")}
    wrappers = {part for part in _WRAPPERS if part not in parts}
    plain = {".".join(part for part in name.split(".") if part not in wrappers): name for name in tensors}
    return plain if len(plain) == len(tensors) else {name: name for name in tensors}


def _prefixes(names: Iterable[str]) -> list[str]:
    found = {""}
    for name in names:
        steps = name.split(".")[:-1][:_MAX_PREFIX]
        found |= {".".join(steps[: i + 1]) + "." for i in range(len(steps))}
    return sorted(found)


def several_prefixes(tensors: Mapping[str, Any], own: set[str]) -> list[str]:
    """Prefixes under which all of the model's names stand, where there are several and none is a running mean."""
    plain = _without_wrappers(tensors, own)
    found = [prefix for prefix in _prefixes(plain) if own <= set(_under(plain, prefix)[0])]
    found = [p for p in found if not Network(path=tuple(p.split(".")), tensors={}).is_averaged]
    return found if len(found) > 1 and "" not in found else []


def _under(plain: Mapping[str, str], prefix: str) -> tuple[dict[str, str], list[str]]:
    placed = {name.removeprefix(prefix): old for name, old in plain.items() if name.startswith(prefix)}
    return placed, [old for name, old in plain.items() if not name.startswith(prefix)]
