"""Small networks and plans for the converter's tests."""

from __future__ import annotations

import atexit
import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

import converter
from converter.export.exporters import Exported, by_tracing
from converter.load.source import Source
from converter.pipeline import Conversion
from converter.pipeline import convert as _convert
from converter.plan import ConversionPlan
from converter.program.programs import output_specs, torch_program
from edge.contract.profile import load_profile
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_benchmark import Benchmark


def plan(source: Path, **options: Any) -> ConversionPlan:
    """A plan for a generic x86 machine that writes beside the source."""
    options = {"output": source.with_suffix(".edge"), "profile": load_profile("generic-x86_64"), **options}
    return ConversionPlan(source=source, **options)


# No test is about how long a run takes: each is repeated a few times only.
BUDGET_S = 0.003


@functools.cache
def benchmark_server() -> Benchmark:
    """One for all conversions of this process, with little patience."""
    server = Benchmark(BUDGET_S).__enter__()
    atexit.register(server.__exit__, None, None, None)
    return server


def convert(plan: ConversionPlan, *arguments: Any, **options: Any) -> Conversion:
    """`converter.pipeline.convert`, with a server that is there already."""
    return _convert(plan, *arguments, **{"benchmark": benchmark_server(), **options})


def fair(model: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """With a bias by which random samples are of all classes, and not of the one that an untrained network likes."""
    last = model.eval()[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        usual = model(torch.randn(500, *shape, generator=torch.Generator().manual_seed(9))).median(dim=0).values
        last.bias.sub_(usual)
    return model


def cnn(seed: int = 0, classes: int = 4) -> nn.Sequential:
    """Two convolutions on ``(1, 8, 8)`` and a linear head of 36 features."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, classes),
    )
    return fair(model, (1, 8, 8))


def mlp(seed: int = 0) -> nn.Sequential:
    """12-16-8-4."""
    torch.manual_seed(seed)
    return fair(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), (12,))


def labelled(model: nn.Module, shape: tuple[int, ...], n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random samples, each with the class that the model itself gives it."""
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, model(x).argmax(dim=1)


def save(model: nn.Module, path: Path, shape: tuple[int, ...], *, calibrated: int = 0, classes: int = 4) -> Path:
    """A self-describing checkpoint."""
    converter.save_checkpoint(
        model,
        path,
        example_input=torch.zeros(1, *shape),
        class_names=[f"class {i}" for i in range(classes)],
        calibration=labelled(model, shape, calibrated) if calibrated else None,
    )
    return path


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, by digest: what a refusal must not change."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def temporary_folders() -> set[str]:
    """Folders that the converter makes to work in and must take away again."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("edgeloop-*")}


def one_layer(n_in: int, n_out: int, seed: int = 0) -> nn.Module:
    """A linear layer alone."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_in, n_out)).eval()


def rng(seed: int = 0) -> np.random.Generator:
    """Random numbers that are the same every time."""
    return np.random.default_rng(seed)


def source_of(model: nn.Module, *inputs: TensorSpec) -> Source:
    """As loading gives it, with random or zero examples."""
    rng = np.random.default_rng(0)
    example = {}
    for spec in inputs:
        shape = [size if isinstance(size, int) else 5 if size != "batch" else 1 for size in spec.shape]
        example[spec.name] = (rng.standard_normal(shape) * spec.dtype.startswith("float")).astype(spec.dtype)
    return Source(
        model=model.eval(),
        kind="test",
        inputs=inputs,
        example=example,
        output_names=None,
        class_names=None,
        preprocessing={},
        samples=None,
        notes=(),
        digest="",
    )


def vector(*shape: int, name: str = "input", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=("batch", *shape))


def exported_by(exporter: Callable[[Source, Sequence[TensorSpec]], Exported], source: Source) -> Exported:
    assert isinstance(source.model, nn.Module)
    program = torch_program(source.model, source.inputs)
    return exporter(source, output_specs(program, source.inputs, source.example))


def export(model: nn.Module, shape: Sequence[int], dtype: str = "float32") -> onnx.ModelProto:
    return exported_by(by_tracing, source_of(model, vector(*shape, dtype=dtype))).model
