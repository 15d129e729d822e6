"""One decoder: what every kind of field takes and refuses, unknown fields, and that all faults are told together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.documents import STRICT, DocumentError, Rule, at_least, between, decode, encode

EVEN = Rule(lambda n: n % 2 == 0, "even")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    rate: Annotated[float, between(0, 1)]
    kind: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        if self.kind == "adam" and self.rate > 0.5:
            raise ValueError("adam takes a rate of 0.5 at most")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    name: str
    count: Annotated[int, at_least(0), EVEN]
    shape: tuple[int | str, ...]
    pair: tuple[int, int] = (0, 0)
    is_on: bool = False
    limit: int | None = None
    step: Annotated[Step, STRICT] | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)
    anything: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "name": "a", "count": 2, "shape": ["batch", 3], "pair": [1, 2], "is_on": True, "limit": None,
    "step": {"rate": 1, "kind": "sgd"}, "steps": {"x": {"rate": 0.5, "kind": "adam"}}, "anything": {"a": [1, None]},
}  # fmt: skip


def test_a_document_comes_back_and_whole_numbers_do_for_floats() -> None:
    plan = decode(Plan, GOOD | {"future": {"b": 1}})
    assert plan.shape == ("batch", 3)
    assert plan.step == Step(rate=1.0)
    assert type(plan.step.rate) is float
    assert plan.extra == {"future": {"b": 1}}
    assert encode(plan) == GOOD | {"future": {"b": 1}}
    assert decode(Plan, encode(plan)) == plan


def test_fields_with_defaults_may_be_missing_and_need_not_be_written() -> None:
    least = {"name": "a", "count": 0, "shape": []}
    plan = decode(Plan, least)
    assert (plan.limit, plan.steps, plan.extra) == (None, {}, {})
    assert encode(plan, defaults=False) == least
    assert encode(plan)["pair"] == [0, 0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": 3}, "name must be a text, got int 3"),
        ({"count": True}, "count must be an integer, got bool True"),
        ({"count": 2.0}, "count must be an integer, got float 2.0"),
        ({"count": -2}, "count must be 0 or more, got -2"),
        ({"count": 3}, "count must be even, got 3"),
        ({"shape": "batch"}, "shape must be a list, got str 'batch'"),
        ({"shape": ["batch", None]}, "shape[1] must be int or str, got NoneType None"),
        ({"pair": [1, 2, 3]}, "pair must be a list of 2, got list [1, 2, 3]"),
        ({"pair": [1, "2"]}, "pair[1] must be an integer, got str '2'"),
        ({"is_on": 1}, "is_on must be true or false, got int 1"),
        ({"limit": "x"}, "limit must be an integer, got str 'x'"),
        ({"step": []}, "step must be an object, got list []"),
        ({"step": {"rate": 2}}, "step.rate must be from 0 to 1, got 2"),
        ({"step": {"rate": float("nan")}}, "step.rate must be from 0 to 1, got nan"),
        ({"step": {"rate": 10**400}}, "step.rate must be a number, got int 1000"),
        ({"step": {"kind": "sgd"}}, "step.rate is missing"),
        ({"step": {"rate": 0.1, "kind": "adm"}}, "step.kind must be 'sgd' or 'adam', got 'adm'; did you mean 'adam'?"),
        ({"step": {"rate": 0.1, "decay": 1}}, "step.decay is not known: update edgeloop"),
        ({"steps": {"x": {"rate": 0.9, "kind": "adam"}}}, "steps.x: adam takes a rate of 0.5 at most"),
        ({"anything": 7}, "anything must be an object, got int 7"),
    ],
)
def test_a_fault_names_its_field_what_was_expected_and_what_came(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(DocumentError) as caught:
        decode(Plan, GOOD | change)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(fault)


def test_all_faults_are_told_together() -> None:
    with pytest.raises(DocumentError) as caught:
        decode(Plan, {"name": 1, "shape": [None], "step": {"rate": "fast"}}, "it")
    assert [fault.partition(" ")[0] for fault in caught.value.faults] == [
        "it.count",
        "it.name",
        "it.shape[0]",
        "it.step.rate",
    ]


def test_unknown_fields_are_faults_with_a_suggestion_where_people_write() -> None:
    with pytest.raises(DocumentError, match="nme is not known; did you mean 'name'") as caught:
        decode(Plan, {"nme": "a", "count": 0, "shape": []}, strict=True)
    assert len(caught.value.faults) == 1, "the misspelt field is not missing, too"
    with pytest.raises(DocumentError, match=r"steps\.x\.speed is not known"):
        decode(Plan, GOOD | {"steps": {"x": {"rate": 0.1, "speed": 1}}}, strict=True)
    assert decode(Plan, GOOD | {"steps": {"x": {"rate": 0.1, "speed": 1}}}).steps == {"x": Step(rate=0.1)}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "other"]), _JSON))
def test_any_document_is_read_or_refused_and_what_was_read_can_be_written(change: dict[str, Any]) -> None:
    with contextlib.suppress(DocumentError):
        json.dumps(encode(decode(Plan, GOOD | change)))
