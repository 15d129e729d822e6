"""Folders of images and sounds."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converter.data.samples import Samples, SampleStream
from converter.data.stream import open_samples
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

PIXELS = TensorSpec(name="pixels", dtype="uint8", shape=("batch", 2, 3, 3))
FLOATS = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, 2, 3))
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def opened(folder: Path, *specs: TensorSpec) -> SampleStream:
    return open_samples(str(folder), "--evaluate", specs)


def first(folder: Path, spec: TensorSpec, size: int = 10) -> Samples:
    return next(opened(folder, spec).batches(size))


def spec(dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=("batch", *shape))


def save_image(path: Path, pixels: Any = PICTURE, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_sound(path: Path, frames: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(frames)


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, name in enumerate(["dog/1.png", "cat/2.PNG", "cat/1.bmp", "owl/1.png", "cat/.hidden.png", "owl/a.txt"]):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("about owls")
        else:
            save_image(tmp_path / name, PICTURE + np.uint8(number))
    stream = opened(tmp_path, PIXELS)
    assert stream.class_names == ("cat", "dog", "owl")
    assert stream.origin == tmp_path.name
    for _ in range(2):
        batches = list(stream.batches(3))
        assert [batch.y.tolist() for batch in batches if batch.y is not None] == [[0, 0, 1], [2]]
        np.testing.assert_array_equal(batches[0].x["pixels"], np.stack([PICTURE + np.uint8(n) for n in (2, 1, 0)]))


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    stream = opened(tmp_path, PIXELS)
    assert stream.class_names is None
    assert next(stream.batches(1)).y is None


def test_a_float_input_gets_channels_first_between_0_and_1(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    x = first(tmp_path, FLOATS).x["pixels"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[0], PICTURE.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        (spec("uint8", 4, 5, 3), (1, 4, 5, 3)),
        (spec("uint8", 4, 5, 1), (1, 4, 5, 1)),
        (spec("float32", 1, 4, 5), (1, 1, 4, 5)),
        (spec("float32", 4, 5, 3), (1, 4, 5, 3)),
        (spec("uint8", 3, 4, 5), (1, 3, 4, 5)),
        (spec("uint8", "height", "width", 3), (1, 2, 3, 3)),
        (spec("float32", "channels", "height", "width"), (1, 3, 2, 3)),
    ],
)
def test_images_are_resized_to_what_is_fixed(tmp_path: Path, wanted: TensorSpec, shape: tuple[int, ...]) -> None:
    save_image(tmp_path / "1.png")
    assert first(tmp_path, wanted).x["x"].shape == shape


def test_resizing_is_bilinear(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", np.array([[0, 100]], np.uint8))
    assert first(tmp_path, spec("uint8", 1, 4, 1)).x["x"].ravel().tolist() == [0, 25, 75, 100]


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((16, 8, 3), np.uint8)
    pixels[:8] = 255
    save_image(tmp_path / "1.jpg", pixels, exif=exif, quality=100)
    x = first(tmp_path, spec("uint8", "height", "width", 3)).x["x"]
    assert x.shape == (1, 8, 16, 3)
    assert x[0, :, 8:].min() > 200
    assert x[0, :, :8].max() < 50


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_images_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2), 1 if mode == "1" else None).save(tmp_path / "1.png")
    assert first(tmp_path, PIXELS).x["pixels"].shape == (1, 2, 3, 3)


def test_16_bits_for_each_pixel_become_8(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", np.array([[0, 256, 65535]], np.uint16))
    assert first(tmp_path, spec("uint8", 1, 3, 1)).x["x"].ravel().tolist() == [0, 1, 255]


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no PNG, JPEG or BMP"),
        (b"GIF89a" + bytes(100), "it is no PNG, JPEG or BMP"),
        (png_of_size(12000, 12000), "decompression bomb"),
        (png_of_size(60000, 60000), "decompression bomb"),
        (png_of_size(3, 2), ""),
    ],
)
def test_damaged_images_and_bombs_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"1\.png is not an image that can be read: .*{message}"):
        first(tmp_path, PIXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"1.{suffix}"
    save_image(path, np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    content = path.read_bytes()
    for end in range(0, len(content) - 64, 64):
        path.write_bytes(content[:end])
        with pytest.raises(ConfigError):
            first(tmp_path, PIXELS)


@pytest.mark.parametrize(
    ("files", "specs", "message"),
    [
        ([], [PIXELS], "has no samples; expected .png"),
        (["a.txt"], [PIXELS], "has no samples"),
        (["1.png", "cat/1.png"], [PIXELS], "has samples, e.g. 1.png, and folders, e.g. cat"),
        (["cat/1.png", "dog/deeper/1.png"], [PIXELS], "the class folder dog has no samples"),
        (["1.png", "2.webp"], [PIXELS], "2.webp is a .webp file"),
        (["1.png", "2.wav"], [PIXELS], "images and sounds"),
        (["1.png"], [PIXELS, FLOATS], "takes 2 inputs"),
        (["1.png"], [TensorSpec(name="x", dtype="uint8", shape=(2, 3, 3))], "without a batch axis"),
        (["1.png"], [spec("float32", 12)], r"has images, but the model takes float32 \(batch, 12\)"),
        (["1.png"], [spec("int64", 3, 2, 3)], "has images, but the model takes int64"),
        (["1.png"], [spec("float32", 5, 2, 4)], "takes 5 channels"),
        (["1.wav"], [PIXELS], "has sounds, but the model takes uint8"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    tmp_path: Path, files: list[str], specs: list[TensorSpec], message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, *specs)


def test_images_must_have_one_size_where_the_model_leaves_it_free(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "2.png", PICTURE[:1])
    with pytest.raises(ConfigError, match="a sample of the size 1 along height after samples of the size 2"):
        first(tmp_path, spec("uint8", "height", "width", 3))


SOUND = np.array([0, 1, -1, 32767, -32768], np.int16)


def frames_of(values: np.ndarray[Any, Any], width: int) -> bytes:
    """16-bit numbers as PCM of another width."""
    if width == 1:
        return ((values >> 8) + 128).astype(np.uint8).tobytes()
    wide = (values.astype(np.int32) << 16).astype("<i4").view(np.uint8).reshape(-1, 4)
    return wide[:, 4 - width :].tobytes()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_gives_the_same_sound(tmp_path: Path, width: int) -> None:
    expected = (SOUND >> 8) << 8 if width == 1 else SOUND
    save_sound(tmp_path / "1.wav", frames_of(SOUND, width), width=width)
    whole = first(tmp_path, spec("int16", "samples")).x["x"]
    assert (whole.dtype, whole[0].tolist()) == (np.int16, expected.tolist())
    floats = first(tmp_path, spec("float32", "samples")).x["x"]
    np.testing.assert_array_equal(floats[0], expected.astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (spec("int16", 2), [15, 35]),
        (spec("int16", 4), [15, 35, 55, 0]),
        (spec("int16", 1, 2), [[15, 35]]),
        (spec("int16", 2, 4), [[10, 30, 50, 0], [20, 40, 60, 0]]),
        (spec("int16", "channels", "samples"), [[10, 30, 50], [20, 40, 60]]),
    ],
)
def test_sounds_are_mixed_cut_and_padded(tmp_path: Path, wanted: TensorSpec, expected: list[Any]) -> None:
    stereo = np.array([[10, 20], [30, 40], [50, 60]], np.int16)
    save_sound(tmp_path / "up" / "1.wav", stereo.tobytes(), channels=2)
    stream = opened(tmp_path, wanted)
    assert stream.class_names == ("up",)
    assert next(stream.batches(1)).x["x"][0].tolist() == expected


def test_sounds_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    save_sound(tmp_path / "1.wav", SOUND.tobytes())
    with pytest.raises(ConfigError, match="has 1 channels, but the model takes 2"):
        first(tmp_path, spec("int16", 2, 4))
    save_sound(tmp_path / "2.wav", SOUND.tobytes(), rate=16000)
    with pytest.raises(ConfigError, match=r"2\.wav has 16000 samples each second, the files before it 8000"):
        first(tmp_path, spec("int16", 4))
    save_sound(tmp_path / "2.wav", SOUND[:3].tobytes())
    with pytest.raises(ConfigError, match="of the size 3 along samples after samples of the size 5"):
        first(tmp_path, spec("int16", "samples"))
    save_sound(tmp_path / "2.wav", b"")
    with pytest.raises(ConfigError, match=r"2\.wav has no samples"):
        first(tmp_path, spec("int16", 4))


def test_truncated_and_lying_sounds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.wav"
    save_sound(path, bytes(4000))
    content = path.read_bytes()
    for end in [*range(0, 60), 500, 1500, 4000, 4043]:
        path.write_bytes(content[:end])
        with pytest.raises(ConfigError):
            first(tmp_path, spec("int16", "samples"))
    lying = bytearray(content)
    lying[4:8] = lying[40:44] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(lying)
    with pytest.raises(ConfigError, match="too long"):
        first(tmp_path, spec("int16", "samples"))
    with pytest.raises(ConfigError, match="cut off"):
        first(tmp_path, spec("int16", 100))
