"""Bundles for all tests: small networks, trained and converted once in a session by the real converter."""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes a temporary folder and cores of its own.

    Tests look for what a conversion left behind in the one; two processes that both use all cores wait for each other.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own folders stay where they are
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="edge-tests-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        mine = cores[int(worker.removeprefix("gw")) :: count]
        os.sched_setaffinity(0, mine or cores)  # one that is more than there are cores works where others wait


# Files whose tests convert whole models, start processes or learn for long. `make quick` leaves them out.
SLOW = (
    "architecture/test_light_imports.py", "benchmarks/*", "converter/export/test_export_and_split.py",
    "converter/head/gradient/test_losses_and_optimizers.py", "converter/head/gradient/test_networks.py",
    "converter/head/gradient/test_recurrent.py", "converter/head/test_[lt]*.py", "converter/load/*", "converter/pack/*",
    "converter/quantization/*", "converter/report/test_html.py", "converter/search/*", "converter/test_*.py",
    "converter/verify/*", "edge/agent/test_agent_and_coordinator.py", "edge/agent/test_on_device_model.py",
    "edge/agent/test_crashes.py", "edge/agent/test_store.py", "edge/agent/test_any_bundle.py",
    "edge/agent/test_answers.py", "edge/agent/test_serving.py", "edge/cli/*", "edge/coordinator/test_core.py",
    "edge/agent/test_unwritable.py", "edge/agent/test_warm_start.py", "edge/coordinator/pages/*",
    "edge/coordinator/test_access.py", "edge/coordinator/test_backup.py", "edge/coordinator/test_faults.py",
    "edge/coordinator/test_groups.py", "edge/coordinator/test_rollout*.py", "edge/coordinator/test_turns.py",
    "edge/coordinator/test_two_coordinators.py", "edge/inference/test_providers.py", "edge/simulator/*",
    "edge/inference/test_*trainer*.py", "edge/inference/test_onnx_benchmark.py",
    "edge/learning/test_drift.py", "edge/learning/test_learners.py", "end_to_end/*",
    "integration/*", "test_documentation.py", "test_wheel.py",
)  # fmt: skip


# The files that take longest begin, so that none of them runs alone at the end while the other process waits.
LONGEST = (
    "end_to_end/*", "integration/*", "converter/load/test_malformed_files.py", "converter/test_*.py",
    "converter/load/*", "benchmarks/*", "converter/head/*", "converter/quantization/*", "converter/search/*",
)  # fmt: skip


@cache  # thousands of tests are in a few hundred files
def _is_in(path: Path, patterns: tuple[str, ...]) -> bool:
    here = Path(__file__).parent
    if not path.is_relative_to(here):
        return False
    return any(fnmatch(path.relative_to(here).as_posix(), pattern) for pattern in patterns)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of which no test will run are not even imported: that takes longer than all quick tests."""
    wanted = str(config.getoption("markexpr"))
    return True if "not slow" in wanted and _is_in(collection_path, SLOW) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and begin with the longest."""
    for item in items:
        if _is_in(item.path, SLOW):
            item.add_marker(pytest.mark.slow)

    def place(item: pytest.Item) -> int:
        return next((i for i, pattern in enumerate(LONGEST) if _is_in(item.path, (pattern,))), len(LONGEST))

    items.sort(key=place)  # which keeps the order otherwise


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits, shuffled once: ``(1797, 1, 8, 8)`` float32 in 0..1 and labels.

    Its file alone: to import scikit-learn takes each process five seconds.
    """
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    with gzip.open(Path(found.origin).with_name("datasets") / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    rows = rows[np.random.default_rng(7).permutation(len(rows))]
    return (rows[:, :-1].reshape(-1, 1, 8, 8) / 16.0).astype(np.float32), rows[:, -1].astype(np.int64)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Digits that `digits_bundle` was not trained on: ``x (1297, 1, 8, 8)`` float32, ``y (1297,)`` int64."""
    x, y = _digits()
    return x[500:], y[500:]


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """A file that the first of several test processes makes in a folder, and the others wait for."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "made"
        if not made.exists():
            folder.mkdir()
            made.write_text(make(folder).name)
        return folder / made.read_text()


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits CNN with a linear head of 64 features, int8, with labelled calibration data."""
    return _once(tmp_path_factory, "digits", _digits_bundle)


def _digits_bundle(folder: Path) -> Path:
    import torch
    from torch import nn

    import converter
    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile
    from tests.converter.models import convert

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    x, y = (torch.from_numpy(array[:500]) for array in _digits())
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(20):
        for batch in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    converter.save_checkpoint(
        model,
        folder / "digits.pth",
        example_input=x[:1],
        class_names=[str(digit) for digit in range(10)],
        calibration=(x, y),
    )
    plan = ConversionPlan(
        source=folder / "digits.pth",
        output=folder / "digits.edge",
        profile=load_profile("generic-x86_64"),
        quantize="int8",
        max_drop=5.0,
    )
    convert(plan)
    torch.set_num_threads(threads)
    return plan.output


