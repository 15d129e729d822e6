"""Bytes as they come to samples and labels: by what the model takes, and what it does not take is said."""

from __future__ import annotations

import io
import json
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge.agent.sources.payloads import Label, Payload, Sample, SourceOptions, read
from edge.contract.errors import ConfigError, EdgeError
from edge.contract.tensorspec import TensorSpec

PICTURE = TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8))
SOUND = TensorSpec(name="audio", dtype="float32", shape=("batch", 100))
VALUES = TensorSpec(name="values", dtype="float32", shape=("batch", 3))
MASK = TensorSpec(name="mask", dtype="int64", shape=("batch", 3))


def taken(data: bytes | Any, *specs: TensorSpec, **options: Any) -> list[Sample | Label]:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return list(read(Payload(name="n", data=body, id="n"), specs, SourceOptions(**options)))


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def wav(samples: np.ndarray, width: int = 2, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(16000)
        sound.writeframes(samples.tobytes())
    return file.getvalue()


def test_pictures_arrays_and_bytes_are_one_sample() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for kind in ("PNG", "BMP"):
        (found,) = taken(png(pixels, kind), PICTURE)
        np.testing.assert_array_equal(found.inputs["image"][0], pixels / np.float32(255))
    assert taken(png(np.zeros((90, 40, 3), np.uint8), "JPEG"), PICTURE)[0].inputs["image"].shape == (1, 8, 8)
    array = np.random.default_rng(0).random((1, 8, 8), np.float32)
    for data, options in ((npy(array), {}), (array.tobytes(), {"kind": "raw"})):
        (found,) = taken(data, PICTURE, **options)
        np.testing.assert_array_equal(found.inputs["image"], array)
    assert [each.id for each in taken(npy(np.zeros((3, 1, 8, 8), np.float32)), PICTURE)] == ["n:0", "n:1", "n:2"]
    file = io.BytesIO()
    np.savez(file, values=np.zeros((2, 3)), mask=np.zeros((2, 3), np.int64), note=np.zeros(1))
    found = taken(file.getvalue(), VALUES, MASK)
    assert [sorted(each.inputs) for each in found] == [["mask", "values"]] * 2


def test_sound_comes_in_pieces_as_long_as_the_model_takes_it() -> None:
    ramp = np.arange(250, dtype="<i2") * 100
    found = taken(wav(ramp), SOUND)
    assert [(each.id, each.reset) for each in found] == [("n", True), ("n:1", False), ("n:2", False)]
    heard = np.concatenate([each.inputs["audio"] for each in found])
    np.testing.assert_allclose(heard[:250], ramp / 32768, atol=1e-7)
    assert not heard[250:].any()
    both = np.stack([ramp, -ramp], axis=1)
    assert not taken(wav(both, channels=2), SOUND)[0].inputs["audio"].any()
    wide = (ramp.astype("<i4") << 16).view(np.uint8).reshape(-1, 4)[:, 1:]
    np.testing.assert_allclose(taken(wav(wide, width=3), SOUND)[0].inputs["audio"], ramp[:100] / 32768, atol=1e-6)
    free = TensorSpec(name="audio", dtype="float32", shape=("batch", "length"))
    assert taken(wav(ramp), free)[0].inputs["audio"].shape == (250,)
    whole = TensorSpec(name="audio", dtype="int16", shape=("batch", 1, 100))
    np.testing.assert_allclose(taken(wav(ramp), whole)[0].inputs["audio"][0], ramp[:100], atol=1)
    with pytest.raises(ConfigError, match="not whole"):
        taken(wav(ramp)[:-20], SOUND)
    with pytest.raises(ConfigError, match="expected one of sound"):
        taken(wav(ramp), PICTURE)


def test_json_is_a_sample_values_of_a_sensor_or_a_label() -> None:
    # Zigbee2MQTT publishes objects of values, Home Assistant single states, applications arrays.
    climate = {"battery": 97, "contact": False, "humidity": 41.2, "linkquality": 120, "state": "ON", "in": {"x": 1}}
    (found,) = taken(climate, VALUES, fields=("humidity", "contact", "state"))
    np.testing.assert_allclose(found.inputs["values"], [41.2, 0.0, 1.0])
    assert taken(climate, VALUES, fields=("in.x", "battery", "battery"))[0].inputs["values"].tolist() == [1, 97, 97]
    for data in ([1, 2, 3], {"x": [1, 2, 3]}, {"inputs": {"values": [1, 2, 3]}}, {"id": 7, "x": [1, 2, 3]}):
        (found,) = taken(data, VALUES)
        np.testing.assert_array_equal(np.ravel(found.inputs["values"]), [1, 2, 3])
    assert found.id == "7"
    assert taken({"x": [1, 2, 3], "stream": "s", "reset": True}, VALUES)[0].stream == "s"
    assert taken(list(range(64)), PICTURE)[0].inputs["image"].shape == (1, 8, 8)
    one = TensorSpec(name="t", dtype="float32", shape=("batch", 1))
    assert taken(b"21.5", one)[0].inputs["t"].tolist() == [21.5]
    (label,) = taken({"id": "a", "label": "dent", "weight": 0.5}, VALUES, model="m")
    assert label.request == {"op": "label", "id": "a", "y": "dent", "weight": 0.5, "model": "m"}


@pytest.mark.parametrize(
    ("words", "data", "options"),
    [
        ("no JSON", b"", {}),
        ("no JSON", b"\xff\xfe", {}),
        ("no JSON", b"NaN", {}),
        ("no JSON", b"[" * 50, {}),
        ("expected x or inputs", {"temperature": 3}, {}),
        ("field 'light'", {"temperature": 3}, {"fields": ("light",)}),
        ("expected a number", {"t": "warm"}, {"fields": ("t",)}),
        ("expected a number", {"t": None}, {"fields": ("t",)}),
        ("one shape", [[1], [1, 2]], {}),
        ("expected numbers", ["a"], {}),
        ("expected a label", {"label": 3}, {}),
        ("expected a label", {"id": "a", "label": 3, "x": [1]}, {}),
        ("not an .npy", b"\x93NUMPY", {}),
        ("not an .npz", b"PK\x03\x04", {}),
        ("not a WAV", b"RIFF", {}),
        ("images can be given for", b"\x89PNG\r\n\x1a\n", {}),
        ("expected 12 bytes", b"abc", {"kind": "raw"}),
    ],
)
def test_what_is_no_sample_is_said(words: str, data: bytes | Any, options: dict) -> None:
    with pytest.raises(EdgeError, match=words):
        taken(data, VALUES, **options)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", b"RIFF", b"PK\x03\x04"]))
def test_random_bytes_are_said_and_break_nothing(data: bytes, begin: bytes) -> None:
    for spec in (PICTURE, SOUND):
        try:
            taken(begin + data, spec)
        except EdgeError:
            continue


def test_several_inputs_go_by_name_only() -> None:
    with pytest.raises(ConfigError, match="values, mask: expected them by name"):
        taken(png(np.zeros((8, 8), np.uint8)), VALUES, MASK)
