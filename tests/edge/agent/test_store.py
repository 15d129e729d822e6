"""Learned state on disk: whole after a crash between any two steps, and after damage to the newest snapshot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.agent.model.journal import Saved
from edge.agent.model.store import LearnedStore
from edge.contract.errors import ConfigError
from edge.contract.files import lock_folder
from edge.learning.events import Labelled
from edge.learning.packing import PackedFeatures

BACKBONE = "ab" * 32


class Counter:
    """A learner whose state is the list of the labels that it learned."""

    def __init__(self, folder: Path, backbone: str = BACKBONE) -> None:
        self.store = LearnedStore(folder, backbone)
        self.saved = self.store.load()
        self.labels: list[int] = learned(self.saved)

    def learn(self, *labels: int) -> Counter:
        for label in labels:
            features = PackedFeatures(np.ones((1, 2), np.int8), np.ones(1, np.float32))
            self.store.append(Labelled(features, np.array([label]), np.ones(1, np.float32)))
            self.labels.append(label)
        return self

    def save(self) -> Counter:
        self.store.snapshot({"text": "ä"}, {"labels": np.array(self.labels, np.int64)})
        return self

    def kill(self) -> None:
        """The kernel closes the file; nothing else happens."""
        self.store.close()


def learned(saved: Saved | None) -> list[int]:
    """What a learner knows that was restored from this."""
    if saved is None:
        return []
    state = saved.tensors["labels"].tolist() if saved.tensors else []
    return state + [int(label) for event in saved.journal if isinstance(event, Labelled) for label in event.target]


def load(folder: Path, backbone: str = BACKBONE) -> tuple[list[int], str | None]:
    counter = Counter(folder, backbone)
    counter.kill()
    return counter.labels, counter.saved.warning if counter.saved else None


def damage(path: Path) -> None:
    """Other bytes under the name; a file that is linked under another name too stays whole there."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_nothing_was_saved_at_first(tmp_path: Path) -> None:
    assert LearnedStore(tmp_path / "new", BACKBONE).load() is None


def test_a_snapshot_and_the_journal_behind_it_come_back(tmp_path: Path) -> None:
    counter = Counter(tmp_path).learn(1, 2).save().learn(3, 4)
    counter.store.sync()
    counter.kill()
    again = Counter(tmp_path)
    assert again.saved is not None
    assert again.saved.description == {"text": "ä"}
    assert again.saved.tensors["labels"].tolist() == [1, 2]
    assert again.labels == [1, 2, 3, 4]
    assert again.saved.warning is None
    again.kill()


def test_labels_without_a_snapshot_come_back(tmp_path: Path) -> None:
    Counter(tmp_path).learn(1, 2).kill()
    Counter(tmp_path).learn(3).kill()
    assert load(tmp_path) == ([1, 2, 3], None)


def test_it_goes_on_over_many_restarts_and_the_folder_does_not_grow(tmp_path: Path) -> None:
    for i in range(12):
        counter = Counter(tmp_path).learn(2 * i).save().learn(2 * i + 1)
        assert counter.labels == list(range(2 * i + 2))
        counter.kill()
        assert len(list(tmp_path.iterdir())) <= 4


@pytest.mark.parametrize("snapshots", [1, 2, 3, 6])
def test_a_damaged_snapshot_loses_nothing(tmp_path: Path, snapshots: int) -> None:
    counter = Counter(tmp_path)
    for i in range(snapshots):
        counter.learn(2 * i, 2 * i + 1).save()
    counter.learn(98, 99).kill()
    damage(tmp_path / "state.bin")
    labels, warning = load(tmp_path)
    assert labels == [*range(2 * snapshots), 98, 99]
    assert warning is not None
    assert "state.bin is damaged" in warning
    assert load(tmp_path) == (labels, None)


