"""``edge-fleet push``, ``release`` and ``rollback`` against a coordinator's real HTTP application."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from edge.channel.messages import Birth, Served
from edge.channel.transport import Disconnected
from edge.cli import fleet as cli
from edge.cli import rollouts
from edge.contract import manifest as m
from edge.contract.bundle import Bundle, members_of, write_bundle
from edge.contract.clock import Now
from edge.contract.digest import sha256, short
from edge.contract.errors import BundleError, ConfigError, EdgeError, HeldError, ResourceError, RolloutError, WaitError
from edge.coordinator.core import CoordinatorCore
from edge.learning.exchange import HeadRelease
from tests.edge.cli.test_models import ask, born, says, state


def refused(*arguments: str) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        CliRunner().invoke(cli.fleet, list(arguments), catch_exceptions=False)
    return caught.value


def rewritten(bundle: Path, output: Path, change: Callable[[dict[str, bytes]], Any], **fields: Any) -> Path:
    """The same bundle with other members or another manifest, whole in itself."""
    from dataclasses import replace

    found = Bundle.open(bundle)
    blobs = {role: found.read(role) for role in found.manifest.members}
    change(blobs)
    write_bundle(output, replace(found.manifest, members=members_of(blobs), **fields), blobs)
    return output


def nothing(_: dict[str, bytes]) -> None:
    pass


@pytest.fixture
def head(digits_bundle: Path, tmp_path: Path) -> Callable[[str, float], Path]:
    shipped = Bundle.open(digits_bundle).head_parameters()

    def make(name: str, shift: float) -> Path:
        path = tmp_path / name
        path.write_bytes(safetensors.numpy.save({key: array + np.float32(shift) for key, array in shipped.items()}))
        return path

    return make


def test_what_comes_in_is_proved_and_named_as_the_user_names_it(
    core: CoordinatorCore, digits_bundle: Path, tmp_path: Path, head: Callable[[str, float], Path]
) -> None:
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    born(core, "gate", {"digits": backbone})

    damaged = tmp_path / "cut.edge"
    damaged.write_bytes(digits_bundle.read_bytes()[:-9])
    told = refused("push", str(damaged))
    assert isinstance(told, BundleError)
    assert "cut.edge" in str(told)
    assert "/edgeloop-" not in str(told)

    def other_answers(blobs: dict[str, bytes]) -> None:
        golden = safetensors.numpy.load(blobs[m.GOLDEN])
        blobs[m.GOLDEN] = safetensors.numpy.save(
            {k: -a if k.startswith(m.GOLDEN_OUTPUT) else a for k, a in golden.items()}
        )

    wrong = rewritten(digits_bundle, tmp_path / "wrong.edge", other_answers)
    told = refused("push", str(wrong))
    assert isinstance(told, BundleError)
    assert "wrong.edge" in str(told)
    assert "golden" in str(told)
    assert "--force" in str(told)

    running = Bundle.open(digits_bundle)
    served = Served(model="digits", bundle=running.digest, backbone=backbone, head="", release=0, n_labels=0)
    birth = Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle=running.digest, backbone=backbone,
        head="", release=0, n_labels=0, limits={}, models=(served,),
    )  # fmt: skip
    says(core, "gate", "up/birth", birth)
    names = tuple("abcdefghij")
    classes = rewritten(digits_bundle, tmp_path / "letters.edge", nothing, class_names=names)
    told = refused("push", str(classes))
    assert isinstance(told, BundleError)
    assert str(told).startswith("letters.edge is not like what gate runs: its classes are 10 (a, b, c, d, e, f, ...)")
    assert ask("push", str(classes), "--force", "--all-at-once").startswith("release 1: bundle ")

    for value in (np.nan, np.inf):
        path = head(f"{value}.safetensors", float(value))
        told = refused("push", str(path))
        assert isinstance(told, BundleError)
        assert str(told).startswith(f"{value}.safetensors: the tensor ")
    shipped = Bundle.open(digits_bundle).head_parameters()
    document = HeadRelease(backbone=backbone, parameters={**shipped, "7.bias": np.full(10, np.nan, np.float32)})
    (tmp_path / "nan.safetensors").write_bytes(document.encode())
    assert str(refused("push", str(tmp_path / "nan.safetensors"))).startswith("nan.safetensors: ")
    (tmp_path / "text.edge").write_text("hello")
    assert str(refused("push", str(tmp_path / "text.edge"))).startswith("text.edge: expected a bundle (.edge) or")
    assert len(json.loads(ask("release", "list", "--json"))) == 1, "nothing that was refused is a release"


def test_without_room_on_its_disk_the_coordinator_says_so_and_takes_no_artifact(
    core: CoordinatorCore, head: Callable[[str, float], Path], digits_bundle: Path
) -> None:
    file = head("h.safetensors", 0.5)
    born(core, "camera-1", {"digits": Bundle.open(digits_bundle).manifest.backbone_digest})
    before = ask("status")
    core.room.keep_bytes, core.room.where = 1 << 62, "/data"
    core.room.free_bytes = lambda: 5 << 20
    for command in (("push", str(file)), ("release", "add", str(file))):
        error = refused(*command)
        assert isinstance(error, ResourceError)
        assert error.exit_code == 3
        assert "5 MiB are free in /data" in str(error)
    assert json.loads(ask("release", "list", "--json")) == []
    done = CliRunner().invoke(cli.fleet, ["status"], catch_exceptions=False)
    assert done.exit_code == 1
    assert (
        "trouble: the disk of /data is nearly full: artifacts (uploads, pushes, merges) and telemetry stop"
        in done.output
    )
    assert httpx.Client().request("POST", "/api/v1/artifacts", content=file.read_bytes()).status_code == 503
    core.room.keep_bytes = 0
    assert ask("status") == before
    ask("release", "add", str(file))


def test_releases_are_named_listed_shown_compared_and_fetched(
    core: CoordinatorCore,
    digits_bundle: Path,
    head: Callable[[str, float], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nothing has been pushed" in ask("release", "list")
    assert isinstance(refused("release", "show", "1"), RolloutError)
    assert isinstance(refused("rollback"), RolloutError)
    bundle = Bundle.open(digits_bundle)
    born(core, "gate", {"digits": bundle.manifest.backbone_digest})
    file = str(digits_bundle)
    made = json.loads(ask("push", file, "--name", "spring", "--notes", "more light", "--json", "--all-at-once"))
    assert (made["counter"], made["name"], made["notes"], made["file"]) == (1, "spring", "more light", "digits.edge")
    ask("push", str(head("a.safetensors", 0.5)), "--reason", "trial", "--device", "gate", "--all-at-once")
    ask("push", str(head("b.safetensors", 1.0)), "--device", "gate", "--all-at-once")
    state(core, "gate", "digits", "active", 1)

    digest = short(bundle.digest)  # by which devices name it, not that of the file
    listed = ask("release", "list")
    assert [line.split()[0] for line in listed.splitlines()] == ["3", "2", "1"]
    assert f"bundle {digest}  digits to all devices: spring" in listed
    assert all(len(line) <= 80 for line in listed.splitlines())
    shown = ask("release", "show", "1")
    for words in (f"bundle {digest}", "more light", "digits.edge", "classes     0, 1, 2"):
        assert words in shown
    found = json.loads(ask("release", "show", "3", "--json"))
    assert [(each["device"], each["state"]) for each in found["standing"]] == [("gate", "waiting")]
    assert json.loads(ask("release", "show", "2", "--json"))["standing"] == []

    apart = json.loads(ask("release", "diff", "2", "3", "--json"))
    assert not apart["same_bytes"]
    assert apart["changed"]["file"] == ["a.safetensors", "b.safetensors"]
    first = bundle.head_parameters()["7.bias"] + np.float32(0.5)
    expected = np.linalg.norm(np.full(10, 0.5)) / np.linalg.norm(first)
    assert apart["parameters"]["7.bias"] == pytest.approx(expected, rel=1e-4)
    assert "7.bias      moved by" in ask("release", "diff", "2", "3")
    assert "have the same bytes" in ask("release", "diff", "1", "1")

    assert f"digits.edge: bundle {digest}" in ask("release", "download", "1")
    assert (tmp_path / "digits.edge").read_bytes() == digits_bundle.read_bytes()
    assert isinstance(refused("release", "download", "1"), ConfigError)
    (tmp_path / "digits.edge").write_text("mine")
    ask("release", "download", "1", "--force")
    kept = json.loads(ask("release", "download", "2", "-o", "x", "--json"))
    assert (
        sha256((tmp_path / "x").read_bytes())
        == kept["digest"]
        == json.loads(ask("release", "show", "2", "--json"))["digest"]
    )


def test_one_command_goes_back_to_older_bytes_under_a_new_number(
    core: CoordinatorCore, digits_bundle: Path, head: Callable[[str, float], Path]
) -> None:
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    born(core, "gate", {"digits": backbone})
    born(core, "door", {"digits": backbone})
    for i in range(3):
        ask("push", str(head(f"{i}.safetensors", float(i))), "--device", "gate", "--name", f"n{i}", "--all-at-once")
    digests = [each.digest for each in core._store.releases.all()[::-1]]

    asked = json.loads(ask("rollback", "--plan", "--json"))
    assert (asked["undone"]["counter"], asked["wanted"]["counter"], asked["devices"]) == (3, 2, ["gate"])
    plan = ask("rollback", "--plan")
    assert plan == "back from release 3 (n2) to release 2 (n1), at once, on gate\n"
    said = ask("rollback")
    assert said == f"{plan}release 4: head {short(digests[1])} to gate, the head of release 2 again\n"
    made = json.loads(ask("rollback", "--json"))
    assert (made["counter"], made["digest"], made["restores"], made["name"]) == (5, digests[0], 1, "n0"), "further back"
    assert "before release 1" in str(refused("rollback"))
    assert "it was taken back by release 4" in str(refused("rollback", "--to", "3"))
    made = json.loads(ask("rollback", "--to", "3", "--reason", "it was right", "--force", "--json"))
    assert (made["counter"], made["digest"], made["devices"], made["reason"]) == (
        6,
        digests[2],
        ["gate"],
        "it was right",
    )
    assert "has the bytes of 3 already" in str(refused("rollback", "--to", "3"))
    assert "no release 99" in str(refused("rollback", "--to", "99"))
    assert "the model 'voice'" in str(refused("rollback", "--model", "voice"))
    (wanted,) = core.releases.wanted("gate")
    assert wanted.release.counter == 6
    assert core.releases.wanted("door") == []
    core.dialogue._artifacts.remove(digests[0])
    told = refused("rollback", "--to", "1")
    assert isinstance(told, RolloutError)
    assert "missing" in str(told)
    assert len(core._store.releases.all()) == 6
    # A bundle for all goes back to what all had, also where the newest was for one.
    ask("push", str(digits_bundle), "--all-at-once")
    assert "before release 7" in str(refused("rollback", "--model", "digits"))


@pytest.mark.parametrize("kind", ["bundle", "head"])
def test_a_bundle_that_nobody_asked_is_active_and_a_head_that_nobody_judged_waits_for_a_person(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"device": "one", "model": "m", "state": "active", "judged": False, "detail": "not judged: why"}
    found = {"id": 3, "release": 1, "kind": kind, "state": "completed", "reason": "", "evaluation": None}

    class Answers:
        def call(self, method: str, path: str, **_: Any) -> Any:
            assert (method, path) == ("GET", "/api/v1/rollouts/3")
            return found | {"targets": [target | {"pairs": {"labelled": 0}}], "counts": {"active": 1}}

    if kind == "bundle":
        rollouts.wait_for(Answers(), 3, 1.0)
    else:
        with pytest.raises(HeldError, match="rollout 3 of release 1 runs and is not judged on one: not judged: why"):
            rollouts.wait_for(Answers(), 3, 1.0)
    assert capsys.readouterr().out == "one: active (not judged: why)\n"


def test_who_stays_on_what_a_stopped_rollout_brought_is_said(
    core: CoordinatorCore, digits_bundle: Path, head: Callable[[str, float], Path], moment: Now
) -> None:
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    for name in ("gate", "door"):
        born(core, name, {"digits": backbone})
    ask("push", str(head("bad.safetensors", 1.0)))
    core.tick(moment)
    (canary,) = (each.device for _, each in core._store.rollouts.of_devices())
    state(core, canary, "digits", "active", 1)
    said = ask("push", str(head("next.safetensors", 2.0)))
    assert "it ends rollout 1, of release 1 to 2 devices\n1 device runs its release 1 (" in said
    assert f"({canary}): they stay on it where release 2 does not come to them; `edge-fleet rollout revert 1`" in said
    assert "stay on it" not in ask("rollout", "abort", "2"), "nobody runs that"
    row = next(each for each in json.loads(ask("devices", "--json")) if each["id"] == canary)
    assert row["models"][0]["stopped_rollout"] == 1
    assert f"* what rollout 1 brought, which was stopped before it was through, runs on {canary};" in ask("devices")
    assert "rollout 1: release 1 (head)" in ask("rollout", "revert", "1")
    assert "runs on" not in ask("devices")


def test_whom_a_rollout_waits_for_that_is_not_online_is_said(
    core: CoordinatorCore, digits_bundle: Path, head: Callable[[str, float], Path], moment: Now
) -> None:
    """Else who waits for a device that is silent sees no more than that it was offered something."""
    for name in ("gate", "door"):
        born(core, name, {"digits": Bundle.open(digits_bundle).manifest.backbone_digest})
    ask("push", str(head("a.safetensors", 1.0)))
    core.tick(moment)
    assert ": offered; offline, heard " in ask("rollout", "status", "1")
    core.transport(Disconnected(reason="gone"), Now(moment.s, moment.wall_ms + 1000))
    assert ": offered; not known, heard " in ask("rollout", "status", "1")
    told = refused("rollout", "status", "1", "--wait", "0.01")
    assert isinstance(told, WaitError)
    assert "1 offered, 1 waiting; not online: " in str(told)


@pytest.mark.parametrize("words", [("push",), ("release", "add"), ("import",), ("rollout", "plan")])
def test_a_file_without_an_end_is_refused_before_memory_is_used_up(
    core: CoordinatorCore, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.cli.releases.MAX_SIZE_BYTES", 1000)
    monkeypatch.setattr("edge.cli.carrying.MAX_SIZE_BYTES", 1000)
    told = refused(*words, "/dev/zero")
    assert isinstance(told, ConfigError)
    assert "/dev/zero has more than 1" in str(told)
    told = refused(*words, "/no/such/file")
    assert "/no/such/file cannot be read: No such file" in str(told)


def test_a_head_for_a_tag_that_nobody_has_is_refused_by_that_tag(
    core: CoordinatorCore, digits_bundle: Path, head: Callable[[str, float], Path]
) -> None:
    born(core, "gate", {"digits": Bundle.open(digits_bundle).manifest.backbone_digest})
    told = refused("push", str(head("a.safetensors", 1.0)), "--device", "tag.site=nowhere")
    assert str(told).startswith("none of tag.site=nowhere runs the backbone ")
