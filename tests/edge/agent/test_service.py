"""The process's loop, and the threads that take their turn with its core while it waits."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.agent.config import AgentConfig
from edge.agent.model.company import Company, Job
from edge.agent.service import AgentService, _Call
from edge.contract.errors import ConfigError, EdgeError, LearningError
from edge.coordinator.signing import ceremony
from edge.learning.closed_form import StatisticsLearner
from edge.learning.sgd import SgdLearner
from tests.support.fleet import unhurried

X = np.zeros((1, 1, 8, 8), np.float32)


class Watched:
    """A company that notes which thread runs it, and fails when two do."""

    def __init__(self, company: Company, *, takes_s: float = 0.0) -> None:
        self._company, self._takes_s = company, takes_s
        self.threads: list[int] = []
        self.sizes: list[int] = []
        self._alone = threading.Lock()

    def answer(self, core: Any, jobs: Sequence[Job], now: Any) -> Any:
        assert self._alone.acquire(blocking=False), "two threads use the core"
        try:
            self.threads.append(threading.get_ident())
            self.sizes.append(len(jobs))
            if self._takes_s:
                time.sleep(self._takes_s)  # long enough that others come meanwhile; nothing is awaited by it
            return self._company.answer(core, jobs, now)
        finally:
            self._alone.release()


@pytest.fixture
def service(tmp_path: Path, digits_bundle: Path) -> AgentService:
    config = AgentConfig(bundles={"m": digits_bundle}, state_dir=tmp_path, fleet="f", device="d", profile=unhurried())
    return AgentService(config, None)


def watch(service: AgentService, *, takes_s: float = 0.0) -> Watched:
    service._company = watched = Watched(service._company, takes_s=takes_s)  # type: ignore[assignment]
    return watched


@contextmanager
def looping(service: AgentService) -> Iterator[threading.Thread]:
    """Signals are for the main thread alone: the loop is run without them."""
    loop = threading.Thread(target=service._loop)
    loop.start()
    try:
        yield loop
    finally:
        service._stop()
        service._put(_Call(lambda *_: None))  # it looks now, and not in a second
        loop.join()
        service._leave()


def asked(service: AgentService, name: str = "s") -> Any:
    return service.infer(Job(model="m", id=name, given={"input": X}))


def test_who_asks_while_the_loop_waits_runs_the_model_himself(service: AgentService) -> None:
    watched = watch(service)
    with looping(service) as loop:
        service.ask(lambda *_: None)  # the loop goes round
        for i in range(20):
            answered = asked(service, f"s{i}")
        assert answered.ids == ("s19",)
        assert answered.outputs["output"].shape == (1, 10)
        assert threading.get_ident() in watched.threads
        assert set(watched.threads) <= {threading.get_ident(), loop.ident}
        with pytest.raises(LearningError, match="nobody"):
            service.infer(Job(model="nobody", id="s", given={"input": X}))
        joined = service.ask(lambda core, now: core.request({"op": "label", "id": "s19", "y": 3}, now))
        assert joined["joined"]  # what the asking thread left, the loop knows


def test_many_who_ask_at_once_never_use_the_core_together(service: AgentService) -> None:
    watched, found = watch(service, takes_s=0.002), []
    with looping(service):
        threads = [threading.Thread(target=lambda i=i: found.append(asked(service, f"s{i}"))) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(each.ids[0] for each in found) == sorted(f"s{i}" for i in range(24))
    assert sum(watched.sizes) == 24
    assert max(watched.sizes) > 1  # who waited was answered together


def test_nobody_takes_the_turn_before_the_loop_begins_or_after_it_ends(service: AgentService) -> None:
    watched, found = watch(service), []
    early = threading.Thread(target=lambda: found.append(asked(service, "early")))
    early.start()
    while service._queue.empty():  # it waits in the queue, and not in the core
        early.join(0.001)
    assert watched.threads == []
    with looping(service) as loop:
        early.join(30)
        assert watched.threads == [loop.ident]
        assert found[0].ids == ("early",)
    refused: list[str] = []

    def ask_late() -> None:
        with pytest.raises(EdgeError) as caught:
            asked(service, "late")
        refused.append(str(caught.value))

    late = threading.Thread(target=ask_late, daemon=True)
    late.start()
    while service._queue.empty():
        late.join(0.001)
    assert watched.threads == [loop.ident]
    service._answer_waiting()
    late.join(30)
    assert refused == ["the agent ends"]


def test_a_label_goes_from_the_socket_to_the_weights_through_six_files_at_most(
    service: AgentService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: dict[str, list[str]] = {}
    for learner in (StatisticsLearner, SgdLearner):

        def noted(self: Any, *batch: Any, learn: Any = learner.learn_together) -> None:
            ways[self.kind] = [frame.filename for frame in traceback.extract_stack() if frame.name != "noted"]
            learn(self, *batch)

        monkeypatch.setattr(learner, "learn_together", noted)
    with looping(service), service._listening(tmp_path / "s.sock"), AgentClient(tmp_path / "s.sock") as agent:
        agent.predict("a", X[0])
        assert agent.label("a", 3)
    assert ways.keys() == {"statistics", "", "delta"}, "the second takes lifted features"
    for way in ways.values():
        files = [*dict.fromkeys(Path(file).name for file in way if "/edge/" in file and "/tests/" not in file)]
        assert files == ["service.py", "core.py", "model_core.py", "learning_model.py", "learning.py"], (
            "and the learner"
        )


def test_the_root_document_is_looked_at_while_it_answers_and_one_that_is_none_ends_it(
    tmp_path: Path, digits_bundle: Path
) -> None:
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    junk = tmp_path / "junk.json"
    junk.write_text("{}")
    for root in (junk, folders.device_root):
        config = AgentConfig(
            bundles={"m": digits_bundle},
            state_dir=tmp_path / f"of-{root.name}",
            fleet="f",
            device="d",
            profile=unhurried(),
            trust_root=root,
        )
        made, found = AgentService(config, None), list[Any]()
        asking = threading.Thread(target=lambda made=made, found=found: found.append(asked(made)))
        asking.start()
        if root is junk:
            with pytest.raises(ConfigError, match=r"--trust .*junk\.json: expected a signed root document"):
                made._loop()
            made._leave()
        else:
            with looping(made):
                while made._unchecked is not None:
                    made.ask(lambda *_: None)
                    time.sleep(0.01)
        asking.join(30)
        assert len(found) == 1
        assert made._core._vetting is not None
        assert made._core._vetting._trust._process is None, "nothing of it is left"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="cannot be read"):
        AgentService(replace(config, trust_root=tmp_path / "none.json"), None)
