"""Values as named arrays: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.contract import tensorfile
from edge.contract.errors import LearningError
from edge.learning.tree import ANY_KEY, Arrays, build, flatten


@dataclass(frozen=True, eq=False, slots=True)
class Leaf:
    number: int
    share: float
    is_new: bool
    name: str
    matrix: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.number == 13:
            raise LearningError("never thirteen")


@dataclass(frozen=True, eq=False, slots=True)
class Tree:
    leaf: Leaf
    maybe: Leaf | None
    sizes: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    pair: tuple[str, float]
    fixed: Mapping[str, npt.NDArray[np.float64]]
    free: Mapping[str, Mapping[str, Leaf]]
    optional: Mapping[str, float] | None
    codes: npt.NDArray[np.int8]


LEAF = Leaf(0, 0.0, False, "", np.zeros((2, 3), np.float32))
LIKE = Tree(
    leaf=LEAF,
    maybe=LEAF,
    sizes=(0,),
    leaves=(LEAF,),
    pair=("", 0.0),
    fixed={"0.weight": np.zeros(2), "%2E": np.zeros(())},
    free={ANY_KEY: {ANY_KEY: LEAF}},
    optional={ANY_KEY: 0.0},
    codes=np.zeros((0, 4), np.int8),
)

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
keys = st.one_of(texts, st.sampled_from(["a", "a.b", "b", "*", "", ".", "0", "%2E"]))
numbers = st.integers(-(2**63), 2**63 - 1).filter(lambda n: n != 13)
leaves = st.builds(
    Leaf, numbers, st.floats(), st.booleans(), texts, hnp.arrays(np.float32, (2, 3), elements=st.floats(width=32))
)
trees = st.builds(
    Tree,
    leaf=leaves,
    maybe=st.none() | leaves,
    sizes=st.lists(numbers, max_size=3).map(tuple),
    leaves=st.lists(leaves, max_size=2).map(tuple),
    pair=st.tuples(texts, st.floats()),
    fixed=st.builds(
        lambda a, b: {"0.weight": a, "%2E": np.array(b)}, hnp.arrays(np.float64, 2, elements=st.floats()), st.floats()
    ),
    free=st.dictionaries(keys, st.dictionaries(keys, leaves, max_size=2), max_size=2),
    optional=st.none() | st.dictionaries(keys, st.floats(), max_size=2),
    codes=hnp.arrays(np.int8, st.tuples(st.integers(0, 3), st.just(4))),
)


def exactly(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


@settings(max_examples=30, deadline=None)
@given(trees)
def test_what_is_written_is_read(tree: Tree) -> None:
    arrays = flatten(tree)
    again = build(LIKE, arrays)
    assert exactly(flatten(again)) == exactly(arrays)
    assert (again.maybe is None, again.optional is None) == (tree.maybe is None, tree.optional is None)
    assert (again.sizes, again.leaf.name, again.pair[0]) == (tree.sizes, tree.leaf.name, tree.pair[0])
    assert {key: set(each) for key, each in again.free.items()} == {key: set(each) for key, each in tree.free.items()}
    assert not np.shares_memory(again.leaf.matrix, tree.leaf.matrix)


@settings(max_examples=30, deadline=None)
@given(trees, st.data())
def test_what_is_cut_off_or_garbage_is_refused_or_is_a_value(tree: Tree, data: st.DataObject) -> None:
    arrays = flatten(tree)
    name = data.draw(st.sampled_from(sorted(arrays)))
    with pytest.raises(LearningError):
        build(LIKE, {each: array for each, array in arrays.items() if each != name})
    with pytest.raises(LearningError):
        build(LIKE, arrays | {name + data.draw(st.sampled_from([".", ".0", "x", ".x.y"])): np.zeros(0)})
    garbage: st.SearchStrategy[Any] = hnp.arrays(
        st.sampled_from([np.uint8, np.int64, np.bool_, np.float32, np.float64]),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
    changed = arrays | {name: data.draw(garbage)}
    try:
        found = build(LIKE, changed)
    except LearningError:
        return
    assert exactly(flatten(found)) == exactly(changed)


def test_every_way_of_not_fitting_is_told() -> None:
    tree = Tree(LEAF, None, (1, 2), (), ("a", 1.0), {"0.weight": np.ones(2), "%2E": np.ones(())}, {}, None, LIKE.codes)
    good = flatten(tree)
    for name, bad, said in (
        ("leaf.matrix", np.zeros((3, 2), np.float32), r"float32 \(3, 2\), expected float32 \(2, 3\)"),
        ("leaf.matrix", np.zeros((2, 3)), "float64"),
        ("codes", np.zeros((9, 5), np.int8), r"\(0, 4\)"),
        ("leaf.number", np.array(13), "never thirteen"),
        ("leaf.number", np.array([1]), "int64"),
        ("leaf.name", np.array([255], np.uint8), "no text"),
        ("sizes", np.array(-1), "-1 elements"),
        ("sizes", np.array(2**62), r"no sizes\.2"),
        ("pair", np.array(3), "3 elements"),
        ("fixed", np.frombuffer(b"0.weight\0", np.uint8), "expected '%2E', '0.weight'"),
        ("fixed", np.frombuffer(b"0.weight\0%2E\0c\0", np.uint8), "expected"),
        ("fixed", np.frombuffer(b"0.weight\0%2E\0%2E\0", np.uint8), "its keys"),
        ("fixed", np.frombuffer(b"0.weight\0%2E", np.uint8), "its keys"),
        ("leaf", np.zeros(0, bool), "unknown, among them 'leaf'"),
    ):
        with pytest.raises(LearningError, match=said):
            build(LIKE, good | {name: bad})
    with pytest.raises(LearningError, match="2 elements"):  # of what, the template does not say
        build((), {"": np.array(2), "0": np.array(1), "1": np.array(1)})


def test_names_are_paths() -> None:
    tree = Tree(LEAF, None, (7,), (LEAF,), ("", 0.0), LIKE.fixed, {"a.b": {"c": LEAF}}, None, LIKE.codes)
    names = set(flatten(tree))
    assert {"leaf.number", "maybe", "sizes", "sizes.0", "leaves.0.matrix", "fixed.0%2Eweight"} <= names
    assert {"free", "free.a%2Eb", "free.a%2Eb.c.name"} <= names
    assert flatten({"b": 1, "a": 2}).keys() == {"", "a", "b"}
    assert flatten({"b": 1, "a": 2})[""].tobytes() == b"a\0b\0"
    _, read = tensorfile.decode(tensorfile.encode("k", {}, flatten(tree)), "k", "x")
    assert exactly(flatten(build(LIKE, read))) == exactly(flatten(tree))


def test_what_is_no_value_is_not_written() -> None:
    for bad in ([1], {"a": {1}}, {"a\0": 1}, np.float32(1.0), 1j):
        with pytest.raises(TypeError):
            flatten(bad)
