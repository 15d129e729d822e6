"""Sources and sinks as the command line names them: ``mqtt://HOST/TOPIC?kind=image``, a folder, ``camera:``, ``-``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote

from edge.agent.sources import sinks, topics
from edge.agent.sources.folder import Folder
from edge.agent.sources.lines import Lines
from edge.agent.sources.payloads import KINDS, Source, SourceOptions
from edge.agent.sources.programs import Camera, Microphone
from edge.channel.transport import Transport
from edge.channel.url import BrokerUrl
from edge.contract.errors import ConfigError

_OF_SAMPLES = ("model", "kind", "fields", "stream")
_OF_BROKER = ("ca", "cert", "key", "password_file")


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What sources and sinks are made of.

    Attributes:
        connect: Makes a transport to a broker; the text tells apart those of one device, and the broker may be asked to
            keep for it what is published while it is away.
        clock_s: Seconds of a clock that nobody sets.
        stdin: Standard input.
        stdout: Standard output.
    """

    connect: Callable[[BrokerUrl, str, bool], Transport]
    clock_s: Callable[[], float]
    stdin: BinaryIO
    stdout: BinaryIO


def open_source(text: str, place: int, world: World) -> Source:
    """A source.

    Args:
        text: As it was named.
        place: Among the sources of this device.
        world: What it is made of.

    Raises:
        ConfigError: There is no such source, or an option is not known.
    """
    if text == "-":
        return Lines(world.stdin, SourceOptions())
    if text.startswith(("mqtt://", "mqtts://")):
        url, topic, given = _broker(text, "--source", (*_OF_SAMPLES, "away"))
        away = given.get("away", "drop")
        if away not in ("drop", "keep"):
            raise ConfigError(f"--source {_shown(text)}: away: expected drop or keep, got {away!r:.40}")
        transport = world.connect(url, f"in{place}", away == "keep")
        return topics.Topics(transport, topic.split(","), _options(given), f"{url}/{topic}")
    scheme, colon, rest = text.partition(":")
    known = {"folder": ("after",), "camera": ("fps",), "microphone": ("rate",)}
    if not colon or scheme not in known:
        scheme, rest = "folder", text
    name, given = _parts(rest, "--source", (*_OF_SAMPLES, *known[scheme]))
    options = _options(given)
    if scheme == "camera":
        return Camera(name or "/dev/video0", _number(given, "fps", 1.0, 0.001, 240.0), options)
    if scheme == "microphone":
        return Microphone(name or "default", int(_number(given, "rate", 16000, 1000, 384000)), options)
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(
            f"--source {text!r:.120}: expected a folder that there is, mqtt://HOST/TOPIC, camera:/dev/video0, "
            f"microphone:DEVICE or -"
        )
    after = given.get("after", "keep")
    if after not in ("keep", "delete"):
        raise ConfigError(f"--source {text!r:.120}: after: expected keep or delete, got {after!r:.40}")
    return Folder(path, options, world.clock_s, keep=after == "keep")


def open_sink(text: str, place: int, world: World) -> sinks.Sink:
    """Where answers go; as `open_source`.

    Raises:
        ConfigError: There is no such place, or it cannot be written.
    """
    if text == "-":
        return sinks.Stream(world.stdout)
    if text.startswith(("mqtt://", "mqtts://")):
        url, topic, given = _broker(text, "--answers", ("retain",))
        if "+" in topic or "#" in topic:
            raise ConfigError(f"--answers {text!r:.120}: expected a topic without wildcards")
        retain = given.get("retain", "0")
        if retain not in ("0", "1"):
            raise ConfigError(f"--answers {text!r:.120}: retain: expected 0 or 1")
        return sinks.Topics(world.connect(url, f"out{place}", False), topic, retain=retain == "1")
    if "://" in text:
        raise ConfigError(f"--answers {text!r:.120}: expected mqtt://HOST/TOPIC, a file or -")
    return sinks.Lines(Path(text))


def _broker(text: str, option: str, known: tuple[str, ...]) -> tuple[BrokerUrl, str, dict[str, str]]:
    """A broker, a topic and the rest. A topic may have # in it, which in other addresses begins a fragment."""
    scheme, _, rest = text.partition("://")
    host, _, path = rest.partition("/")
    topic, given = _parts(path, option, (*known, *_OF_BROKER))
    topic = unquote(topic)
    if not topic or len(topic.encode()) > 1000 or "\0" in topic:
        raise ConfigError(f"{option} {_shown(text)}: expected a topic, as in mqtt://127.0.0.1/cameras/+/snapshot")
    files = "&".join(f"{key}={quote(given.pop(key))}" for key in ("ca", "cert", "key") if key in given)
    password = None
    if (file := given.pop("password_file", None)) is not None:
        try:
            password = Path(file).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{option}: the password in {file} cannot be read: {exc}") from exc
    return BrokerUrl.parse(f"{scheme}://{host}" + (f"?{files}" if files else ""), password), topic, given


def _shown(text: str) -> str:
    """Without a login."""
    scheme, _, rest = text.partition("://")
    return repr(f"{scheme}://{rest.rpartition('@')[2]}")[:120]


def _parts(text: str, option: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    name, _, query = text.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := [key for key in given if key not in known]:
        raise ConfigError(f"{option} {name!r:.80}: {unknown[0]!r:.40} is not known, expected {', '.join(known)}")
    return name, given


def _options(given: Mapping[str, str]) -> SourceOptions:
    kind = given.get("kind", "")
    if kind and kind not in KINDS:
        raise ConfigError(f"--source: kind: expected one of {', '.join(KINDS)}, got {kind!r:.40}")
    fields = tuple(field for field in given.get("fields", "").split(",") if field)
    return SourceOptions(model=given.get("model"), kind=kind, fields=fields, stream=given.get("stream"))


def _number(given: Mapping[str, str], key: str, usual: float, least: float, most: float) -> float:
    try:
        found = float(given.get(key, usual))
    except ValueError:
        found = float("nan")
    if not least <= found <= most:
        raise ConfigError(f"--source: {key}: expected {least:g} to {most:g}, got {given[key]!r:.40}")
    return found
