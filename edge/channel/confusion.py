"""What a model answered to samples of each class, as telemetry says it: a text, for telemetry is flat, and a short one.

The text is JSON, ``{"counts":[[0,0,21],[0,1,4]],"names":["eight","three"]}``: of 25 samples whose label was *eight* 21
were answered so, and 4 *three*. Where there is no room, what is rarest goes together under the name "", which is no
class's: as an answer it stands for all that are not told, as a label for all classes that are not. No count is lost.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping

from edge.contract import strictjson

Counts = Mapping[str, Mapping[str, int]]
"""By label, by what was answered, how many samples."""

KEY = "confusion"  # of telemetry
FEW = 10  # labels of which a share says nothing: people are told how many were right
AGAIN_S = 3600.0  # what did not change is said again after this: telemetry may be lost
OTHERS = ""
MAX_CLASSES, MAX_BYTES = 32, 2000
_MAX_NAME_CHARS = 128
_MOST = 2**53
_CELL_BYTES = 16  # about, of one with its name


def told(counts: Counts) -> str:
    """The text; "" where nothing was counted.

    >>> told({"8": {"8": 21, "3": 4}, "3": {"3": 7}})
    '{"counts":[[0,0,7],[1,0,4],[1,1,21]],"names":["3","8"]}'
    """
    rows: dict[str, dict[str, int]] = {}
    for label, row in counts.items():
        mine = rows.setdefault(_short(label), {})
        for said, count in row.items():
            mine[_short(said)] = mine.get(_short(said), 0) + count
    for label in sorted(rows, key=lambda label: -total(rows[label]))[MAX_CLASSES:]:
        _leave_out(rows, label)
    while len(text := _written(rows)) > MAX_BYTES:
        wrong = [
            (count, label, said)
            for label, row in rows.items()
            for said, count in row.items()
            if said not in (label, OTHERS)
        ]
        for _, label, said in heapq.nsmallest(max(1, (len(text) - MAX_BYTES) // _CELL_BYTES), wrong):
            rows[label][OTHERS] = rows[label].get(OTHERS, 0) + rows[label].pop(said)
        if not wrong:
            _leave_out(rows, min((each for each in rows if each != OTHERS), key=lambda label: total(rows[label])))
    return text.decode() if rows else ""


def _written(rows: Counts) -> bytes:
    names = sorted({*rows, *(said for row in rows.values() for said in row)})
    at = {name: i for i, name in enumerate(names)}
    cells = sorted([at[label], at[said], count] for label, row in rows.items() for said, count in row.items())
    return strictjson.dumps({"names": names, "counts": cells})


def _short(name: str) -> str:
    """A name as a message takes it: manifests have longer ones, and ones with half of a character."""
    return name[:_MAX_NAME_CHARS].encode(errors="replace").decode()


def _leave_out(rows: dict[str, dict[str, int]], label: str) -> None:
    others = rows.setdefault(OTHERS, {OTHERS: 0})
    others[OTHERS] = others.get(OTHERS, 0) + total(rows.pop(label))


def read(text: str) -> dict[str, dict[str, int]]:
    """What `told` made a text of.

    Raises:
        ValueError: It is none.
    """
    if not text:
        return {}
    found = strictjson.loads(text.encode(errors="replace"), max_bytes=2 * MAX_BYTES)
    names, cells = found.get("names"), found.get("counts")
    if not isinstance(names, list) or not all(isinstance(each, str) and len(each) <= _MAX_NAME_CHARS for each in names):
        raise ValueError(f"expected names of at most {_MAX_NAME_CHARS} characters, got {names!r:.80}")
    if not isinstance(cells, list):
        raise ValueError(f"expected a list of counts, got {cells!r:.80}")
    rows: dict[str, dict[str, int]] = {}
    for cell in cells:
        if not isinstance(cell, list) or len(cell) != 3 or not all(type(each) is int for each in cell):
            raise ValueError(f"expected the numbers of label and answer, and how many, got {cell!r:.80}")
        label, said, count = cell
        if not (0 <= label < len(names) and 0 <= said < len(names) and 0 < count < _MOST):
            raise ValueError(f"expected a label and an answer of {len(names)} names, and a count, got {cell!r:.80}")
        row = rows.setdefault(names[label], {})
        row[names[said]] = row.get(names[said], 0) + count
    if len(rows) > MAX_CLASSES + 1:
        raise ValueError(f"expected at most {MAX_CLASSES} classes, got {len(rows)}")
    return rows


def total(row: Mapping[str, int]) -> int:
    """Samples of one label."""
    return sum(row.values())


def together(all_counts: Iterable[Counts]) -> dict[str, dict[str, int]]:
    """The sum of several."""
    found: dict[str, dict[str, int]] = {}
    for counts in all_counts:
        for label, row in counts.items():
            own = found.setdefault(label, {})
            for said, count in row.items():
                own[said] = own.get(said, 0) + count
    return found


class Teller:
    """Of one model: says the text when it changed, and once an hour."""

    def __init__(self) -> None:
        self._text, self._again_s = "", math.inf

    def news(self, text: str, now_s: float) -> dict[str, str]:
        """What telemetry is to say beside all else: the text, or nothing.

        Args:
            text: As `told` gives it.
            now_s: The time, of a clock that only goes forward.
        """
        if text == self._text and now_s < self._again_s:
            return {}
        self._text, self._again_s = text, now_s + AGAIN_S
        return {KEY: text}
