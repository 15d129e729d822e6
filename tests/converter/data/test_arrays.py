"""Samples in .npz and .npy files: what they give, what is refused, how much memory they take."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.data.npz import NpzSamples
from converter.data.peek import peek_shapes
from converter.data.samples import Samples, SampleStream
from converter.data.stream import open_samples
from converter.data.subset import subset
from converter.load.checkpoint_file import check_samples
from converter.program.tensors import join
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

PIXELS = TensorSpec(name="pixels", dtype="float32", shape=("batch", 1, 2, 2))
TOKENS = TensorSpec(name="tokens", dtype="int8", shape=("batch", "time"))
STATE = TensorSpec(name="state", dtype="float32", shape=(2, "batch", 3))
SCALE = TensorSpec(name="scale", dtype="float32", shape=(2,))
ROWS = np.arange(5 * 4, dtype=np.float32).reshape(5, 1, 2, 2)


def everything(stream: SampleStream, specs: list[TensorSpec], size: int = 2) -> Samples:
    batches = list(stream.batches(size))
    labels = [batch.y for batch in batches if batch.y is not None]
    return Samples(join([batch.x for batch in batches], specs), np.concatenate(labels) if labels else None)


def opened(path: Path, *specs: TensorSpec) -> SampleStream:
    return open_samples(str(path), "--calibrate", specs)


def read(path: Path, *specs: TensorSpec) -> Samples:
    return everything(opened(path, *specs), list(specs))


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": descr})
    return buffer.getvalue()


def archive(path: Path, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["x", "pixels"])
def test_an_npz_is_read_in_batches_as_often_as_wanted(tmp_path: Path, save: Callable[..., None], key: str) -> None:
    path = tmp_path / "data.npz"
    save(path, **{key: ROWS, "y": np.array([0, 1, 2, 1, 0], np.uint8)})
    stream = opened(path, PIXELS)
    assert (stream.origin, stream.class_names) == ("data.npz", None)
    for _ in range(2):
        batches = list(stream.batches(2))
        assert [len(batch.x["pixels"]) for batch in batches] == [2, 2, 1]
        samples = everything(stream, [PIXELS])
        np.testing.assert_array_equal(samples.x["pixels"], ROWS)
        assert samples.y is not None
        assert (samples.y.dtype, samples.y.tolist()) == (np.int64, [0, 1, 2, 1, 0])


@pytest.mark.parametrize("dtype", [">f4", "f8", "f2", "u1", "i8", "?"])
def test_numbers_of_other_types_are_cast_for_a_float_model(tmp_path: Path, dtype: str) -> None:
    x = read(npz(tmp_path / "data.npz", x=ROWS.astype(dtype)), PIXELS).x["pixels"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, ROWS.astype(dtype).astype(np.float32))


def test_integers_are_cast_for_an_integer_model_and_free_axes_take_any_size(tmp_path: Path) -> None:
    tokens = np.array([[-128, 127, 3]], np.int64)
    x = read(npz(tmp_path / "data.npz", x=tokens), TOKENS).x["tokens"]
    assert x.dtype == np.int8
    np.testing.assert_array_equal(x, tokens)


def test_an_array_in_fortran_order_is_read(tmp_path: Path) -> None:
    samples = read(npz(tmp_path / "data.npz", x=np.asfortranarray(ROWS)), PIXELS)
    np.testing.assert_array_equal(samples.x["pixels"], ROWS)


def test_float_targets_stay_targets(tmp_path: Path) -> None:
    y = read(npz(tmp_path / "data.npz", x=ROWS, y=np.arange(10.0).reshape(5, 2)), PIXELS).y
    assert y is not None
    assert (y.dtype, y.shape) == (np.float32, (5, 2))


def test_inputs_by_name_get_their_batch_axis_where_the_model_has_it(tmp_path: Path) -> None:
    state = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    scale = np.array([3, 4], np.float32)
    specs = [PIXELS, STATE, SCALE]
    path = npz(tmp_path / "data.npz", pixels=ROWS, state=state, scale=scale, y=np.arange(5))
    samples = read(path, *specs)
    np.testing.assert_array_equal(samples.x["state"], state.transpose(1, 0, 2))
    np.testing.assert_array_equal(samples.x["scale"], scale)
    chosen = subset(opened(path, *specs), specs, max_samples=3, max_bytes=1 << 20)
    assert chosen.y is not None
    np.testing.assert_array_equal(chosen.x["state"], state[chosen.y].transpose(1, 0, 2))


def test_an_array_that_was_saved_without_a_name_is_that_of_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", ROWS)
    np.testing.assert_array_equal(read(tmp_path / "data.npz", PIXELS).x["pixels"], ROWS)


def test_a_model_without_batches_gets_its_one_sample(tmp_path: Path) -> None:
    samples = read(npz(tmp_path / "data.npz", x=np.ones(2), y=np.array([4])), SCALE)
    assert samples.x["scale"].tolist() == [1, 1]
    assert samples.y is not None
    assert samples.y.tolist() == [4]


@pytest.mark.parametrize("axes", [(1, 2, "width"), (2, "width")])
def test_a_model_without_batches_takes_the_first_of_several_samples(
    tmp_path: Path, axes: tuple[int | str, ...]
) -> None:
    spec = TensorSpec(name="line", dtype="float32", shape=axes)
    lines = np.arange(5 * 2 * 7, dtype=np.float32).reshape(5, 2, 7)
    expected = lines[:1] if len(axes) == 3 else lines[0]
    np.testing.assert_array_equal(read(npz(tmp_path / "data.npz", line=lines), spec).x["line"], expected)
    with pytest.raises(
        ConfigError, match=r"samples of the shape \(1, 3, 7\), but" if len(axes) == 3 else "but the model"
    ):
        read(npz(tmp_path / "wrong.npz", line=np.zeros((5, 3, 7))), spec)


def test_the_only_array_is_taken_whatever_its_name_and_labels_by_usual_names(tmp_path: Path) -> None:
    y = np.arange(len(ROWS))
    for names, origin in (
        (("tokens", "y"), "data.npz (tokens)"),
        (("images", "labels"), "data.npz (images, labels from labels)"),
        (("x", "targets"), "data.npz (labels from targets)"),
        (("pixels", "y"), "data.npz"),
    ):
        path = npz(tmp_path / "data.npz", **dict(zip(names, (ROWS, y), strict=True)))
        stream = open_samples(str(path), "--calibrate", [PIXELS])
        assert stream.origin == origin
        samples = next(stream.batches(10))
        np.testing.assert_array_equal(samples.x["pixels"], ROWS)
        assert samples.y is not None
        assert samples.y.tolist() == y.tolist()
    both = npz(tmp_path / "both.npz", x=ROWS, y=y, labels=y + 1)
    found = next(open_samples(str(both), "--calibrate", [PIXELS]).batches(10)).y
    assert found is not None
    assert found.tolist() == y.tolist()


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float64"])
def test_yes_or_no_of_several_columns_is_a_target_of_any_type(tmp_path: Path, dtype: str) -> None:
    y = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype)
    found = read(npz(tmp_path / "data.npz", x=ROWS, y=y), PIXELS).y
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, y)
    check_samples([PIXELS], {"pixels": ROWS}, y)
    with pytest.raises(ValueError, match=r"of the shape \(n, 3\)"):
        check_samples([PIXELS], {"pixels": ROWS}, 2 * y.astype(int))


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_is_read(tmp_path: Path, order: Any) -> None:
    np.save(tmp_path / "data.npy", np.array(ROWS, order=order))
    samples = read(tmp_path / "data.npy", PIXELS)
    np.testing.assert_array_equal(samples.x["pixels"], ROWS)
    assert samples.y is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": ROWS, "other": ROWS}, "no array named x or pixels; it has z, other"),
        ({"labels": np.arange(5)}, "no array named x or pixels; it has labels"),
        ({}, "no array named x or pixels; it has none"),
        ({"x": np.zeros((5, 3, 2, 2))}, r"samples of the shape \(3, 2, 2\), but the model takes \(1, 2, 2\)"),
        ({"x": np.zeros((5, 2, 2, 1))}, "bring the axes into this order"),
        ({"x": ROWS[0]}, r"save x\[None\]"),
        ({"x": np.float32(1)}, r"samples of the shape \(\), but"),
        ({"x": ROWS[:0]}, r"no samples in an array of the shape \(0, 1, 2, 2\)"),
        ({"x": np.where(ROWS == 7, 1e300, ROWS.astype(float))}, "too large for float32"),
        ({"x": ROWS.astype(complex)}, "samples of the type complex128; expected numbers, float32"),
        ({"x": ROWS.astype(str)}, "samples of the type <U"),
        ({"x": ROWS.astype(object)}, r"x.npy holds Python objects"),
        ({"x": ROWS, "y": np.arange(4)}, r"y of the shape \(4,\) for 5 samples"),
        ({"x": ROWS, "y": np.int64(4)}, r"y of the shape \(\) for 5 samples"),
        ({"x": ROWS, "y": 2 * np.eye(5, dtype=int)}, r"integers y of the shape \(n, 5\); expected class numbers"),
        ({"x": ROWS, "y": np.arange(5)[:, None]}, r"integers y of the shape \(n, 1\); .* y\[:, 0\] where that is one"),
        ({"x": ROWS, "y": np.zeros((5, 2, 2), int)}, "Leave y out where each position has a class of its own"),
        ({"x": ROWS, "y": np.full(5, np.inf)}, "y with values that are not finite"),
        ({"x": ROWS, "y": np.array(list("abcde"))}, "y of the type <U1; expected class numbers"),
        ({"x": ROWS, "y": np.array(list("abcde"), object)}, "y.npy holds Python objects"),
        ({"x": ROWS, "y": np.full(5, 2**63, np.uint64)}, "the class number 9223372036854775808"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^--calibrate: .*data\.npz.*" + message):
        read(npz(tmp_path / "data.npz", **arrays), PIXELS)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[1, 200]]), "values from 1 to 200, but the model takes int8: expected -128 to 127"),
        (np.array([[2**63]], np.uint64), "expected -128 to 127"),
        (np.array([[1.0]]), "samples of the type float64, but the model takes int8"),
        (np.zeros((2, 0), int), r"samples of the shape \(0,\), but the model takes \(time,\)"),
    ],
)
def test_integers_that_do_not_fit_are_refused(tmp_path: Path, tokens: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(npz(tmp_path / "data.npz", x=tokens), TOKENS)


def test_several_inputs_need_as_many_samples_each(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no array named state; it has pixels; expected one for each input: pixels, s"
    ):
        read(npz(tmp_path / "data.npz", pixels=ROWS), PIXELS, STATE)
    with pytest.raises(ConfigError, match="different numbers of samples: pixels 5, state 4"):
        read(npz(tmp_path / "data.npz", pixels=ROWS, state=np.zeros((4, 2, 3))), PIXELS, STATE)
    np.save(tmp_path / "data.npy", ROWS)
    with pytest.raises(ConfigError, match=r"takes 2 inputs \(pixels, state\): give an .npz"):
        read(tmp_path / "data.npy", PIXELS, STATE)
    with pytest.raises(ConfigError, match="without a batch axis"):
        read(tmp_path / "data.npy", SCALE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.npz", "missing.npz does not exist; expected an .npz"),
        ("missing", "does not exist"),
        ("", "--calibrate:  does not exist"),
        ("data\0.npz", "does not exist"),
        ("a" * 5000, "cannot be read"),
        ("data.csv", "data.csv is a file of another kind; expected an .npz"),
        ("code.py", "another kind; .* FILE.py:NAME"),
        ("code.py:", "expected FILE.py:NAME"),
        ("missing.py:data", "missing.py does not exist"),
        ("code.py:data", "code.py has no data"),
        ("data", "another kind"),
        ("folder/", "has no samples"),
        (".", "e.g. folder"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: Any, value: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data.csv", "code.py", "data", "loose.png"):
        Path(name).write_bytes(b"")
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        open_samples(value, "--calibrate", [PIXELS])


def test_shapes_are_seen_without_reading_the_samples(tmp_path: Path) -> None:
    path = npz(tmp_path / "data.npz", x=ROWS, y=np.arange(5))
    assert peek_shapes(str(path)) == {"x": ((5, 1, 2, 2), "float32"), "y": ((5,), "int64")}
    np.save(tmp_path / "data.npy", ROWS)
    assert peek_shapes(str(tmp_path / "data.npy")) == {"x": ((5, 1, 2, 2), "float32")}
    path.write_bytes(path.read_bytes()[:500])
    for name in ("data.npz", "missing.npz", "data.py:samples", ""):
        assert peek_shapes(str(tmp_path / name)) == {}


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=ROWS)
    np.testing.assert_array_equal(read((tmp_path / "data.npz").rename(tmp_path / "D.NPZ"), PIXELS).x["pixels"], ROWS)


@pytest.mark.parametrize(
    "content",
    [
        header((2**63,)),
        header((2**63, 1, 2, 2)),
        header((2**40, 1, 2, 2)),
        header((5, 1, 2, 2)),
        header((5, 1, 2, 2)) + bytes(5 * 16 + 1),
        header((-5, -1, 2, 2)) + bytes(5 * 16),
        header((5, 1, 2, 2), "|O") + bytes(5 * 16),
        header((5, 1, 2, 2)).replace(b"'shape'", b"'shade'") + bytes(5 * 16),
        header((5, 1, 2, 2)).replace(b"{", b"(") + bytes(5 * 16),
        header((5, 1, 2, 2)).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x07") + bytes(5 * 16),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(1 << 20),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 0xFFFF,
        b"hello",
        b"",
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_hostile_headers_are_refused_before_anything_is_allocated(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        archive(path, content)
    else:
        path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            read(path, PIXELS)
        peek_shapes(str(path))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_sample_that_is_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("x.npy", "w") as member:
        member.write(header((1, 300 << 20), "|i1"))
        for _ in range(300):
            member.write(bytes(1 << 20))
    with pytest.raises(ConfigError, match=r"one sample takes 300 MiB: expected at most 256 MiB"):
        read(path, TOKENS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_what_numpy_writes_is_decompressed(tmp_path: Path, compression: int) -> None:
    with pytest.raises(ConfigError, match="compressed in a way that numpy does not use"):
        read(archive(tmp_path / "data.npz", header((5, 1, 2, 2)) + bytes(80), compression), PIXELS)


def test_an_archive_that_calls_itself_npy_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "data.npz", x=ROWS).rename(tmp_path / "data.npy")
    with pytest.raises(ConfigError, match=r"not an \.npy of a plain array: the magic string"):
        read(path, PIXELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_refused_wherever_it_ends(tmp_path: Path, save: Callable[..., None]) -> None:
    whole = tmp_path / "whole.npz"
    save(whole, x=np.random.default_rng(0).standard_normal((1000, 1, 2, 2), np.float32), y=np.arange(1000))
    content = whole.read_bytes()
    cut = tmp_path / "cut.npz"
    for end in range(0, len(content), 1024):
        cut.write_bytes(content[:end])
        with pytest.raises(ConfigError, match=r"cut\.npz is not an \.npz of plain arrays: "):
            read(cut, PIXELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_in_the_numbers_is_noticed(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "data.npz"
    save(path, x=np.random.default_rng(0).standard_normal((1000, 1, 2, 2), np.float32))
    content = bytearray(path.read_bytes())
    for place in range(300, 14000, 1000):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"is not an \.npz of plain arrays: "):
            read(path, PIXELS)
        content[place] ^= 1


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=ROWS, y=np.arange(5))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(500):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            with contextlib.suppress(ConfigError):
                read(path, PIXELS)


def test_a_large_file_is_streamed_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    count = 1600
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 1 << 15))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("x.npy", "w") as member:
        member.write(header((count, 1 << 15)))
        for _ in range(count):
            member.write(bytes(1 << 17))
    tracemalloc.start()
    try:
        stream = open_samples(str(path), "--calibrate", [spec])
        assert isinstance(stream, NpzSamples)
        samples = subset(stream, [spec], max_samples=1000, max_bytes=8 << 20)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert samples.x["x"].nbytes == 8 << 20
