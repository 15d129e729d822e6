"""A corpus of malformed files against every reader: no crash, no hang, no code run, no memory, nothing written.

Each kind of file is cut off at every KiB, bits of it are flipped, and what only an attacker writes is added. All of it
is read by one process per kind, see `tests.converter.read_files`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from tests.converter.command import warm
from tests.converter.models import mlp, save, snapshot

MAX_PEAK = 1 << 30
ARCH = """\
from torch import nn


def make():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
"""


class Intruder:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def read_all(folder: Path, kind: str = "model") -> dict[str, str]:
    """What the reader said to each file; the process must end well, in time, in little memory, without a trace."""
    before = snapshot(folder)
    done = warm(folder, [str(folder), kind], {}, "read-files")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = rows[-1]["file"] if rows else "no file"
    assert done.returncode == 0, f"exit {done.returncode} after {last}: {done.stderr[-2000:]}"
    assert max(row["peak"] for row in rows) < MAX_PEAK
    assert snapshot(folder) == before
    assert not (folder.parent / "marker").exists(), "code in a file was run"
    return {row["file"]: row["said"] for row in rows}


def corpus(folder: Path, data: bytes, suffix: str, flips: int = 120) -> Path:
    """Cut off at every KiB, and with one bit flipped in many places."""
    folder.mkdir()
    for end in range(0, len(data), 1024):
        (folder / f"cut-{end:06}{suffix}").write_bytes(data[:end])
    rng = np.random.default_rng(0)
    for i, at in enumerate(np.unique(rng.integers(0, len(data), flips))):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        (folder / f"flip-{i:03}-{at:06}{suffix}").write_bytes(bytes(damaged))
    (folder / f"whole{suffix}").write_bytes(data)
    return folder


def file_of(write: Callable[[Path], object], folder: Path, name: str) -> bytes:
    path = folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(path)
    data = path.read_bytes()
    path.unlink()
    return data


def exported(path: Path, model: nn.Module | None = None) -> None:
    program = torch.export.export(
        model or mlp(), (torch.randn(2, 12),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)


def as_onnx(path: Path) -> None:
    torch.onnx.export(
        mlp(), (torch.randn(2, 12),), path, dynamo=False, opset_version=18, input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
    )  # fmt: skip


KINDS: dict[str, tuple[Callable[[Path], object], int]] = {
    "checkpoint.pth": (lambda path: save(mlp(), path, (12,), calibrated=8), 120),
    "state_dict.pth": (lambda path: torch.save(mlp().state_dict(), path), 120),
    "legacy.pth": (lambda path: torch.save(mlp().state_dict(), path, _use_new_zipfile_serialization=False), 300),
    "weights.safetensors": (lambda path: safetensors.torch.save_file(mlp().state_dict(), path), 200),
    "script.pt": (lambda path: torch.jit.trace(mlp(), torch.zeros(2, 12)).save(str(path)), 120),
    "program.pt2": (exported, 40),
    "graph.onnx": (as_onnx, 300),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_models_are_read_or_refused(tmp_path: Path, name: str) -> None:
    write, flips = KINDS[name]
    folder = corpus(tmp_path / "files", file_of(write, tmp_path, name), Path(name).suffix, flips)
    if name.startswith(("state_dict", "legacy", "weights")):
        (folder / "arch.py").write_text(ARCH)
    said = read_all(folder)
    whole = said.pop(f"whole{Path(name).suffix}")
    assert whole == "read" or "holds weights only" in whole
    cut = {file: text for file, text in said.items() if file.startswith("cut")}
    assert all(text != "read" for text in cut.values())
    if name.endswith((".pth", ".pt", ".pt2")) and name != "legacy.pth":  # a checksum protects every byte that counts
        assert sum(text == "read" for text in said.values()) <= 0.5 * len(said)


def test_inner_torchscript_that_was_damaged_before_it_was_packed(tmp_path: Path) -> None:
    """The inner archive is damaged and the outer one is whole, as whoever forges a file would do it."""
    whole = save(mlp(), tmp_path / "m.pth", (12,))
    document = torch.load(whole, weights_only=True)
    whole.unlink()
    inner = document["torchscript"].numpy().tobytes()
    folder = tmp_path / "files"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i, at in enumerate(rng.integers(0, len(inner), 60)):
        damaged = bytearray(inner)
        damaged[at] ^= 1 << int(rng.integers(8))
        torch.save(document | {"torchscript": torch.frombuffer(damaged, dtype=torch.uint8)}, folder / f"{i:02}.pth")
    read_all(folder)


# --- what only an attacker writes ------------------------------------------------------------------------------------


def test_pickles_with_code_in_them_are_refused_by_the_name_of_what_they_want(tmp_path: Path) -> None:
    folder, marker = tmp_path / "files", tmp_path / "marker"
    folder.mkdir()
    torch.save({"state_dict": Intruder(marker)}, folder / "new.pth")
    torch.save(Intruder(marker), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pth").write_bytes(pickle.dumps(Intruder(marker)))
    torch.save(mlp(), folder / "module.pth")
    said = read_all(folder)
    assert "posix.system" in said["new.pth"]
    assert "posix.system" in said["old.pth"]
    assert "nothing of it was run" in said["plain.pth"]
    assert "torch.nn.modules" in said["module.pth"]
    assert "--trust-pickle" in said["module.pth"]


def test_archives_that_would_unpack_to_too_much_or_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with (
        zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/data.pkl", "w") as f,
    ):
        for _ in range(300):
            f.write(bytes(1 << 20))
    with zipfile.ZipFile(folder / "nested.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", (folder / "bomb.pth").read_bytes() * 2)
    with zipfile.ZipFile(folder / "many.pth", "w") as archive:
        for i in range(100_001):
            archive.writestr(f"a/{i}", b"")
    good = file_of(lambda path: torch.save(mlp().state_dict(), path), tmp_path, "m.pth")
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(folder / "elsewhere.pth", "w") as archive:
        for name in source.namelist():
            archive.writestr(f"../../{name}", source.read(name))
        archive.writestr("/tmp/evil", b"evil")
    said = read_all(folder)
    assert "unpacks to" in said["bomb.pth"]
    assert "unpacks to" in said["many.pth"]
    assert "read" not in said.values()
    assert not Path("/tmp/evil").exists()


def test_shapes_that_no_memory_holds(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "arch.py").write_text(ARCH)
    wide = mlp().state_dict() | {"0.weight": torch.zeros(1).expand(2**40, 12)}
    torch.save(wide, folder / "stride.pth")
    for i, shape in enumerate(([2**63 - 1, 1], [2**63, 4], [2**32, 2**32], [-1, 4])):
        header = json.dumps({"0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 16]}}).encode()
        (folder / f"shape{i}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    (folder / "header.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}" + bytes(16))
    for i, dims in enumerate(([2**62, 2], [2**40], [-5, 3])):
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
        (folder / f"dims{i}.onnx").write_bytes(product(weight).SerializeToString())
    said = read_all(folder)
    assert "read" not in said.values()
    assert "damaged" in said["stride.pth"]


def product(weight: TensorProto) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [value("x", TensorProto.FLOAT, ["batch", 4])], [value("y", TensorProto.FLOAT, ["batch", 4])], [weight],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_deep_recursion(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "arch.py").write_text(ARCH)
    deep: Any = {}
    for _ in range(150):
        deep = {"model": deep}
    torch.save(deep, folder / "deep.pth")
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, folder / "loop.pth")
    nested = bytes([0x80, 2]) + b"]" * 200_000 + b"a" * 199_999 + b"."
    (folder / "nested.pth").write_bytes(nested)
    header = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (folder / "json.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    graph = helper.make_graph([], "g", [], [])
    for _ in range(90):
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)], "g", [], []
        )
        if graph.ByteSize() > 1 << 20:
            break
    (folder / "graph.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    good = file_of(exported, tmp_path, "m.pt2")
    (folder / "program.pt2").write_bytes(changed(good, "models/model.json", lambda _: b"[" * 200_000))
    assert "read" not in read_all(folder).values()


def changed(archive: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """An archive with one member changed, or added when it is not there."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(target, "w") as made:
        root = source.namelist()[0].partition("/")[0]
        names = [name for name in source.namelist() if name != f"{root}/{member}"]
        for name in names:
            made.writestr(name, source.read(name))
        old = source.read(f"{root}/{member}") if len(names) < len(source.namelist()) else b""
        made.writestr(f"{root}/{member}", change(old))
    return target.getvalue()


