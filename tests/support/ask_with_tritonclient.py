"""What an unchanged ``tritonclient[http]`` does with an agent; run by a Python that has it: URL, folder with x.npy."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    """Ask in every way, and compare; an assertion that fails ends it with 1."""
    url, folder = sys.argv[1], Path(sys.argv[2])
    x, wanted = np.load(folder / "x.npy"), np.load(folder / "wanted.npy")
    client = triton.InferenceServerClient(url, concurrency=4)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "edgeloop"
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert client.get_model_config("digits")["input"][0]["data_type"] == "TYPE_FP32"
    assert [each["state"] for each in client.get_model_repository_index()] == ["READY", "READY"]
    name = metadata["outputs"][0]["name"]

    def ask(model: str, samples: np.ndarray, *, binary: bool, **options: object) -> triton.InferResult:
        given = triton.InferInput("input", list(samples.shape), "FP32")
        given.set_data_from_numpy(samples, binary_data=binary)
        outputs = [triton.InferRequestedOutput(name, binary_data=binary)]
        return client.infer(model, [given], outputs=outputs, **options)

    for binary in (True, False):
        for count in (1, 3, 8):
            found = ask("digits", x[:count], binary=binary, request_id=f"t-{binary}-{count}")
            np.testing.assert_allclose(found.as_numpy(name), wanted[:count], atol=1e-4)
            assert found.get_response()["id"] == f"t-{binary}-{count}"
    for way in ("gzip", "deflate"):
        found = ask("digits", x, binary=True, request_compression_algorithm=way, response_compression_algorithm=way)
        np.testing.assert_allclose(found.as_numpy(name), wanted, atol=1e-4)
    given = triton.InferInput("input", [1, 1, 8, 8], "FP32")
    given.set_data_from_numpy(x[:1])
    found = client.infer("digits", [given])  # no output named: all of them
    np.testing.assert_allclose(found.as_numpy(name), wanted[:1], atol=1e-4)
    sample = found.get_response()["parameters"]["sample_id"]
    found = client.infer("digits", [given], outputs=[triton.InferRequestedOutput(name, class_count=2)])
    best = found.as_numpy(name)[0, 0].decode().split(":")
    assert int(best[1]) == int(wanted[0].argmax()), best
    waiting = [client.async_infer("digits", [given], request_id=f"a{i}") for i in range(12)]
    for each in waiting:
        np.testing.assert_allclose(each.get_result().as_numpy(name), wanted[:1], atol=1e-4)
    # A sequence is a stream: of a model without memory it changes nothing.
    found = ask("again", x[:1], binary=True, sequence_id=7, sequence_start=True)
    np.testing.assert_allclose(found.as_numpy(name), wanted[:1], atol=1e-4)
    said = ""
    for model, samples in (("digits", x[:1, :, :4]), ("nothing", x[:1])):
        try:
            ask(model, samples, binary=True)
        except InferenceServerException as exc:
            said = exc.message()
        assert "expected" in said, said
    client.close()
    # What was asked may be labelled, by the name that the answer gave it.
    body = json.dumps({"model": "digits", "id": sample, "label": str(int(wanted[0].argmax()))}).encode()
    request = urllib.request.Request(f"http://{url}/labels", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["joined"] is True
    sys.stdout.write("right\n")


main()
