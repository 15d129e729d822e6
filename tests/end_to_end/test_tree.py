"""Two sites and a coordinator above them as real processes, each with a broker of its own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadRelease, HeadUpdate
from tests.support.contributions import merged_head

pytestmark = pytest.mark.broker

SITES = {"lisbon": "cam-1", "porto": "cam-2"}
QUICK = ["--merge-delay", "1", "--min-samples", "1", "--min-merge-samples", "1", "--no-screen"]


class Tier:
    """A coordinator, its broker and its devices."""

    def __init__(self, processes: ModuleType, folder: Path, bundle: Path, devices: list[str], *options: str) -> None:
        folder.mkdir()
        self.fleet = processes.Fleet(folder, bundle, devices)
        self.fleet.start_broker()
        line = ["--broker", self.fleet.broker_url, "--http", f"127.0.0.1:{self.fleet.http_port}", "--bundle", bundle]
        line += ["--data-dir", folder / "coordinator", *QUICK, *options]
        self.fleet.start("coordinator", processes.command("edge-coordinator", "serve", *line))
        for device in devices:
            self.fleet.start_agent(device)

    def artifact(self, digest: str) -> bytes:
        return bytes((self.fleet.folder / "coordinator" / "artifacts" / digest).read_bytes())

    def updates(self) -> list[HeadUpdate]:
        return [HeadUpdate.decode(self.artifact(row["digest"]), "it") for row in self.fleet.asked("contributions")]

    def heads(self) -> list[dict[str, Any]]:
        """Head releases, the newest first."""
        return [row for row in self.fleet.asked("releases") if row["kind"] == "head"]

    def is_up(self) -> bool:
        return all(row["born"] for row in self.fleet.known()) and len(self.fleet.known()) == len(self.fleet.devices)


def test_what_devices_of_two_sites_learned_is_one_merge_and_a_push_from_above_reaches_them(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    tiers: list[Tier] = []
    try:
        tiers.append(above := Tier(processes, tmp_path / "above", digits_bundle, []))
        for site, device in SITES.items():
            up = ["--upstream", above.fleet.broker_url, "--site", site, "--upstream-interval", "1"]
            tiers.append(Tier(processes, tmp_path / site, digits_bundle, [device], *up))
        sites = tiers[1:]
        for tier in sites:
            processes.wait_for("its device", tier.is_up)
        processes.wait_for("both sites above", lambda: {row["id"] for row in above.fleet.known()} == set(SITES))
        for site in SITES:
            above.fleet.fleet("tag", site, "role=site")

        x, y = digits
        for k, (tier, device) in enumerate(zip(sites, SITES.values(), strict=True)):
            with AgentClient(tier.fleet.socket_path(device)) as agent:
                for i in range(40 * k, 40 * k + 40):
                    agent.predict(f"s{i}", x[i])
                    agent.label(f"s{i}", int(y[i]))

        def learned() -> list[HeadUpdate]:
            found = [each for tier in sites for each in tier.updates()]
            return found if sum(each.n_samples for each in found) == 80 else []

        flat = merged_head(Bundle.open(digits_bundle), processes.wait_for("both have sent", learned), screen=False)

        def merged() -> HeadRelease | None:
            """The head above, once it is that of one merge of both devices."""
            for row in above.heads()[:1]:
                head = HeadRelease.decode(above.artifact(row["digest"]), "it")
                apart = max(np.abs(head.parameters[n] - each).max() for n, each in flat.parameters.items())
                if apart <= 1e-6:
                    return head
            return None

        head = processes.wait_for("one merge above", merged)

        def is_below(tier: Tier) -> bool:
            """What the site's device runs is that, too: with what the other site's device has learned."""
            row = tier.fleet.known()[0]
            model, newest = row["models"][0], next(iter(tier.heads()), None)
            if newest is None or model["release"] != newest["counter"] or model["state"] != "active":
                return False
            own = HeadRelease.decode(tier.artifact(newest["digest"]), "it")
            largest = max(float(np.abs(each).max()) for each in flat.parameters.values())
            # Merges come down in float32: off by 1.2e-5 of the largest weight, on these features.
            return all(np.abs(own.parameters[n] - each).max() <= 3e-5 * largest for n, each in flat.parameters.items())

        for tier in sites:
            processes.wait_for("the merge of all at its device", lambda tier=tier: is_below(tier))

        pushed = HeadRelease(
            backbone=head.backbone, parameters={n: each * np.float32(1.5) for n, each in head.parameters.items()},
            origin="by hand",
        )  # fmt: skip
        (tmp_path / "pushed").write_bytes(pushed.encode())
        above.fleet.fleet("push", str(tmp_path / "pushed"), "--all-at-once")
        counter = above.heads()[0]["counter"]

        def runs(tier: Tier) -> bool:
            model, newest = tier.fleet.known()[0]["models"][0], tier.heads()[0]
            own = HeadRelease.decode(tier.artifact(newest["digest"]), "it")
            is_it = all((own.parameters[n] == each).all() for n, each in pushed.parameters.items())
            return is_it and model["release"] == newest["counter"] and model["state"] == "active"

        for tier in sites:
            processes.wait_for("the pushed head at its device", lambda tier=tier: runs(tier))
        processes.wait_for(
            "both sites say so above",
            lambda: (
                [(m["release"], m["state"]) for row in above.fleet.known() for m in row["models"]]
                == [(counter, "active")] * 2
            ),
        )
    finally:
        for tier in reversed(tiers):
            tier.fleet.__exit__(None, None, None)
