"""What the benchmark of real models calls right, wrong and refused, on a model of our own; nothing is downloaded."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.real_models import attempt, cut, judge, original, show
from benchmarks.trained import judging
from benchmarks.trained.catalogue import MODELS, Arch, Model
from benchmarks.trained.packages import Package
from benchmarks.trained.samples import Samples, Source


def small(path: Path, batch: object = "batch") -> Path:
    """A linear layer of four numbers and a softmax over three."""
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=-1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def entry(**changes: object) -> Model:
    """The catalogue's entry of such a model."""
    rows = np.random.default_rng(1).normal(size=(40, 1, 4)).astype(np.float32)
    stated: dict[str, object] = {
        "name": "small",
        "package": Package("none", "0"),
        "file": "small.onnx",
        "does": "three classes",
        "samples": lambda _: Samples([{"x": row} for row in rows], [{"x": rows[:3, 0]}]),
        "rules": (judging.classes(),),
    }
    return Model(**(stated | changes))


def test_bundle_is_right_and_one_of_another_model_is_wrong(tmp_path, capsys):
    source = Source(tmp_path, small(tmp_path / "small.onnx"))
    outcome = attempt(entry(), source, None, tmp_path, with_samples=True, arguments=["--quantize", "none"], limit_s=900)
    assert (outcome.verdict, outcome.chosen) == ("right", "float"), outcome
    assert "100.0% of 10 classes" in outcome.text
    assert outcome.speed is not None
    assert 0.05 < outcome.speed < 20
    other = small(tmp_path / "other.onnx")
    changed = onnx.load(other)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(-np.ones((4, 3), np.float32), "w"))
    onnx.save(changed, other)
    feeds = [{"x": np.random.default_rng(7).normal(size=(9, 4)).astype(np.float32)}]
    kept, text = judge(entry(), tmp_path / "model.edge", feeds, original(other, None, entry()), True)
    assert not kept, text
    kept, text = judge(entry(rules=(None,)), tmp_path / "model.edge", feeds, lambda _: [np.zeros((9, 2))], True)
    assert (kept, text) == (False, "shape (9, 3) instead of (9, 2)")
    from rich.console import Console

    show({"small": {"samples": outcome}}, Console(file=sys.stdout, width=150))
    assert "samples: 1 models: 1 right" in capsys.readouterr().out


def test_refusal_counts_only_if_its_reason_was_foreseen(tmp_path):
    source = Source(tmp_path, tmp_path / "small.onnx")
    source.path.write_bytes(b"not a model")
    for refusals, verdict in (((), "refused!"), (("small.onnx",), "refused")):
        model = entry(refusals=refusals)
        found = attempt(model, source, None, tmp_path, with_samples=False, arguments=[], limit_s=900)
        assert found.verdict == verdict


@pytest.mark.parametrize(
    ("rule", "scale", "kept"),
    [
        (judging.classes(), 0.001, True),
        (judging.classes(), 2.0, False),
        (judging.probabilities(), 0.01, True),
        (judging.probabilities(), 0.3, False),
        (judging.probabilities(of_logits=True), 0.05, True),
        (judging.probabilities(of_logits=True), 1.0, False),
        (judging.spans(), 0.05, True),
        (judging.spans(), 3.0, False),
        (judging.quantities(), 0.01, True),
        (judging.quantities(), 0.3, False),
        (judging.embedding(), 0.01, True),
        (judging.embedding(), 0.6, False),
        (judging.signal(), 0.01, True),
        (judging.signal(), 0.3, False),
        (judging.mask(), 0.001, True),
        (judging.mask(), 0.3, False),
        (judging.greedy_text(), 0.001, True),
        (judging.greedy_text(), 1.0, False),
        (judging.boxes(slice(4, 6), (2, 3)), 0.01, True),
        (judging.boxes(slice(4, 6), (2, 3)), 0.5, False),
    ],
)
def test_rule_sees_noise_that_matters_and_no_other(rule, scale, kept):
    rng = np.random.default_rng(0)
    reference = [rng.random((7, 6)) for _ in range(50)]
    found = [one + scale * rng.normal(size=one.shape) for one in reference]
    assert judging.judged(rule, reference, reference).kept
    result = judging.judged(rule, reference, found)
    assert result.kept is kept, result.text


def test_one_column_that_is_lost_is_not_hidden_by_the_others():
    rng = np.random.default_rng(0)
    reference = [rng.normal(size=(20, 3)) * (1, 1000, 1) for _ in range(5)]
    found = [np.where(np.arange(3) == 2, 0.0, one) for one in reference]
    assert not judging.judged(judging.quantities(), reference, found).kept
    assert not judging.judged(judging.quantities(), reference, [one * np.nan for one in reference]).kept


def test_class_is_cut_from_its_package_without_what_is_not_installed(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nimport no_such_library\nfrom .rest import other\nSIZE = 3\n"
        "class Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(package.SIZE, 2)\n"
        "class Unwanted(other.Base):\n    pass\n"
    )
    arch = Arch(sources=("net.py",), names=("Net",), build="Net", prefix="package.")
    text = cut(arch, tmp_path, tmp_path / "arch.py").read_text()
    assert "no_such_library" not in text
    assert "Unwanted" not in text
    names: dict[str, object] = {}
    exec(text, names)
    assert names["Net"]().in_features == 3


def test_catalogue_names_at_least_thirty_models_once():
    assert len({model.name for model in MODELS}) == len(MODELS) >= 30
    assert len({(model.package, model.file) for model in MODELS}) == len(MODELS)
