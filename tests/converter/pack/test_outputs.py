"""What is written, from the command to a device: bundles, single files, folders, signatures, reports, `edge-bundle`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from converter.quantization.layers import running_in_int8
from edge.contract.bundle import Bundle
from tests.converter.command import CONFIG, ROOT, environment, refused, run
from tests.converter.models import cnn, rng, save


def edge_bundle(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge.cli.bundle", *map(str, arguments)],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted, signed CNN, its reports and keys."""
    folder = tmp_path_factory.mktemp("made") / "user"
    folder.mkdir()
    save(cnn(), folder / "cnn.pth", (1, 8, 8), calibrated=120)
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "key.pub").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    done = run(
        folder, "cnn.pth", "--quantize", "int8", "--max-drop", "10", "--sign", "key.pem", "--json", "r.json",
        "--html", "r.html", "--torchscript",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def expected(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return cnn()(torch.from_numpy(x)).numpy()


def samples(n: int = 70) -> np.ndarray:
    return rng(8).normal(size=(n, 1, 8, 8)).astype(np.float32)


def test_a_bundle_runs_on_named_arrays_and_gives_named_outputs(made: Path) -> None:
    x = samples()
    np.savez(made / "in.npz", input=x)
    done = edge_bundle(made, "run", "cnn.edge", "in.npz", "--output", "out.npz", "--batch", "32")
    assert done.returncode == 0, done.stderr
    with np.load(made / "out.npz") as found:
        assert list(found) == ["output"]
        assert (found["output"].argmax(axis=1) == expected(x).argmax(axis=1)).mean() > 0.9
        np.testing.assert_allclose(found["output"], expected(x), atol=0.1)
    (made / "out.npz").unlink()
    np.savez(made / "wrong.npz", input=x[:, :, :7])
    done = edge_bundle(made, "run", "cnn.edge", "wrong.npz", "--output", "out.npz")
    assert done.returncode == CONFIG
    assert "Traceback" not in done.stderr
    assert not (made / "out.npz").exists()


def test_a_signed_bundle_is_verified_and_an_altered_one_is_not(made: Path) -> None:
    done = edge_bundle(made, "verify", "cnn.edge", "--key", "key.pub")
    assert done.returncode == 0, done.stderr
    assert "the golden outputs are right" in done.stdout
    assert "signed by" in done.stdout
    other = made / "other.edge"
    data = bytearray((made / "cnn.edge").read_bytes())
    data[-100] ^= 1
    other.write_bytes(data)
    (made / "other.edge.sig").write_bytes((made / "cnn.edge.sig").read_bytes())
    done = edge_bundle(made, "verify", "other.edge", "--key", "key.pub")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    other.unlink()
    (made / "other.edge.sig").unlink()


def test_a_bundle_is_inspected_and_measured(made: Path) -> None:
    done = edge_bundle(made, "inspect", "cnn.edge", "--json")
    manifest = json.loads(done.stdout)
    assert manifest["quantization"]["int8_layers"] == manifest["quantization"]["layers"] == 2
    assert manifest["sha256"] == Bundle.open(made / "cnn.edge").digest
    done = edge_bundle(made, "bench", "cnn.edge", "--seconds", "0.05", "--batch", "4", "--json")
    timing = json.loads(done.stdout)
    assert timing["batch"] == 4
    assert 0 < timing["latency_ms"] <= timing["latency_p90_ms"]
    assert timing["peak_memory_bytes"] > 10 << 20


def test_two_bundles_are_compared(made: Path) -> None:
    same = edge_bundle(made, "diff", "cnn.edge", "cnn.edge")
    assert (same.returncode, same.stdout) == (0, "the same\n")
    done = run(made, "cnn.pth", "--quantize", "none", "-o", "float.edge")
    assert done.returncode == 0, done.stderr
    different = edge_bundle(made, "diff", "cnn.edge", "float.edge")
    assert different.returncode == 1
    for word in ("quantization:", "model.onnx:", "output output on the golden inputs:", "dB"):
        assert word in different.stdout
    (made / "float.edge").unlink()


def test_unpacked_and_written_as_a_folder_are_the_same_files(made: Path) -> None:
    assert edge_bundle(made, "unpack", "cnn.edge", "unpacked").returncode == 0
    done = run(
        made, "cnn.pth", "--quantize", "int8", "--max-drop", "10", "--torchscript", "--format", "dir", "-o", "folder"
    )
    assert done.returncode == 0, done.stderr
    one, other = ({p.name: p.read_bytes() for p in (made / name).iterdir()} for name in ("unpacked", "folder"))
    assert set(one) == set(other)
    assert {name for name in one if one[name] != other[name]} <= {"manifest.json"}  # the name in it is another
    refused(made, CONFIG, ("folder exists already",), "cnn.pth", "--format", "dir", "-o", "folder")


def test_a_single_onnx_file_needs_nothing_but_onnxruntime(made: Path) -> None:
    done = run(made, "cnn.pth", "--quantize", "int8", "--max-drop", "10", "--format", "onnx")
    assert done.returncode == 0, done.stderr
    onnx.checker.check_model(onnx.load(made / "cnn.onnx"))
    session = onnxruntime.InferenceSession(made / "cnn.onnx")
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    np.testing.assert_allclose(session.run(None, {"input": samples()})[0], expected(samples()), atol=0.1)
    assert running_in_int8(onnx.load(made / "cnn.onnx")) == (3, 3)  # the last layer, too: nothing can learn here


def test_a_single_torchscript_file_needs_nothing_but_torch(made: Path) -> None:
    for option, value in (("--trainable", "last:1"), ("--quantize", "int8")):
        words = ("writes only the whole float model", f"{option} {value} needs a bundle")
        refused(made, CONFIG, words, "cnn.pth", "--format", "torchscript", option, value, "-o", "x.pt")
    done = run(made, "cnn.pth", "--format", "torchscript", "--json", "torchscript.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((made / "torchscript.json").read_text())
    assert (report["trainable"], report["chosen"]) == ([], "float")
    with torch.no_grad():
        found = torch.jit.load(made / "cnn.pt")(torch.from_numpy(samples())).numpy()
    np.testing.assert_allclose(found, expected(samples()), atol=1e-5)


def test_only_bundles_are_signed(made: Path) -> None:
    refused(made, CONFIG, ("--sign signs bundles",), "cnn.pth", "--format", "onnx", "--sign", "key.pem", "-o", "x.onnx")


def test_an_old_signature_does_not_stay_beside_a_new_bundle(made: Path) -> None:
    (made / "again.edge.sig").write_bytes((made / "cnn.edge.sig").read_bytes())
    done = run(made, "cnn.pth", "--quantize", "none", "-o", "again.edge")
    assert done.returncode == 0, done.stderr
    assert not (made / "again.edge.sig").exists()


def test_the_reports_say_what_was_written(made: Path) -> None:
    report = json.loads((made / "r.json").read_text())
    assert report["bundle_digest"] == Bundle.open(made / "cnn.edge").digest
    assert report["size_bytes"] == (made / "cnn.edge").stat().st_size
    assert {check["what"] for check in report["verification"]} >= {"the exported graph", "the TorchScript"}
    assert all(check["passed"] for check in report["verification"])
    assert report["robustness"]
    page = (made / "r.html").read_text()
    assert report["bundle_digest"] in page
    assert page.count("<svg") >= 3


def test_the_list_of_targets_needs_no_model(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    done = run(tmp_path / "user", "--target", "list")
    assert done.returncode == 0, done.stderr
    for profile in (ROOT / "firmware_configs").glob("*.toml"):
        assert profile.stem in done.stdout
