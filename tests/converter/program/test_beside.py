"""What works over the axis of the samples shows beside samples that are nothing like the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from converter.load.free_batch import freed, has_samples
from converter.load.made_up import Fill
from converter.program.beside import swayed
from converter.program.one_run import OneRun
from converter.program.programs import onnx_program
from converter.program.tensors import Array, Arrays, Run
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec
from tests.converter.load.test_carried import graph, node

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 3)).astype(np.float32)
X = TensorSpec(name="x", dtype="float32", shape=(BATCH, 8))
SAMPLE = RNG.standard_normal((1, 8)).astype(np.float32)  # its largest value is below 2


def of(answer: Callable[[Array], Array]) -> Run:
    return lambda batch: {"y": np.asarray(answer(batch["x"]))}


def where_any(condition: Callable[[Array], bool]) -> Run:
    return of(lambda x: (x * 2 if condition(x) else x) @ W)


# Each is for samples like SAMPLE a function of one sample alone.
OVER_SAMPLES: dict[str, Run] = {
    "its largest value, where it clips": of(lambda x: x / max(float(x.max()), 5.0) @ W),
    "its smallest value": of(lambda x: (x - min(float(x.min()), -5.0)) @ W),
    "each column's largest value": of(lambda x: x / np.maximum(x.max(0), 50.0) @ W),
    "its mean, above a limit": where_any(lambda x: x.mean() > 20),
    "its spread, below a limit": where_any(lambda x: x.std() < 0.1),
    "its least absolute value": where_any(lambda x: np.abs(x).max(1).min() < 1e-2),
    "all of it large": where_any(lambda x: float(np.abs(x).max(1).min()) > 5),
    "the sum of signs": where_any(lambda x: np.sign(x).sum() <= -14),
    "the sum along the samples": of(lambda x: np.clip(np.cumsum(x, 0), x - 400, x + 400) @ W),
    "sorted": of(lambda x: (np.where(np.abs(x).max() > 300, np.sort(x, 0), x)) @ W),
    "the first": where_any(lambda x: x[0, 0] > 30 or x[0, 0] < -30),
    "the last": where_any(lambda x: abs(x[-1, 3]) > 100),
    "one that is zero": where_any(lambda x: bool((x == 0).all(1).any())),
    "one that is the same everywhere": where_any(lambda x: bool((x == x[:, :1]).all(1).any())),
    "one quantized scale": of(lambda x: np.round(x / max(np.abs(x).max() / 127, 0.1)) @ W),
}
ALONE: dict[str, Run] = {
    "products": of(lambda x: x @ W),
    "shares": of(lambda x: np.exp(x - x.max(1, keepdims=True)) / np.exp(x - x.max(1, keepdims=True)).sum(1)[:, None]),
    "its own largest value": of(lambda x: x / np.maximum(x.max(1, keepdims=True), 5.0) @ W),
    "overflow": of(lambda x: np.exp(x * 100) @ W),
    "no number": of(lambda x: np.log(x) @ W),
    "anchors that are the same for all": lambda batch: {"y": batch["x"] @ W, "a": W[None]},
    "several rows a sample": of(lambda x: x.reshape(-1, 4)),
    "the largest": of(lambda x: x.argmax(1)),
    "as many as the value says": of(lambda x: np.zeros((len(x), min(50, int(abs(x).max()))), np.float32)),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_others_that_are_large_small_negative_or_zero_show_what_works_over_the_samples() -> None:
    calm = np.concatenate([SAMPLE, SAMPLE[:, ::-1], SAMPLE * 0.9])
    for name, run in OVER_SAMPLES.items():
        assert swayed(run, run, {"x": SAMPLE}, [X]), name
        if name not in ("the sum along the samples", "one quantized scale"):
            together, alone = run({"x": calm})["y"], [run({"x": calm[i : i + 1]})["y"] for i in range(3)]
            assert np.allclose(together, np.concatenate(alone)), name  # so that nothing else would show it
    for name, run in ALONE.items():
        assert swayed(run, run, {"x": SAMPLE}, [X]) is None, name


def test_of_large_samples_a_few_others_tell() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(BATCH, 200_000))
    x = RNG.standard_normal((1, 200_000)).astype(np.float32)
    calls: list[int] = []

    def counted(batch: Mapping[str, Array]) -> Arrays:
        calls.append(len(batch["x"]))
        return {"y": batch["x"][:, :4] / max(float(batch["x"].max()), 500.0)}

    assert swayed(counted, counted, {"x": x}, [spec])
    calls.clear()

    def own(batch: Mapping[str, Array]) -> Arrays:
        calls.append(len(batch["x"]))
        return {"y": batch["x"][:, :4]}

    assert swayed(own, own, {"x": x}, [spec]) is None
    assert sum(calls) < 25


def test_bytes_and_names_are_changed_to_others_that_there_are() -> None:
    sound, pixels, tokens = (
        TensorSpec(name="x", dtype=dtype, shape=(BATCH, 8)) for dtype in ("int16", "uint8", "int64")
    )
    seen: list[Array] = []

    def keeps(batch: Mapping[str, Array]) -> Arrays:
        seen.append(batch["x"])
        return {"y": batch["x"] + 0}

    limits = {"int16": (-32768, 32767), "uint8": (0, 255)}
    for spec in (sound, pixels):
        seen.clear()
        x = np.arange(100, 108).astype(spec.dtype)[None]
        assert swayed(keeps, keeps, {"x": x}, [spec]) is None
        values = np.concatenate([array.ravel() for array in seen])
        assert values.dtype == spec.dtype
        assert (values.min(), values.max()) == limits[spec.dtype]
        loud = of(lambda x: x + int(x.max() >= 200) - int(x.min() < 50))
        assert swayed(loud, loud, {"x": x}, [spec])
    seen.clear()
    x = np.arange(3, 11)[None]
    assert swayed(keeps, keeps, {"x": x}, [tokens]) is None
    assert set(np.concatenate([array.ravel() for array in seen])) == set(x.ravel())
    same = of(lambda x: x + int((x == x[:, :1]).all(1).any()))
    assert swayed(same, same, {"x": x}, [tokens])


def test_what_a_model_does_not_take_is_passed_over() -> None:
    def small_only(batch: Mapping[str, Array]) -> Arrays:
        if np.abs(batch["x"]).max() > 50:
            raise ConversionError("too large")
        return {"y": batch["x"] / max(float(batch["x"].max()), 5.0)}

    assert swayed(small_only, small_only, {"x": SAMPLE}, [X])
    fixed = TensorSpec(name="x", dtype="float32", shape=(1, 8))
    assert swayed(small_only, small_only, {"x": SAMPLE}, [fixed]) is None


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_is_not_made_free_where_unusual_samples_would_change_the_others(size: int) -> None:
    limit = {"five": np.array(5, np.float32), "w": W}
    peak = [node("ReduceMax", "x", "p", keepdims=0), node("Max", "p five", "m"), node("Div", "x m", "q")]
    own = [node("ReduceMax", "x last", "p", keepdims=1), *peak[1:]]
    for nodes, free in ((peak, False), (own, True)):
        model = graph(
            [*nodes, node("MatMul", "q w", "y")], {"x": [size, 8]}, {"y": [size, 3]}, limit | {"last": np.array([1])}
        )
        run, how = onnx_program(model, "it"), OneRun(size=size, axes={"x": 0, "y": 0})
        fill = Fill(specs=(X,), real={"x": RNG.standard_normal((8, 8)).astype(np.float32)})
        assert (freed(model, how, run, fill) is not None) == free
        assert has_samples(run, how, fill) == (free or size == 1)
