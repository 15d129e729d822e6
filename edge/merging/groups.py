"""Which devices share a head: all of them, those with one value of a tag, or those whose statistics are alike.

Also whom a release is meant for, as it is stored: ``*`` for everybody, a device's name, or ``tag.KEY=VALUE`` for the
devices that have that value, also those to come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics, Matrix
from edge.merging.contributions import trainable_head
from edge.merging.noised import divided
from edge.merging.policy import BY_CLUSTER, BY_TAG
from edge.merging.summaries import Summary, pooled_root, summary_of
from edge.merging.sums import sums_by_device

ALL_DEVICES = "*"
EVERYBODY: tuple[str, ...] = (ALL_DEVICES,)
Contribution = tuple[str, HeadUpdate]
Tags = Mapping[str, str]

# Squared distance of the means of one class on two devices, less what few samples make of it, relative to that of two
# classes on one device. Parts of what one camera saw were at most 0.36 apart, ten different cameras 1.4 to 2.6 in the
# median; a few pairs of them are alike.
LARGEST_DISTANCE = 0.5


def groups(
    bundle: Bundle, contributions: Sequence[Contribution], how: str, tags: Mapping[str, Tags]
) -> dict[tuple[str, ...], list[Contribution]]:
    """Divide contributions into those that are merged with one another.

    Args:
        bundle: Of the backbone.
        contributions: By device; all have passed `check_update`.
        how: As `MergePolicy.merge_by`.
        tags: By device.

    Returns:
        By whom the merge is meant for, its contributions. Of devices without a tag the value is "". Changes of heads
        cannot be compared, so by likeness they are one group.
    """
    found: dict[tuple[str, ...], list[Contribution]] = {}
    if how.startswith(BY_TAG):
        key = how.removeprefix(BY_TAG)
        for device, update in contributions:
            found.setdefault((f"{how}={tags.get(device, {}).get(key, '')}",), []).append((device, update))
    elif how == BY_CLUSTER and trainable_head(bundle).training.is_classifier:
        statistics, noised = divided([each for each in contributions if each[1].learner == "statistics"])
        clusters = alike(sums_by_device(bundle, statistics)[0])
        if len(clusters) > 1:
            for devices in clusters:
                found[devices] = [each for each in statistics if each[0] in devices]
            found[clusters[0]] += noised  # they cannot be compared; why they are not merged is said there
    return found or {EVERYBODY: list(contributions)}


def is_meant(meant_for: Sequence[str], device: str, tags: Tags) -> bool:
    """Whether a release is for a device with these tags."""
    for each in meant_for:
        key, is_tag, value = each.removeprefix(BY_TAG).partition("=")
        if each in (ALL_DEVICES, device) or (is_tag and tags.get(key, "") == value):
            return True
    return False


def alike(sums: Mapping[str, HeadStatistics]) -> list[tuple[str, ...]]:
    """Devices by likeness of their class means: the nearest groups are joined while they are near enough.

    The distance of two groups is the mean over pairs of devices that have a class in common. Where there is no such
    pair nothing speaks against joining them, which is then done last.

    Args:
        sums: By device, statistics of the same classes.

    Returns:
        The groups, largest first; a device whose sums no samples can have is in the first one, where it is refused.
    """
    names = sorted(sums)
    found = {name: summary_of(sums[name], is_classifier=True) for name in names}
    summaries = {name: summary for name, summary in found.items() if not isinstance(summary, str)}
    distances = apart(list(summaries.values()))
    if distances is None:
        return [tuple(names)]
    members = [[i] for i in range(len(summaries))]
    while len(members) > 1:
        pairs = [(i, j) for i in range(len(members)) for j in range(i)]
        between = [_between(distances, members[i], members[j]) for i, j in pairs]
        nearest = int(np.argmin(between))
        if between[nearest] > LARGEST_DISTANCE:
            break
        i, j = pairs[nearest]
        members[j] += members.pop(i)
    known = list(summaries)
    clusters = sorted((tuple(sorted(known[i] for i in each)) for each in members), key=lambda each: (-len(each), each))
    impossible = [name for name in names if name not in summaries]
    return [tuple(sorted((*clusters[0], *impossible))), *clusters[1:]]


def apart(summaries: Sequence[Summary]) -> Matrix | None:
    """How far devices are from one another.

    Returns:
        ``(n, n)``, in the units of `LARGEST_DISTANCE`, nan for two without a common class; None where nothing can be
        measured.
    """
    if len(summaries) < 2 or not any(summary.has_scatter for summary in summaries):
        return None
    inverse = np.linalg.inv(pooled_root(summaries))
    means = np.array([summary.means for summary in summaries]) @ inverse.T
    return _distances(means, np.array([summary.counts for summary in summaries]))


def _between(distances: Matrix, one: Sequence[int], other: Sequence[int]) -> float:
    pairs = distances[np.ix_(one, other)]
    known = pairs[np.isfinite(pairs)]
    return float(known.mean()) if len(known) else LARGEST_DISTANCE


def _distances(means: Matrix, counts: Matrix) -> Matrix:
    """``(n, n)`` in units of `LARGEST_DISTANCE`; nan for two devices without a common class.

    Args:
        means: ``(n, n_classes, d)`` in units of the pooled covariance.
        counts: ``(n, n_classes)``.
    """
    n, d = len(means), means.shape[2]
    has = counts > 0
    noise = np.where(has, d / np.where(has, counts, 1.0), 0.0)
    apart = []
    for own, few, mean in zip(has, noise, means, strict=True):
        pairs = [(a, b) for a in np.flatnonzero(own) for b in np.flatnonzero(own) if a < b]
        apart += [float(np.square(mean[a] - mean[b]).sum() - few[a] - few[b]) for a, b in pairs]
    unit = float(np.mean(apart)) if apart else float(d)
    found = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(i):
            common = has[i] & has[j]
            if common.any():
                weights = 1.0 / (1.0 / counts[i, common] + 1.0 / counts[j, common])
                squares = np.square(means[i, common] - means[j, common]).sum(axis=1)
                squares = squares - noise[i, common] - noise[j, common]
                found[i, j] = found[j, i] = float(weights @ squares / weights.sum()) / max(unit, 1e-9)
    return found
