"""The address of a broker, ``mqtt://user:password@host:1883`` or ``mqtts://host?ca=FILE&cert=FILE&key=FILE``.

``mqtt://one:1883,two:1883`` has several places for one and the same: the nodes of a cluster, or where it moves to.
``ws://host:9001/mqtt`` and ``wss://…`` go over WebSockets, through proxies that let nothing else pass.

Promises that a wrong address is a ConfigError with a hint, and that neither `repr` nor `str` shows the password. Does
not open anything: see `edge.channel.mqtt`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from edge.contract.errors import ConfigError

_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_WEBSOCKET_PATH = "/mqtt"
_OPTIONS = ("ca", "cert", "key")


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerUrl:
    """Where the broker is and how to log in.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: Whether the connection is encrypted (``mqtts``, ``wss``).
        websocket: Whether it goes over WebSockets (``ws``, ``wss``).
        path: Of the WebSocket.
        username: Login name, None for none.
        password: Its password.
        ca: PEM file of the authority that signed the broker's certificate; None for the system's.
        cert: PEM file of our certificate.
        key: PEM file of its key; None when it stands in `cert`.
        others: Further places, host and port.
    """

    host: str
    port: int
    tls: bool = False
    websocket: bool = False
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    others: tuple[tuple[str, int], ...] = ()

    def place(self, number: int) -> BrokerUrl:
        """One of the places, counted around.

        >>> str(BrokerUrl.parse("mqtt://one,two:1884").place(3))
        'mqtt://two:1884'
        """
        places = ((self.host, self.port), *self.others)
        host, port = places[number % len(places)]
        return replace(self, host=host, port=port, others=())

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.websocket:
            return f"{'wss' if self.tls else 'ws'}://{host}:{self.port}{self.path}"
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, password: str | None = None) -> BrokerUrl:
        """Read an address.

        Args:
            text: The address.
            password: Goes before the one in the address; keeps it out of process lists.

        Raises:
            ConfigError: It is not an address, or a file that it names does not exist.

        >>> str(BrokerUrl.parse("mqtt://localhost"))
        'mqtt://localhost:1883'
        """
        head, around, tail = text.partition("://")
        cut = min((tail.find(each) for each in "/?#" if each in tail), default=len(tail))
        login, at, hosts = tail[:cut].rpartition("@")
        first, *more = hosts.split(",")
        try:
            url = urlsplit(f"{head}{around}{login}{at}{first}{tail[cut:]}")
            port = url.port
            found = [urlsplit(f"//{each}") for each in more]
            others = [(each.hostname or "", each.port) for each in found]
        except ValueError as exc:
            raise _wrong(text, str(exc)) from exc
        if url.scheme not in _PORTS:
            raise _wrong(text, f"the scheme {url.scheme!r}")
        websocket, tls = url.scheme in ("ws", "wss"), url.scheme in ("mqtts", "wss")
        if not all(host for host, _ in others):
            raise _wrong(text, "no host after a comma")
        if not url.hostname or (url.path not in ("", "/") and not websocket) or url.fragment:
            raise _wrong(text, "no host" if not url.hostname else f"the path {url.path or url.fragment!r}")
        options = dict(parse_qsl(url.query, keep_blank_values=True))
        files: dict[str, Path] = {}
        for name, value in options.items():
            if name not in _OPTIONS:
                raise _wrong(text, f"the option {name!r}")
            if not Path(value).is_file():
                raise ConfigError(f"broker address: expected a PEM file for {name}, got {value!r}; create it")
            files[name] = Path(value)
        if files and not tls:
            raise _wrong(text, f"{', '.join(files)} without TLS (mqtts, wss)")
        if "key" in files and "cert" not in files:
            raise _wrong(text, "a key without a cert")
        return cls(
            host=url.hostname,
            port=port or _PORTS[url.scheme],
            tls=tls,
            websocket=websocket,
            path=(url.path if url.path not in ("", "/") else _WEBSOCKET_PATH) if websocket else "",
            username=unquote(url.username) if url.username else None,
            password=password if password is not None else unquote(url.password) if url.password else None,
            others=tuple((host, other or _PORTS[url.scheme]) for host, other in others),
            **files,
        )


def _wrong(text: str, got: str) -> ConfigError:
    shown = text if "@" not in text else "...@" + text.rsplit("@", 1)[1]
    return ConfigError(
        f"broker address {shown[:120]!r}: expected mqtt://[user@]host[:port] or "
        f"mqtts://host[:port][?ca=FILE&cert=FILE&key=FILE], or the same with ws:// and wss://, "
        f"perhaps several hosts with commas, got {got}; correct it"
    )
