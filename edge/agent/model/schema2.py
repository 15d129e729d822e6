"""State folders of the schema 2, as they were written until heads competed: taken over, and soon written anew.

There one head was live and learners stood in its shadow. That head becomes the trusted past and the learner that it
followed is believed; what the learners knew goes on.

Record of a journal: CRC-32 of what follows (u32), n (u32), d (u32), k (u32), scales float32[n], weights float32[n],
targets, codes int8[n, d], little-endian. Targets are classes int64[n] where k is 0, else quantities float32[n, k].
Without samples it is a mark: what was learned so far was sent to the fleet.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.model.journal import Saved
from edge.contract.errors import LearningError
from edge.learning import saved as saved_value
from edge.learning.events import Contributed, Event, Labelled
from edge.learning.learned import Head, Learned, Trial
from edge.learning.learner import part
from edge.learning.learning import Learning
from edge.learning.mixture import DECAY, TRUSTED
from edge.learning.packing import PackedFeatures
from edge.learning.recent import Recent

_HEAD = struct.Struct("<IIII")
_MAX_ELEMENTS = 1 << 28
# What a head that was live is believed, and how many labels are taken to have said so.
_BELIEVED, _LABELS = 0.8, 64

_Old = Mapping[str, npt.NDArray[Any]]


def has_own_classes(saved: Saved, shipped: int) -> bool:
    """Whether classes were added on the device: then what was learned cannot be begun anew."""
    return saved.schema == 2 and len(saved.description.get("class_names", ())) > shipped


def learned(learning: Learning, saved: Saved) -> tuple[Learned, list[Labelled]]:
    """What was learned, and the labels that waited.

    Raises:
        LearningError: It is not a state of these learners.
    """
    description, tensors = saved.description, dict(saved.tensors)
    fresh = learning.begin(str(description["lineage"]))
    names = tuple(map(str, description["class_names"]))
    known = fresh.class_names
    if names[: len(known)] != known:
        raise LearningError("its classes are others")
    begun = learning.with_classes(fresh, names)
    learners = tuple(map(str, description["learners"]))
    others = ("previous.", "waiting.", "probation.")
    live = {name: array for name, array in tensors.items() if not name.startswith(others)}
    found = _one(learning, begun, live, int(description["base_release"]), learners)
    if "previous_release" in description:
        before = _one(learning, begun, part(tensors, "previous."), int(description["previous_release"]), learners)
        since = _labels(part(tensors, "probation."), found.recent.grown(len(names)) if names else found.recent)
        found = replace(found, trial=Trial(before=before, since=since, events=np.ones(len(since), np.int64)))
    waiting = _labels(part(tensors, "waiting."), begun.recent)
    return found, waiting.labels().each()


def _one(learning: Learning, begun: Learned, tensors: _Old, release: int, learners: tuple[str, ...]) -> Learned:
    """One old state: of what was live, or of what had been live before a release on probation."""
    old = dict(tensors)
    counts = [int(number) for number in old["counts"]]
    number = counts[0]
    experts = dict(begun.experts)
    n_outputs = learning.task(begun).n_outputs
    for name in learners:
        experts[name] = saved_value.migrated(learning, name, part(old, f"candidate.{name}."), n_outputs)
    shipped = experts[TRUSTED].parameters
    head = {name: np.array(old[f"live.{name}"], np.float32) for name in shipped}
    if any(array.shape != shipped[name].shape for name, array in head.items()):
        raise LearningError("the saved head is of another shape")
    experts[TRUSTED] = Head(head)
    leader = learners[number - 1] if number else TRUSTED
    recent, reserve = begun.recent, part(old, "reserve.")
    n = len(reserve["recent.scales"])
    recent = Recent(
        codes=reserve["recent.codes"],
        scales=reserve["recent.scales"],
        targets=reserve["recent.targets"],
        weights=np.ones(n, np.float32),
        answers=np.array(reserve["live"], np.float32).reshape(n, n_outputs),
    )
    task, mixture = learning.task(begun), begun.mixture
    believed = mixture.names.index(leader)
    weights = mixture.start * (1.0 - _BELIEVED)
    weights[believed] += _BELIEVED
    right = float(task.right(recent.answers, recent.targets).mean()) if n and not task.is_regression else float(n > 0)
    labels = min(_LABELS, counts[2])
    agreement = np.zeros(len(weights))
    agreement[[0, believed]] = right * (1.0 - DECAY**labels) / (1.0 - DECAY)
    heard = np.array(old["heard"], np.int64)
    mixture = replace(mixture, weights=weights, agreement=agreement, labels=labels, heard=heard)
    return replace(
        begun,
        release=release,
        experts=experts,
        mixture=mixture,
        recent=recent,
        usual=np.array(old["usual"], np.float64),
        temperature=float(old["temperature"][0]),
    )


def _labels(found: _Old, like: Recent) -> Recent:
    """Labels side by side, of which there may be none."""
    if not found:
        return like.last(0)
    n = len(found["scales"])
    return Recent(
        codes=found["codes"],
        scales=found["scales"],
        targets=found["targets"],
        weights=found["weights"],
        answers=np.zeros((n, like.answers.shape[1]), np.float32),
    )


def read_old_journal(path: Path) -> tuple[list[Event], int]:
    """The whole records of a journal, and how many damaged ones lie between them."""
    data = path.read_bytes()
    events: list[Event] = []
    end_before, n_damaged = 0, 0
    for start, end, found in _records(data):
        n_damaged += start != end_before
        end_before = end
        events += found
    return events, n_damaged


def _records(data: bytes) -> Iterator[tuple[int, int, list[Event]]]:
    """Whole records: where each begins and ends, and its events. A damaged one that states its length is left out."""
    at = 0
    while at + _HEAD.size <= len(data):
        crc, n, d, k = _HEAD.unpack_from(data, at)
        width = 4 * k if k else 8
        start, end = at + _HEAD.size, at + _HEAD.size + n * (8 + width + d)
        if n * max(d, k, 1) > _MAX_ELEMENTS or end > len(data):
            return
        if zlib.crc32(data[at + 4 : end]) == crc:
            yield at, end, _events(data, start, n, d, k)
        at = end


def _events(data: bytes, start: int, n: int, d: int, k: int) -> list[Event]:
    if n == 0:
        return [Contributed(-1)]
    scales = np.frombuffer(data, "<f4", n, start).astype(np.float32)
    weights = np.frombuffer(data, "<f4", n, start + 4 * n).astype(np.float32)
    if k:
        targets: npt.NDArray[Any] = np.frombuffer(data, "<f4", n * k, start + 8 * n).reshape(n, k).astype(np.float32)
    else:
        targets = np.frombuffer(data, "<i8", n, start + 8 * n).astype(np.int64)
    codes = np.frombuffer(data, np.int8, n * d, start + (8 + (4 * k or 8)) * n).reshape(n, d)
    rows = [slice(i, i + 1) for i in range(n)]
    return [Labelled(PackedFeatures(codes[r], scales[r]), targets[r], weights[r]) for r in rows]
