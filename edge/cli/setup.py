"""``edge-agent init``: asks what an agent has to know, tries it, and writes the file of options."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from edge.cli.configured import default_files
from edge.cli.terminal import say
from edge.contract.errors import ChannelError, ConfigError
from edge.contract.files import sync_folder

if TYPE_CHECKING:
    from edge.channel.url import BrokerUrl

_PASSWORD = "broker-password"  # noqa: S105  # the name of a file
_PATH = click.Path(path_type=Path)


@click.command(
    epilog="Examples: sudo edge-agent init; "
    "edge-agent init model.edge --broker mqtts://user@broker --config agent.toml --yes"
)
@click.argument("bundles", nargs=-1, metavar="[NAME=]BUNDLE...")
@click.option("--config", type=_PATH, help="The file to write.  [default: where `run` looks for it]")
@click.option("--state-dir", type=_PATH, help="All the agent keeps.  [default: /var/lib/edgeloop, or the user's]")
@click.option("--device", help="Device id.  [default: that of STATE_DIR, else the host name and six digits]")
@click.option("--fleet", help="Fleet id.  [default: default]")
@click.option(
    "--broker",
    envvar="EDGE_BROKER",
    show_envvar=True,
    help="mqtt://HOST:PORT or mqtts://...; without it it works alone.",
)
@click.option(
    "--broker-password", envvar="EDGE_BROKER_PASSWORD", show_envvar=True, help="Is kept in a file of its own."
)
@click.option("--trust", type=_PATH, help="Root document: unsigned releases are refused.")
@click.option("--data-cap", help="Sent and received at most, such as 20MB/day.  [default: none]")
@click.option("--check/--no-check", default=True, help="Ask the broker whether all this works, before it is written.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--yes", is_flag=True, help="Ask nothing: what no option says is left to its default.")
def init(
    bundles: tuple[str, ...],
    config: Path | None,
    state_dir: Path | None,
    device: str | None,
    fleet: str | None,
    broker: str | None,
    broker_password: str | None,
    trust: Path | None,
    data_cap: str | None,
    check: bool,
    force: bool,
    yes: bool,
) -> None:
    """Write the file of options that `edge-agent run`, `doctor` and `install` take.

    Asks for what no option says. Only its owner may read the file; one that is there is not replaced without --force.
    When the broker cannot be used, nothing is written with --yes, and else only if you say so.
    """
    from edge.agent.config import named_bundles
    from edge.agent.config_file import read_options, rooted, write_options
    from edge.agent.line.data_cap import DataCap
    from edge.channel.topics import check_id
    from edge.channel.url import BrokerUrl

    system, own = default_files()
    path = config or (system if os.geteuid() == 0 else own)
    secret = path.with_name(_PASSWORD)
    if path.exists() and not force:
        raise ConfigError(f"{path} exists and stays as it is; --force replaces it, --config names another one")
    if not bundles and not yes:
        bundles = tuple(_asked_bundles())
    if not bundles:
        raise ConfigError("an agent needs a bundle: name it, as in `edge-agent init model.edge`")
    named_bundles(bundles)
    broker = _asked("Broker, mqtt://HOST or mqtts://USER@HOST (empty: none)", broker, "", yes) or None
    url = None if broker is None else BrokerUrl.parse(broker, broker_password)
    if url is not None and url.username and url.password is None and not yes:
        broker_password = click.prompt("Password", hide_input=True, default="", show_default=False) or None
        url = BrokerUrl.parse(str(broker), broker_password)
    fleet = _asked("Fleet", fleet, "default", yes)
    state_dir = Path(_asked("State folder", state_dir, str(_state_dir(own=os.geteuid() != 0)), yes)).absolute()
    usual = _usual_device(state_dir)
    device = _asked("Device", device, usual, yes)
    check_id(fleet, "fleet")
    check_id(device, "device")
    if data_cap is not None:
        DataCap.parse(data_cap)
    from edge.cli.doctor import root_document

    for finding in root_document(trust, fleet, device):
        if finding.level == "fault":
            raise ConfigError(finding.text)
    password = None if url is None else url.password
    if password is not None and secret.exists() and not force:
        raise ConfigError(f"{secret} exists and stays as it is; --force replaces it")
    if check and url is not None:
        _check(url, fleet, device, state_dir, yes)

    options: dict[str, Any] = {"bundles": [_absolute(each) for each in bundles], "state_dir": str(state_dir)}
    options |= {} if device == usual else {"device": device}
    options |= {} if fleet == "default" else {"fleet": fleet}
    options |= {} if broker is None else {"broker": rooted(Path.cwd(), _without_password(broker))}
    options |= {} if password is None else {"broker_password_file": _PASSWORD}
    options |= {} if trust is None else {"trust": str(trust.absolute())}
    options |= {} if data_cap is None else {"data_cap": data_cap}
    if password is not None:
        _write(secret, password, force)
    _write(path, write_options(options), force)
    read_options(path)
    say(f"wrote {path}")
    say("next: `edge-agent doctor`, then `edge-agent run`, or `sudo edge-agent install`" + _named(config))


def _named(config: Path | None) -> str:
    return "" if config is None else f", each with --config {config}"


def _asked(question: str, given: object, default: str, yes: bool) -> str:
    if given is not None or yes:
        return default if given is None else str(given)
    return str(click.prompt(question, default=default, show_default=bool(default))).strip()


def _asked_bundles() -> list[str]:
    found: list[str] = []
    while each := str(click.prompt("Bundle, [NAME=]FILE (empty: no more)", default="", show_default=False)).strip():
        found.append(each)
    return found


def _state_dir(*, own: bool) -> Path:
    if not own:
        return Path("/var/lib/edgeloop")
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path(os.environ.get("HOME", "/")) / ".local" / "state") / "edgeloop"


def _usual_device(state_dir: Path) -> str:
    import platform

    from edge.agent.device.health import machine_id
    from edge.agent.state_folder import device_of

    return device_of(state_dir, platform.node(), machine_id())


def _absolute(bundle: str) -> str:
    name, separator, rest = bundle.partition("=")
    if separator and not Path(bundle).exists():
        return f"{name}={Path(rest).absolute()}"
    return str(Path(bundle).absolute())


def _without_password(broker: str) -> str:
    """The address with the login name alone."""
    login, at, host = urlsplit(broker).netloc.rpartition("@")
    return broker.replace(f"{login}{at}{host}", f"{login.partition(':')[0]}{at}{host}", 1)


def _check(url: BrokerUrl, fleet: str, device: str, state_dir: Path, yes: bool) -> None:
    """Ask the broker.

    Raises:
        ChannelError: It cannot be used as it is, and nobody said that this does not matter.
    """
    from edge.cli import doctor

    faults = []
    for finding in doctor.broker(url, fleet, device, busy=doctor.is_busy(state_dir)):
        say(str(finding))
        faults += [finding.text] if finding.level == "fault" else []
    if faults and (yes or not click.confirm("Write it all the same?")):
        raise ChannelError(f"{faults[0]}; nothing was written (--no-check writes without asking the broker)")


def _write(path: Path, text: str, force: bool) -> None:
    """Write a file that only its owner reads: whole or absent, and not over another one.

    Raises:
        ConfigError: It cannot be written, or is there by now.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if force:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError as exc:
        raise ConfigError(f"{path} exists and stays as it is; --force replaces it") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}; name another file with --config") from exc
