"""The journal: whole records survive whatever happens to the last one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model.journal import MARK, Journal, _checksum, read_journal
from edge.learning.compression import Compression
from edge.learning.events import (
    ClassAdded,
    Confirmed,
    Contributed,
    Event,
    HeadOffered,
    HeadReplaced,
    Labelled,
    MergeRecognized,
    RolledBack,
)
from edge.learning.exchange import HeadRelease
from edge.learning.packing import pack
from edge.learning.task import Targets


def label(number: int, d: int = 3) -> Labelled:
    """Every other one is of quantities."""
    rng = np.random.default_rng(number)
    targets: Targets = rng.integers(0, 10, 1)
    if number % 2:
        targets = rng.normal(size=(1, 1 + number % 3)).astype(np.float32)
    return Labelled(pack(rng.normal(size=(1, d)).astype(np.float32)), targets, rng.random(1).astype(np.float32))


def release(number: int) -> HeadRelease:
    rng = np.random.default_rng(number)
    return HeadRelease(
        backbone="ab" * 32,
        parameters={"w": rng.normal(size=(3, 2)).astype(np.float32)},
        merged={"gram": rng.normal(size=4)},
        included={"somebody": number} if number % 2 else {},
        n_samples=number,
        origin="here",
        class_names=("a", "b", "ö"),
        is_rival=(None, True, False)[number % 3],
    )


def record(number: int) -> Event:
    """One of each kind, again and again."""
    return (
        label(number),
        Contributed(number, Compression.parse(("exact", "int8", "top-k:0.05")[number % 3])),
        HeadOffered(release(number), number, fits=(None, False, True)[number % 3]),
        ClassAdded(f"smudge {number} ö"),
        HeadReplaced(release(number), 2**63 + number),
        Confirmed(),
        label(number),
        RolledBack(),
        MergeRecognized(bool(number % 2)),
    )[number % 9]


def plain(value: Any) -> Any:
    """An event as lists, with the types of its arrays."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value).__name__, [(name, plain(getattr(value, name))) for name in names]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [plain(each) for each in value]
    return value


def places(sizes: list[int]) -> list[int]:
    """Every byte of the beginning of each record, and every eleventh of what is behind it."""
    found = set(range(0, sizes[-1], 11))
    for begin in [0, *sizes[:-1]]:
        found |= set(range(begin, min(begin + 24, sizes[-1])))
    return sorted(found)


def read(path: Path) -> list[Any]:
    return [plain(found) for found in read_journal(path).events]


def write(path: Path, numbers: range) -> list[int]:
    """Append records; the sizes of the file after each."""
    journal = Journal(path)
    sizes = []
    for number in numbers:
        journal.append(record(number))
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def test_every_kind_has_the_number_that_it_always_had(tmp_path: Path) -> None:
    """Else a journal of before would be read as something else."""
    one = label(0)
    two = Labelled(pack(np.ones((2, 3), np.float32)), np.array([0, 1]), np.ones(2, np.float32))
    head = release(1)
    kinds = (one, Contributed(1), ClassAdded("a"), HeadOffered(head, 1), HeadReplaced(head, 1), Confirmed())
    journal, sizes = Journal(tmp_path / "journal"), [0]
    for event in (*kinds, RolledBack(), two, MergeRecognized(fits=True)):
        journal.append(event)
        sizes.append(journal.path.stat().st_size)
    journal.close()
    data = journal.path.read_bytes()
    assert [data[start + 12] for start in sizes[:-1]] == list(range(9))


def test_gives_back_what_was_appended_in_order_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read(path) == []
    write(path, range(3))
    write(path, range(3, 24))
    assert read(path) == [plain(record(number)) for number in range(24)]


def test_labels_of_any_size_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    labels = [label(number, d) for number, d in enumerate((1, 0, 200, 3000, 1))]
    for each in labels:
        journal.append(each, durable=True)
    journal.close()
    assert read(tmp_path / "journal") == [plain(each) for each in labels]


