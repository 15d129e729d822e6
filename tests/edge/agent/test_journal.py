"""The journal: whole records survive whatever happens to the last one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from edge.agent.journal import Journal, Record, read_journal
from edge.learning.packing import pack
from edge.learning.task import Targets

Plain = tuple[list[list[int]], list[float], list[float], list[int] | list[list[float]]]


def record(number: int, n: int = 2, d: int = 3) -> Record:
    """A batch; every other one is of quantities."""
    rng = np.random.default_rng(number)
    features = pack(rng.normal(size=(n, d)).astype(np.float32))
    targets: Targets = rng.integers(0, 10, n)
    if number % 2:
        targets = rng.normal(size=(n, 1 + number % 3)).astype(np.float32)
    return Record(features, targets, rng.random(n).astype(np.float32))


def plain(found: Record) -> Plain:
    features, targets, weights = found
    kinds = [str(array.dtype) for array in (features.codes, features.scales, weights, targets)]
    assert kinds == ["int8", "float32", "float32", "float32" if targets.ndim == 2 else "int64"]
    return features.codes.tolist(), features.scales.tolist(), weights.tolist(), targets.tolist()


def read(path: Path) -> list[Plain]:
    return [plain(found) for found in read_journal(path)[0]]


def write(path: Path, numbers: range) -> list[int]:
    """Append records; the sizes of the file after each."""
    journal = Journal(path)
    sizes = []
    for number in numbers:
        journal.append(record(number))
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def test_gives_back_what_was_appended_in_order_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read(path) == []
    write(path, range(3))
    write(path, range(3, 5))
    assert read(path) == [plain(record(number)) for number in range(5)]


def test_records_of_any_size_come_back(tmp_path: Path) -> None:
    shapes = [(1, 1), (0, 4), (3, 0), (7, 200), (1, 1)]
    journal = Journal(tmp_path / "journal")
    for number, shape in enumerate(shapes):
        journal.append(record(number, *shape))
    journal.close()
    assert read(tmp_path / "journal") == [plain(record(number, *shape)) for number, shape in enumerate(shapes)]


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
    for size in range(len(whole)):
        kept = sum(end <= size for end in sizes)
        path.write_bytes(whole[:size])
        assert read(path) == [plain(record(number)) for number in range(kept)]
        write(path, range(7, 8))
        assert read(path) == [plain(record(number)) for number in [*range(kept), 7]]


def test_a_flipped_bit_is_noticed_and_the_other_records_survive(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write(path, range(3))
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0x40
        path.write_bytes(data)
        hit = sum(end <= position for end in sizes)
        found, n_damaged = read_journal(path)
        if 4 <= position - (sizes[hit - 1] if hit else 0) < 16:  # its length: where the next one begins is not known
            assert [plain(each) for each in found[:hit]] == [plain(record(number)) for number in range(hit)]
            continue
        assert [plain(each) for each in found] == [plain(record(number)) for number in range(3) if number != hit]
        assert n_damaged == (hit < 2), "behind the last whole record it is a torn tail"
        write(path, range(7, 8))  # and appending goes on
        assert read(path)[-1] == plain(record(7))


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
import numpy as np
from edge.agent.journal import Journal, Record
from edge.learning.packing import PackedFeatures
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(path)
def append(label):
    features = PackedFeatures(np.full((1, 50), label, np.int8), np.ones(1, np.float32))
    journal.append(Record(features, np.array([label]), np.ones(1, np.float32)))
append(1)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, hard))
for _ in range(3):
    try:
        append(2)
    except OSError:
        print('refused')
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append(3)
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
    assert [found.targets.tolist() for found in read_journal(path)[0]] == [[1], [3]]
