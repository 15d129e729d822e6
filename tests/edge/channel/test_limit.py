"""The limit that a broker does not announce is found, kept, and tried again with care."""

from __future__ import annotations

from edge.channel.limit import FLOOR_BYTES, GROW_AFTER_S, LAST_GROW_AFTER_S, PacketLimit


def connected(announced: int = 262_144, now_s: float = 0.0) -> PacketLimit:
    limit = PacketLimit(announced)
    limit.connected(announced, now_s)
    return limit


def test_two_losses_in_a_row_with_as_large_a_packet_under_way_halve_it_down_to_a_floor() -> None:
    limit = connected()
    assert not limit.lost(33_000), "once is bad luck"
    assert limit.lost(33_000)
    assert limit.value == 16_500
    for size in (16_400, 16_400, 8_200, 8_200, 4_100, 4_100, 2_050, 2_050, 2_050, 2_050):
        limit.lost(size)
    assert limit.value == FLOOR_BYTES
    assert not limit.lost(FLOOR_BYTES), "with so little under way something else is wrong"


def test_losses_without_a_large_packet_say_nothing_of_its_size() -> None:
    limit = connected()
    for _ in range(20):
        assert not limit.lost(0)
        assert not limit.lost(900)
    assert not limit.lost(33_000)
    assert not limit.lost(900), "the large one was not under way this time"
    assert not limit.lost(33_000)
    assert not limit.lost(9_000), "nor one as large"
    assert limit.value == 262_144


def test_it_grows_again_after_a_while_and_takes_longer_after_each_relapse() -> None:
    limit, now_s = connected(65_536), 0.0
    waits = []
    for _ in range(12):
        limit.lost(40_000)
        limit.lost(40_000)
        assert limit.is_learned
        limit.connected(65_536, now_s)
        began_s = now_s
        while not limit.poll(now_s):
            now_s += 60.0
        waits.append(now_s - began_s)
    assert waits[0] == GROW_AFTER_S
    assert waits == sorted(waits)
    assert waits[-1] == LAST_GROW_AFTER_S
    while limit.is_learned:
        now_s += LAST_GROW_AFTER_S
        limit.poll(now_s)
    assert limit.value == 65_536
    assert not limit.poll(now_s + 1e9), "and not beyond what the broker announces"


def test_no_growth_without_a_connection_and_never_above_what_is_announced() -> None:
    limit = connected(50_000)
    limit.too_large(40_000)
    assert limit.value == 20_000
    limit.lost(0)
    assert not limit.poll(1e9)
    limit.connected(10_000, 1e9)
    assert limit.value == 10_000
    limit.connected(50_000, 1e9)
    assert limit.value == 20_000, "the broker says more, but we know better"
