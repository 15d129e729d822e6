"""What canaries tell about a release: pure functions of numbers, to pass, to stop, or undecided.

**Health** counts failures. **The model gate** compares what the old and the new version answered to the same samples.
The *canary* is its unit: runs of like labels on one device cannot fake certainty. No canary moves a sum by more than c,
so liars cost their number times c whatever they say. It is looked at five times at most, and the bounds pay for that.
**The screen** is what a small wave can do: prove nothing, but hold what looks worse before more devices get it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from edge.channel.messages import Pairs
from edge.coordinator.rollout.plan import Health, Model, n_liars

Numbers = npt.NDArray[np.float64]

# The gate looks when the median judge has so many pairs.
LOOKS = (20, 40, 80, 160, 320)
# Pairs from which on a canary is a judge, and judges from which on there is a gate.
MIN_PAIRS, MIN_JUDGES = 10, 30
# One-sided 0.19 %: five looks spend less than 1 %.
_Z_PASS = 2.9
# To stop costs less than to pass: early looks stop sooner.
_Z_STOP_EARLY, _Z_STOP, _EARLY = 1.8, 2.6, 40
# A tenth of the margin pays for the skew of clipped means.
_OF_MARGIN = 0.9
# Share of judges that may have no pair that differs, and of those who may be hurt beside liars.
_MOST_ALIKE, _MOST_HURT = 0.15, 0.05
# No canary moves a sum by more, in units of its signal.
CLIP_ACCURACY, CLIP_AGREEMENT, CLIP_SPEED = 0.05, 0.03, 0.8
MARGIN_SPEED = math.log2(1.25)
# Pairs that the screen needs of the median canary, and canaries beside liars.
_SCREEN_PAIRS, _SCREEN_CANARIES = 20, 2
# Half the margin: ten canaries hold what lost 5 points in 99 % of waves (90 % where each of them lies with 10 %), and
# what gained 5 in 0.5 % at most. What changed nothing is often held, as it is by the gate (`benchmarks/fleet_gate.py`).
_OF_SCREEN = 0.5
# Standard errors, for devices that try a head before anybody runs it: what is equal goes on, the gates see it again.
_Z_BEFOREHAND = 2.0
# Without labels: a share of other answers that nobody explains.
_MOST_DIFFERENT = 0.2


class Decision(StrEnum):
    """What a gate came to."""

    PASS = "pass"  # noqa: S105  # a verdict
    STOP = "stop"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, and why.

    Attributes:
        decision: It.
        code: A word for programs: ``few-judges``, ``hurt`` and so on; "" where there is nothing to say.
        detail: The numbers, for people.
        is_severe: With a stop: those touched get the older bytes whatever the plan says.
    """

    decision: Decision
    code: str = ""
    detail: str = ""
    is_severe: bool = False


PASSED = Verdict(Decision.PASS)


def health(n_counted: int, n_failed: int, limits: Health, n_seen: int = 0) -> Verdict:
    """Whether failures stop a rollout.

    Args:
        n_counted: Targets that were touched and are not absent.
        n_failed: Of these, refused, failed, rolled back or timed out.
        limits: Of the plan; in a wave of one, one failure is all that there can be.
        n_seen: Of these, what a person went on from: it pauses nothing again. The older bytes come back by all that
            failed, once something fails anew.
    """
    n_new = n_failed - n_seen
    detail = f"{n_failed} of {n_counted} devices failed" + (f", {n_new} since a person went on" if n_seen else "")

    def is_over(limit: tuple[float, int], n_bad: int, n_all: int) -> bool:
        return n_bad > 0 and n_bad >= min(limit[1], n_all) and n_bad > limit[0] * n_all

    if n_new and is_over(limits.revert, n_failed, n_counted):
        return Verdict(Decision.STOP, "failures", detail, is_severe=n_failed >= limits.revert[1])
    return Verdict(Decision.STOP, "failures", detail) if is_over(limits.pause, n_new, n_counted - n_seen) else PASSED


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signal:
    """One signal of judges.

    Attributes:
        name: For people.
        x: ``(judges,)`` how much better the new version is.
        errors: ``(judges,)`` standard errors of these.
        is_alike: ``(judges,)`` no pair of it differs.
        pairs: ``(judges,)``.
        margin: What it may cost.
        clip: What one canary may say at most.
        names: Of the judges.
        unit: For people: by what x is multiplied, and its name.
    """

    name: str
    x: Numbers
    errors: Numbers
    is_alike: npt.NDArray[np.bool_]
    pairs: Numbers
    margin: float
    clip: float
    names: Sequence[str]
    unit: tuple[float, str]


