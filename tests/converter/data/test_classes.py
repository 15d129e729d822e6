"""Class numbers of data that name their classes are those of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.data.classes import numbered_as_model
from converter.data.stream import open_samples
from converter.data.streams import open_remembered
from edge.contract.errors import ConfigError
from edge.contract.manifest import StatePair
from edge.contract.tensorspec import TensorSpec
from tests.converter.data.test_folders import PIXELS, save_image


def numbers(folder: Path, folders: list[str], class_names: list[str] | None) -> list[int]:
    for name in folders:
        save_image(folder / name / "1.png")
    stream = numbered_as_model(
        open_samples(str(folder), "--calibrate", [PIXELS]), class_names, f"--calibrate: {folder}"
    )
    assert stream.class_names == tuple(class_names or sorted(folders))
    found = [int(y) for batch in stream.batches(2) if batch.y is not None for y in batch.y]
    assert len(found) == len(folders)
    return found


@pytest.mark.parametrize(
    ("folders", "class_names", "expected"),
    [
        (["dent", "ok", "scratch"], ["ok", "scratch", "dent"], [2, 0, 1]),
        (["a", "c"], ["a", "b", "c"], [0, 2]),
        (["b"], ["a", "b"], [1]),
        (["b", "a"], None, [0, 1]),
        ([str(i) for i in range(11)], [str(i) for i in range(11)], [0, 1, 10, *range(2, 10)]),
        ([str(i) for i in range(10)], None, list(range(10))),
    ],
)
def test_a_folder_is_the_class_of_its_name(
    tmp_path: Path, folders: list[str], class_names: list[str] | None, expected: list[int]
) -> None:
    assert numbers(tmp_path, folders, class_names) == expected


@pytest.mark.parametrize(
    ("folders", "class_names", "message"),
    [
        (["a", "bb"], ["a", "b"], "no class of the model is called bb; its classes are a, b: rename the folders, or"),
        (["0", "1"], ["zero", "one"], "called 0, 1; its classes are zero, one"),
        ([f"f{i:02}" for i in range(20)], ["x"], "f00, .* and 8 more; its"),
        ([str(i) for i in range(11)], None, "are numbers, and 0, 1, 10, 2, .* with --class-names"),
    ],
)
def test_a_folder_that_is_no_class_and_an_order_that_nobody_knows_are_refused(
    tmp_path: Path, folders: list[str], class_names: list[str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        numbers(tmp_path, folders, class_names)


def test_samples_of_a_model_with_state_are_numbered_as_the_model_numbers_them(tmp_path: Path) -> None:
    state = TensorSpec(name="state", dtype="float32", shape=("batch", 1))
    for name in ("b", "a"):
        save_image(tmp_path / name / "1.png")
    pair = StatePair(input="state", output="state_out")
    stream = open_remembered(
        str(tmp_path), "--evaluate", [PIXELS, state], [pair], lambda x: {"state_out": x["state"]}, ["b", "a"]
    )
    assert np.concatenate([batch.y for batch in stream.batches(1) if batch.y is not None]).tolist() == [1, 0]
