"""What is wrong with a device, seen in the files of the system: each fault, its neighbours, and that it has a cure."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge.agent.device import doctor
from edge.agent.device.doctor import BUILT_MS, Finding

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def levels(findings: Finding | Iterable[Finding]) -> list[str]:
    found = [findings] if isinstance(findings, Finding) else list(findings)
    assert all(each.cure for each in found if each.level == "fault")
    return [each.level for each in found]


def test_a_clock_that_was_never_set_or_runs_away_is_a_fault(tmp_path: Path) -> None:
    for now_ms, level in [(0, "fault"), (BUILT_MS - DAY_MS, "fault"), (BUILT_MS + DAY_MS, "ok"),
                          (BUILT_MS + 30 * 365 * DAY_MS, "fault"), (2**62, "fault")]:  # fmt: skip
        assert levels(doctor.clock(now_ms, tmp_path / "none")) == [level], now_ms
    assert "1970" in doctor.clock(0, tmp_path).text
    (tmp_path / "device.json").touch()
    ahead_s = (BUILT_MS + 5 * DAY_MS) / 1000
    os.utime(tmp_path / "device.json", (ahead_s, ahead_s))
    os.utime(tmp_path, (BUILT_MS / 1000, BUILT_MS / 1000))
    assert levels(doctor.clock(BUILT_MS + DAY_MS, tmp_path)) == ["warning"]
    assert levels(doctor.clock(BUILT_MS + 5 * DAY_MS - HOUR_MS // 2, tmp_path)) == ["ok"]


def test_a_folder_that_takes_no_file_or_has_no_room_is_found(tmp_path: Path) -> None:
    assert levels(doctor.disk(tmp_path, 1)) == ["ok", "ok"]
    made = list(doctor.disk(tmp_path / "a" / "b", 1))
    assert "does not exist yet" in made[0].text
    assert list(tmp_path.iterdir()) == []  # it changes nothing
    assert levels(doctor.disk(tmp_path, 1e12)) == ["ok", "warning"]
    assert levels(doctor.disk(Path("/proc/sys"), 1))[0] == "fault"


@pytest.mark.parametrize(
    ("machine", "bits", "libc", "features", "expected"),
    [
        ("armv7l", 32, "glibc", "Features : neon", ["fault"]),
        ("i686", 32, "glibc", "flags : sse2", ["fault"]),
        ("x86_64", 64, "", "flags : avx2 avx512_vnni", ["warning", "ok"]),
        ("x86_64", 64, "glibc", "flags\t: sse2", ["warning"]),
        ("x86_64", 64, "glibc", "flags\t: sse2 avx2", ["ok"]),
        ("aarch64", 64, "glibc", "Features\t: fp asimd asimddp", ["ok"]),
        ("riscv64", 64, "glibc", "isa : rv64", ["ok"]),
        ("x86_64", 64, "glibc", "", ["ok"]),
    ],
)
def test_a_processor_without_what_the_runtime_needs_is_found(
    machine: str, bits: int, libc: str, features: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{features}\n")
    assert levels(doctor.processor(machine, bits, libc, tmp_path / "cpuinfo")) == expected


def test_heat_and_a_weak_power_supply_are_found(tmp_path: Path) -> None:
    assert levels(doctor.heat(None, 80, tmp_path)) == ["ok"]
    assert levels(doctor.heat(79.0, 80, tmp_path)) == ["ok"]
    assert levels(doctor.heat(80.0, 80, tmp_path)) == ["warning"]
    pi = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    pi.parent.mkdir(parents=True)
    for text, said in [("50000\n", None), ("50005\n", "power supply"), ("4\n", "hot"), ("?", None)]:
        pi.write_text(text)
        found = [each for each in doctor.heat(50.0, 80, tmp_path) if each.what == "throttling"]
        assert [said in each.text for each in found] == ([] if said is None else [True]), text
    pi.unlink()
    count = tmp_path / "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    count.parent.mkdir(parents=True)
    count.write_text("0\n")
    assert levels(doctor.heat(50.0, 80, tmp_path)) == ["ok"]
    count.write_text("12\n")
    assert levels(doctor.heat(50.0, 80, tmp_path)) == ["ok", "warning"]


def test_a_place_for_the_socket_that_others_can_change_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    assert levels(doctor.local_socket(folder / "agent.sock")) == ["ok"]
    assert levels(doctor.local_socket(tmp_path / "none" / "agent.sock")) == ["ok"]
    folder.chmod(0o777)
    assert levels(doctor.local_socket(folder / "agent.sock")) == ["warning"]
    folder.chmod(0o1777)
    assert levels(doctor.local_socket(folder / "agent.sock")) == ["ok"]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "a"))
        assert levels(doctor.local_socket(folder / "a")) == ["ok"]
    (folder / "file").touch()
    assert levels(doctor.local_socket(folder / "file")) == ["fault"]
    assert levels(doctor.local_socket(folder / ("x" * 107))) == ["fault"]


def test_packages_and_a_password_that_others_read_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(doctor.packages(signed=True, broker=True, old_python=False)) == ["ok"]
    monkeypatch.setattr("edge.agent.device.doctor._is_installed", lambda name: name != "tuf")
    (missing,) = doctor.packages(signed=True, broker=True, old_python=False)
    assert (missing.level, missing.cure) == ("fault", "pip install 'edgeloop[signed]'")
    assert levels(doctor.packages(signed=False, broker=True, old_python=False)) == ["ok"]
    secret = tmp_path / "secret"
    secret.touch(mode=0o644)
    assert levels(doctor.secret_file(secret)) == ["warning"]
    secret.chmod(0o600)
    assert levels(doctor.secret_file(secret)) == levels(doctor.secret_file(None)) == []


def test_a_finding_is_one_line_with_its_cure() -> None:
    found = Finding("fault", "clock", "it is 1970", "set it")
    assert str(found) == "fault   clock: it is 1970; set it"
    assert found.to_json() == {"level": "fault", "what": "clock", "text": "it is 1970", "cure": "set it"}
