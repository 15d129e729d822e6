"""What a model answered to each class, as a text that fits into telemetry: bounded, and no count is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.channel import confusion, topics
from edge.channel.codec import decode
from edge.contract.errors import ChannelError

NAMES = st.text(min_size=1, max_size=200)
COUNTS = st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(1, 256), min_size=1, max_size=40), max_size=40)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw of text loads Unicode tables
@given(COUNTS)
def test_it_fits_and_no_label_is_lost(counts: dict[str, dict[str, int]]) -> None:
    text = confusion.told(counts)
    assert len(text.encode()) <= confusion.MAX_BYTES
    found = confusion.read(text)
    assert sum(map(confusion.total, found.values())) == sum(map(confusion.total, counts.values()))
    decode(topics.UP_TELE, json.dumps({confusion.KEY: text}).encode())


def test_what_is_told_of_a_class_stays_true_when_there_is_no_room_for_all() -> None:
    names = [f"class number {i}" for i in range(60)]
    counts = {name: {name: 50 - i, names[i - 1]: 3, names[i - 2]: 1} for i, name in enumerate(names[:45])}
    found = confusion.read(confusion.told(counts))
    classes = found.keys() - {confusion.OTHERS}
    assert 0 < len(classes) <= confusion.MAX_CLASSES
    for label in classes:  # its accuracy is what it was, and those with most labels are there
        assert found[label][label] == counts[label][label]
        assert confusion.total(found[label]) == confusion.total(counts[label])
    assert {names[0], names[1]} <= classes
    assert confusion.OTHERS in found


def test_thirty_classes_with_long_names_and_what_they_are_mixed_up_with_fit() -> None:
    names = [f"part number {i} with a scratch" for i in range(30)]
    counts = {name: {name: 7, names[i - 1]: 1} for i, name in enumerate(names)}
    assert confusion.read(confusion.told(counts)) == counts


def _text(names: object, counts: object) -> str:
    return json.dumps({"names": names, "counts": counts})


@pytest.mark.parametrize(
    "text",
    ["[]", "x", "{}", 3, "{" * 5000, _text(["a"], 1), _text("a", []), _text([1], []), _text(["a" * 129], []),
     _text(["a"], [[0, 0, 0]]), _text(["a"], [[0, 1, 1]]), _text(["a"], [[-1, 0, 1]]), _text(["a"], [[0, 0, True]]),
     _text(["a"], [[0, 0, 1.5]]), _text(["a"], [[0, 0]]), _text(["a"], [0]), _text(["a"], [[0, 0, 2**60]]),
     _text([str(i) for i in range(34)], [[i, 0, 1] for i in range(34)]),
     '{"names": ["a"], "names": ["b"], "counts": []}'],
)  # fmt: skip
def test_what_is_no_such_text_is_refused_by_name(text: object) -> None:
    with pytest.raises(ChannelError, match=r"Telemetry\.confusion"):
        decode(topics.UP_TELE, json.dumps({confusion.KEY: text}).encode())
