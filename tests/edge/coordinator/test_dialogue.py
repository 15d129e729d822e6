"""What the conversation with devices remembers of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import event

from edge.channel.codec import encode
from edge.channel.messages import Telemetry
from edge.channel.transport import Connected, Received
from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.recent import Recent
from edge.coordinator.releases.artifacts import ArtifactStore
from tests.support.fleet import store_in


def test_telemetry_costs_the_database_one_look_for_many_messages_of_whoever_it_is(tmp_path: Path) -> None:
    """A device that never introduces itself, too."""
    store = store_in(tmp_path / "db.sqlite")
    core = CoordinatorCore(
        CoordinatorConfig(fleet="lab", name="c", data_dir=tmp_path), store, ArtifactStore(tmp_path / "artifacts")
    )
    now, asked = Now(1000.0, 1_800_000_000_000), list[str]()
    core.transport(Connected(max_packet_bytes=1 << 20, session_present=False), now)

    def say(first: int) -> None:
        for i in range(60):
            values: dict[str, Any] = {"seq": first + i // 3, "boot": 1, "samples": i}
            payload = encode(Telemetry(values=values))
            core.transport(Received(topic=f"edge/v1/lab/d-{i % 3}/up/tele", payload=payload, retained=False), now)
        core.registry.keep_telemetry(now, at_once=True)

    say(1)
    engine = store._database._engine
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))
    say(100)
    store.close()
    assert len(asked) <= 10, asked
    assert sum(each.startswith("INSERT INTO telemetry") for each in asked) == 1


def test_of_names_without_end_only_those_that_spoke_last_are_remembered() -> None:
    found = Recent[int](3)
    for i in range(1000):
        found[f"d{i}"] = i
        found["d0"] = -i  # speaks all the time
    assert list(found.items()) == [("d998", 998), ("d999", 999), ("d0", -999)]
