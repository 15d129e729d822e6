"""The list of targets: every shipped profile, whole, in 80 columns."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from collections.abc import Iterable

from rich.console import Console

from converter.report.targets import list_targets, render_targets
from edge.contract.profile import DeviceProfile, shipped_profiles


def printed(profiles: Iterable[DeviceProfile], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(render_targets(profiles))
    return capture.get()


def row(text: str, name: str) -> list[str]:
    """The cells of a profile's first line."""
    (line,) = re.findall(rf"^ *{re.escape(name)} .*$", text, re.MULTILINE)
    return re.split(r"\s{2,}", line.strip())


def test_lists_every_shipped_profile() -> None:
    names = [profile.name for profile in list_targets()]
    assert names == shipped_profiles()
    assert len(names) >= 10


def test_fits_80_columns_with_nothing_cut_off() -> None:
    text = printed(list_targets())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = set(text.split())
    for profile in list_targets():
        assert profile.name in words
        assert set(profile.description.split()) <= words


def test_row_says_what_the_profile_says() -> None:
    text = printed(list_targets(), width=200)
    assert row(text, "raspberry-pi-zero-2-w")[1:] == ["aarch64", "512", "no", "int8", "3", "32"]
    assert row(text, "x86_64-vnni")[1:] == ["x86_64", "4096", "yes", "uint8", "2", "256"]


def test_says_which_targets_take_7_bit_weights() -> None:
    vnni, generic = (next(x for x in list_targets() if x.name == name) for name in ("x86_64-vnni", "generic-x86_64"))
    assert "int8, 7 bit" in printed([generic])
    assert "7 bit" not in printed([vnni])


def test_description_is_not_read_as_markup() -> None:
    profile = dataclasses.replace(list_targets()[0], description="[red]a[/red] [/]b")
    assert "[red]a[/red]" in printed([profile])


def test_rich_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, converter.report.targets as t; t.list_targets(); "
        "sys.exit(bool({'rich', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