def test_exported_programs_that_would_run_code_when_they_are_loaded(tmp_path: Path) -> None:
    folder, marker = tmp_path / "files", tmp_path / "marker"
    folder.mkdir()
    good = file_of(exported, tmp_path, "m.pt2")
    evil = pickle.dumps(Intruder(marker))
    tensor = io.BytesIO()
    torch.save({"x": Intruder(marker)}, tensor)

    def in_json(old: str, new: str) -> Callable[[bytes], bytes]:
        def change(data: bytes) -> bytes:
            assert old.encode() in data
            return data.replace(old.encode(), new.encode())

        return change

    system = f"__import__('os').system('touch {marker}')"
    expression = next(v for v in expressions(good))
    for name, member, change in (
        ("target", "models/model.json", in_json("torch.ops.aten.linear.default", "torch.os.system")),
        ("expression", "models/model.json", in_json(json.dumps(expression)[1:-1], system)),
        ("pickled", "data/weights/model_weights_config.json", in_json('"use_pickle": false', '"use_pickle": true')),
        ("custom", "data/constants/custom_obj_0", lambda _: evil),
        ("legacy", "data/weights/model.pt", lambda _: tensor.getvalue()),
        ("library", "data/aotinductor/model/model.so", lambda _: b"\x7fELF"),
        ("samples", "data/sample_inputs/model.pt", lambda _: tensor.getvalue()),
        ("plainsamples", "data/sample_inputs/model.pt", lambda _: evil),
    ):
        (folder / f"{name}.pt2").write_bytes(changed(good, member, change))
    said = read_all(folder)
    assert all("code" in text or "not part of" in text for text in said.values()), said
    assert "torch.os.system" in said["target.pt2"]
    assert "__import__" in said["expression.pt2"]


