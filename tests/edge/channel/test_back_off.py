"""A broker that restarts is not run over by those that it lost (fault 35's half on the device)."""

from __future__ import annotations

import random

from edge.channel.back_off import FLOOR_S, LAST_S, MANY, SLOW_S, STORM_S, BackOff


def test_a_thousand_clients_that_lost_a_broker_come_back_over_seconds() -> None:
    """The broker is away for 3 s: those that come in that time wait longer."""
    rng = random.Random(1)
    came: list[float] = []
    for _ in range(1000):
        back_off, now_s = BackOff(rng.uniform), 0.0
        now_s += back_off.wait_s(was_connected=True, lasted_s=3600.0)
        while now_s < 3.0:
            now_s += back_off.wait_s(was_connected=False, lasted_s=0.0)
        came.append(now_s)
    busiest = max(sum(start / 4 <= each < start / 4 + 1 for each in came) for start in range(80))
    assert busiest <= 300  # all in one half second before
    assert max(came) < 40.0


def test_never_at_once_never_for_ever_and_soon_for_who_never_had_a_connection() -> None:
    most = BackOff(lambda low, high: high)
    waits = [most.wait_s(was_connected=False, lasted_s=0.0) for _ in range(MANY + 2)]
    assert waits == [1, 2, 4, 8, 16] + [SLOW_S] * (MANY - 5) + [LAST_S] * 2
    assert most.wait_s(was_connected=True, lasted_s=100.0) == STORM_S
    least = BackOff(lambda low, high: low)
    assert {least.wait_s(was_connected=bool(i % 2), lasted_s=0.1) for i in range(20)} == {FLOOR_S}


def test_two_clients_of_one_name_that_push_each_other_off_slow_down() -> None:
    most = BackOff(lambda low, high: high)
    waits = [most.wait_s(was_connected=True, lasted_s=0.2) for _ in range(5)]
    assert waits == [STORM_S, 2 * STORM_S, 4 * STORM_S, SLOW_S, SLOW_S]


def test_all_are_back_half_a_minute_after_a_broker_that_took_minutes_to_start() -> None:
    rng = random.Random(2)
    for away_s in (20.0, 60.0, 180.0):
        late = []
        for _ in range(1000):
            back_off, now_s = BackOff(rng.uniform), 0.0
            now_s += back_off.wait_s(was_connected=True, lasted_s=3600.0)
            while now_s < away_s:
                now_s += back_off.wait_s(was_connected=False, lasted_s=0.0)
            late.append(now_s - away_s)
        assert max(late) <= SLOW_S
