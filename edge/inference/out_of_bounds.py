"""What a runtime says of a row that a table does not have, in words for whoever sent its number.

Negative numbers come without their sign where the model was made by torch, which takes none; see
`converter.export.symbolics.index`.

>>> out_of_bounds("running Gather node. Name:'/colour/Gather' Status Message: indices element out of data bounds, "
...               "idx=9223372036854775807 must be within the inclusive range [-10,9]")
'the number -1 names nothing in /colour/Gather, which has 10 entries: expected 0 to 9'
"""

from __future__ import annotations

import re

from edge.contract.errors import ConfigError

_NODE = re.compile(r"Name:'([^']+)' Status Message: (?!Non-zero)")
_ROW = re.compile(r"out of data bounds, idx=(-?\d+) must be within the inclusive range \[-?\d+,(-?\d+)\]")
_UNKNOWN_ROW = "Out of range value in index tensor"
_WITHOUT_SIGN = 1 << 63


class OutOfBoundsError(ConfigError):
    """A number in the inputs names a row of a table that does not have it: another bundle may have."""


def out_of_bounds(text: str) -> str | None:
    """The same for people; None where the text says something else.

    Args:
        text: Of onnxruntime's exception.
    """
    node = _NODE.search(text)
    where = "the model" if node is None else node[1]
    if _UNKNOWN_ROW in text:
        return f"a number names nothing in {where}: it is larger or smaller than all that are there"
    found = _ROW.search(text)
    if found is None:
        return None
    number, last = int(found[1]), int(found[2])
    number -= _WITHOUT_SIGN if number >= _WITHOUT_SIGN >> 1 else 0
    count = f"{last + 1} entr{'y' if last == 0 else 'ies'}"
    return f"the number {number} names nothing in {where}, which has {count}: expected 0 to {last}"
