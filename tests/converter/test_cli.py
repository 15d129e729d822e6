"""``edge-convert`` as a process: what works without options, and every kind of wrong input.

Wrong input gives one message on stderr and its own exit code, no traceback; nothing is written, and no code in the
model file runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from tests.converter.command import CONFIG, CONVERSION, ROOT, TIMEOUT_S, USAGE, refused, run
from tests.converter.models import cnn, mlp, save, snapshot

NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden=128):
        super().__init__()
        self.fc1 = nn.Linear(784, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))
"""


class Net(nn.Module):
    """As in `NET`."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: net.py and the weights of a trained Net."""
    made = tmp_path / "user"
    made.mkdir()
    (made / "net.py").write_text(NET)
    torch.manual_seed(0)
    torch.save(Net().state_dict(), made / "model.pth")
    return made


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """A self-describing checkpoint in the user's folder."""
    return save(mlp(), folder / "mlp.pth", (12,))


# --- what works ------------------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "converter.cli", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "--trainable" in done.stdout
    assert "click" in imported
    assert not imported & {"torch", "numpy", "onnx", "onnxruntime", "rich"}


def test_threads_of_torch_do_not_spin_unless_the_user_says_so() -> None:
    """It reads that when it is loaded, which the command does after its own environment is complete."""
    told = "import os, sys; from converter import cli; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for own, expected in (({}, "PASSIVE False"), ({"OMP_WAIT_POLICY": "active"}, "active False")):
        done = subprocess.run(
            [sys.executable, "-c", told], cwd=ROOT, env=others | own, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_help_and_targets_fit_80_columns_and_name_examples_and_environment(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    for arguments in (["--help"], ["--target", "list"]):
        said = run(tmp_path / "user", *arguments).stdout
        assert max(map(len, said.splitlines())) <= 80
    said = run(tmp_path / "user", "--help").stdout
    for word in ("edge-convert weights.pth --arch net.py:Net", "EDGE_SIGN_PASSWORD", "EDGE_DEBUG"):
        assert word in said


def test_a_shell_completes_options_and_targets(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()

    def completed(words: str) -> str:
        asked = {"_EDGE_CONVERT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return run(tmp_path / "user", environment=asked).stdout

    assert "plain,raspberry-pi-4\n" in completed("edge-convert model.pth --target rasp")
    assert "plain,--calibrate\n" in completed("edge-convert model.pth --cal")
    script = run(tmp_path / "user", environment={"_EDGE_CONVERT_COMPLETE": "bash_source"}).stdout
    assert "complete -o nosort -F _edge_convert_completion edge-convert" in script


def test_a_bare_state_dict_and_its_class_need_no_other_option(folder: Path) -> None:
    done = run(folder, "model.pth", "--arch", "net.py:Net")
    assert done.returncode == 0, done.stderr
    assert "input (batch, 784) float32 inferred from the first layer, fc1" in done.stdout
    assert "wrote model.edge" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["model.edge", "model.pth", "net.py"]
    bundle = Bundle.open(folder / "model.edge")
    assert bundle.digest in done.stdout
    assert bundle.manifest.inputs[0].sample_shape == (784,)
    assert set(bundle.head_parameters()) == {"fc2.weight", "fc2.bias"}
    report = json.loads(bundle.read(m.REPORT))
    assert any("inferred from the first layer, fc1" in note for note in report["notes"])


def test_a_self_describing_checkpoint_needs_no_option(folder: Path, checkpoint: Path) -> None:
    done = run(folder, "mlp.pth", cold=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Bundle.open(folder / "mlp.edge").manifest.class_names[0] == "class 0"


def test_a_class_in_a_package_with_arguments_and_an_output_of_its_own(folder: Path) -> None:
    (folder / "nets").mkdir()
    (folder / "nets" / "__init__.py").write_text("")
    (folder / "nets" / "dense.py").write_text(NET)
    torch.save(Net(hidden=32).state_dict(), folder / "small.pth")
    (folder / "out").mkdir()
    arguments = ("--arch", "nets.dense:Net", "--arch-arg", "hidden=32", "-o", "out/small.edge", "--trainable", "last:2")
    done = run(folder, "small.pth", *arguments)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(folder / "out" / "small.edge").manifest.head.parameters[0].shape == (32, 784)
    assert not list(folder.rglob("__pycache__"))


def test_an_arch_file_may_import_its_neighbour(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "net.py").write_text(NET)
    (folder / "code" / "make.py").write_text("from net import Net\n\n\ndef make():\n    return Net()\n")
    (folder / "net.py").unlink()
    done = run(folder, "model.pth", "--arch", "code/make.py:make")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {"model": {"state_dict": {f"_orig_mod.module.{k}": v for k, v in weights.items()}}},
    ],
    ids=["state_dict", "module", "nested"],
)
def test_wrapped_state_dicts_are_unwrapped(folder: Path, wrap: Callable[[dict], dict]) -> None:
    torch.save(wrap(Net().state_dict()), folder / "model.pth")
    done = run(folder, "model.pth", "--arch", "net.py:Net")
    assert done.returncode == 0, done.stderr


def test_a_model_that_calls_its_own_part_model_keeps_its_names(folder: Path) -> None:
    (folder / "outer.py").write_text(
        "from torch import nn\nfrom net import Net\n\n\nclass Outer(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.model = Net()\n\n    def forward(self, x):\n"
        "        return self.model(x)\n"
    )
    torch.save({f"model.{name}": tensor for name, tensor in Net().state_dict().items()}, folder / "outer.pth")
    done = run(folder, "outer.pth", "--arch", "outer.py:Outer")
    assert done.returncode == 0, done.stderr


def test_names_that_look_like_markup_are_printed_as_they_are(folder: Path, checkpoint: Path) -> None:
    checkpoint.rename(folder / "a[bold]b[x].pth")
    done = run(folder, "a[bold]b[x].pth")
    assert done.returncode == 0, done.stderr
    assert "wrote a[bold]b[x].edge" in done.stdout


# --- files that are not models ---------------------------------------------------------------------------------------


class Intruder:
    """A pickle that runs a command when it is loaded carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_refuses_files_that_are_not_models(folder: Path, checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    flipped = bytearray(data)
    flipped[data.index(b"0.weight") if b"0.weight" in data else len(data) // 2] ^= 0x04
    files = {
        "empty.pth": b"",
        "text.pth": b"these are not weights\n",
        "random.pth": np.random.default_rng(0).bytes(5000),
        "cut-early.pth": data[:100],
        "cut-late.pth": data[:-10],
        "flipped.pth": bytes(flipped),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    refused(folder, CONFIG, ("missing.pth does not exist",), "missing.pth")
    refused(folder, CONFIG, ("is a folder",), ".")
    with zipfile.ZipFile(folder / "made.edge", "w") as bundle:
        bundle.writestr("manifest.json", "{}")
        bundle.writestr(f"blobs/{'0' * 64}", b"")
    refused(folder, CONFIG, ("made.edge is a bundle already", "edge-agent run"), "made.edge")
    refused(folder, CONVERSION, ("empty.pth is empty",), "empty.pth")
    for name in ("text.pth", "random.pth", "cut-early.pth", "cut-late.pth"):
        refused(folder, CONVERSION, (name, "Expected a state_dict"), name)
    refused(folder, CONVERSION, ("flipped.pth is damaged",), "flipped.pth")


def test_refuses_a_pickle_with_code_in_it_names_what_it_wants_and_runs_nothing(folder: Path) -> None:
    marker = folder / "marker"
    torch.save({"state_dict": Intruder(marker)}, folder / "new.pth")
    torch.save(Intruder(marker), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pth").write_bytes(pickle.dumps(Intruder(marker)))
    refused(folder, CONVERSION, ("is a Python pickle", "nothing of it was run"), "plain.pth", "--arch", "net.py:Net")
    for name in ("new.pth", "old.pth"):
        refused(folder, CONVERSION, ("posix.system", "nothing of it was run"), name, "--arch", "net.py:Net")
    assert not marker.exists()


def test_refuses_a_whole_module_and_says_how_to_save_the_weights(folder: Path) -> None:
    torch.save(mlp(), folder / "whole.pth")
    refused(folder, CONVERSION, ("torch.nn.modules", "torch.save(model.state_dict(), PATH)"), "whole.pth")


def test_shows_what_a_bare_state_dict_holds_and_the_command_that_converts_it(folder: Path) -> None:
    words = ("fc1.weight", "(128, 784)", "fc2.bias", "torch.float32", "edge-convert model.pth --arch net.py:Net")
    refused(folder, CONVERSION, words, "model.pth")


def test_networks_that_lie_where_training_keeps_other_things_are_asked_for_by_key(folder: Path) -> None:
    states = [mlp().state_dict(), mlp().state_dict()]
    torch.save({"epoch": 3, "history": states, "optimizer": {"param_groups": [], "state": states}}, folder / "k.pth")
    words = ("--weights KEY, one of history.0, history.1\n", "history", "list of 2")
    refused(folder, CONVERSION, words, "k.pth", "--arch", "net.py:Net")


def test_refuses_what_is_not_a_state_dict(folder: Path) -> None:
    torch.save([1, 2, 3], folder / "list.pth")
    refused(folder, CONVERSION, ("holds no state_dict", "list of 3"), "list.pth", "--arch", "net.py:Net")
    torch.save({"fc1.weight": "text"}, folder / "text.pth")
    refused(folder, CONVERSION, ("'fc1.weight' is not a tensor",), "text.pth", "--arch", "net.py:Net")


# --- architectures ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refuses_architectures_that_cannot_be_made(folder: Path) -> None:
    (folder / "broken.py").write_text("class Net(:\n")
    (folder / "ends.py").write_text("import sys\nsys.exit('usage: ...')\n")
    (folder / "odd.py").write_text("def Net():\n    return 3\n\n\ndef fails():\n    raise KeyError('no\\nsuch')\n")
    (folder / "bytes.py").write_bytes(b"\xff\xfe\x00")
    for arch, words in (
        ("net.py:Ned", ("has no Ned", "did you mean Net?")),
        ("net.py:nn", ("net.py", "nn")),
        ("net.py", ("expected FILE.py:NAME",)),
        ("other.py:Net", ("other.py does not exist",)),
        ("broken.py:Net", ("SyntaxError",)),
        ("ends.py:Net", ("SystemExit", "usage")),
        ("bytes.py:Net", ("cannot be imported",)),
        ("no.such.package:Net", ("ModuleNotFoundError",)),
        ("odd.py:Net", ("gave int, expected a torch.nn.Module",)),
        ("odd.py:fails", ("KeyError",)),
    ):
        refused(folder, CONFIG, words, "model.pth", "--arch", arch)
    refused(
        folder, CONFIG, ("unexpected keyword", "width"), "model.pth", "--arch", "net.py:Net", "--arch-arg", "width=3"
    )


def test_refuses_an_architecture_that_does_not_fit_and_names_the_nearest(folder: Path) -> None:
    weights = Net().state_dict()
    renamed = {name.replace("fc1", "fc_1"): tensor for name, tensor in weights.items()}
    torch.save(renamed, folder / "renamed.pth")
    words = ("missing    fc1.weight   (the file has fc_1.weight)", "unexpected fc_1.weight")
    refused(folder, CONVERSION, words, "renamed.pth", "--arch", "net.py:Net")
    words = ("fc1.weight: (128, 784) in the file, (16, 784) in the model",)
    refused(folder, CONVERSION, words, "model.pth", "--arch", "net.py:Net", "--arch-arg", "hidden=16")


def test_refuses_an_architecture_for_a_checkpoint_that_has_one(folder: Path, checkpoint: Path) -> None:
    refused(folder, CONFIG, ("--arch is not needed",), checkpoint.name, "--arch", "net.py:Net")


# --- options ---------------------------------------------------------------------------------------------------------


def test_refuses_options_that_make_no_sense(folder: Path, checkpoint: Path) -> None:
    name = checkpoint.name
    refused(folder, CONFIG, ("generic-x86_64",), name, "--target", "generic-x86-64")
    refused(folder, CONFIG, ("no parameter has such a name", "2.bias"), name, "--trainable", "the last one")
    refused(folder, CONFIG, ("the model has 3 layers with parameters",), name, "--trainable", "last:7")
    refused(folder, CONFIG, ("2 class names, but the model has 4",), name, "--class-names", "a,b")
    for option, value in (
        ("--input-shape", "large"),
        ("--input-shape", "3,0,8"),
        ("--input-shape", "\u00b2"),
        ("--input-shape", "3,,8"),
        ("--arch-arg", "=3"),
        ("--arch-arg", "hidden"),
        ("--quantize", "int3"),
        ("--max-drop", "-1"),
        ("--no-such-option", "1"),
    ):
        refused(folder, USAGE, (option,), name, option, value)
    refused(folder, USAGE, ("MODEL",))


def test_refuses_an_input_shape_that_the_model_does_not_take(folder: Path) -> None:
    arguments = ("model.pth", "--arch", "net.py:Net", "--input-shape")
    refused(folder, CONVERSION, ("does not run on a batch of input (1, 783)",), *arguments, "783")
    refused(folder, CONFIG, ("would take more than 256 MiB",), *arguments, "2000000000,2000000000,2000000000")


def test_asks_for_the_input_shape_when_it_does_not_follow_from_the_weights(folder: Path) -> None:
    (folder / "conv.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(1, 2, 3))\n"
    )
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict(), folder / "conv.pth")
    refused(folder, CONVERSION, ("Conv2d", "--input-shape 3,224,224"), "conv.pth", "--arch", "conv.py:make")
    done = run(folder, "conv.pth", "--arch", "conv.py:make", "--input-shape", "1,8,8")
    assert done.returncode == 0, done.stderr
    assert "nothing stays trainable" in done.stdout


@pytest.mark.slow
def test_refuses_calibration_data_that_do_not_fit(folder: Path, checkpoint: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    y = np.arange(20) % 4
    marker = folder / "marker"
    objects = np.array([Intruder(marker)], dtype=object)
    for name, arrays in {
        "no-x": {"images_1": x, "images_2": x},
        "objects": {"x": objects},
        "shape": {"x": x[:, :5]},
        "scalar": {"x": np.float32(1)},
        "none": {"x": x[:0]},
        "texts": {"x": x.astype(str)},
        "labels": {"x": x, "y": y + 2},
        "negative": {"x": x, "y": y - 1},
        "lengths": {"x": x, "y": y[:5]},
        "huge": {"x": x.astype(np.float64) * 1e300},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "text.npz").write_text("x,y\n1,2\n")
    (folder / "pickle.npz").write_bytes(pickle.dumps(Intruder(marker)))
    (folder / "cut.npz").write_bytes((folder / "labels.npz").read_bytes()[:-50])
    for name, words in (
        ("missing.npz", ("does not exist",)),
        ("no-x.npz", ("has no array named x", "images")),
        ("objects.npz", ("objects",)),
        ("shape.npz", ("(5,)", "(12,)")),
        ("scalar.npz", ("()",)),
        ("none.npz", ("no samples",)),
        ("texts.npz", ("float32",)),
        ("labels.npz", ("labels from 2 to 5", "4 outputs")),
        ("negative.npz", ("labels from -1",)),
        ("lengths.npz", ("20", "5")),
        ("huge.npz", ("too large",)),
        ("text.npz", ("text.npz",)),
        ("pickle.npz", ("pickle.npz",)),
        ("cut.npz", ("cut.npz",)),
        (".", ("has no samples",)),
    ):
        refused(folder, CONFIG, words, checkpoint.name, "--calibrate", name)
    refused(folder, CONFIG, ("--evaluate", "(5,)"), checkpoint.name, "--evaluate", "shape.npz")
    assert not marker.exists()


@pytest.mark.slow
def test_refuses_places_where_no_bundle_can_be_written_before_it_works(folder: Path, checkpoint: Path) -> None:
    (folder / "there").mkdir()
    for output, words in (
        ("there", ("is a folder",)),
        ("no/such/model.edge", ("is not a folder",)),
        ("net.py/model.edge", ("is not a folder",)),
        (checkpoint.name, ("is the model itself",)),
        ("/proc/model.edge", ("cannot be written",)),
        (251 * "a", ("a name of 251 bytes", "at most 250")),
    ):
        started = time.monotonic()
        refused(folder, CONFIG, words, checkpoint.name, "-o", output)
        assert time.monotonic() - started < 60


def test_a_failed_conversion_leaves_an_older_bundle_as_it_was(folder: Path) -> None:
    save(cnn(), folder / "cnn.pth", (1, 8, 8))
    (folder / "cnn.edge").write_bytes(b"an older bundle")
    refused(folder, CONVERSION, ("need calibration data",), "cnn.pth", "--quantize", "int8")


# --- interruption ----------------------------------------------------------------------------------------------------


def wait_for(words: str, file: Path) -> None:
    """Until they are in it."""
    end = time.monotonic() + TIMEOUT_S
    while words not in file.read_text():
        assert time.monotonic() < end, file.read_text()
        time.sleep(0.0005)


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("loading the model", signal.SIGTERM), ("exporting to ONNX", signal.SIGINT),
        ("quantizing: int8", signal.SIGHUP), ("measuring", signal.SIGINT), ("verifying", signal.SIGTERM),
    ],
)  # fmt: skip
def test_signals_leave_nothing_behind(folder: Path, at: str, number: signal.Signals) -> None:
    save(cnn(), folder / "cnn.pth", (1, 8, 8), calibrated=256)
    (folder / "cnn.edge").write_bytes(b"an older bundle")
    before = snapshot(folder)

    def stop(process: int, stdout: Path) -> None:
        wait_for(at, stdout)
        os.kill(process, number)

    done = run(folder, "cnn.pth", "--max-drop", "100", environment={"PYTHONUNBUFFERED": "1"}, meanwhile=stop)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.strip() == f"stopped by {number.name}"
    assert snapshot(folder) == before


def test_a_signal_that_comes_too_late_leaves_the_reports_with_the_bundle(folder: Path) -> None:
    save(cnn(), folder / "cnn.pth", (1, 8, 8))

    def stop(process: int, _stdout: Path) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not (folder / "cnn.edge").exists():
            assert time.monotonic() < end
            time.sleep(0.0005)
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process, signal.SIGINT)

    asked = ("cnn.pth", "--quantize", "none", "--json", "r.json", "--html", "r.html")
    done = run(folder, *asked, meanwhile=stop)
    assert (done.returncode, done.stderr.strip()) in {(0, ""), (130, "stopped by SIGINT")}
    assert json.loads((folder / "r.json").read_text())["bundle_digest"]
    assert "</html>" in (folder / "r.html").read_text()


def test_the_checkpoint_is_a_plain_archive_without_code(folder: Path, checkpoint: Path) -> None:
    """Ordinary tools can look into it: what `torch.load(weights_only=True)` reads is a pickle of tensors and texts."""
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None
    document = torch.load(checkpoint, weights_only=True)
    assert set(document) >= {"edgeloop_checkpoint", "state_dict", "torchscript", "example_inputs", "class_names"}


# --- the user's own code ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_users_code_does_is_its_own_business(folder: Path) -> None:
    weights = torch.load(folder / "model.pth", weights_only=True)
    torch.save(
        {"model": weights, "images": torch.randn(30, 784), "labels": torch.arange(30) % 10}, folder / "model.pth"
    )
    (folder / "rude.py").write_text(
        "import os, threading, time\nprint('one')\nfrom net import Net\nos.chdir('/')\n\n\n"
        "class Rude(Net):\n    def __init__(self):\n        super().__init__()\n        print('two')\n"
        "        threading.Thread(target=time.sleep, args=(600,)).start()\n\n"
        "    def forward(self, x):\n        os.chdir('/')\n        return super().forward(x)\n"
    )
    done = run(folder, "model.pth", "--arch", "rude.py:Rude", "--quantize", "none", "-o", "made.edge", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # what the code prints is not in it
    assert "one\ntwo\n" in done.stderr
    assert any("calibrated on 30 samples, 'images' and 'labels' of the file" in note for note in report["notes"])
    assert Bundle.open(folder / "made.edge").digest == report["bundle_digest"]
    (folder / "made.edge").unlink()
    for body, words in (
        ("class Odd(BaseException):\n            pass\n        raise Odd('so')", ("so",)),
        ("raise SystemExit(0)", ("SystemExit",)),
        ("return self.forward(x)", ("recursion",)),
        ("return [0] * 10**14", ("not enough memory",)),
    ):
        (folder / "odd.py").write_text(
            f"from net import Net\n\n\nclass Odd(Net):\n    def forward(self, x):\n        {body}\n"
        )
        code = CONFIG if "memory" in words[0] else CONVERSION
        refused(folder, code, words, "model.pth", "--arch", "odd.py:Odd")


def test_refuses_outputs_that_would_take_each_others_place(folder: Path, checkpoint: Path) -> None:
    (folder / "data.npz").write_bytes(b"data")
    (folder / "same").symlink_to("r.json")
    for arguments, words in (
        (("--json", "mlp.edge"), "--json mlp.edge is that of --output, too"),
        (("--json", "r.json", "--html", "same"), "--html same is that of --json, too"),
        (("--html", "mlp.pth"), "is the model itself"),
        (("--json", "data.npz", "--calibrate", "data.npz"), "is read by --calibrate"),
        (("--json", "no/r.json"), "no is not a folder"),
    ):
        refused(folder, CONFIG, (words,), checkpoint.name, *arguments)


def test_a_report_that_cannot_be_written_does_not_hide_that_the_bundle_is(folder: Path, checkpoint: Path) -> None:
    done = run(folder, checkpoint.name, "--quantize", "none", "-o", "made.edge", "--json", "/dev/full")
    assert done.returncode == CONFIG
    assert "/dev/full cannot be written: No space left on device; made.edge is written, and whole" in done.stderr
    Bundle.open(folder / "made.edge")
