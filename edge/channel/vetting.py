"""Whether a release is to be believed, before anything of it is looked at: who was given a root asks for proof.

Theory of operation. One release of each model waits at most, the newest. The metadata that prove it are asked for one
by one, again with growing waits where nothing comes. What is believed goes on to the model; what is not changes nothing
there: no counter of it is kept, and the next one is looked at as if it had not been.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from edge.channel.messages import Desired, Meta, Order, Request
from edge.contract.errors import ChannelError

FIRST_WAIT_S, LAST_WAIT_S = 2.0, 60.0


class Trust(Protocol):
    """What `edge.channel.updates.Trust` does; a device without a root has none, and opens no library for it."""

    @property
    def missing(self) -> str | None:
        """The file that `look` lacked last."""

    def take(self, message: Meta) -> None:
        """Hand in a file, or that there is none of its name; `ChannelError` where it cannot be read."""

    def begin(self) -> None:
        """Forget what was handed in."""

    def look(self, desired: Desired | Order) -> bool:
        """Whether a release is to be believed; False while `missing` has to be fetched."""


@dataclass(frozen=True, slots=True)
class Believed:
    """A release was proved."""

    model: str
    desired: Desired | Order


@dataclass(frozen=True, slots=True)
class Distrusted:
    """A release is not to be believed; nothing of it was used.

    Attributes:
        model: It is for.
        desired: The release.
        kind: Of fault, in one word.
        detail: For people.
    """

    model: str
    desired: Desired | Order
    kind: str
    detail: str


Verdict = Believed | Distrusted
UNSIGNED = "unsigned: this device takes those of anybody who may publish to it"


class Vetting:
    """See the module.

    Args:
        trust: What is believed so far.

    Attributes:
        verdicts: What was decided; the caller empties it.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        # By model, and whether it is a release or which kind of order.
        self._waiting: dict[tuple[str, type], Desired | Order] = {}
        self._believed: dict[tuple[str, type], Desired | Order] = {}
        self._asked: str | None = None
        self._again_s = math.inf
        self._wait_s = FIRST_WAIT_S
        self._distrusted: dict[tuple[str, type], Distrusted] = {}
        self.verdicts: list[Verdict] = []

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return self._again_s if self._waiting else math.inf

    def __str__(self) -> str:
        waits = f", waiting for {self._asked}" if self._waiting and self._asked else ""
        return f"signed, below the root that this device was given{waits}"

    def offer(self, model: str, desired: Desired | Order) -> None:
        """Look at a release for a model when `poll` is called next; what was proved goes through at once."""
        if _is_same(self._believed.get((model, type(desired))), desired):
            self.verdicts.append(Believed(model, desired))
            return
        if not self._waiting:
            self._trust.begin()
        self._waiting[model, type(desired)] = desired
        self._again_s = -math.inf

    def take(self, message: Meta) -> None:
        """A document came. One that cannot be read is none, and is asked for again."""
        if message.name != self._asked:
            return
        try:
            self._trust.take(message)
        except ChannelError:
            return
        self._again_s, self._wait_s = -math.inf, FIRST_WAIT_S

    def poll(self, now_s: float) -> list[Request]:
        """Decide what can be decided, and ask for what lacks."""
        if now_s < self._again_s:
            return []
        for (model, kind), desired in list(self._waiting.items()):
            try:
                if not self._trust.look(desired):
                    return self._ask(now_s)
            except ChannelError as exc:
                self._distrust(Distrusted(model, desired, getattr(exc, "kind", "damaged"), str(exc)))
            except OSError as exc:
                self._distrust(Distrusted(model, desired, "storage", f"metadata cannot be kept: {exc.strerror}"))
            else:
                self._believed[model, kind] = desired
                self.verdicts.append(Believed(model, desired))
            del self._waiting[model, kind]
        self._asked, self._again_s = None, math.inf
        return []

    def _distrust(self, verdict: Distrusted) -> None:
        """Say so once: such a release may come again and again."""
        about = verdict.model, type(verdict.desired)
        if self._distrusted.get(about) != verdict:
            self._distrusted[about] = verdict
            self.verdicts.append(verdict)

    def _ask(self, now_s: float) -> list[Request]:
        if self._trust.missing == self._asked:
            self._wait_s = min(2 * self._wait_s, LAST_WAIT_S)
        else:
            self._wait_s = FIRST_WAIT_S
        self._asked = self._trust.missing
        self._again_s = now_s + self._wait_s
        return [Request(op="meta", name=self._asked or "")]


def _is_same(proved: Desired | Order | None, desired: Desired | Order) -> bool:
    """Whether this says what was proved, however its bytes travel now."""
    if isinstance(proved, Desired) and isinstance(desired, Desired):
        names = ["release", "kind", "digest", "size_bytes", "backbone", "model", "signature"]
    elif isinstance(proved, Order):
        names = ["number", "digest", "size_bytes", "backbone", "model", "signature"]
    else:
        return False
    return all(getattr(proved, name) == getattr(desired, name) for name in names)
