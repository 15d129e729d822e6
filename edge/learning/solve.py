"""Heads in closed form from statistics, by a factor that is updated with each sample and not made anew.

Three methods share one matrix, the scatter about group means ``S = sum_g sum_{i in g} w_i (x_i - mu_g)(x_i - mu_g)ᵀ``:

* ``discriminant``: streaming LDA (Hayes and Kanan 2020, arXiv:1909.01520). The groups are the classes; with
  ``C = S / n`` shrunk toward a multiple of the identity (Ledoit and Wolf 2004, with a fixed share),
  ``logit_c(x) = x C⁻¹ mu_c - mu_cᵀ C⁻¹ mu_c / 2``, all classes equally likely beforehand;
* ``ridge``: ridge regression on the targets. One group, so S is the total scatter; with ``T = sum w (x - mu)(y - m)ᵀ``
  ``V = (S + rho I)⁻¹ T`` and ``output = (x - mu) V + m``: the intercept is not shrunk, and rho is the scatter of
  `RIDGE_SAMPLES` samples;
* ``means``: nearest class mean, which is the discriminant with S replaced by its mean diagonal.

`Factor` keeps ``P = (S + rho I)⁻¹``. A sample with the weight w changes S by ``u uᵀ`` with
``u = sqrt(w n_g / (n_g + w)) (x - mu_g)`` (Welford 1962), so P by one rank (Sherman and Morrison 1950): ``O(d²)``;
several samples that are added together by as many ranks at once, in a quarter of the time. Of single samples the
ranks wait beside P, `_LATE` of them, and the discriminant's ``(mu - m) P`` is kept up to date with them: then a sample
reads P once, and writes nothing of that size.
``rho`` follows the trace of S in steps of a quarter; only then is P made anew, in ``O(d³)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.projection import Projection
from edge.contract.training import Parameters
from edge.learning.statistics import HeadStatistics, Matrix

Method = Literal["discriminant", "ridge", "means"]

# Share of the scatter that is replaced by a multiple of the identity. On turned digits 0.02 to 0.1 were the same within
# half a point with clean labels, and with 20 % wrong labels 0.1 was a point better (docs/learning.md).
SHRINKAGE = 0.1
# What ridge regression adds to the scatter: that of so many samples, whatever their number.
RIDGE_SAMPLES = 20.0
# Logit of a class that has never been seen; the mean logit of the others is 0, so it is never the largest.
UNSEEN_LOGIT = -1e4
_LARGEST = float(np.finfo(np.float32).max)
_RHO_STEP = math.log(1.25)
# Keeps the matrix invertible when all features are constant.
_TINY = 1e-9
# Least share of the mean of x² that is added to the scatter. Where no class has two different samples, all that is left
# of the scatter is what rounding to float32 left of the sums, and its inverse would be a head of noise. Features of a
# hundred standard deviations from zero are the first that this outweighs `SHRINKAGE` for.
_ROUNDING = 1e-5
# What rounding leaves of a difference of counts.
_NO_SAMPLE = 1e-9
# Bytes of P that are updated at a time: as many as stay in the cache, and malloc has at hand.
_AT_ONCE = 1 << 17
# Ranks that wait beside P. With 16 they are a tenth of what P itself is, at 192 features.
_LATE = 16
# Triangles of half as many rows are inverted whole, and multiplied whole.
_WHOLE, _LEAST = 32, 96


class Factor:
    """The head that statistics determine, kept up to date; see the module.

    Args:
        statistics: Of at least one sample.
        method: How to solve.
        shrinkage: In ``(0, 1)``.
        exact: Take rho as it is and not on its grid: for a factor to which nothing is added.
        precision: Of P. In float32 it is half as large, and what is solved from it is right to four digits where the
            features are of the size of their deviations.

    Raises:
        LearningError: No samples, or sums that no samples have.
    """

    def __init__(
        self,
        statistics: HeadStatistics,
        method: Method,
        shrinkage: float = SHRINKAGE,
        exact: bool = False,
        precision: npt.DTypeLike = np.float64,
    ) -> None:
        if statistics.n_samples <= 0 or not (method == "ridge" or statistics.seen.any()):
            raise LearningError("there are no samples to solve a head from")
        self._method = method
        self._shrinkage = shrinkage
        self._n = statistics.n_samples
        self._moment = statistics.moment.copy()
        self._sum = statistics.gram[-1, :-1].copy()
        self._squares = float(np.trace(statistics.gram[:-1, :-1]))
        self._precision = precision
        with np.errstate(all="ignore"):  # what overflows is found in `head`
            # What of the squares is about the means, for each group: n |mu|².
            self._about = self._counts * np.square(self._means()).sum(axis=1)
            self._rho = self._wanted() if exact else self._step()
            self._inverse = None if method == "means" else self._invert(statistics)
            # P is the inverse less the product of these, of `_n_late` rows each.
            self._late = np.empty((2, _LATE, len(self._sum)), precision)
            self._n_late = 0
            # Means are taken from here: where features are far from zero, differences of products would be rounding.
            means = self._means()[self._counts > 0]
            self._centre = np.add.reduce(means) / max(len(means), 1)
            self._solved = self._solve_means()

    @property
    def _counts(self) -> Matrix:
        """``(groups,)``."""
        return (
            np.array([self._n])
            if self._method == "ridge"
            else np.where(self._moment[-1] > _NO_SAMPLE, self._moment[-1], 0)
        )

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """``(n_outputs,)`` whether there are samples of the class; of quantities there always are."""
        return self._counts > 0 if self._method != "ridge" else np.ones(self._moment.shape[1], bool)

    @property
    def sampled(self) -> npt.NDArray[np.bool_]:
        """``(n_outputs,)`` whether there are samples of the class, whatever the method; of classes only."""
        return np.asarray(self._moment[-1] > _NO_SAMPLE)

    def _means(self) -> Matrix:
        """``(groups, d)``, zero for a group without samples."""
        sums = self._sum[None] if self._method == "ridge" else self._moment[:-1].T
        counts = self._counts[:, None]
        if (counts > 0).all():
            return np.asarray(sums / counts)
        return np.asarray(sums / np.where(counts > 0, counts, 1.0) * (counts > 0))

    def _average(self) -> float:
        """Mean diagonal entry of S."""
        return max(self._squares - float(np.add.reduce(self._about)), 0.0) / len(self._sum)

    def _wanted(self) -> float:
        share = RIDGE_SAMPLES / self._n if self._method == "ridge" else self._shrinkage / (1.0 - self._shrinkage)
        return max(share * self._average(), _ROUNDING * self._squares / len(self._sum)) + _TINY * self._n

    def _step(self) -> float:
        """rho, on its grid."""
        wanted = self._wanted()
        return math.exp(round(math.log(wanted) / _RHO_STEP) * _RHO_STEP) if math.isfinite(wanted) else math.nan

    def _invert(self, statistics: HeadStatistics) -> npt.NDArray[Any]:
        means = self._means()
        scatter = statistics.gram[:-1, :-1] - (means.T * self._counts) @ means
        scatter[np.diag_indices_from(scatter)] += self._rho
        try:
            return _inverse(scatter.astype(self._precision, copy=False))
        except np.linalg.LinAlgError as exc:
            raise LearningError(f"no head can be solved from these statistics: {exc}") from exc

    def _solve_means(self) -> Matrix | None:
        """``(mu - centre) P`` of each class, ``(groups, d)``; zero for one without samples. None for other methods."""
        if self._method != "discriminant" or self._inverse is None:
            return None
        apart = self._means() - self._centre
        apart[self._counts <= 0] = 0.0
        return np.asarray(apart @ self._inverse)

    def add(
        self, features: npt.NDArray[Any], targets: npt.NDArray[Any], groups: Sequence[int], weights: Sequence[float]
    ) -> bool:
        """Take samples in, with one update of P for all of them.

        Args:
            features: ``(n, d)``.
            targets: ``(n, n_outputs)``, for ridge.
            groups: The class of each, for the others.
            weights: Of each, above 0.

        Returns:
            False when P must be made anew from the statistics, because rho moved.
        """
        with np.errstate(all="ignore"):
            if len(weights) == 1:
                self._add_one(features[0], targets[0], groups[0], weights[0])
            else:
                self._add_several(features, targets, np.array(groups), np.array(weights))
            return self._method == "means" or self._step() == self._rho

    def _add_one(self, x: Matrix, target: Matrix, group: int, weight: float) -> None:
        is_ridge, moment = self._method == "ridge", self._moment
        group = 0 if is_ridge else group
        sums = self._sum if is_ridge else moment[:-1, group]
        count = self._n if is_ridge else float(moment[-1, group])
        has_mean = self._inverse is not None and count > _NO_SAMPLE
        if has_mean:
            u = x - sums / count
            u *= math.sqrt(weight * count / (count + weight))
            self._update_one(u, group, math.sqrt(weight / (count * (count + weight))))
        weighted = weight * x
        self._n += weight
        self._sum += weighted
        self._squares += float(x @ weighted)
        if is_ridge:
            moment[:-1] += x[:, None] * (weight * target)
            moment[-1] += weight * target
        else:
            sums += weighted
            moment[-1, group] += weight
        count += weight
        self._about[group] = float(sums @ sums) / count if count > _NO_SAMPLE else 0.0
        if self._solved is not None and not has_mean:
            self._solved[group] += self._times(x - self._centre)

    def _add_several(self, x: Matrix, targets: Matrix, groups: npt.NDArray[np.int64], weights: Matrix) -> None:
        """As one after another, with one update of P."""
        moment = self._moment
        if self._method == "ridge":
            groups = np.zeros_like(groups)
            sums, marks = self._sum[None], targets * weights[:, None]
        else:
            sums, marks = moment[:-1].T, np.zeros((len(x), moment.shape[1]))
            marks[np.arange(len(x)), groups] = weights
        # Row by row, what those of its group are worth that come before it; with those that there were.
        earlier = np.tril(groups[:, None] == groups, -1) * weights
        count = self._counts[groups] + np.add.reduce(earlier, axis=1)
        has_mean = count > _NO_SAMPLE
        if self._inverse is not None:
            some, worth = np.where(has_mean, count, 1.0), count + weights
            u = (x - (sums[groups] + earlier @ x) / some[:, None]) * np.sqrt(weights * count / worth)[:, None]
            self._update(u[has_mean], groups[has_mean], np.sqrt(weights / (some * worth))[has_mean])
        weighted = weights[:, None] * x
        self._n += float(np.add.reduce(weights))
        self._sum += np.add.reduce(weighted, axis=0)
        self._squares += float(np.vdot(x, weighted))
        moment[:-1] += x.T @ marks
        moment[-1] += np.add.reduce(marks, axis=0)
        met = list(set(groups.tolist()))
        sums = self._sum[:, None] if self._method == "ridge" else moment[:-1, met]
        self._about[met] = np.add.reduce(np.square(sums), axis=0) / self._counts[met]
        if self._solved is not None:
            for i in np.flatnonzero(~has_mean):
                self._solved[groups[i]] += self._times(x[i] - self._centre)

    def _update(self, columns: Matrix, groups: npt.NDArray[np.int64], moved: Matrix) -> None:
        """P for ``S + u uᵀ`` of each row u: ``P - V (I + Uᵀ V)⁻¹ Vᵀ`` with ``V = P U`` (Woodbury 1950).

        And what the means of the classes are then; each u moves that of a group by so much.
        """
        self._settle()
        inverse = self._inverse
        if inverse is None or not len(columns):
            return
        several = columns.astype(inverse.dtype, copy=False)
        v = several @ inverse
        inner = several @ v.T
        inner[np.diag_indices_from(inner)] += 1.0
        try:
            shares = np.linalg.inv((inner + inner.T) / 2) @ v
        except np.linalg.LinAlgError:  # of samples that are not finite: found in `head`
            inverse[...] = np.nan
            return
        if self._solved is not None:
            # P of now times u are the shares.
            by = -(self._solved @ columns.T)
            by[groups, np.arange(len(columns))] += moved
            self._solved += by @ shares
        self._subtract(v, shares)

    def _update_one(self, u: Matrix, group: int, moved: float) -> None:
        """The same for one column, and what the means of the classes are then; u moves that of a group by so much."""
        v = self._times(u)
        shares = v / (1.0 + float(u @ v))
        if self._solved is not None:
            self._solved -= np.multiply.outer(self._solved @ u, shares)
            self._solved[group] += moved * shares  # u P is now the shares
        at = self._n_late
        self._late[0, at], self._late[1, at] = v, shares
        self._n_late += 1
        if self._n_late == _LATE:
            self._settle()

    def _times(self, x: Matrix) -> npt.NDArray[Any]:
        """P x, in the precision of P."""
        assert self._inverse is not None
        x = x.astype(self._inverse.dtype, copy=False)
        found: npt.NDArray[Any] = self._inverse @ x
        if self._n_late:
            v, shares = self._late[:, : self._n_late]
            found -= (shares @ x) @ v
        return found

    def _settle(self) -> None:
        """Let no ranks wait beside P."""
        if self._n_late:
            v, shares = self._late[:, : self._n_late]
            self._n_late = 0
            self._subtract(v, shares)

    def _subtract(self, v: npt.NDArray[Any], shares: npt.NDArray[Any]) -> None:
        """P less a product of few rows."""
        inverse = self._inverse
        assert inverse is not None
        scratch = np.empty((max(1, _AT_ONCE // inverse[0].nbytes), len(inverse)), inverse.dtype)
        for i in range(0, len(inverse), len(scratch)):
            rows = inverse[i : i + len(scratch)]
            rows -= np.dot(v[:, i : i + len(scratch)].T, shares, out=scratch[: len(rows)])

    def head(self) -> tuple[Matrix, Matrix]:
        """The head as it is now.

        Returns:
            Weights ``(n_outputs, d)`` and biases ``(n_outputs,)``, float64 and finite in float32. Of classes less their
            mean over the seen ones: that moves all logits alike, and keeps them small where the features are far from
            zero. A class without samples gets weights of zero and a bias of `UNSEEN_LOGIT`: the best seen class is
            above the mean, which is zero, whatever the features are.

        Raises:
            LearningError: The sums are such as no samples have.
        """
        with np.errstate(all="ignore"):
            means = self._means()
            if self._method == "ridge":
                assert self._inverse is not None
                self._settle()
                offset = self._moment[-1] / self._n
                weights = (self._inverse @ (self._moment[:-1] - np.outer(self._sum, offset))).T
                biases = offset - weights @ means[0]
            else:
                weights, biases = self._discriminant(means)
        if not (_largest(weights) <= _LARGEST and _largest(biases) <= _LARGEST):  # nor where one is not a number
            raise LearningError("the head solved from these statistics is not finite")
        # One order in memory, as after a restart: products of matrices round differently in another one.
        return np.ascontiguousarray(weights), biases

    def _discriminant(self, means: Matrix) -> tuple[Matrix, Matrix]:
        seen = self._counts > 0
        apart = means[seen]
        middle = np.add.reduce(apart) / len(apart)
        both = apart + middle
        if self._solved is None:
            apart -= middle
            solved = apart * (self._n / (self._average() + _TINY * self._n))
        else:
            # C = (1 - share) (S + rho I) / n
            solved = self._solved[seen]
            solved -= np.add.reduce(solved) / len(solved)
            solved *= self._n / (1.0 - self._shrinkage)
        # mu_c C⁻¹ mu_c - m C⁻¹ m = (mu_c - m) C⁻¹ (mu_c + m)
        both *= solved
        squares = np.add.reduce(both, axis=1)
        bias = -0.5 * (squares - np.add.reduce(squares) / len(squares))
        if len(apart) == len(means):
            return solved, bias
        weights, biases = np.zeros_like(means), np.full(len(means), UNSEEN_LOGIT)
        weights[seen], biases[seen] = solved, bias
        return weights, biases


def _largest(array: Matrix) -> float:
    return float(np.maximum.reduce(np.abs(array), axis=None, initial=0.0))


def _inverse(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of a symmetric positive definite matrix, as ``L⁻ᵀ L⁻¹`` of its Cholesky factor L; exactly symmetric.

    Quicker than LAPACK's general inverse, and right to rounding whatever the size: inverting the matrix itself by
    halves lost three digits with each halving, all of them at a thousand features.

    Raises:
        np.linalg.LinAlgError: It is singular.
    """
    try:
        factor = _inverse_of_triangle(np.linalg.cholesky(matrix))
    except np.linalg.LinAlgError:  # not positive definite, as sums are that no samples have
        inverse = np.linalg.inv(matrix)
        return np.asarray((inverse + inverse.T) / 2)
    return _squared(factor)


