"""Weights into the model that they belong to.

Whether names fit is torch's to say: its own loading runs, with the hooks that know older names. What it finds missing
and is not (tied to a tensor that is there; a counter that only training reads) is left out of its answer.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.load.contents import Network, shown, tree
from converter.load.inert import PickledArray
from converter.load.prefixes import placed_names, several_prefixes
from converter.load.wrapped import Weights, check_tensor, without_averages
from edge.contract.errors import ConfigError, ConversionError, EdgeError
from edge.contract.foreign import foreign

_LISTED = 8
_COUNTER = "num_batches_tracked"
_MISMATCH = re.compile(
    r"size mismatch for (.+?): copying a param with shape torch\.Size\((.*?)\) from checkpoint, "
    r"the shape in current model is torch\.Size\((.*?)\)\."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What the user said about weights that do not fit as they are, see `converter.plan.ModelOptions`."""

    key: str | None = None
    strip: str | None = None
    allow_unexpected: bool = False
    allow_missing: bool = False


def load_into(model: nn.Module, weights: Weights, path: Path, rules: Rules) -> tuple[str, ...]:
    """Put the network that fits, the only one or the only one that does, into the model.

    Returns:
        Notes for the report.

    Raises:
        ConversionError: None fits, or several do; the message lists how, or what there is.
    """
    if len(weights.found) == 1:
        (only,) = weights.found
        return (*weights.notes, *load_weights(model, only.tensors, str(path), rules))
    own = _names(model)
    fitting = [network for network in weights.found if own <= set(placed_names(network.tensors, own, rules.strip)[0])]
    if len(fitting) > 1:
        fitting, _ = without_averages(fitting)
    if len(fitting) != 1 or (fitting[0].is_averaged and _has_part_of(weights.found, own, rules)):
        raise weights.ask(path)
    notes = load_weights(model, fitting[0].tensors, str(path), rules)
    return (f"weights taken from {shown(fitting[0].key)!r} of the file, the only ones that fit", *notes)


def _has_part_of(found: Sequence[Network], own: set[str], rules: Rules) -> bool:
    """Whether a network that is no running mean has weights of the model, though not all: of what is the mean, then?"""
    plain = (network for network in found if not network.is_averaged)
    return any(own & set(placed_names(network.tensors, own, rules.strip)[0]) for network in plain)


def load_weights(
    model: nn.Module, tensors: Mapping[str, Any], what: str, rules: Rules | None = None
) -> tuple[str, ...]:
    """Put weights into the model, without the prefixes that wrappers put before their names.

    Args:
        model: It is changed.
        tensors: By name; values under ``_extra_state`` are the model's own.
        what: The file, for messages.
        rules: What the user allows.

    Returns:
        Notes for the report: what was left out, and what the file did not have.

    Raises:
        ConversionError: They do not fit; the message lists how.
    """
    rules = rules or Rules()
    own = _names(model)
    if rules.strip is None and (several := several_prefixes(tensors, own)):
        raise ConversionError(
            f"the weights of the model stand in {what} more than once: say which with --strip PREFIX, one of "
            f"{', '.join(map(shown, several))}"
        )
    placed, beside = placed_names(tensors, own, rules.strip)
    if rules.strip is not None and not placed:
        raise ConfigError(f"--strip {rules.strip}: no name in {what} begins so; it holds\n{tree(tensors)}")
    values = _values(placed, tensors)
    held = model.state_dict()
    for name, value in values.items():
        if isinstance(held.get(name), torch.Tensor) and not isinstance(value, torch.Tensor):
            raise ConversionError(f"{what}: {shown(placed[name])!r} is {type(value).__name__}, not a tensor")
    missing, unexpected, wrong = _loaded(model, values, what)
    missing = _really_missing(model, missing, values)
    unexpected = _really_unexpected(model, unexpected, values)
    state = model.state_dict(keep_vars=True)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    forgiven = [name for name in missing if rules.allow_missing and name not in parameters]
    missing = [name for name in missing if name not in forgiven]
    ignored = unexpected if rules.allow_unexpected else []
    if missing or wrong or (unexpected and not ignored):
        raise ConversionError(
            _how_they_differ(
                what, missing, [n for n in unexpected if n not in ignored], wrong, state, _wrapper(placed, own)
            )
        )
    _check_tied(state, values, what)
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            raise ConversionError(f"{shown(name)} of the model is on the meta device and got no values")
    notes = []
    if beside:
        notes.append(f"not taken from the file, as they are not under the model's prefix: {_some(beside)}")
    if ignored:
        notes.append(f"in the file and not in the model, left out as allowed: {_some(ignored)}")
    if forgiven:
        notes.append(f"not in the file, as the model makes them, as allowed: {_some(forgiven)}")
    cast = {
        str(value.dtype)[6:]
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and isinstance(state.get(name), torch.Tensor)
        and value.dtype != state[name].dtype
    }  # fmt: skip
    if cast:
        notes.append(f"weights of the type {', '.join(sorted(cast))} in the file, cast to the model's own types")
    return tuple(notes)


def _names(model: nn.Module) -> set[str]:
    with foreign("the names of the model's weights", ConversionError):
        return set(model.state_dict())