def pass_rule(
    x: Numbers, errors: Numbers, is_alike: npt.NDArray[np.bool_], n_liars: int, margin: float, clip: float
) -> tuple[bool, str]:
    """Whether judges prove that the middle is not worse by the margin, and what is in the way: "" or a code.

    Args:
        x: ``(judges,)`` how much better the new version is.
        errors: ``(judges,)`` standard errors of these.
        is_alike: ``(judges,)`` no pair of it differs.
        n_liars: So many may say anything.
        margin: What a release may cost.
        clip: No judge moves the sum by more.
    """
    n = len(x)
    u = np.clip(x + _OF_MARGIN * margin, -clip, clip)
    if not u.sum() - n_liars * clip >= _Z_PASS * _sd(u) * math.sqrt(n):
        return False, "undecided"
    if is_alike.sum() > _MOST_ALIKE * n:
        return False, "few-differ"
    hurt = x + 2.0 * errors < -margin
    return (False, "hurt") if hurt.sum() > n_liars + _MOST_HURT * n else (True, "")


def stop_rule(x: Numbers, pairs: float, n_liars: int, clip: float) -> bool:
    """Whether judges prove that the middle is worse, whatever the liars among them say.

    Args:
        x: ``(judges,)`` how much better the new version is.
        pairs: Of the median judge.
        n_liars: So many may say anything.
        clip: No judge moves the sum by more.
    """
    v = np.clip(x, -clip, clip)
    z = _Z_STOP_EARLY if pairs <= _EARLY else _Z_STOP
    return bool(v.sum() + n_liars * clip <= -z * _sd(v) * math.sqrt(len(v)))


def agreement_rule(differ: Numbers, n_liars: int, margin: float, clip: float = CLIP_AGREEMENT) -> bool:
    """Whether answers agree so far that accuracy cannot have fallen by the margin: proof without a label.

    Args:
        differ: ``(judges,)`` share of predictions on which old and new differ.
        n_liars: So many may say anything.
        margin: What a release may cost.
        clip: No judge moves the sum down by more.
    """
    top = _OF_MARGIN * margin
    u = np.clip(top - differ, -clip, top)
    return bool(u.sum() - n_liars * top >= _Z_PASS * _sd(u) * math.sqrt(len(u)))


def _sd(values: Numbers) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.inf


def _accuracy(canaries: Mapping[str, Pairs], margin: float) -> _Signal:
    found = {name: pairs for name, pairs in canaries.items() if pairs.labelled >= MIN_PAIRS}
    n = np.array([pairs.labelled for pairs in found.values()])
    new = np.array([pairs.only_new for pairs in found.values()])
    old = np.array([pairs.only_old for pairs in found.values()])
    x = (new - old) / n if len(n) else n
    # Each pair is from -1 to 1, so its size is no less than its square: exact for classes, cautious for quantities.
    errors = np.sqrt(np.maximum((new + old) / n - np.square(x), 0.0) / n) if len(n) else n
    return _Signal(
        name="accuracy", x=x, errors=errors, is_alike=new + old == 0, pairs=n, margin=margin, clip=CLIP_ACCURACY,
        names=list(found), unit=(100.0, "points"),
    )  # fmt: skip


def _speed(canaries: Mapping[str, Pairs]) -> _Signal:
    found = {name: pairs for name, pairs in canaries.items() if pairs.old_ms > 0 and pairs.new_ms > 0}
    x = np.array([-math.log2(pairs.new_ms / pairs.old_ms) for pairs in found.values()])
    return _Signal(
        name="speed", x=x, errors=np.zeros(len(x)), is_alike=np.zeros(len(x), bool), pairs=np.full(len(x), math.inf),
        margin=MARGIN_SPEED, clip=CLIP_SPEED, names=list(found), unit=(1.0, "octaves"),
    )  # fmt: skip


def _differ(canaries: Mapping[str, Pairs]) -> tuple[Numbers, Numbers]:
    """Share of answers that differ, and of how many, by judge."""
    found = [pairs for pairs in canaries.values() if pairs.compared >= MIN_PAIRS]
    n = np.array([pairs.compared for pairs in found])
    return (np.array([pairs.differ for pairs in found]) / n if len(n) else n), n


def look(canaries: Mapping[str, Pairs], done: int) -> int:
    """How many of `LOOKS` are over when the gate looks now; `done` where there is nothing new to see."""
    accuracy, (_, compared) = _accuracy(canaries, 0.0), _differ(canaries)
    pairs = accuracy.pairs if len(accuracy.pairs) >= MIN_JUDGES else compared
    if not len(pairs):
        return done
    return max(done, sum(float(np.median(pairs)) >= each for each in LOOKS))


