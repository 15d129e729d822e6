"""Numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def amount(value: float) -> str:
    """Three digits that count.

    >>> amount(0.95312), amount(78.13), amount(1234.6), amount(0.0), amount(2e-7)
    ('0.953', '78.1', '1,235', '0', '2e-07')
    """
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e9 and abs(value) >= 1000 else f"{value:.2g}"


def size(n_bytes: int) -> str:
    """Bytes in units of 1000.

    >>> size(999), size(12_345_678)
    ('999 B', '12.3 MB')
    """
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def clock(ms: int) -> str:
    """A time in UTC; "" for none.

    >>> clock(1_800_000_000_000)
    '2027-01-15 08:00:00'
    """
    if not 0 < ms < 250_000_000_000_000:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
