"""Devices over HTTP: who they are, whether they belong to the fleet, and how they join."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import Field

from edge.contract.clock import Now
from edge.contract.errors import ConfigError, EdgeError, RolloutError
from edge.coordinator.devices.admission import Decision
from edge.coordinator.devices.enrolment import MAX_USES, Request, of_device, shown
from edge.coordinator.http.access_api import ADMIN, ANYBODY, Body, ReasonRequest, RowNumber, Who, says
from edge.coordinator.http.answers import (
    BrokerConfigAnswer,
    DeviceAnswer,
    EnrolmentAnswer,
    JoinAnswer,
    NewEnrolmentAnswer,
    OneDeviceAnswer,
    TagsAnswer,
)
from edge.coordinator.http.release_api import Submit
from edge.coordinator.line import NOT_KNOWN, ONLINE, LineState
from edge.coordinator.machine import broker_config
from edge.coordinator.records import Model, as_dict
from edge.coordinator.releases.leftover import leftovers
from edge.coordinator.selection import chosen
from edge.coordinator.store.store import Store

# What is known of the models of a device that has named none.
NO_MODEL = {name: value for name, value in as_dict(Model()).items() if name != "device"}
_MAX_DAYS = 36_500.0


class TagRequest(ReasonRequest):
    """What to call a device; a value of "" takes the tag away."""

    device: str
    tags: dict[str, str]


class NoteRequest(ReasonRequest):
    """What to write of a device."""

    note: str = Field(max_length=4000)


class DecommissionRequest(ReasonRequest):
    """Whether what it contributed is deleted, too."""

    forget: bool = False


class ReplaceRequest(ReasonRequest):
    """How long the token for the new hardware holds."""

    days: float = Field(default=7.0, ge=0, le=_MAX_DAYS)


class EnrolmentRequest(ReplaceRequest):
    """A token by which devices join."""

    uses: int = Field(default=1, ge=1, le=MAX_USES)
    tags: dict[str, str] = Field(default={})
    approves: bool = False


class JoinRequest(Body):
    """A device that wants to join.

    `number` is random and its own, so that it may ask again; `suggested` is its name where neither `device` nor the
    token says one.
    """

    token: str = Field(max_length=200)
    device: str = Field(default="", max_length=64)
    suggested: str = Field(default="", max_length=64)
    number: str = Field(min_length=16, max_length=64)
    csr: str = Field(default="", max_length=16_384)


def add_device_routes(
    api: FastAPI, store: Store, submit: Submit, clock: Callable[[], Now], line: Callable[[], LineState]
) -> None:
    """Add the routes.

    Args:
        api: The application.
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
        clock: The time.
        line: How the line to the broker is now.
    """

    def rows(now_ms: int) -> list[dict[str, Any]]:
        tags = store.devices.tags()
        models: dict[str, list[dict[str, Any]]] = {}
        for model in store.devices.models():
            models.setdefault(model.device, []).append(as_dict(model))
        files = {each.identity: each.digest for each in store.releases.bundles() if each.identity}
        left = leftovers(store)
        for own in models.values():
            for each in own:  # by the name that the artifact has in releases, too
                each["artifact"] = files.get(each["bundle"], "")
                stopped = left.get((each["device"], each["model"]))
                each["stopped_rollout"] = 0 if stopped is None else stopped.id
        is_now = line()
        # What a device has one of stood beside the device before there were models: it is that of the first.
        return [
            (models.get(device.id) or [NO_MODEL])[0]
            | as_dict(device)
            | _presence(is_now.condition(device, now_ms))
            | {"tags": tags.get(device.id, {}), "models": models.get(device.id, [])}
            for device in store.devices.all()
        ]

    def shown_device(name: str) -> dict[str, Any]:
        found = next((row for row in rows(clock().wall_ms) if row["id"] == name), None)
        device = store.devices.get(name)
        if found is None or device is None:
            raise RolloutError(f"unknown device {name[:80]}; `edge-fleet device list` shows them")
        return found | of_device(device, list(store.enrolment.credentials(name)))

    @api.get("/api/devices", responses=says(list[DeviceAnswer]))
    @api.get("/api/v1/devices", responses=says(list[DeviceAnswer]))
    def devices(
        q: Annotated[str, Query(max_length=2048)] = "",
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=1000)] | None = None,
    ) -> list[dict[str, Any]]:
        """Devices by name; `q` chooses (the language of plans), `after` is the name of the last one of a page."""
        now = clock()
        meant = chosen(store, q, line(), now) if q else None
        found = [row for row in rows(now.wall_ms) if row["id"] > after and (meant is None or row["id"] in meant)]
        return found[:limit]

    @api.get("/api/v1/devices/{device}", responses=says(OneDeviceAnswer))
    def device(device: str) -> dict[str, Any]:
        """All that is known of a device."""
        return shown_device(device)

    @api.post("/api/tags", responses=says(TagsAnswer))
    @api.post("/api/v1/tags", responses=says(TagsAnswer))
    def tag(body: TagRequest) -> dict[str, str]:
        """Give a device tags, or take some away; all that it has then."""
        result: dict[str, str] = submit(lambda core, now: core.tag(body.device, body.tags, now))
        return result

    def decide(device: str, order: Decision, who: Who, body: ReasonRequest) -> dict[str, Any]:
        submit(lambda core, now: core.decide(device, order, who.who, body.reason, now))
        return shown_device(device)

    @api.post("/api/v1/devices/{device}/approve", responses=says(OneDeviceAnswer))
    def approve(device: str, body: ReasonRequest, who: Who) -> dict[str, Any]:
        """Let a device that waits, or was quarantined, belong to the fleet."""
        return decide(device, Decision.APPROVE, who, body)

    @api.post("/api/v1/devices/{device}/quarantine", responses=says(OneDeviceAnswer))
    def quarantine(device: str, body: ReasonRequest, who: Who) -> dict[str, Any]:
        """Offer a device nothing, merge nothing of it and let it judge nothing, until it is approved."""
        return decide(device, Decision.QUARANTINE, who, body)

    @api.post("/api/v1/devices/{device}/decommission", responses=says(OneDeviceAnswer))
    def decommission(device: str, body: DecommissionRequest, who: Who) -> dict[str, Any]:
        """A device is gone for good: its login holds no more, and the broker forgets what it keeps of it."""
        found = decide(device, Decision.DECOMMISSION, who, body)
        if body.forget:
            found["forgotten"] = submit(lambda core, now: core.forget(device, now))
        return found

    @api.post("/api/v1/devices/{device}/note", responses=says(OneDeviceAnswer))
    def note(device: str, body: NoteRequest) -> dict[str, Any]:
        """Write something of a device."""
        submit(lambda core, _: core.admissions.note(device, body.note))
        return shown_device(device)

    @api.post("/api/v1/devices/{device}/replace", responses=says(NewEnrolmentAnswer))
    def replace(device: str, body: ReplaceRequest) -> dict[str, Any]:
        """A token by which new hardware takes the place of a device; the answer alone has it, as `token`."""
        made, secret = submit(lambda core, now: core.enrolments.new(now, days=body.days, replaces=device))
        return shown(made, clock().wall_ms) | {"token": secret}


def _presence(condition: str) -> dict[str, Any]:
    """How a device is, and whether it is online: None where nobody can know."""
    return {"condition": condition, "online": None if condition == NOT_KNOWN else condition == ONLINE}


def add_enrolment_routes(api: FastAPI, store: Store, submit: Submit, fleet: str, clock: Callable[[], Now]) -> None:
    """Add the routes by which devices join, and of what the broker must know of them; see `add_device_routes`."""

    @api.get("/api/v1/enrolments", responses=says(list[EnrolmentAnswer]))
    def enrolments() -> list[dict[str, Any]]:
        """Tokens by which devices join, without their secrets."""
        return [shown(each, clock().wall_ms) for each in store.enrolment.all()]

    @api.post("/api/v1/enrolments", responses=says(NewEnrolmentAnswer))
    def new_enrolment(body: EnrolmentRequest) -> dict[str, Any]:
        """Make one; the answer is the only one that has the secret, as `token`."""
        asked = body.model_dump(include={"uses", "days", "tags", "approves"})
        made, secret = submit(lambda core, now: core.enrolments.new(now, **asked))
        return shown(made, clock().wall_ms) | {"token": secret}

    @api.post("/api/v1/enrolments/{number}/revoke", responses=says(EnrolmentAnswer))
    def revoke(number: RowNumber, body: ReasonRequest) -> dict[str, Any]:
        """Let nobody join by it any more; who joined stays."""
        del body  # the door has kept the reason
        found = submit(lambda _, now: store.enrolment.revoke(number, now.wall_ms))
        if found is None:
            raise RolloutError(f"there is no enrolment {number}; `edge-fleet enrolment list` shows them")
        return shown(found, clock().wall_ms)

    @api.post("/api/v1/enrol", openapi_extra=ANYBODY, responses=says(JoinAnswer))
    def enrol(body: JoinRequest) -> dict[str, Any]:
        """A device joins, by the token in the body: its login at the broker, said this once."""
        try:
            found: dict[str, Any] = submit(lambda core, now: core.enrolments.join(Request(**body.model_dump()), now))
        except EdgeError as exc:
            why = f"{body.device[:64] or 'a device'} was not let in: {exc}"
            submit(lambda core, now: core.events.fault("", "enrolment-refused", why, now))
            raise
        return found

    @api.get("/api/v1/broker-config/{broker}", openapi_extra=ADMIN, responses=says(BrokerConfigAnswer))
    def broker(
        broker: Literal["mosquitto", "rabbitmq"], login: str = "coordinator", folder: str = "/etc/mosquitto/edgeloop"
    ) -> dict[str, Any]:
        """What the broker must be told, with the hashes of passwords: files by name, or definitions."""
        if any(character in folder for character in "\r\n\0"):
            raise ConfigError("folder: expected the path of a folder")
        credentials = store.enrolment.credentials()
        if broker == "rabbitmq":
            return broker_config.rabbitmq(fleet, login, credentials)
        authority = submit(lambda core, now: core.enrolments.revocation_list(now))
        return broker_config.mosquitto(fleet, login, credentials, authority, folder)
