"""Who may ask for what: tokens with roles, who is signed in, how often one may ask, and how often guess.

A token is a random secret that is shown once. The database has its SHA-256: enough for a secret nobody can guess.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from edge.contract.clock import Now
from edge.contract.digest import sha256
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.records import ApiToken, AuditEntry, as_dict
from edge.coordinator.store.store import Store

_PREFIX = "edge_"
_DAY_MS = 86_400_000
MAX_NAME_CHARS, MAX_DAYS = 64, 36_500.0
# Tries that fail, from one address, and how long they count; of so many addresses.
TRIES, TRIES_S, _MAX_ADDRESSES = 10, 60.0, 10_000
# Requests of one token, at once and for long: many times what a person, a page or a script that waits needs.
BURST, REQUESTS_PER_S = 2000, 200.0


class Role(IntEnum):
    """What somebody may do; each may what those before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @classmethod
    def named(cls, text: str) -> Role:
        """By its name in small letters.

        Raises:
            RolloutError: There is none.
        """
        try:
            return cls[text.upper()]
        except KeyError:
            raise RolloutError(f"role {text[:80]!r}: expected viewer, operator or admin") from None

    def __str__(self) -> str:
        """Its name in small letters."""
        return self.name.lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who asks for something.

    Attributes:
        who: Name of the token; where nobody has to sign in, the name that was claimed, "" for none.
        role: What they may do.
        is_proved: Whether a token said so. Where it is not, nobody can tell two people apart.
    """

    who: str
    role: Role
    is_proved: bool = True

    def named(self, claimed: str) -> str:
        """For the record: who is signed in, or where nobody has to, whom the request names.

        >>> Identity(who="kim", role=Role.OPERATOR).named("root")
        'kim'
        """
        return self.who if self.is_proved or not claimed else claimed


class Tries:
    """How often sign-ins from an address failed lately.

    >>> tries = Tries()
    >>> for _ in range(TRIES): tries.failed("10.0.0.1", 5.0)
    >>> tries.wait_s("10.0.0.1", 6.0), tries.wait_s("10.0.0.2", 6.0), tries.wait_s("10.0.0.1", 65.0)
    (59.0, 0.0, 0.0)
    """

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def failed(self, address: str, now_s: float) -> None:
        """One more failed."""
        count, since_s = self._failed.pop(address, (0, now_s))
        if now_s - since_s >= TRIES_S:
            count, since_s = 0, now_s
        self._failed[address] = (count + 1, since_s)
        if len(self._failed) > _MAX_ADDRESSES:
            self._failed.popitem(last=False)

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds until the next try is looked at; 0 for now."""
        count, since_s = self._failed.get(address, (0, 0.0))
        return max(0.0, since_s + TRIES_S - now_s) if count >= TRIES else 0.0


