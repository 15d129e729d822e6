"""Weights: a state_dict, out of what training loops wrap around it, into the model that it belongs to.

Whether names fit is torch's to say: its own loading runs, with the hooks that know older names. What it finds missing
and is not (tied to a tensor that is there; a counter that only training reads) is left out of its answer.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.load.architecture import suggestions
from converter.load.contents import Network, found_at, is_tensor, networks, shown, stand_ins, tree
from converter.load.files import MOST_BYTES
from converter.load.inert import PickledArray, StandIn
from edge.contract.errors import ConfigError, ConversionError, EdgeError
from edge.contract.foreign import foreign

_ROWS = 24
_LISTED = 8
_MAX_PREFIX = 4
# What torch puts into names where it wraps a module; DataParallel's `module` only where the model has no such part.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module")
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


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        found: The networks that it may be about, the likeliest first.
        document: All of it, to show when the choice is unclear.
        hyper_parameters: What a Lightning checkpoint says that the model was made with.
        notes: For the report.
    """

    found: tuple[Network, ...]
    document: Any
    hyper_parameters: Mapping[str, Any]
    notes: tuple[str, ...]

    def ask(self, path: Path) -> ConversionError:
        """What to say when it is unclear which network is meant."""
        return several_networks(path, [network.key for network in self.found], self.document)


def several_networks(path: Path, keys: Iterable[str], document: Any) -> ConversionError:
    """What to say where a file holds several networks, or whole models, under these keys."""
    listed = ", ".join(map(shown, keys))
    return ConversionError(
        f"{path} holds several networks: say which with --weights KEY, one of {listed}\n{tree(document)}"
    )


def unwrapped(document: Any, what: str, key: str | None = None) -> Weights:
    """The networks in a document.

    Args:
        document: As it was loaded.
        what: Its name, for messages.
        key: Where the user says that the weights lie.

    Raises:
        ConfigError: Nothing lies there.
        ConversionError: There are none.
    """
    whole, hyper = document, {}
    if isinstance(document, Mapping) and isinstance(document.get("hyper_parameters"), Mapping):
        hyper = {str(name): value for name, value in document["hyper_parameters"].items()}
    at: tuple[str, ...] = ()
    if key is not None:
        try:
            document, at = found_at(document, key), (key,)
        except KeyError:
            raise ConfigError(f"--weights {key}: {what} has no such key; it holds\n{tree(document)}") from None
    found = networks(document, at)
    if not found:
        raise ConversionError(_no_network(document, what))
    if len(found) == 1:
        (only,) = found
        notes = (f"weights taken from {shown(only.key)!r} of the file",) if only.path else ()
        return Weights(found=(only,), document=whole, hyper_parameters=hyper, notes=notes)
    kept, averages = _without_averages(found)
    notes = ()
    if len(kept) == 1:
        also = ", ".join(shown(network.key) for network in averages)
        notes = (f"weights taken from {shown(kept[0].key)!r} of the file, not from {also} (--weights takes those)",)
    return Weights(found=tuple(kept), document=whole, hyper_parameters=hyper, notes=notes)


def _no_network(document: Any, what: str) -> str:
    if isinstance(document, StandIn):
        return (
            f"{what} is a pickle of {type(document).name}, which could run code; nothing of it was run. Save "
            f"the weights only: torch.save(model.state_dict(), PATH), or use converter.save_checkpoint; if the file "
            f"is your own, add --trust-pickle"
        )
    if found := stand_ins(document):
        which = ", and say which with --weights KEY" if len(found) > 1 else ""
        return f"{what}: {_no_network(found[0], 'it')}{which}. It holds\n{tree(document)}"
    if isinstance(document, Mapping) and document:
        name, value = next(iter(document.items()))
        if not isinstance(value, Mapping | list | tuple):
            return f"{what} is not a state_dict: {shown(name)!r} is not a tensor. It holds\n{tree(document)}"
    if isinstance(document, Mapping | list | tuple) and document:
        return f"{what} holds no state_dict (names and their tensors), but\n{tree(document)}"
    return f"{what} holds {type(document).__name__}, expected a state_dict"


def _without_averages(found: Sequence[Network]) -> tuple[list[Network], list[Network]]:
    """Networks without the running means of others, and these: they have the same names, but for prefixes."""
    plain = [network for network in found if not network.is_averaged]
    names = [_last_parts(network.tensors) for network in plain]
    averages = [network for network in found if network.is_averaged and _last_parts(network.tensors) in names]
    return [network for network in found if network not in averages], averages


def _last_parts(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name.rpartition(".")[2] for name in names))


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raise ConversionError unless the tensor is plain and has memory for all that its shape promises."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ConversionError(
            f"{shown(name)} is not a plain tensor ({tensor.layout}, {tensor.dtype}, on {tensor.device}); save the "
            f"dense float weights"
        )
    held = tensor.untyped_storage().nbytes()
    if math.prod(tensor.shape) * tensor.element_size() > held:
        raise ConversionError(
            f"{shown(name)} has the shape {tuple(tensor.shape)}, but the file holds {held} bytes for it: it is damaged"
        )


