"""Several models in one agent process, on a real broker: learned, pushed to, killed, rolled back and measured apart."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.agent.on_device_model import OnDeviceModel
from edge.contract.bundle import Bundle
from edge.contract.errors import ChannelError, LearningError

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[2]
DEVICE = "gate"


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


def test_one_of_two_models_is_pushed_to_killed_in_the_middle_and_rolled_back(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path, mlp_bundle: Path
) -> None:
    bundles = {"digits": digits_bundle, "Zähler 2": mlp_bundle}
    with fleet_of(processes, tmp_path, bundles) as fleet:
        learn(fleet, "digits", digits_bundle, 30)
        learn(fleet, "Zähler 2", mlp_bundle, 12)
        with AgentClient(fleet.socket_path(DEVICE)) as agent, pytest.raises(LearningError, match="none was named"):
            agent.add_class("smudge")
        processes.wait_for("both are known", lambda: set(models_of(fleet)) == set(bundles))
        told = fleet.fleet("push", str(digits_bundle), "--model", "Zähler 2")
        assert "release 1: bundle" in told
        assert "for the model 'Zähler 2'" in told
        # It is killed wherever that update happens to be, again and again.
        for delay_s in (0.1, 0.6, 1.2):
            time.sleep(delay_s)
            fleet.kill(DEVICE)
            fleet.start_agent(DEVICE)
            processes.wait_for("it is back", lambda: is_back(fleet))
            found = status(fleet)
            assert (found["digits"]["samples"], found["digits"]["release"]) == (30, 0)
        pushed, shipped = Bundle.open(digits_bundle).digest, Bundle.open(mlp_bundle).digest
        processes.wait_for("active", lambda: models_of(fleet)["Zähler 2"]["state"] == "active", timeout_s=90)
        assert status(fleet)["Zähler 2"]["bundle"] == pushed
        assert status(fleet)["digits"]["state"] == "idle"
        # One goes back; what it had learned with the bundle before is there again.
        assert "went back from the bundle" in commanded(fleet, "rollback", "--model", "Zähler 2")
        found = status(fleet)
        assert (found["Zähler 2"]["bundle"], found["Zähler 2"]["samples"]) == (shipped, 12)
        assert (found["digits"]["bundle"], found["digits"]["samples"]) == (pushed, 30)
        processes.wait_for("the registry knows", lambda: models_of(fleet)["Zähler 2"]["state"] == "rolled-back")
        assert models_of(fleet)["digits"]["state"] == "idle"
        # Measured apart, from one process.
        rows = json.loads(fleet.fleet("devices", "--json"))
        assert [row["model"] for row in rows[0]["models"]] == list(bundles)
        processes.wait_for("telemetry", lambda: measured(fleet) == {"digits": 30, "Zähler 2": 12})
        lines = commanded(fleet, "status").splitlines()
        assert sum(line.startswith(f"{DEVICE} ") for line in lines) == 2


def test_four_kinds_of_models_in_one_process_are_pushed_rolled_back_and_measured_apart(
    processes: ModuleType,
    tmp_path: Path,
    digits_bundle: Path,
    voice_bundle: Path,
    detector_bundle: Path,
    masked_bundles: tuple[Path, Path],
) -> None:
    learns, fixed = masked_bundles
    bundles = {"digits": digits_bundle, "voice": voice_bundle, "boxes": detector_bundle, "parts": fixed}
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
        one = asked["parts"].predict("a", part)
        for name in ("voice", "boxes", "parts"):
            with pytest.raises(LearningError, match="no trainable head"):
                asked[name].label("a", 0)
        with pytest.raises(LearningError, match="audio"):
            asked["voice"].predict("a", picture)
        processes.wait_for("all are known", lambda: list(models_of(fleet)) == list(bundles))
        # One of them gets a bundle with a head, and the process dies in the middle of that.
        fleet.fleet("push", str(learns), "--model", "parts")
        time.sleep(0.5)
        for client in asked.values():
            client.close()
        fleet.kill(DEVICE)
        fleet.start_agent(DEVICE)
        processes.wait_for("it is back", lambda: is_back(fleet))
        asked = {name: AgentClient(fleet.socket_path(DEVICE), model=name) for name in bundles}
        processes.wait_for("active", lambda: models_of(fleet)["parts"]["state"] == "active", timeout_s=90)
        for i in range(12):
            asked["parts"].predict(f"p{i}", part)
            assert asked["parts"].label(f"p{i}", "dent")
        # A bundle without a head is active only once somebody has asked it something.
        fleet.fleet("push", str(detector_bundle), "--model", "boxes")
        release = models_of(fleet)["parts"]["release"] + 1
        processes.wait_for("on trial", lambda: status(fleet)["boxes"]["release"] == release, timeout_s=90)
        asked["boxes"].predict("b", picture)
        processes.wait_for("active, too", lambda: models_of(fleet)["boxes"]["state"] == "active", timeout_s=90)
        commanded(fleet, "rollback", "--model", "parts")
        again = asked["parts"].predict("c", part)
        assert again["outputs"].keys() == one["outputs"].keys()
        with pytest.raises(LearningError, match="no trainable head"):
            asked["parts"].label("c", 0)
        now = status(fleet)
        assert {name: each["state"] for name, each in now.items()} == {
            "digits": "idle",
            "voice": "idle",
            "boxes": "active",
            "parts": "rolled-back",
        }
        assert {name: each["bundle"] for name, each in now.items()} == {
            name: Bundle.open(path).digest for name, path in bundles.items()
        }
        assert (now["digits"]["samples"], now["digits"]["release"], now["voice"]["release"]) == (30, 0, 0)
        processes.wait_for("rolled back", lambda: models_of(fleet)["parts"]["state"] == "rolled-back")
        processes.wait_for("measured", lambda: set(measured(fleet)) == set(bundles))
        assert measured(fleet) == {"digits": 30, "voice": None, "boxes": None, "parts": None}
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
