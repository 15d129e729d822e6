"""What the site has beside the pages in `docs/`: references made from the code, so that they cannot be out of date.

MkDocs calls these functions; `make docs` builds the site.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")
# Material's own, for searching in a page opened as a file; it would be asked for at another host.
_FOREIGN_SCRIPT = re.compile(r'<script src="https?://[^"]*"></script>')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Decisions are those that there are."""
    found = sorted(Path(config.docs_dir, "adr").glob("*.md"))
    config.nav = [*(config.nav or []), {"Decisions": [f"adr/{path.name}" for path in found]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for name, content in (("cli", _cli()), ("api", _api()), ("messages", _messages())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of `docs/*.md` to what lies beside `docs/` lead nowhere on the site: their words stay."""
    return _OUTSIDE.sub(r"\1", markdown) if "/" not in page.file.src_uri else markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """A page asks no other host for anything."""
    return _FOREIGN_SCRIPT.sub("", output)


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Nor does the page for what is not there."""
    return _FOREIGN_SCRIPT.sub("", output)


def _cli() -> str:
    """Every command with its help, as it prints it."""
    from converter.cli import convert_command
    from edge.cli.agent import agent
    from edge.cli.bundle import bundle
    from edge.cli.coordinator import coordinator
    from edge.cli.fleet import fleet

    lines = ["# Commands", "", "As `--help` has them. Exit codes: [architecture.md](../architecture.md)."]
    for name, found in (
        ("edge-convert", convert_command),
        ("edge-bundle", bundle),
        ("edge-agent", agent),
        ("edge-coordinator", coordinator),
        ("edge-fleet", fleet),
    ):
        for path, command in _commands(name, found):
            context = click.Context(command, info_name=path, max_content_width=78, terminal_width=78)
            lines += ["", f"{'#' * (2 + path.count(' '))} {path}", "", "```text", command.get_help(context), "```"]
    return "\n".join(lines)


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            if not command.commands[name].hidden:
                yield from _commands(f"{path} {name}", command.commands[name])


def _api() -> str:
    """The coordinator's routes, from the document that it serves at ``/openapi.json``."""
    from edge.contract.clock import Now
    from edge.coordinator.http.api import build_api
    from edge.coordinator.line import LineState
    from edge.coordinator.store.store import Store

    def submit(function: Any) -> Any:
        raise AssertionError("nothing is asked of it")

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "coordinator.sqlite")
        document = build_api(store, submit, "default", None, clock=lambda: Now(0.0, 0), line=LineState).openapi()
        store.close()
    lines = ["# HTTP API of the coordinator", "", "Made from its OpenAPI document (`/openapi.json`). See"]
    lines += ["[fleet.md](../fleet.md#http-api) for who may do what.", ""]
    lines += ["| Request | Parameters | |", "| --- | --- | --- |"]
    for path, methods in sorted(document["paths"].items()):
        for method, route in methods.items():
            given = [p["name"] + ("" if p.get("required") else "?") for p in route.get("parameters", [])]
            given += ["body"] if "requestBody" in route else []
            words = route.get("description", route.get("summary", "")).partition("\n\n")[0]
            text = " ".join(words.split()).replace("|", "\\|")
            lines.append(f"| `{method.upper()} {path}` | {', '.join(f'`{name}`' for name in given)} | {text} |")
    return "\n".join(lines)


def _messages() -> str:
    """What is said on the channel, from the dataclasses that are coded and decoded."""
    from edge.channel import messages

    lines = ["# Messages", "", "Made from `edge.channel.messages`; topics and order: [protocol.md](../protocol.md)."]
    for name, found in vars(messages).items():
        if not (inspect.isclass(found) and issubclass(found, messages.Message) and found is not messages.Message):
            continue
        words, _, attributes = inspect.cleandoc(found.__doc__ or "").partition("Attributes:\n")
        about = {
            match["name"]: " ".join(match["text"].split())
            for match in re.finditer(r"^    (?P<name>\w+): (?P<text>.*(?:\n {6,}.*)*)", attributes, re.MULTILINE)
        }
        lines += ["", f"## {name}", "", words.strip(), "", "| Field | Type | |", "| --- | --- | --- |"]
        for each in dataclasses.fields(found):
            if each.name != "extra":
                kind = str(each.type).replace("|", "\\|")
                lines.append(f"| `{each.name}` | `{kind}` | {about.get(each.name, '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
