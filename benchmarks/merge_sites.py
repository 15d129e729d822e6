"""How long sums of very many contributions take: a site's of its devices, the one of all sites, and taking one out.

A million devices are a thousand sites of a thousand devices. Contributions are simulated statistics of 64 features
and 10 classes. A site's sum is made as a site makes it (`edge.merging.pooling`), and the sums are added as the
coordinator above adds them (`edge.merging.sums`); decoding is measured by itself. Seconds are of one core
(`time.process_time`). Two tiers are compared with the flat sum.

    python benchmarks/merge_sites.py --bundle digits.edge [--sites 1000] [--devices 1000]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics, upper_triangle
from edge.merging.pooling import pooled
from edge.merging.sums import head_of_sum, shipped_statistics, sums_by_device


def device(bundle: Bundle, rng: np.random.Generator, lineage: str, n: int = 60) -> HeadUpdate:
    """A device's contribution: samples of classes whose means lie apart."""
    head = bundle.manifest.head
    assert head is not None
    d, n_classes = head.n_statistics, len(bundle.manifest.class_names)
    labels = rng.integers(0, n_classes, n)
    x = np.eye(n_classes, d)[labels] * 3.0 + rng.normal(0, 1.0, (n, d))
    tensors = dict(HeadStatistics.of(x, labels, n_classes).to_tensors())
    return HeadUpdate(
        learner="statistics", backbone=bundle.manifest.backbone_digest, lineage=lineage, version=n, n_samples=n,
        base_release=0, tensors=tensors,
    )  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=1000)
    options = parser.parse_args()
    bundle, rng = Bundle.open(options.bundle), np.random.default_rng(0)
    names = bundle.manifest.class_names

    members = [device(bundle, rng, f"{i:032x}") for i in range(options.devices)]
    start = time.process_time()
    first = pooled(bundle, [(m.lineage, m) for m in members], lineage="0" * 32, version=1)
    pool_s = time.process_time() - start
    start = time.process_time()
    without = pooled(bundle, [(m.lineage, m) for m in members[1:]], lineage="0" * 32, version=2)
    pool_again_s = time.process_time() - start

    # The other sites: other sums of as many devices.
    sites = [first.encode()]
    for i in range(1, options.sites):
        some = [device(bundle, rng, f"{i:016x}{k:016x}") for k in range(3)]
        total = sum((HeadStatistics.from_tensors(s.tensors, *_shape(bundle)) for s in some), _nothing(bundle))
        tensors = {name: array * (options.devices / 3) for name, array in _tensors(total).items()}
        n = 60 * options.devices
        parts = {f"{i:016x}{k:016x}": 60 for k in range(options.devices)}
        sites.append(
            HeadUpdate(
                learner="statistics", backbone=bundle.manifest.backbone_digest, lineage=f"{i:032x}", version=1,
                n_samples=n, base_release=0, tensors=tensors, parts=parts,
            ).encode()
        )  # fmt: skip
    start = time.process_time()
    updates = [(f"site-{i}", HeadUpdate.decode(data, "a site")) for i, data in enumerate(sites)]
    decode_s = time.process_time() - start
    start = time.process_time()
    sums, _ = sums_by_device(bundle, updates)
    total = sum(sums.values(), shipped_statistics(bundle, 100.0))
    sum_s = time.process_time() - start
    start = time.process_time()
    less, _ = sums_by_device(bundle, [("site-0", without)])
    reduced = total - sums["site-0"] + less["site-0"]
    subtract_s = time.process_time() - start
    start = time.process_time()
    head_of_sum(bundle, reduced, names)
    solve_s = time.process_time() - start

    flat = [HeadStatistics.from_tensors(m.tensors, *_shape(bundle)) for m in members]
    by_tier, one_by_one = sums["site-0"], sum(flat, _nothing(bundle))
    apart = float(np.abs(by_tier.gram - one_by_one.gram).max() / np.abs(one_by_one.gram).max())
    print(
        json.dumps(
            {
                "contributions": options.sites * options.devices,
                "sites": options.sites,
                "at_a_site_sum_s": round(pool_s, 3),
                "at_a_site_sum_without_one_s": round(pool_again_s, 3),
                "above_decode_s": round(decode_s, 3),
                "above_sum_s": round(sum_s, 3),
                "above_one_subtracted_s": round(subtract_s, 4),
                "above_solve_s": round(solve_s, 4),
                "bytes_of_a_site": len(sites[1]),
                "two_tiers_from_flat": apart,
            },
            indent=1,
        )
    )


def _shape(bundle: Bundle) -> tuple[int, int]:
    head = bundle.manifest.head
    assert head is not None
    return head.n_statistics, len(bundle.manifest.class_names)


def _nothing(bundle: Bundle) -> HeadStatistics:
    return HeadStatistics.empty(*_shape(bundle))


def _tensors(total: HeadStatistics) -> dict[str, np.ndarray]:
    return {"gram": upper_triangle(total.gram), "moment": total.moment}


if __name__ == "__main__":
    main()
