"""From sources to answers: folders, topics, films, sounds; what is wrong is an event, and no end."""

from __future__ import annotations

import codecs
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.models import Models
from edge.agent.sources import folder, growing, payloads, sinks, topics
from edge.agent.sources.feeding import Feeding
from edge.agent.sources.folder import Folder
from edge.agent.sources.payloads import Payload, SourceOptions
from edge.agent.sources.programs import Camera, Microphone
from edge.agent.sources.specs import World, open_sink, open_source
from edge.agent.sources.topics import MOST_WAITING, Topics
from edge.channel.memory import MemoryBroker, MemoryTransport
from edge.channel.transport import Received
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, EdgeError
from tests.support.fleet import unhurried

START_MS = 1_800_000_000_000


class Running:
    """An agent with a picture model and a voice model, its clock, and what was answered and told."""

    def __init__(self, folder: Path, bundles: dict[str, Path], **learning: float) -> None:
        profile = unhurried()
        profile = replace(profile, learning=replace(profile.learning, **learning))
        config = AgentConfig(
            bundles=bundles, state_dir=folder, fleet="f", device="cam-1", profile=profile, outbox_mb=0.0
        )
        self.models = Models(config)
        watch = itertools.count()
        self.core = AgentCore(config, self.models, stopwatch=lambda: 0.01 * next(watch) if learning else 0.0)
        self.now_s = 100.0
        self.answers: list[Mapping[str, Any]] = []

    def now(self) -> Now:
        return Now(self.now_s, START_MS + round(1000 * self.now_s))

    def ask(self, work: Callable[[AgentCore, Now], Any]) -> Any:
        return work(self.core, self.now())

    def told(self) -> list[str]:
        self.core.tick(self.now())
        found = [text for _, kind, text in self.core.news if kind == "source-fault"]
        self.core.news.clear()
        return found

    def feeding(self, source: Any, *more: sinks.Sink) -> Feeding:
        return Feeding(source, [sinks.Callback(self.answers.append), *more], self, self.now, "cam-1")


@pytest.fixture
def running(tmp_path: Path, digits_bundle: Path, voice_bundle: Path) -> Iterator[Running]:
    found = Running(tmp_path / "state", {"digits": digits_bundle, "voice": voice_bundle})
    yield found
    found.models.close()


class Until:
    """Ends after so many answers, or when nothing comes for too long; time passes only when somebody waits."""

    def __init__(self, running: Running, answers: int, waits: int = 200) -> None:
        self._running, self._answers, self._waits = running, answers, waits

    def is_set(self) -> bool:
        return len(self._running.answers) >= self._answers or self._waits < 0

    def wait(self, timeout: float) -> bool:
        self._waits -= 1
        self._running.now_s += timeout
        return self.is_set()


