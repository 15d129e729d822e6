"""Which execution provider runs a bundle: by measuring, in processes that may crash, hang, or lie.

The installed onnxruntime has only the CPU's; others are played by processes and sessions that do what one may do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edge.agent.model.on_device_model import OnDeviceModel
from edge.cli.bundle import bundle as edge_bundle
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, ConfigError
from edge.inference import onnx_providers
from edge.inference.onnx_provider_trial import Trial, in_child, placement, trial, trial_command
from edge.inference.onnx_providers import machine, offered, provider_list
from edge.inference.onnx_session import OnnxSession
from edge.inference.providers import KEPT, Chosen, measured, open_session


class Providers:
    """Providers by name with what comes of trying each; counts what was asked."""

    def __init__(self, bundle: Bundle, **outcomes: float | str) -> None:
        self.bundle = bundle
        self.tried: list[str] = []
        self.opened: list[str] = []
        self.outcomes = {
            name: Trial(latency_ms=None, why=found) if isinstance(found, str) else Trial(latency_ms=found)
            for name, found in outcomes.items()
        }
        self.broken: set[str] = set()

    def try_one(self, name: str) -> Trial:
        self.tried.append(name)
        return self.outcomes[name]

    def make(self, name: str) -> OnnxSession:
        self.opened.append(name)
        if name in self.broken:
            raise BundleError("no memory left on the device")
        session = OnnxSession(self.bundle)
        session.provider = name
        return session

    def open(self, provider: str = "auto", folder: Path | None = None) -> Chosen:
        session, chosen = open_session(
            self.bundle, 1, provider, folder, names=list(self.outcomes), try_one=self.try_one, make=self.make
        )
        assert session.provider == chosen.name
        return chosen


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Bundle:
    return Bundle.open(digits_bundle)


def test_the_fastest_that_answers_right_is_used_and_the_cpu_unless_another_is_clearly_faster() -> None:
    def chosen(**ms: float | str) -> str:
        found = {n: Trial(latency_ms=None, why=v) if isinstance(v, str) else Trial(latency_ms=v) for n, v in ms.items()}
        return measured(list(found), lambda name: found[name]).name

    assert chosen(cuda=1.0, openvino=2.0, cpu=4.0) == "cuda"
    assert chosen(cuda="wrong", openvino=2.0, cpu=4.0) == "openvino"
    assert chosen(openvino=3.9, cpu=4.0) == "cpu"
    assert chosen(openvino="crashed", cuda="hung", cpu=4.0) == "cpu"
    assert chosen(cuda="hung", cpu="hung") == "cpu", "what is wrong with it shows when it is opened"


def test_what_was_measured_is_kept_for_this_bundle_machine_and_offer_and_else_measured_anew(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Providers(bundle, openvino=1.0, cuda="its driver is missing", cpu=3.0)
    first = there.open(folder=tmp_path)
    assert (first.name, there.tried) == ("openvino", ["openvino", "cuda", "cpu"])
    assert first.left_out == {"cuda": "its driver is missing"}
    assert there.open(folder=tmp_path) == first
    assert len(there.tried) == 3, "nothing was tried again"
    kept = (tmp_path / KEPT).read_bytes()
    document = json.loads(kept)

    def is_tried_anew(content: bytes) -> bool:
        (tmp_path / KEPT).write_bytes(content)
        before = len(there.tried)
        assert there.open(folder=tmp_path).name == "openvino"
        return len(there.tried) > before

    changes: list[dict[str, Any]] = [
        {"bundle": "0" * 64}, {"machine": "another"}, {"offered": ["openvino", "cpu"]}, {"threads": 2}, {"version": 2},
        {"latency_ms": {"openvino": -1.0, "cpu": 3.0}}, {"latency_ms": []}, {"latency_ms": {}}, {"left_out": {}},
        {"openings": "1"}, {"openings": None},
    ]  # fmt: skip
    foreign = [json.dumps(document | change).encode() for change in changes]
    for content in (b"", kept[:-5], b"\xff" * 40, b"[]", b"null", b'{"a":1}', *foreign):
        assert is_tried_anew(content), content
    assert not is_tried_anew(kept)
    monkeypatch.setattr("edge.inference.providers.machine", lambda: "another CPU")
    assert is_tried_anew(kept)


def test_where_there_is_only_the_cpu_or_it_is_asked_for_nothing_is_tried_and_nothing_written(
    tmp_path: Path, bundle: Bundle
) -> None:
    alone, several = Providers(bundle, cpu=1.0), Providers(bundle, openvino=1.0, cpu=9.0)
    assert alone.open(folder=tmp_path) == several.open("cpu", tmp_path) == Chosen(name="cpu")
    assert (alone.tried, several.tried, several.opened, list(tmp_path.iterdir())) == ([], [], ["cpu"], [])
    start = time.perf_counter()
    session, chosen = open_session(bundle)
    assert (session.provider, chosen.name) == ("cpu", "cpu")
    assert time.perf_counter() - start < 5.0
    assert offered() == ("cpu",), "these tests run where there is no other"


def test_one_that_does_not_open_here_after_all_is_left_for_the_cpu_and_tried_at_the_next_start(
    tmp_path: Path, bundle: Bundle
) -> None:
    there = Providers(bundle, cuda=1.0, cpu=9.0)
    there.broken = {"cuda"}
    found = there.open(folder=tmp_path)
    assert (found.name, found.left_out["cuda"]) == ("cpu", "at opening: no memory left on the device")
    there.broken = set()
    assert there.open(folder=tmp_path).name == "cuda"


def test_one_that_ends_the_process_that_opens_it_is_given_up_at_the_third_start(tmp_path: Path, bundle: Bundle) -> None:
    class Killed(BaseException):
        pass

    there = Providers(bundle, cuda=1.0, openvino=2.0, cpu=9.0)
    make = there.make

    def kill(name: str) -> OnnxSession:
        if name == "cuda":
            raise Killed
        return make(name)

    there.make = kill
    for _ in range(2):
        with pytest.raises(Killed):
            there.open(folder=tmp_path)
    for _ in range(2):
        found = there.open(folder=tmp_path)
        assert (found.name, found.left_out) == ("openvino", {"cuda": "ended the process that opened it"})


def test_a_provider_that_is_asked_for_is_used_or_is_an_error_with_its_reason(tmp_path: Path, bundle: Bundle) -> None:
    there = Providers(bundle, openvino=5.0, cuda="it did not answer within 120 s", xnnpack=1.0, cpu=1.0)
    assert there.open("openvino", tmp_path).name == "openvino", "also where it is slower"
    there.broken = {"xnnpack"}
    for name, words in (
        ("cuda", "it did not answer within 120 s"),
        ("xnnpack", "no memory left"),
        ("qnn", "is not in the installed onnxruntime; there are: openvino, cuda, xnnpack, cpu"),
        ("nonsense", "expected one of auto, cpu, cuda"),
    ):
        with pytest.raises(ConfigError, match=words):
            there.open(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.abort()", "its process ended with SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with SIGSEGV"),
        ("import time; time.sleep(60)", "it did not answer within 2 s"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])", "within 2 s"),
        ("raise SystemExit(3)", "its process ended with 3"),
        ("print('Segmentation fault')", "nothing of use"),
        ("print('{}')", "nothing of use"),
        ("print('[' * 100000)", "nothing of use"),
        ("print('{\"latency_ms\": NaN}')", "nothing of use"),
        ("print('{\"latency_ms\": 0}')", "nothing of use"),
        ('print(\'{"error": "it gives NaN"}\')', "it gives NaN"),
    ],
)
def test_a_trial_survives_whatever_its_process_does(program: str, why: str) -> None:
    found = in_child([sys.executable, "-S", "-c", program], 2)
    assert found.latency_ms is None
    assert why in found.why


def test_the_cpu_is_tried_in_a_process_like_any_other(digits_bundle: Path, tmp_path: Path) -> None:
    found = in_child(trial_command(digits_bundle, "cpu", 1), 100)
    assert found.why == ""
    assert found.latency_ms is not None
    assert 0 < found.latency_ms < 1000
    (tmp_path / "damaged.edge").write_bytes(digits_bundle.read_bytes()[:-100])
    assert in_child(trial_command(tmp_path / "damaged.edge", "cpu", 1), 100).latency_ms is None


def test_a_provider_that_is_not_there_is_told_from_one_that_answers(digits_bundle: Path) -> None:
    """onnxruntime takes the CPU without a word for one that it does not have."""
    for name in ("cuda", "openvino"):
        found = in_child(trial_command(digits_bundle, name, 1), 100)
        assert found.latency_ms is None
        assert onnx_providers.NAMES[name] in found.why


class Odd:
    """A session of a provider that answers in its own way."""

    def __init__(self, bundle: Bundle, change: Callable[[str, np.ndarray, int], np.ndarray]) -> None:
        self._session, self._change, self._runs = OnnxSession(bundle), change, 0
        self.provider = "openvino"

    def run(self, inputs: Any, parameters: Any = None) -> Any:
        self._runs += 1
        found = self._session.run(inputs, parameters)
        return {name: self._change(name, array, self._runs) for name, array in found.items()}

    def served(self, inputs: Any) -> Any:
        return self._session.served(inputs)


def test_wrong_answers_and_graphs_left_on_the_cpu_are_found(bundle: Bundle) -> None:
    everything = {"OpenVINOExecutionProvider": 3, "CPUExecutionProvider": 1}
    shipped = OnnxSession(bundle)

    def tried(change: Callable[[str, np.ndarray, int], np.ndarray], placed: Mapping[str, int] = everything) -> float:
        def make(name: str) -> Any:
            return OnnxSession(bundle) if name == "cpu" else Odd(bundle, change)

        return trial(bundle, "openvino", make, lambda _: placed)

    assert tried(lambda _, array, __: array) > 0
    assert tried(lambda _, array, __: array * np.float32(1.0001)) > 0, "near enough, as at opening"
    for words, change in (
        ("openvino gives other answers", lambda _, array, __: array * np.nan),
        ("openvino gives other answers", lambda _, array, __: -array),
        ("one sample", lambda _, array, __: array if len(array) > 1 else array * 0),  # another batch
        ("one sample", lambda _, array, runs: array if runs < 4 else array * np.nan),  # in the end
    ):
        with pytest.raises(BundleError, match=words):
            tried(change)
    for placed in ({}, {"CPUExecutionProvider": 7}, {"OpenVINOExecutionProvider": 0}):
        with pytest.raises(BundleError, match="whole graph on the CPU"):
            tried(lambda _, array, __: array, placed)

    class Constant(Odd):
        """The head's shipped parameters are constants to it, as they are to OpenVINO."""

        def run(self, inputs: Any, parameters: Any = None) -> Any:
            return shipped.run(inputs)

    with pytest.raises(BundleError, match="another head"):
        trial(
            bundle,
            "openvino",
            lambda name: OnnxSession(bundle) if name == "cpu" else Constant(bundle, lambda _, a, __: a),  # type: ignore[return-value]
            lambda _: everything,
        )


