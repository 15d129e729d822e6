"""Releases in the model registry of MLflow, over its REST API: no package of it is needed here.

A registered model is what releases are for (the name of their model), a version of it is a release. Which release a
version is stands in its tags (`WHICH`: fleets may share a registry), so that asking again adds what is new and says
anew how many devices run what. The alias `LIVE` names the version that most devices run. What people write there is
left alone: only our own tags change.
"""

from __future__ import annotations

import contextlib
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edge.contract.errors import ChannelError
from edge.coordinator.records import Release
from edge.coordinator.store.store import Store

LIVE, DEVICES = "live", "edge.devices"
WHICH = ("edge.release", "edge.digest", "edge.created")
_API, _TIMEOUT_S, _PAGE = "/api/2.0/mlflow/", 30.0, 200
_EXISTS = "RESOURCE_ALREADY_EXISTS"
Ask = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]
"""Method, what after `_API`, and values: the answer."""


class ExistsError(ChannelError):
    """There is one of that name already."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A release as the registry has it.

    Attributes:
        model: Name of the registered model.
        release: It.
        tags: That say which it is, and what became of it.
    """

    model: str
    release: Release
    tags: Mapping[str, str]

    @property
    def n_devices(self) -> int:
        """That run it."""
        return int(self.tags[DEVICES])


def releases(store: Store) -> list[Listed]:
    """All releases, oldest first."""
    with store.transaction():
        found, models = store.releases.all()[::-1], store.devices.models()
        bundles = {each.backbone: each.name for each in store.releases.bundles()}
    running = Counter(each.release for each in models if each.release and each.state in ("", "active", "probation"))
    return [
        Listed(
            _plain(each.model or bundles.get(each.backbone, "") or f"backbone-{each.backbone[:12]}"),
            each,
            {
                key: value
                for key, value in {
                    "edge.release": str(each.counter),
                    "edge.kind": each.kind,
                    "edge.digest": each.digest,
                    "edge.backbone": each.backbone,
                    "edge.created": f"{datetime.fromtimestamp(each.created_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
                    "edge.name": each.name,
                    "edge.file": each.file,
                    "edge.restores": str(each.restores or ""),
                    DEVICES: str(running[each.counter]),
                }.items()
                if value
            },
        )
        for each in found
    ]


def register(listed: Sequence[Listed], ask: Ask) -> dict[str, int]:
    """Have the registry know releases.

    Args:
        listed: They, oldest first.
        ask: Asks it.

    Returns:
        How many versions were made, and how many were there already.

    Raises:
        ChannelError: It does not answer, or refuses something; asked again it goes on where it ended.
    """
    made = 0
    by_model: dict[str, list[Listed]] = {}
    for each in listed:
        by_model.setdefault(each.model, []).append(each)
    for model, own in by_model.items():
        with contextlib.suppress(ExistsError):
            ask("POST", "registered-models/create", {"name": model})
        known = _versions(model, ask)
        for each in own:
            version, devices = known.get(_which(each.tags), ("", ""))
            if not version:
                made += 1
                version = _create(model, each, ask)
            elif devices != each.tags[DEVICES]:
                value = {"key": DEVICES, "value": each.tags[DEVICES]}
                ask("POST", "model-versions/set-tag", {"name": model, "version": version, **value})
            known[_which(each.tags)] = version, each.tags[DEVICES]
        most = max(own, key=lambda each: (each.n_devices, each.release.counter))
        if most.n_devices:
            version = known[_which(most.tags)][0]
            ask("POST", "registered-models/alias", {"name": model, "alias": LIVE, "version": version})
    return {"made": made, "known": len(listed) - made}


def _create(model: str, each: Listed, ask: Ask) -> str:
    about = [each.release.reason, each.release.notes]
    values = {
        "name": model,
        "source": f"edgeloop://artifacts/{each.release.digest}",
        "description": "\n\n".join(text for text in about if text),
        "tags": _tags(each.tags),
    }
    answer = ask("POST", "model-versions/create", values)
    try:
        return str(answer["model_version"]["version"])
    except (KeyError, TypeError) as exc:
        raise ChannelError("the registry does not say which version it made: is it one of MLflow?") from exc


def _which(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(tags.get(each, "") for each in WHICH)


def _versions(model: str, ask: Ask) -> dict[tuple[str, ...], tuple[str, str]]:
    """By release the version that is it, and how many devices it said."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    token = ""
    while True:
        wanted = {"filter": f"name='{model}'", "max_results": _PAGE} | ({"page_token": token} if token else {})
        answer = ask("GET", "model-versions/search", wanted)
        try:
            for each in answer.get("model_versions", []):
                tags = {str(tag["key"]): str(tag.get("value", "")) for tag in each.get("tags", [])}
                if all(_which(tags)):
                    found[_which(tags)] = str(each["version"]), tags.get(DEVICES, "")
        except (KeyError, TypeError, AttributeError) as exc:
            raise ChannelError("the registry lists no versions: is it one of MLflow?") from exc
        token = str(answer.get("next_page_token") or "")
        if not token:
            return found


def _tags(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _plain(name: str) -> str:
    """A name that MLflow takes, and that needs no quotes in its search."""
    return re.sub(r"[/:'\"\\]", "-", name)


class Server:
    """The REST API of a tracking server.

    Args:
        address: ``http://HOST:PORT``, perhaps with a path.
        token: That it wants as a bearer; "" for none.
    """

    def __init__(self, address: str, token: str = "") -> None:
        self._address, self._token = address.rstrip("/"), token

    def ask(self, method: str, what: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for something.

        Raises:
            ExistsError: There is one already.
            ChannelError: It does not answer, or refuses it.
        """
        url, body = f"{self._address}{_API}{what}", None
        if method == "GET":
            url += f"?{urllib.parse.urlencode(values)}"
        else:
            body = json.dumps(values).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "edgeloop"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310  # http or https, as the CLI looks
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                found = json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            with exc:
                said = exc.read(2000).decode(errors="replace")
            if _EXISTS in said:
                raise ExistsError(f"{self._address}: there is one of that name") from exc
            raise ChannelError(f"{url.partition('?')[0]} refused it: HTTP {exc.code}, {said[:300]}") from exc
        except (OSError, ValueError) as exc:
            raise ChannelError(f"{self._address} gave no answer of MLflow's: {type(exc).__name__}: {exc}") from exc
        if not isinstance(found, dict):
            raise ChannelError(f"{self._address} gave no answer of MLflow's")
        return found
