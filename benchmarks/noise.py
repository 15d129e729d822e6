"""What noise on the device costs: accuracy of a merge of ten devices, by epsilon.

    python benchmarks/noise.py --data meter_digits.npz [--labels 200] [--draws 3] [--splits 5] [--cache FOLDER]

Ten real devices (an npz of ``x``, ``y``, ``meter``, see devices.py): a network is trained on eight of them, so two are
strangers to it. Each of the ten is given labels and says once what it learned: as it is, clipped and without noise to
speak of, or under noise. The coordinator merges ("nothing": the shipped statistics alone, solved as a merge is).
Judged is the head of the merge, on samples that nobody was given: of the two strangers, and of all ten. All of it is
the product's own; only the noise of "clipped" is drawn 10,000 times too small, which no device does.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from continual import Array, Setting
from devices import Cameras

from edge.learning.disclosure import SEED_BYTES, Noise
from edge.learning.events import Contributed, Labelled
from edge.learning.exchange import HeadUpdate, Noised
from edge.learning.packing import pack
from edge.merging.merge import merge
from edge.merging.policy import MergePolicy
from edge.merging.sums import head_of_sum, shipped_statistics

DELTA = 1e-5


class _Clipped(Noise):
    """Noise that hides nothing, to see what clipping and few coordinates alone cost."""

    @property
    def deviation(self) -> float:
        return 1e-4 * Noise(8.0, DELTA).deviation


WAYS: dict[str, Noise | None] = {
    "shipped": None,
    "nothing": None,
    "as it is": None,
    "clipped": _Clipped(8.0, DELTA),
    **{f"epsilon {epsilon:g}": Noise(epsilon, DELTA) for epsilon in (8.0, 4.0, 1.0)},
}


def said(setting: Setting, device: int, x: Array, y: Array) -> HeadUpdate:
    """What a device says that was given these labels."""
    learning = setting.learning("statistics")
    learned, _ = learning.advance(learning.begin(f"device {device}"), Labelled(pack(x), y, np.ones(len(y), np.float32)))
    kind, packed = learning.contribution(learned)
    update = HeadUpdate(
        learner=kind, backbone=setting.bundle.manifest.backbone_digest, lineage=f"device {device}", version=len(y),
        n_samples=len(y), base_release=0, tensors=packed.tensors,
    )  # fmt: skip
    if learning.disclosing is None or learning.disclosing.coordinates is None:
        return update
    event = Contributed(len(y), noise=learning.disclosing.noise, seed=secrets.token_bytes(SEED_BYTES))
    told = learning.advance(learned, event)[0].disclosed
    assert told is not None
    frame = learning.disclosing.coordinates.frame
    noised = Noised(epsilon=told.epsilon, delta=told.delta, variance=told.variance, frame=frame)
    return replace(update, tensors=dict(told.tensors), noised=noised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cameras = Cameras(options.data, options.cache or Path(folder), options.splits, options.labels)
        found: dict[str, list[tuple[float, float, int]]] = {way: [] for way in WAYS}
        for split, pair in enumerate(cameras.pairs):
            setting = cameras.settings[split]
            devices = [cameras.of(split, device) for device in range(10)]
            rng = np.random.default_rng(split)
            orders = [rng.permutation(len(y)) for _, y in devices]
            given = [
                (x[o[: options.labels]], y[o[: options.labels]]) for (x, y), o in zip(devices, orders, strict=True)
            ]
            tests = [
                (x[o[options.labels :]], y[o[options.labels :]]) for (x, y), o in zip(devices, orders, strict=True)
            ]
            for way, noise in WAYS.items():
                setting.noise = noise
                for _ in range(options.draws if noise is not None else 1):
                    head, size = setting.bundle.head_parameters(), 0
                    if way == "nothing":
                        names = setting.bundle.manifest.class_names
                        head = head_of_sum(setting.bundle, shipped_statistics(setting.bundle, 100.0), names).parameters
                    elif way != "shipped":
                        updates = [(f"device {i}", said(setting, i, *each)) for i, each in enumerate(given)]
                        size = len(updates[0][1].encode())
                        release = merge(
                            setting.bundle, updates, head, 0, {}, policy=MergePolicy(screen=False, merge_noised=True)
                        ).release
                        assert release is not None
                        head = release.parameters
                    right = [float((setting.session.logits(x, head).argmax(axis=1) == y).mean()) for x, y in tests]
                    found[way].append((float(np.mean([right[i] for i in pair])), float(np.mean(right)), size))
        print(f"{options.labels} labels a device, delta {DELTA:g}, {len(cameras.pairs)} splits, {options.draws} draws")
        print("| sent | two strangers | all ten | bytes of an upload |\n| --- | --- | --- | --- |")
        for way, rows in found.items():
            strangers, all_ten, size = np.mean(rows, axis=0)
            print(f"| {way} | {strangers:.3f} | {all_ten:.3f} | {size:,.0f} |")


if __name__ == "__main__":
    main()
