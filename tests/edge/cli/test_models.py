"""``edge-fleet`` on a fleet whose devices have several models."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rich.console
from click.testing import CliRunner

from edge.channel import confusion
from edge.channel.codec import encode
from edge.channel.confusion import OTHERS
from edge.channel.messages import Birth, Event, Message, Reply, Served, State, Telemetry
from edge.channel.transport import Received
from edge.cli import fleet as cli
from edge.cli import push
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import RolloutError, WaitError
from edge.coordinator.core import CoordinatorCore

NOW = Now(1000.0, 1_800_000_000_000)


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(cli.fleet, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def says(core: CoordinatorCore, device: str, leaf: str, message: Message) -> None:
    topic = f"edge/v1/lab/{device}/{leaf}"
    core.transport(Received(topic=topic, payload=encode(message), retained=False), NOW)


def born(core: CoordinatorCore, device: str, backbones: dict[str, str]) -> None:
    served = [
        Served(model=name, bundle="", backbone=backbone, head="", release=0, n_labels=i)
        for i, (name, backbone) in enumerate(backbones.items())
    ]
    birth = Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle="", backbone="", head="",
        release=0, n_labels=0, limits={}, models=tuple(served),
    )  # fmt: skip
    says(core, device, "up/birth", birth)


def state(core: CoordinatorCore, device: str, model: str, name: str, release: int, seq: int = 1) -> None:
    leaf, kind = f"up/state/{model}", "bundle"
    says(core, device, leaf, State(ts_ms=0, seq=seq, slot=kind, state=name, release=release, digest="", model=model))


def test_models_are_listed_pushed_to_and_awaited_apart(
    core: CoordinatorCore, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    born(core, "gate", {"digits": backbone, "voice": "e" * 64})
    born(core, "door", {"digits": backbone})
    told = ask("push", str(digits_bundle), "--model", "voice", "--all-at-once")
    assert told.startswith("release 1: bundle")
    first, last = told.splitlines()
    assert first.endswith("for the model 'voice' to all devices")
    assert last.startswith("unsigned: ")
    assert "for the model 'digits'" in ask("push", str(digits_bundle), "--all-at-once"), "its own name"
    state(core, "gate", "voice", "active", 1)
    for device, end in (("gate", "active"), ("door", "rolled-back")):
        state(core, device, "digits", end, 2)
    held = State(ts_ms=0, seq=2, slot="head", state="held", release=0, digest="", model="voice")
    coordinator = cli.Coordinator("http://c", None)
    first, second = coordinator.call("GET", "/api/releases")[::-1]
    push.wait_for(coordinator, first, set(), 5.0)
    assert capsys.readouterr().out == "gate voice: active ()\n"
    with pytest.raises(RolloutError, match=r"release 2 is not active on door \(rolled-back\)$"):
        push.wait_for(coordinator, second, set(), 5.0)
    with pytest.raises(WaitError, match=r"did not settle within 0 s: no device that it is for has been seen$"):
        push.wait_for(coordinator, first, {"door"}, 0.2)
    ask("tag", "gate", "site=north")
    push.wait_for(coordinator, first, {"tag.site=north"}, 5.0)
    with pytest.raises(RolloutError, match="has been seen"):
        push.wait_for(coordinator, first, {"tag.site=south"}, 0.2)
    says(core, "gate", "up/state/voice", replace(held, release=1))
    with pytest.raises(RolloutError, match=r"release 1 is not active on gate voice \(held\)$"):
        push.wait_for(coordinator, first, set(), 5.0)
    says(core, "gate", "up/state/voice", replace(held, release=1, seq=3, state="probation", detail="not judged: why"))
    with pytest.raises(RolloutError, match=r"is not active on gate voice \(runs it, not judged\)$"):
        push.wait_for(coordinator, first, set(), 5.0)
    state(core, "gate", "voice", "active", 1, seq=4)
    capsys.readouterr()

    rows = {row["id"]: row for row in json.loads(ask("devices", "--json"))}
    assert [(each["model"], each["state"]) for each in rows["gate"]["models"]] == [
        ("digits", "active"),
        ("voice", "active"),
    ]
    assert rows["door"]["state"] == "rolled-back", "of the first, beside the device, as before there were several"
    values: dict[str, Any] = {"boot": 1, "seq": 1, "model": "voice", "experts": {"shipped": [1.0, 0.5, 4.0]}}
    says(core, "gate", "up/tele", Telemetry(values=values))
    says(core, "gate", "up/event", Event(ts_ms=0, name="drift", detail="x", model="voice"))
    core.tick(NOW)
    assert ask("experts").startswith("gate voice: has no merge")
    assert "gate voice " in ask("events")
    assert ask("devices").count("gate") == 1


def test_who_is_not_approved_is_sent_nothing_and_each_command_says_so(
    core: CoordinatorCore, digits_bundle: Path, tmp_path: Path
) -> None:
    for name in ("gate", "door"):
        born(core, name, {"digits": Bundle.open(digits_bundle).manifest.backbone_digest})
    ask("device", "quarantine", "gate", "--reason", "stolen?")
    nothing = "gate is quarantined: until `edge-fleet device approve gate` nothing is sent to it, and it sends nothing"
    for command in (
        ("push", str(digits_bundle), "--device", "gate"),
        ("export-release", str(tmp_path / "stick"), "--device", "gate"),
    ):
        with pytest.raises(RolloutError, match=nothing):
            ask(*command)
    assert nothing in ask("cmd", "gate", "sync", "--wait", "0")
    number = json.loads(ask("cmd", "gate", "sync", "--wait", "0", "--json"))["number"]
    says(core, "gate", "up/reply", Reply(id=f"sync-{number}", rc=0, detail="", out={"samples": 40}))
    assert f"what is new, of 40 labels, waits: {nothing}" in core._store.checkpoints.get_order(number).detail
    for whom in (("--device", "gate"), ()):
        told = ask("push", str(digits_bundle), "--all-at-once", *whom)
        assert "gate is quarantined: it is sent nothing until `edge-fleet device approve gate`" in told
        assert "door is" not in told
    assert "gate is quarantined: it is sent nothing" in ask("push", str(digits_bundle))


def test_names_of_models_cannot_write_to_the_terminal(core: CoordinatorCore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = core.events
    payload = encode(Event(ts_ms=0, name="drift")).replace(b'"model":""', b'"model":"\\u001b[2J"')
    core.transport(Received(topic="edge/v1/lab/gate/up/event", payload=payload, retained=False), NOW)
    assert core.events is before
    assert "\x1b" not in ask("events")
    assert "name of a model" in ask("events")
    born(core, "gate", {"[red]a[/b]": "e" * 64})
    detail = "disk [/bad] \x1b[2J"
    failed = State(ts_ms=0, seq=1, slot="head", state="[/x]", release=1, digest="", detail=detail)
    says(core, "gate", "up/state", failed)
    listed = ask("devices")
    assert "[/x], disk [/bad] \N{REPLACEMENT CHARACTER}[2J" in listed
    assert "[red]a[/b]" in listed
    core.registry.telemetry("gate", {"boot": 1, "seq": 1, "model": "[red]a[/b]", "acc": "[/bad]"}, NOW)
    core.tick(NOW)
    rows = cli.Coordinator("http://c", None).call("GET", "/api/telemetry", params={"after": -1, "limit": 1})
    rich.console.Console(file=io.StringIO()).print(cli._telemetry_table({"gate": rows[0]}))


def test_answers_against_labels_are_those_of_a_backbone_together_or_of_one_device(
    core: CoordinatorCore, digits_bundle: Path
) -> None:
    assert ask("confusion").startswith("nobody has told")
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    answered: dict[str, dict[str, dict[str, dict[str, int]]]] = {
        "gate": {"digits": {"3": {"3": 18, "8": 1, "9": 1}}, "voice": {"\x1b[2Jyes": {"no": 1}}},
        "door": {"digits": {"10": {"10": 2, "3": 1}, "3": {"3": 1}, OTHERS: {OTHERS: 7}}},
        "wall": {"digits": {}},
    }
    for device, models in answered.items():
        born(core, device, {"digits": backbone, "voice": "e" * 64})
        for seq, (model, counts) in enumerate(models.items()):
            values = {"boot": 1, "seq": seq, "model": model, confusion.KEY: confusion.told(counts)}
            says(core, device, "up/tele", Telemetry(values=values))
    core.tick(NOW)

    digits, voice = ask("confusion").split("eeeeeeeeeeee")
    assert digits.splitlines() == [
        "digits: 2 models have told, 21 of 24 right",
        "  label  labels     right  taken for",
        "  3          21    90.5 %  8 x1, 9 x1",
        "  10          3    2 of 3  3 x1",
        "  7 more labels, of classes for which a message had no room",
    ]
    assert voice.startswith(": 1 model has told, 0 of 1 right")
    assert "\x1b" not in voice
    assert "no x1" in voice
    together, alone = json.loads(ask("confusion", "--json"))
    assert together["counts"] == {"3": {"3": 19, "8": 1, "9": 1}, "10": {"10": 2, "3": 1}, OTHERS: {OTHERS: 7}}
    assert (together["n"], together["right"], together["untold"], together["device"]) == (31, 21, 7, "")
    assert [(each["label"], each["n"], each["right"]) for each in together["classes"]] == [("3", 21, 19), ("10", 3, 2)]
    assert together["classes"][0]["accuracy"] == pytest.approx(19 / 21)
    assert (alone["backbone"], alone["model"]) == ("e" * 64, "")
    own = json.loads(ask("confusion", "gate", "--json"))
    assert [(each["device"], each["model"], each["n"]) for each in own] == [
        ("gate", "digits", 20),
        ("gate", "voice", 1),
    ]
    assert ask("confusion", "door").startswith("digits: told ")
    assert ask("confusion", "wall").startswith("nobody has told")
    with pytest.raises(RolloutError, match="unknown device nobody"):
        ask("confusion", "nobody")
