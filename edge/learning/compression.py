"""What a device sends of what it learned, shorter: int8 with a scale a row, or of changes only the largest.

What is left out is not lost. A learner remembers under the version of a contribution what *arrives* of it
(`Packed.tensors`), not what it had: when a merge comes back with that version in it, the device goes on with the merge
and whatever of its own is not in there, the error among it, which the next contribution then has (error feedback: Seide
et al. 2014; Stich et al. 2018, arXiv:1809.07599; Karimireddy et al. 2019, arXiv:1901.09847). Until then contributions
are cumulative (docs/adr/0006), so an error never adds up.

*Changes* of a head: ``code = round(x / scale)`` from -127 to 127, one scale for each row of a parameter; or the share
with the largest ``|x|`` over all parameters, as places and codes with one scale for each parameter.

*Statistics* cannot be rounded number by number: the scatter ``S`` within classes would get negative eigenvalues, and
sums that no samples have are refused. So the factor of ``S = U^T U`` (Cholesky) is rounded, column by column, and the
class means, feature by feature; what comes out has no negative eigenvalue whatever the codes are. ``U^T U`` of codes
are whole numbers below 2^53, exact in whatever order they are added, and all else is one operation a number: every
machine decodes the same values, to the last bit. What is sent is subtracted again as it was decoded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.contract.digest import new_sha256
from edge.contract.errors import ConfigError, LearningError
from edge.learning.statistics import HeadStatistics, Matrix, of_triangle, upper_triangle

Name = Literal["exact", "int8", "top-k"]
Tensors = dict[str, npt.NDArray[Any]]
# What a coordinator of this version reads; it says so in `UploadStatus.codecs`.
CODECS: tuple[Name, ...] = ("int8", "top-k")
DEFAULT_SHARE = 0.1
_MOST = 127.0
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# As of an upload: 64 MiB of float32.
_MOST_VALUES = 1 << 24
# What is added to the diagonal of a scatter, in units of the sums of squares: the least with which it has a factor.
# Rounding to float32 leaves some 1e-7 of these in it.
_LIFTS = (1e-7, 1e-6, 1e-5, 1e-4)
_NO_SAMPLE = 1e-9
# To decode costs d³; 2^24 for a count times 127² for codes times so many outputs is below 2^53.
_MOST_FEATURES, _MOST_OUTPUTS = 4096, 1 << 14


@dataclass(frozen=True, slots=True)
class Compression:
    """How contributions are made shorter.

    Attributes:
        name: ``exact``: not at all; ``int8``; ``top-k``: of changes only the largest, of statistics as ``int8``.
        share: Of a head's numbers that ``top-k`` sends, above 0 and at most 1.
    """

    name: Name = "exact"
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read ``exact``, ``int8``, ``top-k`` or ``top-k:SHARE``.

        Raises:
            ConfigError: It is none of these.
        """
        name, separator, share = text.partition(":")
        if text in ("exact", "int8"):
            return cls("int8" if text == "int8" else "exact")
        try:
            found = float(share) if separator else DEFAULT_SHARE
        except ValueError:
            found = math.nan
        if name != "top-k" or not 0 < found <= 1:
            raise ConfigError(
                f"upload: expected exact, int8, top-k or top-k:SHARE with a share above 0 and at most 1, such as "
                f"top-k:0.1; got {text[:40]!r}"
            )
        return cls("top-k", found)

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        return f"{self.name}:{self.share!r}" if self.name == "top-k" else self.name

    def pack(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Packed:
        """Make a contribution shorter; exact where that cannot be done.

        Args:
            tensors: As a learner has them: ``gram`` and ``moment`` of statistics, or a change by parameter, float32.
        """
        if self.name == "exact":
            return Packed(dict(tensors))
        description, codes = _of_statistics(tensors) if "gram" in tensors else self._of_change(tensors)
        if not codes:
            return Packed(dict(tensors))
        decoded = _decoded(description, codes)
        return Packed(decoded, description | {"result": digest_of(decoded)}, codes)

    def _of_change(self, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, Any], Tensors]:
        codes: Tensors = {}
        if self.name == "int8":
            for name, array in tensors.items():
                axes = range(1, array.ndim) if array.ndim > 1 else range(array.ndim)
                codes[f"{name}.codes"], codes[f"{name}.scales"] = _rounded(array, tuple(axes))
            return {"codec": "int8"}, codes
        sizes = np.concatenate([np.abs(array).reshape(-1) for array in tensors.values()])
        k = max(1, math.ceil(self.share * len(sizes)))
        # Stable, so that of equal ones the same are chosen again.
        chosen = np.zeros(len(sizes), bool)
        chosen[np.argsort(-sizes, kind="stable")[:k]] = True
        start = 0
        for name, array in tensors.items():
            places = np.flatnonzero(chosen[start : start + array.size])
            start += array.size
            values, scale = _rounded(array.reshape(-1)[places], (0,))
            codes[f"{name}.steps"] = np.diff(places, prepend=-1).astype(np.uint32)
            codes[f"{name}.codes"], codes[f"{name}.scales"] = values, scale
        return {"codec": "top-k", "shapes": {name: list(array.shape) for name, array in tensors.items()}}, codes


