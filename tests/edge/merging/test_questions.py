from __future__ import annotations

import numpy as np
import pytest

from edge.learning.sketches import LENGTH
from edge.merging import questions
from edge.merging.questions import LEAST_ALIKE, Sketch, around_of, best_question

RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((8, LENGTH))


def sketch(device: str, sample: str, centre: int, noise: float = 0.1) -> Sketch:
    found = CENTRES[centre] + noise * RNG.standard_normal(LENGTH)
    codes = np.rint(found / np.abs(found).max() * 127).astype(np.int8)
    return Sketch(device, "", sample, 0, "three", 0.4, codes)


def test_the_question_that_helps_most_devices_goes_before_the_one_with_most_samples() -> None:
    many = [sketch("a", f"a{i}", 0) for i in range(9)] + [sketch("b", "b0", 0)]
    wide = [sketch(device, f"{device}1", 1) for device in "abc"]
    found = best_question([*many, *wide])
    assert found is not None
    everybody = {found.asked.id, *(each.id for each, _ in found.alike)}
    assert everybody == {"a1", "b1", "c1"}
    assert found.n_devices == 3
    assert all(how >= LEAST_ALIKE for _, how in found.alike)


def test_of_questions_that_help_as_many_devices_the_one_with_more_samples_is_asked() -> None:
    few = [sketch("a", "1", 0), sketch("b", "2", 0)]
    found = best_question([*few, *(sketch("a", f"x{i}", 1) for i in range(3)), sketch("b", "y", 1)])
    assert found is not None
    assert len(found.alike) == 3


def test_a_question_that_helps_one_device_is_not_asked() -> None:
    alone = [sketch("a", "1", 0), sketch("a", "2", 0), sketch("b", "3", 1)]
    assert best_question(alone) is None
    assert best_question([]) is None
    found = best_question(alone, least_devices=1)
    assert found is not None
    assert found.n_devices == 1


def test_what_is_alike_to_nothing_not_even_itself_is_never_asked_about() -> None:
    blank = [Sketch(device, "", device, 0, "one", 0.1, np.zeros(LENGTH, np.int8)) for device in "ab"]
    assert best_question(blank, least_devices=1) is None


def test_the_most_alike_come_first() -> None:
    found = around_of([sketch("a", "far", 0, 0.4), sketch("b", "asked", 0, 0.0), sketch("c", "near", 0, 0.05)], 1)
    assert [each.id for each, _ in found.alike] == ["near", "far"]


def test_of_very_many_the_newest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST_COMPARED", 600)  # more than are compared in one go
    old = [sketch(device, device, 0) for device in "abc"]
    new = [sketch(f"d{i % 2}", f"n{i}", 2 + i % 2, 3.0) for i in range(598)] + [
        sketch("d0", "p", 1),
        sketch("d1", "q", 1),
    ]
    found = best_question([*old, *new])
    assert found is not None
    assert {found.asked.id, *(each.id for each, _ in found.alike)} >= {"p", "q"}
    assert found.n_devices == 2
