"""How devices join: a token that was made here, for a login at the broker that is the device's alone.

A password is made here and shown once; a certificate is of a key that never leaves the device. What this coordinator
keeps of them cannot be used to log in.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.channel.topics import check_id
from edge.contract import certificates
from edge.contract.clock import Now
from edge.contract.digest import sha256
from edge.contract.errors import ConfigError, RolloutError
from edge.contract.files import replace_file
from edge.contract.names import DEVICE_SALT
from edge.coordinator.devices.admission import Admission, Admissions
from edge.coordinator.devices.registry import Registry
from edge.coordinator.events import Events
from edge.coordinator.records import DECOMMISSIONED, Credential, Device, Enrolment
from edge.coordinator.store.store import Store

_PREFIX = "join_"
_DAY_MS = 86_400_000
MAX_USES = 1_000_000
# Rounds of PBKDF2: for passwords that people choose they would be few; these are 256 random bits.
_ROUNDS = 101


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a device asks for.

    Attributes:
        token: That lets it in.
        device: Its name; "" for that of the token, which replaces a device, or else the suggested one.
        number: Random, made by the device and kept until an answer came: the same one may ask again.
        csr: Request for a certificate, PEM; "" for a password.
        suggested: Its name where nobody says another.
    """

    token: str
    device: str
    number: str
    csr: str = ""
    suggested: str = ""


class Enrolments:
    """See the module.

    Args:
        fleet: Its id.
        coordinator: Name of this coordinator, which no device may have.
        folder: With the key of the authority, made when it is first needed.
        store: The database.
        registry: Who is in the fleet.
        admissions: Who belongs to it.
        events: For what people should see.
    """

    def __init__(
        self,
        fleet: str,
        coordinator: str,
        folder: Path,
        store: Store,
        registry: Registry,
        admissions: Admissions,
        events: Events,
    ) -> None:
        self._fleet = fleet
        self._coordinator = coordinator
        self._folder = folder
        self._store = store
        self._registry = registry
        self._admissions = admissions
        self._events = events

    def new(
        self,
        now: Now,
        *,
        days: float,
        uses: int = 1,
        tags: Mapping[str, str] | None = None,
        approves: bool = False,
        replaces: str = "",
    ) -> tuple[Enrolment, str]:
        """Make a token by which devices join.

        Args:
            now: The time.
            days: How long it holds; 0 for ever.
            uses: How many devices.
            tags: That they get.
            approves: Whether they are approved by it, or wait for a person.
            replaces: The device whose place new hardware takes by it; "" for none.

        Returns:
            What is kept of it, and the token itself, which nobody can say again.

        Raises:
            RolloutError: A tag that is none, or the device that is to be replaced was never seen.
        """
        if replaces:
            self._admissions.get(replaces)
        self._registry.check_tags(tags or {})
        secret = _PREFIX + secrets.token_urlsafe(32)
        made = Enrolment(
            digest=sha256(secret.encode()),
            uses=1 if replaces else uses,
            tags=dict(tags or {}),
            approves=approves or bool(replaces),
            replaces=replaces,
            created_ms=now.wall_ms,
            expires_ms=now.wall_ms + int(days * _DAY_MS) if days else 0,
        )
        return self._store.enrolment.add(made), secret

    def join(self, request: Request, now: Now) -> dict[str, Any]:
        """Let a device in.

        Returns:
            ``device``, ``fleet``, ``admission`` and either ``password`` or ``certificate`` with ``authority``.

        Raises:
            RolloutError: The token does not hold, or the name is another's.
            ConfigError: The name or the request for a certificate is none.
        """
        token = self._store.enrolment.by_hash(sha256(request.token.encode()))
        asked = sha256(request.number.encode())
        if token is None or token.revoked_ms or 0 < token.expires_ms <= now.wall_ms:
            raise RolloutError("this token lets nobody in: it is wrong, expired or revoked; `edge-fleet enrolment new`")
        device = check_id(request.device or token.replaces or request.suggested, "device")
        if token.replaces not in ("", device):
            raise RolloutError(f"this token is for {token.replaces}, not for {device}")
        if device == self._coordinator:
            raise RolloutError(f"{device} is the name of the coordinator; choose another with --device")
        live = [each for each in self._store.enrolment.credentials(device) if not each.revoked_ms]
        is_again = any(each.request == asked for each in live)
        if not is_again:
            if token.uses < 1:
                raise RolloutError("this token was used as often as it may be; `edge-fleet enrolment new`")
            known = self._store.devices.get(device)
            if not token.replaces and known is not None and known.admission != DECOMMISSIONED:
                raise RolloutError(
                    f"there is a device {device} already: choose another name, or let this one take its place "
                    f"(`edge-fleet device replace {device}`)"
                )
        with self._store.transaction():
            proof, answer, expires_ms = self._credential(device, request.csr, now)
            self._store.enrolment.revoke_credentials(device, now.wall_ms, "asked again" if is_again else "replaced")
            kind = "certificate" if request.csr else "password"
            self._store.enrolment.add_credential(
                Credential(
                    device=device, kind=kind, proof=proof, request=asked, created_ms=now.wall_ms, expires_ms=expires_ms
                )
            )
            if not is_again:
                self._store.enrolment.use(token.id)
                self._admit(device, token, now)
        self._registry.lives.begin(device)
        what = f"by token {token.id}, {kind}{', in place of earlier hardware' if token.replaces else ''}"
        self._events.note(device, "enrolled", what, now)
        return answer | {"device": device, "fleet": self._fleet, "admission": self._admissions.get(device).admission}

    def _admit(self, device: str, token: Enrolment, now: Now) -> None:
        admission = str(Admission.APPROVED if token.approves else Admission.PENDING)
        known = self._store.devices.get(device)
        if known is None:
            self._store.devices.hear(device, now.wall_ms, admission)
        else:
            self._store.devices.change(device, admission=admission, epoch=known.epoch + 1)
        if token.tags:
            self._store.devices.tag(device, {key: str(value) for key, value in token.tags.items()})

    def _credential(self, device: str, csr: str, now: Now) -> tuple[dict[str, Any], dict[str, Any], int]:
        """What is kept, what is answered, and until when it holds."""
        if not csr:
            password = secrets.token_urlsafe(32)
            return (
                {"mosquitto": mosquitto_hash(password), "rabbitmq": rabbitmq_hash(password)},
                {"password": password},
                0,
            )
        key, authority = self._authority(now)
        issued = certificates.issue(key, authority, csr.encode(), device, now.wall_ms)
        answer = {"certificate": issued.pem.decode(), "authority": authority.decode()}
        return {"serial": issued.serial}, answer, issued.expires_ms

    def _authority(self, now: Now) -> tuple[bytes, bytes]:
        key, certificate = self._folder / "authority.key", self._folder / "authority.pem"
        try:
            if not certificate.exists():
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                made = certificates.make_authority(f"edgeloop {self._fleet}", now.wall_ms)
                for path, pem in zip(
                    (key, certificate), made, strict=True
                ):  # the certificate last: then both are there
                    with replace_file(path) as file:
                        os.fchmod(file.fileno(), 0o600)
                        file.write(pem)
            return key.read_bytes(), certificate.read_bytes()
        except OSError as exc:
            raise ConfigError(f"the authority in {self._folder} cannot be used: {exc.strerror or exc}") from exc

    def revocation_list(self, now: Now) -> tuple[bytes, bytes] | None:
        """The authority's certificate, and the list of those that hold no more; None where none was ever issued."""
        if not (self._folder / "authority.pem").exists():
            return None
        key, authority = self._authority(now)
        revoked = [
            (str(each.proof["serial"]), each.revoked_ms)
            for each in self._store.enrolment.credentials()
            if each.revoked_ms and each.kind == "certificate"
        ]
        return authority, certificates.revocations(key, authority, revoked, now.wall_ms)


