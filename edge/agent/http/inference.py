"""The Open Inference Protocol, version 2: requests to named arrays, named arrays to answers, in JSON and binary.

The names are the protocol's. Beside it, of Triton's extensions: binary tensors, classification, sequences. Texts
(``BYTES``) come out only, as classes; no model here takes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.http.http11 import Answer, RefusedError, Request, plain_body
from edge.agent.model.company import Answered, Job
from edge.agent.model.served_model import ServedModel
from edge.contract import strictjson
from edge.contract.tensorspec import TensorSpec
from edge.inference.session import Arrays

HEADER_LENGTH = "inference-header-content-length"
NUMPY = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
DATATYPES = {dtype: name for name, dtype in NUMPY.items()}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One output that was asked for.

    Attributes:
        name: Of it.
        is_binary: Whether its numbers come behind the JSON.
        classes: So many of the most likely classes instead of the numbers; 0 for these.
    """

    name: str
    is_binary: bool
    classes: int


@dataclass(frozen=True, eq=False, slots=True)
class Asked:
    """An inference that was asked for.

    Attributes:
        job: For the model.
        id: That the client gave, which comes back; None for none.
        wanted: Outputs that were named; empty for all.
        is_binary: Whether outputs come as bytes where none was named.
    """

    job: Job
    id: str | None
    wanted: tuple[_Wanted, ...]
    is_binary: bool


def read(request: Request, model: str, new_id: str) -> Asked:
    """An inference request.

    Args:
        request: Of HTTP.
        model: Its name.
        new_id: For samples to which the client gives none.

    Raises:
        RefusedError: It is none.
    """
    body = plain_body(request)
    head, blob = _parts(request, body)
    try:
        document = strictjson.loads(head, max_bytes=len(head))
    except (ValueError, RecursionError) as exc:
        raise RefusedError(400, f"expected JSON as the Open Inference Protocol has it: {exc}") from exc
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise RefusedError(400, "inputs: expected a list of tensors")
    given, begin = dict[str, npt.NDArray[Any]](), 0
    for each in inputs:
        name, array, size = _tensor(each, blob, begin)
        if name in given:
            raise RefusedError(400, f"the input {name!r:.60} stands twice")
        given[name], begin = array, begin + size
    if begin != len(blob):
        raise RefusedError(400, f"expected {begin} bytes of tensors behind the JSON, got {len(blob)}")
    parameters = _parameters(document)
    wanted = document.get("outputs", [])
    if not isinstance(wanted, list):
        raise RefusedError(400, "outputs: expected a list")
    own = document.get("id") or None
    if own is not None and not isinstance(own, str):
        raise RefusedError(400, f"id: expected a text, got {own!r:.40}")
    stream, reset = _sequence(parameters)
    everything = bool(parameters.get("binary_data_output", False))
    asked = tuple(_wanted(each, everything) for each in wanted)
    names = tuple(each.name for each in asked)
    job = Job(model=model, id=own or new_id, given=given, stream=stream, reset=reset, outputs=names)
    return Asked(job, own, asked, everything)


def _parts(request: Request, body: bytes) -> tuple[bytes, memoryview]:
    """The JSON, and the numbers behind it."""
    length = request.headers.get(HEADER_LENGTH)
    if length is None:
        return body, memoryview(b"")
    if not (length.isascii() and length.isdigit()) or int(length) > len(body):
        raise RefusedError(400, f"Inference-Header-Content-Length: expected at most {len(body)}, got {length!r:.30}")
    return body[: int(length)], memoryview(body)[int(length) :]