class Pace:
    """How often each of those who are signed in may ask: a bucket of requests that fills again.

    >>> pace = Pace()
    >>> waits = [pace.wait_s("kim", 5.0) for _ in range(BURST + 1)]
    >>> waits[BURST - 1], waits[BURST], pace.wait_s("ann", 5.0), pace.wait_s("kim", 6.0)
    (0.0, 0.005, 0.0, 0.0)
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def wait_s(self, who: str, now_s: float) -> float:
        """Seconds until one may ask again; 0 for now, which counts as asked."""
        left, since_s = self._left.get(who, (float(BURST), now_s))
        left = min(float(BURST), left + (now_s - since_s) * REQUESTS_PER_S)
        self._left[who] = (left - (left >= 1.0), now_s)
        return 0.0 if left >= 1.0 else (1.0 - left) / REQUESTS_PER_S


@dataclass(slots=True)
class Access:
    """Tokens of the coordinator's API.

    Attributes:
        store: The database, which has the hashes.
        fixed: A token that `serve` was given; it may everything.
        tries: Sign-ins that failed.
        pace: How often who is signed in may ask.
        form_key: Of this process: proves that a form is one of its pages'.
    """

    store: Store
    fixed: str | None = None
    tries: Tries = field(default_factory=Tries)
    pace: Pace = field(default_factory=Pace)
    form_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def is_open(self) -> bool:
        """Whether nobody has to sign in: no token was ever made."""
        return self.fixed is None and not self.store.access.has_tokens()

    def identity(self, token: str | None, claimed: str, address: str, now: Now) -> Identity | float | None:
        """Who asks.

        Args:
            token: What they show, None for nothing.
            claimed: Whom they say to be; believed where nobody has to sign in.
            address: Where they are.
            now: The time.

        Returns:
            Who it is; None for nobody; a number of seconds to wait for who guessed too often. Tokens that were made
            here cannot be guessed: they are looked at in any case, so that nobody locks out his neighbours.
        """
        if self.is_open:
            return Identity(who=claimed, role=Role.ADMIN, is_proved=False)
        if not token:
            return None
        found = self.store.access.token_by_hash(sha256(token.encode()))
        if found is not None and not found.revoked_ms and not 0 < found.expires_ms <= now.wall_ms:
            return Identity(who=found.name, role=Role.named(found.role))
        if wait_s := self.tries.wait_s(address, now.s):
            return wait_s
        # A token that was made here is no more than that: revoked, it does not live on as the one of `serve`.
        if found is None and self.fixed is not None and hmac.compare_digest(token.encode(), self.fixed.encode()):
            return Identity(who="--token", role=Role.ADMIN)
        self.tries.failed(address, now.s)
        return None

    def form_token(self, token: str) -> str:
        """What a form must bring that changes something for who shows a token: no page of others can know it."""
        return hmac.digest(self.form_key, token.encode(), "sha256").hex()

    def new_token(self, name: str, role: Role, now: Now, *, days: float = 0.0) -> tuple[ApiToken, str]:
        """Make a token.

        Args:
            name: Who has it.
            role: What they may do.
            now: The time.
            days: How long it holds; 0 for ever.

        Returns:
            What is kept of it, and the token itself, which nobody can say again.

        Raises:
            RolloutError: The name is none or taken, or it is the first one and no admin's.
        """
        if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise RolloutError(
                f"name of a token: expected 1 to {MAX_NAME_CHARS} printable characters, got {name[:80]!r}"
            )
        with self.store.transaction():
            known = self.store.access.tokens()
            if any(each.name == name and not each.revoked_ms for each in known):
                raise RolloutError(f"there is a token of {name!r} already; revoke it first, or choose another name")
            if self.fixed is None and role is not Role.ADMIN and not any(_may_all(each, now) for each in known):
                raise RolloutError(
                    "nobody could make another token then: begin with one of an admin (`edge-coordinator token NAME`)"
                )
            secret = _PREFIX + secrets.token_urlsafe(32)
            made = ApiToken(
                name=name,
                role=str(role),
                digest=sha256(secret.encode()),
                created_ms=now.wall_ms,
                expires_ms=now.wall_ms + int(days * _DAY_MS) if days else 0,
            )
            return self.store.access.add_token(made), secret

    def revoke(self, number: int, now: Now) -> ApiToken:
        """Believe a token no more. When all are revoked the API stays closed.

        Raises:
            RolloutError: There is no such token.
        """
        found = self.store.access.revoke(number, now.wall_ms)
        if found is None:
            raise RolloutError(f"there is no token {number}; `edge-fleet token list` shows them")
        return found


def check_reach(host: str) -> None:
    """An API that asks nobody for a token is for this machine only.

    Raises:
        ConfigError: It would be for others.
    """
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local:
        raise ConfigError(
            f"--http {host}: whoever reaches this address could push to the fleet; make a token first "
            f"(`edge-coordinator token NAME`), or give --token"
        )


def make_token(where: Path | str, name: str, role: str, now: Now, *, days: float = 0.0) -> dict[str, Any]:
    """Make a token beside a coordinator that may run, and say it as the HTTP API does.

    Args:
        where: Its database.
        name: Who gets it.
        role: What they may do.
        now: The time.
        days: How long it holds; 0 for ever.

    Raises:
        ConfigError: The database cannot be used.
        RolloutError: As `Access.new_token`.
    """
    store = Store(where, is_shared=True)
    try:
        made, secret = Access(store).new_token(name, Role.named(role), now, days=days)
        store.access.audit(
            AuditEntry(
                at_ms=now.wall_ms, who="edge-coordinator", role="", action="token", subject=name, detail="{}",
                reason="made on the coordinator's machine", outcome="done",
            )
        )  # fmt: skip
    finally:
        store.close()
    return shown(made) | {"token": secret}


def shown(token: ApiToken) -> dict[str, Any]:
    """A token as people see it."""
    found = as_dict(token)
    del found["digest"]
    return found


def _may_all(token: ApiToken, now: Now) -> bool:
    return token.role == str(Role.ADMIN) and not token.revoked_ms and not 0 < token.expires_ms <= now.wall_ms