def model(canaries: Mapping[str, Pairs], rule: Model, groups: Mapping[str, Sequence[str]] | None = None) -> Verdict:
    """The model gate, for one look.

    Args:
        canaries: By name; those that said nothing with empty sums.
        rule: Of the plan.
        groups: By the value of a tag, who has it: each group must pass by itself.
    """
    found = _model(canaries, rule)
    for value, members in (groups or {}).items():
        if found.decision is not Decision.PASS:
            break
        part = _model({name: canaries[name] for name in members if name in canaries}, rule)
        if part.decision is not Decision.PASS:
            found = Verdict(part.decision, part.code, f"{value}: {part.detail}", part.is_severe)
    return found


def _model(canaries: Mapping[str, Pairs], rule: Model) -> Verdict:
    n, liars = len(canaries), n_liars(len(canaries), rule.liars)
    accuracy, speed = _accuracy(canaries, rule.margin), _speed(canaries)
    differ, _ = _differ(canaries)
    deciding = [signal for signal in (accuracy, speed) if len(signal.x) >= MIN_JUDGES]
    for signal in deciding:
        median = float(np.median(signal.pairs))
        if stop_rule(signal.x, median, liars, signal.clip):
            return Verdict(Decision.STOP, f"worse-{signal.name}", _said(signal, n))
    for signal in deciding:
        passes, code = pass_rule(signal.x, signal.errors, signal.is_alike, liars, signal.margin, signal.clip)
        if not passes and not (signal is accuracy and code == "few-differ" and _agree(differ, liars, rule)):
            return Verdict(Decision.UNDECIDED, code, _why(signal, code, n, liars))
    if accuracy in deciding:
        return Verdict(Decision.PASS, "", _said(accuracy, n))
    alike = agreement(canaries)
    few = f"{len(accuracy.x)} of {n} canaries have labels, {MIN_JUDGES} needed; {alike}"
    if _agree(differ, liars, rule):
        return Verdict(Decision.PASS, "", f"{alike}: accuracy cannot have fallen by more")
    return Verdict(Decision.UNDECIDED, "few-judges", few)


def agreement(canaries: Mapping[str, Pairs]) -> str:
    """How far answers before and after are the same, for people."""
    differ, _ = _differ(canaries)
    return f"answers agree on {1 - float(differ.mean()):.1%}" if len(differ) else "nothing compares the answers"


def _agree(differ: Numbers, liars: int, rule: Model) -> bool:
    return len(differ) >= MIN_JUDGES and agreement_rule(differ, liars, rule.margin)


def _said(signal: _Signal, n: int) -> str:
    """The middle of a signal and how sure it is, for people; of one judge what it says."""
    factor, unit = signal.unit
    if len(signal.x) == 1:
        return f"{signal.name} {factor * float(signal.x[0]):+.1f} {unit} by 1 judge of {n} canaries"
    v = np.clip(signal.x, -signal.clip, signal.clip)
    half = 1.96 * _sd(v) / math.sqrt(len(v))
    low, high = factor * (float(v.mean()) - half), factor * (float(v.mean()) + half)
    return f"{signal.name} {low:+.1f} to {high:+.1f} {unit} by {len(signal.x)} judges of {n} canaries"


def _why(signal: _Signal, code: str, n: int, liars: int) -> str:
    text = _said(signal, n)
    if code == "hurt":
        hurt = [
            name for name, x, e in zip(signal.names, signal.x, signal.errors, strict=True) if _is_hurt(x, e, signal)
        ]
        return f"{text}; worse on {', '.join(hurt[:10])}{' and others' if len(hurt) > 10 else ''}"
    if code == "few-differ":
        return f"{text}; {int(signal.is_alike.sum())} judges saw no pair that differs"
    return f"{text}{_would_tell(signal, n, liars)}"


def _is_hurt(x: float, error: float, signal: _Signal) -> bool:
    return x + 2.0 * error < -signal.margin


def _would_tell(signal: _Signal, n: int, liars: int) -> str:
    """How many canaries like these would be enough to pass."""
    u = np.clip(signal.x + _OF_MARGIN * signal.margin, -signal.clip, signal.clip)
    free = float(u.mean()) - signal.clip * liars / n
    if free <= 0:
        return "; more canaries like these would not pass it"
    return f"; {math.ceil((_Z_PASS * _sd(u) / free) ** 2)} canaries like these would tell"


