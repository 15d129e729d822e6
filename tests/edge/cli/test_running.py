"""``edge-agent status | predict | label | rollback | export`` against an agent that runs as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edge.agent.client import AgentClient
from edge.agent.config import AgentConfig
from edge.agent.model import releases
from edge.agent.models import Models
from edge.cli.agent import agent
from edge.cli.running import _samples as running_samples
from edge.cli.running import says, target
from edge.contract.bundle import Bundle
from edge.contract.errors import ChannelError, ConfigError, LearningError, NoAgentError
from edge.contract.tensorspec import TensorSpec
from edge.learning.exchange import HeadRelease
from tests.support.fleet import unhurried

ROOT = Path(__file__).parents[3]
HALF = 0.5


def pushed(bundle: Path, factor: float) -> HeadRelease:
    found = Bundle.open(bundle)
    head = {name: np.float32(factor) * array for name, array in found.head_parameters().items()}
    return HeadRelease(backbone=found.manifest.backbone_digest, parameters=head)


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray]
) -> Iterator[Path]:
    """The state folder of an agent on which an operator's head, the shipped one halved, is on probation."""
    state = tmp_path_factory.mktemp("agent") / "state"
    bundles = {"digits": digits_bundle}
    models = Models(AgentConfig(bundles=bundles, state_dir=state, fleet="f", device="d", profile=unhurried()))
    host = models.hosts["digits"]
    offer = releases.look_at(host.model, pushed(digits_bundle, HALF), competes=False)
    releases.take(host.model, offer, 3)
    host.slots.update(release=3, state="probation", replaces=True, slot="head")
    picture = (digits[0][5:6] * 255).astype(np.uint8).astype(np.float32) / np.float32(255)
    np.save(state / "wanted.npy", host.model.predict(np.concatenate([digits[0][:3], picture])))
    models.close()
    line = [sys.executable, "-m", "edge.cli.agent", "run", str(digits_bundle), "--state-dir", str(state)]
    line += ["--device", "cam-1", "--probation", "3600"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not (state / "agent.sock").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        yield state
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(20) == 0, said
        assert "Traceback" not in said


def ask(state: Path, command: str, *arguments: object) -> Result:
    return CliRunner().invoke(agent, [command, *map(str, arguments), "--state-dir", str(state)])


def said(found: Result) -> str:
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


def test_an_agent_is_asked_labelled_exported_and_taken_back(
    running: Path, tmp_path: Path, digits: tuple[np.ndarray, np.ndarray], digits_bundle: Path
) -> None:
    x, y = digits
    np.save(tmp_path / "one.npy", x[0, 0, None])
    np.savez(tmp_path / "many.npz", x=x[:3], y=y[:3])
    Image.fromarray((x[5, 0] * 255).astype(np.uint8)).save(tmp_path / "five.png")
    wanted = np.load(running / "wanted.npy")

    text = said(ask(running, "status"))
    for words in (
        "cam-1: bundle ",
        "of pushed",
        "release   3, probation; broker: not connected",
        "labels    0 learned",
    ):
        assert words in text
    assert json.loads(said(ask(running, "status", "--json")))["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    parcel = tmp_path / "parcel"
    assert "wrote" in said(ask(running, "export", parcel, "--for-fleet"))
    assert "has nothing for this device" in said(ask(running, "import", parcel))

    answer = json.loads(said(ask(running, "predict", tmp_path / "one.npy", "--id", "a", "--json")))
    np.testing.assert_allclose(answer["logits"], wanted[0], atol=1e-5)
    assert (answer["id"], answer["class"]) == ("a", int(wanted[0].argmax()))
    lines = [json.loads(line) for line in said(ask(running, "predict", tmp_path / "many.npz", "--json")).splitlines()]
    assert [line["id"] for line in lines] == ["many.npz:0", "many.npz:1", "many.npz:2"]
    np.testing.assert_allclose([line["logits"] for line in lines], wanted[:3], atol=1e-5)
    text = said(ask(running, "predict", tmp_path / "many.npz", tmp_path / "five.png", "--index", 0))
    assert [line.split(":")[0] for line in text.splitlines()] == ["many.npz", "five.png"]
    answer = json.loads(said(ask(running, "predict", tmp_path / "five.png", "--json")))
    np.testing.assert_allclose(answer["logits"], wanted[3], atol=1e-5)

    assert "a: " in said(ask(running, "label", "a", y[0]))
    again = ask(running, "label", "a", y[0], "--json")
    assert isinstance(again.exception, LearningError)
    assert "has this label already" in str(again.exception)
    with AgentClient(running / "agent.sock") as client:
        found = client.label("a", (int(y[0]) + 1) % 10)
        assert "already, and what was learned is not taken back" in found.why
        assert not found
        for wrong, words in ((2.5, "2.5: expected a class from 0 to 9"), (None, "expected a class by number or name")):
            with pytest.raises(LearningError, match=words):
                client.label("many.npz:2", wrong)  # type: ignore[arg-type]
        with pytest.raises(LearningError, match="expected a class by number or name"):
            client.label("many.npz:2", ["a", "b"])  # type: ignore[arg-type]
    assert json.loads(again.output)["joined"] is False
    assert json.loads(said(ask(running, "label", "many.npz:1", y[1], "--weight", 0.5, "--json")))["joined"]
    for label in ("zebra", "1.5", "99"):
        assert isinstance(ask(running, "label", "many.npz:2", label).exception, LearningError)

    head = tmp_path / "head.safetensors"
    head.write_bytes(b"before")
    assert "2 labels" in said(ask(running, "export", head))
    exported = HeadRelease.decode(head.read_bytes(), "")
    assert (exported.backbone, exported.n_samples) == (pushed(digits_bundle, 1).backbone, 2)

    text = said(ask(running, "rollback"))
    assert "went back from the head of release 3 to what was there before it" in text
    assert "release   3, rolled-back" in said(ask(running, "status"))
    now = json.loads(said(ask(running, "status", "--json")))
    assert ("pushed" in now["experts"], "shipped" in now["experts"]) == (False, True)
    assert now["samples"] == 2, "labels since were learned once more"
    nothing = ask(running, "rollback")
    assert isinstance(nothing.exception, LearningError)
    assert "nothing to go back to" in str(nothing.exception)


def test_samples_that_cannot_be_asked_about_are_refused_by_file_and_reason(running: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((1, 9, 9), np.float32))
    np.savez(tmp_path / "two.npz", x=np.zeros((2, 1, 8, 8), np.float32))
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 1, 8, 8), np.float32))
    np.savez(tmp_path / "names.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    for arguments, words in (
        (["wide.npy"], "expected shape"),
        (["two.npz", "--id", "a"], "names one sample"),
        (["two.npz", "--index", "2"], "samples 0 to 1"),
        (["empty.npz"], "got (0, 1, 8, 8)"),
        (["names.npz"], "expected the arrays input"),
        (["objects.npy"], "plain array"),
        (["text.npy"], "plain array"),
        (["text.png"], "not an image"),
        (["nothing.npy"], "does not exist"),
        (["nothing.jpg"], "nothing.jpg"),
    ):
        found = ask(running, "predict", tmp_path / arguments[0], *arguments[1:])
        assert isinstance(found.exception, ConfigError), (arguments, found.exception)
        assert words in str(found.exception), (words, found.exception)
    for place in (tmp_path / "no" / "head.safetensors", tmp_path):
        assert isinstance(ask(running, "export", place).exception, ConfigError)


