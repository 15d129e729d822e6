"""The file with the options of ``edge-agent run``: TOML, one key for each option, named as it is with ``_`` for ``-``.

Promises that what it does not know is an error with a suggestion, that all faults are told together, and that paths are
meant from the folder of the file. A password has no place in it: it comes from the environment or a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_plus

from edge.contract.tomlfile import read_toml

_PATHS = ("state_dir", "socket", "trust", "broker_password_file", "checkpoint_key", "http_token_file")
_FILES_OF_ADDRESS = ("ca", "cert", "key", "password_file")
_HEAD = "# Options of `edge-agent run`, see `edge-agent run --help`; flags and the environment go before them.\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentFile:
    """What may stand in it; None for what does not. The values are checked as those of the options are."""

    bundles: tuple[str, ...] | None = None
    state_dir: str | None = None
    device: str | None = None
    fleet: str | None = None
    broker: str | None = None
    broker_password_file: str | None = None
    profile: str | None = None
    learner: str | None = None
    executor: str | None = None
    provider: str | None = None
    mixture: bool | None = None
    reject_unknown: float | None = None
    socket: str | None = None
    http: str | None = None
    http_token_file: str | None = None
    batch_ms: float | None = None
    source: tuple[str, ...] | None = None
    answers: tuple[str, ...] | None = None
    keep_hard: float | None = None
    fleet_labels: bool | None = None
    share_pictures: bool | None = None
    evaluate_candidates: bool | None = None
    home_assistant: str | None = None
    telemetry_interval: float | None = None
    outbox: float | None = None
    data_cap: str | None = None
    sync_interval: float | None = None
    upload: str | None = None
    noise: float | None = None
    noise_delta: float | None = None
    probation: float | None = None
    trust: str | None = None
    checkpoint_every: str | None = None
    checkpoint_samples: bool | None = None
    checkpoint_key: str | None = None
    max_streams: int | None = None
    stream_memory: float | None = None
    stream_expiry: float | None = None
    seed: int | None = None
    verbose: bool | None = None
    log: str | None = None


def read_options(path: Path) -> dict[str, Any]:
    """The options that a file gives, by key.

    Raises:
        ConfigError: It cannot be read, is not TOML, or has what it must not have.
    """
    found = read_toml(AgentFile, path)
    values = {name: getattr(found, name) for name in AgentFile.__dataclass_fields__}
    given = {name: value for name, value in values.items() if value is not None}
    folder = path.absolute().parent
    for name in given.keys() & _PATHS:
        given[name] = str(folder / given[name])
    if "bundles" in given:
        given["bundles"] = tuple(_bundle(folder, each) for each in given["bundles"])
    if given.get("profile", "").endswith(".toml"):
        given["profile"] = str(folder / given["profile"])
    if "broker" in given:
        given["broker"] = rooted(folder, given["broker"])
    for name in given.keys() & {"source", "answers"}:
        given[name] = tuple(_feed(folder, each) for each in given[name])
    return given


def files_of(options: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """What an agent reads and writes beside its state folder.

    Args:
        options: As `read_options` gives them.

    Returns:
        Files and folders that are read, and folders in which files are made: of watched ones and of answers.
    """
    read = [Path(str(options[name])) for name in _PATHS if name in options and name not in ("state_dir", "socket")]
    read += [Path(each.rpartition("=")[2]) for each in options.get("bundles", ())]
    read += [Path(options["profile"])] if str(options.get("profile", "")).endswith(".toml") else []
    write = [Path(str(options["socket"])).parent] if "socket" in options else []
    feeds = [*options.get("source", ()), *options.get("answers", ())]
    for address in [options.get("broker", ""), *feeds]:
        parts = parse_qsl(address.partition("?")[2])
        read += [Path(value) for key, value in parts if key in _FILES_OF_ADDRESS and value]
    write += [Path(found) for each in options.get("source", ()) if (found := path_of(each)) is not None]
    write += [Path(found).parent for each in options.get("answers", ()) if (found := path_of(each)) is not None]
    return read, write


def path_of(feed: str) -> str | None:
    """The folder of a source, or the file of a place for answers; None where it is none."""
    scheme, colon, rest = feed.partition(":")
    if feed == "-" or "://" in feed or (colon and scheme in ("camera", "microphone")):
        return None
    return (rest if colon and scheme == "folder" else feed).partition("?")[0]


def _feed(folder: Path, text: str) -> str:
    found = path_of(text)
    if found is None:
        return rooted(folder, text)
    begin = "folder:" if text.startswith("folder:") else ""
    return f"{begin}{folder / found}{text[len(begin) + len(found) :]}"


def rooted(folder: Path, address: str) -> str:
    """The address of a broker, with its certificates, keys and passwords as files of this folder.

    >>> rooted(Path("/etc/edge"), "mqtts://broker/cam/#?ca=our%20ca.pem&fields=a,b")
    'mqtts://broker/cam/#?ca=/etc/edge/our%20ca.pem&fields=a,b'
    """
    place, mark, query = address.partition("?")
    parts = []
    for part in query.split("&"):
        key, is_given, value = part.partition("=")
        is_file = key in _FILES_OF_ADDRESS and value
        parts.append(f"{key}={quote(str(folder / unquote_plus(value)))}" if is_file else key + is_given + value)
    return place + mark + "&".join(parts)


def _bundle(folder: Path, text: str) -> str:
    name, separator, rest = text.partition("=")
    return f"{name}={folder / rest}" if separator and not (folder / text).exists() else str(folder / text)


def write_options(options: Mapping[str, Any]) -> str:
    """A file that gives these options.

    >>> print(write_options({"bundles": ["a.edge"], "mixture": True}), end="")
    # Options of `edge-agent run`, see `edge-agent run --help`; flags and the environment go before them.
    bundles = ["a.edge"]
    mixture = true
    """
    return _HEAD + "".join(f"{key} = {_toml(value)}\n" for key, value in options.items())


def _toml(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    # Texts, numbers, true and false are written as in JSON, but that DEL must not stand there as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
