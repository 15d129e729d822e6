"""Devices judge a head before its rollout begins: who is asked, what they may say, and what follows; light devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel import topics
from edge.channel.messages import Pairs, Reply
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.devices.admission import Decision
from edge.coordinator.learning.evaluations import in_turn
from edge.coordinator.learning.release_policy import ReleasePolicy
from edge.coordinator.pages.learning_view import learning
from edge.coordinator.pages.render import fragments
from edge.coordinator.pages.rollout_view import rollout as page
from edge.coordinator.records import Judge
from edge.coordinator.rollout.gates import Decision as Came
from edge.coordinator.rollout.gates import beforehand
from edge.coordinator.rollout.plan import Model, of_document
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease
from tests.support.contributions import Make, bundle, policy_of, shuffled, statistics_update
from tests.support.light_fleet import Fleet, ends

NewFleet = Callable[..., Fleet]
BY_THREE = ReleasePolicy().judged_by(3)
__all__ = ["bundle", "statistics_update"]
# Of 40 labels: what the head alone, and the one before alone, had right.
BETTER, EQUAL, WORSE = (10, 2), (2, 2), (2, 20)


@pytest.fixture
def new(tmp_path: Path, digits_bundle: Path) -> Iterator[NewFleet]:
    """Make fleets in which all devices agree and have 40 labels."""
    made: list[Fleet] = []

    def make(n: int = 5, **options: Any) -> Fleet:
        made.append(Fleet(tmp_path / str(len(made)), digits_bundle, n, ends("active"), **options))
        for device in made[-1].devices.values():
            device.labels, device.evaluates = 40, True
            device.connect()
        made[-1].deliver()
        return made[-1]

    yield make
    for each in made:
        each.close()


def begin(fleet: Fleet, **start: Any) -> int:
    """A rollout in one wave that three devices judge first."""
    number = fleet.start_plan(waves=["100 %"], model="off", start={"judges": 3, "within": "10 min", **start})
    fleet.pass_time(10, 5)
    return number


def answer(fleet: Fleet, name: str, counts: tuple[int, int], labelled: int = 40, number: int = 1, **more: Any) -> None:
    only_new, only_old = counts
    out = {"labelled": labelled, "both": 0, "only_new": only_new, "only_old": only_old, **more}
    fleet.devices[name].say(topics.UP_REPLY, Reply(id=f"candidate-{number}", rc=0, detail="", out=out))


def answers(fleet: Fleet, **counts: tuple[int, int]) -> None:
    for name, each in counts.items():
        answer(fleet, name, each)
    fleet.pass_time(10, 5)


def told(fleet: Fleet, what: str) -> list[str]:
    assert fleet.store is not None
    return [each.detail for each in fleet.store.events.newest(100, name=f"candidate-{what}")[::-1]]


def judges(fleet: Fleet, number: int = 1) -> dict[str, Judge]:
    assert fleet.store is not None
    return {each.device: each for each in fleet.store.evaluations.judges(number)}


def evaluation(fleet: Fleet, number: int = 1) -> str:
    state: str = fleet.shown(number)["evaluation"]["state"]
    return state


def test_only_those_are_asked_that_agree_are_there_have_labels_and_are_trusted(new: NewFleet) -> None:
    fleet = new(8)
    for name, labels, evaluates in (("d000", 40, False), ("d001", 9, True)):
        fleet.devices[name].labels, fleet.devices[name].evaluates = labels, evaluates
        fleet.devices[name].connect()
    fleet.core.decide("d002", Decision.QUARANTINE, "kim", "odd", fleet.now)
    assert fleet.store is not None
    number = begin(fleet, judges=5)
    plan = of_document({"release": 1, "start": {"judges": 5}})
    assert fleet.core.rollouts.plan(plan, fleet.now)["agree"] == 6, "also who has too few labels by now"
    assert fleet.state(number) == "draft"
    assert set(judges(fleet)) == {f"d{i:03}" for i in range(3, 8)}
    asked = {name: len(device.asked) for name, device in fleet.devices.items()}
    assert {name for name, count in asked.items() if count} == set(judges(fleet))
    candidate = fleet.devices["d003"].asked[0]
    release = fleet.store.releases.get(1)
    assert release is not None
    assert (candidate.number, candidate.model, candidate.digest) == (number, "digits", release.digest)
    assert fleet.touched == 0, "nobody is given it"


def test_twice_as_many_as_needed_are_asked_and_others_in_place_of_those_who_cannot(new: NewFleet) -> None:
    fleet = new(9)
    begin(fleet)
    first = set(judges(fleet))
    assert len(first) == 6
    refuses, has_few, *_ = sorted(first)
    fleet.devices[refuses].say(topics.UP_REPLY, Reply(id="candidate-1", rc=1, detail="not mine", out={}))
    answer(fleet, has_few, EQUAL, labelled=9)
    fleet.pass_time(10, 5)
    assert len(judges(fleet)) == 8, "two more"
    assert (judges(fleet)[refuses].state, judges(fleet)[refuses].detail) == ("refused", "not mine")


def test_those_who_lent_the_head_something_are_asked_only_where_there_are_too_few_others() -> None:
    found, inside = ["a", "b", "c", "d", "e"], {"a", "c"}
    assert set(in_turn(found, inside, (), "seed", 3, 6)) == {"b", "d", "e"}
    assert len(in_turn(found, inside, (), "seed", 1, 2)) == 2
    four = in_turn(found, inside, (), "seed", 4, 8)
    assert (set(four[:3]), four[3] in inside) == ({"b", "d", "e"}, True)
    assert set(in_turn(found, found, (), "seed", 3, 6)) < set(found), "better those than none"
    assert four == in_turn(found[::-1], inside, (), "seed", 4, 8)
    assert len({tuple(in_turn(found, (), (), str(seed), 3, 6)) for seed in range(20)}) > 5
    assert set(in_turn(found, inside, {"b"}, "seed", 3, 6)) < {"a", "c", "d", "e"}, "who was left out comes last"
    assert set(in_turn(found, inside, {"a", "b"}, "seed", 5, 9)) == set(found), "and is better than none"


@pytest.mark.parametrize(("counts", "state"), [(BETTER, "completed"), (EQUAL, "completed"), (WORSE, "aborted")])
def test_what_the_middle_of_them_says_decides_whatever_one_of_five_says(
    new: NewFleet, counts: tuple[int, int], state: str
) -> None:
    fleet = new()
    number = begin(fleet)
    lie = (0, 40) if state == "completed" else (40, 0)
    answers(fleet, d000=counts, d001=counts, d002=lie, d003=counts)
    assert fleet.state(number) == "draft", "one has not answered yet"
    answers(fleet, d004=counts)
    fleet.pass_time(60, 5)
    assert fleet.state(number) == state
    assert fleet.touched == (5 if state == "completed" else 0)
    assert fleet.store is not None
    (release,) = fleet.store.releases.all()
    what = "passed" if state == "completed" else "lost"
    (text,) = told(fleet, what)
    assert text.startswith(f"release {release.counter}: ")
    assert "in the middle of 5 devices" in text
    assert evaluation(fleet) == what


def test_what_is_said_twice_or_of_nothing_asked_or_cannot_be_counts_not(new: NewFleet) -> None:
    fleet = new(6)
    fleet.devices["d005"].evaluates = False
    fleet.devices["d005"].connect()
    begin(fleet)
    answer(fleet, "d000", EQUAL)
    answer(fleet, "d000", WORSE)
    answer(fleet, "d005", WORSE)
    answer(fleet, "d001", (41, 0))
    answer(fleet, "d002", (1, 1), only_old=float("1e300"))
    answer(fleet, "d003", (1, 1), labelled=10**9)
    answer(fleet, "d004", WORSE, number=99)
    fleet.devices["d004"].say(topics.UP_REPLY, Reply(id="candidate-x", rc=0, detail="", out={}))
    found = judges(fleet)
    assert (found["d000"].only_old, found["d000"].state) == (2, "answered")
    assert {name: found[name].state for name in ("d001", "d002", "d003", "d004")} == {
        "d001": "refused", "d002": "refused", "d003": "refused", "d004": "open",
    }  # fmt: skip
    assert "d005" not in found


def test_who_is_quarantined_meanwhile_has_no_voice(new: NewFleet) -> None:
    fleet = new(4)
    number = begin(fleet)
    answers(fleet, d000=WORSE, d001=WORSE, d002=EQUAL)
    for name in ("d000", "d001"):
        fleet.core.decide(name, Decision.QUARANTINE, "kim", "odd", fleet.now)
    answers(fleet, d003=EQUAL)
    assert (fleet.state(number), evaluation(fleet)) == ("draft", "asking")


def test_too_few_answers_are_no_judgement_and_a_person_leads_on(new: NewFleet) -> None:
    fleet = new()
    number = begin(fleet)
    answers(fleet, d000=BETTER, d001=BETTER)
    fleet.pass_time(500, 60)
    assert evaluation(fleet) == "asking"
    fleet.pass_time(200, 60)
    shown = fleet.shown(number)
    assert (shown["state"], shown["evaluation"]["state"]) == ("draft", "unjudged")
    assert shown["reason"] == "not judged: 2 of 3 devices with labels answered within 10 min"
    assert len(told(fleet, "unjudged")) == 1
    assert fleet.store is not None
    assert [each.subject for each in fleet.store.alerts.open()] == [f"rollout {number}"], "a person is told"
    with pytest.raises(RolloutError, match=r"begins when devices have judged its head"):
        fleet.core.rollouts.order(number, RolloutEvent.START, "kim", "", fleet.now)
    with pytest.raises(RolloutError, match="to resume needs a reason"):
        fleet.core.rollouts.order(number, RolloutEvent.RESUME, "kim", "", fleet.now)
    fleet.core.rollouts.order(number, RolloutEvent.RESUME, "kim", "tried it myself", fleet.now)
    fleet.pass_time(60, 5)
    assert (fleet.state(number), evaluation(fleet), fleet.touched) == ("completed", "dropped", 5)


def test_who_answers_late_still_counts(new: NewFleet) -> None:
    fleet = new()
    number = begin(fleet)
    answers(fleet, d000=WORSE, d001=WORSE)
    fleet.pass_time(700, 60)
    assert evaluation(fleet) == "unjudged"
    answers(fleet, d002=WORSE)
    assert (fleet.state(number), evaluation(fleet)) == ("aborted", "lost")


def test_what_devices_judged_worse_is_given_to_all_by_nobody_who_does_not_insist(new: NewFleet) -> None:
    fleet = new()
    begin(fleet)
    answers(fleet, d000=WORSE, d001=WORSE, d002=WORSE, d003=WORSE, d004=WORSE)
    assert evaluation(fleet) == "lost"
    lost = fleet.store and fleet.store.releases.get(1)
    assert lost is not None
    what: tuple[Any, ...] = (lost.digest, "head", lost.backbone, [], "again", fleet.now)
    other = fleet.core.add_artifact(replace(HeadRelease.decode(fleet.head, ""), origin="other").encode(), Path("h"))
    fleet.core.push(other["digest"], *what[1:])
    ways: list[Callable[..., Any]] = [
        lambda **force: fleet.core.rollback(fleet.now, to=1, **force),
        lambda **force: fleet.core.push(*what, **force),
        lambda **force: fleet.core.roll_out(*what, **force),
    ]
    for way in ways:
        with pytest.raises(RolloutError, match=r"devices judged it before rollout 1: worse on devices: .*--force"):
            way()
    plan = of_document({"release": 1, "start": {"judges": 3}})
    assert "worse on devices" in fleet.core.rollouts.plan(plan, fleet.now)["judged"]
    # One that stopped at its canaries never went through either.
    number = fleet.core.roll_out(other["digest"], *what[1:])[1].id
    stopped = fleet.shown(number)["release"]
    fleet.core.rollouts.order(number, RolloutEvent.ABORT, "kim", "it smokes", fleet.now)
    third = fleet.core.add_artifact(replace(HeadRelease.decode(fleet.head, ""), origin="third").encode(), Path("h"))
    fleet.core.push(third["digest"], *what[1:])
    with pytest.raises(RolloutError, match=f"never went through: rollout {number} is aborted, it smokes. --force"):
        fleet.core.rollback(fleet.now, to=stopped)
    for way in ways:
        way(force=True)


def test_a_short_time_to_answer_is_as_long_as_it_says_and_what_is_left_of_it_is_told(new: NewFleet) -> None:
    fleet = new()
    fleet.pass_time(33, 1)
    fleet.start_plan(waves=["100 %"], model="off", start={"judges": 3, "within": "20 s"})
    left = []
    while evaluation(fleet) == "asking":
        left.append(fleet.shown(1)["evaluation"]["left_s"])
        fleet.pass_time(1, 1)
        assert len(left) < 40
    assert 20 <= len(left) <= 21
    assert left[0] == 20
    assert all(0 <= each - (20 - i) <= 5 for i, each in enumerate(left)), f"it is looked at each 5 s: {left}"


def test_a_plan_may_go_on_without_a_judgement_and_that_is_said(new: NewFleet) -> None:
    fleet = new()
    number = begin(fleet, unjudged="go")
    fleet.pass_time(700, 60)
    assert fleet.state(number) == "completed"
    assert "not judged: 0 of 3" in told(fleet, "passed")[0]


def test_the_page_follows_rollouts_whether_devices_judge_them_or_not(new: NewFleet) -> None:
    fleet = new()
    number, other = begin(fleet), fleet.start_plan(supersede=True)
    frame = {
        "fleet": "lab", "version": "1", "path": "/", "me": type("Me", (), {"is_proved": False}), "can": True,
        "form_token": "", "now_ms": fleet.now.wall_ms, "line": fleet.core.dialogue.line.state,
    }  # fmt: skip
    assert fleet.store is not None
    parts = {}
    for each in (number, other):
        shown = page(fleet.store, each, fleet.core.dialogue.line.state, fleet.now)
        parts[each] = fragments("rollout.html", frame | shown)
    assert [("d003" in parts[each]["live_judges"]) for each in (number, other)] == [True, False]


def test_it_begins_when_devices_and_people_have_approved_in_either_order(new: NewFleet) -> None:
    for first in ("devices", "people"):
        fleet = new()
        number = begin(fleet, approvals=1)
        if first == "people":
            assert str(fleet.core.rollouts.approve(number, "kim", "", fleet.now).state) == "draft"
        answers(fleet, **{f"d{i:03}": EQUAL for i in range(5)})
        if first == "devices":
            assert (fleet.state(number), evaluation(fleet)) == ("draft", "passed")
            assert "1 approvals are needed" in told(fleet, "passed")[0]
            fleet.core.rollouts.approve(number, "kim", "", fleet.now)
        fleet.pass_time(60, 5)
        assert fleet.state(number) == "completed"


def test_killed_after_any_answer_it_goes_on_and_asks_again_whom_it_asked(new: NewFleet) -> None:
    """faults: 31. What was asked and said is rows."""
    fleet = new()
    number = begin(fleet)
    before = judges(fleet)
    for i, name in enumerate(sorted(fleet.devices)):
        assert fleet.state(number) == "draft", i
        fleet.start()  # as after kill -9
        fleet.devices[name].asked.clear()
        fleet.devices[name].connect()
        fleet.deliver()
        assert fleet.devices[name].asked, "who has not answered is asked again"
        answer(fleet, name, WORSE)
        fleet.start()
        fleet.pass_time(10, 5)
    assert set(judges(fleet)) == set(before)
    assert (fleet.state(number), len(told(fleet, "lost"))) == ("aborted", 1)


def test_what_goes_wrong_while_it_is_decided_leaves_all_as_it_was(
    new: NewFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = new()
    number = begin(fleet)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(fleet.core.rollouts, "make_way", fails)
    answers(fleet, **{f"d{i:03}": EQUAL for i in range(5)})
    assert (fleet.state(number), evaluation(fleet), told(fleet, "passed")) == ("draft", "asking", [])
    monkeypatch.undo()
    fleet.pass_time(60, 5)
    assert (fleet.state(number), len(told(fleet, "passed"))) == ("completed", 1)


def test_a_person_who_ends_it_ends_the_asking(new: NewFleet) -> None:
    fleet = new()
    number = begin(fleet)
    fleet.core.rollouts.order(number, RolloutEvent.ABORT, "kim", "wrong file", fleet.now)
    fleet.pass_time(10, 5)
    for device in fleet.devices.values():
        device.asked.clear()
        device.connect()
    fleet.pass_time(10, 5)
    assert evaluation(fleet) == "dropped"
    assert not any(device.asked for device in fleet.devices.values())


def test_what_is_forgotten_of_a_device_is_its_answers_too(new: NewFleet) -> None:
    fleet = new()
    begin(fleet)
    answers(fleet, d000=BETTER)
    assert fleet.store is not None
    fleet.store.evaluations.forget("d000")
    assert "d000" not in judges(fleet)


def test_a_merge_is_judged_by_others_than_those_in_it_and_what_it_was_made_of_is_merged_again_when_it_lost(
    new: NewFleet, statistics_update: Make
) -> None:
    fleet = new(6, auto_merge=True, merge_delay_s=0.0, policy=policy_of(screen=False), release_policy=BY_THREE)
    for i in (0, 1):
        fleet.core.learning.take(f"d00{i}", statistics_update(i).encode(), fleet.now)
    fleet.pass_time(10, 5)
    assert set(judges(fleet)) == {"d002", "d003", "d004", "d005"}
    answers(fleet, d002=WORSE, d003=WORSE, d004=WORSE, d005=WORSE)
    assert (fleet.state(1), evaluation(fleet)) == ("aborted", "lost")
    fleet.pass_time(600, 60)
    assert fleet.store is not None
    assert len(fleet.store.releases.all()) == 1, "the same again would lose again"
    fleet.core.learning.take("d002", statistics_update(2).encode(), fleet.now)
    fleet.pass_time(10, 5)
    newest = fleet.store.releases.all()[0]
    assert (newest.counter, len(fleet.core.receipts.included(newest))) == (2, 3)
    for name in ("d003", "d004", "d005"):
        answer(fleet, name, BETTER, number=2)
    fleet.pass_time(60, 5)
    assert fleet.state(2) == "completed"
    assert {device.release for device in fleet.devices.values()} == {2}


def test_devices_that_a_merge_left_out_cannot_stop_it(new: NewFleet, bundle: Bundle, statistics_update: Make) -> None:
    fleet = new(auto_merge=True, merge_delay_s=15.0, policy=policy_of(), release_policy=BY_THREE)
    right, wrong = ("d000", "d001", "d002"), ("d003", "d004")
    for i, name in enumerate(right):
        fleet.core.learning.take(name, statistics_update(i).encode(), fleet.now)
    for i, name in enumerate(wrong):
        fleet.core.learning.take(name, shuffled(bundle, i, name).encode(), fleet.now)
    fleet.pass_time(30, 5)
    assert fleet.store is not None
    assert {each.device for each in fleet.store.contributions.refused()} == set(wrong)
    assert {each.device for each in learning(fleet.store, fleet.core.releases)["faults"]} == set(wrong), "it is said"
    assert set(judges(fleet)) == set(right), "of whose learning it is, but there is nobody better"
    answers(fleet, **dict.fromkeys(judges(fleet), BETTER))
    assert evaluation(fleet) == "passed"


def test_forgetting_ends_the_asking_about_a_head_that_has_it_in_and_waits_for_no_judge(
    new: NewFleet, statistics_update: Make
) -> None:
    fleet = new(auto_merge=True, merge_delay_s=0.0, policy=policy_of(screen=False), release_policy=BY_THREE)
    for i in (0, 1):
        fleet.core.learning.take(f"d00{i}", statistics_update(i).encode(), fleet.now)
    fleet.pass_time(10, 5)
    assert fleet.state(1) == "draft"
    fleet.core.forget("d000", fleet.now)
    fleet.pass_time(60, 5)
    assert (fleet.state(1), evaluation(fleet)) == ("aborted", "dropped")
    assert "is to be forgotten" in told(fleet, "dropped")[0]
    assert fleet.store is not None
    newest = fleet.store.releases.all()[0]
    assert newest.reason.endswith("without what was forgotten")
    assert {device.release for device in fleet.devices.values()} == {newest.counter}


def test_bundles_are_not_judged_so_and_two_of_whom_one_may_lie_judge_nothing(new: NewFleet) -> None:
    fleet = new()
    kept = fleet.core.add_artifact(fleet.bundle_path.read_bytes(), fleet.bundle_path)
    made = fleet.core.releases.push(kept["digest"], "bundle", kept["backbone"], [], "t", fleet.now, at_once=False)
    plan = of_document({"release": made.counter, "start": {"judges": 3}})
    with pytest.raises(RolloutError, match="devices try heads before they go out, and release 1 is a bundle"):
        fleet.core.rollouts.start(plan, "ann", fleet.now)
    assert fleet.store is not None
    assert fleet.store.rollouts.all() == []
    with pytest.raises(ConfigError, match="1 may say anything"):
        of_document({"release": 1, "start": {"judges": 2}})
    assert of_document({"release": 1, "start": {"judges": 1}, "model": {"liars": 0.0}}).start.judges == 1


def test_the_short_form_asks_before_all_get_it_at_once_and_keeps_a_plan_that_is_there() -> None:
    found = ReleasePolicy().judged_by(3).plan_of(1, "")
    assert found is not None
    assert (found.start.judges, found.waves, found.model.off) == (3, ("100 %",), True)
    found = ReleasePolicy(plan={"waves": ["50 %", "100 %"], "start": {"approvals": 1}}).judged_by(4).plan_of(1, "")
    assert found is not None
    assert (found.start.judges, found.start.approvals, found.waves) == (4, 1, ("50 %", "100 %"))
    with pytest.raises(ValueError, match="ask more"):
        ReleasePolicy().judged_by(2)


def drawn(rng: np.random.Generator, gain: float, n: int, labels: int, lie: float | None) -> dict[str, Pairs]:
    """Judges whose true gain is this in the mean, with a spread of 4 points; answers differ on 6 % and the gain."""
    found = {}
    for i in range(n):
        own = float(rng.normal(gain, 0.04))
        differ = min(0.06 + abs(own), 1.0)
        better = (1 + own / differ) / 2
        new, old, _ = rng.multinomial(labels, [differ * better, differ * (1 - better), 1 - differ])
        found[str(i)] = Pairs(labelled=labels, only_new=float(new), only_old=float(old))
    if lie is not None:
        found["0"] = Pairs(labelled=labels, only_new=labels * (lie > 0), only_old=labels * (lie < 0))
    return found


@pytest.mark.parametrize("lie", [None, 1.0, -1.0])
def test_few_judges_stop_what_is_much_worse_and_let_go_what_is_equal(lie: float | None) -> None:
    rng = np.random.default_rng(16)
    stopped = {
        gain: np.mean([beforehand(drawn(rng, gain, 6, 64, lie), Model()).decision is Came.STOP for _ in range(400)])
        for gain in (-0.4, -0.1, 0.0, 0.05)
    }
    assert stopped[-0.4] == 1.0
    assert stopped[-0.1] > 0.75
    assert stopped[0.0] < (0.25 if lie == -1.0 else 0.1)
    assert stopped[0.05] < 0.02


def test_more_liars_than_may_be_do_not_get_a_broken_head_through_by_being_far_from_the_others() -> None:
    broken = Pairs(labelled=15, only_new=0, only_old=12)
    liars = {"a": Pairs(labelled=40, only_new=34, only_old=0), "b": Pairs(labelled=15, only_new=12, only_old=0)}
    for honest in (3, 4):
        said = {**{str(i): broken for i in range(honest)}, **liars}
        assert beforehand(said, Model()).decision is Came.STOP
