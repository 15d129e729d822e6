"""Time of one training step on the head: our generated ONNX graph against others that take the same step.

    python benchmarks/train_step.py [--seconds 0.5]

Heads: Linear 512 -> 10, MLP 512 -> 128 -> 10, a convolution (16 x 8 x 8, 16 of 3 x 3, ReLU, average, Linear) and a
transformer block (16 tokens of 64, 4 heads); batch 1 and 32, float32, softmax cross-entropy, plain SGD, 1 thread.

Programs: the generated graph as a device runs it; for the first two heads an ONNX graph of the same inputs and outputs
written by hand, run by the same `OnnxTrainer`, and numpy written by hand; torch eager; onnxruntime-training and
ExecuTorch where they are installed. Each number is the best 10th percentile of five rounds, the programs taken in turn,
because machines are noisy. Memory and cold start are those of a new process without torch: from the start of the
interpreter to the end of the first step, the best of five.

Exits with 1 only when the programs do not agree on the losses of the same 20 steps.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from converter.graph.build import GraphBuilder, make_model, tensor_info
from converter.graph.canonical import canonical
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES, Head, split
from converter.program.attention import traceable
from edge.inference.onnx_trainer import LEARNING_RATE, LOSS, SAMPLE_WEIGHTS, TARGETS, UPDATED, OnnxTrainer
from tests.converter.models import export

RATE = 0.01
ROUNDS = 5
CLASSES = 10
GOALS = {"generated/hand-built": 1.05, "generated/torch": 0.35, "MiB": 75, "cold ms": 250}
Batch = npt.NDArray[np.float32]
Step = Callable[[], float]


class Convolution(nn.Module):
    """``(16, 8, 8)`` to classes: convolution, ReLU, mean over space, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class TransformerBlock(nn.Module):
    """``(16, 64)`` to classes: layer norm, self-attention of 4 heads, layer norm, MLP with GELU, mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.wide, self.narrow = nn.Linear(64, 128), nn.Linear(128, 64)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        parts = self.qkv(self.norm1(x)).reshape(-1, 16, 3, 4, 16).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        mixed = torch.softmax(q @ k.transpose(2, 3) / 4.0, dim=3) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, 16, 64))
        x = x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))
        return self.linear(x.mean(1))


HEADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(512, CLASSES)), (512,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, CLASSES)), (512,)),
    "conv": (Convolution, (16, 8, 8)),
    "transformer": (TransformerBlock, (16, 64)),
}


def network(kind: str) -> nn.Module:
    """The head as a torch module, in evaluation mode."""
    torch.manual_seed(0)
    return HEADS[kind][0]().eval()


def head_of(kind: str) -> Head:
    """The whole module as a head, so the features are its input."""
    model = network(kind)
    with traceable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = canonical(export(model, HEADS[kind][1]))
    head = split(exported, [name for name, _ in model.named_parameters()]).head
    assert head is not None
    return head


def generated_graph(kind: str) -> tuple[onnx.ModelProto, Head]:
    """The graph that `converter.head.gradient` writes."""
    head = head_of(kind)
    return build_training_graph(head.graph, head.features.name, list(head.parameters)), head


def generated(kind: str, x: Batch, targets: Batch) -> Step:
    """Run as a device runs it."""
    graph, head = generated_graph(kind)
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters)
    weights = np.ones(len(x), np.float32)
    return lambda: trainer.step(x, targets, weights, RATE)


def hand_built(kind: str, x: Batch, targets: Batch) -> Step:
    """The same step as an ONNX graph written by hand."""
    b = GraphBuilder("hand.")
    parameters = {name: p.detach().numpy().copy() for name, p in network(kind).named_parameters()}
    weight, bias = list(parameters)[-2:]
    hidden, activations = FEATURES, FEATURES
    if kind == "mlp":
        hidden = b.op("Gemm", FEATURES, "0.weight", "0.bias", transB=1)
        activations = b.op("Relu", hidden)
    logits = b.op("Gemm", activations, weight, bias, transB=1)
    log_probability = b.op("LogSoftmax", logits, axis=-1)
    count = b.op("Cast", b.op("Size", SAMPLE_WEIGHTS), to=onnx.TensorProto.FLOAT)
    each = b.op("Div", SAMPLE_WEIGHTS, count)
    losses = b.op("ReduceSum", b.op("Mul", log_probability, TARGETS), b.ints(1), keepdims=0)
    b.op("Neg", b.op("MatMul", each, losses), output=LOSS)
    column = b.op("Unsqueeze", b.op("Mul", each, LEARNING_RATE), b.ints(1))
    delta = b.op("Mul", b.op("Sub", b.op("Exp", log_probability), TARGETS), column)
    b.op("Gemm", delta, activations, weight, output=UPDATED + weight, transA=1, alpha=-1.0)
    b.op("Sub", bias, b.op("ReduceSum", delta, b.ints(0), keepdims=0), output=UPDATED + bias)
    if kind == "mlp":
        back = b.op("Gemm", delta, weight)
        back = b.op("Where", b.op("Greater", activations, b.constant(0.0)), back, b.constant(0.0))
        b.op("Gemm", back, FEATURES, "0.weight", output=UPDATED + "0.weight", transA=1, alpha=-1.0)
        b.op("Sub", "0.bias", b.op("ReduceSum", back, b.ints(0), keepdims=0), output=UPDATED + "0.bias")
    inputs = [tensor_info(FEATURES, ("batch", 512)), tensor_info(TARGETS, ("batch", CLASSES))]
    inputs += [tensor_info(SAMPLE_WEIGHTS, ("batch",)), tensor_info(LEARNING_RATE, ())]
    inputs += [tensor_info(name, array.shape) for name, array in parameters.items()]
    outputs = [tensor_info(UPDATED + name, array.shape) for name, array in parameters.items()]
    graph = make_model("hand", b.nodes, inputs, [*outputs, tensor_info(LOSS, ())], b.initializers)
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, parameters)
    weights = np.ones(len(x), np.float32)
    return lambda: trainer.step(x, targets, weights, RATE)


def by_hand(kind: str, x: Batch, targets: Batch) -> Step:
    """numpy, written out."""
    parameters = [parameter.detach().numpy().copy() for parameter in network(kind).parameters()]
    n, rate, labels = len(x), np.float32(RATE), targets.argmax(axis=1)

    def step() -> float:
        *hidden, last, bias = parameters
        features = np.maximum(x @ hidden[0].T + hidden[1], 0) if hidden else x
        logits = features @ last.T + bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - shifted[np.arange(n), labels]).mean())
        delta = (exp / total - targets) / n
        if hidden:
            back = (delta @ last) * (features > 0)
            hidden[0] -= rate * (back.T @ x)
            hidden[1] -= rate * back.sum(axis=0)
        last -= rate * (delta.T @ features)
        bias -= rate * delta.sum(axis=0)
        return loss

    return step


def eager(kind: str, x: Batch, targets: Batch) -> Step:
    """torch, as everybody writes it."""
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    features, labels = torch.from_numpy(x), torch.from_numpy(targets.argmax(axis=1))

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(features), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ort_training(kind: str, x: Batch, targets: Batch) -> Step:
    """onnxruntime-training 1.19.2, Microsoft's discontinued on-device training: artifacts, CheckpointState, Module."""
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    model = network(kind)
    folder = tempfile.mkdtemp()
    torch.onnx.export(model, torch.from_numpy(x), f"{folder}/m.onnx", input_names=["x"], output_names=["z"],
                      dynamic_axes={"x": {0: "batch"}, "z": {0: "batch"}}, do_constant_folding=False,
                      training=torch.onnx.TrainingMode.TRAINING, dynamo=False)  # fmt: skip
    artifacts.generate_artifacts(
        onnx.load(f"{folder}/m.onnx"),
        requires_grad=[name for name, _ in model.named_parameters()],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=folder,
    )
    state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
    module = Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx")
    optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
    optimizer.set_learning_rate(RATE)
    labels = targets.argmax(axis=1)
    module.train()

    def step() -> float:
        loss = float(module(x, labels))
        optimizer.step()
        module.lazy_reset_grad()
        return loss

    return step


