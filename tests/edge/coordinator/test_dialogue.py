"""What the conversation with devices remembers of them."""

from __future__ import annotations

from edge.coordinator.recent import Recent


def test_of_names_without_end_only_those_that_spoke_last_are_remembered() -> None:
    found = Recent[int](3)
    for i in range(1000):
        found[f"d{i}"] = i
        found["d0"] = -i  # speaks all the time
    assert list(found.items()) == [("d998", 998), ("d999", 999), ("d0", -999)]
