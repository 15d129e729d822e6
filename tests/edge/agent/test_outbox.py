"""What waits for a connection is bounded, survives a kill, and costs a device nothing when its file is unusable."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edge.agent.line.outbox import AGAIN_S, KEEP_S, Kind, Outbox, Report

FOLDER = "a" * 16
MANY = 1_000_000


def report(seq: int, kind: Kind = "telemetry", *, model: str = "", boot: int = 1, size: int = 10) -> Report:
    return Report(
        kind=kind, state_id=FOLDER, boot=boot, seq=seq, model=model, at_s=float(seq), values={"text": "x" * size}
    )


def numbers(outbox: Outbox, kind: Kind = "telemetry", *, newest: bool = False) -> list[int]:
    return [each.seq for each in outbox.some(kind, MANY, 0.0, newest=newest)]


def test_what_waits_is_written_in_batches_and_found_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    first = Outbox(path, MANY)
    for seq in (1, 2, 3):
        first.add(report(seq), now_s=float(seq))
    first.poll(KEEP_S)
    assert not path.exists(), "telemetry waits for its minute"
    assert first.next_deadline_s == 1.0 + KEEP_S
    first.add(report(1, "event"), now_s=4.0)
    assert first.next_deadline_s == 6.0, "an event does not"
    first.poll(6.0)
    first.add(report(4), now_s=7.0)
    assert numbers(first) == [1, 2, 3, 4]
    assert numbers(first, newest=True) == [4, 3, 2, 1]
    assert [each.seq for each in first.some("telemetry", 2, 0.0, newest=True)] == [4, 3]
    first.forget([report(2).key, report(4).key], now_s=8.0)
    assert numbers(first) == [1, 3]
    first.add(report(5), now_s=9.0)
    first.close(9.0)
    second = Outbox(path, MANY)
    assert len(second) == 4
    assert numbers(second) == [1, 3, 5]
    assert second.some("event", 1, 0.0)[0] == report(1, "event")
    second.add(report(5), now_s=1.0)
    second.keep(1.0)
    assert numbers(second) == [1, 3, 5], "a repeat is one"
    assert (second.warnings, second.thinned, second.lost) == ([], 0, 0)


def test_when_it_is_full_old_telemetry_thins_out_model_by_model_and_events_go_last(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", 20_000)
    for seq in range(1, 21):
        outbox.add(report(seq, "event"), 0.0)
    for seq in range(1, 401):
        outbox.add(report(seq, model="ab"[seq % 2]), 0.0)
        if seq % 8 == 0:
            outbox.keep(0.0)
    left = numbers(outbox)
    assert len(numbers(outbox, "event")) == 20
    assert outbox.thinned == 400 - len(left) > 100
    assert len(left) * 84 <= 20_000
    assert left[-50:] == list(range(351, 401)), "the newest are all there"
    gaps = [after - before for before, after in itertools.pairwise(left)]
    assert max(gaps[:10]) > max(gaps[-50:]) == 1, "the older, the sparser"
    assert left[0] < 100, "the oldest time is still told of"
    for parity in (0, 1):
        assert sum(seq % 2 == parity for seq in left) > len(left) // 3, "of each model"
    for seq in range(21, 601):
        outbox.add(report(seq, "event"), 0.0)
        if seq % 8 == 0:
            outbox.keep(0.0)
    assert numbers(outbox) == []
    events = numbers(outbox, "event")
    assert events == list(range(events[0], 601)), "the oldest events go first"
    assert outbox.lost == events[0] - 1
    outbox.close(0.0)
    assert (tmp_path / "outbox.sqlite").stat().st_size < 20_000 * 3 + (1 << 18)


WRITER = """
    import sys
    from pathlib import Path
    from edge.agent.line.outbox import Outbox, Report
    outbox = Outbox(Path(sys.argv[1]), 20_000)
    for seq in range(1, 100_000):
        values = {"n": seq, "text": "x" * 50}
        outbox.add(Report(kind="event", state_id="a" * 16, boot=1, seq=seq, model="", at_s=0.0, values=values), 0.0)
        outbox.keep(0.0)
        print(seq, flush=True)
