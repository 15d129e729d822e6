"""An agent serves whatever bundle it is given: without a head, with several inputs, with recurrent state."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from edge.agent import OnDeviceModel
from edge.agent.client import AgentClient
from edge.agent.model import releases
from edge.agent.model.serving import ModelError
from edge.agent.model.streams import StreamLimits
from edge.agent.wire import decode_answer
from edge.cli.agent import agent
from edge.contract import manifest as m
from edge.contract.bundle import Bundle, members_of, write_bundle
from edge.contract.errors import BundleError, ChannelError, EdgeError, LearningError
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet

ROOT = Path(__file__).parents[3]
RNG = np.random.default_rng(0)
Simulate = Callable[..., SimulatedFleet]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Make fleets that are closed at the end of the test."""
    fleets: list[SimulatedFleet] = []

    def make(*arguments: Any, **options: Any) -> SimulatedFleet:
        fleets.append(SimulatedFleet(*arguments, auto_merge=False, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def push(fleet: SimulatedFleet, path: Path) -> int:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(path.read_bytes(), path)
    what = (kept["digest"], kept["kind"], kept["backbone"])
    return fleet.coordinator.push(*what, [], "test", fleet.now, force=True).counter  # models of another kind, too


def told(fleet: SimulatedFleet, name: str) -> list[str]:
    """What the device said of this kind, the oldest first."""
    return [row.detail for row in reversed(fleet.store.events.newest(500)) if row.name == name]


def ask(fleet: SimulatedFleet, op: str, **request: Any) -> dict[str, Any]:
    return fleet.agents["one"].core.request({"op": op, **request}, fleet.now)


def masked(n: int | None = None) -> dict[str, Any]:
    several = () if n is None else (n,)
    return {"image": RNG.random((*several, 1, 3, 4), np.float32), "mask": RNG.integers(0, 2, (*several, 3, 4))}


# --- in Python -------------------------------------------------------------------------------------------------------


def test_a_bundle_without_a_head_predicts_and_says_that_it_does_not_learn(
    tmp_path: Path, masked_bundles: tuple[Path, Path]
) -> None:
    given, y = masked(6), [0] * 6
    with OnDeviceModel.open(masked_bundles[0]) as other:
        learned = other.snapshot()
    with OnDeviceModel.open(masked_bundles[1], tmp_path) as model:
        outputs = model.outputs(given)
        assert {name: array.shape for name, array in outputs.items()} == {"output_0": (6, 3), "output_1": (6, 4)}
        np.testing.assert_array_equal(model.predict(given), outputs["output_0"])
        one = {name: array[2] for name, array in given.items()}
        np.testing.assert_allclose(model.predict_sample("a", one, 0.0), outputs["output_0"][2], rtol=1e-5)
        for learn in (
            lambda: model.learn(given, y),
            lambda: model.join_label("a", 0, 0.0),
            lambda: model.add_class("z"),
            lambda: model.probabilities(given),
            lambda: model.learned,
            lambda: model.restore(learned),
            model.snapshot,
            model.reset,
            lambda: model.live_head().encode(),
            lambda: model.export_head(tmp_path / "head.safetensors"),
        ):
            with pytest.raises(LearningError, match="no trainable head; convert with --trainable"):
                learn()
        assert (model.learns, hasattr(model, "learn"), model.n_samples) == (False, False, 0)
        # What needs no head is answered: how right it is as shipped, and why it answers so.
        found, right = model.evaluate(given, y), outputs["output_0"].argmax(axis=1) == 0
        assert (found.accuracy, found.shipped_accuracy, found.gain) == (right.mean(), right.mean(), 0.0)
        assert found.loss == found.shipped_loss > 0
        assert model.explain(one, 1, on="image").importance.shape == (3, 4)
        assert model.explain(one, on="mask").output == outputs["output_0"][2].argmax()
        for on, words in (("features", "no trainable head, and so no features"), ("input", "expected image or mask")):
            with pytest.raises(LearningError, match=words):
                model.explain(one, on=on)
        assert {"samples", "accuracy", "acc", "experts", "labels"}.isdisjoint(model.status() | model.telemetry(0.0))
        assert not (tmp_path / "head.safetensors").exists()
    with pytest.raises(LearningError, match="closed"):
        model.predict(given)


def test_everything_that_learns_says_so_without_a_head(masked_bundles: tuple[Path, Path]) -> None:
    """Whatever is public on a model with a head is there, or refused with words, on one without."""
    with OnDeviceModel.open(masked_bundles[0]) as learns, OnDeviceModel.open(masked_bundles[1]) as fixed:
        assert (isinstance(learns, OnDeviceModel), isinstance(fixed, OnDeviceModel)) == (True, True)
        for name in (name for name in dir(learns) if not name.startswith("_")):
            if not hasattr(fixed, name):
                with pytest.raises(LearningError, match="no trainable head"):
                    getattr(fixed, name)


def test_a_head_learns_from_all_inputs_by_number_or_name(masked_bundles: tuple[Path, Path]) -> None:
    given, y = masked(60), np.where(np.arange(60) % 3, 2, 0)
    given["mask"] = RNG.random((60, 3, 4)) < np.where(y, 0.9, 0.2)[:, None, None]  # what only the mask knows
    names = np.array(["ok", "scratch", "dent"])[y]
    model, twin = (OnDeviceModel.open(masked_bundles[0], executor="numpy") for _ in range(2))
    with model, twin:
        before = model.outputs(given)
        for i in range(0, 60, 6):
            part = {name: array[i : i + 6] for name, array in given.items()}
            model.learn(part, names[i : i + 6])
            twin.learn(part, y[i : i + 6])
        np.testing.assert_array_equal(model.predict(given), twin.predict(given))
        found = model.evaluate(given, names)
        assert found.accuracy == model.evaluate(given, y).accuracy == (model.predict(given).argmax(axis=1) == y).mean()
        assert found.accuracy > 0.9 > 0.5 > (1.0 if found.shipped_accuracy is None else found.shipped_accuracy)
        np.testing.assert_array_equal(model.outputs(given)["output_1"], before["output_1"])
        one = {name: array[0] for name, array in given.items()}
        for on, shape in (("image", (3, 4)), ("mask", (4,)), ("features", (16,))):
            assert model.explain(one, "dent", on=on).output == 2
            assert model.explain(one, 2, on=on).importance.squeeze().shape == shape
        with pytest.raises(LearningError, match="expected image, mask or features"):
            model.explain(one, on="input")
        nobody: list[Any] = [["zebra"] * 60, [None] * 60, [{}] * 60]
        for wrong in nobody:
            with pytest.raises(LearningError, match="label: expected a class from 0 to 2 or one of its names"):
                model.learn(given, wrong)
        with pytest.raises(LearningError, match="output: expected a class"):
            model.explain(one, "zebra", on="image")
        assert model.n_samples == 60


def test_a_head_behind_recurrent_state_learns_what_each_stream_heard(spotter_bundle: Path) -> None:
    frames = RNG.normal(size=(40, 6)).astype(np.float32)
    with OnDeviceModel.open(spotter_bundle) as model:
        said = []
        for i, frame in enumerate(frames):  # two streams, one frame here and one there
            said.append(model.predict_sample(f"s{i}", frame, float(i), stream="ab"[i % 2]))
            if i % 3 == 0:
                assert model.join_label(f"s{i}", "off", float(i))
        assert (model.n_samples, len(model.streams)) == (14, 2)
    with OnDeviceModel.open(spotter_bundle) as fresh:
        for k, name in enumerate("ab"):
            alone = fresh.predict(frames[k::2])
            np.testing.assert_allclose(said[k], alone[0], rtol=1e-4, atol=1e-5, err_msg=name)
        assert len(fresh.streams) == 0, "samples that are given together are a stream of their own"
        a = [fresh.predict_sample("x", frame, 0.0, stream="a") for frame in frames[::2]]
        np.testing.assert_allclose(a, fresh.predict(frames[::2]), rtol=1e-4, atol=1e-5)
        head = {name: 0.5 * array for name, array in fresh.bundle.head_parameters().items()}
        release = HeadRelease(backbone=fresh.manifest.backbone_digest, parameters=head)
        releases.take(fresh, releases.look_at(fresh, release, competes=False), 1)
        assert fresh.sample("x", frames[0], 0.0, stream="a").steps == 21, "another head is no other memory"
        names = np.where(frames[:, 0] > 0, "on", "off")
        for _ in range(4):
            fresh.learn(frames, names)
        found = fresh.evaluate(frames, names)
        assert found.accuracy > 0.8 > found.shipped_accuracy


def test_a_sample_that_fails_leaves_its_stream_as_it_was(voice_bundle: Path, spotter_bundle: Path) -> None:
    for path, size in ((voice_bundle, 128), (spotter_bundle, 6)):
        frames = RNG.normal(size=(4, size)).astype(np.float32)
        with OnDeviceModel.open(path) as model:
            expected = model.predict(frames)
            for i, frame in enumerate(frames):
                for bad in (frame[:-1], frame * np.nan, None, {"other": frame}):
                    with pytest.raises(LearningError):
                        model.predict_sample("b", bad, 0.0, reset=True)
                for name in ("", 5, "x" * 129, ["mic"]):
                    with pytest.raises(LearningError, match="stream: expected a text of 1 to 128 characters"):
                        model.predict_sample("b", frame, 0.0, stream=name)
                with pytest.raises(LearningError, match="reset: expected true or false, got 'yes'"):
                    model.predict_sample("b", frame, 0.0, reset="yes")
                with pytest.raises(LearningError, match="id: expected a text"):
                    model.predict_sample("", frame, 0.0)
                found = model.sample("a", frame, 0.0)
                np.testing.assert_allclose(found.outputs[model.answer_name], expected[i], rtol=1e-4, atol=1e-5)
                assert found.steps == i + 1
            anew = model.sample("a", frames[0], 0.0, reset=True)
            np.testing.assert_allclose(anew.outputs[model.answer_name], expected[0], rtol=1e-4, atol=1e-5)
            assert anew.steps == 1
            huge = np.full(size, 1e38, np.float32)
            try:  # an answer that is not finite, too, leaves the state
                model.predict_sample("b", huge, 0.0)
            except ModelError:
                assert model.sample("a", frames[1], 0.0).steps == 2


def test_an_answer_that_is_not_finite_is_an_error_embedded_as_in_the_agent(
    masked_bundles: tuple[Path, Path], fragile_bundle: Path
) -> None:
    huge = {"image": np.full((2, 1, 3, 4), 3e38, np.float32), "mask": np.full((2, 3, 4), 100)}
    for path in masked_bundles:
        with OnDeviceModel.open(path) as model:
            for give in (
                model.predict,
                model.outputs,
                lambda x, model=model: model.predict_sample("a", _first(x), 0.0),
            ):
                with pytest.raises(ModelError, match="the model's answer for this sample is not finite"):
                    give(huge)
            assert (model.metrics.inferences, model.events) == (0, [])
            if model.learns:
                assert not model.join_label("a", 0, 0.0), "it is not remembered"
    with OnDeviceModel.open(fragile_bundle) as model, pytest.raises(ModelError, match="not finite"):
        model.predict({"x": -np.ones((2, 4)), "word": [1, 2]})


def _first(given: dict[str, Any]) -> dict[str, Any]:
    return {name: array[0] for name, array in given.items()}


def wrong(folder: Path, path: Path) -> Path:
    """The same bundle, but for its golden answers."""
    bundle = Bundle.open(path)
    blobs = {role: bundle.read(role) for role in bundle.manifest.members}
    golden = bundle.tensors(m.GOLDEN)
    golden["output.speech"] = golden["output.speech"][::-1].copy() + 0.3
    blobs[m.GOLDEN] = safetensors.numpy.save(golden)
    write_bundle(folder / "wrong.edge", replace(bundle.manifest, members=members_of(blobs)), blobs)
    return folder / "wrong.edge"


def test_bundles_that_cannot_be_trusted_are_refused_whatever_they_hold(tmp_path: Path, voice_bundle: Path) -> None:
    with pytest.raises(BundleError, match="golden"):
        OnDeviceModel.open(wrong(tmp_path, voice_bundle), tmp_path / "state")
    with pytest.raises(BundleError, match="--stream-memory"):
        OnDeviceModel.open(voice_bundle, streams=StreamLimits(max_mb=1e-6))
    OnDeviceModel.open(voice_bundle, tmp_path / "state").close()


# --- in an agent -----------------------------------------------------------------------------------------------------


def test_bundles_of_all_kinds_follow_each_other_on_one_device(
    simulate: Simulate,
    tmp_path: Path,
    digits_bundle: Path,
    voice_bundle: Path,
    detector_bundle: Path,
    masked_bundles: tuple[Path, Path],
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    agent = fleet.agents["one"]
    samples: dict[Path, dict[str, Any]] = {
        voice_bundle: {"x": RNG.random(128, np.float32), "stream": "mic-1"},
        detector_bundle: {"x": RNG.random((3, 32, 48), np.float32)},
        masked_bundles[1]: {"inputs": masked()},
        masked_bundles[0]: {"inputs": masked()},
        digits_bundle: {"x": digits[0][0]},
    }
    fleet.run(5.0)
    for path, sample in samples.items():
        counter = push(fleet, path)
        fleet.until("live", lambda path=path: agent.host.model.bundle.digest == Bundle.open(path).digest)
        fleet.run(10.0)
        learns = agent.host.model.learns
        state = fleet.device("one")
        assert (state.state, state.state_release) == ("active" if learns else "probation", counter)
        assert state.state_detail == "not judged: nothing was predicted since it is live"
        if not learns:
            assert ask(fleet, "status")["learner"] == "none"
            for op in ({"op": "label", "id": "a", "y": 0}, {"op": "add-class", "name": "z"}):
                with pytest.raises(LearningError, match="no trainable head; convert with --trainable"):
                    ask(fleet, **op)
        answer = ask(fleet, "predict", id="a", **sample)
        assert answer
        fleet.until("active", lambda counter=counter: fleet.converged(counter))
        fleet.until("evidence", lambda: "1 predictions" in fleet.device("one").state_detail)
    assert told(fleet, "streams-begin-anew") == ["another bundle is live: 1 stream begins anew"]


def test_a_head_for_a_bundle_without_one_is_refused(
    simulate: Simulate, tmp_path: Path, masked_bundles: tuple[Path, Path]
) -> None:
    fleet = simulate(tmp_path, masked_bundles[1], ["one"])
    fleet.run(5.0)
    backbone = Bundle.open(masked_bundles[1]).manifest.backbone_digest
    parameters = Bundle.open(masked_bundles[0]).head_parameters()
    release = HeadRelease(backbone=backbone, parameters=parameters, n_samples=0, origin="an operator")
    with pytest.raises(BundleError, match="no trainable head"):
        releases.look_at(fleet.agents["one"].host.model, release, competes=False)
    file = tmp_path / "head.safetensors"
    file.write_bytes(release.encode())
    assert fleet.coordinator is not None
    with pytest.raises(EdgeError):  # the coordinator knows it, too
        fleet.coordinator.add_artifact(file.read_bytes(), file)


def test_a_bundle_that_fails_on_probation_is_taken_back_and_the_one_before_answers(
    simulate: Simulate, tmp_path: Path, spotter_bundle: Path, fragile_bundle: Path, voice_bundle: Path
) -> None:
    frame = RNG.normal(size=6).astype(np.float32)
    fleet = simulate(tmp_path, spotter_bundle, ["one"], streams=StreamLimits(max_mb=50 / 2**20))
    agent = fleet.agents["one"]
    first = ask(fleet, "predict", id="a", x=frame, stream="mic-1")
    second = ask(fleet, "predict", id="a", x=frame, stream="mic-1")
    assert (first["step"], second["step"], first["logits"] == second["logits"]) == (1, 2, False)
    ask(fleet, "predict", id="a", x=frame, stream="mic-2")
    fleet.run(5.0)
    for refused, why in ((wrong(tmp_path, voice_bundle), "golden"), (voice_bundle, "--stream-memory")):
        push(fleet, refused)  # a state of 64 bytes does not fit into 50
        fleet.until("refused", lambda why=why: why in fleet.device("one").state_detail)
        assert fleet.device("one").state == "refused"
    good, bad = np.ones(4, np.float32), -np.ones(4, np.float32)
    for fault in ({"x": bad, "word": 1}, {"x": good, "word": 9}):
        push(fleet, fragile_bundle)
        fleet.until("probation", lambda: agent.host.model.bundle.digest == Bundle.open(fragile_bundle).digest)
        assert ask(fleet, "predict", id="a", inputs={"x": good, "word": 1}, stream="mic-1").keys() >= {"class", "name"}
        with pytest.raises(LearningError, match="'words' is none of them"):
            ask(fleet, "predict", id="a", inputs={"x": good, "words": 1})
        assert str(agent.model.deployment.state) == "probation", "a request that is wrong is no fault of a model"
        with pytest.raises(LearningError, match="expected the inputs frame"):  # the one before answers, and cannot
            ask(fleet, "predict", id="a", inputs=fault)
        fleet.until("rolled back", lambda: fleet.device("one").state == "rolled-back")
        assert "prediction failed" in fleet.device("one").state_detail
    anew = ask(fleet, "predict", id="a", x=frame, stream="mic-1")
    assert (anew["step"], anew["logits"]) == (1, first["logits"])
    fleet.run(5.0)
    assert told(fleet, "streams-begin-anew") == ["another bundle is live: 1 stream begins anew"]
    push(fleet, fragile_bundle)
    fleet.until("probation", lambda: agent.host.model.bundle.digest == Bundle.open(fragile_bundle).digest)
    ask(fleet, "predict", id="a", inputs={"x": good, "word": 1})
    fleet.until("active", lambda: fleet.device("one").state == "active")
    with pytest.raises(ModelError):  # later it stays, and says that it cannot
        ask(fleet, "predict", id="a", inputs={"x": bad, "word": 1})
    assert fleet.device("one").state == "active"


def test_a_bundle_that_nobody_asked_anything_goes_when_the_next_one_comes(
    simulate: Simulate, tmp_path: Path, masked_bundles: tuple[Path, Path], voice_bundle: Path, detector_bundle: Path
) -> None:
    fleet = simulate(tmp_path, masked_bundles[1], ["one"])
    fleet.run(5.0)
    agent = fleet.agents["one"]
    for path in (voice_bundle, detector_bundle):
        push(fleet, path)
        fleet.until("live", lambda path=path: agent.host.model.bundle.digest == Bundle.open(path).digest)
        fleet.run(20.0)
        assert fleet.device("one").state == "probation"
        assert agent.states.count("active") == 0
    assert agent.host.slots.record.previous == "", "what nobody judged is not what the next one falls back to"
    fleet.crash_agent("one")
    agent = fleet.start_agent("one")
    assert agent.host.model.bundle.digest == Bundle.open(detector_bundle).digest
    fleet.run(10.0)
    assert fleet.device("one").state == "probation", "nothing was predicted since, still"
    ask(fleet, "predict", id="a", x=RNG.random((3, 32, 32), np.float32))
    fleet.until("active", lambda: fleet.device("one").state == "active")


def test_ten_thousand_streams_are_served_in_bounded_memory_and_the_status_says_so(
    simulate: Simulate, tmp_path: Path, voice_bundle: Path
) -> None:
    fleet = simulate(tmp_path, voice_bundle, ["one"], streams=StreamLimits(most=64, idle_s=30.0))
    frames = RNG.random((2, 128), np.float32)
    expected = OnDeviceModel.open(voice_bundle).predict(frames)[:, 0]
    for i in range(10_000):
        found = ask(fleet, "predict", id="a", x=frames[0], stream=f"mic-{i}")
        assert (found["step"], found["values"][0]) == (1, pytest.approx(expected[0], rel=1e-5))
    status = ask(fleet, "status")
    assert status["streams"] == {"open": 64, "most": 64, "state_bytes": 64, "idle_s": 30.0, "forgotten": 9936}
    for name, step in (("mic-9999", 2), ("mic-0", 1)):
        found = ask(fleet, "predict", id="a", x=frames[1], stream=name)
        assert found["step"] == step
        assert (found["values"][0] == pytest.approx(expected[1], rel=1e-5)) == (step == 2)
    fleet.run(40.0)
    assert ask(fleet, "predict", id="a", x=frames[0], stream="mic-9999")["step"] == 1, "silent for longer than 30 s"
    fleet.run(6.0)
    assert told(fleet, "stream-forgotten") == [
        "there is room for 64 streams: the one that was silent longest begins anew"
    ]
    values = fleet.store.telemetry.after(-1, 1)[0].values
    assert (values["streams"], values["infer"], values["learner"]) == (1, 10_003, "none")
    assert {"samples", "acc", "loss", "experts", "labels", "waiting"}.isdisjoint(values)


# --- over a socket ---------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[[Path], AgentClient]]:
    """Start agents as their users do, one after the other, and give a connection to each."""
    started: list[tuple[subprocess.Popen[bytes], AgentClient]] = []

    def stop() -> None:
        for process, client in started:
            client.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        started.clear()

    def start(bundle: Path, *options: str) -> AgentClient:
        stop()
        line = [sys.executable, "-m", "edge.cli.agent", "run", str(bundle), "--state-dir", str(tmp_path / "state")]
        process = subprocess.Popen([*line, *options], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        for _ in range(600):
            try:
                client = AgentClient(tmp_path / "state" / "agent.sock")
                break
            except ChannelError:
                assert process.poll() is None
                time.sleep(0.1)
        started.append((process, client))
        return client

    yield start
    stop()


def test_what_has_no_row_of_answers_is_neither_evaluated_nor_explained(detector_bundle: Path) -> None:
    picture = RNG.random((1, 3, 32, 48), np.float32)
    with OnDeviceModel.open(detector_bundle) as model:
        for what, ask in (
            ("evaluate", lambda: model.evaluate(picture, [0])),
            ("explain", lambda: model.explain(picture[0])),
        ):
            with pytest.raises(LearningError, match=f"{what}: the output .* is not a row of classes"):
                ask()


def test_a_voice_detector_a_detector_of_boxes_and_two_inputs_over_a_real_socket(
    running: Callable[..., AgentClient],
    tmp_path: Path,
    voice_bundle: Path,
    detector_bundle: Path,
    masked_bundles: tuple[Path, Path],
) -> None:
    state = tmp_path / "state"

    def command(*line: object) -> str:
        done = CliRunner().invoke(agent, [*map(str, line), "--state-dir", str(state)])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    frames = RNG.random((3, 128), np.float32)
    expected = OnDeviceModel.open(voice_bundle).predict(frames)[:, 0]
    client = running(voice_bundle, "--max-streams", "2", "--stream-expiry", "100", "--stream-memory", "1")
    for i, frame in enumerate(frames):
        for stream in ("mic-1", None):
            found = client.predict("a", frame, stream=stream)
            assert (found["step"], found["values"]) == (i + 1, [pytest.approx(expected[i], rel=1e-5)])
    assert client.predict("a", {"audio": frames[0]}, stream="mic-1", reset=True)["step"] == 1
    status = client.status()
    assert (status["learner"], status["why"]) == ("none", "this bundle has no trainable head; convert with --trainable")
    assert (status["streams"]["open"], status["streams"]["most"], status["streams"]["idle_s"]) == (2, 2, 100.0)
    assert {"samples", "accuracy", "experts"}.isdisjoint(status)
    x = frames[0].tolist()
    for request, words in (
        (
            {"op": "predict", "id": "a", "x": x, "strem": "mic"},
            "'strem' is not known of predict: expected op, model, id",
        ),
        ({"op": "label", "id": "a", "y": 0, "x": x}, "'x' is not known of label"),
        ({"op": "status", "id": "a"}, "'id' is not known of status"),
        ({"op": "predict", "id": "a"}, "expected a sample as x, or by the names of its inputs as inputs"),
        ({"op": "predict", "id": "a", "x": x, "inputs": {"audio": x}}, "expected a sample as x, or"),
        ({"op": "predict", "id": "a", "inputs": [1]}, "inputs: expected an object"),
        ({"op": "predict", "id": "a", "inputs": {"audio": x, "sr": 16000}}, "sr is a constant of this bundle, 8000"),
        ({"op": "predict", "id": "a", "inputs": {"audio": [[1], [2, 3]]}}, "audio: the nested lists are not of one"),
        ({"op": "predict", "id": "a", "x": x, "stream": 5}, "stream: expected a text"),
        ({"op": "predict", "id": "a", "x": x, "reset": 1}, "reset: expected true or false"),
        ({"op": "predict", "id": "a", "x": x[1:]}, "audio: expected shape (128), got (127,)"),
        ({"op": "label", "id": "a", "y": 0}, "no trainable head; convert with --trainable"),
        ({"op": "add-class", "name": "z"}, "no trainable head; convert with --trainable"),
    ):
        with pytest.raises(LearningError) as refused:
            client.request(request)
        assert words in str(refused.value)
    assert client.predict("a", frames[1], stream="mic-1")["step"] == 2
    np.savez(state.with_name("frames.npz"), audio=frames)
    said = command("predict", state.with_name("frames.npz"), "--stream", "mic-1", "--reset", "--json")
    assert [json.loads(line)["step"] for line in said.splitlines()] == [1, 2, 3]
    assert "none: this bundle has no trainable head" in command("status")

    client = running(voice_bundle)
    assert client.predict("a", frames[0], stream="mic-1")["step"] == 1, "a restart forgets what was heard"

    client = running(detector_bundle)
    pictures = RNG.random((2, 3, 32, 48), np.float32)
    wanted = OnDeviceModel.open(detector_bundle).outputs(pictures)
    for i, picture in enumerate(pictures):
        found = client.predict("a", picture)["outputs"]
        assert {name: what["kind"] for name, what in found.items()} == {"boxes": "boxes", "scores": "scores"}
        for name, what in found.items():
            array = what["array"]
            assert (array.dtype, array.shape) == (np.float32, wanted[name].shape[1:])
            np.testing.assert_allclose(array, wanted[name][i], rtol=1e-5, atol=1e-6)
    np.save(state.with_name("picture.npy"), pictures[0])
    shown = command("predict", state.with_name("picture.npy"))
    assert shown == "picture.npy: boxes float32 of shape (24, 4); scores float32 of shape (24, 3)\n"
    exact = decode_answer(command("predict", state.with_name("picture.npy"), "--json").encode())
    np.testing.assert_allclose(exact["outputs"]["boxes"]["array"], wanted["boxes"][0], rtol=1e-5, atol=1e-6)

    client = running(masked_bundles[1])
    given = masked()
    assert client.predict("a", given).keys() == {"class", "name", "confidence", "logits", "outputs"}
    np.savez(state.with_name("two.npz"), **given)
    assert re.fullmatch(
        r"two.npz: \w+ \(class [012]\), confidence 0\.\d+; output_1 float32 of shape \(4,\)\n",
        command("predict", state.with_name("two.npz")),
    )