def test_files_are_answered_when_they_are_whole_and_moved_away(running: Running, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    now_s = [time.time()]
    source = Folder(box, SourceOptions(model="digits"), lambda: now_s[0], most=3)
    feed = running.feeding(source)

    def look() -> list[str]:
        before = len(running.answers)
        for payload in source.look():
            feed.take(payload)
        return [answer["id"] for answer in running.answers[before:]]

    x = np.random.default_rng(0).random((1, 8, 8), np.float32)
    np.save(box / "b.npy", x)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(box / "a.png")
    (box / ".hidden.png").write_bytes(b"x")
    (box / "c.png.part").write_bytes(b"x")
    (box / "notes.txt").write_text("not for us")
    assert look() == []  # seen once: somebody may be writing still
    assert look() == ["a.png", "b.npy"]
    assert look() == []
    assert sorted(path.name for path in (box / "done").iterdir()) == ["a.png", "b.npy"]
    np.testing.assert_allclose(
        running.answers[1]["logits"], running.models.hosts["digits"].model.predict(x[None])[0], atol=1e-5
    )
    # A file on its way: it grows between two looks, then stands still half, then is whole.
    whole = (box / "done" / "b.npy").read_bytes()
    (box / "d.npy").write_bytes(whole[:100])
    look()
    (box / "d.npy").write_bytes(whole[:150])
    assert look() == []
    assert look() == []  # read, not whole, young: left
    assert (box / "d.npy").exists()
    assert "not an .npy" in running.told()[0]
    (box / "d.npy").write_bytes(whole)
    assert [look(), look()] == [[], ["d.npy"]]
    # What stays wrong is put aside when it is not young any more.
    np.save(box / "e.npy", np.zeros((3, 3)))
    look()
    look()
    now_s[0] += 60
    look()
    assert [path.name for path in (box / "failed").iterdir()] == ["e.npy"]
    assert ["expected shape (1, 8, 8), got (3, 3)" in text for text in running.told()] == [True]  # told once
    # Moved in by a rename, several samples and labels on lines; at most three are kept.
    (tmp_path / "f.jsonl").write_text(
        json.dumps({"id": "k", "x": x.tolist()}) + "\n" + json.dumps({"id": "k", "label": "7"}) + "\n[1]\n"
    )
    (tmp_path / "f.jsonl").rename(box / "f.jsonl")
    look()
    assert look() == ["k"]
    assert running.core.models["digits"].host.model.n_samples == 1
    assert "f.jsonl:3" in running.told()[0]
    for i in range(5):
        np.save(box / f"g{i}.npy", x)
    look()
    assert look() == [f"g{i}.npy" for i in range(5)]
    assert len(list((box / "done").iterdir())) == 3
    source.close()
    shutil.rmtree(box)
    with pytest.raises(ConfigError, match="cannot be read"):
        look()


def test_messages_are_answered_labels_taken_and_faults_told_once_a_minute(running: Running) -> None:
    source = Topics(MemoryTransport(MemoryBroker(), "in"), ["cameras/+/snapshot"], SourceOptions(model="digits"), "s")
    x = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    feed = running.feeding(source)
    found = source.payloads(Until(running, 99), lambda: [])
    sample = json.dumps({"id": "a", "x": x[0].tolist()}).encode()
    source._waiting.put(Received(topic="cameras/front/snapshot", payload=sample, retained=False))
    feed.take(next(found))
    source._waiting.put(Received(topic="labels", payload=json.dumps({"id": "a", "label": 3}).encode(), retained=False))
    feed.take(next(found))
    assert running.core.models["digits"].host.model.n_samples == 1
    source._waiting.put(Received(topic="cameras/front/snapshot", payload=b"", retained=True))  # clears it
    source._waiting.put(Received(topic="cameras/front/snapshot", payload=b"junk", retained=False))
    feed.take(next(found))
    for _ in range(3):
        feed.take(Payload(name="cameras/front/snapshot", data=b"junk"))
    assert len(running.told()) == 1  # the same again is counted
    running.now_s += 61
    feed.take(Payload(name="cameras/front/snapshot", data=b"junk"))
    assert "and 3 times since" in running.told()[0]


def test_of_a_flood_the_oldest_samples_are_dropped_and_no_label_and_that_is_told(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "MOST_LABELS", 2 * MOST_WAITING)
    source = Topics(MemoryTransport(MemoryBroker(), "in"), ["#"], SourceOptions(), "s")
    found = source.payloads(Until(running, 99, 0), lambda: [])
    for i in range(MOST_WAITING + 10):
        source._waiting.put(Received(topic="t", payload=b"%d" % i, retained=False))
        source._waiting.put(Received(topic="t", payload=b'{"id": "%d", "label": 1}' % i, retained=False))
    assert source._waiting.dropped == 10
    came = [next(found) for _ in range(2 * MOST_WAITING + 11)]
    labels = [json.loads(each.data)["id"] for each in came if each.data.startswith(b"{")]
    assert labels == [str(i) for i in range(MOST_WAITING + 10)]
    assert [each.data for each in came if each.data.isdigit()] == [b"%d" % i for i in range(10, MOST_WAITING + 10)]
    order = [json.loads(each.data)["id"] if each.data.startswith(b"{") else each.data.decode() for each in came]
    assert order[-2:] == [str(MOST_WAITING + 9)] * 2  # as they came
    assert ["dropped" in each.fault for each in came if each.fault] == [True]
    for i in range(2 * MOST_WAITING + 1):
        source._waiting.put(Received(topic="t", payload=b'{"id": "%d", "label": 1}' % i, retained=False))
    assert source._waiting.lost == 1
    assert next(found).fault.startswith("they come faster than they are taken")
    assert json.loads(next(found).data)["id"] == "0"


def test_different_faults_without_end_are_counted(running: Running) -> None:
    feed = running.feeding(Topics(MemoryTransport(MemoryBroker(), "in"), ["#"], SourceOptions(model="digits"), "s"))
    for i in [*range(63), *range(64, 101)]:
        feed.take(Payload(name="t", data=json.dumps([0] * (i + 1)).encode()))
        feed.take(Payload(name="p", data=b"\x89PNG\r\n\x1a\n"))  # Pillow names another place in memory each time
    told = running.told()
    assert len(told) == 20
    assert sum("no PNG" in text for text in told) == 1
    running.now_s += 61
    feed.take(Payload(name="t", data=b"[[1]]"))
    assert "and 81 other faults since" in running.told()[0]


class Box:
    """A watched folder whose clock is set by hand, fed to the digits model."""

    def __init__(self, running: Running, path: Path) -> None:
        self.path, self._running, self.now_s = path, running, 0.0
        path.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        self.source = Folder(self.path, SourceOptions(model="digits"), lambda: self.now_s)
        self.feed = self._running.feeding(self.source)

    def looks(self, n: int = 2, most: int = 10**6) -> list[str]:
        """What was answered in so many looks, half a second apart; killed after so many payloads."""
        before = len(self._running.answers)
        for _ in range(n):
            for i, payload in enumerate(self.source.look(), 1):
                self.feed.take(payload)
                if i == most:
                    return [answer["id"] for answer in self._running.answers[before:]]
            self.now_s += 0.5
        return [answer["id"] for answer in self._running.answers[before:]]

    @property
    def learned(self) -> int:
        return self._running.core.models["digits"].host.model.n_samples


def pair(name: str, label: int = 3) -> list[str]:
    x = np.full((1, 8, 8), int(name[1:]) / 100).tolist()
    return [json.dumps({"id": name, "x": x}) + "\n", json.dumps({"id": name, "label": label}) + "\n"]


def test_what_is_wrong_in_a_file_makes_nothing_else_in_it_twice(running: Running, tmp_path: Path) -> None:
    box = Box(running, tmp_path / "box")
    (box.path / "a.jsonl").write_text("".join(pair("s1")) + "garbage\n" + "".join(pair("s2")))
    x = np.zeros((4, 1, 8, 8), np.float32)
    x[2] = np.nan
    np.save(box.path / "b.npy", x)
    assert box.looks(40) == ["s1", "s2", "b.npy:0", "b.npy:1", "b.npy:3"]
    assert box.learned == 2
    assert sorted(path.name for path in (box.path / "failed").iterdir()) == ["a.jsonl", "b.npy"]
    assert [path.name for path in box.path.iterdir() if path.is_file()] == []
    box.source.close()


def test_what_cannot_be_moved_is_answered_once_and_holds_up_nothing(running: Running, tmp_path: Path) -> None:
    box = Box(running, tmp_path / "box")
    (box.path / "done").write_text("no folder")
    (box.path / "a.jsonl").write_text("".join(pair("s1")))
    assert box.looks(3) == ["s1"]
    (box.path / "b.jsonl").write_text("".join(pair("s2")))
    assert box.looks(30) == ["s2"]
    assert box.learned == 2
    assert [text for text in running.told() if "a.jsonl: it cannot be moved away" in text]
    (box.path / "done").unlink()
    assert box.looks() == []
    assert sorted(path.name for path in (box.path / "done").iterdir()) == ["a.jsonl", "b.jsonl"]
    box.source.close()


def test_lines_that_come_slowly_are_all_taken_once_also_after_their_file_was_moved(
    running: Running, tmp_path: Path
) -> None:
    box = Box(running, tmp_path / "box")
    lines = [line for name in ("s1", "s2", "s3", "s4") for line in pair(name)]
    with (box.path / "slow.jsonl").open("w", buffering=1) as file:
        file.write(lines[0] + lines[1] + lines[2][:20])
        assert box.looks(3) == ["s1"]  # and half a line, which is left for now
        file.write(lines[2][20:] + lines[3])
        file.flush()
        assert box.looks(3) == ["s2"]
        assert (box.path / "done" / "slow.jsonl").exists()
        file.write(lines[4])
        assert box.looks(3) == ["s3"]
        file.write(lines[5] + lines[6] + lines[7].rstrip())  # the last line has no end
        assert box.looks(3) == ["s4"]
    assert box.looks(40) == []
    assert (box.learned, running.told()) == (4, [])
    assert [path.name for path in box.path.iterdir()] == ["done"]


def test_who_is_killed_in_the_middle_of_a_file_learns_no_label_twice_and_loses_none(
    running: Running, tmp_path: Path
) -> None:
    box = Box(running, tmp_path / "box")
    samples, labels = zip(*(pair(f"s{i}") for i in range(6)), strict=True)
    (box.path / "a.jsonl").write_text("".join(samples) + "".join(labels))
    assert len(box.looks(most=9)) == 6
    assert box.learned == 3
    box.source.close()
    box.start()  # what waits for labels is in memory: all samples are answered again, under the same ids
    assert len(box.looks()) == 6
    assert (box.learned, running.told()) == (6, [])
    # Another file of that name is read from its beginning.
    (box.path / "a.jsonl").write_text("".join(pair("s7")))
    assert box.looks(3) == ["s7"]
    assert box.learned == 7
    assert not list(box.path.glob(".*"))
    box.source.close()


def test_labels_of_a_file_wait_for_room_and_those_of_a_budget_that_is_none_do_not(
    tmp_path: Path, digits_bundle: Path
) -> None:
    lines = "".join(line for i in range(40) for line in pair(f"s{i}"))
    for budget, learned in ((50.0, 40), (0.0, 0)):
        state, path = tmp_path / f"state{budget}", tmp_path / f"box{budget}"
        running = Running(state, {"digits": digits_bundle}, budget_ms_per_s=budget, label_ring_size=8)
        path.mkdir()
        (path / "a.jsonl").write_text(lines)

        class Ticking(Until):
            def wait(self, timeout: float) -> bool:
                self._running.core.tick(self._running.now())
                return super().wait(timeout)

        running.feeding(Folder(path, SourceOptions(model="digits"), lambda: 0.0)).run(Ticking(running, 99))
        assert len(running.answers) == 40
        told = " ".join(text for _, kind, text in running.core.news if kind == "source-fault")
        assert ("waits for room" in told, "is 0" in told) == (budget > 0, budget == 0)
        assert running.core.models["digits"].host.model.n_samples == learned
        running.models.close()


def test_what_a_source_was_at_when_the_agent_ended_is_asked_again(running: Running, tmp_path: Path) -> None:
    box = Box(running, tmp_path / "box")
    stop = threading.Event()

    def ends(_: Any) -> Any:
        stop.set()
        raise EdgeError("the agent ends")

    ask = running.ask
    for make in (
        lambda: np.save(box.path / "a.npy", np.zeros((1, 8, 8), np.float32)),
        lambda: (box.path / "b.jsonl").write_text("".join(pair("s1"))),
    ):
        make()
        list(box.source.look())
        box.now_s += 60  # nobody would call it young
        stop.clear()
        running.ask = ends  # type: ignore[method-assign]
        box.feed.run(stop)
        running.ask = ask  # type: ignore[method-assign]
        box.start()
        assert len(box.looks()) == 1
    assert box.learned == 1
    assert sorted(path.name for path in (box.path / "done").iterdir()) == ["a.npy", "b.jsonl"]
    box.source.close()


def test_lines_of_windows_and_of_files_with_long_names_are_taken(running: Running, tmp_path: Path) -> None:
    box = Box(running, tmp_path / "box")
    (box.path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + "".join(pair("s1")).replace("\n", "\r\n").encode())
    (box.path / f"{'b' * 200}.jsonl").write_text(json.dumps(np.zeros((1, 8, 8)).tolist()))
    assert box.looks() == ["s1", f"{'b' * 92}.jsonl:1"]
    assert (box.learned, running.told()) == (1, [])
    box.source.close()


def test_a_huge_file_is_not_read_whole(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (payloads, folder, growing):
        monkeypatch.setattr(module, "MAX_PAYLOAD_BYTES", 2000)
    box = Box(running, tmp_path / "box")
    (box.path / "a.npy").write_bytes(b"x" * 10**6)
    (box.path / "b.jsonl").write_text("[" * 5000 + "\n" + "".join(pair("s1")))
    taken = [payload for _ in range(2) for payload in box.source.look()]
    assert max(len(payload.data) for payload in taken) == 2001
    for payload in taken:
        box.feed.take(payload)
    assert box.learned == 1
    assert sum("at most 2000 bytes" in text for text in running.told()) == 2
    box.source.close()


def test_a_callback_that_fails_stops_nothing_and_lines_are_bounded(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Mapping[str, Any]) -> None:
        raise RuntimeError("my bug")

    path = tmp_path / "answers.jsonl"
    lines = sinks.Lines(path)
    feed = Feeding(Folder(tmp_path, SourceOptions(model="digits"), time.time),
                   [sinks.Callback(broken), lines], running, running.now, "cam-1")  # fmt: skip
    x = np.zeros((1, 8, 8)).tolist()
    for i in range(3):
        feed.take(Payload(name=f"n{i}", data=json.dumps(x).encode()))
    assert running.told() == [f"{tmp_path}: answers: the callback failed: RuntimeError: my bug"]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["source"] for each in found] == ["n0", "n1", "n2"]
    assert len({each["id"] for each in found}) == 3
    assert {"ts", "device", "model", "class", "name", "confidence"} <= found[0].keys()
    monkeypatch.setattr(sinks, "_MAX_LINES_BYTES", 100)
    feed.take(Payload(name="n3", data=json.dumps(x).encode()))
    assert len(path.read_text().splitlines()) == 1
    assert len((tmp_path / "answers.jsonl.1").read_text().splitlines()) == 3
    lines.close()


def test_a_film_is_seen_frame_by_frame_as_a_camera_is(running: Running, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    film = tmp_path / "film.avi"
    frames = np.zeros((10, 64, 64, 3), np.uint8)
    frames[5:] = 255
    line = [
        "ffmpeg",
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        "64x64",
        "-r",
        "5",
        "-i",
        "-",
    ]
    subprocess.run([*line, "-c:v", "ffv1", str(film)], input=frames.tobytes(), check=True, timeout=60)
    running.feeding(Camera(str(film), 5.0, SourceOptions(model="digits"))).run(Until(running, 10))
    model = running.models.hosts["digits"].model
    black, white = (model.predict(np.full((1, 1, 8, 8), shade, np.float32))[0] for shade in (0.0, 1.0))
    apart = float(np.abs(black - white).max())
    assert apart > 1.0
    for answer, wanted in ((running.answers[0], black), (running.answers[9], white)):
        assert np.abs(answer["logits"] - wanted).max() < 0.1 * apart  # a film has no pure white
    running.answers.clear()
    running.feeding(Camera(str(tmp_path / "none.avi"), 5.0, SourceOptions(model="digits"))).run(Until(running, 1, 2))
    assert "No such file" in running.told()[0]


def test_a_microphone_is_heard_in_pieces_as_long_as_the_model_takes(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("arecord") is None:
        pytest.skip("arecord is not installed")
    sound = (3000 * np.sin(np.arange(128 * 6) / 5)).astype("<i2")
    (tmp_path / "sound.raw").write_bytes(sound.tobytes())
    # ALSA's own stand-in for a device: a file that is read as the slave of one that is silent.
    (tmp_path / "asound.conf").write_text(
        f'pcm.ear {{ type file slave.pcm null file /dev/null infile "{tmp_path}/sound.raw" format raw }}\n'
        "pcm.null { type null }\n"
    )
    monkeypatch.setitem(os.environ, "ALSA_CONFIG_PATH", str(tmp_path / "asound.conf"))
    running.feeding(Microphone("ear", 16000, SourceOptions(model="voice"))).run(Until(running, 3))
    model = running.models.hosts["voice"].model
    wanted = model.outputs(sound[: 3 * 128].reshape(3, 128).astype(np.float32) / 32768)
    found = [answer["values"][0] for answer in running.answers[:3]]
    np.testing.assert_allclose(found, next(iter(wanted.values())).reshape(-1)[:3], atol=1e-5)
    assert [answer["step"] for answer in running.answers[:3]] == [1, 2, 3]


def test_sources_and_places_are_named_and_what_is_none_is_said(tmp_path: Path) -> None:
    broker, made = MemoryBroker(), list[tuple[str, str, bool]]()

    def connect(url: Any, end: str, keep: bool) -> MemoryTransport:
        made.append((str(url), end, keep))
        return MemoryTransport(broker, end)

    with (tmp_path / "in").open("wb+") as file:
        world = World(connect=connect, clock_s=time.time, stdin=file, stdout=file)
        found = open_source("mqtt://ann@h:1884/zigbee2mqtt/room,frigate/#?fields=a,b&model=m", 3, world)
        assert isinstance(found, Topics)
        assert (found.options.fields, found.options.model) == (("a", "b"), "m")
        assert found._filters == ["zigbee2mqtt/room", "frigate/#"]
        open_source("mqtt://h/labels?away=keep", 4, world)
        assert made == [("mqtt://h:1884", "in3", False), ("mqtt://h:1883", "in4", True)]
        assert isinstance(open_source(str(tmp_path), 0, world), Folder)
        assert isinstance(open_source(f"folder:{tmp_path}?after=delete", 0, world), Folder)
        assert isinstance(open_source("camera:/dev/video1?fps=2", 0, world), Camera)
        assert isinstance(open_source("microphone:", 0, world), Microphone)
        for words, text in (
            ("expected a folder", "nowhere"),
            ("expected a topic", "mqtt://h"),
            ("'x' is not known", f"{tmp_path}?x=1"),
            ("kind: expected one of", f"{tmp_path}?kind=film"),
            ("fps: expected", "camera:/dev/video0?fps=fast"),
            ("after: expected", f"{tmp_path}?after=burn"),
            ("away: expected", "mqtt://h/t?away=1"),
            ("cannot be read", "mqtt://h/t?password_file=/nowhere"),
        ):
            with pytest.raises(ConfigError, match=words):
                open_source(text, 0, world)
        for words, text in (
            ("without wildcards", "mqtt://h/a/+"),
            ("retain: expected", "mqtt://h/a?retain=yes"),
            ("expected mqtt", "http://h/a"),
            ("cannot be written", "/nowhere/a.jsonl"),
        ):
            with pytest.raises(ConfigError, match=words):
                open_sink(text, 0, world)


def test_a_sound_file_in_a_folder_is_a_stream_of_its_own(running: Running, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((1000 * np.ones(300)).astype("<i2").tobytes())
    source = Folder(tmp_path, SourceOptions(model="voice"), time.time)
    feed = running.feeding(source)
    for _ in range(2):
        list(map(feed.take, source.look()))
    assert [(answer["id"], answer["step"]) for answer in running.answers] == [
        ("a.wav", 1),
        ("a.wav:1", 2),
        ("a.wav:2", 3),
    ]
