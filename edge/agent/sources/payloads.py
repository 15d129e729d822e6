"""What a source gives, and what comes of it for a model: bytes as they came to samples and labels, or why not.

Preprocessing is in the bundle; here only the container is taken off: a picture, a sound, an array, JSON. What it must
be is read from the manifest of the model that is live. Pure, but for pictures, which Pillow reads.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.agent.wire import decode_request
from edge.contract import strictjson
from edge.contract.errors import ConfigError, LearningError
from edge.contract.tensorspec import TensorSpec
from edge.inference.named_arrays import MAX_BYTES
from edge.inference.pictures import PictureReader

KINDS = ("image", "npy", "npz", "wav", "json", "raw")
MAX_PAYLOAD_BYTES = 64 << 20
_WORDS = {"ON": 1.0, "OFF": 0.0}  # what home automation says for true and false
_PARTS = 4096  # samples of one payload at most


def _nothing(_: bool) -> None:
    """Nobody waits for the end."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Payload:
    """Something that came.

    Attributes:
        name: What it came as: a topic, a file; samples that have no id of their own are named by it.
        data: Its bytes.
        kind: One of `KINDS`; "" to find out.
        id: Of its sample; "" for one that is made of `name` and the time.
        stream: Whose samples they are, of a model that remembers.
        is_again: It was dealt with before a restart: its samples are answered once more, so that labels find them, and
            its labels are not learned once more.
        fault: Why there is nothing to read in it; "" where there is.
        done: Told once, when it was answered (True) or could not be.
    """

    name: str
    data: bytes
    kind: str = ""
    id: str = ""
    stream: str | None = None
    is_again: bool = False
    fault: str = ""
    done: Callable[[bool], None] = _nothing


class Stop(Protocol):
    """Whether the agent ends, as `threading.Event` has it."""

    def is_set(self) -> bool:
        """Whether it does."""

    def wait(self, timeout: float) -> bool:
        """Wait so long, or until it does; whether it does."""


