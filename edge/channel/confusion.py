"""What a model answered to samples of each class, as telemetry says it: a text, for telemetry is flat, and a short one.

The text is JSON: ``{"eight": {"eight": 21, "three": 4}}`` says that of 25 samples whose label was *eight* 21 were
answered so, and 4 *three*. Where there is no room, what is rarest goes together under "", which is no class's name: as
an answer it stands for all that are not told, as a label for all classes that are not. No count is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.contract import strictjson

Counts = Mapping[str, Mapping[str, int]]
"""By label, by what was answered, how many samples."""

KEY = "confusion"  # of telemetry
OTHERS = ""
MAX_CLASSES, MAX_BYTES = 32, 2000
_MAX_NAME_CHARS = 128
_MOST = 2**53


def told(counts: Counts) -> str:
    """The text; "" where nothing was counted.

    >>> told({"8": {"8": 21, "3": 4}, "3": {"3": 7}})
    '{"8":{"8":21,"3":4},"3":{"3":7}}'
    """
    rows: dict[str, dict[str, int]] = {}
    for label, row in counts.items():
        mine = rows.setdefault(_short(label), {})
        for said, count in row.items():
            mine[_short(said)] = mine.get(_short(said), 0) + count
    for label in sorted(rows, key=lambda label: -total(rows[label]))[MAX_CLASSES:]:
        _leave_out(rows, label)
    while len(text := strictjson.dumps(rows)) > MAX_BYTES:
        wrong = [
            (count, label, said)
            for label, row in rows.items()
            for said, count in row.items()
            if said not in (label, OTHERS)
        ]
        if wrong:
            _, label, said = min(wrong)
            rows[label][OTHERS] = rows[label].get(OTHERS, 0) + rows[label].pop(said)
        else:
            _leave_out(rows, min((each for each in rows if each != OTHERS), key=lambda label: total(rows[label])))
    return text.decode() if rows else ""


def _short(name: str) -> str:
    """A name as a message takes it: manifests have longer ones, and ones with half of a character."""
    return name[:_MAX_NAME_CHARS].encode(errors="replace").decode()


def _leave_out(rows: dict[str, dict[str, int]], label: str) -> None:
    others = rows.setdefault(OTHERS, {OTHERS: 0})
    others[OTHERS] += total(rows.pop(label))


def read(text: str) -> dict[str, dict[str, int]]:
    """What `told` made a text of.

    Raises:
        ValueError: It is none.
    """
    if not text:
        return {}
    rows = strictjson.loads(text.encode(errors="replace"), max_bytes=2 * MAX_BYTES)
    if len(rows) > MAX_CLASSES + 1:
        raise ValueError(f"expected at most {MAX_CLASSES} classes, got {len(rows)}")
    for label, row in rows.items():
        if not isinstance(row, dict) or not row or not all(type(n) is int and 0 < n < _MOST for n in row.values()):
            raise ValueError(f"expected by answer how many samples of {label[:40]!r}, got {row!r:.80}")
        if max(map(len, (label, *row))) > _MAX_NAME_CHARS:
            raise ValueError(f"expected names of at most {_MAX_NAME_CHARS} characters")
    return rows


def total(row: Mapping[str, int]) -> int:
    """Samples of one label."""
    return sum(row.values())
