"""``edge-fleet device``, ``metrics`` and ``events`` against a coordinator's real HTTP application."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge.channel.messages import Birth, Event, Served, State
from edge.channel.transport import Disconnected
from edge.cli import fleet as cli
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.digest import sha256_file, short
from edge.contract.errors import BundleError, ChannelError, ConfigError, EdgeError, RolloutError
from edge.coordinator.core import CoordinatorCore
from tests.edge.cli.test_models import ask, born, says, state


@pytest.fixture
def now() -> Now:
    return Now(1000.0, int(1000 * time.time()))


def test_a_device_is_shown_with_what_it_should_run_and_where_it_stands(
    core: CoordinatorCore, digits_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(digits_bundle)
    born(core, "gate", {"digits": bundle.manifest.backbone_digest})
    ask("push", str(digits_bundle), "--name", "spring", "--all-at-once")
    state(core, "gate", "digits", "fetching", 1)
    ask("tag", "gate", "site=north")
    says(core, "gate", "up/event", Event(ts_ms=0, name="drift", detail="\x1b[2J it is dark", model="digits"))
    shown = ask("device", "show", "gate")
    for words in (
        "gate: offline, heard ",
        "tags       site=north",
        "should   release 1 spring, it has not dealt with it",
        "stands   release 1 fetching",
        "it is dark",
    ):
        assert words in shown, shown
    assert "\x1b" not in shown
    found = json.loads(ask("device", "show", "gate", "--json"))
    assert (found["id"], found["wanted"][0]["release"], found["events"][0]["name"]) == ("gate", 1, "drift")
    assert ask("device", "list").count("gate") == ask("devices").count("gate") == 1
    assert json.loads(ask("device", "list", "--json")) == json.loads(ask("devices", "--json"))
    for words in (
        ("device", "show", "door"),
        ("events", "--device", "door"),
        ("events", "--device", "no/body", "--json"),
    ):
        with pytest.raises(RolloutError, match=r"unknown device (door|no/body)"):
            ask(*words)
    assert ask("events", "--device", "coordinator")
    (tmp_path / "mine.parcel").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="mine") as told:
        ask("import", str(tmp_path / "mine.parcel"))
    assert "edgeloop-" not in str(told.value)
    # People see the one id that a bundle has everywhere: as the device and `edge-bundle verify` name it.
    served = {"backbone": bundle.manifest.backbone_digest, "bundle": bundle.digest, "head": "", "release": 1}
    birth = Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, n_labels=0, limits={}, **served,
        models=(Served(model="digits", n_labels=0, **served),),
    )  # fmt: skip
    says(core, "gate", "up/birth", birth)
    file = sha256_file(digits_bundle)
    assert json.loads(ask("device", "list", "--json"))[0]["models"][0]["artifact"] == file
    assert bundle.digest[:8] in ask("devices")
    assert "it has dealt with it" in ask("device", "show", "gate")
    pushed = ask("push", str(digits_bundle), "--all-at-once")
    told = "\n".join(row["detail"] for row in json.loads(f"[{','.join(ask('events', '--json').splitlines())}]"))
    for shown in (ask("device", "show", "gate"), ask("release", "list"), ask("release", "show", "1"), pushed, told):
        assert short(bundle.digest) in shown
        assert short(file) not in shown.replace(f"file sha256 {file}", "")


def test_metrics_are_shown_by_message_minute_and_hour(core: CoordinatorCore, now: Now) -> None:
    for i, acc in enumerate((0.25, 0.75)):
        values = {"boot": 1, "seq": i, "acc": acc, "temp_c": 40}
        core.registry.telemetry("gate", values, now)
    core.tick(now)
    lines = ask("metrics", "gate", "acc").splitlines()
    assert [line.split()[-1] for line in lines] == ["0.25", "0.75"]
    assert ask("metrics", "gate", "acc", "--since", "12h").rstrip().endswith("0.5  0.25 to 0.75 of 2")
    found = json.loads(ask("metrics", "gate", "acc", "--since", "30d", "--json"))
    assert found["step"] == "hour"
    assert [(each["n"], each["mean"]) for each in found["points"]] == [(2, 0.5)]
    with pytest.raises(RolloutError, match="lately it measured acc, temp_c"):
        ask("metrics", "gate", "loss")
    with pytest.raises(RolloutError, match="unknown device door"):
        ask("metrics", "door", "acc")
    for since in ("yesterday", "5", "-1h", "1e9d", ""):
        done = CliRunner().invoke(cli.fleet, ["metrics", "gate", "acc", "--since", since])
        assert done.exit_code == 2, since
        assert "such as 90min" in done.output or "No such option" in done.output


def test_metrics_of_several_models_are_told_apart_each_in_the_order_of_its_time(
    core: CoordinatorCore, now: Now
) -> None:
    when = [now.wall_ms - 1000 * i for i in range(4)]
    for seq, (model, at_ms, ms) in enumerate(
        [("voice", when[0], 4.0), ("digits", when[1], 1.0), ("voice", when[3], 2.0), ("digits", when[2], 3.0)]
    ):  # what was measured without a line comes later
        values = {"boot": 1, "seq": seq, "ts": at_ms, "model": model, "lat_p99_ms": ms}
        core.registry.telemetry("gate", values, replace(now, wall_ms=at_ms))
    core.tick(now)
    lines = [line.split()[-2:] for line in ask("metrics", "gate", "lat_p99_ms").splitlines()]
    assert lines == [["digits", "3"], ["digits", "1"], ["voice", "2"], ["voice", "4"]]
    assert ask("metrics", "gate", "lat_p99_ms", "--model", "voice").split()[-1] == "4"
    found = json.loads(ask("metrics", "gate", "lat_p99_ms", "--model", "digits", "--json"))
    assert [each["mean"] for each in found["points"]] == [3.0, 1.0]
    with pytest.raises(RolloutError, match="no lat_p99_ms of boxes in that time"):
        ask("metrics", "gate", "lat_p99_ms", "--model", "boxes")


def test_events_are_of_a_device_a_kind_and_a_time_and_are_followed(core: CoordinatorCore, now: Now) -> None:
    old = Now(0.0, now.wall_ms - 5 * 3_600_000)
    for device, name, at in (
        ("gate", "drift", old),
        ("gate", "drift", now),
        ("door", "drift", now),
        ("", "release", now),
    ):
        core.events.note(device, name, f"of {device or 'all'}", at)

    def told(*options: str) -> list[tuple[str, str]]:
        rows = [json.loads(line) for line in ask("events", "--json", *options).splitlines()]
        return [(row["device"], row["name"]) for row in rows]

    assert told() == [("gate", "drift"), ("gate", "drift"), ("door", "drift"), ("", "release")]
    assert told("--device", "gate") == [("gate", "drift")] * 2
    assert told("--device", "gate", "--since", "1h") == [("gate", "drift")]
    assert told("--device", "coordinator") == told("--kind", "release") == [("", "release")]
    assert told("--kind", "nothing") == []
    assert told("--follow", "--seconds", "0", "--kind", "release") == [("", "release")]
    with pytest.raises(ConfigError, match="needs --follow"):
        told("--seconds", "1")
    line = ask("events", "--kind", "release")
    assert line.split()[2:4] == ["coordinator", "release"]
    core.events.note("", "release", "of a model", now, "digits")
    assert ask("events", "--kind", "release").splitlines()[-1].split()[2:5] == ["coordinator", "digits", "release"]
    with core._store.transaction():  # more than one answer of the API holds
        for i in range(1050):
            core.events.note("gate", "many", str(i), now)
    assert len(told("--kind", "many")) == 100
    assert len(told("--kind", "many", "--since", "1h")) == 1050


def test_of_devices_it_is_said_why_where_not_all_is_well(core: CoordinatorCore, digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    for name, said, why in (
        ("fine", "active", "probation: better"), ("tried", "active", "probation: not judged"), ("bad", "failed", "no"),
    ):  # fmt: skip
        born(core, name, {"digits": bundle.manifest.backbone_digest})
        message = State(
            ts_ms=0, seq=7, slot="head", state=said, release=1, digest="", detail=why, model="digits", state_id="",
        )  # fmt: skip
        says(core, name, "up/state", message)
    told = [line for line in ask("devices").splitlines() if ": " in line]
    assert told == ["bad: failed, no", "tried: active, probation: not judged"]


def test_names_stay_whole_where_the_terminal_is_narrow(core: CoordinatorCore, digits_bundle: Path) -> None:
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    names = [f"camera-north-door-{i:02}" for i in range(3)]
    for name in names:
        born(core, name, {"digits": backbone})
    table = ask("devices").split("└")[0]
    assert all(name in table for name in names), table
    assert max(map(len, table.splitlines())) <= 80
    with pytest.raises(ConfigError, match="there is no field 'site'"):
        ask("devices", "--where", 'site = "north"')
    # One that has left the fleet is listed where that is asked for, by people and by programs.
    ask("device", "decommission", names[0])
    assert names[0] not in ask("devices")
    assert [row["id"] for row in json.loads(ask("devices", "--json"))] == names[1:]
    assert [row["id"] for row in json.loads(ask("devices", "--all", "--json"))] == names
    table = ask("devices", "--all").split("└")[0]
    assert "decommissioned" in table
    assert max(map(len, table.splitlines())) <= 80
    # The longest there may be goes on below, and leaves the others their place.
    long = "x" * 40 + "y" * 24
    born(core, long, {"digits": backbone})
    rows = ask("devices").split("└")[0].splitlines()
    assert "".join(row.split(" ")[0] for row in rows if row.startswith(("x", "y"))) == long, rows
    assert sum(" no " in row and " digi" in row for row in rows) == 3, rows
    assert max(map(len, rows)) <= 80
    for name in (*names[1:], long):
        ask("device", "decommission", name)
    assert ask("devices") == "all devices that were seen have left the fleet; --all lists them\n"


@pytest.mark.parametrize("token", ["edge_abc\r", "a\nb", "ü"])
def test_a_token_that_cannot_be_sent_is_told_as_that_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigError, match="EDGE_TOKEN") as refused:
        cli.Coordinator("http://127.0.0.1:1", token)
    assert token not in str(refused.value)


def test_an_address_without_a_scheme_is_no_silence_of_a_coordinator() -> None:
    with pytest.raises(ConfigError, match="'fleet:8470' is not an address"):
        cli.Coordinator("fleet:8470", None)


def test_while_no_device_is_heard_every_command_says_so_and_what_it_asked_for_waits(
    core: CoordinatorCore, digits_bundle: Path, moment: Now
) -> None:
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    born(core, "gate", {"digits": backbone})
    runner = CliRunner()
    assert runner.invoke(cli.fleet, ["devices"]).stderr == ""
    core.transport(Disconnected(reason="connection refused by mqtt://b:1883"), Now(moment.s, moment.wall_ms + 1000))
    for words, waits in (
        (["devices"], False),
        (["device", "show", "gate"], False),
        (["merge"], True),
        (["push", str(digits_bundle), "--all-at-once"], True),
        (["pause-all", "--reason", "storm"], True),
    ):
        told = runner.invoke(cli.fleet, words)
        assert told.exit_code == 0, told.output
        assert "hears no device since" in told.stderr
        assert "connection refused by mqtt://b:1883" in told.stderr
        assert ("devices are told once there is a line" in told.stderr) == waits, words
    assert "not known" in runner.invoke(cli.fleet, ["device", "show", "gate"]).stdout
    status = runner.invoke(cli.fleet, ["status"])
    assert status.exit_code == 1
    assert "broker: not connected since" in status.stdout


def test_what_goes_to_all_at_once_says_that_it_waits_while_the_whole_fleet_is_paused(
    core: CoordinatorCore, digits_bundle: Path
) -> None:
    born(core, "gate", {"digits": Bundle.open(digits_bundle).manifest.backbone_digest})
    runner = CliRunner()

    def told(*words: str) -> str:
        found = runner.invoke(cli.fleet, list(words))
        assert found.exit_code == 0, found.output
        return found.output

    assert "`push --all-at-once`, `rollback`" in " ".join(told("pause-all", "--help").split())
    assert "pushes to all at once wait, too" in told("pause-all", "--reason", "storm")
    waits = "the whole fleet is paused (storm): nothing becomes live before `edge-fleet resume-all`"
    assert waits in told("push", str(digits_bundle), "--all-at-once")
    status = runner.invoke(cli.fleet, ["status"]).output
    assert "the whole fleet is paused (storm): `edge-fleet resume-all`" in status
    assert "the fleet goes on" in told("resume-all")
    assert waits not in told("push", str(digits_bundle), "--all-at-once")


def _verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _verbs(each, (*path, name))
    else:
        yield path, command


@pytest.mark.parametrize("name", ["../../x", "..", "a" * 100_000, "a?b=c#d", "caf\xe9 1", "%2e%2e"])
def test_a_name_that_no_device_has_is_refused_in_words_of_ours_by_every_verb(core: CoordinatorCore, name: str) -> None:
    """It is one step of an address, however it is written, and nothing is said of addresses."""
    given = {"key": "acc", "number": "1", "count": "1", "text": "a note", "tags": "a=b", "what": "sync"}
    asked = 0
    for path, command in _verbs(cli.fleet):
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        if not {"name", "device"} & {each.name for each in arguments} or path[0] in ("token", "keys", "deploy"):
            continue
        values = [name if each.name in ("name", "device") else given.get(each.name or "", "1") for each in arguments]
        options = ["--from", "gate"] if path[-1] == "restore" else []
        with pytest.raises(EdgeError) as told:
            CliRunner().invoke(cli.fleet, [*path, *options, "--", *values], catch_exceptions=False)
        asked += 1
        assert not isinstance(told.value, ChannelError), (path, told.value)
        assert "/api" not in str(told.value), (path, told.value)
        assert "there is no " not in str(told.value) or "rollout 1" in str(told.value), (path, told.value)
        assert len(str(told.value)) < 1000, path
    assert asked > 12
    with pytest.raises(EdgeError, match=r"names nothing|unknown device gate"):
        ask("metrics", "gate", "a/b")