class Source(Protocol):
    """Where samples come from.

    Attributes:
        name: For people.
        options: For what comes from it.
        ends_agent: Whether the agent ends where the source does.
        waits: Whether it may be held up: labels that find no room are tried again, and what is behind them waits.
    """

    name: str
    options: SourceOptions
    ends_agent: bool
    waits: bool

    def payloads(self, stop: Stop, specs: Callable[[], Sequence[TensorSpec]], /) -> Iterator[Payload]:
        """What comes, until it ends or `stop` says so; each is dealt with before the next one is asked for.

        Args:
            stop: Ends it.
            specs: What the model takes, at the moment.

        Raises:
            ConfigError: It cannot be opened, or not any more; it is tried again.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What is said of a source.

    Attributes:
        model: For whom its samples are; None for the only one.
        kind: Of all payloads; "" to find out.
        fields: Of JSON objects the values that make a sample, in this order; empty for none.
        stream: Whose samples they are; None for that of the payload.
    """

    model: str | None = None
    kind: str = ""
    fields: tuple[str, ...] = ()
    stream: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One sample of a payload; `id` is "" where it has none of its own."""

    id: str
    inputs: dict[str, npt.NDArray[Any]]
    stream: str | None
    reset: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Label:
    """What a sample was: the request of the line protocol."""

    request: dict[str, Any]


def read(payload: Payload, specs: Sequence[TensorSpec], options: SourceOptions) -> Iterator[Sample | Label]:
    """Samples and labels of a payload, in their order.

    Raises:
        ConfigError: It is nothing that this model takes.
        LearningError: The same, of JSON.
    """
    if payload.fault:
        raise ConfigError(payload.fault)
    if len(payload.data) > MAX_PAYLOAD_BYTES:
        raise ConfigError(f"expected at most {MAX_PAYLOAD_BYTES} bytes, got more")
    kind = options.kind or payload.kind or kind_of(payload.data)
    stream = options.stream or payload.stream
    if kind == "json":
        yield from _json(payload, specs, options, stream)
        return
    if kind == "npz":
        arrays = _npz(payload.data)
        known = {spec.name for spec in specs}
        if len(specs) == 1 and not known & arrays.keys() and len(arrays) == 1:
            arrays = {specs[0].name: next(iter(arrays.values()))}
        yield from _split(payload, {name: a for name, a in arrays.items() if name in known}, specs, stream)
        return
    spec = _only(specs, kind)
    if kind == "image":
        yield Sample(payload.id, {spec.name: PictureReader(spec, "the picture").decoded(payload.data)}, stream)
    elif kind == "npy":
        yield from _split(payload, {spec.name: _npy(payload.data)}, specs, stream)
    elif kind == "wav":
        for i, part in enumerate(sound(_wav(payload.data), spec)):
            yield Sample(_numbered(payload.id, i), {spec.name: part}, stream, reset=i == 0)
    else:
        yield Sample(payload.id, {spec.name: _raw(payload.data, spec)}, stream)


def kind_of(data: bytes) -> str:
    """What bytes are, by how they begin; what begins like nothing else is taken for JSON."""
    for begin, kind in (
        (b"\xff\xd8\xff", "image"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"BM", "image"),
        (b"\x93NUMPY", "npy"),
        (b"PK\x03\x04", "npz"),
        (b"RIFF", "wav"),
    ):
        if data.startswith(begin):
            return kind
    return "json"


def may_be_label(data: bytes) -> bool:
    """Whether bytes look like a label; `read` says whether they are one.

    >>> may_be_label(b' {"id": "frame-17", "label": 3}'), may_be_label(b'{"id": "frame-17", "x": [0.5]}')
    (True, False)
    """
    begin = data.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return begin == b"{" and b'"id"' in data and (b'"label"' in data or b'"y"' in data)


def _only(specs: Sequence[TensorSpec], kind: str) -> TensorSpec:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise ConfigError(f"the model takes {names}: expected them by name in an .npz or JSON, got {kind}")
    return specs[0]


def _numbered(name: str, i: int) -> str:
    return f"{name}:{i}" if name and i else name


# Arrays


def _npy(data: bytes) -> npt.NDArray[Any]:
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as exc:  # a damaged one raises whatever it likes
        raise ConfigError(f"it is not an .npy of a plain array: {str(exc)[:200]}") from exc
    if not isinstance(found, np.ndarray):
        raise ConfigError("it is not an .npy of one array")
    return found


def _npz(data: bytes) -> dict[str, npt.NDArray[Any]]:
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > min(MAX_BYTES, 4 * MAX_PAYLOAD_BYTES):
                raise ConfigError(f"it holds {size} bytes of arrays, at most {4 * MAX_PAYLOAD_BYTES} are taken")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ConfigError:
        raise
    except Exception as exc:  # as above
        raise ConfigError(f"it is not an .npz of plain arrays: {str(exc)[:200]}") from exc


def _split(
    payload: Payload, arrays: dict[str, npt.NDArray[Any]], specs: Sequence[TensorSpec], stream: str | None
) -> Iterator[Sample]:
    """One sample, or several along the batch axes."""
    counts = set()
    for spec in specs:
        array = arrays.get(spec.name)
        if array is not None and spec.batch_axis is not None and array.ndim == len(spec.shape):
            counts.add(array.shape[spec.batch_axis])
    if len(counts) != 1 or counts == {1}:
        yield Sample(payload.id, arrays, stream)  # the model says what does not fit
        return
    (count,) = counts
    if count > _PARTS:
        raise ConfigError(f"expected at most {_PARTS} samples at once, got {count}")
    axes = {spec.name: spec.batch_axis for spec in specs}
    for i in range(count):
        one = {name: a if (axis := axes[name]) is None else a.take([i], axis) for name, a in arrays.items()}
        yield Sample(f"{payload.id}:{i}" if payload.id else "", one, stream)


def _raw(data: bytes, spec: TensorSpec) -> npt.NDArray[Any]:
    """Little-endian numbers of one sample."""
    shape, dtype = _sample_shape(spec), np.dtype(spec.dtype).newbyteorder("<")
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise ConfigError(f"{spec.name}: expected {wanted} bytes of {spec.dtype} {shape}, got {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    sizes = [size for i, size in enumerate(spec.shape) if i != spec.batch_axis]
    if not all(isinstance(size, int) for size in sizes):
        raise ConfigError(f"{spec.name} {spec.describe()} has free axes: how long a sample is cannot be told")
    return tuple(int(size) for size in sizes)


# Sound


def _wav(data: bytes) -> npt.NDArray[np.float32]:
    """PCM as float32 from -1 to 1, channels averaged."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, frames = file.getnchannels(), file.getsampwidth(), file.getnframes()
            raw = file.readframes(frames)
    except (wave.Error, EOFError) as exc:
        raise ConfigError(f"it is not a WAV file of PCM: {str(exc) or 'it ends too early'}") from exc
    if len(raw) != frames * channels * width:
        raise ConfigError(f"the WAV file is not whole: expected {frames * channels * width} bytes, got {len(raw)}")
    if width == 1:
        found = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        found = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    elif width in (2, 4):
        found = np.frombuffer(raw, f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)
    else:
        raise ConfigError(f"expected PCM of 1 to 4 bytes, got {width}")
    return np.asarray(found.reshape(-1, channels).mean(axis=1), np.float32)