def test_damage_again_and_again_loses_nothing(tmp_path: Path) -> None:
    Counter(tmp_path).learn(-2).save().learn(-1).save().kill()
    for i in range(5):
        damage(tmp_path / "state.bin")
        counter = Counter(tmp_path)
        assert counter.labels == list(range(-2, 2 * i))
        counter.learn(2 * i).save().learn(2 * i + 1).kill()


@pytest.mark.parametrize("position", [0, 9, 10, 41, 42, 60, -1])
def test_a_snapshot_damaged_or_cut_anywhere_is_noticed(tmp_path: Path, position: int) -> None:
    Counter(tmp_path).learn(1).save().learn(2).save().learn(3).kill()
    whole = (tmp_path / "state.bin").read_bytes()
    for bad in (
        bytes([*whole[:position], whole[position] ^ 4, *(whole[position:][1:])]),
        whole[:position],
    ):
        copy = tmp_path / f"copy{len(bad)}"
        shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("copy*"))
        (copy / "state.bin").write_bytes(bad)
        labels, warning = load(copy)
        assert labels == [1, 2, 3]
        assert warning is not None


@pytest.mark.parametrize("damaged", ["all", "end", "last"])
def test_a_journal_whose_end_is_no_record_is_told(tmp_path: Path, damaged: str) -> None:
    """Zeros in the place of records, as a file system may leave them, are no torn record: labels are lost."""
    Counter(tmp_path).learn(1).save().learn(2, 3).kill()
    path = max(tmp_path.glob("journal-*.bin"), key=lambda each: each.stat().st_size)
    whole = path.read_bytes()
    start = {"all": 0, "end": len(whole) // 2, "last": len(whole) - 1}[damaged]
    path.write_bytes(whole[:start] + bytes(byte ^ 0xFF if damaged == "last" else 0 for byte in whole[start:]))
    bad = path.read_bytes()
    labels, warning = load(tmp_path)
    assert labels == ([1] if damaged == "all" else [1, 2])
    assert warning is not None
    assert f"{path} is damaged" in warning
    assert path.with_suffix(".damaged").read_bytes() == bad
    Counter(tmp_path).learn(4).kill()
    assert load(tmp_path) == ([*labels, 4], None), "the next label takes that place"


def test_a_journal_that_somebody_deleted_is_told(tmp_path: Path) -> None:
    Counter(tmp_path).learn(1).save().learn(2).save().learn(3).kill()
    (tmp_path / "journal-2.bin").unlink()
    labels, warning = load(tmp_path)
    assert (labels, "journal-2.bin is not there: what was learned since" in str(warning)) == ([1, 2], True)
    Counter(tmp_path).save().kill()
    assert load(tmp_path) == ([1, 2], None)


def test_both_snapshots_damaged_start_anew_and_never_mix_in_what_was_before(tmp_path: Path) -> None:
    counter = Counter(tmp_path)
    for i in range(4):
        counter.learn(i).save()
    counter.learn(9).kill()
    for name in ("state.bin", "state.previous.bin"):
        damage(tmp_path / name)
    counter = Counter(tmp_path)
    assert counter.saved is not None
    assert counter.saved.warning is not None
    assert "state.bin" in counter.saved.warning
    assert "state.previous.bin" in counter.saved.warning
    assert counter.labels == []
    counter.learn(50).kill()
    for i in range(51, 58):  # past the numbers that the old journals had
        counter = Counter(tmp_path)
        assert counter.labels == list(range(50, i))
        counter.learn(i).save().kill()


def test_the_state_of_another_backbone_is_refused(tmp_path: Path) -> None:
    Counter(tmp_path).learn(1).save().learn(2).kill()
    labels, warning = load(tmp_path, "cd" * 32)
    assert labels == []
    assert warning is not None
    assert "another backbone" in warning
    Counter(tmp_path, "cd" * 32).learn(7).kill()
    assert load(tmp_path, "cd" * 32) == ([7], None)


def test_a_full_disk_leaves_the_old_state_and_the_journal(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    counter = Counter(folder).learn(1).save().learn(2)
    (folder / ".state.bin.tmp").mkdir()  # the temporary file cannot be written
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(OSError):
        counter.save()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    counter.learn(3).kill()
    assert load(folder) == ([1, 2, 3], None)


# Runs the life below again and again, each time one step further, and ends there without any clearing up. The steps are
# Python's own audit events of files: opened, renamed, linked, removed, truncated.
CRASHES = """
import os, sys
from pathlib import Path
from tests.edge.agent.test_store import Counter
root = Path(sys.argv[1])
for n in range(1000):
    folder = root / str(n)
    child = os.fork()
    if child == 0:
        acknowledged = os.open(root / f"{n}.acknowledged", os.O_WRONLY | os.O_CREAT)
        left = n
        def hook(event, arguments):
            global left
            if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir"):
                if any(str(folder) in str(argument) for argument in arguments[:2]):
                    if left == 0:
                        os._exit(9)
                    left -= 1
        sys.addaudithook(hook)
        counter = Counter(folder)
        for label in range(9):
            counter.learn(label)
            os.write(acknowledged, b".")
            if label % 2:
                counter.save()
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(n)
"""


def test_a_crash_between_any_two_steps_loses_nothing_acknowledged(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    crashes = int(done.stdout)
    assert crashes > 25
    for n in range(crashes):
        acknowledged = (tmp_path / f"{n}.acknowledged").stat().st_size
        folder = tmp_path / str(n)
        shutil.copytree(folder, tmp_path / f"{n}.damaged") if folder.exists() else None
        labels, warning = load(folder)
        assert warning is None
        assert labels == list(range(len(labels))), n
        assert len(labels) >= acknowledged
        counter = Counter(folder).learn(100).save().learn(101)
        counter.kill()
        assert load(folder) == ([*labels, 100, 101], None)
        # And on top of the crash the newest snapshot turns out damaged.
        if (tmp_path / f"{n}.damaged" / "state.bin").exists():
            damage(tmp_path / f"{n}.damaged" / "state.bin")
            assert load(tmp_path / f"{n}.damaged")[0] == labels, n


# The same life, and a step that fails once: of these also where a file or a folder is made to last. It goes on then.
FAULTS = """
import os, sys
from pathlib import Path
from tests.edge.agent.test_store import Counter, load
root, fsync = Path(sys.argv[1]), os.fsync
for n in range(1000):
    folder = root / str(n)
    child = os.fork()
    if child == 0:
        left = n
        def step():
            global left
            left -= 1
            if left == -1:
                raise OSError(28, "No space left on device")
        def hook(event, arguments):
            if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate"):
                if any(str(folder) in str(argument) for argument in arguments[:2]):
                    step()
        def lasting(descriptor):
            step()
            fsync(descriptor)
        counter = Counter(folder)
        os.fsync = lasting
        sys.addaudithook(hook)
        for label in range(9):
            try:
                counter.learn(label)
                if label % 2:
                    counter.save()
            except OSError:
                pass
        is_over, left = left >= 0, 10**9
        counter.kill()
        found = load(folder)
        if found != (counter.labels, None) or len(counter.labels) < 8:
            print(n, found, counter.labels, flush=True)
        os._exit(is_over)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        break
print(n)
"""


def test_a_fault_at_any_step_loses_nothing_that_is_learned_then(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    *lost, steps = done.stdout.splitlines()
    assert not lost
    assert int(steps) > 40


def test_the_lock_refuses_a_second_process_and_goes_with_the_first(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edge.contract.files import lock_folder\n"
        "lock_folder(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()\n"
    )
    folder = tmp_path / "a" / "b"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="in use by another process"):
            lock_folder(folder)
        other.kill()
        other.wait(30)
    descriptor = lock_folder(folder)
    with pytest.raises(ConfigError):
        lock_folder(folder)
    os.close(descriptor)
    os.close(lock_folder(folder))


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        lock_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""
