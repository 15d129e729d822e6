"""What speaks against a release: that devices judged it worse, that it never went through, or was taken back."""

from __future__ import annotations

from edge.contract.errors import RolloutError
from edge.coordinator.records import Release
from edge.coordinator.releases.going_back import fates, is_way_back
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


def check_worth(store: Store, release: Release) -> None:
    """Raise RolloutError where something speaks against giving a release to everybody at once, as a rollback does.

    Another number of the same file makes nothing better, see `edge.coordinator.releases.going_back.Fates`.

    Args:
        store: The database.
        release: It.
    """
    found, releases = fates(store), store.releases.all()
    if release.counter in found.standing:
        return
    is_tried = release.counter in found.fallen or release.digest in found.fell
    if not is_tried and (release.devices or release.digest in found.stood):
        return
    counters = {release.counter}
    if release.counter not in found.fallen:
        counters = {each.counter for each in releases if each.digest == release.digest}
    rollouts = [each for each in store.rollouts.all() if each.plan.release in counters]
    undone_by = next((each for each in releases if each.undoes in counters and not is_way_back(each)), None)
    if not is_tried:
        why = "it never went through a rollout: no device was given it yet"
    elif undone_by is not None:
        why = f"it was taken back by release {undone_by.counter} ({undone_by.reason})"
    elif rollouts:
        last = rollouts[0]
        what = "it was taken back" if last.state in TAKEN_BACK else "it never went through"
        why = f"{what}: rollout {last.id} is {last.state}{f', {last.reason}' if last.reason else ''}"
    else:
        why = "somebody went back from it"
    why = judged_worse(store, release.digest) or why
    raise RolloutError(
        f"release {release.counter} would go to all at once, and {why}. --force gives it all the same; a rollout of "
        f"its file (`edge-fleet release download {release.counter}`, `edge-fleet push`) has it tried first"
    )
