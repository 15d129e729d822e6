"""``edge-agent install | uninstall``: the agent as a service of systemd."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from edge.cli.configured import default_files, is_readable
from edge.contract.errors import ConfigError
from edge.contract.files import replace_file

_MARK = "# Written by `edge-agent install`; `edge-agent uninstall` removes it. Changes: `systemctl edit {name}`.\n"
_FOLDER = Path("etc/systemd/system")
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_SCRATCH = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  # compared with, not written to
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_UNIT = """\
[Unit]
Description=Edgeloop agent
Wants=network-online.target
After=network-online.target time-sync.target
# It is started again for ever: nobody may be there to do it.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
User={user}
{state}
WorkingDirectory={state_dir}
EnvironmentFile=-/etc/edgeloop/agent.env
Restart=always
RestartSec=5
# Bundles are checked at the start, and a pushed one while it runs.
TimeoutStartSec=600
TimeoutStopSec=30
WatchdogSec=180
# What looks at releases may be ended where memory is short; the agent goes on.
OOMPolicy=continue
StandardInput=null
StandardOutput=journal
StandardError=journal
SyslogIdentifier={name}
UMask=0077

NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome={home}
PrivateTmp={tmp}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What the unit is about.

    Attributes:
        name: Of the unit, without ``.service``.
        program: The words that start ``edge-agent``.
        config: The file of options.
        options: What stands in it.
        user: Who runs it.
        python: Where its interpreter lies, which may be in somebody's home.
    """

    name: str
    program: tuple[str, ...]
    config: Path
    options: Mapping[str, object]
    user: str
    python: tuple[Path, ...] = ()

    @property
    def state_dir(self) -> Path:
        """Where the agent keeps what it learned."""
        return Path(str(self.options.get("state_dir", f"/var/lib/{self.name}")))

    @property
    def is_below_var_lib(self) -> bool:
        """Whether systemd makes the state folder, and gives it to the user."""
        return self.state_dir.parent == Path("/var/lib")

    def text(self) -> str:
        """The unit."""
        from edge.agent.config_file import files_of

        read, others = files_of(self.options)
        read = [Path(self.program[0]), *self.python, self.config, self.state_dir, *read]
        write = [self.state_dir, *dict.fromkeys(others)]
        paths = " ".join(_quoted(f"-{path}") for path in write[1 if self.is_below_var_lib else 0 :])
        state = (
            f"StateDirectory={_quoted(self.state_dir.name)}\nStateDirectoryMode=0700" if self.is_below_var_lib else ""
        )
        command = [*self.program, "run", "--config", str(self.config)]
        if "state_dir" not in self.options:
            command += ["--state-dir", str(self.state_dir)]
        return _MARK.format(name=self.name) + _UNIT.format(
            name=self.name,
            command=" ".join(_quoted(word, is_command=True) for word in command),
            user=self.user,
            state="\n".join(filter(None, [state, paths and f"ReadWritePaths={paths}"])),
            state_dir=str(self.state_dir).replace("%", "%%"),
            home="read-only" if _any_below(read, _HOMES) else "yes",
            tmp="no" if _any_below(read + write, _SCRATCH) else "yes",
        )


def _any_below(paths: list[Path], folders: tuple[Path, ...]) -> bool:
    real = [each for path in paths for each in (path.absolute(), path.resolve())]
    return any(path.is_relative_to(folder) for path in real for folder in folders)


def _quoted(word: str, *, is_command: bool = False) -> str:
    """A word as systemd reads it: no specifiers, no variables, whole."""
    if any(ord(char) < 32 for char in word):
        raise ConfigError(f"a path for systemd must not have control characters, got {word!r}")
    word = word.replace("%", "%%")
    word = word.replace("$", "$$") if is_command else word
    if re.fullmatch(r"[\w@%+=:,./$-]+", word, re.ASCII):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _program() -> tuple[str, ...]:
    script = Path(sys.executable).parent / "edge-agent"
    return (str(script),) if script.exists() else (sys.executable, "-m", "edge.cli.agent")


def _systemctl(root: Path | None, *words: str) -> None:
    program = shutil.which("systemctl")
    if program is None:
        raise ConfigError(
            "systemctl is not here: this system is not run by systemd; --print shows the unit all the same"
        )
    command = [program, *([] if root is None else [f"--root={root}"]), *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed: {ran.stderr.strip()[:300] or ran.returncode}")


def _needs(root: Path | None) -> None:
    """That the unit can be installed here.

    Raises:
        ConfigError: No systemd runs here, or this is not root.
    """
    if root is None and not Path("/run/systemd/system").is_dir():
        raise ConfigError("systemd does not run here: --print shows the unit, --root DIR puts it into another system")
    if os.geteuid() != 0:
        raise ConfigError("only root may change the services of this system: run it with sudo, or see --print")


def _unit_file(root: Path | None, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name: expected up to 64 of letters, digits, dash, dot and _, got {name[:80]!r}")
    return (root or Path("/")) / _FOLDER / f"{name}.service"


def _is_ours(path: Path, name: str) -> bool:
    return path.read_text(errors="replace").startswith(_MARK.format(name=name))


_name = click.option("--name", default="edge-agent", help="Of the unit.")
_root = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A system that does not run: an image.",
)


@click.command(epilog="Examples: sudo edge-agent install; edge-agent install --config agent.toml --print")
@click.option("--config", type=click.Path(path_type=Path), help="The options.  [default: where `run` looks for them]")
@click.option("--user", default="edgeloop", help="Who runs it; the options' file and the state folder are given to it.")
@_name
@_root
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and change nothing.")
def install(config: Path | None, user: str, name: str, root: Path | None, only_print: bool) -> None:
    """Let systemd run the agent: from the start of this system on, again when it ends, and when it hangs.

    Writes a unit with a watchdog and a sandbox, and starts it. What it says goes to the journal:
    `journalctl -u edge-agent`.
    """
    from edge.agent.config_file import read_options

    path = _unit_file(root, name)
    used = config or next((each for each in default_files() if is_readable(each)), None)
    if used is None:
        raise ConfigError("there is no file of options yet: `edge-agent init` writes one, or name it with --config")
    options = read_options(used)
    if not options.get("bundles"):
        raise ConfigError(f'{used} names no bundle: write bundles = ["/path/model.edge"] into it')
    if "-" in options.get("source", ()):
        raise ConfigError(f'{used}: a service has no standard input: take "-" out of source')
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise ConfigError(f"--user: expected the name of a user, got {user[:40]!r}")
    python = (Path(sys.executable), Path(sys.base_prefix))
    service = Service(name=name, program=_program(), config=used.absolute(), options=options, user=user, python=python)
    if only_print:
        click.echo(service.text(), nl=False)
        return
    _needs(root)
    if path.exists() and not _is_ours(path, name):
        raise ConfigError(f"{path} is not of `edge-agent install`: move it away, or choose another --name")
    if root is None:
        _give_to(user, service)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(service.text().encode())
    path.chmod(0o644)
    if root is None:
        _systemctl(None, "daemon-reload")
        _systemctl(None, "enable", name)
        _systemctl(None, "restart", name)
    else:
        _systemctl(root, "enable", name)
    click.echo(f"wrote {path}; {'it runs: `systemctl status ' + name + '`' if root is None else 'enabled'}")


def _give_to(user: str, service: Service) -> None:
    """Files that the service's user must read or write.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError as exc:
        raise ConfigError(
            f"there is no user {user}: `useradd --system --no-create-home {user}`, or name another one with --user"
        ) from exc
    if not service.is_below_var_lib:
        service.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(service.state_dir, entry.pw_uid, entry.pw_gid)
    secret = service.options.get("broker_password_file")
    for path in [service.config, *([] if secret is None else [Path(str(secret))])]:
        if path.exists():
            os.chown(path, entry.pw_uid, entry.pw_gid)


@click.command(epilog="Example: sudo edge-agent uninstall")
@_name
@_root
def uninstall(name: str, root: Path | None) -> None:
    """Stop the service and remove its unit. Options, bundles and what was learned stay."""
    path = _unit_file(root, name)
    if not path.exists():
        raise ConfigError(f"{path} does not exist: nothing is installed under this name")
    if not _is_ours(path, name):
        raise ConfigError(f"{path} is not of `edge-agent install`: it stays")
    _needs(root)
    _systemctl(root, "disable", *(["--now"] if root is None else []), name)
    path.unlink()
    if root is None:
        _systemctl(None, "daemon-reload")
    click.echo(f"removed {path}; options, bundles and what was learned stay where they are")
