"""Comparing values that are made of arrays."""

from __future__ import annotations

from typing import Any

from edge.learning import tree


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, bit for bit."""
    left, right = tree.flatten({"value": one}), tree.flatten({"value": other})
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes() for name in left
    )
