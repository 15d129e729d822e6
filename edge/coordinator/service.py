"""The coordinator as a process: one loop decides; the broker connection and the HTTP API put work on its queue.

The door for clock, threads and signals. Everything that decides is in `edge.coordinator.core`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from edge.channel import topics
from edge.channel.transport import (
    Connected,
    Disconnected,
    Publish,
    Received,
    Transport,
    TransportEvent,
    publish_all,
)
from edge.channel.vetting import Trust
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.access import Access, check_reach
from edge.coordinator.alerts.webhook import post
from edge.coordinator.config import CoordinatorConfig, SiteConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.door import Listen, now
from edge.coordinator.events import reason
from edge.coordinator.http.api import build_api
from edge.coordinator.inbox import Inbox
from edge.coordinator.machine.backup import ARTIFACTS, DATABASE
from edge.coordinator.machine.place import Place
from edge.coordinator.machine.room import USUAL_BYTES, USUAL_PART, Room
from edge.coordinator.records import APPROVED, Alert
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.signing.signing import Signing
from edge.coordinator.store.database import DatabaseError, is_taken
from edge.coordinator.store.lease import LEASE_S
from edge.coordinator.store.store import Store
from edge.coordinator.upstream.uplink import Uplink

log = logging.getLogger("edge.coordinator")

CALL_TIMEOUT_S = 60.0
# A coordinator that waits for its turn looks so often.
STANDBY_S, MAX_PLACE_TRIES = 2.0, 5
# Timers and what is to be sent wait no longer than that for messages that come in.
TURN_S = 0.5
# The broker's thread reads packet by packet and waits for its turn after each: with Python's usual 5 ms it would read
# 100 messages a second while this thread is busy, and the broker would drop those of all devices.
SWITCH_S = 0.0005
# After a fault of the loop or the HTTP server: what fails at once again shall not keep a core busy.
PAUSE_S = 1.0
# The broker above says that this site is gone after this: short breaks are none.
WILL_DELAY_S = 30
FROM_ABOVE = "from-above"  # folder of downloads
# A webhook is told of alerts so soon.
WEBHOOK_S = 2.0


@dataclass(slots=True)
class _Call:
    """Work for the coordinator's thread, and the place where its result is awaited."""

    function: Callable[[CoordinatorCore, Now], Any]
    result: Future[Any] = field(default_factory=Future)


def wait_for_turn(config: CoordinatorConfig, host: str, port: int, broker: str) -> Place:
    """Wait until no other coordinator has the database, and have the place.

    Args:
        config: Its options.
        host: Address of the HTTP API.
        port: Its port.
        broker: Address of the broker, without a login.

    Raises:
        ConfigError: The place is another process's though the database is not, or it cannot be used.
    """
    log.info("standby: this coordinator takes over when no other has the database")
    tries = 0
    while True:
        try:
            if not is_taken(config.database):
                return Place(config, host, port, broker)
        except DatabaseError as exc:
            log.warning("the database does not answer: %s", reason(exc))
        except ConfigError:
            tries += 1
            if tries >= MAX_PLACE_TRIES:  # whoever ends gives it free a moment after the database
                raise
        time.sleep(STANDBY_S)