def expressions(archive: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        name = next(name for name in source.namelist() if name.endswith("models/model.json"))
        found: list[str] = []
        json.loads(source.read(name), object_hook=lambda item: found.append(item.get("expr_str")) or item)
    return [text for text in found if isinstance(text, str)]


def test_torchscript_that_would_write_or_map_files(tmp_path: Path) -> None:
    folder, marker = tmp_path / "files", tmp_path / "marker"
    folder.mkdir()
    sources = {"save": f"torch.save(x, '{marker}')", "map": f"x = x + torch.from_file('{marker}', True, 8)"}
    for name, code in sources.items():
        module = type(f"Module{name}", (torch.jit.ScriptModule,), {})()  # a class of its own
        module.define(f"def forward(self, x):\n    {code}\n    return x\n")
        module.save(str(folder / f"{name}.pt"))
    said = read_all(folder)
    assert all("touches files" in text for text in said.values()), said


def test_onnx_that_reads_other_files_or_wants_other_libraries(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    for i, location in enumerate(("../secret", str(tmp_path / "secret"), "missing.bin", "files/../../secret")):
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "64")):
            weight.external_data.add(key=key, value=value)
        (folder / f"external{i}.onnx").write_bytes(product(weight).SerializeToString())
    model = product(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.ones(16)))
    model.graph.node[0].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    (folder / "domain.onnx").write_bytes(model.SerializeToString())
    said = read_all(folder)
    assert "read" not in said.values()
    assert "com.evil" in said["domain.onnx"]