"""


def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    """faults: 21. In the middle of writing and of making room, a few times over."""
    path = tmp_path / "outbox.sqlite"
    for lines in (3, 200):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        ) as process:
            assert process.stdout is not None
            for _ in range(lines):
                said = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        said = int(rest[-1]) if rest and rest[-1].isdigit() else said
        found = Outbox(path, 20_000)
        seqs = numbers(found, "event")
        assert seqs[-1] in (said, said + 1)
        assert seqs == list(range(seqs[0], seqs[-1] + 1))
        assert found.warnings == []
        found.close(0.0)


def damage(path: Path, how: str) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    data = bytearray(path.read_bytes())
    if how == "garbage":
        path.write_bytes(b"nothing of SQLite" * 1000)
    elif how == "half":
        path.write_bytes(bytes(data[: len(data) // 2 + 7]))
    elif how == "middle":
        data[4096:8192] = os.urandom(4096)
        path.write_bytes(bytes(data))
    elif how == "folder":
        path.unlink()
        (path / "inside").mkdir(parents=True)
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif how == "other tables":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE report (a)")
        database.close()
    elif how == "dead link":
        path.unlink()
        path.symlink_to(path.with_name("nowhere") / "file")


@pytest.mark.parametrize("how", ["garbage", "half", "middle", "folder", "fifo", "other tables", "dead link"])
def test_a_damaged_file_costs_what_is_in_it_and_is_told(tmp_path: Path, how: str) -> None:
    """faults: 23, 54."""
    path = tmp_path / "outbox.sqlite"
    before = Outbox(path, MANY)
    for seq in range(1, 300):
        before.add(report(seq), 0.0)
    before.close(0.0)
    damage(path, how)
    outbox = Outbox(path, MANY)
    outbox.add(report(1, boot=2), 0.0)
    outbox.keep(1.0)
    outbox.add(report(2, boot=2), 2.0)
    outbox.keep(2.0 + AGAIN_S)
    outbox.keep(3.0 + 2 * AGAIN_S)
    assert [each.seq for each in outbox.some("telemetry", MANY, 1e3) if each.boot == 2] == [1, 2]
    assert any("outbox" in text for text in outbox.warnings)
    outbox.close(1e3)
    again = Outbox(path, MANY)
    assert [each.seq for each in again.some("telemetry", MANY, 0.0) if each.boot == 2] == [1, 2]
    assert again.warnings == []
    assert path.with_name("outbox.sqlite.damaged").exists() or path.with_name("outbox.sqlite.damaged").is_symlink()


def test_a_folder_that_takes_nothing_costs_the_outbox_and_heals_with_the_disk(tmp_path: Path) -> None:
    """faults: 22, 23."""
    folder = tmp_path / "state"
    outbox = Outbox(folder / "outbox.sqlite", MANY)  # there is no such folder: no file can be made
    for seq in range(1, 800):
        outbox.add(report(seq), 0.0)
        outbox.poll(float(seq))
    outbox.add(report(1, "event"), 0.0)
    assert len(outbox.warnings) == 1, "told once"
    assert "memory" in outbox.warnings[0]
    assert numbers(outbox)[-1] == 799
    assert numbers(outbox, "event") == [1]
    assert len(outbox) <= 500
    assert outbox.thinned == 799 + 1 - len(outbox)
    folder.mkdir()
    outbox.poll(1000.0)
    assert "again" in outbox.warnings[-1]
    shutil.copytree(folder, tmp_path / "copy")
    kept = numbers(outbox)
    outbox.close(1000.0)
    assert numbers(Outbox(folder / "outbox.sqlite", MANY)) == kept


def test_a_full_disk_in_the_middle_of_a_commit_changes_nothing(tmp_path: Path) -> None:
    """faults: 22. The limit of pages plays the disk: SQLite answers the same SQLITE_FULL."""
    outbox = Outbox(tmp_path / "outbox.sqlite", MANY)
    outbox.add(report(1), 0.0)
    outbox.keep(0.0)
    assert outbox._database is not None
    pages = outbox._database.execute("PRAGMA page_count").fetchone()[0]
    outbox._database.execute(f"PRAGMA max_page_count={pages}")
    outbox.add(report(2, size=50_000), 1.0)
    outbox.keep(1.0)
    assert "full" in outbox.warnings[0]
    assert numbers(outbox) == [2], "the file is left alone for a minute, what is in memory is there"
    outbox.forget([report(1).key], 2.0)
    outbox.keep(1.0 + AGAIN_S)
    assert numbers(outbox) == [2], "and what has arrived meanwhile is gone"
