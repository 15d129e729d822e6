"""Trains the networks and writes what a user of ``edge-convert`` has: weights, calibration data, evaluation data.

    python -m benchmarks.networks.training --work FOLDER [NETWORK ...]

Data: the 1,797 digits of scikit-learn (8x8 pixels), enlarged; 500 are held out and never trained on. Seeded, one
thread. A network whose files are there is not trained again: the folder's name holds a digest of the sources.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

SEED = 0
HELD_OUT, CALIBRATION = 500, 256
LEAST_ACCURACY = 0.96  # what a network must reach for its losses to mean anything
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network, its data and its training.

    Attributes:
        name: Of the module in this package.
        class_name: Of the network in it; takes no arguments.
        input_shape: Of one sample.
        size: Width and height to which the digits are enlarged; 0 for random images and no training.
        epochs: Of training.
        learning_rate: The highest, of AdamW.
    """

    name: str
    class_name: str
    input_shape: tuple[int, ...]
    size: int
    epochs: int = 0
    learning_rate: float = 3e-3

    @property
    def path(self) -> Path:
        """The file that defines it."""
        return Path(__file__).with_name(f"{self.name}.py")

    @property
    def arch(self) -> str:
        """As ``edge-convert --arch`` takes it."""
        return f"{self.path}:{self.class_name}"

    def folder(self, work: Path) -> Path:
        """Where its files are: another one as soon as a source changes."""
        sources = self.path.read_bytes() + Path(__file__).read_bytes()
        return work / f"{self.name}-{hashlib.sha256(sources).hexdigest()[:12]}"


NETWORKS = {
    network.name: network
    for network in (
        Network(name="depthwise_cnn", class_name="DepthwiseCNN", input_shape=(1, 32, 32), size=32, epochs=8),
        Network(name="residual_cnn", class_name="ResidualCNN", input_shape=(1, 32, 32), size=32, epochs=8),
        Network(name="recurrent", class_name="Recurrent", input_shape=(28, 28), size=28, epochs=25),
        Network(name="transformer", class_name="Transformer", input_shape=(28, 28), size=28, epochs=35),
        Network(name="mlp", class_name="MLP", input_shape=(784,), size=28, epochs=40),
        Network(name="mobilenet_v2", class_name="MobileNetV2", input_shape=(3, 224, 224), size=0),
    )
}


@functools.cache
def digits() -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """All digits in a fixed random order: ``(1797, 8, 8)`` in 0..1 and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    return (data.images[order] / 16.0).astype(np.float32), data.target[order].astype(np.int64)


def enlarge(images: FloatArray, size: int) -> FloatArray:
    """``(n, h, w)`` to ``(n, size, size)``, bilinear."""
    import torch

    x = torch.from_numpy(images)[:, None]
    return torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def train(network: Network, folder: Path) -> float:
    """Train and write ``model.pth``, ``calibrate.npz`` and ``evaluate.npz``.

    Returns:
        Accuracy on the digits that were held out.
    """
    import torch

    images, labels = digits()
    samples = enlarge(images, network.size).reshape(-1, *network.input_shape)
    test, x, y = samples[:HELD_OUT], torch.from_numpy(samples[HELD_OUT:]), torch.from_numpy(labels[HELD_OUT:])
    model = build(network)
    optimizer = torch.optim.AdamW(model.parameters(), network.learning_rate, weight_decay=1e-2)
    batches = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.learning_rate, network.epochs * batches)
    for _ in range(network.epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        found = model(torch.from_numpy(test)).argmax(1).numpy()
    torch.save(model.state_dict(), folder / "model.pth")
    np.savez(folder / "calibrate.npz", x=x[:CALIBRATION].numpy(), y=y[:CALIBRATION].numpy())
    np.savez(folder / "evaluate.npz", x=test, y=labels[:HELD_OUT])
    return float((found == labels[:HELD_OUT]).mean())


def randomize(network: Network, folder: Path) -> None:
    """Write random weights with batch norm statistics that fit them, and 32 random images for calibration."""
    import torch

    model = build(network)
    x = enlarge(np.random.default_rng(SEED).standard_normal((96, 28, 28)).astype(np.float32), network.input_shape[1])
    x = x.reshape(-1, *network.input_shape)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a mean over all batches
    model.train()
    with torch.no_grad():
        for batch in torch.from_numpy(x).split(16):
            model(batch)
    torch.save(model.eval().state_dict(), folder / "model.pth")
    np.savez(folder / "calibrate.npz", x=x)


def build(network: Network) -> nn.Module:
    """The network with seeded weights."""
    import torch

    torch.manual_seed(SEED)
    model: nn.Module = getattr(importlib.import_module(f"benchmarks.networks.{network.name}"), network.class_name)()
    return model


def prepare(network: Network, work: Path) -> Path:
    """The folder with the network's files, which are made if they are not there.

    Raises:
        RuntimeError: It did not learn its task.
    """
    folder = network.folder(work)
    if (folder / "ready").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if network.size == 0:
        randomize(network, folder)
        result = "random weights"
    else:
        accuracy = train(network, folder)
        if accuracy < LEAST_ACCURACY:
            raise RuntimeError(f"{network.name} is right on {accuracy:.4f}, expected {LEAST_ACCURACY}: train it longer")
        result = f"accuracy {accuracy:.4f} on {HELD_OUT} digits held out"
    with np.load(folder / "calibrate.npz") as data:
        np.save(folder / "sample.npy", data["x"][:1])
    (folder / "ready").write_text(f"{result}\n")
    print(f"{network.name}: {result}, {time.perf_counter() - start:.1f} s", flush=True)
    return folder


def main() -> int:
    """Make the files of the networks that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--work", type=Path, required=True, help="folder for the files")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for name in options.networks or NETWORKS:
        prepare(NETWORKS[name], options.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
