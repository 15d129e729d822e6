"""Options in the file beside the model, and code of the user's that is only run where it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.contract.bundle import Bundle
from edge.contract.profile import detect_profile
from tests.converter.command import CONFIG, CONVERSION, refused, run
from tests.converter.models import cnn, labelled, mlp, rng, save

NET = """\
from torch import nn


def net(hidden):
    return nn.Sequential(nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 4))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "user"
    made.mkdir()
    return made


def test_the_template_says_everything_and_changes_nothing(folder: Path) -> None:
    save(mlp(), folder / "m.pth", (12,))
    done = run(folder, "--init", "m.pth")
    assert done.returncode == 0
    text = (folder / "m.toml").read_text()
    options = {line[2:].partition(" =")[0] for line in text.splitlines() if line.startswith("# ") and " = " in line}
    for option in ("output", "arch", "calibrate", "target", "quantize", "preprocess", "trainable", "sign", "max-drop"):
        assert option in options
    done = run(folder, "m.pth", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == detect_profile()
    assert any("no device was named" in note and "--target" in note for note in report["notes"])
    refused(folder, CONFIG, ("m.toml is there already",), "--init", "m.pth")


def test_options_stand_in_the_file_relative_to_it_and_the_command_line_wins(folder: Path) -> None:
    inside = folder / "models"
    inside.mkdir()
    (inside / "net.py").write_text(NET)
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4)).eval()
    torch.save(model.state_dict(), inside / "m.pth")
    x, y = labelled(model, (12,), 60)
    np.savez(inside / "data.npz", x=x.numpy(), y=y.numpy())
    (inside / "m.toml").write_text(
        'arch = "net.py:net"\ninput-shape = [12]\ncalibrate = "data.npz"\nclass-names = ["a", "b", "c", "d"]\n'
        'target = "raspberry-pi-4"\nquantize = "none"\nmax-drop = 3\noutput = "out.edge"\ntorchscript = false\n'
        'json = "report.json"\n[arch-arg]\nhidden = 20\n'
    )
    done = run(folder, "models/m.pth", "--quantize", "dynamic", "--html", "report.html")
    assert done.returncode == 0, done.stderr
    report = json.loads((inside / "report.json").read_text())
    assert (report["target"], report["max_drop"], report["chosen"]) == ("raspberry-pi-4", 3.0, "int8 dynamic")
    bundle = Bundle.open(inside / "out.edge")
    assert bundle.manifest.class_names == ("a", "b", "c", "d")
    assert "model.pt" not in "".join(bundle.manifest.members)
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trust-pickle = true\n", ("trust-pickle cannot stand in a file",)),
        ('quantise = "auto"\n', ("quantise is not an option", "did you mean quantize")),
        ("quantize = [1]\n", ("quantize = [1] is not of the right type",)),
        ("quantize = \n", ("is not TOML",)),
        ('max-drop = "x"\n', ("m.toml: max-drop: 'x' is not a valid float",)),
        ('constant = ["a=1", "a=2"]\n', ("m.toml: constant: a has two values, 1 and 2",)),
        ('state = "x"\n', ("m.toml: state: 'x': expected INPUT=OUTPUT",)),
        ("\xff", ("is not TOML",)),
        ("a = " + "[" * 100_000, ("is not TOML",)),
        ("#" * (1 << 20) + "#", ("larger than 1 MiB",)),
    ],
    ids=["trust-pickle", "unknown", "type", "broken", "number", "twice", "form", "bytes", "deep", "large"],
)
def test_refuses_a_file_of_options_that_is_wrong(folder: Path, text: str, words: tuple[str, ...]) -> None:
    save(mlp(), folder / "m.pth", (12,))
    (folder / "m.toml").write_bytes(text.encode("latin-1"))
    refused(folder, CONFIG, words, "m.pth")


def test_a_file_of_options_does_not_make_code_run_that_was_not_named(folder: Path) -> None:
    """`arch` in the file names code of the user's own; a pickle stays refused whatever the file says."""
    torch.save(mlp(), folder / "m.pth")
    (folder / "m.toml").write_text("trust-pickle = true\n")
    refused(folder, CONFIG, ("type --trust-pickle",), "m.pth")
    (folder / "m.toml").unlink()
    refused(folder, CONVERSION, ("torch.nn.modules.container.Sequential", "--trust-pickle"), "m.pth")
    done = run(folder, "m.pth", "--trust-pickle", "--input-shape", "12", "--quantize", "none")
    assert done.returncode == 0, done.stderr


def test_the_preprocessing_becomes_part_of_the_model(folder: Path) -> None:
    """uint8 pictures of another size go in; what comes out is what torch gives for the prepared ones."""
    model = cnn()
    torch.save(model.state_dict(), folder / "m.pth")
    (folder / "net.py").write_text("from tests.converter.models import cnn\n")
    pictures = rng().integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pictures)
    done = run(
        folder, "m.pth", "--arch", "net.py:cnn", "--input-shape", "1,8,8", "--calibrate", "data.npz",
        "--preprocess", "image:mean=0.5,std=0.25,size=16x16", "--quantize", "none", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(folder / "m.edge")
    assert [(spec.dtype, spec.shape) for spec in bundle.manifest.inputs] == [("uint8", ("batch", 16, 16, 1))]
    assert bundle.manifest.preprocessing["in_graph"]

    from edge.inference.onnx_session import OnnxSession

    name = bundle.manifest.inputs[0].name
    found = OnnxSession(bundle).run({name: pictures})[bundle.manifest.outputs[0].name]
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.interpolate(scaled, (8, 8), mode="bilinear", align_corners=False)
    with torch.no_grad():
        wanted = model((small - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(found, wanted, atol=5e-3)
