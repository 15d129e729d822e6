"""What is at which address: the Open Inference Protocol, labels, status, metrics, and who is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from edge.agent.http.guard import Guard
from edge.agent.http.http11 import Request
from edge.agent.http.site import Site
from tests.edge.agent.http.conftest import LOCAL, Asked, Tried

JSON = {"content_type": "application/json"}


def tensor(x: np.ndarray, name: str = "input", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(x.shape), "datatype": datatype, "data": x.reshape(-1).tolist()}


def infer(tried: Tried, model: str, *tensors: dict[str, Any], **more: Any) -> Any:
    return tried.json("POST", f"/v2/models/{model}/infer", {"inputs": list(tensors), **more})


def test_samples_are_answered_as_by_the_model_in_json_and_binary(tried: Tried, x: np.ndarray) -> None:
    live = tried.core.models["digits"].host.model
    wanted = live.predict(x)
    found = infer(tried, "digits", tensor(x), id="f")
    assert (found["model_name"], found["model_version"], found["id"]) == ("digits", "0", "f")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == (live.answer_name, "FP32", [4, 10])
    np.testing.assert_allclose(np.reshape(output["data"], (4, 10)), wanted, atol=1e-5)
    nested = {**tensor(x), "data": x.tolist()}
    np.testing.assert_allclose(infer(tried, "digits", nested)["outputs"][0]["data"], wanted.reshape(-1), atol=1e-5)

    blob = x.tobytes()
    document = {
        "inputs": [{"name": "input", "shape": [4, 1, 8, 8], "datatype": "FP32",
                    "parameters": {"binary_data_size": len(blob)}}],
        "outputs": [{"name": live.answer_name, "parameters": {"binary_data": True}},
                    {"name": live.answer_name, "parameters": {"classification": 2}}],
    }  # fmt: skip
    text = json.dumps(document).encode()
    length = {"inference-header-content-length": str(len(text))}
    answer = tried("POST", "/v2/models/digits/infer", text + blob, **length)
    assert answer.status == 200, answer.body
    size = int(answer.headers["Inference-Header-Content-Length"])
    head = json.loads(answer.body[:size])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 160}
    np.testing.assert_allclose(np.frombuffer(answer.body[size:], "<f4").reshape(4, 10), wanted, atol=1e-5)
    best = head["outputs"][1]
    assert (best["datatype"], best["shape"]) == ("BYTES", [4, 2])
    value, number, name = best["data"][0].split(":")
    assert (int(number), name) == (wanted[0].argmax(), str(wanted[0].argmax()))
    assert float(value) == pytest.approx(wanted[0].max(), abs=1e-5)


def test_labels_join_samples_by_their_names_whoever_gave_them(tried: Tried, x: np.ndarray) -> None:
    own = infer(tried, "digits", tensor(x[:1]), id="mine")
    made = infer(tried, "digits", tensor(x[1:]))["parameters"]["sample_id"]
    assert own["parameters"]["sample_id"] == "mine"
    labels = [
        {"model": "digits", "id": "mine", "label": "7"},
        {"model": "digits", "id": f"{made}:2", "label": 3, "weight": 0.5},
        {"model": "digits", "id": "mine", "label": 7},
        {"model": "digits", "id": f"{made}:0", "label": "zebra"},
        {"model": "digits", "id": f"{made}:0"},
        {"model": "digits", "id": f"{made}:0", "label": 1, "sure": True},
        5,
    ]
    found = tried.json("POST", "/labels", labels, **JSON)
    assert [each.get("joined") for each in found] == [True, True, False, None, None, None, None]
    assert "from 0 to 9 or one of its names" in found[3]["error"]
    assert tried.core.models["digits"].host.model.n_samples == 2
    one = {"model": "digits", "id": f"{made}:1", "label": "1"}
    assert tried.json("POST", "/labels", one, **JSON) == {"joined": True}
    assert "lie in 0..9" in tried.refused(400, "POST", "/labels", {**one, "label": 99}, **JSON)
    assert "application/json" in tried.refused(415, "POST", "/labels", one, content_type="text/plain")
    for body in (b"", b"[", b"7", b"[" * 100, b'{"id": NaN}'):
        tried.refused(400, "POST", "/labels", body, **JSON)
    assert "at most 1000 labels" in tried.refused(413, "POST", "/labels", [one] * 1001, **JSON)


def test_a_sequence_is_a_stream_of_a_model_that_remembers(tried: Tried) -> None:
    live = tried.core.models["a/voice"].host.model
    frames = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)

    def ask(name: object, frame: np.ndarray, *, start: bool = False) -> list[float]:
        parameters = {"sequence_id": name, "sequence_start": start}
        found = infer(tried, "a%2Fvoice", tensor(frame[None], "audio"), parameters=parameters)
        return found["outputs"][0]["data"]

    first = [ask(7, frames[0], start=True), ask(7, frames[1]), ask(7, frames[2])]
    ask("other", frames[2])
    assert [ask("other", frames[0], start=True), ask("other", frames[1]), ask("other", frames[2])] == first
    assert ask(7, frames[0], start=True) == first[0]
    together = infer(tried, "a/voice", tensor(frames, "audio"), parameters={"sequence_id": 9, "sequence_start": True})
    np.testing.assert_allclose(together["outputs"][0]["data"], np.concatenate(first), atol=1e-6)
    assert len(live.streams) == 3


def test_several_inputs_and_outputs_go_by_their_names(tried: Tried) -> None:
    rng = np.random.default_rng(2)
    image, mask = rng.random((2, 1, 3, 4), np.float32), np.ones((2, 3, 4), np.int64)
    wanted = tried.core.models["masked"].host.model.outputs({"image": image, "mask": mask})
    found = infer(tried, "masked", tensor(mask, "mask", "INT64"), tensor(image, "image"))
    assert [output["name"] for output in found["outputs"]] == list(wanted)
    for output in found["outputs"]:
        np.testing.assert_allclose(output["data"], wanted[output["name"]].reshape(-1), atol=1e-5)
    path = "/v2/models/masked/infer"
    assert "mask is missing" in tried.refused(400, "POST", path, {"inputs": [tensor(image, "image")]})


def test_requests_that_are_none_are_refused_with_what_was_expected(tried: Tried, x: np.ndarray) -> None:
    good = tensor(x[:1])
    for words, change in (
        ("expected a shape", {"shape": "x"}),
        ("expected a shape", {"shape": [-1]}),
        ("datatype of BOOL", {"datatype": "FP31"}),
        ("datatype of BOOL", {"datatype": "BYTES"}),
        ("expected 64 numbers", {"data": [1.0]}),
        ("not of one shape", {"data": [[1.0], [1.0, 2.0]]}),
        ("expected numbers", {"data": ["a"] * 64}),
        ("expected a list", {"data": None}),
        ("expected data", {"data": {"a": 1}}),
        ("expected shape (batch, 1, 8, 8)", {"shape": [1, 64]}),
        ("none of them", {"name": "other"}),
        ("there are 0", {"parameters": {"binary_data_size": 256}}),
        ("parameters", {"parameters": 3}),
        ("not finite", {"data": [1e39] * 64}),
        ("values do not fit UINT8", {"datatype": "UINT8", "data": [300] * 64}),
        ("expected numbers of INT8", {"datatype": "INT8", "data": [0.5] * 64}),
    ):
        said = tried.refused(400, "POST", "/v2/models/digits/infer", {"inputs": [{**good, **change}]})
        assert words.replace("expected a list", "a list of numbers") in said, (change, said)
    for words, document in (
        ("inputs", {}),
        ("inputs", {"inputs": []}),
        ("stands twice", {"inputs": [good, good]}),
        ("outputs: expected of output", {"inputs": [good], "outputs": [{"name": "zebra"}]}),
        ("id: expected a text", {"inputs": [good], "id": 5}),
        ("id: expected a text of 1 to 128", {"inputs": [good], "id": "a" * 129}),
        ("sequence_id", {"inputs": [good], "parameters": {"sequence_id": [1]}}),
        ("classification", {"inputs": [good], "outputs": [{"name": "output", "parameters": {"classification": -1}}]}),
        ("got (0, 1, 8, 8)", {"inputs": [{**good, "shape": [0, 1, 8, 8], "data": []}]}),
        ("1 to 4096 samples", {"inputs": [{**good, "shape": [4097, 1, 8, 8], "data": [0] * (64 * 4097)}]}),
    ):
        assert words in tried.refused(400, "POST", "/v2/models/digits/infer", document)
    for body, length in ((b"{}", "3"), (b"{}", "x"), (b'{"inputs": []}x', "14"), (b"\xff", "1"), (b"[1]", "3")):
        tried.refused(400, "POST", "/v2/models/digits/infer", body, inference_header_content_length=length)
    assert "version 0" in tried.refused(404, "POST", "/v2/models/digits/versions/4/infer", {"inputs": [good]})
    assert infer(tried, "digits/versions/0", good)["model_version"] == "0"
    assert tried.core.models["digits"].host.model.metrics.inferences == 1  # the one that was right


def test_models_are_described(tried: Tried) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/v2/models/a%2fvoice/ready"):
        assert tried("GET", path).status == 200
    found = tried.json("GET", "/v2/models/a/voice")
    assert found["inputs"] == [{"name": "audio", "datatype": "FP32", "shape": [-1, 128]}]
    assert [each["name"] for each in found["outputs"]] == ["speech"]
    assert tried.json("GET", "/v2/models/a/voice/config")["sequence_batching"] == {}
    assert tried.json("GET", "/v2/models/digits/config")["input"][0]["dims"] == [-1, 1, 8, 8]
    index = tried.json("POST", "/v2/repository/index")
    assert [(each["name"], each["state"]) for each in index] == [
        ("digits", "READY"), ("a/voice", "READY"), ("masked", "READY")
    ]  # fmt: skip
    assert "expected one of" in tried.refused(404, "GET", "/v2/models/zebra/ready")
    tried.refused(404, "GET", "/v2/models/")
    tried.refused(404, "GET", "/nowhere")
    tried.refused(405, "POST", "/status")
    tried.refused(405, "GET", "/labels")
    tried.refused(400, "GET", "/v2/models/%ff")


def test_status_and_metrics_are_bounded_and_disturb_no_telemetry(tried: Tried, x: np.ndarray) -> None:
    infer(tried, "digits", tensor(x), id="s")
    tried.json("POST", "/labels", {"model": "digits", "id": "s:0", "label": 3}, **JSON)
    assert tried.json("GET", "/status")["models"]["digits"]["samples"] == 1
    assert tried.json("GET", "/status", query={"model": "digits"})["samples"] == 1
    live = tried.core.models["digits"].host.model
    before = live.telemetry(100.0)
    assert "3" in before.pop("confusion"), "which is said when it is news"
    text = tried("GET", "/metrics").body.decode()
    assert live.telemetry(101.0) == {**before, "infer_per_s": 0.0}
    rows = [line for line in text.splitlines() if not line.startswith("#")]
    assert 'edge_model_inferences_total{model="digits"} 4' in rows
    assert 'edge_model_labels_total{model="digits"} 1' in rows
    assert 'edge_model_learned_samples{model="digits"} 1' in rows
    assert not any("labels_total" in row and "voice" in row for row in rows)
    line = re.compile(r'[a-z_0-9]+(\{[a-z]+="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\})? -?[0-9.e+-]+')
    assert all(line.fullmatch(row) for row in rows)
    kinds = re.findall(r"^# TYPE (\S+) (counter|gauge)$", text, re.MULTILINE)
    assert len(kinds) == len({name for name, _ in kinds}) == text.count("# HELP")
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds)
    for i in range(50):  # names of samples make no series
        infer(tried, "digits", tensor(x[:1]), id=f"n{i}")
    assert len(tried("GET", "/metrics").body.splitlines()) == len(text.splitlines())


def test_pages_of_other_sites_may_neither_read_nor_label(tried: Tried, x: np.ndarray) -> None:
    infer(tried, "digits", tensor(x[:1]), id="s")
    label = {"model": "digits", "id": "s", "label": 3}
    for status, headers in (
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "null"}),
        (403, {"origin": "http://127.0.0.1:9"}),
        (403, {"sec_fetch_site": "cross-site"}),
        (403, {"sec_fetch_site": "same-site"}),
        (421, {"host": "evil.example"}),
        (421, {"host": "127.0.0.1.evil.example:8080"}),
        (421, {"host": "10.0.0.1"}),
        (400, {"host": ""}),
    ):
        tried.refused(status, "POST", "/labels", label, **JSON, **headers)
        tried.refused(status, "GET", "/status", **headers)
    assert tried.core.models["digits"].host.model.n_samples == 0
    for host in ("localhost:8080", "[::1]:8080", "127.0.0.1"):
        assert tried("GET", "/status", host=host).status == 200
    headers = {"origin": "http://127.0.0.1:8080", "sec_fetch_site": "same-origin"}
    assert tried.json("POST", "/labels", label, **JSON, **headers) == {"joined": True}
    # A link on another page may open the agent's page; that page alone asks for data, as its own.
    away = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    page = tried("GET", "/", **away)
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    tried.refused(403, "GET", "/status", **away)


def test_with_a_token_nothing_of_the_device_is_told_without_it(tried: Tried) -> None:
    site = Site(Asked(tried.core), Guard(token="0123456789abcdef"), "h")

    def ask(path: str, **headers: str) -> int:
        named = {**LOCAL, "host": "edge-7.lan:8080", **headers}
        return site.answer(Request("GET", path, {}, named, True, 0)).status

    assert ask("/status", authorization="Bearer 0123456789abcdef") == 200
    for wrong in ({}, {"authorization": "Bearer 0123456789abcdeF"}, {"authorization": "Basic 0123456789abcdef"}):
        assert ask("/status", **wrong) == 401
    assert ask("/page.js") == 200  # which holds nothing of this device
    assert "0123456789abcdef" not in repr(site._guard)