@pytest.fixture(scope="session")
def mlp_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare state_dict of a 784-128-10 network, both layers trainable: the head is an MLP, and there is no data."""
    return _once(tmp_path_factory, "mlp", _mlp_bundle)


def _mlp_bundle(folder: Path) -> Path:
    import torch
    from torch import nn

    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile
    from tests.converter.models import convert

    threads = torch.get_num_threads()
    (folder / "net.py").write_text(
        "from torch import nn\n\n\n"
        "def network():\n"
        "    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))\n"
    )
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    torch.save(model.state_dict(), folder / "mlp.pth")
    plan = ConversionPlan(
        source=folder / "mlp.pth",
        output=folder / "mlp.edge",
        profile=load_profile("generic-x86_64"),
        arch=f"{folder / 'net.py'}:network",
        trainable="last:2",
    )
    convert(plan)
    torch.set_num_threads(threads)
    return plan.output


@pytest.fixture(scope="session")
def voice_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice detector: audio and a recurrent state, a constant rate, no head that learns."""
    return _once(tmp_path_factory, "voice", _voice_bundle)


def _voice_bundle(folder: Path) -> Path:
    import torch

    from converter.plan import Constant
    from tests.converter.models import convert, plan
    from tests.converter.test_kinds_of_models import RATE, VoiceDetector, voice

    file = folder / "voice.onnx"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that is older than torch wishes
        torch.onnx.export(
            VoiceDetector().eval(),
            (torch.zeros(1, 128), torch.zeros(1, 1, 16), torch.tensor(RATE)),
            str(file),
            input_names=["audio", "state", "sr"],
            output_names=["speech", "stateN"],
            dynamic_axes={"audio": {0: "batch"}, "state": {1: "batch"}, "speech": {0: "batch"}, "stateN": {1: "batch"}},
            dynamo=False,
        )
    frames = file.with_name("frames.npz")
    np.savez(frames, audio=voice(torch.Generator().manual_seed(99), 64)[0].numpy())
    constants = {"sr": Constant(value=RATE)}
    convert(plan(file, calibration=str(frames), constants=constants, quantize="none", trainable="none"))
    return file.with_suffix(".edge")


@pytest.fixture(scope="session")
def detector_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector for pictures of any size: boxes and scores of as many cells as there are."""
    return _once(tmp_path_factory, "detector", _detector_bundle)


def _detector_bundle(folder: Path) -> Path:
    import torch

    from tests.converter.models import convert, plan
    from tests.converter.test_kinds_of_models import Detector, squares

    file = folder / "detector.onnx"
    torch.manual_seed(0)
    axes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Detector().eval(),
            (torch.zeros(1, 3, 32, 32),),
            str(file),
            input_names=["images"],
            output_names=["boxes", "scores"],
            dynamic_axes={"images": axes, "boxes": {0: "batch", 1: "cells"}, "scores": {0: "batch", 1: "cells"}},
            dynamo=False,
        )
    np.savez(file.with_name("pictures.npz"), squares(torch.Generator().manual_seed(99), 32)[0].numpy())
    kinds = {"boxes": "boxes"}
    convert(plan(file, calibration=str(file.with_name("pictures.npz")), quantize="none", kinds=kinds))
    return file.with_suffix(".edge")


@pytest.fixture(scope="session")
def masked_bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An image and a mask to a class of three and an embedding: with a head that learns the class, and without one."""
    learns = _once(tmp_path_factory, "masked", _masked_bundles)
    return learns, learns.with_name("fixed.edge")


def _masked_bundles(folder: Path) -> Path:
    import torch
    from torch import nn

    import converter
    from tests.converter.models import convert, plan

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look, self.kind, self.where = nn.Linear(12, 16), nn.Linear(16, 3), nn.Linear(16, 4)

        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = torch.relu(self.look(image.flatten(1) * mask.flatten(1).to(image.dtype)))
            return self.kind(seen), nn.functional.normalize(self.where(seen), dim=1)

    torch.manual_seed(0)
    model, rng = Masked().eval(), torch.Generator().manual_seed(1)
    image, mask = torch.rand(120, 1, 3, 4, generator=rng), (torch.rand(120, 3, 4, generator=rng) > 0.3).long()
    with torch.no_grad():
        y = model(image, mask)[0].argmax(1)
    converter.save_checkpoint(
        model,
        folder / "masked.pth",
        example_input={"image": image[:1], "mask": mask[:1]},
        class_names=["ok", "scratch", "dent"],
        calibration=({"image": image, "mask": mask}, y),
    )
    for name, trainable in (("learns", "kind.*"), ("fixed", "none")):
        output = folder / f"{name}.edge"
        convert(plan(folder / "masked.pth", output=output, trainable=trainable, quantize="none", answer="output_0"))
    return folder / "learns.edge"
