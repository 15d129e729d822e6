"""What speaks against a release: that some devices judged it worse, that it never went through, or was taken back."""

from __future__ import annotations

from edge.contract.errors import RolloutError
from edge.coordinator.records import Release
from edge.coordinator.rollout.states import TAKEN_BACK
from edge.coordinator.store.store import Store

_JUDGED = ("lost", "passed")


def judged_worse(store: Store, digest: str) -> str:
    """What devices found that judged a head before a rollout of it and found it worse; "" for nothing of that kind.

    Args:
        store: The database.
        digest: Of the head; where it was judged more than once, the last time counts.
    """
    counters = {each.counter for each in store.releases.all() if each.digest == digest}
    for rollout in store.rollouts.all():  # newest first
        if rollout.plan.release not in counters:
            continue
        found = store.evaluations.get(rollout.id)
        if found is not None and found.state in _JUDGED:
            lost = found.state == "lost"
            return f"devices judged it before rollout {rollout.id}: {found.detail}" if lost else ""
    return ""


def check_worth(store: Store, release: Release, *, is_through: bool) -> None:
    """Raise RolloutError where something speaks against giving a release to everybody at once, as a rollback does.

    Args:
        store: The database.
        release: It.
        is_through: Whether a rollout of it went through all waves and was not taken back: that was enough of a trial.
    """
    rollouts = [each for each in store.rollouts.all() if each.plan.release == release.counter]
    if is_through or not rollouts:
        return
    last = rollouts[0]
    what = "it was taken back" if last.state in TAKEN_BACK else "it never went through"
    never = f"{what}: rollout {last.id} is {last.state}{f', {last.reason}' if last.reason else ''}"
    why = judged_worse(store, release.digest) or never
    raise RolloutError(
        f"release {release.counter} would go to all at once, and {why}. --force gives it all the same; a rollout of "
        f"its file (`edge-fleet release download {release.counter}`, `edge-fleet push`) has it tried first"
    )