def _squared(lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``LᵀL`` of a lower triangle L, by halves: half of what would be multiplied is zero. Exactly symmetric."""
    half = len(lower) // 2
    if half < _LEAST:
        return np.asarray(lower.T @ lower)
    below, last = lower[half:, :half], lower[half:, half:]
    found = np.empty_like(lower)
    found[:half, :half] = _squared(lower[:half, :half])
    found[:half, :half] += below.T @ below
    found[half:, half:] = _squared(last)
    found[half:, :half] = last.T @ below
    found[:half, half:] = found[half:, :half].T
    return found


def _inverse_of_triangle(lower: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """By halves: the inverse of ``[[A, 0], [C, D]]`` is ``[[A⁻¹, 0], [-D⁻¹ C A⁻¹, D⁻¹]]``."""
    half = len(lower) // 2
    if half < _WHOLE:
        return np.asarray(np.linalg.inv(lower))
    first, second = _inverse_of_triangle(lower[:half, :half]), _inverse_of_triangle(lower[half:, half:])
    found = np.zeros_like(lower)
    found[:half, :half], found[half:, half:] = first, second
    found[half:, :half] = -(second @ (lower[half:, :half] @ first))
    return found


def solve(
    statistics: HeadStatistics, method: Method = "discriminant", shrinkage: float = SHRINKAGE
) -> tuple[Matrix, Matrix]:
    """The head that statistics determine; see `Factor`.

    Raises:
        LearningError: No samples, or sums that no samples have.
    """
    return Factor(statistics, method, shrinkage, exact=True).head()


def head_of(
    statistics: HeadStatistics,
    head: LinearLayer,
    method: Method = "discriminant",
    projection: Projection | None = None,
) -> Parameters:
    """The linear head that statistics, of features that were perhaps projected, determine, by its parameter names.

    Raises:
        LearningError: As `solve`, or the head for plain features is not finite.
    """
    weights, biases = solve(statistics, method)
    if projection is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # found below
            weights = projection.lifted(weights)
        if not np.isfinite(weights).all():
            raise LearningError("the head solved from these statistics is not finite")
    parameters = {head.weight: weights.astype(np.float32)}
    if head.bias is not None:
        parameters[head.bias] = biases.astype(np.float32)
    return parameters
