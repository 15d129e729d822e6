"""A rollout from its start to its end, step by step: waves, deadlines, gates, people; values in, values out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edge.channel.messages import Pairs
from edge.contract.errors import RolloutError
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.advance import ABSENT_S, advance, exclude, order
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.states import FAILURES, RolloutEvent, RolloutState, TargetState
from edge.coordinator.rollout.step import Key, Presence, Rollout, Step, Target
from edge.coordinator.rollout.waves import sizes, wave_of
from edge.coordinator.rollout.words import Report, reported, reverted, wants

S, T, E = RolloutState, TargetState, RolloutEvent
HERE = Presence(is_online=True, heard_s=1.0)
GOOD = Pairs(labelled=400, only_new=40, only_old=16, compared=400, differ=56)
BAD = Pairs(labelled=400, only_new=16, only_old=40, compared=400, differ=56)
SAME = Pairs(labelled=400, compared=400)
Device = Callable[[Target], Report | None]


def runs(pairs: Pairs | None = SAME) -> Device:
    """A device that does what it is told, and says so."""
    return lambda target: Report(state="active", detail="probation: accuracy", pairs=pairs)


def says(state: str, detail: str = "") -> Device:
    return lambda _: Report(state=state, detail=detail)


class Play:
    """A rollout with its targets, devices that do as they are made to, and a clock."""

    def __init__(self, n: int, device: Device, *, begin: bool = True, **plan: Any) -> None:
        self.plan = plans.of_document({"release": 1, **plan})
        sized = sizes(n, self.plan.waves)
        self.rollout = Rollout(id=1, plan=self.plan, kind="head", seed="s", n_selected=n)
        targets = [Target(device=f"d{i}", model="", wave=wave_of(i, sized), place=i) for i in range(n)]
        self.targets: dict[Key, Target] = {target.key: target for target in targets}
        self.presence = {f"d{i}": HERE for i in range(n)}
        self.devices: dict[str, Device] = {f"d{i}": device for i in range(n)}
        self.now_s = 0.0
        self.halted = False
        self.said: list[str] = []
        if begin:
            self.order(E.START)

    def take(self, step: Step) -> Step:
        self.rollout = step.rollout
        self.targets |= step.targets
        self.said += [f"{m.before} {m.event} {m.now}" for m in step.moved if not m.subject]
        return step

    def order(self, event: RolloutEvent, why: str = "seen") -> Step:
        return self.take(order(self.rollout, self.targets.values(), event, self.now_s, who="ann", why=why))

    def tick(self, dt_s: float = 1.0) -> None:
        self.now_s += dt_s
        self.take(advance(self.rollout, self.targets.values(), self.presence, self.now_s, is_halted=self.halted))
        for target in list(self.targets.values()):
            told = wants(self.rollout, target)
            if told == "now" and target.state is not T.ACTIVE and self.presence[target.device].is_online:
                report = self.devices[target.device](target)
                if report is not None:
                    self.take(reported(self.rollout, target, report, self.now_s))
            elif target.state is T.REVERTING:
                self.take(reverted(self.rollout, target, self.now_s))

    def run(self, seconds: float, step_s: float = 3600.0) -> Play:
        end = self.now_s + seconds
        while self.now_s < end:
            self.tick(step_s)
        return self

    def states(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for target in self.targets.values():
            found[target.state] = found.get(target.state, 0) + 1
        return found

    @property
    def touched(self) -> int:
        return sum(count for state, count in self.states().items() if state not in ("waiting", "superseded", "absent"))


def test_good_release_reaches_all_in_waves_and_in_order() -> None:
    play = Play(200, runs(GOOD))
    play.tick()
    assert play.touched == 10
    assert {target.place for target in play.targets.values() if target.state is not T.WAITING} == set(range(10))
    play.run(1200, 600)
    assert (play.touched, play.rollout.state) == (10, S.SOAKING), "it soaks for 30 min"
    play.run(1200, 600)
    assert play.touched == 50
    play.run(3 * 86_400)
    assert (play.rollout.state, play.states()) == (S.COMPLETED, {"active": 200})
    assert play.said.count("soaking pass opening") == 3
    assert play.said[-1] == "soaking pass completed"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 19])
def test_small_fleet_goes_through_as_fast_as_its_devices_are_well(n: int) -> None:
    play = Play(n, runs(Pairs()))
    for _ in range(12):
        play.tick()
    assert (play.rollout.state, play.states()) == (S.COMPLETED, {"active": n})
    broken = Play(n, says("failed", "NaN"))
    for _ in range(12):
        broken.tick()
    assert broken.rollout.state is S.PAUSED
    assert broken.touched == sizes(n, broken.plan.waves)[0][0], "one canary, or a quarter of them"
    assert broken.rollout.reason.startswith("failures: ")
    assert "d0 failed (NaN)" in broken.rollout.reason


@pytest.mark.parametrize("state", ["failed", "refused", "rolled-back", "held"])
def test_failures_stop_it_at_the_first_wave_and_name_the_devices(state: str) -> None:
    play = Play(200, says(state, "it is not finite")).run(86_400)
    assert (play.rollout.state, play.touched) == (S.REVERTED, 10), "above health.revert; those went back by themselves"
    assert "10 of 10 devices failed: d0" in play.rollout.reason
    assert all(wants(play.rollout, target) in ("", "never") for target in play.targets.values())


def test_worse_model_is_stopped_or_held_and_never_passes() -> None:
    first = Play(200, runs(BAD)).run(9 * 86_400, 7200)
    assert (first.rollout.state, first.touched) == (S.HELD, 10)
    assert first.rollout.reason.startswith("looks-worse-accuracy: ")
    play = Play(400, runs(GOOD))
    play.run(1800, 600)
    play.devices = dict.fromkeys(play.devices, runs(BAD))
    play.run(9 * 86_400, 7200)
    assert (play.rollout.state, play.touched) == (S.PAUSED, 100)
    assert play.rollout.reason.startswith("worse-accuracy: ")


def test_without_labels_it_holds_after_the_canaries_and_says_what_it_cannot_know() -> None:
    play = Play(200, runs(Pairs(compared=300, differ=30))).run(9 * 86_400, 7200)
    assert (play.rollout.state, play.touched) == (S.HELD, 50)
    assert play.rollout.reason == ("few-judges: 0 of 50 canaries have labels, 30 needed; answers agree on 90.0%")
    play.order(E.RESUME)
    play.run(2 * 86_400)
    assert (play.rollout.state, play.touched) == (S.HELD, 100), "a person answers for one wave"
    agreeing = Play(200, runs(Pairs(compared=300, differ=0))).run(5 * 86_400)
    assert agreeing.rollout.state is S.COMPLETED, "the same answers are proof"
    unjudged = Play(3, says("probation", "not judged: 0 recent labels, 20 needed"))
    for _ in range(10):
        unjudged.tick()
    assert (unjudged.rollout.state, unjudged.touched) == (S.HELD, 1)
    assert "could judge it" in unjudged.rollout.reason
    unjudged.order(E.RESUME)
    for _ in range(10):
        unjudged.tick()
    assert (unjudged.rollout.state, unjudged.states()) == (S.COMPLETED, {"active": 3})


def test_labels_that_come_late_are_looked_at_where_nobody_could_judge_a_small_rollout() -> None:
    """Two canaries of ten, without labels at first: what comes then lets it go on, or is why it stands."""
    few, worse = Pairs(labelled=12, only_old=12), Pairs(labelled=40, only_old=40)
    for late, state, words in (
        ([SAME, SAME], S.COMPLETED, ""),
        ([SAME], S.COMPLETED, ""),
        ([BAD, BAD], S.HELD, "looks-worse-accuracy: "),
        ([worse], S.HELD, "looks-worse-accuracy: "),  # the other one has no labels yet: it does not speak for it
        ([SAME, worse], S.HELD, "looks-worse-accuracy: "),
        ([few, few], S.HELD, "few-judges: none of"),
    ):
        play = Play(10, says("active", "not judged: 0 recent labels, 20 needed"))
        play.run(86_400)
        assert (play.rollout.state, play.touched) == (S.HELD, 2)
        version = play.rollout.version
        active = [target for target in play.targets.values() if target.state is T.ACTIVE]
        for target, pairs in zip(active, late, strict=False):
            play.take(reported(play.rollout, target, Report(state="active", pairs=pairs), play.now_s))
        play.devices = dict.fromkeys(play.devices, runs(SAME))
        play.run(86_400)
        assert play.rollout.state is state
        assert play.rollout.reason.startswith(words)
        assert (play.rollout.version > version) == (few not in late)


def test_labels_that_come_late_let_a_held_rollout_go_on() -> None:
    play = Play(200, runs(Pairs())).run(5 * 86_400)
    assert (play.rollout.state, play.touched) == (S.HELD, 50)
    for target in list(play.targets.values()):
        if target.state is T.ACTIVE:
            play.take(reported(play.rollout, target, Report(state="active", pairs=GOOD), play.now_s))
    play.devices = dict.fromkeys(play.devices, runs(GOOD))
    play.run(3 * 86_400)
    assert play.rollout.state is S.COMPLETED


def test_deadlines_count_connected_time_and_silence_after_activation_counts_always() -> None:
    play = Play(4, lambda _: None, waves=["100 %"])
    for i in (1, 3):
        play.presence[f"d{i}"] = Presence(is_online=False, heard_s=60.0)
    play.tick()
    assert play.states() == {"offered": 4}
    for i in (2, 3):
        play.take(reported(play.rollout, play.targets[f"d{i}", ""], Report(state="probation"), play.now_s))
    play.run(7300, 60)
    found = {target.device: target.state for target in play.targets.values()}
    assert found == {"d0": T.OFFERED, "d1": T.OFFERED, "d2": T.TIMED_OUT, "d3": T.TIMED_OUT}
    assert play.rollout.state is S.PAUSED
    play.run(86_400, 60)
    found = {target.device: target.state for target in play.targets.values()}
    assert (found["d0"], found["d1"]) == (T.TIMED_OUT, T.OFFERED), "only connected time is used up"
    play.take(reported(play.rollout, play.targets["d2", ""], Report(state="active"), play.now_s))
    assert play.targets["d2", ""].state is T.ACTIVE, "a late word corrects silence"


def test_absent_devices_are_waited_for_by_nobody_and_get_it_when_they_come() -> None:
    play = Play(20, runs(), waves=["100 %"])
    for i in range(5):
        play.presence[f"d{i}"] = Presence(heard_s=ABSENT_S + 1)
    play.run(3600, 600)
    assert (play.rollout.state, play.states()) == (S.COMPLETED, {"active": 15, "absent": 5})
    play.presence["d0"] = HERE
    play.run(1200, 600)
    assert play.targets["d0", ""].state is T.ACTIVE
    most = Play(20, runs(), waves=["50 %", "100 %"])
    for i in range(6):
        most.presence[f"d{i}"] = Presence(heard_s=ABSENT_S + 1)
    most.run(3600, 600)
    assert (most.rollout.state, most.rollout.reason) == (S.HELD, "quorum: 6 of 10 devices of the wave are absent")
    most.presence = dict.fromkeys(most.presence, HERE)
    most.run(3600, 600)
    assert most.rollout.state is S.COMPLETED


def test_only_so_many_fetch_at_one_time() -> None:
    play = Play(40, lambda _: None, waves=["100 %"], pace={"transfers": 7})
    play.tick()
    assert play.states() == {"offered": 7, "waiting": 33}
    play.devices = dict.fromkeys(play.devices, runs())
    for _ in range(12):
        play.tick()
        assert play.states().get("offered", 0) <= 7
    assert play.states() == {"active": 40}


def test_pause_lets_nothing_be_activated_and_resume_goes_on_where_it_was() -> None:
    play = Play(200, lambda _: None)
    play.tick()
    with pytest.raises(RolloutError, match="reason"):
        play.order(E.RESUME, why=" ")
    play.order(E.PAUSE)
    assert {wants(play.rollout, target) for target in play.targets.values()} == {"wait", ""}
    with pytest.raises(RolloutError, match="already"):
        play.order(E.PAUSE)
    play.devices = dict.fromkeys(play.devices, runs(GOOD))
    play.run(86_400)
    assert play.states() == {"offered": 10, "waiting": 190} or play.states() == {"timed-out": 10, "waiting": 190}
    play.order(E.RESUME)
    assert play.rollout.state is S.OPENING


def test_pause_all_offers_nothing_and_loses_no_state() -> None:
    play = Play(200, runs(GOOD))
    play.tick()
    play.halted = True
    play.run(5 * 86_400)
    assert play.touched == 10
    play.halted = False
    play.run(4 * 86_400)
    assert play.rollout.state is S.COMPLETED


def test_abort_takes_back_what_is_on_its_way_and_leaves_what_runs() -> None:
    play = Play(8, lambda _: None, waves=["50 %", "100 %"])
    play.tick()
    for i, state in enumerate(("probation", "active", "staged")):
        play.take(reported(play.rollout, play.targets[f"d{i}", ""], Report(state=state), play.now_s))
    play.order(E.ABORT)
    assert play.rollout.state is S.ABORTED
    assert play.states() == {"probation": 1, "active": 1, "superseded": 6}
    assert wants(play.rollout, play.targets["d2", ""]) == "never"
    assert wants(play.rollout, play.targets["d1", ""]) == "now", "it stays where it runs"
    for event in (E.PAUSE, E.RESUME, E.RETRY, E.START):
        with pytest.raises(RolloutError, match="aborted"):
            play.order(event)
    play.order(E.REVERT)
    assert play.rollout.state is S.REVERTING
    play.run(1200, 600)
    assert (play.rollout.state, play.states()) == (S.REVERTED, {"reverted": 2, "superseded": 6})


def test_revert_is_asked_for_or_comes_by_plan_or_by_very_many_failures() -> None:
    play = Play(20, runs(), waves=["50 %", "100 %"], on_stop="revert")
    play.tick()
    for i in range(2):
        play.take(reported(play.rollout, play.targets[f"d{i}", ""], Report(state="rolled-back"), play.now_s))
    play.tick()
    assert play.rollout.state is S.REVERTING
    play.run(1200, 600)
    assert (play.rollout.state, play.states()) == (S.REVERTED, {"reverted": 8, "rolled-back": 2, "superseded": 10})
    many = Play(40, runs(), waves=["100 %"])
    many.tick()
    for i in range(9):
        many.take(reported(many.rollout, many.targets[f"d{i}", ""], Report(state="rolled-back"), many.now_s))
    many.run(1200, 600)
    assert many.rollout.state is S.REVERTED, "9 of 40 are above health.revert"


def test_what_failed_before_a_person_went_on_pauses_it_no_more_and_what_fails_since_does() -> None:
    play = Play(40, runs(), waves=["50 %", "100 %"], soak=["1 min"])
    play.devices |= {f"d{i}": says("failed", "disk full") for i in range(3)}
    for _ in range(4):
        play.tick()
    assert play.rollout.state is S.PAUSED
    play.order(E.RESUME, why="three cards are broken")
    play.run(1200, 60)
    assert (play.rollout.state, play.states()) == (S.COMPLETED, {"failed": 3, "active": 37})
    assert "paused resume opening" in play.said

    # The same with two more that fail since: named are those, and all together bring the older bytes back.
    play = Play(40, runs(), waves=["50 %", "100 %"], soak=["1 min"])
    play.devices |= {f"d{i}": says("failed", "disk full") for i in (0, 1, 2, 20, 21)}
    for _ in range(4):
        play.tick()
    play.order(E.RESUME, why="three cards are broken")
    play.run(1200, 60)
    assert play.rollout.state is S.PAUSED
    assert play.rollout.reason.startswith("failures: 2 of 20 devices failed: d20 failed (disk full), d21 failed")
    play.order(E.RESUME, why="two more")
    play.tick()
    for i in range(3, 8):
        play.take(reported(play.rollout, play.targets[f"d{i}", ""], Report(state="rolled-back"), play.now_s))
    play.tick()
    assert play.rollout.state is S.REVERTING, "10 of 40"


def test_retry_offers_it_again_to_those_that_failed() -> None:
    play = Play(3, says("failed", "disk full"))
    for _ in range(5):
        play.tick()
    assert play.rollout.state is S.PAUSED
    play.devices = dict.fromkeys(play.devices, runs(Pairs()))
    play.order(E.RETRY)
    assert play.states() == {"offered": 1, "waiting": 2}
    assert play.targets["d0", ""].attempt == 2
    with pytest.raises(RolloutError, match="no failed device"):
        play.order(E.RETRY)
    play.order(E.RESUME)
    for _ in range(10):
        play.tick()
    assert (play.rollout.state, play.states()) == (S.COMPLETED, {"active": 3})


def test_excluded_device_goes_back_and_counts_neither_way() -> None:
    play = Play(3, says("failed", "disk full"))
    for _ in range(5):
        play.tick()
    play.take(exclude(play.rollout, play.targets["d0", ""], play.now_s, who="ann", why="broken disk"))
    play.devices = dict.fromkeys(play.devices, runs(Pairs()))
    play.order(E.RESUME)
    for _ in range(10):
        play.tick()
    assert (play.rollout.state, play.states()) == (S.COMPLETED, {"excluded": 1, "active": 2})
    play.take(exclude(play.rollout, play.targets["d1", ""], play.now_s))
    assert play.targets["d1", ""].state is T.REVERTING
    with pytest.raises(RolloutError, match="out already"):
        play.take(exclude(play.rollout, play.targets["d0", ""], play.now_s))


def test_start_waits_for_its_time() -> None:
    play = Play(3, runs(), begin=False, start={"at": "2026-12-01T02:00:00+00:00"})
    at_ms = play.plan.start.at_ms
    play.order(E.START)
    step = advance(play.rollout, play.targets.values(), play.presence, 1.0, wall_ms=at_ms - 1)
    assert step.rollout.state is S.READY
    step = advance(play.rollout, play.targets.values(), play.presence, 1.0, wall_ms=at_ms)
    assert step.rollout.state is S.OPENING


def test_device_without_a_plan_of_its_own_joins_a_completed_rollout() -> None:
    play = Play(3, runs(Pairs()))
    for _ in range(10):
        play.tick()
    joined = Target(device="new", model="", wave=play.rollout.wave, place=3)
    play.targets[joined.key], play.presence["new"], play.devices["new"] = joined, HERE, runs(Pairs())
    play.tick()
    play.tick()
    assert play.targets["new", ""].state is T.ACTIVE


def test_old_words_and_repeats_change_nothing_and_larger_sums_are_kept() -> None:
    play = Play(1, lambda _: None)
    play.tick()
    target = play.targets["d0", ""]
    for state in ("active", "active", "probation", "staged", "idle", "nonsense", "fetching"):
        play.take(reported(play.rollout, play.targets["d0", ""], Report(state=state, pairs=GOOD), play.now_s))
    assert play.targets["d0", ""].state is T.ACTIVE
    play.take(reported(play.rollout, play.targets["d0", ""], Report(state="active", pairs=Pairs()), play.now_s))
    assert play.targets["d0", ""].pairs == GOOD, "a device that began to count anew"
    assert reported(play.rollout, target, Report(state="fetching"), play.now_s).targets == {}


def test_no_sequence_of_words_and_orders_breaks_a_rollout_or_skips_a_wave() -> None:
    """Every pair of orders at every moment, over devices that do all kinds of things."""
    kinds = [runs(GOOD), says("failed"), says("rolled-back"), says("probation"), lambda _: None]
    orders = [E.PAUSE, E.RESUME, E.RETRY, E.ABORT, E.REVERT, E.OVERTAKEN]
    for one, two, at in itertools.product(orders, orders, (1, 3, 9)):
        play = Play(12, runs(GOOD), waves=[2, "50 %", "100 %"])
        play.devices = {f"d{i}": kinds[i % len(kinds)] if i > 2 else runs(GOOD) for i in range(12)}
        seen = [play.rollout.wave]
        for tick in range(24):
            if tick in (at, at + 2):
                with contextlib.suppress(RolloutError):
                    play.order(one if tick == at else two)
            play.tick(30)
            seen.append(play.rollout.wave)
        assert all(b - a in (0, 1) for a, b in itertools.pairwise(seen)), "waves open one by one"
        done = sum(target.state not in (T.WAITING, T.SUPERSEDED) for target in play.targets.values())
        assert done <= sizes(12, play.plan.waves)[max(play.rollout.wave, 0)][0]
        for target in play.targets.values():
            assert target.state in FAILURES or wants(play.rollout, target) in ("now", "wait", "never", "")


def test_values_are_left_as_they_were() -> None:
    play = Play(3, runs(), begin=False)
    before = (play.rollout, dict(play.targets))
    order(play.rollout, play.targets.values(), E.START, 1.0)
    advance(replace(play.rollout, state=S.OPENING, wave=0), play.targets.values(), play.presence, 5.0)
    assert before == (play.rollout, play.targets)
    assert Plan(release=1) == Plan(release=1)
