"""``edge-agent enroll``: join a fleet by a token, and keep the login at the broker that comes back."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import click

from edge.contract.errors import ChannelError, ConfigError, RolloutError
from edge.contract.files import replace_file

_TIMEOUT_S, _MAX_ANSWER_BYTES = 30.0, 1 << 20


@click.command()
@click.option("--coordinator", "url", required=True, envvar="EDGE_COORDINATOR", show_envvar=True, help="Its HTTP API.")
@click.option(
    "--token", required=True, envvar="EDGE_ENROL_TOKEN", show_envvar=True, help="Of edge-fleet enrolment new."
)
@click.option("--device", help="Device id.  [default: that of STATE_DIR, else the host name and six digits]")
@click.option("--state-dir", default="edge-state", type=click.Path(path_type=Path), help="Everything the agent keeps.")
@click.option("--certificate", is_flag=True, help="A key made here and a certificate, instead of a password.")
@click.option("--ca", type=click.Path(path_type=Path), help="With https: certificates to believe.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def enroll(
    url: str, token: str, device: str | None, state_dir: Path, certificate: bool, ca: Path | None, as_json: bool
) -> None:
    """Join a fleet by a token; the login at the broker is kept in STATE_DIR/enrolment.

    Where no answer came it may be run again: the token is not used twice.

    \b
    edge-agent enroll --coordinator https://fleet:8470 --token join_...
    edge-agent run m.edge --broker mqtts://camera-7@broker \\
        --broker-password-file edge-state/enrolment/password
    """
    import platform

    from edge.agent.device.health import machine_id
    from edge.agent.state_folder import device_of
    from edge.channel.topics import check_id
    from edge.contract.certificates import make_request

    folder = state_dir / "enrolment"
    name = check_id(device or device_of(state_dir, platform.node(), machine_id()), "device")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        body = {"token": token, "device": device or "", "suggested": name}
        body["number"] = _kept(folder / "request", secrets.token_hex(16))
        if certificate:
            if not (folder / "request.csr").exists():
                key, csr = make_request(name)
                _keep(folder / "device.key", key)
                _keep(folder / "request.csr", csr)
            body["csr"] = (folder / "request.csr").read_text()
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be written: {exc.strerror}") from exc
    try:
        found = _ask(url, body, ca)
    except RolloutError as exc:
        if not any((folder / file).exists() for file in ("password", "device.pem")):
            raise
        has = f"this device is enrolled already, by the login in {folder}; a new one needs a new token"
        raise RolloutError(f"{exc}. {has}") from exc
    files = {"password": "password", "certificate": "device.pem", "authority": "authority.pem"}
    try:
        for field, file in files.items():
            if field in found:
                _keep(folder / file, str(found[field]).encode())
        for file in ("request", "request.csr"):
            (folder / file).unlink(missing_ok=True)  # it is answered
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be written: {exc.strerror}; run this again") from exc
    told = {"device": found["device"], "fleet": found["fleet"], "admission": found["admission"], "folder": str(folder)}
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(f"{told['device']} is enrolled in the fleet {told['fleet']}: {told['admission']}")
    if told["admission"] == "pending":
        click.echo(f"somebody has to approve it: edge-fleet device approve {told['device']}")
    if certificate:
        login = f"--broker 'mqtts://BROKER?cert={folder}/device.pem&key={folder}/device.key'"
    else:
        login = f"--broker mqtts://{told['device']}@BROKER --broker-password-file {folder}/password"
    click.echo(f"edge-agent run BUNDLE --device {told['device']} --fleet {told['fleet']} {login}")


def _ask(url: str, body: dict[str, str], ca: Path | None) -> dict[str, Any]:
    """Join.

    Raises:
        ChannelError: Nobody answers, or not a coordinator.
        RolloutError: It lets this device not in.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--coordinator {url!r} is not an address like https://fleet:8470")
    import ssl  # here: `edge-agent run` would carry them about, a MiB and a half
    import urllib.error
    import urllib.request

    request = urllib.request.Request(  # noqa: S310  # the scheme was looked at
        f"{url.rstrip('/')}/api/v1/enrol",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as exc:
        raise ConfigError(f"--ca {ca}: expected certificates in PEM: {exc.strerror or exc}") from exc
    try:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read(_MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as exc:
        with exc:
            data = exc.read(_MAX_ANSWER_BYTES)
        try:
            detail = str(json.loads(data)["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"{exc.code} {exc.reason}"
        raise RolloutError(detail) from exc
    except (OSError, ValueError) as exc:
        raise ChannelError(f"no coordinator answers at {url} ({exc}); name it with --coordinator") from exc
    if not isinstance(found, dict) or not {"device", "fleet", "admission"} <= set(found):
        raise ChannelError(f"{url} answers, but is not a coordinator")
    return found


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user only."""
    with replace_file(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)


def _kept(path: Path, new: str) -> str:
    """What is there, or this, kept."""
    if path.exists():
        return path.read_text()
    _keep(path, new.encode())
    return new
