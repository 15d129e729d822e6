"""The archive: one way to write it, and only that way is read."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.archive import Archive, write_archive
from edge.contract.errors import BundleError, NoBundleError

MEMBERS = {"manifest.json": b'{"a":1}', "blobs/ab": bytes(range(20)), "empty": b""}


def written(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    write_archive(file, members)
    return file.getvalue()


def read_all(path: Path, data: bytes) -> dict[str, bytes]:
    """Everything that an archive of these bytes holds, by both ways of reading."""
    path.write_bytes(data)
    archive = Archive(path)
    for name in archive.entries:
        archive.sha256(name)
    return {name: archive.read(name) for name in archive.entries}


def test_gives_back_what_was_written_in_order(tmp_path: Path) -> None:
    found = read_all(tmp_path / "a", written(MEMBERS))
    assert list(found.items()) == list(MEMBERS.items())


def test_a_file_that_is_written_over_while_it_is_in_use_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(written(MEMBERS))
    archive = Archive(path)
    other = tmp_path / "b"
    other.write_bytes(written(MEMBERS | {"manifest.json": b'{"a":2}'}))
    other.replace(path)
    for read in (archive.read, archive.sha256):
        with pytest.raises(
            BundleError, match="damaged: the file was written over while it was in use; start again what uses it"
        ):
            read("manifest.json")
    path.unlink()
    with pytest.raises(BundleError, match="can no longer be read"):
        archive.read("manifest.json")


def test_the_standard_zip_reader_reads_it() -> None:
    with zipfile.ZipFile(io.BytesIO(written(MEMBERS))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == MEMBERS


def test_the_same_members_give_the_same_bytes() -> None:
    assert written(MEMBERS) == written(dict(MEMBERS))


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    whole = written(MEMBERS)
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            with pytest.raises(BundleError):
                read_all(tmp_path / "a", bytes(data))


def test_truncation_at_every_byte_is_refused(tmp_path: Path) -> None:
    whole = written(MEMBERS)
    for size in range(len(whole)):
        with pytest.raises(BundleError):
            read_all(tmp_path / "a", whole[:size])


@pytest.mark.parametrize("extra", [b"\0", b"PK\5\6", b"a" * 100])
def test_a_byte_before_or_behind_is_refused(tmp_path: Path, extra: bytes) -> None:
    for data in (written(MEMBERS) + extra, extra + written(MEMBERS)):
        with pytest.raises(BundleError):
            read_all(tmp_path / "a", data)


def test_a_second_archive_behind_the_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        read_all(tmp_path / "a", written(MEMBERS) + written({"other": b"x"}))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("bomb", bytes(10_000_000))
        assert len(file.getvalue()) < 20_000
        with pytest.raises(BundleError):
            read_all(tmp_path / "a", file.getvalue())


def test_an_archive_stored_by_another_program_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", b"{}")
    with pytest.raises(BundleError):
        read_all(tmp_path / "a", file.getvalue())


def test_a_member_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    whole = written({"a": b"data"})
    for claimed in (5, 2**31, 2**32 - 1):
        size = struct.pack("<I", claimed)
        data = whole.replace(struct.pack("<II", 4, 4), size + size)
        assert data != whole
        with pytest.raises(BundleError):
            read_all(tmp_path / "a", data)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    whole = written({"a": b"first", "b": b"other"})
    with pytest.raises(BundleError, match="same name"):
        read_all(tmp_path / "a", whole.replace(b"b", b"a"))


@pytest.mark.parametrize(
    "name", ["..", "a/../b", "../a", "/a", "A", "a\\b", "", "a" * 129, "a b", "ä", ".a", "a\n", "a\0"]
)
def test_a_name_that_is_not_allowed_is_neither_written_nor_read(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    with pytest.raises(BundleError):
        write_archive(file, {name: b"data"})
    assert file.getvalue() == b""
    encoded = name.encode()
    if 0 < len(encoded) < 129:
        good = "a" * len(encoded)
        forged = written({good: b"DATA"}).replace(good.encode(), encoded)
        with pytest.raises(BundleError):
            read_all(tmp_path / "a", forged)


@pytest.mark.parametrize("count", [0, 65])
def test_no_more_members_are_written_than_are_read(count: int) -> None:
    file = io.BytesIO()
    with pytest.raises(BundleError):
        write_archive(file, {f"m{i}": b"" for i in range(count)})
    assert file.getvalue() == b""


def test_64_members_are_read(tmp_path: Path) -> None:
    members = {f"m{i}": bytes([i]) for i in range(64)}
    assert read_all(tmp_path / "a", written(members)) == members


def test_reads_no_more_than_asked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(written(MEMBERS))
    archive = Archive(tmp_path / "a")
    assert archive.read("blobs/ab", 20) == MEMBERS["blobs/ab"]
    with pytest.raises(BundleError, match="at most 19"):
        archive.read("blobs/ab", 19)
    with pytest.raises(BundleError, match="no member"):
        archive.read("nothing")


def test_a_file_that_changes_or_goes_while_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(written(MEMBERS))
    archive = Archive(path)
    path.write_bytes(bytes(len(written(MEMBERS))))
    for read in (archive.read, archive.sha256):
        with pytest.raises(BundleError, match="damaged"):
            read("manifest.json")
    path.unlink()
    for read in (archive.read, archive.sha256):
        with pytest.raises(BundleError, match="can no longer be read"):
            read("manifest.json")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Archive(tmp_path / "nothing")
    with pytest.raises(BundleError, match="cannot be read"):
        Archive(tmp_path)
    os.mkfifo(tmp_path / "fifo")  # nobody writes: who opens it waits for ever
    with pytest.raises(BundleError, match="cannot be read: expected a plain file"):
        Archive(tmp_path / "fifo")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, with_end: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "random.edge"
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, 46 + 1, max(len(data) - 47, 0), 0)
    with pytest.raises(BundleError):
        read_all(path, data + end if with_end else data)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9_/-]{0,20}", fullmatch=True), st.binary(max_size=50), min_size=1, max_size=8
    )
)
def test_any_members_come_back(tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes]) -> None:
    assert read_all(tmp_path_factory.getbasetemp() / "any.edge", written(members)) == members


def test_a_file_of_another_kind_is_called_so_and_a_missing_one_is_no_broken_bundle(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    network = torch.nn.Linear(3, 2)
    for write in (
        lambda: torch.save(network.state_dict(), path),
        lambda: torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes((48).to_bytes(8, "little") + b'{"weight":{"dtype":"F32"}}'),
        lambda: path.write_bytes(b"\x08\x08\x12\x07pytorch\x3a\x10"),
    ):
        write()
        with pytest.raises(NoBundleError, match=r"is no bundle but .*edge-convert"):
            Archive(path)
    with pytest.raises(NoBundleError, match="does not exist"):
        Archive(tmp_path / "modle.edge")
    assert "Correct the path" in NoBundleError.help_line
    path.write_bytes(written(MEMBERS)[:-3])
    with pytest.raises(BundleError, match="not a whole bundle") as told:
        Archive(path)
    assert type(told.value) is BundleError, "that one is damaged"