def mosquitto_hash(password: str, salt: bytes | None = None) -> str:
    """As a password file of mosquitto 2 has it, known by its salt.

    >>> mosquitto_hash("x", bytes(12))[:21]
    '$7$101$AAAAAAAAAAAAAA'
    """
    salt = base64.b64decode(DEVICE_SALT) + secrets.token_bytes(9) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS, 64)
    return f"$7${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def rabbitmq_hash(password: str, salt: bytes | None = None) -> str:
    """As `password_hash` of RabbitMQ's definitions has it, with ``rabbit_password_hashing_sha256``."""
    salt = secrets.token_bytes(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def shown(enrolment: Enrolment, now_ms: int) -> dict[str, Any]:
    """A token as people see it."""
    is_over = enrolment.uses < 1 or enrolment.revoked_ms or 0 < enrolment.expires_ms <= now_ms
    return {
        "id": enrolment.id,
        "uses": enrolment.uses,
        "tags": dict(enrolment.tags),
        "approves": enrolment.approves,
        "replaces": enrolment.replaces,
        "created_ms": enrolment.created_ms,
        "expires_ms": enrolment.expires_ms,
        "revoked_ms": enrolment.revoked_ms,
        "holds": not is_over,
    }


def of_device(device: Device, credentials: list[Credential]) -> dict[str, Any]:
    """By what a device logs in, for people: the newest that holds."""
    live = [each for each in credentials if each.device == device.id and not each.revoked_ms]
    if not live:
        return {"login": "not enrolled here", "login_expires_ms": 0}
    return {"login": live[-1].kind, "login_expires_ms": live[-1].expires_ms}
