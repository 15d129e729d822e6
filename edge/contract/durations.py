"""Durations as people write them: ``30 min``, ``1.5 h``."""

from __future__ import annotations

import re
from typing import Annotated

from edge.contract.documents import Rule

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d)")

Duration = Annotated[str, Rule(lambda text: _DURATION.fullmatch(text) is not None, 'a duration such as "30 min"')]


def seconds(text: str) -> float:
    """What a duration says.

    >>> seconds("30 min"), seconds("1 d")
    (1800.0, 86400.0)

    Raises:
        ValueError: It is none.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a number and s, min, h or d, got {text!r:.40}")
    return float(found[1]) * _UNITS[found[2]]
