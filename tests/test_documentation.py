"""What the pages in `docs/` promise of messages is in the code, and the site can be built."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import click
import pytest

from converter.cli import convert_command
from edge.channel.topics import check_id
from edge.cli.agent import agent
from edge.cli.bundle import bundle
from edge.cli.coordinator import coordinator
from edge.cli.fleet import fleet
from edge.contract.errors import EdgeError

ROOT = Path(__file__).parents[1]
# Options whose values are names of fleets, devices and sites.
NAMES = ("fleet", "device", "site", "upstream-fleet")


COMMANDS: dict[str, click.Command] = {
    "edge-convert": convert_command, "edge-agent": agent, "edge-bundle": bundle, "edge-coordinator": coordinator,
    "edge-fleet": fleet,
}  # fmt: skip


def typed(page: Path) -> list[list[str]]:
    """The words of every command of ours in the blocks that a reader types."""
    blocks = re.findall(r"^```(?:sh|console)\b[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:\$ )?(?:! )?(edge-[a-z]+ [^#|&;>]*)", line) for line in lines)
    return [words for each in found if each and (words := shlex.split(each[1]))[0] in COMMANDS]


def not_known(words: list[str]) -> list[str]:
    """Commands and options of a line that the program does not have."""
    at, options = COMMANDS[words[0]], {"--help"}
    for word in words[1:]:
        options |= {each for param in at.params for each in (*param.opts, *param.secondary_opts)}
        if isinstance(at, click.Group):
            at = at.get_command(click.Context(at), word) or at
    options |= {each for param in at.params for each in (*param.opts, *param.secondary_opts)}
    lost = [word for word in words[1:] if word.startswith("--") and word.partition("=")[0] not in options]
    return [*lost, *(["a command"] if isinstance(at, click.Group) and "--help" not in words else [])]


def refused(words: list[str]) -> list[str]:
    """Values of options that the program would not take: no number, no duration, no name."""
    at, bad = COMMANDS[words[0]], []
    for word in words[1:]:
        at = (at.get_command(click.Context(at), word) or at) if isinstance(at, click.Group) else at
    takes = {each: param for param in at.params if isinstance(param, click.Option) and not param.is_flag
             and not isinstance(param.type, click.Path) for each in param.opts}  # fmt: skip
    for word, following in pairwise([*words, ""]):
        option, _, value = word.partition("=")
        value = value or following
        if option not in takes or value.isupper() or set(value) & set("$…|"):  # to be filled in
            continue
        try:
            takes[option].type.convert(value, takes[option], click.Context(at))
            if option.removeprefix("--") in NAMES:
                check_id(value, option)
        except (click.BadParameter, EdgeError) as exc:
            bad.append(f"{option}: {exc}")
    return bad


def test_commands_that_a_reader_types_are_those_of_the_programs() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    lines = [(page.name, words) for page in pages for words in typed(page)]
    assert len(lines) > 100
    assert [(name, words, lost) for name, words in lines if (lost := [*not_known(words), *refused(words)])] == []


def texts_in_the_code() -> str:
    """All texts that the code can say, one a line; what is filled in stands as ``…``."""
    found = []
    for folder in ("edge", "converter"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
    return "\n".join(found)


def test_messages_that_are_explained_are_messages_of_the_code() -> None:
    said = texts_in_the_code()
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    lost = []
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            pieces = [piece.strip() for piece in message.split("…") if piece.strip()]
            if not all(piece in said for piece in pieces):
                lost.append(message)
    assert lost == []


def test_every_page_and_decision_stands_in_the_list_of_the_first_page() -> None:
    docs, listed = ROOT / "docs", (ROOT / "docs" / "README.md").read_text()
    pages = [
        path.relative_to(docs).as_posix()
        for folder in ("", "tutorials", "adr")
        for path in (docs / folder).glob("*.md")
    ]
    assert [page for page in sorted(pages) if f"]({page})" not in listed and page != "README.md"] == []


def test_the_site_is_built_without_a_broken_link_and_asks_no_other_host(tmp_path: Path) -> None:
    if shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("mkdocs is not installed: pip install 'edgeloop[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    foreign = re.compile(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="https?://')
    assert [page.name for page in pages if foreign.search(page.read_text())] == []
    assert "edge-fleet rollout widen" in (tmp_path / "site" / "reference" / "cli.html").read_text()