def screen(canaries: Mapping[str, Pairs], rule: Model, n_failed: int = 0, *, is_held: bool = False) -> Verdict:
    """What a first wave can see: it holds what looks worse by half the margin without the few that look best or worst.

    Where too few are left without those, it holds what looks worse by the whole margin on each of them, two at least
    with those that failed: one that lies cannot hold it alone. Where there is one canary only, or it is held already,
    it holds what is worse on one by more than chance. It proves nothing: too few canaries for that. What it holds, a
    person looks at. What it lets pass unjudged, it says.

    Args:
        canaries: By name; those that said nothing with empty sums.
        rule: Of the plan.
        n_failed: Devices beside them that did not keep it, so that they have no answers of it to compare.
        is_held: Whether it waits for somebody who can judge it: one that is worse does not lead on.
    """
    liars = n_liars(len(canaries), rule.liars)
    accuracy, speed = _accuracy(canaries, rule.margin), _speed(canaries)
    for signal in (accuracy, speed):
        if _can_screen(signal.pairs, liars):
            middle = _middle(np.clip(signal.x, -signal.clip, signal.clip), liars)
            if middle < -_OF_SCREEN * signal.margin:
                text = f"{_said(signal, len(canaries))}: it looks worse, and so few prove nothing"
                return Verdict(Decision.UNDECIDED, f"looks-worse-{signal.name}", text)
        elif len(told := _told(signal)) >= max(1, _SCREEN_CANARIES - n_failed) and float(told.max()) < -signal.margin:
            more = f" and failed on {n_failed} more" if n_failed else ""
            text = f"{_said(signal, len(canaries))}: it looks worse on each of them{more}, and so few prove nothing"
            return Verdict(Decision.UNDECIDED, f"looks-worse-{signal.name}", text)
    if (is_held or len(canaries) == 1) and any(
        n >= _SCREEN_PAIRS and _is_hurt(x, error, accuracy)
        for n, x, error in zip(accuracy.pairs, accuracy.x, accuracy.errors, strict=True)
    ):
        where = "the only one" if len(canaries) == 1 else "one of them"
        text = f"{_said(accuracy, len(canaries))}: it looks worse on {where}, and one proves nothing"
        return Verdict(Decision.UNDECIDED, "looks-worse-accuracy", text)
    differ, pairs = _differ(canaries)
    if (
        not _can_screen(accuracy.pairs, liars)
        and _can_screen(pairs, liars)
        and _middle(differ, liars) > _MOST_DIFFERENT
    ):
        text = f"{differ.mean():.0%} of the answers of {len(differ)} canaries are others; no labels say which are right"
        return Verdict(Decision.UNDECIDED, "looks-different", text)
    if _can_screen(accuracy.pairs, liars):
        return PASSED
    needed, n = 2 * liars + _SCREEN_CANARIES, len(_told(accuracy))
    text = f"{n} of {len(canaries)} canaries have {_SCREEN_PAIRS} labels, {needed} needed"
    if not any(each.labelled or each.compared for each in canaries.values()):
        text = "nothing compared its answers with those from before"
    return Verdict(Decision.PASS, "", f"accuracy not judged: {text}")


def has_labels(canaries: Mapping[str, Pairs]) -> bool:
    """Whether one of them has labels enough for a screen."""
    return any(each.labelled >= _SCREEN_PAIRS for each in canaries.values())


def _told(signal: _Signal) -> Numbers:
    """What those say who have pairs enough for a screen."""
    return signal.x[signal.pairs >= _SCREEN_PAIRS]


def _can_screen(pairs: Numbers, liars: int) -> bool:
    return len(pairs) - 2 * liars >= _SCREEN_CANARIES and float(np.median(pairs)) >= _SCREEN_PAIRS


def _middle(values: Numbers, liars: int) -> float:
    return float(np.sort(values)[liars : len(values) - liars].mean())


def beforehand(judges: Mapping[str, Pairs], rule: Model) -> Verdict:
    """Whether devices that tried a head before anybody runs it found it worse.

    They did where the mean of the middle of them, without as many on each side as may lie, is below half the margin,
    and by more than chance: two standard errors of its labels. Who lies is among those left out, or says what an honest
    one might have. How far devices lie apart does not count: where more lie than may, what they defend must not pass
    for that. It proves no gain: that is for the rollout.

    Args:
        judges: By name, those with `MIN_PAIRS` labels at least.
        rule: Of the plan.
    """
    found = _accuracy(judges, rule.margin)
    n, liars = len(found.x), n_liars(len(found.x), rule.liars)
    order = np.argsort(found.x, kind="stable")[liars : n - liars]
    if not len(order):
        return Verdict(Decision.UNDECIDED, "few-judges", f"{n} devices have labels, and {liars} may say anything")
    middle = float(found.x[order].mean())
    error = float(np.sqrt(np.square(found.errors[order]).sum())) / len(order)
    text = f"accuracy {100 * middle:+.1f} points ±{196 * error:.1f} in the middle of {n} devices"
    if middle < -_OF_SCREEN * rule.margin and middle < -_Z_BEFOREHAND * error:
        return Verdict(Decision.STOP, "worse-beforehand", text)
    return Verdict(Decision.PASS, "", text)
