"""Digests, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from edge.contract.digest import is_digest, sha256, sha256_file, short
from edge.contract.files import replace_file


def test_digests_are_sha256_in_lower_case_hexadecimal(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    digest = hashlib.sha256(b"abc" * 1000).hexdigest()
    assert sha256(b"abc" * 1000) == sha256_file(tmp_path / "file") == digest
    assert is_digest(digest)
    assert short(digest) == digest[:12]


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", b"0" * 64, None, 0])
def test_what_is_not_a_digest(text: object) -> None:
    assert not is_digest(text)


def test_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        with replace_file(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_in_the_middle_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), replace_file(path) as file:  # noqa: PT012  # the body is what is tested
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_in_the_middle_of_the_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError), replace_file(tmp_path / "file") as file:  # noqa: PT012  # the same
        file.write(b"half")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_in_the_middle_leaves_the_old_file_and_the_next_write_clears_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import os, sys; from pathlib import Path; from edge.contract.files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert path.read_bytes() == b"old"
    with replace_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError), replace_file(tmp_path / "no" / "file"):
        pass
    assert list(tmp_path.iterdir()) == []
