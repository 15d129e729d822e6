"""Whether a release is to be believed, before anything of it is looked at: who was given a root asks for proof.

Theory of operation. One release of each model waits at most, the newest. The metadata that prove it are asked for one
by one, again with growing waits where nothing comes. What is believed goes on to the model; what is not changes nothing
there: no counter of it is kept, and the next one is looked at as if it had not been. Who looks may be a process of its
own (`edge.channel.apart`), which may be slow, hang or die: nothing is decided then, that is said, and it is tried anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edge.channel.messages import Desired, Meta, Order, Request
from edge.contract.errors import ChannelError

FIRST_WAIT_S, LAST_WAIT_S = 2.0, 60.0
# How often is it asked whether something is decided, and when is that given up? The slowest device loads python-tuf in
# some seconds.
LOOK_EVERY_S, LONGEST_LOOK_S = 0.02, 120.0
# Releases come one after the other, for each model.
REST_AFTER_S = 5.0


class DistrustError(ChannelError):
    """A release is not to be believed.

    Attributes:
        kind: Of fault, in one word: ``unsigned``, ``wrong-signer``, ``expired``, ``rollback``, ``mix-and-match``,
            ``not-listed``, ``too-large`` or ``damaged``.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class NotJudgedError(ChannelError):
    """Nothing was found out about a release: not that it is right, and not that it is wrong."""


def unsigned(desired: Desired | Order) -> DistrustError:
    """What is said of a release that nobody signed."""
    return DistrustError("unsigned", f"{called(desired)} has no signature, and this device wants one")


def called(desired: Desired | Order) -> str:
    """What a release or an order is called."""
    return f"release {desired.release}" if isinstance(desired, Desired) else f"the {desired.word} {desired.number}"


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
        """Whether a release is to be believed.

        False while `missing` has to be fetched, and while it is not decided yet: then nothing is missing.

        Raises:
            DistrustError: It is not.
            NotJudgedError: That cannot be found out now.
            OSError: What is believed could not be kept.
        """

    def rest(self) -> None:
        """Nothing is looked at for now: let go of what that takes."""


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


@dataclass(frozen=True, slots=True)
class NotJudged:
    """Nothing was found out about a release, which is tried again.

    Attributes:
        model: It is for.
        desired: The release.
        detail: For people.
    """

    model: str
    desired: Desired | Order
    detail: str


