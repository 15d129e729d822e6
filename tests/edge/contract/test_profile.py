"""Device profiles: parsing, faults, shipped files, detection, and that the README describes every field."""

from __future__ import annotations

import dataclasses
import itertools
import platform
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.contract import profile as p
from edge.contract.errors import ConfigError

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "firmware_configs"
SHIPPED = [
    "beaglebone-ai-64",
    "generic-arm64",
    "generic-x86_64",
    "imx8m-plus",
    "intel-n100",
    "jetson-orin-nano",
    "raspberry-pi-3",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
    "rockchip-rk3588",
    "x86_64-vnni",
]
GOOD = (FOLDER / "raspberry-pi-4.toml").read_text()
A72 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
A53 = A72.replace("0xd08", "0xd03")
A76 = "processor\t: 0\nFeatures\t: fp asimd aes crc32 atomics asimdrdm lrcpc dcpop asimddp\nCPU part\t: 0xd0b\n"
AVX2 = "model name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu avx2 fma\n"
N100 = "model name\t: Intel(R) N100\nflags\t\t: fpu avx2 fma avx_vnni\n"
ALDER_LAKE = N100.replace("N100", "Core(TM) i5-1240P")
AVX512_VNNI = "model name\t: AMD EPYC 9354\nflags\t\t: fpu avx2 avx512f avx512bw avx512_vnni\n"
# what a hypervisor may leave of a server with both
HALF_HIDDEN = "model name\t: Intel Xeon Processor\nflags\t\t: fpu avx2 avx512f avx512bw avx_vnni\n"


