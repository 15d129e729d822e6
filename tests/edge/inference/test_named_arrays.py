"""Named arrays come from strangers: they are data, of bounded size, and fit the model or are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec
from edge.inference.named_arrays import fitted, read_arrays, write_arrays

IMAGE = TensorSpec(name="image", dtype="uint8", shape=("batch", 2, 2))
STATE = TensorSpec(name="state", dtype="float32", shape=(3, "batch"))


def test_arrays_come_back_as_they_were_written(tmp_path: Path) -> None:
    arrays = {"image": np.arange(8, dtype=np.uint8).reshape(2, 2, 2), "output.with/strange name": np.ones(3)}
    write_arrays(tmp_path / "a.npz", arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert {n: (a.dtype, a.tolist()) for n, a in found.items()} == {n: (a.dtype, a.tolist()) for n, a in arrays.items()}
    first = (tmp_path / "a.npz").read_bytes()
    write_arrays(tmp_path / "a.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == first
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]


def test_refuses_what_is_no_file_of_plain_arrays(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.ones(100)})
    whole = (tmp_path / "a.npz").read_bytes()
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_bytes(b"x = 1")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    for name in ("objects", "empty", "text", "cut", "flipped", "missing"):
        with pytest.raises(ConfigError, match=f"{name}.npz (is not an .npz of plain arrays|does not exist)"):
            read_arrays(tmp_path / f"{name}.npz")


def test_refuses_a_bomb_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(17):
            archive.writestr(f"x{i}.npy", bytes(64 << 20))
    with pytest.raises(ConfigError, match="at most"):
        read_arrays(tmp_path / "bomb.npz")


def test_numbers_that_fit_take_the_models_type() -> None:
    found = fitted({"image": np.full((1, 2, 2), 255, np.int64), "state": np.ones((3, 1))}, [IMAGE, STATE])
    assert (found["image"].dtype, found["state"].dtype) == (np.uint8, np.float32)
    assert fitted({"anything": np.zeros((2, 2), np.uint8)}, [IMAGE])["image"].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "expected the arrays image"),
        ({"image": np.zeros((1, 2, 2), np.uint8)}, "expected the arrays image .* state"),
        (
            {"image": np.zeros((1, 2, 2), np.uint8), "state": np.ones((3, 1)), "more": np.ones(1)},
            "got image, state, more",
        ),
        ({"image": np.full((1, 2, 2), 256), "state": np.ones((3, 1))}, "do not fit uint8"),
        ({"image": np.full((1, 2, 2), -1), "state": np.ones((3, 1))}, "do not fit uint8"),
        ({"image": np.zeros((1, 2, 2)), "state": np.ones((3, 1))}, "expected uint8, got float64"),
        ({"image": np.zeros((1, 2, 2), np.uint8), "state": np.ones((2, 1))}, r"expected shape \(3, batch\)"),
        ({"image": np.zeros((1, 2, 2), np.uint8), "state": np.array([["a"]])}, "expected float32"),
    ],
)
def test_refuses_arrays_that_do_not_fit(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fitted(arrays, [IMAGE, STATE])