def test_a_labelled_file_is_taken_whether_the_model_has_one_input_or_several(tmp_path: Path) -> None:
    shapes = {"image": ("batch", 2), "mask": ("batch", 1)}
    specs = [TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()]
    arrays = {"image": np.zeros((3, 2), np.float32), "mask": np.ones((3, 1), np.float32)}
    np.savez(tmp_path / "seen.npz", **arrays, y=np.zeros(3), weights=np.ones(3))
    assert [(name, sorted(one)) for name, one in running_samples(tmp_path / "seen.npz", specs, 1)] == [
        ("seen.npz:1", ["image", "mask"])
    ]
    np.savez(tmp_path / "more.npz", **arrays, other=np.zeros(3))
    with pytest.raises(ConfigError, match="got image, mask, other"):
        list(running_samples(tmp_path / "more.npz", specs, None))


@pytest.mark.parametrize(
    "command", [["status"], ["predict", "x.npy"], ["label", "a", "1"], ["rollback"], ["export", "h"]]
)
def test_where_no_agent_is_every_command_says_so(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "stale"))
    places = {"none": "no such socket", "file": "no socket", "stale": "nobody listens", "x" * 200: "too long"}
    for name, words in places.items():
        line = [*command[:1], *(str(tmp_path / each) if each == "h" else each for each in command[1:])]
        found = CliRunner().invoke(agent, [*line, "--socket", str(tmp_path / name)])
        assert isinstance(found.exception, NoAgentError), (name, found.exception)
        assert words in str(found.exception)
    assert "edge-agent run" in NoAgentError.help_line
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "is no agent"),
        (b"[1]\n", "is no agent"),
        (b"{}\n", "is no agent"),
        (b"[" * 100000 + b"\n", "is no agent"),
        (b"\xff\xfe\n", "is no agent"),
        (b"", "closed the connection"),
        (None, "no answer"),
        (b".", "no answer"),
    ],
)
def test_a_socket_of_another_program_is_told_from_an_agent(tmp_path: Path, answer: bytes | None, words: str) -> None:
    """Also one that says nothing, or drips for ever: the time is that of the whole answer."""
    done = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:  # the client goes when it has enough
            connection.recv(1 << 16)
            while answer == b"." and not done.wait(0.02):
                connection.send(answer)
            connection.sendall(answer or b"")
            if answer is None:
                done.wait(10)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        other = threading.Thread(target=serve)
        other.start()
        with AgentClient(tmp_path / "s", timeout_s=0.2) as client, pytest.raises(ChannelError, match=words):
            client.status()
        done.set()
        other.join()