def sound(samples: npt.NDArray[np.float32], spec: TensorSpec) -> Iterator[npt.NDArray[Any]]:
    """Pieces as long as the model takes them, the last one filled up with silence; of any length, all of it."""
    sizes = [size for i, size in enumerate(spec.shape) if i != spec.batch_axis]
    wide = [size for size in sizes if size != 1]
    if len(wide) > 1 or not sizes or spec.dtype not in ("float32", "float16", "float64", "int16"):
        raise ConfigError(f"the model takes {spec.dtype} {spec.describe()}: expected one of sound, (batch, samples)")
    length = wide[0] if wide and isinstance(wide[0], int) else len(samples) if wide else 1
    if not len(samples):
        raise ConfigError("there is no sound in it")
    shape = tuple(1 if size == 1 else length for size in sizes)
    for start in range(0, len(samples), length):
        part = np.zeros(length, np.float32)
        part[: len(samples) - start] = samples[start : start + length]
        yield (np.rint(part * 32767).astype(np.int16) if spec.dtype == "int16" else part).reshape(shape)


# JSON


def _json(
    payload: Payload, specs: Sequence[TensorSpec], options: SourceOptions, stream: str | None
) -> Iterator[Sample | Label]:
    data = payload.data.removeprefix(codecs.BOM_UTF8)  # as programs of Windows begin a file
    try:
        text = data.decode()
        begin = text.lstrip()[:1]
        value = (
            strictjson.loads(data, max_bytes=MAX_PAYLOAD_BYTES) if begin == "{"
            else strictjson.load_list(data, max_bytes=MAX_PAYLOAD_BYTES) if begin == "["
            else json.loads(text, parse_constant=_no_constant)
        )  # fmt: skip
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"it is no picture, sound or array, and no JSON: {str(exc)[:120]}") from exc
    if not isinstance(value, dict):
        spec = _only(specs, "JSON")
        yield Sample(payload.id, {spec.name: _shaped(value, spec)}, stream)
        return
    if "label" in value or "y" in value:
        yield _label(value, options)
        return
    own = value.get("id", payload.id)
    name = str(own) if isinstance(own, str | int) and not isinstance(own, bool) else payload.id
    if options.fields:
        spec = _only(specs, "JSON")
        numbers = [_number(value, field) for field in options.fields]
        yield Sample(name, {spec.name: _shaped(numbers, spec)}, stream)
        return
    if not {"x", "inputs"} & value.keys():
        raise ConfigError(
            f"expected x or inputs in the JSON object, got {', '.join(list(value)[:8]) or 'nothing'}; "
            f"fields=… names the values that make a sample"
        )
    known = {key: value[key] for key in ("x", "inputs", "stream", "reset") if key in value}
    request = decode_request(json.dumps({"op": "predict", "id": "-", **known}).encode())
    if "x" in request:
        spec = _only(specs, "JSON")
        inputs = {spec.name: _reshaped(request["x"], spec)}
    else:
        inputs = request["inputs"]
    yield Sample(name, inputs, request.get("stream", stream), bool(request.get("reset", False)))


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _label(value: Mapping[str, Any], options: SourceOptions) -> Label:
    unknown = value.keys() - {"id", "label", "y", "weight", "model"}
    if "id" not in value or unknown or {"label", "y"} <= value.keys():
        raise LearningError(f"expected a label with id and label, perhaps weight and model; got {', '.join(value)}")
    model = value.get("model", options.model)
    request = {"op": "label", "id": value["id"], "y": value.get("label", value.get("y"))}
    request |= {"weight": value["weight"]} if "weight" in value else {}
    return Label(request | ({} if model is None else {"model": model}))


def _number(value: Any, field: str) -> float:
    """A value of a JSON object by its name; of one inside another as ``outer.inner``."""
    found = value
    for part in field.split("."):
        if not isinstance(found, dict) or part not in found:
            raise ConfigError(f"expected the field {field!r}; it is not there")
        found = found[part]
    if isinstance(found, str):
        found = _WORDS.get(found.upper(), found)
    if isinstance(found, bool | int | float):
        return float(found)
    raise ConfigError(f"{field}: expected a number, true, false, ON or OFF, got {found!r:.40}")


def _shaped(value: Any, spec: TensorSpec) -> npt.NDArray[Any]:
    """Numbers of JSON in the shape of the input: nested, or all of one sample in a row."""
    try:
        array = np.asarray(value if isinstance(value, list) else [value])
    except ValueError as exc:
        raise ConfigError(f"the nested lists are not of one shape: {exc}") from exc
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"expected numbers, got {str(value)[:40]!r}")
    return _reshaped(array, spec)


def _reshaped(array: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    sizes = [size for i, size in enumerate(spec.shape) if i != spec.batch_axis]
    if array.ndim == 1 and len(sizes) != 1 and all(isinstance(size, int) for size in sizes):
        wanted = tuple(int(size) for size in sizes)
        if math.prod(wanted) == array.size:
            return array.reshape(wanted)
    return array