def executorch(kind: str, x: Batch, targets: Batch) -> Step:
    """ExecuTorch's training bindings."""
    from executorch.exir import to_edge
    from executorch.extension.training import _load_for_executorch_for_training_from_buffer, get_sgd_optimizer
    from torch.export import export as torch_export
    from torch.export.experimental import _export_forward_backward

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(kind)

        def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(features), labels)

    sample = torch.from_numpy(x), torch.from_numpy(targets.argmax(axis=1))
    joint = _export_forward_backward(torch_export(WithLoss(), sample, strict=True))
    module = _load_for_executorch_for_training_from_buffer(to_edge(joint).to_executorch().buffer)
    first = float(module.forward_backward("forward", sample)[0])
    optimizer = get_sgd_optimizer(module.named_parameters(), RATE)
    pending = [first]

    def step() -> float:
        loss = pending.pop() if pending else float(module.forward_backward("forward", sample)[0])
        optimizer.step(module.named_gradients())
        return loss

    return step


def optional(module: str) -> str | None:
    """None where a module can be imported, otherwise why not."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return "not installed"
    except Exception as exc:  # noqa: BLE001 - broken installations of these are common
        return f"does not import ({type(exc).__name__}: {exc})"
    return None


def percentile_us(step: Step, seconds: float) -> float:
    """10th percentile of the time of a step."""
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        step()
        times.append(time.perf_counter() - start)
    return float(np.percentile(times, 10)) * 1e6


_COLD = """
import sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
from edge.inference.onnx_trainer import OnnxTrainer
folder = Path({folder!r})
arrays = dict(np.load(folder / "batch.npz"))
batch = [arrays.pop(name) for name in ("x", "targets")]
trainer = OnnxTrainer((folder / "train.onnx").read_bytes(), {features!r}, arrays)
trainer.step(*batch, np.ones(len(batch[0]), np.float32), 0.01)
now = time.time()
for _ in range(200):
    trainer.step(*batch, np.ones(len(batch[0]), np.float32), 0.01)
