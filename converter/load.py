"""From a file to a model that runs. Nothing in the file is executed: what ``weights_only=True`` refuses, we refuse."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.checkpoint import KEY, VERSION
from converter.plan import ConversionPlan, Samples
from edge.contract.digest import sha256_file
from edge.contract.errors import ConfigError, ConversionError

# Keys under which training loops put the weights, and prefixes that wrappers put before their names.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Source:
    """A loaded model.

    Attributes:
        model: In evaluation mode; a Python module or TorchScript.
        example: One batch ``(1, ...)`` that it runs on.
        class_names: None when nobody named them.
        preprocessing: As the checkpoint states it.
        samples: Calibration data that came with the checkpoint.
        notes: What was inferred, for the report.
        digest: SHA-256 of the file.
    """

    model: nn.Module
    example: torch.Tensor
    class_names: tuple[str, ...] | None
    preprocessing: Mapping[str, Any]
    samples: Samples | None
    notes: tuple[str, ...]
    digest: str


def load_source(plan: ConversionPlan) -> Source:
    """Load the model that the plan names.

    Raises:
        ConfigError: The file or the architecture cannot be found.
        ConversionError: It is not a model, or its parts do not fit.
    """
    document = _read_document(plan.source)
    digest = sha256_file(plan.source)
    if isinstance(document, dict) and KEY in document:
        if plan.arch is not None:
            raise ConfigError("--arch is not needed: the checkpoint says what it is")
        return _from_checkpoint(document, digest, plan)
    weights = _state_dict(document, plan.source)
    if plan.arch is None:
        raise ConversionError(_how_to_name_the_architecture(weights, plan.source))
    model = _build(plan.arch, plan.arch_arguments or {})
    _load_weights(model, weights, plan)
    model.eval()
    example, note = _example_input(model, plan)
    return Source(
        model=model, example=example, class_names=None, preprocessing={}, samples=None, notes=(note,), digest=digest
    )


def _read_document(path: Path) -> Any:
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the model file")
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch.load raises what its parsers raise: RuntimeError, UnpicklingError, EOFError, ...
        text = str(exc)
        wanted = re.search(r"Unsupported (?:global|class)[^A-Za-z]*(?:GLOBAL )?([\w.]+)", text)
        if wanted:
            raise ConversionError(
                f"{path} is a pickle that wants to use {wanted[1]}, which could run code; nothing of it was run. "
                f"Save the weights only: torch.save(model.state_dict(), PATH), or use converter.save_checkpoint"
            ) from exc
        reason = text.strip().splitlines()[0][:200] if text.strip() else type(exc).__name__
        raise ConversionError(
            f"{path} is not a PyTorch file of weights ({reason}). Expected what torch.save(model.state_dict(), PATH) "
            f"or converter.save_checkpoint writes"
        ) from exc


def _field(document: Mapping[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if not isinstance(value, kind):
        raise ConversionError(f"the checkpoint's {key} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _from_checkpoint(document: Mapping[str, Any], digest: str, plan: ConversionPlan) -> Source:
    if document[KEY] != VERSION:
        raise ConversionError(f"checkpoint version {document[KEY]!r}, this program reads {VERSION}: update edgeloop")
    archive = _field(document, "torchscript", torch.Tensor)
    try:
        model = torch.jit.load(io.BytesIO(archive.numpy().tobytes()), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as exc:
        raise ConversionError(f"the model in the checkpoint is damaged: {str(exc).splitlines()[0][:200]}") from exc
    # The weights stand twice, in the archive and beside it; the ones beside it may have been trained on since.
    _load_weights(model, _field(document, "state_dict", dict), plan)
    example = _field(document, "example_input", torch.Tensor)
    samples = None
    if "calibration_x" in document:
        x, y = _field(document, "calibration_x", torch.Tensor), _field(document, "calibration_y", torch.Tensor)
        samples = Samples(x.numpy(), y.numpy().astype(np.int64))
    return Source(
        model=model,
        example=example,
        class_names=tuple(str(name) for name in _field(document, "class_names", list)),
        preprocessing=_field(document, "preprocessing", dict),
        samples=samples,
        notes=(f"input shape (batch, {', '.join(map(str, example.shape[1:]))}) from the checkpoint",),
        digest=digest,
    )


def _state_dict(document: Any, path: Path) -> dict[str, torch.Tensor]:
    """The weights in a document, unwrapped and with wrapper prefixes stripped."""
    for key in _WRAPPERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict) or not document:
        raise ConversionError(f"{path} holds {type(document).__name__}, expected a state_dict")
    strange = [key for key, value in document.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if strange:
        raise ConversionError(f"{path} is not a state_dict: {strange[0]!r} is not a tensor")
    weights: dict[str, torch.Tensor] = document
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _how_to_name_the_architecture(weights: Mapping[str, torch.Tensor], path: Path) -> str:
    rows = [f"  {name:<40} {tuple(tensor.shape)!s:<20} {tensor.dtype}" for name, tensor in list(weights.items())[:24]]
    more = [f"  ... and {len(weights) - 24} more"] if len(weights) > 24 else []
    return "\n".join(
        [
            f"{path} holds weights only, not the model that they belong to:",
            *rows,
            *more,
            f"Name its class: edge-convert {path} --arch FILE.py:CLASS",
        ]
    )


def _build(arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the model that ``FILE.py:NAME`` or ``package.module:NAME`` names. This runs the user's own file."""
    place, _, name = arch.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"--arch {arch!r}: expected FILE.py:NAME or package.module:NAME")
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise ConfigError(f"--arch: {file} does not exist")
        spec = importlib.util.spec_from_file_location(f"edgeloop_arch_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        run = spec.loader.exec_module
    else:
        sys.path.insert(0, str(Path.cwd()))

        def run(_: Any) -> None:
            nonlocal module
            module = importlib.import_module(place)

        module = sys.modules[__name__]
    try:
        run(module)
    except Exception as exc:  # the user's code may raise anything
        raise ConfigError(f"--arch: {place} cannot be imported: {type(exc).__name__}: {exc}") from exc
    factory = getattr(module, name, None)
    if not callable(factory):
        near = get_close_matches(name, [key for key, value in vars(module).items() if isinstance(value, type)])
        raise ConfigError(f"--arch: {place} has no {name}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        model = factory(**arguments)
    except Exception as exc:  # as above
        raise ConfigError(f"--arch: {name}({arguments or ''}) failed: {type(exc).__name__}: {exc}") from exc
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--arch: {name} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def _load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], plan: ConversionPlan) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    wrong = [key for key in expected if key in weights and expected[key].shape != weights[key].shape]
    if not (missing or unexpected or wrong):
        model.load_state_dict(dict(weights))
        return
    lines = [f"the weights in {plan.source} do not fit the model:"]
    for key in missing[:8]:
        near = get_close_matches(key, unexpected, n=1)
        lines.append(f"  missing    {key}" + (f"   (the file has {near[0]})" if near else ""))
    lines += [f"  unexpected {key}" for key in unexpected[:8]]
    lines += [
        f"  {key}: {tuple(weights[key].shape)} in the file, {tuple(expected[key].shape)} in the model"
        for key in wrong[:8]
    ]
    raise ConversionError("\n".join(lines))


def _example_input(model: nn.Module, plan: ConversionPlan) -> tuple[torch.Tensor, str]:
    """An input made of the shape that was given or that follows from the first layer."""
    generator = torch.Generator().manual_seed(0)
    if plan.input_shape is not None:
        shape, note = plan.input_shape, "input shape (batch, {}) as given"
    else:
        layers = [(name, layer) for name, layer in model.named_modules() if any(True for _ in layer.parameters(False))]
        if not layers or not isinstance(layers[0][1], nn.Linear):
            kind = type(layers[0][1]).__name__ if layers else "no layer with parameters"
            raise ConversionError(
                f"the input shape does not follow from the first layer ({kind}); give it without the batch axis, "
                f"e.g. --input-shape 3,224,224"
            )
        shape = (layers[0][1].in_features,)
        note = f"input shape (batch, {{}}) inferred from the first layer, {layers[0][0]}"
    return torch.randn(1, *shape, generator=generator), note.format(", ".join(map(str, shape)))
