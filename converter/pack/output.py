"""Writing what was asked for, whole or not at all: a bundle, its members in a folder, or just one model file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from converter.head.split import with_constants
from converter.pack.pack import Packed, Parts
from converter.plan import ConversionPlan
from edge.contract.bundle import write_bundle
from edge.contract.errors import ConfigError
from edge.contract.files import replace_file, sync_folder
from edge.contract.signature import load_private_key, sign_file, signature_path

SUFFIXES = {"edge": ".edge", "onnx": ".onnx", "torchscript": ".pt", "dir": ""}


def check_output(plan: ConversionPlan) -> None:
    """Raise ConfigError when the output could not be written where it is wanted: before the work, not after it."""
    output, folder = plan.output, plan.output.parent
    if plan.format == "dir":
        if output.exists():
            raise ConfigError(f"--output {output} exists already; name a new folder")
    elif output.is_dir():
        raise ConfigError(f"--output {output} is a folder; give the name of a file, e.g. {output / 'model.edge'}")
    with contextlib.suppress(OSError):  # there is no source: loading it will say so
        if output.exists() and output.samefile(plan.source):
            raise ConfigError(f"--output {output} is the model itself; give another name")
    if not folder.is_dir():
        raise ConfigError(f"--output {output}: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {output}: the folder {folder} cannot be written")
    if plan.sign_key is not None and plan.format != "edge":
        raise ConfigError(f"--sign signs bundles, not --format {plan.format}")


def private_key(plan: ConversionPlan, password: bytes | None) -> object | None:
    """The key to sign with, loaded before the work begins; None when nothing is to be signed."""
    return None if plan.sign_key is None else load_private_key(plan.sign_key, password)


def write(packed: Packed, parts: Parts, plan: ConversionPlan, key: object | None) -> int:
    """Write the output.

    Returns:
        Its size in bytes.

    Raises:
        ConfigError: The disk is full or the folder cannot be written, or there is no TorchScript to write.
    """
    try:
        if plan.format == "dir":
            _write_folder(plan.output, packed)
        elif plan.format == "onnx":
            model = with_constants(parts.chosen.model, parts.chosen.parameters)
            if parts.parts.head is not None:  # its features are of no use without the rest of the bundle
                outputs = [info for info in model.graph.output if info.name != parts.parts.head.features.name]
                del model.graph.output[:]
                model.graph.output.extend(outputs)
            _write_file(plan.output, model.SerializeToString(deterministic=True))
        elif plan.format == "torchscript":
            if parts.torchscript is None:
                raise ConfigError("--format torchscript: there is no TorchScript of this model")
            _write_file(plan.output, parts.torchscript)
        else:
            _write_signed(packed, plan, key)
    except OSError as exc:
        raise ConfigError(f"{plan.output} cannot be written: {exc.strerror}") from exc
    files = plan.output.rglob("*") if plan.output.is_dir() else [plan.output]
    return sum(file.stat().st_size for file in files)


def _write_signed(packed: Packed, plan: ConversionPlan, key: object | None) -> None:
    """The bundle, and its signature beside it; an older signature, which would be wrong now, is removed."""
    signature = signature_path(plan.output)
    signature.unlink(missing_ok=True)
    write_bundle(plan.output, packed.manifest, packed.blobs)
    if key is not None:
        _write_file(signature, sign_file(plan.output, key))  # type: ignore[arg-type]


def _write_file(path: Path, data: bytes) -> None:
    with replace_file(path) as file:
        file.write(data)


def _write_folder(folder: Path, packed: Packed) -> None:
    """The members under their own names; the folder takes its own name when it is complete."""
    members: Mapping[str, bytes] = {**packed.blobs, "manifest.json": packed.manifest.encode()}
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, data in members.items():
            _write_file(partial / name, data)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)