def _signing(config: CoordinatorConfig) -> Signing | None:
    """What proves to devices what they are told, in a fleet with keys.

    Raises:
        ConfigError: It cannot be used, or the packages for it are not installed.
    """
    if config.signing is None:
        return None
    try:
        from edge.coordinator.signing.repository import Repository
    except ImportError as exc:
        raise ConfigError(f"--signing: {exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    return Repository(config.signing, now(), timestamp_days=config.timestamp_days)


def _trust(site: SiteConfig, data_dir: Path) -> Trust | None:
    """What proves releases from above; None where this site was given no root.

    Raises:
        ConfigError: It cannot be read, or the packages for it are not installed.
    """
    if site.trust_root is None:
        return None
    try:
        from edge.channel.updates import Trust as Proof

        root = site.trust_root.read_bytes()
    except ImportError as exc:
        raise ConfigError(f"--upstream-trust: {exc.name} is not installed: pip install 'edgeloop[signed]'") from exc
    except OSError as exc:
        raise ConfigError(f"--upstream-trust {site.trust_root} cannot be read: {exc.strerror}") from exc
    return Proof(data_dir / "trust-above", root, fleet=site.fleet, device=site.name)


def _took(message: Received, core: CoordinatorCore, at: Now) -> None:
    core.transport(message, at)


def _room(config: CoordinatorConfig) -> Room:
    """What is kept free on the disk of the data folder."""
    usual = min(USUAL_BYTES, int(USUAL_PART * shutil.disk_usage(config.data_dir).total))
    keep = usual if config.keep_free_bytes is None else config.keep_free_bytes
    return Room(lambda: shutil.disk_usage(config.data_dir).free, keep, str(config.data_dir))


class CoordinatorService:
    """Runs one coordinator until it is stopped.

    Args:
        config: Its options.
        transport: To the broker.
        place: What it has for itself; closed at the end.
        above: To the broker of the coordinator above, where this one is a site.
        led: Gives batches of what the leader alone answers to a handler, where that does not come by the transport.

    Raises:
        ConfigError: The data folder or the database cannot be used, or another coordinator has it.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        transport: Transport,
        place: Place,
        above: Transport | None = None,
        led: Listen | None = None,
    ) -> None:
        self._config = config
        self._led = led
        self._above = above
        self._uplink: Uplink | None = None
        self._transport = transport
        self._place = place
        self._stopping = False
        self._server: uvicorn.Server | None = None
        place.settle()
        self._store = Store(config.database or config.data_dir / DATABASE)
        try:
            self._store.claim()
        except BaseException:
            self._store.close()
            raise
        self.core = CoordinatorCore(
            config,
            self._store,
            ArtifactStore(config.data_dir / ARTIFACTS, _room(config)),
            np.random.default_rng(secrets.randbits(128)),
            _signing(config),
        )
        if config.site is not None and self.core.pools is not None:
            folder, trust = config.data_dir / FROM_ABOVE, _trust(config.site, config.data_dir)
            self._uplink = Uplink(config.site, self.core, self._store, self.core.pools, folder, trust)
        self._inbox: Inbox[_Call] = Inbox(time.monotonic)
        self._lost: ConfigError | None = None

    def register_bundle(self, path: Path) -> None:
        """Know a bundle, so that contributions of devices that came with it can be merged."""
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"--bundle {path} cannot be read: {exc.strerror}") from exc
        self.core.add_artifact(data, path)

    def check_holdout(self, bundles: Sequence[Path]) -> None:
        """What merged heads are tested on must be samples of one of these bundles; it is computed now what can be.

        Raises:
            ConfigError: It is of none of them.
        """
        holdout = self.core.holdout
        faults = [] if holdout is None else [holdout.fault(Bundle.open(path)) for path in bundles]
        if faults and all(faults):
            raise ConfigError(faults[0])

    def run(self, token: str | None, tls: tuple[Path, Path] | None = None, alert_secret: str = "") -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            token: That may do everything over HTTP, beside those that were made; None for none.
            tls: Certificate and key of HTTPS, or None for HTTP.
            alert_secret: By which what the webhook is told is signed; "" signs nothing.

        Raises:
            ConfigError: Nobody has to sign in, and others than this machine would reach the HTTP API; or another
                coordinator has taken the database, after this one's connection to it was lost.
        """
        host, port = self._place.listening.getsockname()[:2]
        is_open = Access(self._store, token).is_open
        if is_open:
            try:
                check_reach(host)
            except ConfigError:
                self.close()
                raise
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        sys.setswitchinterval(SWITCH_S)
        line = self.core.dialogue.line
        api = build_api(
            self._store, self._submit, self._config.fleet, token, self.core.signing, clock=now, line=lambda: line.state
        )
        certificate, key = (None, None) if tls is None else tls
        options = uvicorn.Config(
            api, log_config=None, log_level="warning", lifespan="off", ssl_certfile=certificate, ssl_keyfile=key
        )
        web = threading.Thread(target=self._serve, args=(options, self._place.listening), daemon=True)
        web.start()
        if self._config.alerts.webhook:
            threading.Thread(target=self._tell_webhook, args=(alert_secret,), daemon=True).start()
        threading.Thread(target=self._keep_lease, daemon=True).start()
        self._open_lines()
        log.info("fleet %s, %s://%s:%d", self._config.fleet, "http" if tls is None else "https", host, port)
        if self._config.unknown == APPROVED:
            log.info("devices that nobody knows are approved; --unknown-devices hold has them wait for a person")
        if is_open:
            log.warning("open: whoever uses this machine may do everything; `edge-coordinator token NAME` ends that")
        try:
            self._loop()
        finally:
            log.info("stopping")
            api.state.live.close()
            if self._server is not None:
                self._server.should_exit = True
            if self.core.dialogue.is_connected:
                publish_all(self._transport, [self.core.dialogue.line.farewell(now())])
            self._transport.stop()
            if self._above is not None and self._uplink is not None:
                publish_all(self._above, [self._uplink.farewell(now())])
                self._above.stop()
            web.join(5.0)
            try:
                self.core.close(now())
            finally:
                self.close()
        if self._lost is not None:
            raise self._lost

    def _open_lines(self) -> None:
        """Let messages come in."""
        fleet = self._config.fleet
        self._set_will(self._transport, self.core.dialogue.line.will(now()))
        if not self._config.is_shared:
            self._transport.subscribe(topics.coordinator_filters(fleet))
        else:
            self._transport.subscribe(topics.probe_filters(fleet))
            if self._led is None:
                self._transport.subscribe([(each, 1) for each in topics.led_leaves(fleet)])
            else:
                self._led(self._from_queue)
        self._transport.start(self._inbox.put)
        if self._above is not None and self._uplink is not None and self._config.site is not None:
            self._set_will(self._above, self._uplink.will(now()), WILL_DELAY_S)
            self._above.subscribe(topics.device_filters(self._config.site.fleet, self._config.site.name))
            self._above.start(lambda event: self._inbox.call(_Call(functools.partial(self._from_above, event))))

    def close(self) -> None:
        """Give the database, the folder and the port free."""
        self._store.close()
        self._place.close()

    def _serve(self, options: uvicorn.Config, listening: socket.socket) -> None:
        while not self._stopping:
            self._server = uvicorn.Server(options)
            try:
                self._server.run(sockets=[listening])
            except BaseException as exc:  # noqa: BLE001  # what is raised in a request and is no Exception ends it, too
                log.error("the HTTP API ended and begins again: %s", reason(exc))
                time.sleep(PAUSE_S)

    def _submit(self, function: Callable[[CoordinatorCore, Now], Any]) -> Any:
        call = _Call(function)
        self._inbox.call(call)
        try:
            return call.result.result(CALL_TIMEOUT_S)
        except TimeoutError as exc:
            raise RolloutError(f"no answer within {CALL_TIMEOUT_S:g} s: the coordinator is busy") from exc

    def _tell_webhook(self, secret: str) -> None:
        """Tell a webhook of alerts until the end: what it does not take is told again, ever more rarely."""
        address = self._config.alerts.webhook
        while not self._stopping:
            try:
                for alert, body in self._submit(lambda core, now: core.alerts.due(now)):
                    why = post(address, secret, body, now())
                    self._submit(functools.partial(self._told_webhook, alert, why))
            except Exception as exc:  # noqa: BLE001  # the coordinator is busy, or ends
                log.warning("telling the webhook of alerts: %s", reason(exc))
            time.sleep(WEBHOOK_S)

    @staticmethod
    def _told_webhook(alert: Alert, why: str, core: CoordinatorCore, now: Now) -> None:
        if why:
            core.events.fault("", "webhook-failed", f"alert {alert.id}, {alert.rule}: {why}; it is told again", now)
        core.alerts.told(alert, now, failed=bool(why))

    def _stop(self) -> None:
        # Only a flag: a signal may come while this very thread holds the queue's lock. The loop looks every second.
        self._stopping = True

    def _loop(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except BaseException as exc:  # noqa: BLE001  # signals set a flag only: whatever comes here is a fault
                self._tell("a turn of the loop", exc)
                time.sleep(PAUSE_S)

    def _keep_lease(self) -> None:
        """Two coordinators on one database would undo each other's work: the one that lost it ends.

        On a thread of its own: a merge of minutes is no reason to lose it.
        """
        while not self._stopping:
            time.sleep(LEASE_S / 3)
            try:
                self._store.claim()
            except ConfigError as exc:
                self._lost, self._stopping = exc, True
            except Exception as exc:  # noqa: BLE001  # the database is away: it is asked again
                log.warning("the database does not answer, and its lease is not renewed: %s", reason(exc))

    def _turn(self) -> None:
        end = time.monotonic() + TURN_S
        due_s = min(self.core.next_deadline_s, math.inf if self._uplink is None else self._uplink.next_deadline_s)
        wait_s = min(max(due_s - time.monotonic(), 0.0), 1.0)
        # A busy fleet must not keep timers from running.
        while (item := self._inbox.take(wait_s)) is not None:
            self._take(item)
            wait_s = 0.0
            if time.monotonic() >= end:
                break
        for (device, kind), count in self._inbox.dropped().items():
            detail = f"{count} {kind} dropped: it sends more than one device may, or more came in than can be kept"
            self.core.events.fault(device, "too-many-messages", detail, now(), kind)
        self._send(self._transport, self.core.tick(now()))
        if self._uplink is not None and self._above is not None:
            self._send(self._above, self._uplink.tick(now()))

    def _send(self, transport: Transport, effects: Sequence[Publish]) -> None:
        for effect in effects:
            try:
                publish_all(transport, [effect])
            except Exception as exc:  # noqa: BLE001  # it costs this message
                self._tell("sending a message", exc)

    def _take(self, item: _Call | TransportEvent) -> None:
        if isinstance(item, _Call):
            try:
                item.result.set_result(item.function(self.core, now()))
            except Exception as exc:  # noqa: BLE001  # it is raised again, and told, where the result is awaited
                item.result.set_exception(exc)
            except BaseException as exc:  # noqa: BLE001  # that would end the HTTP API
                item.result.set_exception(RuntimeError(reason(exc)))
            return
        if isinstance(item, Disconnected):
            log.warning("no broker: %s; trying again", item.reason)
        elif isinstance(item, Connected):
            log.info("connected to the broker")
        try:
            self.core.transport(item, now())
        except BaseException as exc:  # noqa: BLE001  # a panic of a library in Rust is no Exception
            self._tell("a message", exc)
        if isinstance(item, Connected):
            self._set_will(self._transport, self.core.dialogue.line.will(now()))  # of the connection after this one

    def _from_queue(self, batch: Sequence[Received]) -> None:
        """Have the loop take messages, and wait until it has: only then the queue is told."""
        calls = [_Call(functools.partial(_took, each)) for each in batch]
        for call in calls:
            self._inbox.call(call)
        for call in calls:
            call.result.result(CALL_TIMEOUT_S)

    @staticmethod
    def _set_will(transport: Transport, will: Publish, delay_s: int = 0) -> None:
        transport.set_will(will.topic, will.payload, will.qos, will.retain, delay_s)

    def _from_above(self, event: TransportEvent, _core: CoordinatorCore, at: Now) -> None:
        if isinstance(event, Disconnected):
            log.warning("no line to the coordinator above: %s; trying again", event.reason)
        elif isinstance(event, Connected):
            log.info("connected to the broker above")
        if self._uplink is not None and self._above is not None:
            self._uplink.transport(event, at)
            if isinstance(event, Connected):
                self._set_will(self._above, self._uplink.will(now()), WILL_DELAY_S)

    def _tell(self, doing: str, exc: BaseException) -> None:
        """Make an event of a fault; where not even that can be done, live on."""
        with contextlib.suppress(BaseException):
            self.core.events.unforeseen("", "fault", doing, exc, now())
