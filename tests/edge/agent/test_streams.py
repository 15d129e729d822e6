"""What a model remembers of each stream: bounded, forgotten in silence, and nobody else's."""

from __future__ import annotations

import numpy as np
import pytest

from edge.agent.model.streams import StreamLimits, Streams
from edge.contract.errors import BundleError
from edge.inference.session import Arrays


def state(value: float) -> Arrays:
    return {"h": np.full((1, 1, 4), value, np.float32)}


def value(streams: Streams, name: str, now_s: float = 0.0) -> float:
    return float(streams.state(name, now_s)["h"][0, 0, 0])


def test_each_stream_goes_on_from_its_own_state() -> None:
    streams = Streams(state(0.0), StreamLimits())
    assert value(streams, "a") == 0.0
    assert [streams.keep("a", state(1.0), 0.0), streams.keep("b", state(5.0), 0.0)] == [1, 1]
    assert streams.keep("a", state(2.0), 1.0) == 2
    assert (value(streams, "a"), value(streams, "b"), value(streams, "c")) == (2.0, 5.0, 0.0)
    assert len(streams) == 2, "to look at a stream does not make one"
    assert streams.state("a", 1.0, anew=True)["h"].max() == 0.0
    assert value(streams, "a") == 2.0, "until a sample is kept, what was there stays"
    assert streams.keep("a", state(7.0), 2.0, anew=True) == 1


def test_a_stream_that_was_silent_begins_anew() -> None:
    streams = Streams(state(0.0), StreamLimits(idle_s=10.0))
    streams.keep("a", state(1.0), 0.0)
    streams.keep("b", state(2.0), 6.0)
    assert value(streams, "a", 10.0) == 1.0
    assert value(streams, "a", 10.5) == 0.0
    assert (value(streams, "b", 10.5), len(streams)) == (2.0, 1)
    assert streams.keep("a", state(3.0), 10.5) == 1
    assert streams.forgotten == 0


def test_ten_thousand_streams_take_no_more_than_they_may() -> None:
    by_number, by_memory = (
        Streams(state(0.0), StreamLimits(most=100)),
        Streams(state(0.0), StreamLimits(most=10**6, max_mb=16 * 50 / 2**20)),
    )
    for streams, most in ((by_number, 100), (by_memory, 50)):
        for i in range(10_000):
            streams.keep(f"s{i}", state(i), float(i % 7))
            if i % 10 == 0:
                streams.keep("busy", state(-1.0), float(i % 7))
        assert (len(streams), streams.most, streams.forgotten) == (most, most, 10_001 - most)
        assert value(streams, "s9999") == 9999.0
        assert value(streams, "busy") == -1.0, "those go first that were silent longest"
        assert value(streams, "s0") == 0.0
        assert streams.status() | {"idle_s": 0} == {
            "open": most, "most": most, "state_bytes": 16, "idle_s": 0, "forgotten": 10_001 - most
        }  # fmt: skip


def test_a_state_that_has_no_room_at_all_is_refused() -> None:
    with pytest.raises(BundleError, match="allowed are 1e-05"):
        Streams(state(0.0), StreamLimits(max_mb=1e-5))


def test_where_nothing_is_remembered_nothing_is_kept() -> None:
    streams = Streams({}, StreamLimits())
    assert streams.keep("a", {}, 0.0) == 0
    assert (streams.state("a", 0.0), len(streams)) == ({}, 0)
