"""Bundles for all tests: small networks, trained and converted once in a session by the real converter."""

from __future__ import annotations

import os
import shutil
import tempfile
from fnmatch import fnmatch
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
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: count])


# Files whose tests convert whole models, start processes or learn for long. `make quick` leaves them out.
SLOW = (
    "architecture/test_light_imports.py", "benchmarks/*", "converter/export/test_export_and_split.py",
    "converter/head/gradient/test_losses_and_optimizers.py", "converter/head/gradient/test_networks.py",
    "converter/head/gradient/test_recurrent.py", "converter/head/test_[lt]*.py", "converter/load/*", "converter/pack/*",
    "converter/quantization/*", "converter/report/test_html.py", "converter/search/*", "converter/test_*.py",
    "converter/verify/*", "edge/agent/test_agent_and_coordinator.py", "edge/agent/test_on_device_model.py",
    "edge/agent/test_crashes.py", "edge/agent/test_store.py", "edge/cli/*", "edge/coordinator/test_core.py",
    "edge/inference/test_*trainer*.py", "edge/inference/test_onnx_benchmark.py",
    "edge/learning/test_drift.py", "edge/learning/test_learners.py", "end_to_end/*",
    "integration/*", "test_wheel.py",
)  # fmt: skip


# The files that take longest begin, so that none of them runs alone at the end while the other process waits.
LONGEST = (
    "end_to_end/*", "converter/load/test_malformed_files.py", "converter/test_*.py", "converter/load/*",
    "benchmarks/*", "converter/head/*", "converter/quantization/*", "converter/search/*",
)  # fmt: skip


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
    """scikit-learn's handwritten digits, shuffled once: ``(1797, 1, 8, 8)`` float32 in 0..1 and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(7).permutation(len(data.target))
    return (data.images[order, None] / 16.0).astype(np.float32), data.target[order].astype(np.int64)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Digits that `digits_bundle` was not trained on: ``x (1297, 1, 8, 8)`` float32, ``y (1297,)`` int64."""
    x, y = _digits()
    return x[500:], y[500:]


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits CNN with a linear head of 64 features, int8, with labelled calibration data."""
    import torch
    from torch import nn

    import converter
    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile
    from tests.converter.models import convert

    folder = tmp_path_factory.mktemp("digits")
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
    import torch
    from torch import nn

    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile
    from tests.converter.models import convert

    folder = tmp_path_factory.mktemp("mlp")
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
