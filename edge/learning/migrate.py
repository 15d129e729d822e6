"""What was learned before values were written by `edge.learning.tree`, or before they were what they are today.

In checkpoints of the schema ``EDGESTATE2`` each learner named its arrays itself. This is what the arrays of one
learner, without the beginning of their names ``candidate.<name>.``, say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.changes import Changes, SentHead
from edge.learning.closed_form import SentStatistics, StatisticsKnowledge
from edge.learning.layered import LayeredKnowledge
from edge.learning.learner import part
from edge.learning.replay import ReplayBuffer
from edge.learning.sgd import SgdKnowledge
from edge.learning.statistics import PackedStatistics
from edge.learning.tree import build, flatten, keys

K = TypeVar("K", StatisticsKnowledge, SgdKnowledge, LayeredKnowledge)
_Old = Mapping[str, npt.NDArray[Any]]
_SUMS = ".sums."


def with_pieces(arrays: _Old) -> _Old:
    """Arrays of `edge.learning.tree`, also from before labels could come together, when each came alone.

    And from before anything could be told under noise, and before labels of quantities were asked whether they go with
    the samples.
    """
    found = dict(arrays)
    for path in ("", "trial.before."):
        if f"{path}lineage" in found and f"{path}mixture.correlation.mass" not in found:
            found.setdefault(f"{path}mixture.correlation", np.zeros(0, np.bool_))
        if f"{path}lineage" in found and f"{path}disclosed.n_told" not in found:
            found.setdefault(f"{path}disclosed", np.zeros(0, np.bool_))
    for name, weights in arrays.items():
        if name.endswith(".block.weights"):
            found.setdefault(name.removesuffix("weights") + "pieces", np.ones(weights.size, np.int64))
        elif name == "trial.since.weights":
            found.setdefault("trial.events", np.ones(weights.size, np.int64))
    return found


def without_wrapping(arrays: _Old, weight: str) -> _Old:
    """Arrays of `edge.learning.tree`, also from when what is lifted had W beside the sums of another learner.

    Args:
        arrays: By name.
        weight: Name of W.

    Raises:
        LearningError: They are damaged.
    """
    found = dict(arrays)
    for path in {name.partition(_SUMS)[0] for name in arrays if _SUMS in name}:
        own = found.pop(f"{path}.weight", None)
        if own is None:
            raise LearningError(f"the saved {path} has no weight")
        for name in [name for name in found if name.startswith(path + _SUMS)]:
            found[f"{path}.{name.removeprefix(path + _SUMS)}"] = found.pop(name)
        for head in (f"{path}.given", f"{path}.offset"):
            if head in found and found[head].dtype == np.uint8:  # there is one
                names = flatten(dict.fromkeys([*keys(found, head), weight], own))
                found[head] = names[""]
                (key,) = flatten({weight: own}).keys() - {""}
                found[f"{head}.{key}"] = own
    return found


def of_schema_2(arrays: _Old, like: K) -> K:
    """What the arrays of a learner say.

    Args:
        arrays: By name.
        like: The learner's template, for as many classes.

    Raises:
        LearningError: They are of another learner, or damaged.
    """
    try:
        return build(like, flatten(_value(arrays, like)))
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise LearningError(f"the saved state is of another learner, or damaged: {exc}") from exc


def _value(old: _Old, like: K) -> Any:
    if isinstance(like, StatisticsKnowledge):
        return _statistics(old, like)
    return _sgd(old, like) if isinstance(like, SgdKnowledge) else _layered(old, like)


def _statistics(old: _Old, like: StatisticsKnowledge) -> StatisticsKnowledge:
    def packed(name: str) -> PackedStatistics:
        return PackedStatistics(old[f"{name}.gram"], old[f"{name}.moment"], float(old[f"{name}.scale"][0]))

    assert like.given is not None
    n_samples, included_version = _integers(old["counts"])
    return StatisticsKnowledge(
        n_samples=n_samples,
        gain=float(old["gain"][0]),
        base=packed("base"),
        own=PackedStatistics(old["own.gram"], old["own.moment"]),
        included=packed("included"),
        included_version=included_version,
        block=like.block,
        sent=tuple(SentStatistics(n, packed(f"sent{i}")) for i, n in enumerate(_integers(old["sent_versions"]))),
        given=_head(old, "live.", like.given),
        offset=_head(old, "offset.", like.given) if part(dict(old), "offset.") else None,
    )


def _sgd(old: _Old, like: SgdKnowledge) -> SgdKnowledge:
    (n_samples,) = _integers(old["counts"])
    return SgdKnowledge(
        n_samples=n_samples,
        inside=_head(old, "step.", like.live),
        memory=_head(old, "memory.", like.memory),
        live=_head(old, "live.", like.live),
        replay=ReplayBuffer(
            old["replay.seen"], tuple(old["replay.codes"]), old["replay.scales"], old["replay.targets"]
        ),
        changes=_changes(old, like.live),
    )


def _layered(old: _Old, like: LayeredKnowledge) -> LayeredKnowledge:
    old = dict(old)
    return LayeredKnowledge(
        below=_sgd(part(old, "below."), like.below),
        last=_head(old, "last.", like.last),
        changes=_changes(part(old, "changes."), like.below.live),
    )


def _changes(old: _Old, like: Mapping[str, FloatArray]) -> Changes:
    version, *sent = _integers(old["versions"])
    heads = tuple(SentHead(number, _head(old, f"sent{i}.", like)) for i, number in enumerate(sent))
    return Changes(_head(old, "base.", like), version, heads)


def _head(old: _Old, prefix: str, like: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
    return {name: old[prefix + name] for name in like}


def _integers(array: npt.NDArray[Any]) -> list[int]:
    return [int(number) for number in array]
