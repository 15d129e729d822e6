"""What devices publish is read by others as it is: Telegraf's configuration, Home Assistant's discovery, a person."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.device.home_assistant import discovery
from edge.agent.models import Models
from edge.agent.sources.feeding import Feeding
from edge.agent.sources.folder import Folder
from edge.agent.sources.payloads import Payload, SourceOptions
from edge.agent.sources.sinks import Callback
from edge.channel.transport import Connected, Publish
from edge.cli.configured import prefix_of
from edge.contract.clock import Now
from edge.contract.errors import ConfigError
from tests.support.fleet import unhurried

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EXAMPLES = Path(__file__).parents[3] / "examples" / "02_readers"
ODD = 'O\'Neill "Zähler"'


class Device:
    """An agent with two models that has answered, learned and spoken."""

    def __init__(self, folder: Path, bundles: dict[str, Path]) -> None:
        config = AgentConfig(
            bundles=bundles, state_dir=folder, fleet="lab", device="cam-1", profile=unhurried(),
            telemetry_interval_s=10.0, home_assistant="homeassistant",
        )  # fmt: skip
        self.models = Models(config)
        self.core = AgentCore(config, self.models)
        rng = np.random.default_rng(0)
        for i in range(30):
            x = rng.random((1, 8, 8), np.float32)
            self.core.request({"op": "predict", "model": "digits", "id": f"s{i}", "x": x}, Now(1.0 + i, 0))
            self.core.request({"op": "label", "model": "digits", "id": f"s{i}", "y": i % 10}, Now(1.0 + i, 0))
        self.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), Now(40.0, 1_800_000_000_000))
        self.core.tell([("warning", "something\nodd")])
        self.sent: list[Publish] = []
        for second in (41, 52, 63):
            self.sent += self.core.tick(Now(float(second), 1_800_000_000_000 + 1000 * second))

    def of(self, leaf: str) -> list[tuple[str, bytes]]:
        return [(each.topic, each.payload) for each in self.sent if each.topic.endswith(leaf)]


@pytest.fixture
def device(tmp_path: Path, digits_bundle: Path, other_bundle: Path) -> Iterator[Device]:
    found = Device(tmp_path / "state", {"digits": digits_bundle, ODD: other_bundle})
    yield found
    found.models.close()


def test_telegraf_takes_telemetry_and_events_with_tags_times_and_texts(device: Device) -> None:
    inputs = tomllib.loads((EXAMPLES / "telegraf.conf").read_text())["inputs"]["mqtt_consumer"]
    for leaf, plugin in (("up/tele", inputs[0]), ("up/event", inputs[1])):
        payloads = device.of(leaf)
        assert len(payloads) >= 1
        (parsing,) = plugin["topic_parsing"]
        for topic, payload in payloads:
            for pattern in (*plugin["topics"], parsing["topic"]):
                assert re.fullmatch(pattern.replace("+", "[^/]+"), topic)
            levels, names = topic.split("/"), parsing["tags"].split("/")
            assert len(levels) == len(names)
            tags = {name: level for name, level in zip(names, levels, strict=True) if name != "_"}
            assert tags == {"fleet": "lab", "device": "cam-1"}
            values = json.loads(payload)
            assert 1_800_000_000_000 <= values[plugin["json_time_key"]] < 1_900_000_000_000
            flat = {key: value for key, value in values.items() if not isinstance(value, dict | list)}
            texts = {key for key, value in flat.items() if isinstance(value, str)}
            # Telegraf drops a text that is neither a tag nor named; what is named must be a text.
            assert texts - {*plugin["tag_keys"], *plugin["json_string_fields"]} == set()
            assert not any(isinstance(flat.get(key), int | float) for key in plugin["json_string_fields"])
            nested = [f"{key}_{inner}" for key, value in values.items() if isinstance(value, dict) for inner in value]
            assert all(any(fnmatch(key, out) for out in plugin.get("fieldexclude", [])) for key in nested)
    numbers = json.loads(device.of("up/tele")[0][1])
    assert {"acc", "infer", "labels", "lat_p50_ms", "mem_mb"} <= numbers.keys()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; CI installs it")
def test_node_reds_functions_run_on_what_a_device_publishes(device: Device) -> None:
    """The flow is whole, and a browser runs its JavaScript as Node-RED does, on a message."""
    from playwright.sync_api import sync_playwright

    nodes = {each["id"]: each for each in json.loads((EXAMPLES / "node_red.json").read_text())}
    for node in nodes.values():
        assert all(target in nodes for wire in node.get("wires", []) for target in wire)
        assert node.get("z", "edgeloop") in nodes
        assert node["type"] != "mqtt in" or node["broker"] in nodes
    with sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        for leaf, expected in (("up/tele", {"labels", "infer", "model"}), ("up/event", {"name", "text"})):
            (source,) = [each for each in nodes.values() if each.get("topic", "").endswith(leaf)]
            (function,) = [nodes[target] for wire in source["wires"] for target in wire]
            for topic, payload in device.of(leaf):
                assert re.fullmatch(source["topic"].replace("+", "[^/]+"), topic)
                run = f"msg => (function (msg) {{ {function['func']} }})(msg).payload"
                found = page.evaluate(run, {"topic": topic, "payload": json.loads(payload)})
                assert {"fleet", "time", *expected} <= set(found)
                assert (found["fleet"], found["time"][:4]) == ("lab", "2027")
                assert not any(isinstance(value, dict | list) for value in found.values())
        browser.close()


def test_a_line_of_telemetry_is_one_line_that_a_person_reads(device: Device) -> None:
    for leaf in ("up/tele", "up/event", "up/conn"):
        for _, payload in device.of(leaf):
            text = payload.decode()
            assert text.isprintable()
            assert len(text) < 1500


# Keys that Home Assistant knows of a discovered device and its sensors (home-assistant.io, MQTT: device discovery).
OF_DEVICE = {"identifiers", "name", "manufacturer", "model", "sw_version"}
OF_SENSOR = {
    "platform", "name", "unique_id", "state_topic", "value_template", "unit_of_measurement", "state_class",
    "device_class", "entity_category",
}  # fmt: skip
UNITS = {"duration": {"ms", "s"}, "data_size": {"MiB", "MB"}, "temperature": {"°C"}}


def test_home_assistants_discovery_is_valid_and_its_templates_give_what_was_published(device: Device) -> None:
    (message,) = [each for each in device.sent if each.topic.startswith("homeassistant/")]
    assert (message.topic, message.retain) == ("homeassistant/device/edgeloop-lab-cam-1/config", True)
    found = json.loads(message.payload)
    assert set(found) == {"device", "origin", "availability", "components", "qos"}
    assert set(found["device"]) == OF_DEVICE
    assert set(found["origin"]) <= {"name", "sw_version", "support_url"}
    components = found["components"]
    assert len({each["unique_id"] for each in components.values()}) == len(components) >= 16
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    told = [json.loads(payload) for topic, payload in device.of("up/tele")]
    topics = {topic for topic, _ in device.of("up/tele")}
    shown: dict[str, Any] = {}
    for key, each in components.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key)
        assert set(each) <= OF_SENSOR
        assert {"platform", "name", "unique_id", "state_topic", "value_template"} <= set(each)
        assert each["platform"] == "sensor"
        assert each["state_topic"] in topics
        assert each.get("state_class") in (None, "measurement", "total_increasing")
        if "device_class" in each:
            assert each["unit_of_measurement"] in UNITS[each["device_class"]]
        state = "unknown"
        for values in told:
            template = environment.from_string(each["value_template"])
            state = template.render(value_json=jinja_object(values), this={"state": state})
        shown[each["name"]] = state
    of_digits = [values for values in told if values["model"] == "digits"][-1]
    assert float(shown["digits accuracy"]) == pytest.approx(100 * of_digits["acc"], abs=1e-3)
    assert float(shown["digits labels learned"]) == 30
    assert float(shown[f"{ODD} labels learned"]) == 0
    assert shown[f"{ODD} accuracy"] == "unknown"  # it has no labels: it keeps what it knew, which is nothing
    assert float(shown["memory"]) > 10
    available = environment.from_string(found["availability"][0]["value_template"])
    (topic, conn), *_ = device.of("up/conn")
    assert topic == found["availability"][0]["topic"]
    assert available.render(value_json=jinja_object(json.loads(conn))) == "online"
    assert len(discovery("ha", "lab", "cam-1", ["one"]).payload) < 8192
    for text in ("", "a/+", "a b", "/a"):
        with pytest.raises(ConfigError, match="prefix of topics"):
            prefix_of(text)


def jinja_object(values: dict[str, Any]) -> dict[str, Any]:
    """As templates see JSON: ``value_json.key`` of what is not there is undefined."""
    return values


def test_home_assistants_example_shows_real_answers_and_labels_by_them(device: Device, tmp_path: Path) -> None:
    text = (EXAMPLES / "home_assistant.yaml").read_text()
    templates = dict(re.findall(r'^ +(\w+): "(\{\{.*\}\})"$', text, re.MULTILINE))
    answers: list[dict[str, Any]] = []

    class Asked:
        def ask(self, work: Any) -> Any:
            return work(device.core, Now(70.0, 1_800_000_070_000))

    feed = Feeding(Folder(tmp_path, SourceOptions(model="digits"), lambda: 0.0), [Callback(answers.append)], Asked(),
                   lambda: Now(70.0, 1_800_000_070_000), "cam-1")  # fmt: skip
    feed.take(Payload(name="frigate/a/b/snapshot", data=json.dumps(np.zeros((1, 8, 8)).tolist()).encode()))
    (answer,) = answers
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    assert environment.from_string(templates["value_template"]).render(value_json=answer) == answer["name"]
    attributes = json.loads(environment.from_string(templates["json_attributes_template"]).render(value_json=answer))
    assert attributes["sample"] == answer["id"]
    said = environment.from_string(templates["payload"]).render(sample=attributes["sample"], label="3")
    before = device.core.models["digits"].host.model.n_samples
    feed.take(Payload(name="edgeloop/labels", data=said.encode()))
    assert device.core.models["digits"].host.model.n_samples == before + 1
