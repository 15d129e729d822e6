"""What shorter uploads cost: bytes of an upload and accuracy of the merged head, exact, int8 and top-k.

    python benchmarks/uploads.py [--seeds 3] [--devices 10] [--rounds 10] [--data meter_digits.npz] [--cache FOLDER]

All learners, merges and documents are the product's own. Digits turned by 90 degrees, a frozen upright backbone; each
device has labels of 2 of the 10 classes, and the accuracy is that of the merged head over all classes, on digits that
nobody was given.

*Changes*: each device learns by SGD alone, a few labels a round; a round is an upload of each, a merge, and the merge
on each device. "Without feedback" is the same, but for that the device takes what it had for what arrived: what was
left out of an upload is lost with the next merge.

*Statistics*: one upload of each device after some labels. Beside what is built stands what is not: every number
rounded to int8, with a scale for each row, and to float16. With `--data` (an npz of ``x``, ``y``, ``meter``, see
devices.py) also a merge of four cameras each, two of them strangers to the backbone.

Bytes are those of the document, in a zstd frame where the agent sends it in one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import continual
from continual import Array, Setting, digits
from devices import Cameras

from edge.channel.forms import shorten
from edge.contract.errors import LearningError
from edge.learning.compression import EXACT, Compression, Packed
from edge.learning.events import Contributed, HeadOffered
from edge.learning.exchange import HeadUpdate
from edge.learning.learned import Learned
from edge.learning.learning import Learning
from edge.learning.statistics import of_triangle, upper_triangle
from edge.merging.merge import Merge, merge

WAYS = ("exact", "int8", "top-k:0.1", "top-k:0.01")
LABELS_A_ROUND = 12


def update_of(learning: Learning, learned: Learned, setting: Setting, packed: Packed, kind: str) -> HeadUpdate:
    """What a device says, as the coordinator reads it."""
    update = HeadUpdate(
        learner=kind,
        backbone=setting.bundle.manifest.backbone_digest,
        lineage=learned.lineage,
        version=learning.n_samples(learned),
        n_samples=max(learning.n_contributed(learned), 1),
        base_release=learned.release,
        tensors=packed.tensors,
        packed=packed,
    )
    read = HeadUpdate.decode(update.encode(), "an update")
    return replace(update, tensors=read.tensors)


def size_of(update: HeadUpdate) -> int:
    """Bytes of an upload, as `edge.agent.model.contributing` sends it."""
    data = update.encode()
    shorter = shorten(data) if update.codec else None
    return len(data) if shorter is None else len(shorter[1])


def rounds(
    setting: Setting, parts: list[Array], x: Array, y: Array, test: tuple[Array, Array], how: str, n_rounds: int, *,
    feedback: bool = True,
) -> tuple[list[float], list[int]]:  # fmt: skip
    """Accuracy of the merged head after each round, and the bytes of each upload."""
    compression = Compression.parse(how)
    learning = setting.learning("sgd")
    devices = [learning.begin(f"device {i}") for i in range(len(parts))]
    current, already = setting.bundle.head_parameters(), dict[str, int]()
    found, sizes = [], []
    for number in range(n_rounds):
        updates = []
        for i, learned in enumerate(devices):
            for row in parts[i][number * LABELS_A_ROUND : (number + 1) * LABELS_A_ROUND]:
                learned, _ = learning.advance(learned, continual.labelled_event(x, y, int(row)))  # noqa: PLW2901
            kind, packed = learning.contribution(learned, compression)
            updates.append((f"device {i}", update_of(learning, learned, setting, packed, kind)))
            sizes.append(size_of(updates[-1][1]))
            noted = Contributed(learning.n_samples(learned), compression if feedback else EXACT)
            devices[i], _ = learning.advance(learned, noted)
        release = merge(setting.bundle, updates, current, number, already).release
        assert release is not None
        current, already = release.parameters, dict(release.included)
        devices = [learning.advance(each, HeadOffered(release, number + 1, fits=True))[0] for each in devices]
        found.append(accuracy(setting, current, test))
    return found, sizes


def accuracy(setting: Setting, head: object, test: tuple[Array, Array]) -> float:
    """Of a head."""
    return float((setting.session.logits(test[0], head).argmax(axis=1) == test[1]).mean())  # type: ignore[arg-type]


def number_by_number(packed: Packed) -> Packed:
    """Each number of the sums to int8, with one scale a row of the matrix: what is not built."""
    moment = packed.tensors["moment"].astype(np.float64)
    gram = of_triangle(packed.tensors["gram"].astype(np.float64), len(moment))

    def rounded(matrix: Array, axis: int) -> Array:
        scale = np.abs(matrix).max(axis=axis, keepdims=True) / 127 + 1e-30
        return np.rint(matrix / scale) * scale

    corner, last = gram[-1, -1], moment[-1].copy()
    gram, moment = rounded(gram, 1), rounded(moment, 0)
    gram = (gram + gram.T) / 2
    gram[-1, -1], moment[-1] = corner, last
    return Packed({"gram": upper_triangle(gram).astype(np.float32), "moment": moment.astype(np.float32)})


def halves(packed: Packed) -> Packed:
    """Each number to float16."""
    return Packed({name: array.astype(np.float16).astype(np.float32) for name, array in packed.tensors.items()})


STATISTICS: dict[str, Callable[[Packed], Packed]] = {
    "exact": lambda packed: packed,
    "int8": lambda packed: Compression("int8").pack(packed.tensors),
    "each number to float16 (not built)": halves,
    "each number to int8 (not built)": number_by_number,
}


def summed(setting: Setting, samples: list[tuple[Array, Array]], how: str) -> tuple[Merge | None, list[int]]:
    """A merge of devices that learned these, and the bytes of each upload; None where nothing can be merged."""
    learning, updates = setting.learning("statistics"), []
    for i, (x, y) in enumerate(samples):
        learned = learning.begin(f"device {i}")
        for row in range(len(y)):
            learned, _ = learning.advance(learned, continual.labelled_event(x, y, row))
        kind, packed = learning.contribution(learned)
        packed = STATISTICS[how](packed)
        updates.append((f"device {i}", update_of(learning, learned, setting, packed, kind)))
    try:
        found = merge(setting.bundle, updates, setting.bundle.head_parameters(), 0, {})
    except LearningError:
        return None, [size_of(update) for _, update in updates]
    return found, [size_of(update) for _, update in updates]


def row(title: str, sizes: list[int], values: list[float], rest: str = "") -> None:
    """A line of a table; of what is not built there is no size."""
    size = f"{'-':>10}" if "not built" in title else f"{np.mean(sizes):>10,.0f}"
    print(f"{title:<40}{size}" + "".join(f"{value:>9.3f}" for value in values) + rest, flush=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path, help="keep the trained bundles here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        of_changes(options, cache)
        of_statistics(options, cache)
    return 0


def fleet(seed: int, devices: int, cache: Path) -> tuple[Setting, list[Array], Array, Array, tuple[Array, Array]]:
    """A bundle, the rows of each device, features and labels, and a test."""
    setting = continual.digits_setting(cache, seed)
    data, rng = digits.load_digits_split(), np.random.default_rng(seed)
    x, test_x = (setting.features(digits.turned(images)) for images in (data.stream_x, data.test_x))
    own = [((2 * i) % 10, (2 * i + 1) % 10) for i in range(devices)]
    parts = [rng.permutation(np.flatnonzero(np.isin(data.stream_y, classes))) for classes in own]
    return setting, parts, x, data.stream_y, (test_x, data.test_y)


def of_changes(options: argparse.Namespace, cache: Path) -> None:
    """Uploads of SGD heads, round by round."""
    curves, sizes = defaultdict(list), defaultdict(list)
    for seed in range(options.seeds):
        setting, parts, x, y, test = fleet(seed, options.devices, cache)
        for how in WAYS:
            for feedback in (True, False) if how != "exact" else (True,):
                title = how + ("" if feedback else ", without feedback")
                found, bytes_each = rounds(setting, parts, x, y, test, how, options.rounds, feedback=feedback)
                curves[title].append(found)
                sizes[title] += bytes_each
    shown = sorted({0, options.rounds // 3, options.rounds - 1})
    print(f"\nchanges, {options.devices} devices, {LABELS_A_ROUND} labels a round, mean of {options.seeds} seeds")
    print(f"{'':<40}{'bytes':>10}" + "".join(f"{f'round {i + 1}':>9}" for i in shown) + f"{'all':>9}")
    for title, found in curves.items():
        mean = np.mean(found, axis=0)
        row(title, sizes[title], [*(mean[i] for i in shown), float(mean.mean())])


def of_statistics(options: argparse.Namespace, cache: Path) -> None:
    """Uploads of sums, once."""
    for n_labels in (20, 60):
        found, sizes, refused = defaultdict(list), defaultdict(list), defaultdict(int)
        for seed in range(options.seeds):
            setting, parts, x, y, test = fleet(seed, options.devices, cache)
            samples = [(x[part[:n_labels]], y[part[:n_labels]]) for part in parts]
            for how in STATISTICS:
                merged, bytes_each = summed(setting, samples, how)
                is_merged = merged is not None and merged.release is not None
                head = merged.release.parameters if is_merged else setting.bundle.head_parameters()  # type: ignore[union-attr]
                found[how].append(accuracy(setting, head, test))
                sizes[how] += bytes_each
                refused[how] += len(samples) if merged is None else len(merged.left_out)
        print(f"\nstatistics, turned digits, {options.devices} devices, {n_labels} labels each")
        print(f"{'':<40}{'bytes':>10}{'merged':>9}{'least':>9}  left out of {options.devices * options.seeds}")
        for how, values in found.items():
            row(how, sizes[how], [float(np.mean(values)), min(values)], f"{refused[how]:>6}")
    if options.data is not None:
        of_cameras(options.data, cache)


def of_cameras(path: Path, cache: Path) -> None:
    """Uploads of four cameras in each split; accuracy of the merged head on each of them."""
    cameras = Cameras(path, cache, 5, 230)
    found, sizes, refused = defaultdict(list), defaultdict(list), defaultdict(int)
    for split, pair in enumerate(cameras.pairs):
        inside = [d for d in range(int(cameras.device.max()) + 1) if d not in pair][1:3]
        samples, tests = [], []
        for device in (*pair, *inside):
            x, y = cameras.of(split, device)
            order = np.random.default_rng(device).permutation(len(y))
            samples.append((x[order[:115]], y[order[:115]]))
            tests.append((x[order[230:]], y[order[230:]]))
        setting = cameras.settings[split]
        for how in STATISTICS:
            merged, bytes_each = summed(setting, samples, how)
            is_merged = merged is not None and merged.release is not None
            head = merged.release.parameters if is_merged else setting.bundle.head_parameters()  # type: ignore[union-attr]
            found[how] += [accuracy(setting, head, test) for test in tests]
            sizes[how] += bytes_each
            refused[how] += len(samples) if merged is None else len(merged.left_out)
    print(f"\nstatistics, merges of 4 cameras with 115 labels each, {len(cameras.pairs)} splits")
    print(f"{'':<40}{'bytes':>10}{'merged':>9}{'least':>9}  left out of {4 * len(cameras.pairs)}")
    for how, values in found.items():
        row(how, sizes[how], [float(np.mean(values)), min(values)], f"{refused[how]:>6}")


if __name__ == "__main__":
    sys.exit(main())
