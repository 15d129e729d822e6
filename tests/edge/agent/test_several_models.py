"""Several models on one device: each by its name, each for itself, with one budget and one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.config import MAX_MODELS, named_bundles
from edge.agent.model import on_device_model
from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.releases import head_digest
from edge.channel.memory import Message
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, ConfigError, LearningError, RolloutError
from edge.contract.names import level_of
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet

Simulate = Callable[..., SimulatedFleet]
ODD = "../Zähler: 2 $(x)"


@pytest.fixture
def simulate(tmp_path: Path, digits_bundle: Path, other_bundle: Path) -> Iterator[Simulate]:
    """Make fleets of devices with two models each."""
    fleets: list[SimulatedFleet] = []

    def make(*devices: str, **options: Any) -> SimulatedFleet:
        bundles = {"digits": digits_bundle, ODD: other_bundle}
        fleets.append(SimulatedFleet(tmp_path, bundles, list(devices), **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def ask(fleet: SimulatedFleet, device: str, model: str | None, **request: Any) -> dict[str, Any]:
    named = request if model is None else {"model": model, **request}
    return fleet.agents[device].core.request(named, fleet.now)


def teach(fleet: SimulatedFleet, device: str, model: str, n: int, seed: int) -> None:
    """Label random samples as the model that is live answers them."""
    live = fleet.agents[device].models.hosts[model].model
    x = np.random.default_rng(seed).random((n, 1, 8, 8), np.float32)
    for i, y in enumerate(live.predict(x).argmax(axis=1)):
        ask(fleet, device, model, op="predict", id=f"{seed}-{i}", x=x[i])
        assert ask(fleet, device, model, op="label", id=f"{seed}-{i}", y=int(y))["joined"]


def told(fleet: SimulatedFleet, name: str) -> list[str]:
    return [f"{event.model}: {event.detail}" for event in fleet.store.events.newest(200) if event.name == name]


def test_each_model_is_named_by_its_bundle_or_the_command_line(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    own = Bundle.open(digits_bundle).manifest.name
    assert named_bundles([str(digits_bundle), f"voice={other_bundle}"]) == {own: digits_bundle, "voice": other_bundle}
    with pytest.raises(ConfigError, match=rf"both of the model '{own}'; name one of them otherwise: NAME="):
        named_bundles([str(digits_bundle), str(digits_bundle)])
    assert len(named_bundles([str(digits_bundle), f"again={digits_bundle}"])) == 2
    with pytest.raises(ConfigError, match=r"1 to 100 characters that can be shown"):
        named_bundles([f"a\nb={digits_bundle}"])
    with pytest.raises(ConfigError, match=f"at most {MAX_MODELS}"):
        named_bundles([f"m{i}={digits_bundle}" for i in range(MAX_MODELS + 1)])
    for missing in ("nowhere.edge", "x=nowhere.edge"):
        with pytest.raises(BundleError, match=r"nowhere\.edge does not exist"):
            named_bundles([str(digits_bundle), missing])
    (tmp_path / "bad.edge").write_bytes(digits_bundle.read_bytes()[:100])
    assert list(named_bundles([str(digits_bundle), str(tmp_path / "bad.edge")])) == [own, "bad"]
    with pytest.raises(BundleError):
        named_bundles([str(tmp_path / "bad.edge")])


def test_models_learn_are_merged_and_reported_apart(
    simulate: Simulate, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet = simulate("one", "two")
    for seed, device in enumerate(("one", "two")):
        teach(fleet, device, "digits", 40, seed)
        teach(fleet, device, ODD, 20, 10 + seed)
    backbones = {"digits": Bundle.open(digits_bundle), ODD: Bundle.open(other_bundle)}

    def has_merges() -> bool:
        rows = [fleet.known(device, model) for device in fleet.agents for model in backbones]
        return all(row is not None and row.state == "active" for row in rows)

    fleet.until("both are merged", has_merges)
    samples = {(row.device, row.model): (row.backbone, row.n_samples) for row in fleet.store.contributions.all()}
    assert samples == {
        (device, model): (bundle.manifest.backbone_digest, 40 if model == "digits" else 20)
        for device in fleet.agents
        for model, bundle in backbones.items()
    }
    by_backbone = {row.backbone: row.counter for row in fleet.store.releases.all()}
    assert len(by_backbone) == 2
    for model, bundle in backbones.items():
        row = fleet.known("one", model)
        assert (row.release, row.bundle) == (by_backbone[bundle.manifest.backbone_digest], bundle.digest)
        assert "merged" in row.experts
        assert row.samples == (40 if model == "digits" else 20)
    fleet.run(12.0)
    telemetry = [row.values for row in fleet.store.telemetry.after(-1, 100) if row.device == "one"]
    assert {row["model"] for row in telemetry[-2:]} == {"digits", ODD}
    assert all("mem_mb" in row for row in telemetry)
    assert len({(row["boot"], row["seq"]) for row in telemetry}) == len(telemetry)
    # Of the same names, on disk, each in a folder of its own that has nothing odd, and is nobody else's meanwhile.
    folders = [path for path in (fleet.folder / "one" / "models").iterdir() if path.is_dir()]
    assert sorted(path.name for path in folders) == sorted(["digits", level_of(ODD)])
    with pytest.raises(ConfigError, match="in use by another process"):
        OnDeviceModel.open(other_bundle, fleet.folder / "one" / "models" / level_of(ODD))
    status = ask(fleet, "one", None, op="status")
    assert {name: each["samples"] for name, each in status["models"].items()} == {"digits": 40, ODD: 20}
    assert status["models"][ODD]["budget_ms_per_s"] == status["models"]["digits"]["budget_ms_per_s"] > 0
    assert "samples" not in status, "of which one it would be, nobody said"
    assert ask(fleet, "one", ODD, op="status")["samples"] == 20
    for name in (None, "voice", 7):
        with pytest.raises(LearningError, match=r"model: expected one of 'digits', '\.\./Z"):
            ask(fleet, "one", name, op="predict", id="a", x=np.zeros((1, 8, 8), np.float32))


def test_a_push_is_for_one_model_and_so_is_its_rollback(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet = simulate("one", auto_merge=False)
    fleet.until("known", lambda: fleet.known("one", ODD) is not None)
    core = fleet.coordinator
    assert core is not None
    kept = core.add_artifact(other_bundle.read_bytes(), other_bundle)
    with pytest.raises(RolloutError, match=r"no device has a model 'other', there are '.*'digits'; say with --model"):
        core.push(**push(kept), now=fleet.now)
    with pytest.raises(RolloutError, match="no device has a model 'voice'"):
        core.push(**push(kept), now=fleet.now, model="voice")
    first = core.push(**push(kept), now=fleet.now, model=ODD).counter
    fleet.until("active", lambda: fleet.known("one", ODD).state == "active")
    hosts = fleet.agents["one"].models.hosts
    assert (hosts[ODD].slots.record.release, hosts["digits"].slots.record.release) == (first, 0)
    teach(fleet, "one", "digits", 30, 1)
    teach(fleet, "one", ODD, 30, 2)
    # A head that answers at random goes to one of them, and is taken back there.
    model = hosts[ODD].model
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in model.bundle.head_parameters().items()}
    head = core.add_artifact(HeadRelease(backbone=kept["backbone"], parameters=noise).encode(), tmp_path)
    with pytest.raises(RolloutError, match=r"no device runs the backbone .* for the model 'digits'"):
        core.push(**push(head), now=fleet.now, model="digits")
    before = head_digest(hosts["digits"].model)
    second = core.push(**push(head), now=fleet.now, model=ODD).counter
    fleet.until("refused", lambda: fleet.known("one", ODD).state == "refused")
    assert hosts[ODD].slots.record.refused == second
    assert head_digest(hosts["digits"].model) == before
    assert hosts["digits"].slots.record.release == 0
    # A bundle whose answers are not finite is taken back, and the other model knows nothing of it.
    third = core.push(**push(kept), now=fleet.now, model="digits").counter
    fleet.until("on probation", lambda: hosts["digits"].slots.record.state == "probation")
    hosts["digits"].model.predict_sample = broken  # type: ignore[method-assign]
    if hasattr(hosts["digits"].model, "respond"):
        hosts["digits"].model.respond = broken
    answer = ask(fleet, "one", "digits", op="predict", id="x", x=np.zeros((1, 8, 8), np.float32))
    assert answer["name"] in [str(i) for i in range(10)], "the model from before has answered"
    fleet.until("rolled back", lambda: fleet.known("one", "digits").state == "rolled-back")
    assert fleet.known("one", "digits").release == third
    assert hosts["digits"].model.bundle.digest == Bundle.open(digits_bundle).digest
    assert hosts["digits"].model.n_samples == 30
    assert (fleet.known("one", ODD).state, fleet.known("one", ODD).release) == ("refused", second)
    # All of that is known after a kill.
    fleet.crash_agent("one")
    hosts = fleet.start_agent("one").models.hosts
    handled = {name: max(host.slots.record.release, host.slots.record.refused) for name, host in hosts.items()}
    assert handled == {ODD: second, "digits": third}
    assert {name: host.model.n_samples for name, host in hosts.items()} == {ODD: 30, "digits": 30}


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("no such operator")


def push(kept: dict[str, Any]) -> dict[str, Any]:
    return {"digest": kept["digest"], "kind": kept["kind"], "backbone": kept["backbone"], "devices": [], "reason": "r"}


def test_a_fault_of_one_model_stops_no_other(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = simulate("one", auto_merge=False)
    fleet.until("known", lambda: fleet.known("one", ODD) is not None)
    agent = fleet.agents["one"]
    monkeypatch.setattr(agent.core.models["digits"], "tick", broken)
    monkeypatch.setattr(agent.core.models["digits"], "telemetry", broken)
    teach(fleet, "one", ODD, 30, 1)
    teach(fleet, "one", "digits", 5, 1)
    fleet.run(20.0)
    assert told(fleet, "model-fault") == [": digits: RuntimeError: no such operator"], "told once"
    assert [row.model for row in fleet.store.contributions.all()] == [ODD]
    rows = [row.values for row in fleet.store.telemetry.after(-1, 100)]
    assert rows[-1]["model"] == ODD
    monkeypatch.setattr(agent.core.models["digits"], "status", broken)
    monkeypatch.setattr(agent.core.models["digits"], "served", broken)
    assert "no such operator" in ask(fleet, "one", None, op="status")["models"]["digits"]["fault"]
    fleet.broker.disconnect("one")
    fleet.run(1.0)
    fleet.broker.connect("one")
    fleet.until("born again", lambda: [row.model for row in fleet.store.devices.models("one")] == [ODD])
    # A folder that takes nothing any more is the trouble of its model, too.
    monkeypatch.undo()
    folder = fleet.folder / "one" / "models" / "digits"
    monkeypatch.setattr(agent.models.hosts["digits"].model.state._store, "sync", full)
    teach(fleet, "one", "digits", 5, 2)
    teach(fleet, "one", ODD, 5, 2)
    fleet.run(400.0)
    assert folder.is_dir()
    assert any(each.startswith("digits: a checkpoint could not be written") for each in told(fleet, "storage"))
    assert not any(each.startswith(ODD) for each in told(fleet, "storage"))
    assert agent.models.hosts[ODD].model.state.is_safe
    assert fleet.device("one").online


def ended(fleet: SimulatedFleet, model: str) -> tuple[int, str]:
    row = fleet.known("one", model)
    return row.state_release, row.state


RAISED: dict[type[Exception], str] = {
    OSError: "[Errno 28] No space left on device",
    RuntimeError: "RuntimeError: no kernel",
}


def test_a_bundle_that_cannot_be_opened_when_it_goes_live_leaves_the_one_before_answering(
    simulate: Simulate, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = simulate("one", auto_merge=False)
    fleet.until("known", lambda: fleet.known("one", ODD) is not None)
    assert fleet.coordinator is not None
    host = fleet.agents["one"].models.hosts["digits"]
    opened = host._open
    faults = [OSError(28, "No space left on device"), RuntimeError("no kernel")]

    def fails(path: Path, state_dir: Path | None) -> Any:
        if path.parent.name == "bundles" and state_dir is not None:
            raise faults[0]
        return opened(path, state_dir)

    monkeypatch.setattr(host, "_open", fails)
    kept = fleet.coordinator.add_artifact(other_bundle.read_bytes(), other_bundle)
    while faults:
        counter = fleet.coordinator.push(**push(kept), now=fleet.now, model="digits").counter
        fleet.until("failed", lambda counter=counter: ended(fleet, "digits") == (counter, "failed"))
        assert fleet.known("one", "digits").state_detail == f"activate: {RAISED[type(faults[0])]}"
        assert ask(fleet, "one", "digits", op="predict", id="a", x=np.zeros((1, 8, 8), np.float32))["name"]
        assert (host.slots.record.bundle, host.slots.record.trying) == ("", False)
        del faults[0]
    assert fleet.known("one", ODD).state in ("idle", "")
    # Nor does one that cannot be opened at the start, whatever is wrong with it.
    fleet.crash_agent("one")

    def of_bundle(bundle: Bundle, **options: Any) -> Any:
        if bundle.digest == Bundle.open(other_bundle).digest:
            raise RuntimeError("no kernel")
        return on_device_model.of_bundle(bundle, **options)

    monkeypatch.setattr("edge.agent.model.host.of_bundle", of_bundle)
    agent = fleet.start_agent("one")
    assert list(agent.core.models) == ["digits"]
    assert agent.models.failed == {ODD: "RuntimeError: no kernel"}


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_model_that_does_not_open_leaves_the_others_and_one_that_is_not_named_keeps_what_it_has(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate("one", auto_merge=False)
    teach(fleet, "one", ODD, 10, 1)
    fleet.crash_agent("one")
    data = bytearray(digits_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.edge").write_bytes(data)
    good, fleet.bundles = fleet.bundles, {**fleet.bundles, "digits": tmp_path / "damaged.edge"}
    agent = fleet.start_agent("one")
    assert list(agent.core.models) == [ODD]
    assert "damaged" in ask(fleet, "one", None, op="status")["not_served"]["digits"]
    with pytest.raises(LearningError, match=r"the model 'digits' is not served: .*damaged"):
        ask(fleet, "one", "digits", op="predict", id="a", x=np.zeros((1, 8, 8), np.float32))
    with pytest.raises(LearningError, match="none was named"):
        ask(fleet, "one", None, op="predict", id="a", x=np.zeros((1, 8, 8), np.float32))
    fleet.until("told", lambda: any("'digits' is not served" in each for each in told(fleet, "warning")))
    fleet.crash_agent("one")
    fleet.bundles = {"digits": tmp_path / "damaged.edge"}
    with pytest.raises(BundleError):
        fleet.start_agent("one")
    fleet.bundles = {"digits": digits_bundle}
    agent = fleet.start_agent("one")
    assert ask(fleet, "one", None, op="status")["not_served"] == {ODD: "its bundle was not named"}
    fleet.until("the registry knows", lambda: [row.model for row in fleet.store.devices.models("one")] == ["digits"])
    fleet.crash_agent("one")
    fleet.bundles = good
    agent = fleet.start_agent("one")
    assert agent.models.hosts[ODD].model.n_samples == 10
    fleet.until("known again", lambda: fleet.known("one", ODD) is not None and fleet.known("one", ODD).samples == 10)


def test_topics_have_a_level_for_the_model_only_where_there_are_several(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet = simulate("several", auto_merge=False)
    sent: dict[str, list[str]] = {}
    route = fleet.broker.route

    def noted(message: Message) -> None:
        _, _, _, device, leaf = message.topic.split("/", 4)
        sent.setdefault(device, []).append(leaf)
        route(message)

    fleet.broker.route = noted  # type: ignore[method-assign]
    fleet.bundles = {"digits": digits_bundle}
    fleet.start_agent("single")
    core = fleet.coordinator
    assert core is not None
    fleet.until("known", lambda: fleet.device("single") is not None and fleet.device("several") is not None)
    kept = core.add_artifact(digits_bundle.read_bytes(), digits_bundle)
    core.push(**push(kept), now=fleet.now, model="digits")
    fleet.until(
        "active", lambda: fleet.known("single", "digits").state == fleet.known("several", "digits").state == "active"
    )
    levels = {"digits", level_of(ODD)}
    assert {leaf for leaf in sent["several"] if leaf.startswith("up/state")} == {
        f"up/state/{level}" for level in levels
    }
    assert {leaf for leaf in sent["several"] if leaf.startswith("dn/desired")} == {"dn/desired/digits"}
    single = {leaf for leaf in sent["single"] if leaf.startswith(("up/state", "dn/desired"))}
    assert single == {"up/state", "dn/desired"}