def check_size(tensors: Iterable[torch.Tensor], what: str) -> None:
    """Raise ConversionError, from shapes alone, when the float32 graph would not fit into one ONNX file."""
    size, seen = 0, set()
    for tensor in tensors:
        if torch.nn.parameter.is_lazy(tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        size += math.prod(tensor.shape) * (4 if tensor.is_floating_point() else tensor.element_size())
    if size > MOST_BYTES:
        raise ConversionError(
            f"{what} has weights of {size / (1 << 30):.1f} GiB in float32; a bundle keeps its model in one ONNX file, "
            f"which holds 2 GiB: make the model smaller, or convert a part of it"
        )


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
    fitting = [network for network in weights.found if own <= set(_placed(network.tensors, own, rules.strip)[0])]
    if len(fitting) > 1:
        fitting, _ = _without_averages(fitting)
    if len(fitting) != 1:
        raise weights.ask(path)
    notes = load_weights(model, fitting[0].tensors, str(path), rules)
    return (f"weights taken from {shown(fitting[0].key)!r} of the file, the only ones that fit", *notes)


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
    if rules.strip is None and (several := _several_prefixes(tensors, own)):
        raise ConversionError(
            f"the weights of the model stand in {what} more than once: say which with --strip PREFIX, one of "
            f"{', '.join(map(shown, several))}"
        )
    placed, beside = _placed(tensors, own, rules.strip)
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
            _how_they_differ(what, missing, [n for n in unexpected if n not in ignored], wrong, state)
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
    small = {str(value.dtype)[6:] for value in values.values() if isinstance(value, torch.Tensor)} & {
        "float16", "bfloat16", "float64"
    }  # fmt: skip
    if small:
        notes.append(f"weights of the type {', '.join(sorted(small))} in the file, float32 from here on")
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
    elif missing and not unexpected and not wrong and not any(isinstance(state.get(n), nn.Parameter) for n in missing):
        lines.append("These are no parameters: --allow-missing takes what the model itself makes of them")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(shown, names[:_LISTED])) + more


def _placed(tensors: Mapping[str, Any], own: set[str], strip: str | None) -> tuple[dict[str, str], list[str]]:
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


def _several_prefixes(tensors: Mapping[str, Any], own: set[str]) -> list[str]:
    """Prefixes under which all of the model's names stand, where there are several and none is a running mean."""
    plain = _without_wrappers(tensors, own)
    found = [prefix for prefix in _prefixes(plain) if own <= set(_under(plain, prefix)[0])]
    found = [p for p in found if not Network(path=tuple(p.split(".")), tensors={}).is_averaged]
    return found if len(found) > 1 and "" not in found else []


def _under(plain: Mapping[str, str], prefix: str) -> tuple[dict[str, str], list[str]]:
    placed = {name.removeprefix(prefix): old for name, old in plain.items() if name.startswith(prefix)}
    return placed, [old for name, old in plain.items() if not name.startswith(prefix)]


def how_to_name_the_architecture(weights: Weights, path: Path) -> ConversionError:
    """What to tell a user who gave weights only: what they are, and the command to type."""
    if len(weights.found) > 1:
        return weights.ask(path)
    tensors = {name: value for name, value in weights.found[0].tensors.items() if is_tensor(value)}
    tensors = {name: value.array if isinstance(value, PickledArray) else value for name, value in tensors.items()}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            check_tensor(name, tensor)
    width = min(60, max(map(len, tensors)))
    rows = [f"  {shown(name):<{width}} {tuple(t.shape)!s:<20} {t.dtype}" for name, t in list(tensors.items())[:_ROWS]]
    more = [f"  ... and {len(tensors) - _ROWS} more"] if len(tensors) > _ROWS else []
    near = suggestions(_without_known_prefixes(tensors), [path.parent, Path()])
    commands = [f"  edge-convert {path} --arch {arch}" for arch in near[:3] or ["FILE.py:CLASS"]]
    total = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return ConversionError(
        "\n".join(
            [
                f"{path} holds weights only ({len(tensors)} tensors, {total} numbers), not the model that they belong "
                f"to:",
                *rows,
                *more,
                "Name its class" + (", which looks like it is here:" if near else ":"),
                *commands,
            ]
        )
    )


def _without_known_prefixes(weights: Mapping[str, Any]) -> list[str]:
    names = list(weights)
    while prefix := next(
        (item for item in ("module.", "_orig_mod.", "model.", "net.") if all(name.startswith(item) for name in names)),
        None,
    ):
        names = [name.removeprefix(prefix) for name in names]
    return names
