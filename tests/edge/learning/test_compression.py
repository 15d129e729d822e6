"""Shorter contributions: what arrives is what the sender remembers, bit by bit, and what does not is not lost."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import BundleError, ConfigError, LearningError
from edge.learning import tree
from edge.learning.compression import EXACT, Compression, Packed, same, unpack
from edge.learning.exchange import HeadUpdate
from edge.learning.solve import Factor
from edge.learning.statistics import HeadStatistics, PackedStatistics
from edge.merging.summaries import Summary, summary_of
from tests.edge.learning.conftest import Rig, make_rig

INT8, TENTH = Compression("int8"), Compression.parse("top-k")
WAYS = [INT8, TENTH, Compression("top-k", 0.01), Compression("top-k", 1.0)]
D, C = 12, 4


def change(seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """A matrix, a vector, a kernel, a number, and one that did not move."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"w": (5, 8), "b": (5,), "kernel": (3, 2, 3, 3), "scale": ()}
    found = {name: np.asarray(rng.normal(size=shape) ** 3, np.float32) for name, shape in shapes.items()}
    return found | {"still": np.zeros((2, 3), np.float32)}


def statistics(kind: str, n: int = 40, seed: int = 0) -> HeadStatistics:
    """Of samples as devices have them."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(n, D)) + 0.5, 0.0)
    weights = rng.random(n) if kind == "weighted" else np.ones(n)
    if kind == "dead features":
        x[:, ::3] = 0.0
    if kind == "far away":
        x += 100.0
    if kind == "the same":
        x[:] = x[0]
    if kind == "quantities":
        return HeadStatistics.of_targets(x, rng.normal(size=(n, C)), weights)
    if kind == "small":
        x *= 1e-4
    classes = np.eye(C)[rng.integers(0, 2 if kind == "two classes" else C, n)]
    return HeadStatistics.of_targets(x, classes, weights)


KINDS = ("classes", "two classes", "weighted", "quantities", "dead features", "far away", "the same", "small")


@pytest.mark.parametrize("text", ["exact", "int8", "top-k:0.1", "top-k:0.002", "top-k:1.0"])
def test_what_is_written_is_read_again(text: str) -> None:
    assert Compression.parse(text).text == text
    assert Compression.parse("top-k").text == "top-k:0.1"


@pytest.mark.parametrize(
    "text", ["", "int4", "int8:0.1", "top-k:", "top-k:0", "top-k:1.5", "top-k:nan", "top-k:-1", "exact:"]
)
def test_what_is_none_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected exact, int8, top-k or top-k:SHARE"):
        Compression.parse(text)


# Changes


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.text)
def test_a_change_arrives_as_its_sender_remembers_it(way: Compression) -> None:
    for seed in range(5):
        packed = way.pack(change(seed))
        assert same(unpack(packed.description, packed.codes), packed.tensors)
        assert all(packed.tensors[n].shape == a.shape for n, a in change(seed).items())
        assert all(a.dtype == np.float32 for a in packed.tensors.values())


def test_int8_is_within_half_a_step_of_each_row() -> None:
    given_, found = change(), INT8.pack(change()).tensors
    for name, array in given_.items():
        rows = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1)
        steps = np.abs(rows).max(axis=1, keepdims=True) / 127
        assert (np.abs(found[name].reshape(rows.shape) - rows) <= 0.5001 * steps).all()


def test_top_k_keeps_the_largest_of_all_parameters_and_nothing_else() -> None:
    given_, found = change(), TENTH.pack(change()).tensors
    flat, kept = (np.concatenate([each[n].reshape(-1) for n in given_]) for each in (given_, found))
    k = int(np.ceil(0.1 * len(flat)))
    assert np.count_nonzero(kept) <= k
    largest = np.argsort(-np.abs(flat))[:k]
    assert (np.delete(kept, largest) == 0).all()
    assert np.abs(kept[largest] - flat[largest]).max() <= np.abs(flat).max() / 250


# Statistics


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 5, 40])
def test_statistics_arrive_as_their_sender_remembers_them_and_are_those_of_samples(kind: str, n: int) -> None:
    one = statistics(kind, n)
    packed = INT8.pack(dict(one.to_tensors()))
    assert packed.codes
    assert same(unpack(packed.description, packed.codes), packed.tensors)
    is_classifier = kind != "quantities"
    found = HeadStatistics.from_tensors(packed.tensors, D, C, is_classifier=is_classifier)
    # No number-by-number rounding passes here: its scatter has negative eigenvalues.
    assert isinstance(summary_of(found, is_classifier), Summary)
    np.testing.assert_allclose(found.class_counts, one.class_counts, rtol=1e-6, atol=1e-6)
    assert found.n_samples == pytest.approx(one.n_samples, rel=1e-6)
    Factor(found, "discriminant" if is_classifier else "ridge").head()


@pytest.mark.parametrize("kind", ["classes", "quantities", "weighted"])
def test_the_head_of_packed_statistics_answers_as_that_of_exact_ones(kind: str) -> None:
    one = statistics(kind, 400)
    found = HeadStatistics.from_tensors(
        INT8.pack(dict(one.to_tensors())).tensors, D, C, is_classifier=kind != "quantities"
    )
    method: Any = "ridge" if kind == "quantities" else "discriminant"
    weights, biases = Factor(one, method).head()
    others, their_biases = Factor(found, method).head()
    x = np.maximum(np.random.default_rng(9).normal(size=(500, D)) + 0.5, 0.0)
    expected, outputs = x @ np.asarray(weights).T + biases, x @ np.asarray(others).T + their_biases
    assert np.abs(outputs - expected).max() <= 0.05 * np.abs(expected - expected.mean()).max()


def test_sums_without_samples_and_of_no_factor_go_as_they_are() -> None:
    nothing = dict(HeadStatistics.empty(D, C).to_tensors())
    assert INT8.pack(nothing).codes == {}
    impossible = statistics("classes")
    impossible.gram[:-1, :-1] = -impossible.gram[:-1, :-1]
    assert INT8.pack(dict(impossible.to_tensors())).codes == {}


# What comes over the wire


def update(packed: Packed) -> HeadUpdate:
    return HeadUpdate(
        learner="delta",
        backbone="ab" * 32,
        lineage="0123",
        version=12,
        n_samples=10,
        base_release=3,
        tensors=packed.tensors,
        packed=packed,
    )


@pytest.mark.parametrize("way", [EXACT, INT8, TENTH], ids=lambda way: way.text)
def test_a_document_gives_what_arrives_and_says_what_its_reader_must_know(way: Compression) -> None:
    for tensors in (change(), dict(statistics("classes").to_tensors())):
        one = update(way.pack(tensors))
        assert one.codec == {"exact": "", "int8": "int8", "top-k": "int8" if "gram" in tensors else "top-k"}[way.name]
        assert same(HeadUpdate.decode(one.encode(), "it").tensors, one.tensors)


PACKED = [
    way.pack(tensors) for way in (INT8, TENTH) for tensors in (change(), dict(statistics("classes").to_tensors()))
]


@given(data=st.data(), packed=st.sampled_from(PACKED))
@settings(max_examples=60, deadline=None)
def test_no_wrong_code_is_taken(data: st.DataObject, packed: Packed) -> None:
    """A code that is another, missing, or of another shape or type is refused, unless nothing becomes of it."""
    codes, description = dict(packed.codes), copy.deepcopy(dict(packed.description))
    name = data.draw(st.sampled_from(sorted(n for n, a in codes.items() if a.size and a.any())))
    match data.draw(st.sampled_from(["value", "missing", "shape", "dtype", "description"])):
        case "value":
            array = codes[name].copy()
            place = data.draw(st.sampled_from(np.flatnonzero(array).tolist()))
            array.reshape(-1)[place] = -array.reshape(-1)[place] if array.dtype.kind != "u" else 1 << 31
            codes[name] = array
        case "missing":
            del codes[name]
        case "shape":
            codes[name] = np.concatenate([codes[name].reshape(-1), codes[name].reshape(-1)])
        case "dtype":
            codes[name] = codes[name].astype(np.float64)
        case "description":
            key = data.draw(st.sampled_from(sorted(description)))
            description[key] = data.draw(
                st.sampled_from([None, 3, "top", [], {"w": [1 << 40]}, {"w": [-1]}, {"w": "x"}])
            )
    try:
        found = unpack(description, codes)
    except LearningError:
        return
    assert name.endswith(".scales")
    assert same(found, packed.tensors), "the scale of nothing but zeros"


def test_a_document_that_decodes_to_other_values_is_refused_with_the_way_out() -> None:
    packed = INT8.pack(change())
    wrong = replace(packed, description={**packed.description, "result": "00" * 32})
    with pytest.raises(BundleError, match="decodes to other values here than on the device; send it exact"):
        HeadUpdate.decode(update(wrong).encode(), "it")


# Learners

RIGS = ("statistics", "statistics-forgetting", "ridge", "sgd-numpy", "sgd-plain", "layered")


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, digits_bundle: Path) -> Rig:
    """One learner of each kind."""
    return make_rig(request.param, digits_bundle)


@pytest.mark.parametrize("way", [INT8, TENTH], ids=lambda way: way.text)
def test_one_version_is_one_value_however_it_is_sent_and_over_a_restart(rig: Rig, way: Compression) -> None:
    learner = rig.new()
    learner.learn_many(rig.samples[0][:30], rig.samples[1][:30])
    first = learner.contribution(way)
    assert first.codes
    again = rig.new()
    again.load(tree.build(again.template(rig.task.n_outputs), tree.flatten(learner.value)))
    for each in (learner, again):
        repeated = each.contribution(way)
        assert same(repeated.tensors, first.tensors)
        assert same(repeated.codes, first.codes)
        exact = each.contribution(EXACT)
        assert not exact.codes
        for name, array in first.tensors.items():
            np.testing.assert_allclose(exact.tensors[name], array, atol=1e-5 * float(np.abs(array).max()))


@pytest.mark.parametrize("way", [INT8, TENTH], ids=lambda way: way.text)
@pytest.mark.parametrize("name", ["sgd-numpy", "sgd-plain", "layered"])
def test_what_of_a_change_did_not_arrive_is_in_the_next_one(digits_bundle: Path, name: str, way: Compression) -> None:
    """Error feedback: a merge of what arrived leaves the device where it was, and so what is left goes next."""
    rig = make_rig(name, digits_bundle)
    learner, (x, y) = rig.new(), rig.samples
    learner.learn_many(x[:30], y[:30])
    before, sent = learner.parameters(), learner.contribution(way)
    merged = {name: array + sent.tensors[name] for name, array in learner.value.changes.base.items()}
    assert max(float(np.abs(before[name] - merged[name]).max()) for name in before) > 1e-4
    learner.rebase(merged, {}, 30)
    close(learner.parameters(), before)
    learner.learn_many(x[30:31], y[30:31])
    now = learner.parameters()
    close(learner.contribution(EXACT).tensors, {name: now[name] - merged[name] for name in now})


def close(found: Any, expected: Any) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-5 * float(np.abs(array).max()), err_msg=name)


@pytest.mark.parametrize("name", ["statistics", "ridge"])
def test_of_statistics_what_arrived_is_subtracted_and_not_what_was_learned(digits_bundle: Path, name: str) -> None:
    """So nothing of the rounding stays in the head of its own device."""
    rig = make_rig(name, digits_bundle)
    learner, (x, y) = rig.new(), rig.samples
    learner.learn_many(x[:30], y[:30])
    before = learner.value.total() + learner.value.block.statistics
    sent = learner.contribution(INT8)
    arrived = PackedStatistics(sent.tensors["gram"], sent.tensors["moment"]).unpack()
    others = HeadStatistics.of(x[60:], y[60:], 10)
    merged = learner.value.base.unpack() + arrived + others
    learner.rebase(learner.parameters(), dict(merged.to_tensors()), 30)
    found, expected = learner.value.total(), before + others
    np.testing.assert_allclose(found.gram, expected.gram, atol=1e-6 * float(np.abs(merged.gram).max()))
    np.testing.assert_allclose(found.moment, expected.moment, atol=1e-6 * float(np.abs(merged.moment).max()))
    assert np.abs(arrived.gram - learner.value.own.unpack().gram).max() > 1e-3
