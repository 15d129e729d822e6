"""Writing what was asked for, whole or not at all: a bundle, its members in a folder, or just one model file."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from converter.head.split import with_constants
from converter.pack.pack import Packed, Parts
from converter.plan import OutputOptions
from edge.contract.bundle import archive_size, write_bundle
from edge.contract.errors import ConfigError
from edge.contract.files import check_writable, is_special, replace_file, sync_folder
from edge.contract.signature import load_private_key, sign_file, signature_path

SUFFIXES = {"edge": ".edge", "onnx": ".onnx", "torchscript": ".pt", "dir": ""}

# File systems take 255 bytes; a signature lies beside its bundle, as NAME.sig.
_LONGEST_NAME = 250


def check_output(wanted: OutputOptions, read: Mapping[str, Path]) -> None:
    """Raise ConfigError when the output could not be written where it is wanted: before the work, not after it.

    Args:
        wanted: What is to be written, and where.
        read: Files whose place it may not take, by what they are.
    """
    output, folder = wanted.output, wanted.output.parent
    if wanted.format == "dir":
        if os.path.lexists(output):
            raise ConfigError(f"--output {output} exists already; name a new folder")
    elif output.is_dir():
        raise ConfigError(f"--output {output} is a folder; give the name of a file, e.g. {output / 'model.edge'}")
    signature = {"the signature": signature_path(output)} if wanted.sign_key is not None else {}
    check_places({"--output": output, **signature}, read)
    if not folder.is_dir():
        raise ConfigError(f"--output {output}: {folder} is not a folder")
    if wanted.format == "dir":
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"--output {output}: the folder {folder} cannot be written")
    else:
        check_writable(output)
    if wanted.sign_key is not None:
        if wanted.format != "edge":
            raise ConfigError(f"--sign signs bundles, not --format {wanted.format}")
        if is_special(output):
            raise ConfigError(f"--sign: {output} is no plain file, beside which a signature could lie")
        check_writable(signature_path(output))


def check_places(outputs: Mapping[str, Path], read: Mapping[str, Path]) -> None:
    """Raise ConfigError where an output would take the place of another, or of a file that is read, or cannot be named.

    Args:
        outputs: By option.
        read: By what they are.
    """
    taken = {_identity(path): what for what, path in read.items()}
    for option, path in outputs.items():
        if (length := len(os.fsencode(path.name))) > _LONGEST_NAME:
            raise ConfigError(f"{option}: a name of {length} bytes ({path.name[:20]}...), at most {_LONGEST_NAME}")
        identity = _identity(path)
        if identity is None:
            continue
        if identity in taken:
            raise ConfigError(f"{option} {path} is {taken[identity]}; give another name")
        taken[identity] = f"that of {option}, too"


def _identity(path: Path) -> object:
    """What makes two paths the same file; None for a device such as ``/dev/null``, which takes any number."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return None if stat.S_ISCHR(status.st_mode) else (status.st_dev, status.st_ino)


def private_key(path: Path | None, password: bytes | None) -> object | None:
    """The key to sign with, loaded before the work begins; None when nothing is to be signed."""
    return None if path is None else load_private_key(path, password)


def write(packed: Packed, parts: Parts, wanted: OutputOptions, key: object | None) -> int:
    """Write the output.

    Returns:
        Its size in bytes.

    Raises:
        ConfigError: The disk is full or the folder cannot be written, or there is no TorchScript to write.
    """
    data: bytes | None = None
    try:
        if wanted.format == "dir":
            _write_folder(wanted.output, packed)
        elif wanted.format == "onnx":
            model = with_constants(parts.chosen.model, parts.chosen.parameters)
            if parts.parts.head is not None:  # its features are of no use without the rest of the bundle
                outputs = [info for info in model.graph.output if info.name != parts.parts.head.features.name]
                del model.graph.output[:]
                model.graph.output.extend(outputs)
            data = model.SerializeToString(deterministic=True)
        elif wanted.format == "torchscript":
            if parts.torchscript is None:
                raise ConfigError("--format torchscript: there is no TorchScript of this model")
            data = parts.torchscript
        else:
            _write_signed(packed, wanted.output, key)
        if data is not None:
            _write_file(wanted.output, data)
    except OSError as exc:
        raise ConfigError(f"{wanted.output} cannot be written: {exc.strerror}") from exc
    if data is not None:
        return len(data)
    if wanted.format == "edge":
        return archive_size(packed.manifest, packed.blobs)
    return sum(file.stat().st_size for file in wanted.output.rglob("*"))


def _write_signed(packed: Packed, output: Path, key: object | None) -> None:
    """The bundle, then its signature beside it; an older signature, which would be wrong now, does not stay."""
    write_bundle(output, packed.manifest, packed.blobs)
    if is_special(output):
        return
    signature = signature_path(output)
    try:
        if key is not None:
            _write_file(signature, sign_file(output, key))  # type: ignore[arg-type]
            return
    except BaseException:
        signature.unlink(missing_ok=True)
        raise
    signature.unlink(missing_ok=True)


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
