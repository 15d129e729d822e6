"""Several models in one agent process, on a real broker: learned, pushed to, killed, rolled back and measured apart."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.bundle import Bundle
from edge.contract.errors import ChannelError, LearningError

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
DEVICE, PARTS = "gate", "Teile: 2"


def fleet_of(processes: ModuleType, folder: Path, bundles: dict[str, Path]) -> Any:
    """One device with several models, and the coordinator that knows their bundles."""

    class Fleet(processes.Fleet):  # type: ignore[name-defined,misc]
        def start(self, name: str, line: list[str]) -> None:
            if name == DEVICE:
                at = line.index(str(self.bundle))
                line[at : at + 1] = [f"{model}={path}" for model, path in bundles.items()]
            if name == "coordinator":
                line += [word for path in bundles.values() for word in ("--bundle", str(path))]
            super().start(name, line)

    return Fleet(folder, next(iter(bundles.values())), [DEVICE])


def models_of(fleet: Any) -> dict[str, dict[str, Any]]:
    """By name, what the coordinator knows of the device's models."""
    rows = fleet.known()
    return {row["model"]: row for row in rows[0]["models"]} if rows else {}


def status(fleet: Any) -> dict[str, Any]:
    with AgentClient(fleet.socket_path(DEVICE)) as agent:
        found: dict[str, Any] = agent.status()["models"]
        return found


def states(models: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: each["state"] for name, each in models.items()}


def releases(fleet: Any) -> dict[str, int]:
    return {name: each["release"] for name, each in status(fleet).items()}


def is_back(fleet: Any) -> bool:
    try:
        return bool(status(fleet))
    except ChannelError:
        return False


