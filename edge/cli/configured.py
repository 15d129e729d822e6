"""``--config`` of ``edge-agent``: options from a file, below those of the environment and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.agent.config import HttpOptions

F = TypeVar("F", bound=Callable[..., Any])
SYSTEM_FILE = Path("/etc/edgeloop/agent.toml")
LEAST_TOKEN = 16


def default_files() -> list[Path]:
    """Where the file is looked for: the first that can be read is used."""
    home = os.environ.get("XDG_CONFIG_HOME")
    own = Path(home) if home else Path(os.environ.get("HOME", "/")) / ".config"
    return [SYSTEM_FILE, own / "edgeloop" / "agent.toml"]


def is_readable(path: Path) -> bool:
    """Whether the file is there for this user: that of a service is nobody else's business."""
    return os.access(path, os.R_OK) and path.is_file()


def _take(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Let the file's options be the defaults of the command."""
    used = path or next((each for each in default_files() if is_readable(each)), None)
    if used is None or ctx.resilient_parsing:
        return None
    from edge.agent.config_file import read_options

    given = read_options(used)
    params = {key_of(each): each for each in ctx.command.params}
    for key, value in given.items():
        if key == "bundles" or key not in params:
            continue
        try:
            params[key].type_cast_value(ctx, value)
        except click.BadParameter as exc:
            raise ConfigError(f"{used}: {key}: {exc.message}") from exc
    by_parameter = {params[key].name: value for key, value in given.items() if key in params}
    ctx.default_map = {**(ctx.default_map or {}), **{str(key): value for key, value in by_parameter.items()}}
    return used


def key_of(parameter: click.Parameter) -> str:
    """The key of an option in the file: its long name with ``_`` for ``-``."""
    if isinstance(parameter, click.Argument):
        return str(parameter.name)
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def config_option(*, exposed: bool) -> Callable[[F], F]:
    """The option ``--config``.

    Args:
        exposed: Whether the command itself is told which file was used.
    """
    return click.option(
        "--config",
        is_eager=True,
        expose_value=exposed,
        callback=_take,
        type=click.Path(path_type=Path),
        envvar="EDGE_CONFIG",
        show_envvar=True,
        help="Options in a TOML file; flags go before it.  [default: /etc/edgeloop/agent.toml, else "
        "$XDG_CONFIG_HOME/edgeloop/agent.toml, where it can be read]",
    )


def bundles_of(ctx: click.Context, bundles: tuple[str, ...]) -> tuple[str, ...]:
    """Bundles of the command line, else of the file.

    Raises:
        UsageError: Neither names one.
    """
    found = bundles or tuple((ctx.default_map or {}).get("bundles", ()))
    if not found:
        raise click.UsageError("Missing argument '[NAME=]BUNDLE...': name it here, or as `bundles` in --config.", ctx)
    return found


def http_options(address: str | None, token_file: Path | None) -> HttpOptions | None:
    """Where HTTP is spoken, and by whom; None for nowhere.

    Raises:
        ConfigError: The address is none, or the file holds no token.
    """
    if address is None:
        if token_file is not None:
            raise ConfigError("--http-token-file: expected --http HOST:PORT beside it")
        return None
    from edge.agent.config import HttpOptions
    from edge.agent.http.server import parse_address

    host, port = parse_address(address)
    token = None
    if token_file is not None:
        token = _secret(token_file, "--http-token-file").strip()
        if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"--http-token-file {token_file}: expected {LEAST_TOKEN} or more letters and digits; "
                f"`openssl rand -hex 16` makes some"
            )
    return HttpOptions(host=host, port=port, token=token)


def prefix_of(text: str | None) -> str:
    """A prefix of topics; "" for none.

    Raises:
        ConfigError: It cannot stand in a topic.
    """
    if text is None:
        return ""
    if not text or len(text) > 100 or any(c in "+#$ " or not c.isprintable() for c in text) or text.strip("/") != text:
        raise ConfigError(f"--home-assistant: expected a prefix of topics such as homeassistant, got {text!r:.60}")
    return text


def password_of(given: str | None, file: Path | None) -> str | None:
    """The password of the broker: as it was given, else out of its file.

    Raises:
        ConfigError: The file cannot be read.
    """
    if given is not None or file is None:
        return given
    return _secret(file, "--broker-password-file").rstrip("\r\n")


def _secret(file: Path, option: str) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(f"{option} {file} cannot be read: {why}") from exc
