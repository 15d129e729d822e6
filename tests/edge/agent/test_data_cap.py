"""What a device may send and receive is counted over restarts, whatever its clock says."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge.agent.line.data_cap import DataCap, DataUse
from edge.contract.clock import Now
from edge.contract.errors import ConfigError

DAY_S = 86_400.0
CAP = DataCap.parse("1MB/day")


def at(text: str, s: float = 0.0) -> Now:
    return Now(s, round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000))


def test_a_cap_is_an_amount_for_a_day_or_a_month() -> None:
    assert str(DataCap.parse("1.5 gb/Month")) == "1500 MB a month"
    for wrong in (
        "20",
        "20MB",
        "20MB/week",
        "-1MB/day",
        "1e3MB/day",
        "MB/day",
        "0MB/day",
        "999KB/day",
        "19MB/month",
        "20MiB/day",
        "",
    ):
        with pytest.raises(ConfigError, match="20MB/day"):
            DataCap.parse(wrong)
    month = DataCap.parse("1GB/month")
    for begin, end in (("2028-02-01", "2028-03-01"), ("2026-12-01", "2027-01-01"), ("2026-01-01", "2026-02-01")):
        found = month.begin_of(at(f"{begin[:8]}28T23:59").wall_ms)
        assert f"{found:%Y-%m-%d} {month.end_of(found):%Y-%m-%d}" == f"{begin} {end}"


def test_what_is_used_is_counted_over_restarts_and_begins_anew_with_the_period(tmp_path: Path) -> None:
    path = tmp_path / "data-used.json"
    use = DataUse(path, CAP)
    use.poll(at("2026-11-29T10:00"), connected=True)
    use.spend(940_000)
    assert (use.why_not, use.left_bytes) == ("", 60_000)
    for minute in range(60):
        use.poll(at(f"2026-11-29T10:{minute:02}", 60.0 * minute), connected=True)
    assert "2026-11-30 00:00 UTC" in use.why_not, "an hour of keep-alive is counted, too"
    used = use.used_bytes
    killed = DataUse(path, CAP)  # nothing of the first was closed
    killed.poll(at("2026-11-29T11:01"), connected=False)
    assert used - 5000 <= killed.used_bytes <= used
    killed.close()
    killed.poll(at("2026-11-30T00:00"), connected=False)
    assert (killed.used_bytes, killed.why_not) == (0, "")


def test_a_clock_that_is_wrong_gives_no_new_allowance_and_takes_none_for_ever(tmp_path: Path) -> None:
    """faults: 8."""
    use = DataUse(tmp_path / "data-used.json", CAP)
    use.poll(at("2026-11-29T10:00"), connected=False)
    use.spend(960_000)
    use.close()
    back = DataUse(tmp_path / "data-used.json", CAP)
    for s, text in ((0.0, "1970-01-01T00:00"), (60.0, "1970-01-02T00:00"), (120.0, "2026-11-29T23:59")):
        back.poll(at(text, s), connected=False)
        assert back.is_used_up, text
    for s in range(130, 200, 20):  # it is ahead for a while, again and again
        back.poll(at("2036-11-29T10:00", s), connected=False)
        back.spend(320_000)
        back.poll(at("2026-11-29T23:59", s + 10), connected=False)
        assert back.is_used_up
        back.close()
        back = DataUse(tmp_path / "data-used.json", CAP)
    back.poll(at("2036-11-29T10:00", 300.0), connected=False)
    assert back.is_used_up, "that day gives what it has once"
    back.poll(at("2026-11-30T00:00", 310.0), connected=False)  # it is set right: this day lies between
    assert (back.used_bytes, f"{back.end:%Y-%m-%d}") == (0, "2026-12-01")


def test_where_the_clock_stays_behind_running_time_ends_a_period(tmp_path: Path) -> None:
    """faults: 8. A device that first ran in 2036."""
    use = DataUse(tmp_path / "data-used.json", CAP)
    use.poll(at("2036-11-29T10:00"), connected=False)
    use.spend(960_000)
    for s in (0.0, DAY_S - 10):
        use.poll(at("2026-11-29T23:59", s), connected=False)
        assert use.is_used_up
        assert "h more" in use.why_not, "and not until 2036"
    use.poll(at("2026-11-30T23:59", DAY_S), connected=False)
    assert not use.is_used_up
    assert f"{use.end:%Y-%m-%d}" == "2026-12-01"


def test_a_count_that_cannot_be_written_or_read_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """faults: 22, 54."""
    path = tmp_path / "data-used.json"
    for content in (b"", b"[]", b'{"begin": -1}', b'{"used": 1e300}', b'{"used": "much"}', b"\xff"):
        path.write_bytes(content)
        assert "damaged" in DataUse(path, CAP).warnings[0]
    use = DataUse(path, CAP)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        use.poll(at("2026-11-29T10:00"), connected=False)
        use.spend(500_000)
        use.spend(460_000)
    assert len(use.warnings) == 1
    assert "No space left" in use.warnings[0]
    assert use.is_used_up
    use.spend(5000)
    assert DataUse(path, CAP).used_bytes == use.used_bytes