def refused(data: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        p.parse_profile(data if isinstance(data, bytes) else data.encode(), "x.toml")
    assert "x.toml" in str(caught.value)
    return str(caught.value)


def changed(key: str, value: str) -> str:
    """The good file with the value of one key replaced."""
    text, count = re.subn(rf"^{key} = .*$", lambda _: f"{key} = {value}", GOOD, flags=re.MULTILINE)
    assert count == 1
    return text


def test_lists_shipped_profiles() -> None:
    assert p.shipped_profiles() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_is_read_by_name_and_by_path(name: str) -> None:
    by_name = p.load_profile(name)
    assert by_name == p.load_profile(str(FOLDER / f"{name}.toml"))
    assert by_name.name == name
    assert hash(by_name) == hash(p.load_profile(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_does_not_saturate(name: str) -> None:
    profile = p.load_profile(name)
    q = profile.quantization
    if profile.architecture == "x86_64":
        assert (q.activation_type, q.weight_type) == ("uint8", "int8")
        assert q.reduce_range is not q.int8_dot_product
    else:
        assert (q.activation_type, q.weight_type, q.reduce_range) == ("int8", "int8", False)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_number_has_a_comment_above_it(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"\w+ = (\d|true|false)", line):
            assert before.startswith("#"), line


def test_dot_product_by_board() -> None:
    dot = {name: p.load_profile(name).quantization.int8_dot_product for name in SHIPPED}
    assert [name for name, has in dot.items() if has] == [
        "intel-n100",
        "jetson-orin-nano",
        "raspberry-pi-5",
        "rockchip-rk3588",
        "x86_64-vnni",
    ]


def test_unknown_name_lists_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'raspberry-pi-4'") as caught:
        p.load_profile("raspbery-pi-4")
    assert all(name in str(caught.value) for name in SHIPPED)


@pytest.mark.parametrize("name", ["", "..", "__init__", "README.md", "zzz", "raspberry-pi-4\0"])
def test_unknown_name_without_a_near_one(name: str) -> None:
    with pytest.raises(ConfigError, match="known: beaglebone-ai-64, generic-arm64"):
        p.load_profile(name)


def test_unknown_key_gives_a_suggestion_and_is_one_fault() -> None:
    message = refused(GOOD.replace("threads =", "thread ="))
    assert "inference.thread is not known; did you mean 'threads'?" in message
    assert "1 fault" in message
    assert "missing" not in message


def test_unknown_key_beside_the_right_one() -> None:
    message = refused(GOOD.replace("threads = 3", "threads = 3\nthread = 3"))
    assert "inference.thread is not known; did you mean 'threads'?" in message
    assert "1 fault" in message


def test_unknown_table_gives_a_suggestion() -> None:
    assert "telemetri is not known; did you mean 'telemetry'?" in refused(GOOD.replace("[telemetry]", "[telemetri]"))


def test_unknown_key_without_a_near_one() -> None:
    assert re.search(r"zzzz is not known$", refused("zzzz = 1\n" + GOOD), re.MULTILINE)


def test_all_faults_are_reported_together() -> None:
    text = GOOD
    for old, new in [
        ("threads = 3", "threads = 0"),
        ("memory_mb = 1024", 'memory_mb = "1024"'),
        ("reduce_range = false", "reduce_range = 0"),
        ("\ninterval_s = 60.0", "\ninterval_s = -1"),
        ("replay_per_class = 40", "replay_per_clas = 40"),
    ]:
        assert old in text
        text = text.replace(old, new)
    message = refused(text)
    assert message.splitlines()[1:] == sorted(message.splitlines()[1:])
    for part in [
        "inference.threads must be from 1 to 64, got 0",
        "memory_mb must be an integer, got str '1024'",
        "quantization.reduce_range must be true or false, got int 0",
        "telemetry.interval_s must be from 0.1 to 86400, got -1",
        "learning.replay_per_clas is not known; did you mean 'replay_per_class'?",
    ]:
        assert part in message
    # "checkpoint_interval_s = 60.0" is another key and stays right
    assert "checkpoint" not in message


def test_empty_file_names_everything_that_is_missing() -> None:
    message = refused("")
    for item in dataclasses.fields(p.DeviceProfile):
        assert f"{item.name} is missing" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", "true"),
        ("threads", "3.0"),
        ("threads", '"3"'),
        ("threads", "65"),
        ("threads", "[3]"),
        ("threads", "9" * 400),
        ("max_bundle_mb", "0"),
        ("max_bundle_mb", "2000"),
        ("memory_mb", "-1"),
        ("budget_ms_per_s", "true"),
        ("budget_ms_per_s", "nan"),
        ("budget_ms_per_s", "inf"),
        ("budget_ms_per_s", "1000.5"),
        ("budget_ms_per_s", "9" * 400),
        ("label_expiry_s", "0"),
        ("checkpoint_interval_s", "0.0"),
        ("checkpoint_interval_s", "1979-05-27"),
        ("max_temperature_c", "-300"),
        ("reduce_range", '"false"'),
        ("activation_type", '"int4"'),
        ("activation_type", "8"),
        ("weight_type", '"uint8"'),
        ("architecture", '"armv7l"'),
        ("name", '"Raspberry Pi"'),
        ("name", '""'),
        ("name", "4"),
        ("description", '""'),
        ("description", '"two\\nlines"'),
    ],
)
def test_refuses_wrong_type_or_range(key: str, value: str) -> None:
    message = refused(changed(key, value))
    assert re.search(rf"[ .]{key} ", message)
    assert "1 fault" in message


def test_whole_number_does_for_a_float() -> None:
    budget = p.parse_profile(changed("budget_ms_per_s", "50").encode(), "x.toml").learning.budget_ms_per_s
    assert (type(budget), budget) == (float, 50.0)


def test_learning_may_be_switched_off() -> None:
    assert p.parse_profile(changed("budget_ms_per_s", "0").encode(), "x.toml").learning.budget_ms_per_s == 0


def test_table_given_as_a_value() -> None:
    assert "telemetry must be a table [telemetry]" in refused("telemetry = 3\n" + GOOD.split("[telemetry]")[0])


@pytest.mark.parametrize(
    "data", ["a = ", "[", '{"name": 1}', "a = 1\na = 2", "a = " + "[" * 50_000, "a = " + "9" * 5000]
)
def test_refuses_what_is_not_toml(data: str) -> None:
    assert "is not TOML" in refused(data)


def test_refuses_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_bytes(b"PK\3\4\xff\xfe\x00" * 100)
    with pytest.raises(ConfigError, match="not a text file"):
        p.load_profile(str(path))


def test_refuses_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_text(GOOD + "#" * 65_536)
    with pytest.raises(ConfigError, match="larger than"):
        p.load_profile(str(path))


def test_refuses_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        p.load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        p.load_profile(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        p.load_profile("a/\0.toml")


def test_path_without_toml_ending_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text(GOOD)
    assert p.load_profile(str(path)) == p.load_profile("raspberry-pi-4")


def detect(folder: Path, machine: str) -> str:
    """What is found from the files in a folder alone, whatever this machine is."""
    paths = {f"{name}_path": folder / name for name in ("cpuinfo", "model", "compatible")}
    return p.detect_profile(machine=machine, **paths)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "model", "expected"),
    [
        ("x86_64", AVX2, None, "generic-x86_64"),
        ("x86_64", AVX512_VNNI, None, "x86_64-vnni"),
        ("x86_64", ALDER_LAKE, None, "x86_64-vnni"),
        ("AMD64", ALDER_LAKE + ALDER_LAKE, None, "x86_64-vnni"),
        ("x86_64", N100, None, "intel-n100"),
        ("x86_64", N100.replace("N100", "N95"), None, "intel-n100"),
        ("x86_64", N100.replace("N100", "Core(TM) i3-N305"), None, "x86_64-vnni"),
        # VNNI must be where ONNX Runtime looks for it, and on every core
        ("x86_64", HALF_HIDDEN, None, "generic-x86_64"),
        ("x86_64", N100.replace("avx_vnni", ""), None, "generic-x86_64"),
        ("x86_64", N100.replace("avx_vnni", "avx_vnni_int8"), None, "generic-x86_64"),
        ("x86_64", ALDER_LAKE + AVX2, None, "generic-x86_64"),
        ("x86_64", "\xff\0 not a cpuinfo", None, "generic-x86_64"),
        ("AMD64", None, None, "generic-x86_64"),
        ("x86_64", None, "Raspberry Pi 5 Model B Rev 1.0\0", "generic-x86_64"),
        ("aarch64", None, None, "generic-arm64"),
        ("arm64", A76, None, "generic-arm64"),
        ("aarch64", A53, "Raspberry Pi 2 Model B Rev 1.2\0", "generic-arm64"),
        ("aarch64", A53, "Raspberry Pi 3 Model B Rev 1.2\0", "raspberry-pi-3"),
        ("aarch64", A53, "Raspberry Pi 3 Model B Plus Rev 1.3\0", "raspberry-pi-3"),
        ("aarch64", A53, "Raspberry Pi Compute Module 3 Plus Rev 1.0\0", "raspberry-pi-3"),
        ("aarch64", A53, "Raspberry Pi 3 Model A Plus Rev 1.0\0", "raspberry-pi-zero-2-w"),
        ("aarch64", A53, "Raspberry Pi Zero 2 W Rev 1.0\0", "raspberry-pi-zero-2-w"),
        ("aarch64", A53 + "\nModel\t\t: Raspberry Pi Zero 2 W Rev 1.0\n", None, "raspberry-pi-zero-2-w"),
        ("aarch64", A72, "Raspberry Pi 4 Model B Rev 1.4\0", "raspberry-pi-4"),
        ("aarch64", A72, "Raspberry Pi 400 Rev 1.0\0", "raspberry-pi-4"),
        ("aarch64", A72, "Raspberry Pi Compute Module 4 Rev 1.0\0", "raspberry-pi-4"),
        ("aarch64", A76, "Raspberry Pi 5 Model B Rev 1.0\0", "raspberry-pi-5"),
        ("aarch64", A76, "Raspberry Pi Compute Module 5 Rev 1.0\0", "raspberry-pi-5"),
        ("aarch64", None, "Raspberry Pi 5 Model B Rev 1.0\0", "raspberry-pi-5"),
        ("aarch64", A76, "NVIDIA Jetson Orin Nano Developer Kit\0", "jetson-orin-nano"),
        ("aarch64", A76, "NVIDIA Orin Nano Developer Kit\0", "jetson-orin-nano"),
        ("aarch64", A72, "BeagleBoard.org BeagleBone AI-64\0", "beaglebone-ai-64"),
        ("aarch64", A72, "BeagleBoard.org BeagleBone AI\0", "generic-arm64"),
        ("aarch64", A76, "NVIDIA Jetson Orin NX Developer Kit\0", "generic-arm64"),
        # the device tree is hidden in a container, the kernel's line in cpuinfo is not
        ("aarch64", A76 + "\nModel\t\t: Raspberry Pi 5 Model B Rev 1.1\n", None, "raspberry-pi-5"),
        # a board profile must not promise what the CPU does not list
        ("aarch64", A72, "Raspberry Pi 5 Model B Rev 1.0\0", "generic-arm64"),
        ("aarch64", A76 + A72, "NVIDIA Jetson Orin Nano Developer Kit\0", "generic-arm64"),
        ("aarch64", "\xff\0 not a cpuinfo", "\0", "generic-arm64"),
    ],
)
def test_detects_profile(tmp_path: Path, machine: str, cpuinfo: str | None, model: str | None, expected: str) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_bytes(cpuinfo.encode("latin-1"))
    if model is not None:
        (tmp_path / "model").write_bytes(model.encode("latin-1"))
    found = detect(tmp_path, machine)
    assert found == expected
    assert found in p.shipped_profiles()


