"""From a file to a model that runs.

Python executes nothing that the file holds: what ``weights_only=True`` refuses, we refuse. TorchScript, alone or inside
a checkpoint, runs in its own interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from converter.checkpoint import KEY, VERSION, check_preprocessing
from converter.plan import ConversionPlan, Samples, check_samples
from converter.reason import reason
from edge.contract.digest import sha256_file
from edge.contract.errors import ConfigError, ConversionError, EdgeError

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
    if isinstance(document, torch.jit.ScriptModule):
        _refuse_arch(plan, "the file is TorchScript, which is a whole model")
        return _from_module(document.eval(), plan)
    if isinstance(document, dict) and KEY in document:
        _refuse_arch(plan, "the checkpoint says what it is")
        return _from_checkpoint(document, plan)
    weights = _state_dict(document, str(plan.source))
    if plan.arch is None:
        raise ConversionError(_how_to_name_the_architecture(weights, plan.source))
    model = build_model(plan.arch, plan.arch_arguments or {})
    _load_weights(model, _without_prefixes(weights, model.state_dict()), plan)
    return _from_module(model.eval(), plan)


def _refuse_arch(plan: ConversionPlan, why: str) -> None:
    if plan.arch is not None:
        raise ConfigError(f"--arch is not needed: {why}")


def _from_module(model: nn.Module, plan: ConversionPlan) -> Source:
    """A model of which nothing is known but itself."""
    example, note = _example_input(model, plan)
    return Source(
        model=model,
        example=example,
        class_names=None,
        preprocessing={},
        samples=None,
        notes=(note,),
        digest=sha256_file(plan.source),
    )


def _read_document(path: Path) -> Any:
    """What is in the file: a document of weights, or a TorchScript module."""
    _check_readable(path)
    try:
        members = _checked_members(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles: either they load, or the exception says why not
            if any(name.endswith("/constants.pkl") for name in members):
                return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return torch.load(path, map_location="cpu", weights_only=True)
    except EdgeError:
        raise
    except Exception as exc:  # torch.load raises what its parsers raise: RuntimeError, UnpicklingError, OSError, ...
        raise ConversionError(_why_not_loaded(path, exc)) from exc


def _check_readable(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}; give the model file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ConversionError(f"{path} is empty")
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} does not exist") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc


def _checked_members(path: Path) -> list[str]:
    """Names in a ZIP archive whose checksums are right; none when it is not one. torch does not check them."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        try:
            damaged = archive.testzip()
        except Exception as exc:  # a broken member raises BadZipFile, EOFError, zlib.error, NotImplementedError, ...
            raise ConversionError(f"{path} is damaged ({reason(exc)}): copy or save it again") from exc
        if damaged is not None:
            raise ConversionError(f"{path} is damaged: the checksum of {damaged} is wrong; copy or save it again")
        return archive.namelist()


def _why_not_loaded(path: Path, error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"(?:Unsupported (?:global|class)[^A-Za-z]*(?:GLOBAL )?|unsupported GLOBAL )([\w.]+)", text)
    if wanted:
        return (
            f"{path} is a pickle that wants to use {wanted[1]}, which could run code; nothing of it was run. "
            f"Save the weights only: torch.save(model.state_dict(), PATH), or use converter.save_checkpoint"
        )
    # torch advises to load with weights_only=False, which runs whatever is in the file: only its finding is passed on.
    finding = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    if finding and "Unsupported operand" in finding[1] and _begins_as_pickle(path):
        return (
            f"{path} is a Python pickle that torch.save did not write, which could run code; nothing of it was run. "
            f"Save the weights only: torch.save(model.state_dict(), PATH), or use converter.save_checkpoint"
        )
    why = finding[1][:200] if finding else "damaged" if "weights_only" in text else reason(error)
    return (
        f"{path} is not a PyTorch file of weights ({why}). Expected what "
        f"torch.save(model.state_dict(), PATH) or converter.save_checkpoint writes"
    )


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in {bytes([0x80, protocol]) for protocol in range(2, 6)}  # opcode PROTO (PEP 307, 574)


