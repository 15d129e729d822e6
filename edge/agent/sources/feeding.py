"""From sources to answers: each payload is read, asked, and answered to all sinks; what goes wrong is told, and no end.

A fault of a payload is an event `source-fault` with what was expected and what came. The same one again within a minute
is counted, and said with the next; of different ones at most 20 are said in a minute. A source that cannot be opened,
or breaks, is tried again, ever more slowly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from edge.agent.core import AgentCore
from edge.agent.model.model_core import NO_ROOM
from edge.agent.sources.payloads import Label, Payload, Sample, Source, Stop, read
from edge.agent.sources.sinks import Sink
from edge.contract.clock import Now
from edge.contract.errors import EdgeError, ResourceError
from edge.contract.tensorspec import TensorSpec
from edge.learning.labels import MAX_ID_LENGTH

T = TypeVar("T")

REPEAT_S = 60.0
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
_MOST_FAULTS = 32  # different ones that are remembered of a source
_MOST_TOLD = 20  # in `REPEAT_S`: each is an event that goes to the coordinator


class Asking(Protocol):
    """The agent, from any thread."""

    def ask(self, work: Callable[[AgentCore, Now], T]) -> T:
        """What a function of the agent's core gives; EdgeError as that does."""


class Feeding:
    """One source and where its answers go.

    Args:
        source: Gives payloads.
        sinks: Are told the answers.
        agent: Answers.
        clock: Gives the time.
        device: Name of the device, for the answers.
    """

    def __init__(
        self, source: Source, sinks: Sequence[Sink], agent: Asking, clock: Callable[[], Now], device: str
    ) -> None:
        self._source, self._sinks, self._agent = source, sinks, agent
        self._clock, self._device = clock, device
        self._faults: dict[str, tuple[float, int]] = {}  # when it was told, and how often it came since
        self._told_s: deque[float] = deque(maxlen=_MOST_TOLD)
        self._untold = 0
        self._last_ms = 0
        self._stop: Stop | None = None

    def run(self, stop: Stop) -> None:
        """Feed until the source ends, or the agent does."""
        wait_s = FIRST_RETRY_S
        self._stop = stop
        while not stop.is_set():
            try:
                for payload in self._source.payloads(stop, self._specs):
                    wait_s = FIRST_RETRY_S
                    self.take(payload)
                    if stop.is_set():
                        return
                if self._source.ends_agent:
                    return
            except EdgeError as exc:
                self._tell(str(exc))
            except Exception as exc:  # noqa: BLE001  # drivers, decoders: whatever it is, the others go on
                self._tell(f"{type(exc).__name__}: {exc}")
            stop.wait(wait_s)
            wait_s = min(2 * wait_s, LAST_RETRY_S)

    def take(self, payload: Payload) -> None:
        """Deal with one payload."""
        is_right = True
        try:
            for found in read(payload, self._specs(), self._source.options):
                try:
                    if isinstance(found, Label):
                        if not payload.is_again:
                            self._label(found)
                    else:
                        self._answer(found, payload)
                except EdgeError as exc:
                    is_right = False
                    self._tell(f"{payload.name}: {exc}")
        except EdgeError as exc:
            is_right = False
            self._tell(f"{payload.name}: {exc}")
        except Exception as exc:  # noqa: BLE001  # as above
            is_right = False
            self._tell(f"{payload.name}: {type(exc).__name__}: {exc}")
        if is_right or not (self._stop and self._stop.is_set()):  # else the agent ended in the middle of it
            payload.done(is_right)

    def _specs(self) -> list[TensorSpec]:
        """What the model takes now: a pushed bundle may take something else."""
        name = self._source.options.model
        return self._agent.ask(lambda core, _: list(core.named(name).host.model.serving.inputs.values()))

    def _label(self, label: Label) -> None:
        def work(core: AgentCore, now: Now) -> dict[str, Any]:
            return core.request(label.request, now)

        while (found := self._agent.ask(work)).get("why") == NO_ROOM and self._source.waits:
            self._tell(f"{NO_ROOM}: one of this source waits for room, and what is behind it, too")
            if self._stop is None or self._stop.wait(FIRST_RETRY_S):
                raise ResourceError("the agent ends")
        if not found["joined"]:
            self._tell(f"the label of {label.request['id']!r:.140} was not taken: {found['why']}")

    def _answer(self, sample: Sample, payload: Payload) -> None:
        now = self._clock()
        name = sample.id or self._made(payload.name, now)
        model = self._source.options.model
        request: dict[str, Any] = {"op": "predict", "id": name, "inputs": sample.inputs}
        request |= {} if model is None else {"model": model}
        request |= {} if sample.stream is None else {"stream": sample.stream[:MAX_ID_LENGTH], "reset": sample.reset}

        def work(core: AgentCore, time: Now) -> dict[str, Any]:
            return {"model": core.named(model).host.name, **core.request(request, time)}

        said = self._agent.ask(work)
        answer: Mapping[str, Any] = {
            "ts": now.wall_ms, "device": self._device, "source": payload.name, "id": name, **said
        }  # fmt: skip
        for sink in self._sinks:
            try:
                sink.give(answer)
            except EdgeError as exc:
                self._tell(f"answers: {exc}")

    def _made(self, name: str, now: Now) -> str:
        """A name that no other sample has: of what it came as, and the time."""
        self._last_ms = max(self._last_ms + 1, now.wall_ms)
        end = f"@{self._last_ms}"
        return name[: MAX_ID_LENGTH - len(end)] + end

    def _tell(self, text: str) -> None:
        now_s = self._clock().s
        told_s, repeats = self._faults.get(text, (float("-inf"), 0))
        if now_s - told_s < REPEAT_S:
            self._faults[text] = (told_s, repeats + 1)
            return
        if len(self._told_s) == _MOST_TOLD and now_s - self._told_s[0] < REPEAT_S:
            self._untold += 1
            return
        self._told_s.append(now_s)
        again = f" (and {repeats} times since it was last told)" if repeats else ""
        again += f" (and {self._untold} other faults since, too many to be told)" if self._untold else ""
        self._untold = 0
        self._faults.pop(text, None)
        self._faults[text] = (now_s, 0)
        if len(self._faults) > _MOST_FAULTS:
            del self._faults[next(iter(self._faults))]
        said = f"{self._source.name}: {text[:380]}{again}"[:500]
        with suppress(EdgeError):  # the agent ends
            self._agent.ask(lambda core, _: core.tell([("source-fault", said)]))
