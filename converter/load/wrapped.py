"""Networks in a file of weights: found in what training loops wrap around them, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from converter.load.architecture import suggestions
from converter.load.contents import Network, found_at, is_tensor, networks, networks_anywhere, shown, stand_ins, tree
from converter.load.files import MOST_BYTES
from converter.load.inert import PickledArray, StandIn
from edge.contract.errors import ConfigError, ConversionError

_ROWS = 24
_KEYS = 6


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
    kept, averages = without_averages(found)
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
    if aside := networks_anywhere(document):
        listed = ", ".join(map(shown, aside[:_KEYS])) + (", ..." if len(aside) > _KEYS else "")
        return (
            f"{what} holds networks only where training keeps what it does not need for the model: say which with "
            f"--weights KEY, one of {listed}\n{tree(document)}"
        )
    if isinstance(document, Mapping) and document:
        if any("_packed_params" in str(name) for name in document):
            return f"{what} holds weights that torch.ao has quantized: give the float ones, edge-convert quantizes them"
        name, value = next((item for item in document.items() if not isinstance(item[1], torch.Tensor)), ("", {}))
        if not isinstance(value, Mapping | list | tuple):
            return f"{what} is not a state_dict: {shown(name)!r} is not a tensor. It holds\n{tree(document)}"
    if isinstance(document, Mapping | list | tuple) and document:
        return f"{what} holds no state_dict (names and their tensors), but\n{tree(document)}"
    nothing = " without a tensor" if isinstance(document, Mapping) else ""
    return f"{what} holds {type(document).__name__}{nothing}, expected a state_dict"


def without_averages(found: Sequence[Network]) -> tuple[list[Network], list[Network]]:
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
    if tensor.is_complex():
        raise ConversionError(f"{shown(name)} has complex numbers, which no bundle holds: split them into real ones")
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
