"""An agent that is fed by a real broker and a folder, looked at with `review`, and told by file what samples were."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edge.agent.model.pictures import picture_of, png
from edge.agent.sources.topics import Topics
from edge.channel.transport import Received
from edge.cli.agent import agent
from edge.cli.feeds import feeds_of
from edge.cli.label_files import read_labels
from edge.contract.errors import ConfigError, LearningError
from tests.support.messages import Ear

ROOT = Path(__file__).parents[3]


def test_pictures_on_a_topic_are_answered_on_a_topic_and_hard_ones_are_reviewed_and_labelled(
    tmp_path: Path, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray], mosquitto: Callable[..., int]
) -> None:
    x, y = digits
    port = mosquitto("allow_anonymous true")
    state, box = tmp_path / "state", tmp_path / "box"
    box.mkdir()
    line = [sys.executable, "-m", "edge.cli.agent", "run", str(digits_bundle), "--state-dir", str(state)]
    broker = f"mqtt://127.0.0.1:{port}"
    line += ["--device", "cam-1", "--keep-hard", "5", "--answers", f"{broker}/answers/{{device}}/{{model}}"]
    line += ["--source", f"{broker}/frigate/+/+/snapshot,labels", "--source", str(box)]
    line += ["--answers", str(tmp_path / "answers.jsonl")]

    def ask(command: str, *arguments: object, text: str | None = None) -> Result:
        return CliRunner().invoke(agent, [command, *map(str, arguments), "--state-dir", str(state)], input=text)

    @contextmanager
    def running() -> Iterator[subprocess.Popen[str]]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                end = time.monotonic() + 60
                while process.poll() is None and time.monotonic() < end and ask("status").exit_code:
                    time.sleep(0.05)
                yield process
            finally:
                process.kill()

    with running(), Ear(port, "answers/#") as ear:
        file = io.BytesIO()
        Image.fromarray((x[0, 0] * 255).astype(np.uint8)).save(file, "PNG")
        topic = "frigate/front/person/snapshot"
        found = json.loads(ear.until(lambda: ear.publish(topic, file.getvalue())))
        assert (found["device"], found["source"]) == ("cam-1", topic)
        assert found["id"].startswith(f"{topic}@")
        ear.publish("labels", json.dumps({"id": found["id"], "label": str(y[0])}).encode())
        np.save(box / ".a.npy", x[1])
        (box / ".a.npy").rename(box / "a.npy")
        end = time.monotonic() + 20
        while not (box / "done" / "a.npy").exists() and time.monotonic() < end:
            time.sleep(0.1)
        status = json.loads(ask("status", "--json").output)
        assert (status["samples"], status["answered"] >= 2) == (1, True)
        written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert written[-1]["id"] == "a.npy"
        recent = [json.loads(line) for line in ask("review", "--recent", "--json").output.splitlines()]
        assert (recent[0]["id"], recent[-1]["label"]) == ("a.npy", str(y[0]))
        assert ask("label", "a.npy", (recent[0]["answer"]["class"] + 1) % 10).exit_code == 0
        wrong = [json.loads(line) for line in ask("review", "--wrong", "--json").output.splitlines()]
        assert wrong[0]["id"] == "a.npy"
        assert all(str(each["label"]) != str(each["answer"]["class"]) for each in wrong)
        kept: list[dict] = []
        end = time.monotonic() + 30
        for i in range(1000):  # which ones it asks for is its own affair
            np.save(box / f"more{i}.npy", x[i + 2])
            kept = [json.loads(line) for line in ask("review", "--kept", "--json").output.splitlines()]
            if kept or time.monotonic() > end:
                break
        assert kept
    # The process was killed: a hard sample waits for its label on disk.
    with running() as process:
        shown = ask("review").output
        assert kept[0]["id"] in shown
        assert any(set(row.strip()) <= set(" .:-=+*#%@") and len(row) > 15 for row in shown.splitlines())
        exported = ask("review", "--export", tmp_path / "out")
        assert exported.exit_code == 0, exported.output
        filled = (tmp_path / "out" / "labels.csv").read_text()
        assert "may have labels in it" in str(ask("review", "--export", tmp_path / "out").exception)
        assert (tmp_path / "out" / "labels.csv").read_text() == filled
        with (tmp_path / "out" / "labels.csv").open() as table:
            rows = list(csv.DictReader(table))
        assert [row["id"] for row in rows] == [each["id"] for each in kept]
        with Image.open(tmp_path / "out" / rows[0]["file"]) as image:
            assert image.size == (8, 8)
        assert not read_labels_of(tmp_path / "out" / "labels.csv")  # nobody has filled it in
        assert "no label is filled in" in ask("label", "--file", tmp_path / "out" / "labels.csv").output
        (tmp_path / "l.csv").write_text(f"id,label\n{kept[0]['id']},3\nnobody,4\n")
        done = ask("label", "--file", tmp_path / "l.csv")
        assert isinstance(done.exception, LearningError)
        assert f"{kept[0]['id']}: 3 was learned" in done.output
        assert "nobody: the label was not taken" in str(done.exception)
        assert json.loads(ask("status", "--json").output)["samples"] == 3
        left = ask("review", "--kept", "--ask", text="zebra\n\n" * len(kept))
        assert kept[0]["id"] not in left.output
        assert left.exit_code == 0
        process.terminate()
        said = process.communicate(timeout=20)[1]
        assert process.returncode == 0, said
        assert "Traceback" not in said


def read_labels_of(path: Path) -> list[dict]:
    return list(read_labels(path))


@pytest.mark.parametrize(("sources", "stdin"), [(["-", "-"], False), (["-"], True)])
def test_standard_input_is_read_by_one(sources: list[str], stdin: bool) -> None:
    with pytest.raises(ConfigError, match="one standard input"):
        feeds_of(sources, [], "cam-1", stdin=stdin)


def test_labels_come_out_of_tables_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text("﻿id,label,weight,note\na,scratch,0.5,x\nb,,,\nc,7,,\n")
    assert [tuple(each.values()) for each in read_labels_of(path)] == [("a", "scratch", 0.5), ("c", "7", 1.0)]
    path.write_text('{"id": "a", "label": [1.5, 2]}\n\n{"id": "b", "label": 3, "weight": 0.1}\n')
    assert [tuple(each.values()) for each in read_labels_of(path)] == [("a", [1.5, 2], 1.0), ("b", 3, 0.1)]
    for text, words in (
        ("name,label\n", "columns id and label"),
        ("", "got nothing"),
        ('{"id": 1}', "with id and label"),
        ("{", "expected JSON"),
        ("id,label,weight\na,b,c\n", "weight"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_labels_of(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_labels_of(path)
    for arguments in (["label"], ["label", "a"], ["label", "a", "b", "--file", "c"]):
        assert CliRunner().invoke(agent, arguments).exit_code == 2


def test_what_looks_like_a_picture_is_written_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for array, mode in (
        (rng.random((1, 3, 5, 7), np.float32), "RGB"),
        (rng.random((1, 1, 5, 7), np.float32), "L"),
        (rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), "RGB"),
        (rng.standard_normal((5, 7)), "L"),
    ):
        pixels = picture_of(array)
        (tmp_path / "a.png").write_bytes(png(pixels))
        with Image.open(tmp_path / "a.png") as image:
            assert (image.size, image.mode) == ((7, 5), mode)
            np.testing.assert_array_equal(np.asarray(image), pixels)
    for array in (rng.random((1, 16000)), rng.random(3), np.zeros((0, 5))):
        assert picture_of(array) is None


@pytest.mark.parametrize("away", ["drop", "keep"])
def test_what_is_published_while_the_agent_is_away_waits_where_it_is_asked_to(
    mosquitto: Callable[..., int], away: str
) -> None:
    port = mosquitto("allow_anonymous true")

    def heard(said: bytes) -> list[bytes]:
        """What the source of a new agent gives, until what is said while it is there."""
        ((source,), _) = feeds_of([f"mqtt://127.0.0.1:{port}/labels?away={away}"], [], "cam-1")
        assert isinstance(source, Topics)
        found, stop = [], threading.Event()
        with Ear(port, "nothing") as ear:
            payloads = source.payloads(stop, lambda: [])
            for at in itertools.count():
                if not at % 2:
                    ear.publish("labels", said)  # until it is subscribed
                source._waiting.put(Received(topic="tick", payload=b"tick", retained=False))
                found.append(next(payloads).data)
                if found[-1] == said:
                    break
                time.sleep(0.02)
            stop.set()
            with contextlib.suppress(StopIteration):
                next(payloads)
        return list(dict.fromkeys(each for each in found if each != b"tick"))  # what was said again, once

    assert heard(b"1") == [b"1"]
    with Ear(port, "nothing") as ear:
        ear.until(lambda: ear.publish("nothing", b"!"))
        for text in (b"2", b"3"):
            ear.publish("labels", text)
        ear.until(lambda: ear.publish("nothing", b"!"))
    found = [each for each in heard(b"4") if each != b"1"]
    assert found == ([b"2", b"3", b"4"] if away == "keep" else [b"4"])