def _field(document: Mapping[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if not isinstance(value, kind):
        raise ConversionError(f"the checkpoint's {key} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _array(document: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    tensor: torch.Tensor = _field(document, key, torch.Tensor)
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as exc:  # bfloat16, sparse, quantized
        raise ConversionError(f"the checkpoint's {key} is not a plain tensor: {reason(exc)}") from exc


def _from_checkpoint(document: Mapping[str, Any], plan: ConversionPlan) -> Source:
    if not (type(document[KEY]) is int and document[KEY] == VERSION):
        raise ConversionError(f"checkpoint version {document[KEY]!r}, this program reads {VERSION}: update edgeloop")
    archive = _array(document, "torchscript")
    try:
        model = torch.jit.load(io.BytesIO(archive.tobytes()), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except Exception as exc:  # the reader raises RuntimeError, the parser of its code raises others
        raise ConversionError(f"the model in the checkpoint is damaged: {reason(exc)}") from exc
    # The weights stand twice, in the archive and beside it; the ones beside it may have been trained on since.
    _load_weights(model, _state_dict(_field(document, "state_dict", dict), "the checkpoint's state_dict"), plan)
    example = _array(document, "example_input")
    if example.ndim == 0 or len(example) != 1:
        raise ConversionError(f"the checkpoint's example_input has the shape {example.shape}; expected one sample")
    if plan.input_shape is not None and plan.input_shape != example.shape[1:]:
        raise ConfigError(f"--input-shape {plan.input_shape}: the checkpoint says that it is {example.shape[1:]}")
    samples = None
    if "calibration_x" in document:
        y = _array(document, "calibration_y") if "calibration_y" in document else None
        samples = check_samples(_array(document, "calibration_x"), y, "the checkpoint's calibration data")
    preprocessing = _field(document, "preprocessing", dict)
    check_preprocessing(preprocessing)
    return Source(
        model=model,
        example=torch.from_numpy(example),
        class_names=tuple(str(name) for name in _field(document, "class_names", list)),
        preprocessing=preprocessing,
        samples=samples,
        notes=(f"input shape (batch, {', '.join(map(str, example.shape[1:]))}) from the checkpoint",),
        digest=sha256_file(plan.source),
    )


def _state_dict(document: Any, what: str) -> dict[str, torch.Tensor]:
    """The weights in a document, taken out of what training loops wrap around them."""
    while isinstance(document, dict):
        inner = [document[key] for key in _WRAPPERS if isinstance(document.get(key), dict)]
        if not inner:
            break
        document = inner[0]
    if not isinstance(document, dict) or not document:
        raise ConversionError(f"{what} holds {type(document).__name__}, expected a state_dict")
    strange = [key for key, value in document.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if strange:
        raise ConversionError(f"{what} is not a state_dict: {strange[0]!r} is not a tensor")
    return dict(document)


def _without_prefixes(weights: dict[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take off the prefixes of wrappers such as DataParallel, while no name is one that the model knows."""
    while not weights.keys() & expected.keys():
        prefix = next((item for item in _PREFIXES if all(key.startswith(item) for key in weights)), None)
        if prefix is None:
            break
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


def build_model(arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the model that ``FILE.py:NAME`` or ``package.module:NAME`` names. This runs the user's own code.

    Raises:
        ConfigError: There is no such thing, or it does not give a module.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"--arch {arch!r}: expected FILE.py:NAME or package.module:NAME")
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise ConfigError(f"--arch: {place} does not exist")
    folder = Path(place).parent if is_file else Path()
    with _importing_from(folder):
        try:
            module = _import_file(Path(place)) if is_file else importlib.import_module(place)
        except (Exception, SystemExit) as exc:  # the user's code may raise anything; a script may end itself
            raise ConfigError(f"--arch: {place} cannot be imported: {type(exc).__name__}: {reason(exc)}") from exc
        factory = getattr(module, name, None)
        if not callable(factory):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            near = get_close_matches(name, own)
            raise ConfigError(f"--arch: {place} has no {name}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            model = factory(**arguments)
        except (Exception, SystemExit) as exc:  # as above
            raise ConfigError(f"--arch: {name}({arguments or ''}) failed: {type(exc).__name__}: {reason(exc)}") from exc
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--arch: {name} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def _import_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edgeloop_arch_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as when it is run by itself, and leave no compiled files beside it."""
    added, wrote_bytecode = str(folder.absolute()), sys.dont_write_bytecode
    sys.path.insert(0, added)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_bytecode
        sys.path.remove(added)


def _load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], plan: ConversionPlan) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    wrong = [key for key in expected if key in weights and expected[key].shape != weights[key].shape]
    if not (missing or unexpected or wrong):
        try:
            model.load_state_dict(dict(weights))
        except Exception as exc:  # tensors that cannot be copied: sparse, quantized, on no device
            raise ConversionError(f"the weights in {plan.source} cannot be put into the model: {reason(exc)}") from exc
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
        note = f"input shape (batch, {{}}) inferred from the first layer, {layers[0][0] or type(layers[0][1]).__name__}"
    try:
        example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    except (RuntimeError, MemoryError, OverflowError) as exc:
        raise ConfigError(f"an input of the shape {shape} cannot be made: {reason(exc)}") from exc
    return example, note.format(", ".join(map(str, shape)))