def test_on_another_provider_the_head_runs_on_the_cpu_and_gives_the_same(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's own provider under another name: what is split is the same model."""
    monkeypatch.setattr("edge.inference.onnx_session.provider_list", lambda *_: [onnx_providers.CPU])
    plain, split = OnnxSession(bundle), OnnxSession(bundle, provider="acl")
    x = {bundle.manifest.inputs[0].name: np.random.default_rng(0).random((5, 1, 8, 8), np.float32)}
    head = {name: 3 * array for name, array in bundle.head_parameters().items()}
    for parameters in (None, head):
        for _ in range(3):  # the second run is bound
            for name, array in plain.run(x, parameters).items():
                np.testing.assert_allclose(split.run(x, parameters)[name], array, rtol=1e-5, atol=1e-5)
    for one, other in zip(plain.predict(x, head), split.predict(x, head), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="expected the inputs"):
        split.run({})


def test_where_nodes_ran_is_read_from_onnxruntimes_own_profile(bundle: Bundle, tmp_path: Path) -> None:
    found = placement(bundle, "cpu", 1)
    assert set(found) == {"CPUExecutionProvider"}
    assert found["CPUExecutionProvider"] > 3
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: A\nflags\t: sse avx\n\nmodel name\t: B\n")
    one = machine(info)
    info.write_text("model name\t: A\nflags\t: sse avx avx2\n\nmodel name\t: B\n")
    assert one.startswith("A ")
    assert machine(info) != one, "the same name with other instructions is another CPU"
    assert "onnxruntime" in machine(tmp_path / "nothing")
    for name in onnx_providers.NAMES:
        assert provider_list(name, 2)[-1] == "CPUExecutionProvider"


def test_edge_bundle_says_on_which_provider_it_ran(digits_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 1, 8, 8), np.float32))
    line = ["run", str(digits_bundle), str(tmp_path / "x.npz"), "--output", str(tmp_path / "y.npz")]
    for command in (line, ["verify", str(digits_bundle)], ["bench", str(digits_bundle), "--seconds", "0.01"]):
        found = CliRunner().invoke(edge_bundle, [*command, "--provider", "auto"])
        assert found.exit_code == 0, found.output
        assert "cpu" in found.output.splitlines()[-1]
        refused = CliRunner().invoke(edge_bundle, [*command, "--provider", "cuda"])
        assert isinstance(refused.exception, ConfigError)
        assert "there are: cpu" in str(refused.exception)
    found = CliRunner().invoke(edge_bundle, ["bench", str(digits_bundle), "--provider", "auto", "--json"])
    assert json.loads(found.output)["provider"]["name"] == "cpu"


def test_a_model_keeps_what_was_measured_in_its_state_folder_and_says_it(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO is said to be there, and its real trial finds that it is not."""
    monkeypatch.setattr("edge.inference.providers.offered", lambda: ("openvino", "cpu"))
    with OnDeviceModel.open(digits_bundle, tmp_path) as model:
        first = model.serving.provider
    assert first.name == "cpu"
    assert "OpenVINOExecutionProvider" in first.left_out["openvino"]
    assert set(first.latency_ms) == {"cpu"}
    assert "openvino left out: " in str(first)
    assert len(list(tmp_path.rglob(KEPT))) == 1

    def never(*_: object) -> Trial:
        raise AssertionError("it was measured before")

    monkeypatch.setattr("edge.inference.onnx_provider_trial.in_child", never)
    with OnDeviceModel.open(digits_bundle, tmp_path) as again:
        assert again.serving.provider == first
    with OnDeviceModel.open(digits_bundle, tmp_path, read_only=True) as reader:
        assert reader.serving.provider == Chosen(name="cpu")
    with pytest.raises(ConfigError, match="is not in the installed onnxruntime"):
        OnDeviceModel.open(digits_bundle, provider="cuda")
