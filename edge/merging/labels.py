"""Whether the labels of a device mean what other devices mean by them: what a camera of its own does not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.learning.statistics import Matrix
from edge.merging.summaries import Summary, pooled_root

# Variance of a median relative to that of a mean, of a normal distribution.
MEDIAN_VARIANCE = np.pi / 2

# Labels say something of the samples where the ratio of variances is above 1 by so many of its deviations, and by that
# share of what the samples of other devices lead to expect. Shuffled labels of real cameras gave up to 0.08 of it, the
# honest ones at least 0.5.
_LABEL_DEVIATIONS, _LABEL_EFFECT = 3.0, 0.2
# Other names fit clearly better where the given ones lose that share of the correlation, and so many of its deviations.
# Honest cameras lost up to 0.1, permuted classes 0.9 and more.
_NAMES_LOST, _NAMES_DEVIATIONS = 0.3, 3.0


@dataclass(frozen=True, slots=True)
class _Naming:
    """How the class means of a device lie about their middle, compared with the others' means of these classes.

    Attributes:
        n_classes: That both have.
        own: Correlation, from -1 to 1, where the classes have the names that the device gave them.
        best: The largest one, over all ways to name them.
        noise: Standard deviation of `own` that so few samples give it.
    """

    n_classes: int
    own: float
    best: float
    noise: float

    @property
    def is_other(self) -> bool:
        """Whether other names fit clearly better."""
        lost = self.best - self.own
        return lost > max(_NAMES_LOST * self.best, _NAMES_DEVIATIONS * self.noise)

    @property
    def is_right(self) -> bool:
        """Whether these names fit, by evidence that two classes cannot give."""
        fits = self.own >= (1.0 - _NAMES_LOST) * self.best and self.own > _NAMES_DEVIATIONS * self.noise
        return self.n_classes > 2 and fits


def _naming(means: Matrix, counts: Matrix, references: Matrix, n_references: Matrix) -> _Naming | None:
    """See `_Naming`; None where fewer than two classes can be compared.

    Args:
        means: ``(n_classes, d)`` in units of the pooled covariance.
        counts: ``(n_classes,)`` samples behind them.
        references: ``(n_classes, d)``, nan where there is none.
        n_references: ``(n_classes,)`` samples behind those.
    """
    common = np.flatnonzero((counts > 0) & np.isfinite(references[:, 0]))
    if len(common) < 2:
        return None
    weights = counts[common] / counts[common].sum()
    own = means[common] - weights @ means[common]
    others = references[common] - weights @ references[common]
    alike = weights[:, None] * (own @ others.T)
    own_squares, squares = np.square(own).sum(axis=1), np.square(others).sum(axis=1)
    scale = float(np.sqrt((weights @ own_squares) * (weights @ squares)))
    if scale <= 0:
        return None
    one, other = 1.0 / counts[common], 1.0 / n_references[common]
    variance = np.square(weights) @ (squares * one + own_squares * other + means.shape[1] * one * other)
    best = _best_naming(alike)
    return _Naming(len(common), float(np.trace(alike)) / scale, best / scale, float(np.sqrt(variance)) / scale)


def _best_naming(alike: Matrix) -> float:
    """The largest sum over ways to pair rows with columns that exchanges of two from the given one lead to."""
    alike = alike.copy()
    while True:
        kept = np.diag(alike)
        gains = alike + alike.T - kept[:, None] - kept
        a, b = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[a, b] <= 1e-12 * np.abs(alike).sum():
            return float(kept.sum())
        alike[:, [a, b]] = alike[:, [b, a]]


def mislabelled(summaries: Mapping[int, Summary]) -> tuple[dict[int, str], dict[int, str]]:
    """Devices whose labels say nothing of their samples, or are other names; and those nobody can say of who is right.

    The worst of those with other names are removed first, as in `edge.merging.screening`.
    """
    devices = list(summaries.values())
    if len(devices) < 3 or not any(s.has_scatter for s in devices):
        return {}, {}
    index = np.array(list(summaries))
    inverse = np.asarray(np.linalg.inv(pooled_root(devices)), np.float64)
    means = np.array([s.means for s in devices]) @ inverse.T
    counts = np.array([s.counts for s in devices])
    is_meaningless = _meaningless(devices, means, counts, inverse)
    here = ~is_meaningless
    reasons = {int(i): "its labels say little or nothing of its samples" for i in index[is_meaningless]}
    renamed: dict[int, str] = {}
    while here.sum() > 2:
        at = np.flatnonzero(here)
        namings = [_naming(means[i], counts[i], *_others(means, counts, here, i)) for i in at.tolist()]
        lost = [naming.best - naming.own if naming is not None and naming.is_other else -np.inf for naming in namings]
        worst = int(np.argmax(lost))
        if not np.isfinite(lost[worst]):
            break
        renamed[int(index[at[worst]])] = "its classes have other names than on other devices"
        here[at[worst]] = False
    undecided = tied(index, counts, here | is_meaningless, renamed)
    return reasons | renamed, undecided


def _others(means: Matrix, counts: Matrix, here: npt.NDArray[np.bool_], device: int) -> tuple[Matrix, Matrix]:
    """``(n_classes, d)`` the medians over the devices that are here besides this one; samples behind each."""
    others = here.copy()
    others[device] = False
    found = np.full(means.shape[1:], np.nan)
    n_samples = np.ones(len(found))
    for c in np.flatnonzero((counts[others] > 0).any(axis=0)):
        has = others & (counts[:, c] > 0)
        found[c] = np.median(means[has, c], axis=0)
        n_samples[c] = counts[has, c].sum() / MEDIAN_VARIANCE
    return found, n_samples


def _meaningless(devices: Sequence[Summary], means: Matrix, counts: Matrix, inverse: Matrix) -> npt.NDArray[np.bool_]:
    """Whether the classes of a device do not lie apart, though those of others do and it has samples enough to show it.

    With n samples of k classes the ratio is ``(B / (k - 1)) / (W / (n - k))``, B and W the sums of squares between and
    within classes; it is 1 for labels that say nothing, and grows with the samples of a class.
    """
    effects, deviations, sizes = (np.full(len(devices), np.nan) for _ in range(3))
    for i, device in enumerate(devices):
        own = counts[i] > 0
        n, k = device.n_samples, int(own.sum())
        if k < 2 or n <= k or not device.has_scatter:
            continue
        about = means[i, own] - counts[i, own] @ means[i, own] / n
        within = inverse @ device.scatter @ inverse.T
        total = float(np.trace(within))
        between = float(counts[i, own] @ np.square(about).sum(axis=1))
        ratio = (between / (k - 1)) / (total / (n - k))
        dimensions = total**2 / float(np.square(within).sum())
        sizes[i] = n / k
        effects[i], deviations[i] = ratio - 1.0, np.sqrt(2.0 / ((k - 1) * dimensions))
    asked = np.isfinite(effects)
    if asked.sum() < 3:
        return np.zeros(len(devices), bool)
    expected = float(np.median(effects[asked] / sizes[asked])) * sizes
    with np.errstate(invalid="ignore"):  # nan is False
        can_show = expected > 2 * _LABEL_DEVIATIONS * deviations
        return can_show & (effects < np.maximum(_LABEL_DEVIATIONS * deviations, _LABEL_EFFECT * expected))


def labels_are_right(device: Summary, others: Mapping[int, Summary]) -> bool:
    """Whether the classes of a device lie about their middle as they do on others."""
    everybody = [device, *others.values()]
    if not any(s.has_scatter for s in everybody):
        return False
    means = np.array([s.means for s in everybody]) @ np.linalg.inv(pooled_root(everybody)).T
    counts = np.array([s.counts for s in everybody])
    naming = _naming(means[0], counts[0], *_others(means, counts, np.ones(len(everybody), bool), 0))
    return naming is not None and naming.is_right


def tied(
    index: npt.NDArray[np.int_], counts: Matrix, here: npt.NDArray[np.bool_], reasons: dict[int, str]
) -> dict[int, str]:
    """Take those out of the reasons for whom there is no majority: as many devices with their classes remain."""
    has = counts > 0
    is_tied = has[~here].sum(axis=0) >= has[here].sum(axis=0)
    tied_share = (counts * is_tied).sum(axis=1) / counts.sum(axis=1)
    return {int(i): reasons.pop(int(i)) for i in index[~here & (tied_share >= 0.5)]}
