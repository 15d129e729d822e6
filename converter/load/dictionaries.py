"""Models that take one dictionary of tensors, ``forward(self, batch)``, or any by name, ``forward(self, **batch)``.

They become models that take each entry by its name. What the entries are called only samples or ``--input`` can say,
and which of a file's arrays the model looks at only it can: what changes nothing when it is left out is none.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from converter.data.fit import LABELS
from converter.load.constants import parameters_of
from converter.program.programs import named_outputs
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign

Tensors = Mapping[str, torch.Tensor]

DICTIONARY, BY_NAME, PERHAPS = "dictionary", "by name", "perhaps"
_DICTIONARY = re.compile(r"(?:\w+\.)*(?:dict|Dict|Mapping|MutableMapping)\b")


def takes_dictionary(model: nn.Module) -> str | None:
    """Whether ``forward`` takes its tensors as one `DICTIONARY`, or whatever is given `BY_NAME`.

    Of one parameter that the code does not call a tensor that is `PERHAPS` so; None for no.
    """
    if not isinstance(model, torch.jit.ScriptModule):
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return None
        if [p.kind for p in parameters] == [inspect.Parameter.VAR_KEYWORD]:
            return BY_NAME
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            return None
    found, _ = parameters_of(model)
    if not found or any(not parameter.optional for parameter in found[1:]):
        return None
    if _DICTIONARY.match(found[0].kind):
        return DICTIONARY
    return None if "Tensor" in found[0].kind else PERHAPS


def with_entries(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The model, which takes the entries of these names one by one; that of Python code is changed in place.

    Raises:
        ConversionError: A name is none that a parameter can have.
    """
    for name in names:
        if not name.isidentifier():
            raise ConversionError(f"forward takes a dictionary, and {name!r} is no name for an input: rename it")
    if isinstance(model, torch.jit.ScriptModule):
        module = nn.Module()
        module.model = model
        entries = ", ".join(f"{name!r}: {name}" for name in names)
        with foreign(f"the TorchScript does not take a dictionary of {', '.join(names)}", ConversionError):
            holder = torch.jit.script(module)
            holder.define(f"def forward(self, {', '.join(names)}):\n    return self.model({{{entries}}})\n")
        return holder.eval()
    model.forward = _by_name(model.forward, names, takes_dictionary(model) == BY_NAME)
    return model


def _by_name(forward: Callable[..., Any], names: Sequence[str], by_name: bool) -> Callable[..., Any]:
    def with_names(*tensors: torch.Tensor, **others: Any) -> Any:
        given = {**dict(zip(names, tensors, strict=False)), **others}
        return forward(**given) if by_name else forward(given)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    with_names.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_names


def entries_read(model: nn.Module, samples: Tensors) -> tuple[str, ...] | None:
    """Which entries of a dictionary a model looks at; None where it runs on none.

    Labels are given where it does not run without.

    Args:
        model: It.
        samples: All that there are.
    """
    unlabelled = {name: tensor for name, tensor in samples.items() if name not in LABELS}
    for given in (unlabelled, samples):
        if (wanted := _given(model, given)) is not None:
            return tuple(
                name
                for name in given
                if not _are_equal(wanted, _given(model, {key: t for key, t in given.items() if key != name}))
            )
    return None


def _given(model: nn.Module, samples: Tensors) -> dict[str, torch.Tensor] | None:
    copies = {name: tensor.clone() for name, tensor in samples.items()}
    try:
        with torch.inference_mode(), foreign("the model does not run", ConversionError):
            return named_outputs(model(**copies) if takes_dictionary(model) == BY_NAME else model(copies))
    except ConversionError:
        return None


def _are_equal(one: Tensors, other: Tensors | None) -> bool:
    return other is not None and one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