def test_wrong_types_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "arch.py").write_text(ARCH)
    weights = mlp().state_dict()
    torch.save([1, 2, 3], folder / "list.pth")
    torch.save({"0.weight": "text"}, folder / "text.pth")
    torch.save({1: torch.zeros(2)}, folder / "number.pth")
    torch.save(weights | {"0.weight": weights["0.weight"].to_sparse()}, folder / "sparse.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(weights["0.weight"], 0.1, 0, torch.qint8)
    torch.save(weights | {"0.weight": quantized}, folder / "quantized.pth")
    torch.save(torch.zeros(3), folder / "tensor.pth")
    torch.save({}, folder / "empty.pth")
    assert "read" not in read_all(folder).values()


# --- data ------------------------------------------------------------------------------------------------------------


DATA = {
    "samples.npz": lambda path: np.savez(path, x=np.ones((40, 12), np.float32), y=np.arange(40) % 4),
    "packed.npz": lambda path: np.savez_compressed(
        path, x=np.random.default_rng(0).normal(size=(40, 12)), y=np.ones(40)
    ),
    "samples.npy": lambda path: np.save(path, np.ones((40, 12), np.float32)),
}


@pytest.mark.parametrize("name", DATA)
def test_damaged_arrays_are_read_or_refused(tmp_path: Path, name: str) -> None:
    suffix = Path(name).suffix
    folder = corpus(tmp_path / "files", file_of(DATA[name], tmp_path, name), suffix)
    said = read_all(folder, "data")
    assert said.pop(f"whole{suffix}") == "read"
    assert all(text != "read" for file, text in said.items() if file.startswith("cut"))


def folder_of(files: Path, name: str, data: bytes) -> None:
    """A folder with one file in it."""
    (files / Path(name).stem).mkdir()
    (files / Path(name).stem / name).write_bytes(data)


def test_damaged_images_and_sounds_are_read_or_refused(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for suffix in ("png", "jpg", "bmp"):
        made = io.BytesIO()
        Image.fromarray(pixels).save(made, {"jpg": "jpeg"}.get(suffix, suffix))
        corpus(tmp_path / suffix, made.getvalue(), f".{suffix}", 40)
    made = io.BytesIO()
    with wave.open(made, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.arange(2000, dtype=np.int16).tobytes())
    corpus(tmp_path / "wav", made.getvalue(), ".wav", 40)
    for suffix in ("png", "jpg", "bmp", "wav"):
        for path in (tmp_path / suffix).iterdir():
            folder_of(files, f"{suffix}-{path.name}", path.read_bytes())
    header = b"\x00\x00\xff\xff\x00\x00\xff\xff\x08\x02\x00\x00\x00"  # 65535 x 65535 pixels
    crc = __import__("zlib").crc32(b"IHDR" + header).to_bytes(4, "big")
    folder_of(files, "bomb.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + header + crc)
    said = read_all(files, "data")
    assert said["bomb"] != "read"
    assert {said[f"{suffix}-whole"] for suffix in ("png", "jpg", "bmp", "wav")} == {"read"}


def test_arrays_that_only_an_attacker_writes(tmp_path: Path) -> None:
    folder, marker = tmp_path / "files", tmp_path / "marker"
    folder.mkdir()
    np.savez(folder / "objects.npz", x=np.array([Intruder(marker)], dtype=object))
    np.save(folder / "objects.npy", np.array([Intruder(marker)], dtype=object))
    (folder / "pickle.npz").write_bytes(pickle.dumps(Intruder(marker)))
    (folder / "pickle.npy").write_bytes(pickle.dumps(Intruder(marker)))
    for i, shape in enumerate(
        ("(9223372036854775808, 12)", "(1152921504606846976, 12)", "(-4, 12)", "(2, 1099511627776)")
    ):
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(96)
        (folder / f"shape{i}.npy").write_bytes(data)
        with zipfile.ZipFile(folder / f"shape{i}.npz", "w") as archive:
            archive.writestr("x.npy", data)
    text = "{'descr': " + "[" * 5000 + "]" * 5000 + "}\n"
    (folder / "deep.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        text = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 12)}".ljust(117) + "\n"
        file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(240))
        for _ in range(300):
            file.write(bytes(1 << 20))
    said = read_all(folder, "data")
    said.pop("bomb.npz")  # five rows are in it, and five are read
    assert "read" not in said.values(), said