def commanded(fleet: Any, *arguments: object) -> str:
    line = [sys.executable, "-m", "edge.cli.agent", *map(str, arguments), "--state-dir", str(fleet.folder / DEVICE)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_four_kinds_of_models_in_one_process_are_pushed_rolled_back_and_measured_apart(
    processes: ModuleType,
    tmp_path: Path,
    digits_bundle: Path,
    voice_bundle: Path,
    detector_bundle: Path,
    masked_bundles: tuple[Path, Path],
) -> None:
    learns, fixed = masked_bundles
    bundles = {"digits": digits_bundle, "voice": voice_bundle, "boxes": detector_bundle, PARTS: fixed}
    rng = np.random.default_rng(0)
    frames, picture = rng.random((3, 128), np.float32), rng.random((3, 32, 48), np.float32)
    part = {"image": rng.random((1, 3, 4), np.float32), "mask": rng.integers(0, 2, (3, 4))}
    heard = OnDeviceModel.open(voice_bundle).predict(frames)[:, 0]
    seen = OnDeviceModel.open(detector_bundle).outputs(picture[None])
    with fleet_of(processes, tmp_path, bundles) as fleet:
        asked = {name: AgentClient(fleet.socket_path(DEVICE), model=name) for name in bundles}
        learn(fleet, "digits", digits_bundle, 30)
        for i, frame in enumerate(frames):  # what was heard before, by each microphone
            answers = [asked["voice"].predict("a", frame, stream=stream) for stream in ("left", "right")]
            assert [answer["step"] for answer in answers] == [i + 1, i + 1]
            assert answers[0]["values"] == [pytest.approx(heard[i], rel=1e-5)]
        found = asked["boxes"].predict("a", picture)["outputs"]
        for name, array in seen.items():
            np.testing.assert_allclose(found[name]["array"], array[0], rtol=1e-5, atol=1e-6)
        one = asked[PARTS].predict("a", part)
        for name in ("voice", "boxes", PARTS):
            with pytest.raises(LearningError, match="no trainable head"):
                asked[name].label("a", 0)
        with AgentClient(fleet.socket_path(DEVICE)) as agent, pytest.raises(LearningError, match="none was named"):
            agent.add_class("smudge")
        with pytest.raises(LearningError, match="audio"):
            asked["voice"].predict("a", picture)
        processes.wait_for("all are known", lambda: list(models_of(fleet)) == list(bundles))
        # One of them gets a bundle with a head; the process dies wherever that happens to be, again and again.
        assert f"for the model {PARTS!r}" in fleet.fleet("push", str(learns), "--model", PARTS)
        for client in asked.values():
            client.close()
        for delay_s in (0.1, 0.8):
            time.sleep(delay_s)
            fleet.kill(DEVICE)
            fleet.start_agent(DEVICE)
            processes.wait_for("it is back", lambda: is_back(fleet))
            before = status(fleet)["digits"]
            assert (before["samples"], before["release"]) == (30, 0)
        asked = {name: AgentClient(fleet.socket_path(DEVICE), model=name) for name in bundles}
        processes.wait_for("active", lambda: models_of(fleet)[PARTS]["state"] == "active", timeout_s=90)
        for i in range(12):
            asked[PARTS].predict(f"p{i}", part)
            assert asked[PARTS].label(f"p{i}", "dent")
        # All others, too: a head that was exported here; bundles without one are active once they were asked something.
        head = tmp_path / "head.safetensors"
        commanded(fleet, "export", head, "--model", "digits")
        for name, file in (("digits", head), ("voice", voice_bundle), ("boxes", detector_bundle)):
            fleet.fleet("push", str(file), "--model", name)
        processes.wait_for("on trial", lambda: set(releases(fleet).values()) == {1, 2, 3, 4}, timeout_s=90)
        asked["voice"].predict("b", frames[0])
        asked["boxes"].predict("b", picture)
        everywhere = dict.fromkeys(bundles, "active")
        processes.wait_for("all active", lambda: states(models_of(fleet)) == everywhere, timeout_s=90)
        # Each goes back for itself, and the others stay.
        for name in ("voice", "digits", PARTS, "boxes"):
            before = status(fleet)
            said = commanded(fleet, "rollback", "--model", name)
            assert said.startswith("went back from the head" if name == "digits" else "went back from the bundle")
            assert states(status(fleet)) == {**states(before), name: "rolled-back"}
        again = asked[PARTS].predict("c", part)
        assert again["outputs"].keys() == one["outputs"].keys()
        with pytest.raises(LearningError, match="no trainable head"):
            asked[PARTS].label("c", 0)
        assert asked["voice"].predict("c", frames[0], stream="left")["step"] == 1, "its streams began anew"
        now = status(fleet)
        assert {name: each["bundle"] for name, each in now.items()} == {
            name: Bundle.open(path).digest for name, path in bundles.items()
        }
        assert now["digits"]["samples"] == 30
        everywhere = dict.fromkeys(bundles, "rolled-back")
        processes.wait_for("all rolled back", lambda: states(models_of(fleet)) == everywhere)
        wanted = {"digits": 30, "voice": None, "boxes": None, PARTS: None}
        processes.wait_for("measured", lambda: measured(fleet) == wanted)
        assert sum(line.startswith(f"{DEVICE} ") for line in commanded(fleet, "status").splitlines()) == 4
        for client in asked.values():
            client.close()


def learn(fleet: Any, model: str, bundle: Path, n: int) -> None:
    """Label random samples as the shipped model answers them."""
    opened = OnDeviceModel.open(bundle)
    x = np.random.default_rng(n).random((n, *opened.manifest.inputs[0].sample_shape), np.float32)
    with AgentClient(fleet.socket_path(DEVICE), model=model) as agent:
        for i, y in enumerate(opened.predict(x).argmax(axis=1)):
            agent.predict(f"s{i}", x[i])
            assert agent.label(f"s{i}", int(y))


def measured(fleet: Any) -> dict[str, int | None]:
    """By model, the labels that its newest telemetry says; None of one that does not learn."""
    rows = fleet.asked("telemetry?limit=20")
    return {row["values"]["model"]: row["values"].get("samples") for row in rows}