def test_an_agent_takes_no_file_and_no_socket_of_others_away(tmp_path: Path, digits_bundle: Path) -> None:
    (tmp_path / "notes").write_text("dear diary")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "theirs"))
        listener.listen()
        for name, words in (("notes", "no socket"), ("theirs", "another program listens")):
            line = ["run", str(digits_bundle), "--state-dir", str(tmp_path / "s"), "--socket", str(tmp_path / name)]
            done = subprocess.run(
                [sys.executable, "-m", "edge.cli.agent", *line],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert (done.returncode, words in done.stderr) == (3, True), done.stderr
    assert (tmp_path / "notes").read_text() == "dear diary"


def test_the_name_of_a_class_is_one_line_of_an_answer() -> None:
    said = says({"class": 1, "name": "ok\nbroker\x1b[2J", "confidence": 0.5})
    assert said == "ok broker\N{REPLACEMENT CHARACTER}[2J (class 1), confidence 0.500"


def test_labels_are_names_numbers_or_quantities_also_negative_ones(tmp_path: Path) -> None:
    assert [target(text, ["7", "dent"]) for text in ("7", "dent", "1", "1.5", "x")] == ["7", "dent", 1, "1.5", "x"]
    assert [target(text, []) for text in ("3", "-1.5", "-1.5,2", "1e3", "x")] == [
        3,
        [-1.5],
        [-1.5, 2.0],
        [1000.0],
        "x",
    ]
    for label in ("-1.5", "-1.5,2", "-3"):
        found = CliRunner().invoke(agent, ["label", "a", label, "--socket", str(tmp_path / "none")])
        assert isinstance(found.exception, NoAgentError), found.output