def _values(placed: Mapping[str, str], tensors: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Tensors by the model's names, checked, with the versions by which torch's hooks know older files."""
    values: OrderedDict[str, Any] = OrderedDict()
    for name, old in placed.items():
        value = tensors[old]
        if isinstance(value, PickledArray):
            value = value.array
        if isinstance(value, np.ndarray):
            with foreign(f"{shown(old)}, an array of {value.dtype}", ConversionError):
                value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
        if isinstance(value, torch.Tensor):
            check_tensor(old, value)
        values[name] = value
    metadata = getattr(tensors, "_metadata", None)
    if isinstance(metadata, Mapping):
        ends = {new.rpartition(".")[0]: old.rpartition(".")[0] for new, old in placed.items()}
        found = {new: metadata[old] for new, old in ends.items() if isinstance(metadata.get(old), Mapping)}
        values._metadata = {new: dict(value) for new, value in found.items()}  # type: ignore[attr-defined]
    return values


def _loaded(
    model: nn.Module, values: OrderedDict[str, Any], what: str
) -> tuple[list[str], list[str], dict[str, tuple[str, str]]]:
    """What torch's own loading finds missing, unexpected, and of another shape (in the file, in the model)."""
    wrong: dict[str, tuple[str, str]] = {}
    # A model that was made without memory takes the tensors themselves.
    assign = any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    failed = f"the weights in {what} cannot be put into the model"
    for _ in range(2):
        rest = OrderedDict((name, value) for name, value in values.items() if name not in wrong)
        if (metadata := getattr(values, "_metadata", None)) is not None:
            rest._metadata = metadata  # type: ignore[attr-defined]
        try:
            with foreign(failed, ConversionError):
                found = model.load_state_dict(rest, strict=False, **({"assign": True} if assign else {}))
            missing = [name for name in found.missing_keys if name not in wrong]
            return missing, list(found.unexpected_keys), wrong
        except EdgeError as exc:
            mismatches = {
                name: (f"({file.strip('[]')})", f"({own.strip('[]')})")
                for name, file, own in _MISMATCH.findall(str(exc.__cause__))
            }
            if not mismatches or wrong:
                raise
            wrong = mismatches
    return [], [], wrong


def _really_missing(model: nn.Module, missing: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Without those that share their memory with one that came, and without counters that only training reads."""
    state = model.state_dict(keep_vars=True)
    came = {_memory(state[name]) for name in values if name in state} - {None}
    return [
        name for name in missing
        if name.rpartition(".")[2] != _COUNTER and (name not in state or _memory(state[name]) not in came)
    ]  # fmt: skip


def _memory(tensor: object) -> tuple[object, ...] | None:
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _really_unexpected(model: nn.Module, unexpected: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Without buffers that the model makes itself and that are the same in the file, from an older version of it."""
    own = dict(model.named_buffers())
    return [
        name for name in unexpected
        if not (
            name in own
            and isinstance(values.get(name), torch.Tensor)
            and own[name].shape == values[name].shape
            and torch.equal(own[name].to(values[name].dtype), values[name])
        )
    ]  # fmt: skip


def _check_tied(state: Mapping[str, Any], values: Mapping[str, Any], what: str) -> None:
    """Raise ConversionError where two names are one tensor in the model and have two values in the file."""
    first: dict[tuple[object, ...], str] = {}
    for name in values:
        memory = _memory(state.get(name))
        if memory is None:
            continue
        other = first.setdefault(memory, name)
        if other != name and not torch.equal(values[name], values[other]):
            raise ConversionError(
                f"{shown(other)} and {shown(name)} are one tensor in the model, but {what} has two that differ: build "
                f"the model as it was trained"
            )


def _how_they_differ(
    what: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    wrong: Mapping[str, tuple[str, str]],
    state: Mapping[str, Any],
    wrapper: str,
) -> str:
    lines = [f"the weights in {what} do not fit the model:"]
    for name in missing[:_LISTED]:
        near = get_close_matches(name, unexpected, n=1)
        lines.append(f"  missing    {shown(name)}" + (f"   (the file has {shown(near[0])})" if near else ""))
    for name in unexpected[:_LISTED]:
        near = get_close_matches(name, missing, n=1)
        lines.append(f"  unexpected {shown(name)}" + (f"   (the model has {shown(near[0])})" if near else ""))
    lines += [
        f"  {shown(name)}: {file} in the file, {own} in the model"
        for name, (file, own) in list(wrong.items())[:_LISTED]
    ]
    left = sum(max(0, len(names) - _LISTED) for names in (missing, unexpected, wrong))
    lines += [f"  ... and {left} more"] if left else []
    if unexpected and not missing and not wrong:
        lines.append("If the model does not need them: --allow-unexpected leaves them out, and the report lists them")
        lines += [f"What stands under {shown(wrapper)} alone is the model: --strip {wrapper}"] if wrapper else []
    elif missing and not unexpected and not wrong and not any(isinstance(state.get(n), nn.Parameter) for n in missing):
        lines.append("These are no parameters: --allow-missing takes what the model itself makes of them")
    return "\n".join(lines)


def _wrapper(placed: Mapping[str, str], own: set[str]) -> str:
    """What a wrapper has put before all names of the model, by their names in the file; "" for nothing."""
    tops = {file.partition(".")[0] for name, file in placed.items() if name in own}
    return next(iter(tops)) if len(tops) == 1 and not tops & {name.partition(".")[0] for name in own} else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(shown, names[:_LISTED])) + more
