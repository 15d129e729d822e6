"""Time of one training step on the head: our generated ONNX graph against numpy by hand and torch eager.

    python benchmarks/train_step.py [--seconds 0.5]

Linear 512 -> 10 and MLP 512 -> 128 -> 10, batch 1 and 32, float32, softmax cross-entropy, plain SGD, 1 thread. Each
row is the best 10th percentile of three rounds, the programs taken in turn, because machines are noisy; the losses
after the same 20 steps are compared first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from converter.export import export_onnx
from converter.gradient.training_graph import build_training_graph
from converter.split import FEATURES, choose_trainable, split
from edge.inference.onnx_trainer import OnnxTrainer

RATE = 0.01
Step = Callable[[], float]


def network(kind: str) -> nn.Sequential:
    """The head as a torch module, in evaluation mode."""
    torch.manual_seed(0)
    layers = [nn.Linear(512, 10)] if kind == "linear" else [nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers).eval()


def generated(kind: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Step:
    """The graph that `converter.gradient` writes, run as a device runs it."""
    model = network(kind)
    exported = export_onnx(model, torch.zeros(1, 512))
    names = [name for name, _ in model.named_parameters()]
    halves = split(exported, choose_trainable(exported, names, f"last:{len(names) // 2}"))
    graph = build_training_graph(halves.head, FEATURES, list(halves.parameters))
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, halves.parameters)
    weights = np.ones(len(x), np.float32)
    return lambda: trainer.step(x, y, weights, RATE)


def by_hand(kind: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Step:
    """numpy, written out."""
    parameters = [parameter.detach().numpy().copy() for parameter in network(kind).parameters()]
    one_hot = np.eye(10, dtype=np.float32)[y]
    n, rate = len(x), np.float32(RATE)

    def step() -> float:
        *hidden, last, bias = parameters
        features = np.maximum(x @ hidden[0].T + hidden[1], 0) if hidden else x
        logits = features @ last.T + bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - shifted[np.arange(n), y]).mean())
        delta = (exp / total - one_hot) / n
        if hidden:
            back = (delta @ last) * (features > 0)
            hidden[0] -= rate * (back.T @ x)
            hidden[1] -= rate * back.sum(axis=0)
        last -= rate * (delta.T @ features)
        bias -= rate * delta.sum(axis=0)
        return loss

    return step


def eager(kind: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Step:
    """torch, as everybody writes it."""
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    features, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(features), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def percentile_us(step: Step, seconds: float) -> float:
    """10th percentile of the time of a step."""
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        step()
        times.append(time.perf_counter() - start)
    return float(np.percentile(times, 10)) * 1e6


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print("us per step, 1 thread       generated   numpy   torch eager   generated/numpy   generated/torch")
    for kind in ("linear", "mlp"):
        for batch in (1, 32):
            rng = np.random.default_rng(0)
            x, y = rng.standard_normal((batch, 512)).astype(np.float32), rng.integers(0, 10, batch)
            steps = [make(kind, x, y) for make in (generated, by_hand, eager)]
            losses = [[step() for _ in range(20)][-1] for step in steps]
            if max(losses) - min(losses) > 1e-4:
                print(f"the programs do not agree: losses {losses}", file=sys.stderr)
                return 1
            best = [float("inf")] * 3
            for _ in range(3):
                best = [min(b, percentile_us(step, seconds)) for b, step in zip(best, steps, strict=True)]
            ours, numpy_us, torch_us = best
            print(
                f"{kind:<8} batch {batch:<2}            {ours:8.1f} {numpy_us:8.1f} {torch_us:10.1f} "
                f"{ours / numpy_us:15.2f} {ours / torch_us:17.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
