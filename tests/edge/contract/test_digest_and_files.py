"""Digests, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge.contract.digest import is_digest, sha256, sha256_file, short
from edge.contract.errors import ConfigError
from edge.contract.files import check_writable, replace_file


def test_digests_are_sha256_in_lower_case_hexadecimal(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    digest = hashlib.sha256(b"abc" * 1000).hexdigest()
    assert sha256(b"abc" * 1000) == sha256_file(tmp_path / "file") == digest
    assert is_digest(digest)
    assert short(digest) == digest[:12]


def test_openssl_is_loaded_for_what_is_large_and_digests_are_the_same_without_it() -> None:
    program = """
import sys
from edge.contract.digest import sha256
for size in (0, 1, 63, 64, 100_000, 5 << 20):
    print(size, sha256(b'a' * size), '_hashlib' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    for size, digest, is_loaded in rows:
        assert digest == hashlib.sha256(b"a" * int(size)).hexdigest()
        assert is_loaded == str(int(size) > 1 << 20)
    assert len(rows) == 6


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


def test_of_two_processes_that_write_one_file_at_once_each_writes_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    code = (
        "import sys, time, pathlib; from edge.contract.files import check_writable, replace_file\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "for turn in range(20):\n"
        "    check_writable(path)\n"
        "    with replace_file(path) as file:\n"
        "        for _ in range(50):\n"
        "            file.write(sys.argv[2].encode() * 1000)\n"
        "        file.flush(); time.sleep(0.002)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {b"a" * 50_000, b"b" * 50_000}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError), replace_file(tmp_path / "no" / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_links_are_followed_and_stay_and_modes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "real", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to("far/real")
    dangling = tmp_path / "dangling"
    dangling.symlink_to("far/new")
    for path, behind in ((link, target), (dangling, tmp_path / "far" / "new")):
        check_writable(path)
        with replace_file(path) as file:
            file.write(b"new")
        assert path.is_symlink()
        assert behind.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(ConfigError, match="loop cannot be written"):
        check_writable(loop)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "far", "link", "loop", "new", "real"]


def test_what_is_no_plain_file_is_written_through_when_all_is_there(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    check_writable(fifo)
    with contextlib.suppress(ZeroDivisionError), replace_file(fifo) as file:
        file.write(bytes(1 // 0))
    with replace_file(fifo) as file:
        file.write(b"whole")
    assert os.read(reader, 100) == b"whole"
    os.close(reader)
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    with replace_file(Path(os.devnull)) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    program = (
        "from pathlib import Path\nfrom edge.contract.files import replace_file\nprint('first', flush=True)\n"
        "with replace_file(Path('/dev/stdout')) as file: file.write(b'second\\n')\nprint('third')"
    )
    out = tmp_path / "out.txt"
    with out.open("wb") as sink:  # to a plain file, too: it is not cut off, nor replaced
        for stdout in (subprocess.PIPE, sink):
            done = subprocess.run([sys.executable, "-c", program], stdout=stdout, check=True, timeout=60)
            assert (done.stdout or out.read_bytes()) == b"first\nsecond\nthird\n"


def test_names_that_are_long_or_not_utf8_and_files_that_are_protected(tmp_path: Path) -> None:
    for name in ("a b\nc\x1b[2J", "größe", os.fsdecode(b"not-\xff-utf8"), "n" * 255):
        path = tmp_path / name
        check_writable(path)
        with replace_file(path) as file:
            file.write(b"data")
        assert path.read_bytes() == b"data"
    with pytest.raises(ConfigError, match="File name too long"):
        check_writable(tmp_path / ("n" * 256))
    protected = tmp_path / "protected"
    protected.write_bytes(b"old")
    protected.chmod(0o444)
    with pytest.raises(PermissionError), replace_file(protected) as file:
        file.write(b"new")
    with pytest.raises(ConfigError, match="write-protected"):
        check_writable(protected)
    assert protected.read_bytes() == b"old"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".try"))]
