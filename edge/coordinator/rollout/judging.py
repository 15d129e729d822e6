"""What failures and gates say of the wave that is open, and of all that were touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from edge.channel.messages import Pairs
from edge.contract.durations import seconds
from edge.coordinator.rollout import gates
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.gates import Decision, Verdict
from edge.coordinator.rollout.states import FAILURES, UNCOUNTED, RolloutState, TargetState
from edge.coordinator.rollout.step import Look, Rollout, Target, Work

S, T = RolloutState, TargetState
# Why a rollout without gates is held where nobody could judge it: labels that come late can.
_NONE_JUDGED = "few-judges: none of"


def soak_s(rollout: Rollout) -> float:
    """How long the open wave is watched after it has settled, in seconds."""
    return plans.soak_s(rollout.plan, rollout.sizes[rollout.wave][1], rollout.n_selected)


def reason(verdict: Verdict) -> str:
    """A verdict in one line, its code first."""
    return f"{verdict.code}: {verdict.detail}" if verdict.code else verdict.detail


def health(wave: list[Target], everyone: Iterable[Target], rollout: Rollout) -> Verdict:
    """Of this wave, and of all that were touched: what is one in twenty of many may be all of a few."""
    parts = (wave, [target for target in everyone if target.state not in (T.WAITING, T.ABSENT)])
    for part in parts:
        counted = [target for target in part if target.state not in UNCOUNTED]
        failed = [target for target in counted if target.state in FAILURES]
        new = [target for target in failed if target.since_s > rollout.seen_s]
        found = gates.health(len(counted), len(failed), rollout.plan.health, len(failed) - len(new))
        if found.decision is Decision.STOP:
            return replace(found, detail=f"{found.detail}: {_named(new)}")
    return gates.PASSED


def _named(targets: list[Target]) -> str:
    named = [
        f"{target.device} {target.state}{f' ({target.detail[:120]})' if target.detail else ''}" for target in targets
    ]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def judge(work: Work, wave: list[Target], groups: Mapping[str, Mapping[str, str]]) -> Verdict | None:
    """What gates say of a wave that has settled; None while it soaks, or while there is nothing new to see."""
    rollout, plan = work.rollout, work.rollout.plan
    soaked = work.now_s - rollout.since_s
    is_held = rollout.state is S.HELD
    opened = [target for target in work.targets.values() if target.wave <= rollout.wave]
    canaries = {_name(target): target.pairs for target in opened if target.state in (T.ACTIVE, T.PROBATION)}
    counted = [target for target in wave if target.state not in (T.EXCLUDED, T.SUPERSEDED)]
    if not is_held and soaked < soak_s(rollout):
        # Bad news needs no patience.
        return _early(work, canaries, groups) if _is_gated(rollout) else None
    absent = sum(target.state is T.ABSENT for target in counted)
    if counted and absent > (1.0 - plan.health.quorum) * len(counted):
        if is_held:
            return None
        return Verdict(Decision.UNDECIDED, "quorum", f"{absent} of {len(counted)} devices of the wave are absent")
    if plan.model.off or rollout.is_last:
        return gates.PASSED
    if _is_gated(rollout):
        return _early(work, canaries, groups) or _run_out(work, canaries, groups, soaked, is_held=is_held)
    if is_held:  # by the screen or the quorum: a person decides, or more devices come, or labels where there were none
        if rollout.reason.startswith("quorum"):
            return gates.PASSED
        if not (rollout.reason.startswith(_NONE_JUDGED) and gates.has_labels(canaries)):
            return None
    n_failed = sum(target.state in FAILURES and target.since_s > rollout.seen_s for target in opened)
    found = gates.screen(canaries, plan.model, n_failed, is_held=is_held)
    is_alone = not any(_has_gate(rollout, each) for each in range(len(rollout.sizes)))
    is_judged = any(target.is_judged for target in opened if target.state is T.ACTIVE)
    if not is_held and is_alone and canaries and not is_judged and found.decision is Decision.PASS:  # it proves nothing
        n = len(canaries)
        whose = "one canary" if n == 1 else f"{n} canaries"
        detail = f"none of {whose} could judge it: no labels came; {gates.agreement(canaries)}"
        return Verdict(Decision.UNDECIDED, "few-judges", detail)
    work.looks.append(Look(wave=rollout.wave, number=0, verdict=found))
    return found


def _is_gated(rollout: Rollout) -> bool:
    """Whether the model gate looks at the open wave, and not only the screen."""
    return _has_gate(rollout, rollout.wave) and not rollout.plan.model.off


def _has_gate(rollout: Rollout, wave: int) -> bool:
    """All waves but the first and the last have one, where there are judges enough for it."""
    return 0 < wave < len(rollout.sizes) - 1 and rollout.sizes[wave][0] >= gates.MIN_JUDGES


def _early(work: Work, canaries: Mapping[str, Pairs], groups: Mapping[str, Mapping[str, str]]) -> Verdict | None:
    """Another look of the model gate, where canaries have enough new pairs and it comes to something."""
    rollout = work.rollout
    looks = gates.look(canaries, rollout.looks)
    if looks == rollout.looks:
        return None
    found = _by_group(work, canaries, groups)
    work.rollout = replace(rollout, looks=looks)
    work.looks.append(Look(wave=rollout.wave, number=looks, verdict=found))
    soaked = work.now_s - rollout.since_s
    is_soaking = soaked < soak_s(rollout)
    if found.decision is Decision.STOP:
        return found
    if found.decision is Decision.PASS:
        if is_soaking:  # what it saw stays true: it is looked at again when the time is over
            work.rollout = rollout
            work.looks.pop()
            return None
        return found
    return found if looks == len(gates.LOOKS) and not is_soaking else None


def _run_out(
    work: Work,
    canaries: Mapping[str, Pairs],
    groups: Mapping[str, Mapping[str, str]],
    soaked: float,
    *,
    is_held: bool,
) -> Verdict | None:
    """Hold what nothing could judge: at once where no canary says anything, else when the time for it is over."""
    plan = work.rollout.plan
    if is_held:
        return None
    found = _by_group(work, canaries, groups)
    has_labels = any(pairs.labelled > 0 for pairs in canaries.values())
    is_over = soaked >= seconds(plan.model.wait) or work.rollout.looks == len(gates.LOOKS)
    if is_over or not has_labels:
        # Whatever it would say now, it is no look: those are counted.
        code = found.code if found.decision is Decision.UNDECIDED else "undecided"
        return Verdict(Decision.UNDECIDED, code, found.detail)
    return None


def _by_group(work: Work, canaries: Mapping[str, Pairs], groups: Mapping[str, Mapping[str, str]]) -> Verdict:
    plan = work.rollout.plan
    members: dict[str, list[str]] = {}
    for tag in plan.model.judge_by:
        for name in canaries:
            value = groups.get(name.partition("/")[0], {}).get(tag, "")
            members.setdefault(f"tag.{tag} = {value}", []).append(name)
    return gates.model(canaries, plan.model, members)


def _name(target: Target) -> str:
    return f"{target.device}/{target.model}" if target.model else target.device
