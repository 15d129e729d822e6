"""Every page in a real browser, on a desktop and a phone: of a coordinator that has devices, and of an agent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.channel.codec import encode
from edge.channel.messages import Conn
from edge.contract.bundle import Bundle
from edge.coordinator.machine.broker import DevelopmentBroker
from tests.support.shown import EVIL, birth, fill

pytestmark = pytest.mark.broker
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; CI installs it")
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
PAGES = (
    "/", "/?by=site&q=site%3Dnorth&condition=online", "/?by=long", "/devices/d000", "/devices/d003?span=day",
    "/rollouts", "/rollouts/1", "/rollouts/2", "/rollouts/3", "/learning", "/releases", "/releases/1",
    "/releases/compare?one=1&other=2", "/alerts", "/devices/nobody",
)  # fmt: skip
# Of axe: what keeps somebody from using a page.
SERIOUS = ("serious", "critical")


@dataclass
class Served:
    """A coordinator with a history."""

    url: str
    broker: str
    bundle: Path
    data_dir: Path
    stop_broker: Callable[[], object]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path, processes: ModuleType) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pages")
    fill(folder / "c", digits_bundle, 40)
    port = processes.free_port()
    with DevelopmentBroker.start(folder / "broker") as broker:
        line = processes.command(
            "edge-coordinator", "serve", "--broker", broker.url, "--fleet", "lab", "--http", f"127.0.0.1:{port}",
            "--data-dir", folder / "c", "--no-merge",
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        processes.wait_for("the coordinator", lambda: answers(url))
        yield Served(url, broker.url, digits_bundle, folder / "c", broker.stop)
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # A sandbox needs rights that root in a container has not; what is opened here is ours.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


class Watched:
    """A tab, and what is wrong with it."""

    def __init__(self, browser: Any, served: Served, **options: Any) -> None:
        self.faults: list[str] = []
        self.is_phone = options.get("is_mobile", False)
        self.tab = browser.new_context(**options).new_page()
        self.tab.on("console", lambda said: self.faults.append(f"console: {said.text}"))
        self.tab.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.tab.on("request", lambda asked: self._asked(asked.url, served.url))

    def _asked(self, url: str, ours: str) -> None:
        if not url.startswith(ours + "/"):
            self.faults.append(f"asks another host: {url}")

    def open(self, url: str, status: int = 200) -> None:
        self.faults.clear()
        answer = self.tab.goto(url, wait_until="load")
        assert answer.status == status
        if status == 200:
            self.tab.wait_for_selector("#line.is-live")
        else:  # the browser tells of any answer that is an error
            self.faults = [each for each in self.faults if "404" not in each]

    def check(self) -> None:
        wide = self.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert (self.faults, wide, self.tab.evaluate("window.evil")) == ([], 0, None), self.tab.url
        if self.is_phone:  # what is to the right of a table's edge is not seen there, and leaves rows of nothing
            hidden = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth)"
            assert self.tab.evaluate(f"{hidden}.map((each) => each.ariaLabel)") == [], self.tab.url


@needs_browser
def test_every_page_opens_and_follows_and_asks_nobody_else(browser: Any, served: Served) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for kind in (DESKTOP, PHONE):
        watched = Watched(browser, served, **kind)
        for page in PAGES:
            watched.open(served.url + page, 404 if "nobody" in page else 200)
            watched.check()
            if kind is DESKTOP:
                found = Axe().run(watched.tab).response["violations"]
                wrong = [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in SERIOUS]
                assert wrong == [], page
        # What devices send is shown as it is.
        watched.open(f"{served.url}/devices/d003")
        assert EVIL in watched.tab.inner_text("main")
        watched.check()
        watched.tab.context.close()


@needs_browser
def test_a_page_says_at_once_what_a_device_says_and_that_the_line_is_lost(browser: Any, served: Served) -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    watched = Watched(browser, served, **DESKTOP)
    watched.open(f"{served.url}/?q=late")
    # Whoever uses the keyboard reaches what is on the page without going through what is on all of them.
    watched.tab.keyboard.press("Tab")
    assert watched.tab.evaluate("document.activeElement.className") == "skip"
    assert watched.tab.locator("#live_devices tbody tr").count() == 0
    client = Client(CallbackAPIVersion.VERSION2, "late")
    client.connect("127.0.0.1", int(served.broker.rpartition(":")[2]))
    client.loop_start()
    opened = Bundle.open(served.bundle)
    introduced = birth(opened.manifest.backbone_digest, opened.digest)
    for leaf, message in (
        ("up/conn", Conn(online=True, session=1, boot=1, ts_ms=0, state_id="b" * 16)),
        ("up/birth", introduced),
    ):
        client.publish(f"edge/v1/lab/late/{leaf}", encode(message), qos=1).wait_for_publish(10)
    begun = time.monotonic()
    watched.tab.wait_for_selector("#live_devices tbody tr a:has-text('late')")
    assert time.monotonic() - begun < 20  # two seconds on a machine that does nothing else
    client.loop_stop()
    watched.check()
    watched.tab.context.close()


def test_pages_may_run_nothing_but_their_own_script(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/devices/d003", timeout=10) as answer:
        policy, html = answer.headers["content-security-policy"], answer.read().decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert "unsafe" not in policy
    assert " style=" not in html
    assert " onclick=" not in html
    assert "<script>window" not in html


@needs_browser
def test_a_broker_that_is_gone_is_named_on_a_page_that_is_open_and_nothing_is_called_live(
    browser: Any, served: Served
) -> None:  # the last one here: the broker does not come back
    watched = Watched(browser, served, **PHONE)
    watched.open(f"{served.url}/rollouts")
    served.stop_broker()
    watched.tab.wait_for_selector("#line.is-deaf")
    assert served.broker in watched.tab.inner_text("#live_line")
    watched.check()
    watched.tab.goto(served.url)
    watched.tab.wait_for_selector("#line.is-deaf")
    assert "not known" in watched.tab.inner_text("#live_states")
    assert "online" not in watched.tab.inner_text("#live_states")
    assert served.broker in watched.tab.inner_text("#live_wishes")
    watched.check()
    watched.tab.context.close()


@needs_browser
def test_a_click_on_the_page_of_an_agent_teaches_it(
    browser: Any, processes: ModuleType, tmp_path: Path, digits_bundle: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    port = processes.free_port()
    url, options = f"http://127.0.0.1:{port}", ["--http", f"127.0.0.1:{port}", "--state-dir", tmp_path]
    with (tmp_path / "log").open("wb") as log:
        line = processes.command("edge-agent", "run", digits_bundle, "--device", "cam", *options)
        process = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        processes.wait_for("the agent", (tmp_path / "agent.sock").exists)
        with AgentClient(tmp_path / "agent.sock") as agent:
            answers = [agent.predict(name, np.full((1, 8, 8), 0.3, np.float32)) for name in (EVIL, "two")]
            watched = Watched(browser, Served(url, "", digits_bundle, tmp_path, lambda: None), **PHONE)
            watched.tab.goto(url)
            watched.tab.wait_for_selector("#samples li:nth-child(2)")
            assert EVIL in watched.tab.inner_text("#samples")
            row = watched.tab.locator("#samples li", has_text="two")
            said = (answers[1]["class"] + 1) % 10
            row.locator("select").select_option(str(said))
            watched.tab.wait_for_selector("#said.good")
            assert watched.tab.inner_text("#said") == "Learned."
            assert row.locator("select").count() == 0
            status = agent.status()
            assert (status["samples"], status["accuracy"]) == (1, 0.0)
            watched.check()
            found = Axe().run(watched.tab).response["violations"]
            assert [each["id"] for each in found if each["impact"] in SERIOUS] == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@needs_browser
def test_who_is_signed_in_no_more_is_led_to_sign_in(browser: Any, served: Served, processes: ModuleType) -> None:
    """The last one: from here on the coordinator is open to nobody."""

    def asked(*words: str) -> str:
        line = processes.command(*words)
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    token = asked("edge-coordinator", "token", "kim", "--data-dir", str(served.data_dir))
    fleet = ("edge-fleet", "--coordinator", served.url, "--token", token, "token")
    theirs = json.loads(asked(*fleet, "new", "lou", "--role", "viewer", "--json"))
    tab = browser.new_context(**DESKTOP).new_page()
    tab.goto(f"{served.url}/alerts")
    tab.fill("input[name=token]", theirs["token"])
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"{served.url}/alerts")
    tab.wait_for_selector("#line:is(.is-live, .is-deaf)")  # the broker may be gone by now
    asked(*fleet, "revoke", str(theirs["id"]))
    tab.wait_for_url(f"{served.url}/sign-in?next=%2Falerts", timeout=30_000)