Verdict = Believed | Distrusted | NotJudged
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
        self._at_hand: Mapping[str, Meta] | None = None
        self._asked: str | None = None
        self._is_to_look, self._given_up_s = False, math.inf
        self._again_s = self._rest_s = math.inf
        self._ask_again_s = -math.inf
        self._wait_s = FIRST_WAIT_S
        self._told: dict[tuple[str, type], Distrusted | NotJudged] = {}
        self._why_not = ""
        self.verdicts: list[Verdict] = []

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return self._again_s if self._waiting else self._rest_s

    def __str__(self) -> str:
        waits = f", waiting for {self._asked}" if self._waiting and self._asked else ""
        not_judged = f", not judged yet: {self._why_not}" if self._waiting and self._why_not else ""
        return f"signed, below the root that this device was given{waits}{not_judged}"

    def offer(self, model: str, desired: Desired | Order, at_hand: Mapping[str, Meta] | None = None) -> None:
        """Look at a release for a model when `poll` is called next; what was proved goes through at once.

        Args:
            model: It is for.
            desired: The release.
            at_hand: All documents that there are, by name; None where the coordinator is to be asked.
        """
        if _is_same(self._believed.get((model, type(desired))), desired):
            self.verdicts.append(Believed(model, desired))
            return
        if self._why_not and self._waiting.get((model, type(desired))) == desired:
            return  # it is said again and again, and will be tried again
        if not _is_same(self._waiting.get((model, type(desired))), desired):
            self._trust.begin()  # what came for others was of before it, and need not list it
            self._asked, self._at_hand = None, at_hand
        self._waiting[model, type(desired)] = desired
        self._look_at_s(-math.inf)

    def take(self, message: Meta) -> None:
        """A document came. One that cannot be read is none, and is asked for again."""
        if message.name != self._asked:
            return
        try:
            self._trust.take(message)
        except ChannelError:
            return
        self._look_at_s(-math.inf)

    def poll(self, now_s: float, *, may_ask: bool = True) -> list[Request]:
        """Decide what can be decided, and ask for what lacks.

        Args:
            now_s: The time.
            may_ask: Whether a question would arrive.
        """
        if not self._waiting and now_s >= self._rest_s:
            self.rest()
        if not self._waiting or now_s < self._again_s:
            return []
        if not self._is_to_look:  # what was asked for did not come
            self._trust.rest()
            return self._ask(now_s, may_ask=may_ask)
        for (model, kind), desired in list(self._waiting.items()):
            try:
                while not self._trust.look(desired):
                    if self._trust.missing is None:
                        return self._later(now_s)
                    if self._at_hand is None:
                        return self._ask(now_s, may_ask=may_ask)
                    self._hand_in(self._at_hand, self._trust.missing)
            except NotJudgedError as exc:
                return self._not_judged(NotJudged(model, desired, str(exc)), now_s)
            except ChannelError as exc:
                self._tell(Distrusted(model, desired, getattr(exc, "kind", "damaged"), str(exc)))
            except OSError as exc:
                self._tell(Distrusted(model, desired, "storage", f"metadata cannot be kept: {exc.strerror}"))
            else:
                self._believed[model, kind] = desired
                self.verdicts.append(Believed(model, desired))
            del self._waiting[model, kind]
            self._given_up_s = math.inf
        self._asked, self._why_not, self._wait_s = None, "", FIRST_WAIT_S
        self._rest_s = now_s + REST_AFTER_S
        return []

    def rest(self) -> None:
        """Let go of what looking takes."""
        self._trust.rest()
        self._rest_s = math.inf

    def _look_at_s(self, time_s: float) -> None:
        self._is_to_look, self._again_s = True, time_s

    def _later(self, now_s: float) -> list[Request]:
        """It is not decided yet."""
        self._given_up_s = min(self._given_up_s, now_s + LONGEST_LOOK_S)
        if now_s >= self._given_up_s:
            raise NotJudgedError(f"whoever looks at it did not answer within {LONGEST_LOOK_S:g} s")
        self._look_at_s(now_s + LOOK_EVERY_S)
        return []

    def _not_judged(self, verdict: NotJudged, now_s: float) -> list[Request]:
        self._tell(verdict)
        self._trust.rest()
        self._why_not, self._given_up_s = verdict.detail, math.inf
        self._wait_s = min(2 * self._wait_s, LAST_WAIT_S)
        self._look_at_s(now_s + self._wait_s)
        return []

    def _tell(self, verdict: Distrusted | NotJudged) -> None:
        """Say so once: such a release may come again and again."""
        about = verdict.model, type(verdict.desired)
        if self._told.get(about) != verdict:
            self._told[about] = verdict
            self.verdicts.append(verdict)

    def _hand_in(self, at_hand: Mapping[str, Meta], name: str) -> None:
        """Take a document out of all that there are; DistrustError where that did not help before."""
        if name == self._asked:
            raise DistrustError("damaged", f"{name} cannot be read")
        self._asked = name
        self._trust.take(at_hand.get(name, Meta(name=name, size_bytes=0, data="")))

    def _ask(self, now_s: float, *, may_ask: bool) -> list[Request]:
        """Ask for what is missing; for the same again, as where what came cannot be read, after growing waits only."""
        self._given_up_s, self._is_to_look = math.inf, False
        if self._trust.missing != self._asked:
            self._asked, self._wait_s = self._trust.missing, FIRST_WAIT_S
        elif now_s < self._ask_again_s:
            self._again_s = self._ask_again_s
            return []
        else:
            self._wait_s = min(2 * self._wait_s, LAST_WAIT_S)
        self._again_s = now_s + self._wait_s
        self._ask_again_s = self._again_s if may_ask else -math.inf
        return [Request(op="meta", name=self._asked or "")] if may_ask else []


def _is_same(proved: Desired | Order | None, desired: Desired | Order) -> bool:
    """Whether this says what was proved, however its bytes travel now."""
    if isinstance(proved, Desired) and isinstance(desired, Desired):
        names = ["release", "kind", "digest", "size_bytes", "backbone", "model", "signature"]
    elif isinstance(proved, Order):
        names = ["number", "digest", "size_bytes", "backbone", "model", "signature"]
    else:
        return False
    return all(getattr(proved, name) == getattr(desired, name) for name in names)
