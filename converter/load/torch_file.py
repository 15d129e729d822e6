"""What ``torch.save`` and ``torch.jit.save`` write.

Python executes nothing that such a file holds: what ``weights_only=True`` refuses, we refuse, unless the user trusts
it. TorchScript runs in its own interpreter, without the two operators by which it could touch files.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from converter.load.inert import UnreadableError, load_inert
from converter.load.training_mode import check_evaluates, in_script
from converter.program.user_code import imported
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign, reason

_MAPPED_FROM = 256 << 20
_SAVE_AGAIN = "Save the weights only: torch.save(model.state_dict(), PATH), or use converter.save_checkpoint"
# TorchScript can write with aten::save and map files with aten::from_file.
_TOUCHES_FILES = re.compile(rb"\b(?:torch\.save|ops\.aten\.save|(?:torch|ops\.aten)\.from_file)\b")


def read_document(path: Path, *, trust: bool, arch: str | None) -> Any:
    """What ``torch.save`` wrote.

    Args:
        path: The file.
        trust: Run the code that its pickle names.
        arch: Where classes of ``__main__`` are to be found, when the pickle is trusted.

    Raises:
        ConversionError: It is not such a file, or would have to run code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old pickles: either they load, or the exception says why not
        if trust:
            with _importable(path, arch):
                advice = ". Its classes must be importable: give --arch FILE.py:CLASS of the file that defines them"
                with foreign(f"{path} cannot be unpickled", ConversionError, advice):  # it runs what the file wants
                    return torch.load(path, map_location="cpu", weights_only=False)
        try:
            with foreign("torch.load", ConversionError):
                # Of large files only what is used is read: a checkpoint holds the states of optimizers, too.
                mapped = path.stat().st_size > _MAPPED_FROM and zipfile.is_zipfile(path)
                return load_inert(path, mapped=mapped)
        except ConversionError as exc:
            raise ConversionError(_why_not_loaded(path, exc.__cause__ or exc)) from exc


@contextmanager
def _importable(path: Path, arch: str | None) -> Iterator[None]:
    """Let a pickle find the classes of the script that wrote it, which it knows as ``__main__``."""
    main = sys.modules["__main__"]
    added = {}
    if arch is not None:
        module = imported(arch.rpartition(":")[0], "--arch")
        added = {name: item for name, item in vars(module).items() if not hasattr(main, name)}
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)
    for name, item in added.items():
        setattr(main, name, item)
    try:
        yield
    finally:
        for name in added:
            delattr(main, name)
        if folder in sys.path:
            sys.path.remove(folder)


# Counted in training only, by older batch normalizations.
_COUNTER = "num_batches_tracked"


def read_torchscript(file: Path | bytes, what: str) -> torch.jit.ScriptModule:
    """A TorchScript archive.

    Raises:
        ConversionError: It is damaged, or its code would touch files.
    """
    data = file.read_bytes() if isinstance(file, Path) else file
    with foreign(f"the TorchScript in {what} is damaged", ConversionError):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if name.endswith(".py") and (found := _TOUCHES_FILES.search(archive.read(name))):
                    raise ConversionError(
                        f"the TorchScript in {what} calls {found[0].decode()} in {name}, which touches files; nothing "
                        f"of it was run"
                    )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        if not hasattr(module, "forward"):
            raise ConversionError(f"the TorchScript in {what} has no method forward")
        check_evaluates(in_script(module), f"the TorchScript in {what}", "torch.jit.trace")
        graph: Any = module.inlined_graph  # held: its nodes end with it
        kept = sorted({node.s("name") for node in graph.findAllNodes("prim::SetAttr", True)} - {_COUNTER})
        if kept:
            raise ConversionError(
                f"the TorchScript in {what} changes state that it keeps in itself ({', '.join(kept)}): what it gives "
                f"depends on what it was given before. Let forward take the state and give the next one (--state)"
            )
        return module


def _why_not_loaded(path: Path, error: BaseException) -> str:
    text = str(error)
    if isinstance(error, UnreadableError):
        return (
            f"{path} is a pickle that wants to use {text}, which could run code; nothing of it was run. {_SAVE_AGAIN}; "
            f"if the file is your own, add --trust-pickle"
        )
    wanted = re.search(r"(?:Unsupported (?:global|class)[^A-Za-z]*(?:GLOBAL )?|unsupported GLOBAL )([\w.]+)", text)
    if wanted:
        return (
            f"{path} is a pickle that wants to use {wanted[1]}, which could run code; nothing of it was run. "
            f"{_SAVE_AGAIN}; if the file is your own, add --trust-pickle"
        )
    # torch advises to load with weights_only=False, which runs whatever is in the file: only its finding is passed on.
    finding = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    if finding and "Unsupported operand" in finding[1] and _begins_as_pickle(path):
        return (
            f"{path} is a Python pickle that torch.save did not write, which could run code; nothing of it was run. "
            f"{_SAVE_AGAIN}"
        )
    why = finding[1][:200] if finding else "damaged" if "weights_only" in text else reason(error)
    return (
        f"{path} is not a model file ({why}). Expected a state_dict or checkpoint of torch.save, what "
        f"converter.save_checkpoint writes, .safetensors, TorchScript, .pt2 of torch.export, or .onnx"
    )


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in {bytes([0x80, protocol]) for protocol in range(2, 6)}  # opcode PROTO (PEP 307, 574)