def _parameters(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    found = owner.get("parameters", {})
    if not isinstance(found, dict):
        raise RefusedError(400, "parameters: expected an object")
    return found


def _tensor(each: Any, blob: memoryview, begin: int) -> tuple[str, npt.NDArray[Any], int]:
    """Name and numbers of one input, and how many bytes of it lie behind the JSON."""
    if not isinstance(each, dict) or not isinstance(each.get("name"), str):
        raise RefusedError(400, "inputs: expected objects with a name")
    name, shape, datatype = each["name"], each.get("shape"), each.get("datatype")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise RefusedError(400, f"{name!r:.60}: expected a shape, a list of sizes")
    if datatype not in NUMPY:
        raise RefusedError(400, f"{name!r:.60}: expected a datatype of {', '.join(NUMPY)}, got {datatype!r:.20}")
    dtype, count = np.dtype(NUMPY[datatype]), math.prod(shape)
    size = _parameters(each).get("binary_data_size")
    if size is None:
        return name, _listed(each.get("data"), name, dtype, shape), 0
    if type(size) is not int or size != count * dtype.itemsize or begin + size > len(blob):
        raise RefusedError(
            400, f"{name!r:.60}: expected {count * dtype.itemsize} bytes of {datatype} behind the JSON, "
            f"binary_data_size says {size!r:.20}, there are {max(0, len(blob) - begin)}"
        )  # fmt: skip
    raw = np.frombuffer(blob[begin : begin + size], "u1" if datatype == "BOOL" else dtype.newbyteorder("<"))
    return name, raw.astype(dtype, copy=False).reshape(shape), size


def _listed(data: Any, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Numbers of JSON, flat or nested."""
    if not isinstance(data, list):
        raise RefusedError(400, f"{name!r:.60}: expected data, a list of numbers, or binary_data_size")
    try:
        found = np.asarray(data)
    except ValueError as exc:
        raise RefusedError(400, f"{name!r:.60}: the nested lists are not of one shape") from exc
    if found.size and (found.dtype.kind not in "fiub" or (dtype.kind in "iu" and found.dtype.kind not in "iu")):
        raise RefusedError(400, f"{name!r:.60}: expected numbers of {DATATYPES[dtype.name]}")
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        if found.min() < limits.min or found.max() > limits.max:
            raise RefusedError(400, f"{name!r:.60}: values do not fit {DATATYPES[dtype.name]}")
    if found.size != math.prod(shape):
        raise RefusedError(
            400, f"{name!r:.60}: expected {math.prod(shape)} numbers for shape {shape}, got {found.size}"
        )
    with np.errstate(over="ignore"):  # the model refuses what is not finite
        return found.astype(dtype).reshape(shape)


def _sequence(parameters: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The stream of a sequence, and whether it begins anew."""
    found = parameters.get("sequence_id", 0)
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise RefusedError(400, f"sequence_id: expected a number or a text, got {found!r:.40}")
    start = parameters.get("sequence_start", False)
    if not isinstance(start, bool):
        raise RefusedError(400, f"sequence_start: expected true or false, got {start!r:.40}")
    return (None, start) if found in (0, "") else (str(found), start)


def _wanted(each: Any, everything: bool) -> _Wanted:
    if not isinstance(each, dict) or not isinstance(each.get("name"), str):
        raise RefusedError(400, "outputs: expected objects with a name")
    parameters = _parameters(each)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise RefusedError(400, f"classification: expected a number of classes, got {classes!r:.40}")
    return _Wanted(each["name"], bool(parameters.get("binary_data", everything)), classes)


def write(asked: Asked, answered: Answered, class_names: Sequence[str]) -> Answer:
    """The answer to an inference request."""
    outputs = answered.outputs
    wanted = asked.wanted or tuple(_Wanted(name, asked.is_binary, 0) for name in outputs)
    documents, blobs = [], list[bytes]()
    for each in wanted:
        document, blob = _output(each, outputs, class_names)
        documents.append(document)
        blobs += [] if blob is None else [blob]
    parameters: dict[str, Any] = {"sample_id": asked.job.id}
    if rows := [str(i) for i, said in enumerate(answered.said) if said.get("label_wanted")]:
        parameters["label_wanted"] = ",".join(rows)
    if rows := [str(i) for i, said in enumerate(answered.said) if "nearest" in said]:
        parameters["none_of_these"] = ",".join(rows)
    head = {
        "model_name": answered.model,
        "model_version": str(answered.release),
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": parameters,
        "outputs": documents,
    }
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    if not blobs:
        return Answer(200, text)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Answer(200, b"".join([text, *blobs]), "application/octet-stream", headers)


def _output(wanted: _Wanted, outputs: Arrays, class_names: Sequence[str]) -> tuple[dict[str, Any], bytes | None]:
    """One output, and its numbers where they come behind the JSON."""
    array = outputs[wanted.name]
    if wanted.classes:
        return _most_likely(wanted, array, class_names)
    document: dict[str, Any] = {
        "name": wanted.name,
        "shape": list(array.shape),
        "datatype": DATATYPES[array.dtype.name],
    }
    if wanted.is_binary or (array.dtype.kind == "f" and not np.isfinite(array).all()):  # JSON has no infinity
        blob = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return document | {"parameters": {"binary_data_size": len(blob)}}, blob
    return document | {"data": array.reshape(-1).tolist()}, None


def _most_likely(
    wanted: _Wanted, array: npt.NDArray[Any], class_names: Sequence[str]
) -> tuple[dict[str, Any], bytes | None]:
    """``VALUE:INDEX:NAME`` of the largest values of each sample, ``(batch, classes)`` texts."""
    if array.ndim != 2:
        raise RefusedError(400, f"classification of {wanted.name}: it has no row of values for a sample")
    count = min(wanted.classes, array.shape[1])
    names = class_names if len(class_names) == array.shape[1] else ()
    order = np.argsort(-array, axis=1, kind="stable")[:, :count]
    texts = [
        f"{array[row, i]:.6f}:{i}" + (f":{names[i]}" if names else "")
        for row, of_row in enumerate(order.tolist())
        for i in of_row
    ]
    document: dict[str, Any] = {"name": wanted.name, "shape": [len(array), count], "datatype": "BYTES"}
    if not wanted.is_binary:
        return document | {"data": texts}, None
    encoded = [text.encode() for text in texts]
    blob = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return document | {"parameters": {"binary_data_size": len(blob)}}, blob


# What is told of models


def server_metadata(version: str) -> dict[str, Any]:
    """``GET /v2``."""
    extensions = ["binary_tensor_data", "classification", "sequence", "model_configuration", "model_repository"]
    return {"name": "edgeloop", "version": version, "extensions": extensions}


def model_metadata(name: str, release: int, model: ServedModel) -> dict[str, Any]:
    """``GET /v2/models/NAME``."""
    serving = model.serving
    return {
        "name": name,
        "versions": [str(release)],
        "platform": "onnxruntime_onnx",
        "inputs": [_described(spec) for spec in serving.inputs.values()],
        "outputs": [_described(spec) for spec in serving.outputs.values()],
    }


def model_config(name: str, model: ServedModel) -> dict[str, Any]:
    """``GET /v2/models/NAME/config``: what Triton's clients look at of its extension."""
    serving = model.serving
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,  # shapes have their batch axis
        "input": [_configured(spec) for spec in serving.inputs.values()],
        "output": [_configured(spec) for spec in serving.outputs.values()],
        **({"sequence_batching": {}} if model.manifest.states else {}),
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    found = _described(spec)
    return {"name": spec.name, "data_type": f"TYPE_{found['datatype']}", "dims": found["shape"]}