@pytest.mark.parametrize(
    ("cpuinfo", "model", "compatible", "expected"),
    [
        (A53, "NXP i.MX8MPlus EVK board", ["fsl,imx8mp-evk", "fsl,imx8mp"], "imx8m-plus"),
        (A53, None, ["toradex,verdin-imx8mp-wifi-dahlia", "toradex,verdin-imx8mp", "fsl,imx8mp"], "imx8m-plus"),
        (A53, "NXP i.MX8MM EVK board", ["fsl,imx8mm-evk", "fsl,imx8mm"], "generic-arm64"),
        (A76, "Radxa ROCK 5B", ["radxa,rock-5b", "rockchip,rk3588"], "rockchip-rk3588"),
        (A76, "Radxa ROCK 5C", ["radxa,rock-5c", "rockchip,rk3588s"], "rockchip-rk3588"),
        (A72, "Radxa ROCK 5B", ["radxa,rock-5b", "rockchip,rk3588"], "generic-arm64"),
        (A53, "Some board", ["rockchip,rk3588-evb-like", "rockchip,rk3568"], "generic-arm64"),
        (A76, "Raspberry Pi 5 Model B Rev 1.0", ["raspberrypi,5-model-b", "brcm,bcm2712"], "raspberry-pi-5"),
    ],
)
def test_detects_chips_of_many_boards_by_the_compatible_strings(
    tmp_path: Path, cpuinfo: str, model: str | None, compatible: list[str], expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    if model is not None:
        (tmp_path / "model").write_text(model + "\0")
    (tmp_path / "compatible").write_text("".join(name + "\0" for name in compatible))
    assert detect(tmp_path, "aarch64") == expected


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no profile for this architecture")
def test_detects_this_machine() -> None:
    assert p.load_profile(p.detect_profile()).architecture == platform.machine()


def test_refuses_an_architecture_without_profile() -> None:
    with pytest.raises(ConfigError, match="'riscv64'"):
        p.detect_profile(machine="riscv64")


def test_says_why_32_bit_arm_and_musl_cannot_run_it() -> None:
    for machine, is_64_bit in (("armv6l", False), ("armv7l", False), ("armv8l", False), ("aarch64", False)):
        with pytest.raises(ConfigError, match=r"32-bit Arm system.*no packages: install a 64-bit system"):
            p.detect_profile(machine=machine, is_64_bit=is_64_bit)
    with pytest.raises(ConfigError, match="Python has 32 bits"):
        p.detect_profile(machine="x86_64", is_64_bit=False)
    for machine in ("x86_64", "aarch64"):
        with pytest.raises(ConfigError, match=r"musl \(Alpine\)"):
            p.detect_profile(machine=machine, abi=f"cpython-311-{machine}-linux-musl")


def sections() -> Iterator[tuple[str, list[str]]]:
    """(heading in the README, field names) for every table of the profile."""
    tables = {
        "quantization": p.QuantizationProfile,
        "inference": p.InferenceProfile,
        "learning": p.LearningProfile,
        "telemetry": p.TelemetryProfile,
    }
    yield "Top level", [item.name for item in dataclasses.fields(p.DeviceProfile) if item.name not in tables]
    for name, table in tables.items():
        yield f"`[{name}]`", [item.name for item in dataclasses.fields(table)]


@pytest.mark.parametrize(("heading", "names"), list(sections()))
def test_readme_documents_exactly_the_fields(heading: str, names: list[str]) -> None:
    text = (FOLDER / "README.md").read_text()
    part = re.split(r"^##", text.split(f"### {heading}\n")[1], flags=re.MULTILINE)[0]
    assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == names


def test_readme_lists_every_shipped_file() -> None:
    text = (FOLDER / "README.md").read_text()
    assert sorted(re.findall(r"^\| `([\w-]+)\.toml` \|", text, re.MULTILINE)) == SHIPPED


def test_documentation_says_what_the_shipped_files_say() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| [^|]+ \| (\w+), (\w+)( of 7 bits)? \| (yes|no) \| (\d+) \|$",
        (ROOT / "docs/profiles.md").read_text(),
        re.MULTILINE,
    )
    expected = []
    for name in SHIPPED:
        profile = p.load_profile(name)
        q = profile.quantization
        bits = " of 7 bits" if q.reduce_range else ""
        dot = "yes" if q.int8_dot_product else "no"
        expected.append((name, q.activation_type, q.weight_type, bits, dot, str(profile.memory_mb)))
    assert sorted(rows) == expected


def test_shipped_files_are_in_the_wheel() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "firmware_configs" in hatch["packages"]
