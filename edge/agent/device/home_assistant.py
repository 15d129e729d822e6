"""What Home Assistant is told of a device, so that it shows it without being configured: one retained message.

Its format is that of "device discovery" over MQTT (Home Assistant 2024.11 and newer). The values come from ``up/tele``
and ``up/conn`` as everybody reads them; where a device has several models they share a topic, and each entity keeps
what it knows when a message is of another model. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge import __version__
from edge.channel import topics
from edge.channel.transport import Publish
from edge.contract import strictjson
from edge.contract.names import level_of


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entity:
    """One number.

    Attributes:
        key: Of telemetry.
        name: For people.
        unit: As Home Assistant writes it; "" for none.
        state_class: What kind of series it is; "" for none.
        device_class: Of Home Assistant; "" for none.
        factor: From the unit of telemetry to this one.
        is_diagnostic: Whether it is about the device rather than about what it sees.
    """

    key: str
    name: str
    unit: str = ""
    state_class: str = "measurement"
    device_class: str = ""
    factor: int = 1
    is_diagnostic: bool = False


_OF_MODEL = (
    _Entity(key="acc", name="accuracy", unit="%", factor=100),
    _Entity(key="samples", name="labels learned", state_class="total_increasing"),
    _Entity(key="waiting", name="labels waiting", is_diagnostic=True),
    _Entity(key="infer_per_s", name="answers per second", unit="1/s"),
    _Entity(key="lat_p50_ms", name="latency", unit="ms", device_class="duration", is_diagnostic=True),
    _Entity(key="release", name="release", state_class="", is_diagnostic=True),
)
_OF_DEVICE = (
    _Entity(key="cpu_pct", name="CPU", unit="%", is_diagnostic=True),
    _Entity(key="mem_mb", name="memory", unit="MiB", device_class="data_size", is_diagnostic=True),
    _Entity(key="temp_c", name="temperature", unit="°C", device_class="temperature", is_diagnostic=True),
    _Entity(key="disk_free_mb", name="free disk", unit="MiB", device_class="data_size", is_diagnostic=True),
)


def discovery(prefix: str, fleet: str, device: str, models: Sequence[str]) -> Publish:
    """The message.

    Args:
        prefix: That Home Assistant listens below.
        fleet: Fleet id.
        device: Device id.
        models: Names of its models.
    """
    return Publish(
        topic=f"{prefix}/device/edgeloop-{fleet}-{device}/config",
        payload=strictjson.dumps(_document(fleet, device, models)),
        qos=1,
        retain=True,
    )


def _document(fleet: str, device: str, models: Sequence[str]) -> dict[str, Any]:
    own = f"edgeloop_{fleet}_{device}"
    tele = topics.build(fleet, device, topics.UP_TELE)
    components: dict[str, Any] = {}
    for model in models:
        level = level_of(model)
        for entity in _OF_MODEL:
            name = entity.name if len(models) == 1 else f"{model} {entity.name}"
            components[f"{level}_{entity.key}"] = _component(entity, name, f"{own}_{level}_{entity.key}", tele, model)
    for entity in _OF_DEVICE:
        components[entity.key] = _component(entity, entity.name, f"{own}_{entity.key}", tele, None)
    return {
        "device": {
            "identifiers": [own],
            "name": device,
            "manufacturer": "Edgeloop",
            "model": ", ".join(models)[:200],
            "sw_version": __version__,
        },
        "origin": {"name": "edgeloop", "sw_version": __version__},
        "availability": [
            {
                "topic": topics.build(fleet, device, topics.UP_CONN),
                "value_template": "{{ 'online' if value_json.online else 'offline' }}",
            }
        ],
        "components": components,
        "qos": 0,
    }


def _component(entity: _Entity, name: str, unique_id: str, topic: str, model: str | None) -> dict[str, Any]:
    times = f" * {entity.factor}" if entity.factor != 1 else ""
    value = f"value_json.{entity.key}"
    is_mine = f"{value} is defined"
    if model is not None:
        is_mine += f" and value_json.model == {_quoted(model)}"
    found: dict[str, Any] = {
        "platform": "sensor",
        "name": name,
        "unique_id": unique_id,
        "state_topic": topic,
        "value_template": f"{{{{ ({value}{times}) | round(3) if {is_mine} else this.state }}}}",
    }
    found |= {"unit_of_measurement": entity.unit} if entity.unit else {}
    found |= {"state_class": entity.state_class} if entity.state_class else {}
    found |= {"device_class": entity.device_class} if entity.device_class else {}
    found |= {"entity_category": "diagnostic"} if entity.is_diagnostic else {}
    return found


def _quoted(text: str) -> str:
    """A text in a template."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