def test_a_record_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.append(record(number))
        assert len(read(tmp_path / "journal")) == number + 1
    journal.sync()
    journal.close()


def test_torn_at_any_byte_the_earlier_records_survive_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write(path, range(3))
    whole = path.read_bytes()
    for size in places(sizes):
        kept = sum(end <= size for end in sizes)
        path.write_bytes(whole[:size])
        assert read(path) == [plain(record(number)) for number in range(kept)]
        write(path, range(7, 8))
        assert read(path) == [plain(record(number)) for number in [*range(kept), 7]]


def test_a_damaged_byte_anywhere_costs_its_record_only(tmp_path: Path) -> None:
    """Also in the length of a record, or where there is a mark in the middle of what is damaged."""
    path = tmp_path / "journal"
    sizes = write(path, range(7))
    whole = path.read_bytes()
    for position in places(sizes):
        hit = sum(end <= position for end in sizes)
        expected = [plain(record(number)) for number in range(7) if number != hit]
        for value in (whole[position] ^ 0x40, 0, 255, MARK[0]):
            if value != whole[position]:
                path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
                found = read_journal(path)
                assert [plain(each) for each in found.events] == expected, position
                # Of the last one: where its length says more than there is, it may as well be torn.
                is_torn = hit == 6 and 4 <= position - sizes[5] < 8 and value > whole[position]
                assert found.n_damaged == (not is_torn), position
    write(path, range(8, 9))  # and appending goes on
    assert read(path) == [*expected, plain(record(8))]


def test_a_whole_piece_that_was_overwritten_costs_what_it_covers(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write(path, range(6))
    whole = path.read_bytes()
    for junk in (bytes(40), MARK * 10, b"\xff" * 40):
        path.write_bytes(whole[: sizes[1] - 8] + junk + whole[sizes[1] - 8 + len(junk) :])
        last = sum(end <= sizes[1] - 9 + len(junk) for end in sizes)
        assert read(path) == [plain(record(number)) for number in range(6) if not 1 <= number <= last]


def test_what_a_later_version_wrote_is_skipped_and_said(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write(path, range(3))
    data = bytearray(path.read_bytes())
    data[sizes[0] + 12] = 200  # a kind that this version does not know
    length = sizes[1] - sizes[0] - 16
    data[sizes[0] + 8 : sizes[0] + 12] = _checksum(bytes(data[sizes[0] + 12 : sizes[1]]), length).to_bytes(4, "little")
    path.write_bytes(data)
    found = read_journal(path)
    assert [plain(each) for each in found.events] == [plain(record(0)), plain(record(2))]
    assert found.n_damaged == 1


def test_zeros_that_a_power_cut_left_behind_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, range(2))
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert len(read(path)) == 2
    write(path, range(2, 3))
    assert read(path) == [plain(record(number)) for number in range(3)]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from edge.agent.model.journal import Journal
from edge.learning.events import ClassAdded
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(path)
def append(name):
    journal.append(ClassAdded(50 * name))
append('1')
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, hard))
for _ in range(3):
    try:
        append('2')
    except OSError:
        print('refused')
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append('3')
journal.close()
append_again = Journal(path)
append_again.close()
"""


def test_a_full_disk_refuses_the_record_and_hides_none_that_come_later(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("refused\n" * 3, "", 0)
    assert read_journal(path).events == [ClassAdded(50 * "1"), ClassAdded(50 * "3")]


def test_what_could_not_be_made_durable_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(ClassAdded("a"))

    def fail() -> None:
        raise OSError(28, "No space left on device")

    sync, journal.sync = journal.sync, fail  # type: ignore[method-assign]  # a disk that fails is hard to come by
    with pytest.raises(OSError, match="No space"):
        journal.append(ClassAdded("b"), durable=True)
    journal.sync = sync  # type: ignore[method-assign]
    journal.append(ClassAdded("c"), durable=True)
    journal.close()
    assert read_journal(path).events == [ClassAdded("a"), ClassAdded("c")]