assert "torch" not in sys.modules and "onnx" not in sys.modules
lines = Path("/proc/self/status").read_text().splitlines()
resident, peak = (next(int(l.split()[1]) for l in lines if l.startswith(k)) / 1024 for k in ("VmRSS", "VmHWM"))
print(now, resident, peak)
"""


def cold(kind: str, x: Batch, targets: Batch) -> tuple[float, float, float]:
    """Milliseconds from the start of a process to the end of its first step, and its resident and peak MiB."""
    graph, head = generated_graph(kind)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, Path(folder) / "train.onnx")
        np.savez(Path(folder) / "batch.npz", x=x, targets=targets, **head.parameters)
        script = _COLD.format(root=str(ROOT), folder=folder, features=FEATURES)
        rows = []
        for _ in range(5):
            start = time.time()
            found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
            end, resident, peak = map(float, found.stdout.split())
            rows.append(((end - start) * 1e3, resident, peak))
    return min(row[0] for row in rows), max(row[1] for row in rows), max(row[2] for row in rows)


def verdict(name: str, value: float) -> str:
    """A number and whether it meets its goal."""
    return f"{name} {value:.4g} (goal <= {GOALS[name]:g}{'' if value <= GOALS[name] else ', MISSED'})"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each program in each round")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    programs: dict[str, Callable[[str, Batch, Batch], Step]] = {
        "generated": generated,
        "hand-built": hand_built,
        "numpy": by_hand,
        "torch": eager,
    }
    for name, module, program in (
        ("ort-training", "onnxruntime.training.artifacts", ort_training),
        ("executorch", "executorch.extension.training", executorch),
    ):
        why = optional(module)
        print(f"{name}: {why or 'compared'}")
        if why is None:
            programs[name] = program
    print(f"us per step, 1 thread{'':3}" + "".join(f"{name:>13}" for name in programs))
    worst = {"generated/hand-built": 0.0, "generated/torch": 0.0}
    for kind, (_, shape) in HEADS.items():
        for n in (1, 32):
            rng = np.random.default_rng(0)
            x = rng.standard_normal((n, *shape)).astype(np.float32)
            targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, n)]
            written = kind in ("linear", "mlp")
            chosen = {k: v for k, v in programs.items() if written or k not in ("hand-built", "numpy")}
            steps: dict[str, Any] = {name: make(kind, x, targets) for name, make in chosen.items()}
            losses = {name: [step() for _ in range(20)] for name, step in steps.items()}
            if np.ptp(np.array(list(losses.values())), axis=0).max() > 1e-4:
                print(f"{kind}: the programs do not agree: {losses}", file=sys.stderr)
                return 1
            best = dict.fromkeys(steps, float("inf"))
            for _ in range(ROUNDS):
                best = {name: min(best[name], percentile_us(step, seconds)) for name, step in steps.items()}
            ratios = {f"generated/{k}": best["generated"] / best[k] for k in ("hand-built", "torch") if k in best}
            worst = {name: max(value, ratios.get(name, 0.0)) for name, value in worst.items()}
            row = "".join(f"{best[name]:13.1f}" if name in best else f"{'-':>13}" for name in programs)
            print(f"{kind:<12} batch {n:<6}" + row + "   " + ", ".join(verdict(k, v) for k, v in ratios.items()))
            if n == 32:
                start_ms, resident, peak = cold(kind, x, targets)
                print(
                    f"{'':4}" + ", ".join([verdict("MiB", resident), f"peak {peak:.1f}", verdict("cold ms", start_ms)])
                )
    print("worst: " + ", ".join(verdict(name, value) for name, value in worst.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
