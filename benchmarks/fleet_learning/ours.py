"""Edgeloop as it is: each device by the rules of the agent, each exchange a merge by those of the coordinator."""

from __future__ import annotations

import numpy as np
from continual import Setting, labelled_event

from benchmarks.fleet_learning.tasks import Array, Task
from edge.agent.model.candidates import shipped_statistics
from edge.learning.events import Contributed, HeadOffered
from edge.learning.exchange import HeadUpdate
from edge.learning.familiarity import fits
from edge.learning.learned import Learned
from edge.learning.statistics import HeadStatistics
from edge.merging.merge import merge


class Edgeloop:
    """The mixture on each device; sums of statistics, merged and offered to compete."""

    name = "Edgeloop"

    def __init__(self, setting: Setting, task: Task, seed: int) -> None:
        self._setting, self._counter = setting, 0
        self._learning = setting.learning("auto", seed)
        self._devices: list[Learned] = [self._learning.begin(f"device {i}") for i in range(len(task.devices))]
        self._shipped = shipped_statistics(setting.bundle, setting.task)

    def predict(self, device: int, x: Array) -> Array:
        """See `benchmarks.fleet_learning.methods.Method`."""
        return self._learning.answer(self._devices[device], x.astype(np.float32)).argmax(axis=1)

    def learn(self, device: int, x: Array, label: int) -> None:
        """See `benchmarks.fleet_learning.methods.Method`."""
        event = labelled_event(x[None].astype(np.float32), np.array([label]), 0)
        self._devices[device], _ = self._learning.advance(self._devices[device], event)

    def exchange(self) -> int:
        """See `benchmarks.fleet_learning.methods.Method`."""
        updates, sent = [], 0
        for i, learned in enumerate(self._devices):
            kind, packed = self._learning.contribution(learned)
            n = self._learning.n_samples(learned)
            update = HeadUpdate(
                learner=kind,
                backbone=self._setting.bundle.manifest.backbone_digest,
                lineage=learned.lineage,
                version=n,
                n_samples=n,
                base_release=learned.release,
                tensors=packed.tensors,
            )
            sent += sum(array.nbytes for array in packed.tensors.values())
            updates.append((f"device {i}", update))
            self._devices[i], _ = self._learning.advance(learned, Contributed(n))
        found = merge(self._setting.bundle, updates, self._setting.bundle.head_parameters(), self._counter, {})
        if found.release is None:
            return sent
        self._counter += 1
        release = found.release
        size = len(release.encode())
        for i, learned in enumerate(self._devices):
            samples = learned.recent.features(self._setting.head.features.sample_shape)
            new = HeadStatistics.from_tensors(release.merged, samples.shape[1], self._setting.task.n_outputs)
            assert self._shipped is not None
            like = fits(samples, new, self._shipped, release.outside, labelled=True)
            self._devices[i], _ = self._learning.advance(learned, HeadOffered(release, self._counter, fits=like))
            sent += size
        return sent