EXACT = Compression()


@dataclass(frozen=True, eq=False, slots=True)
class Packed:
    """A contribution as it arrives, and as it travels.

    Attributes:
        tensors: As the coordinator will have them.
        description: What stands beside the codes; empty where the tensors travel as they are.
        codes: What travels instead.
    """

    tensors: Tensors
    description: Mapping[str, Any] = field(default_factory=dict)
    codes: Tensors = field(default_factory=dict)


def same(one: Mapping[str, npt.NDArray[Any]], other: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether these are the very same values."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], array) for name, array in other.items())


def unpack(description: Mapping[str, Any], codes: Tensors) -> Tensors:
    """The tensors that `Compression.pack` said would arrive.

    Raises:
        LearningError: The codes are damaged or of another codec, or what comes out is not what the sender has.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            decoded = _decoded(description, codes)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as exc:
        raise LearningError(f"a contribution that is packed otherwise than it says: {exc}") from exc
    if not all(np.isfinite(array).all() for array in decoded.values()):
        raise LearningError("a packed contribution with values that are not finite")
    if description.get("result") != digest_of(decoded):
        raise LearningError("a packed contribution that decodes to other values here than on the device; send it exact")
    return decoded


def digest_of(tensors: Tensors) -> str:
    """SHA-256 of names, shapes and values."""
    found = new_sha256(sum(array.nbytes for array in tensors.values()))
    for name, array in sorted(tensors.items()):
        found.update(f"{name} {array.shape}\n".encode())
        found.update(array.astype("<f4").tobytes())
    return found.hexdigest()


def _decoded(description: Mapping[str, Any], codes: Tensors) -> Tensors:
    """What codes stand for; ValueError and the like for what is none."""
    codec = description.get("codec")
    if codec == "int8" and "factor.codes" in codes:
        return _statistics(description, codes)
    if codec == "int8":
        names = sorted(name.removesuffix(".codes") for name in codes if name.endswith(".codes"))
        return {name: _restored(_int8(codes, name), _scales(codes, name)) for name in names}
    if codec != "top-k":
        raise ValueError(f"there is no codec {str(codec)[:20]!r}")
    shapes = {name: tuple(int(side) for side in shape) for name, shape in description["shapes"].items()}
    is_shaped = all(side >= 0 for shape in shapes.values() for side in shape)
    if not is_shaped or sum(map(math.prod, shapes.values())) > _MOST_VALUES:
        raise ValueError("more values than a head has")
    return {name: _scattered(codes, name, shape) for name, shape in shapes.items()}


def _scattered(codes: Tensors, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    steps, values = codes[f"{name}.steps"], _restored(_int8(codes, name), _scales(codes, name))
    places = np.cumsum(steps, dtype=np.int64) - 1
    found = np.zeros(math.prod(shape), np.float32)
    if steps.dtype != np.uint32 or steps.shape != values.shape or (len(steps) and steps.min() < 1):
        raise ValueError("places that do not go up")
    if len(places) and places[-1] >= len(found):
        raise ValueError("a place outside")
    found[places] = values
    return found.reshape(shape)


# Codes


def _rounded(array: npt.NDArray[Any], axes: tuple[int, ...]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 codes, and their scale over axes, which stay with a length of 1."""
    largest = np.asarray(np.abs(array)).max(axis=axes, keepdims=True, initial=0.0)
    scales = np.asarray(np.maximum(largest / _MOST, _SMALLEST_SCALE), np.float32)
    return np.asarray(np.clip(np.rint(array / scales), -_MOST, _MOST), np.int8), scales


def _restored(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if codes.ndim != scales.ndim:
        raise ValueError("scales of other axes than the codes")
    return np.asarray(codes * scales, np.float32)


def _int8(codes: Tensors, name: str) -> npt.NDArray[np.int8]:
    found = codes[f"{name}.codes"]
    if found.dtype != np.int8:
        raise ValueError(f"codes of {name[:40]} that are {found.dtype}")
    return found


def _scales(codes: Tensors, name: str) -> npt.NDArray[np.float32]:
    found = codes[f"{name}.scales"]
    if found.dtype != np.float32:
        raise ValueError(f"scales of {name[:40]} that are {found.dtype}")
    return found


# Statistics


def _of_statistics(tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, Any], Tensors]:
    """Codes of statistics; none where there are no samples, or no factor of their scatter can be found."""
    moment = tensors["moment"].astype(np.float64)
    d, n_outputs = len(moment) - 1, moment.shape[1]
    if not float(tensors["gram"][-1]) > _NO_SAMPLE or d > _MOST_FEATURES or n_outputs > _MOST_OUTPUTS:
        return {}, {}
    gram = of_triangle(tensors["gram"].astype(np.float64), d + 1)
    n, counts, middle = gram[-1, -1], moment[-1], gram[-1, :-1] / gram[-1, -1]
    # Of classes, each sample is in one; where that is so by chance, what is left is no scatter, and has no factor.
    is_of_classes = bool((counts >= 0).all()) and abs(float(counts.sum()) - n) <= 1e-3 * max(1.0, n)
    for grouped in (True, False) if is_of_classes else (False,):
        if grouped:
            unit, whole = _whole(counts)
            counts = whole * unit
            means = np.where(counts > 0, moment[:-1] / np.where(counts > 0, counts, 1.0), middle[:, None])
            rest, between = means - middle[:, None], (means * counts) @ means.T
        else:
            counts = moment[-1]
            rest, between = (moment[:-1] - middle[:, None] * counts) / n, n * np.multiply.outer(middle, middle)
        root = _root(gram[:-1, :-1] - between, np.diag(gram)[:-1])
        if root is None:
            continue
        codes: Tensors = {"middle": middle.astype(np.float32), "counts": counts.astype(np.float32)}
        if not grouped:
            codes["count"] = np.array([n], np.float32)
        codes["moment.codes"], codes["moment.scales"] = _rounded(rest, (1,))
        factor, codes["factor.scales"] = _rounded(root, (0,))
        codes["factor.codes"] = upper_triangle(factor.astype(np.float64)).astype(np.int8)
        return {"codec": "int8", "grouped": grouped}, codes
    return {}, {}


def _statistics(description: Mapping[str, Any], codes: Tensors) -> Tensors:
    """`gram` and `moment` as they are sent exact, float32.

    With the mean ``m`` of all samples and that of a class ``m + s k``, ``k`` its codes and ``w`` its count,
    ``sum w (m + s k)(m + s k)^T = n m m^T + m a^T + a m^T + (s s^T) sum w k k^T`` and ``a = s sum w k``: the two sums
    are of whole numbers.
    """
    middle, counts = (_floats(codes, name).astype(np.float64) for name in ("middle", "counts"))
    d, k, triangle = len(middle), _int8(codes, "moment").astype(np.float64), _int8(codes, "factor")
    s, factor_scales = (_scales(codes, name).astype(np.float64) for name in ("moment", "factor"))
    sizes = k.shape, s.shape, factor_scales.shape, triangle.shape
    if sizes != ((d, len(counts)), (d, 1), (1, d), (d * (d + 1) // 2,)):
        raise ValueError("parts that are not of one size")
    if d > _MOST_FEATURES or len(counts) > _MOST_OUTPUTS:
        raise ValueError(f"more than {_MOST_FEATURES} features or {_MOST_OUTPUTS} outputs")
    if description.get("grouped") is True:
        if (counts < 0).any():
            raise ValueError("a negative count")
        unit, whole = _whole(counts)
        n, moved = float(whole.sum()) * unit, s[:, 0] * (k @ whole) * unit
        apart = (s * s.T) * ((k * whole) @ k.T) * unit
        moment = (middle[:, None] + s * k) * counts
    else:
        n, moved = float(_floats(codes, "count").astype(np.float64)[0]), np.zeros(d)
        apart = np.zeros((d, d))
        moment = middle[:, None] * counts + (s * k) * n
    cross = np.multiply.outer(middle, moved)
    between = n * np.multiply.outer(middle, middle) + (cross + cross.T) + apart
    factor = np.triu(of_triangle(triangle.astype(np.float64), d))
    gram = np.empty((d + 1, d + 1))
    gram[:-1, :-1] = (factor.T @ factor) * (factor_scales.T * factor_scales) + between
    gram[-1, :-1] = gram[:-1, -1] = n * middle + moved
    gram[-1, -1] = n
    return {**HeadStatistics(gram, np.concatenate([moment, counts[None]])).to_tensors()}


def _whole(counts: Matrix) -> tuple[float, Matrix]:
    """Whole numbers up to 2^24, and the power of two with which they are the counts, to 24 bits of the largest."""
    unit = 2.0 ** (int(np.frexp(counts.max(initial=0.0))[1]) - 24)
    return unit, np.rint(counts / unit)


def _root(scatter: Matrix, squares: Matrix) -> Matrix | None:
    """``U`` with ``U^T U`` the scatter, upper triangular; None where rounding left nothing that has one.

    Args:
        scatter: ``(d, d)``.
        squares: ``(d,)`` sums of squares, of which it is what is left.
    """
    for lift in _LIFTS:
        variances = np.maximum(np.diag(scatter), 0.0) + lift * squares
        unit = np.sqrt(np.where(variances > 0, variances, 1.0))
        alike = scatter / np.multiply.outer(unit, unit)
        np.fill_diagonal(alike, 1.0)
        if not np.isfinite(alike).all():
            return None
        try:
            root = np.linalg.cholesky(alike)
        except np.linalg.LinAlgError:
            continue
        return np.asarray(root.T * np.sqrt(variances), np.float64)
    return None


def _floats(codes: Tensors, name: str) -> npt.NDArray[np.float32]:
    found = codes[name]
    if found.dtype != np.float32 or found.ndim != 1:
        raise ValueError(f"{name} that is not a row of float32")
    return found
