"""The states of a slot (``head`` or ``bundle``) on a device: one table, one line per (state, event).

Theory of operation. A release is offered; the device fetches what it lacks, verifies it by digest, stages it (opens it
and tries it without using it), activates it and watches it for a while (probation). Only then is it ``active``: a
coordinator counts that, never "delivered". Whatever goes wrong before activation leaves the live model untouched and
ends in ``failed`` or ``refused``; whatever goes wrong after it ends in ``rolled-back``, with the previous model live
again. A newer offer may come at any time except during the activation itself, which is one step.

A release may be made to wait when it is staged, and may be withdrawn before it is activated.

A head that answers most samples otherwise than what is live, and that no labels vouch for, is ``held``: it waits, and
is looked at again when labels come. Nobody judged it, so it is neither active nor refused.

Fetching has no deadline: a slow line makes it slow, and it is reported. The steps from ``verified`` to ``probation``
are one call each; probation ends by a number of labels or by its deadline. An event that is not in the table is a
programming error: it raises, and the state stays.
"""

from __future__ import annotations

from enum import StrEnum

from edge.contract.errors import RolloutError


class SlotState(StrEnum):
    """Where a slot stands, as reported on ``up/state``."""

    IDLE = "idle"
    OFFERED = "offered"
    FETCHING = "fetching"
    VERIFIED = "verified"
    STAGED = "staged"
    HELD = "held"
    ACTIVATING = "activating"
    PROBATION = "probation"
    ACTIVE = "active"
    FAILED = "failed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled-back"


class SlotEvent(StrEnum):
    """What happened."""

    OFFER_RECEIVED = "offer received"
    FETCH_STARTED = "fetch started"
    DIGEST_VERIFIED = "digest verified"
    TRIAL_PASSED = "trial passed"
    HELD = "held"
    ACTIVATION_STARTED = "activation started"
    ACTIVATED = "activated"
    PROBATION_PASSED = "probation passed"
    FAILED = "failed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    WITHDRAWN = "withdrawn"


S, E = SlotState, SlotEvent

TRANSITIONS: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (S.IDLE, E.OFFER_RECEIVED): S.OFFERED,
    (S.ACTIVE, E.OFFER_RECEIVED): S.OFFERED,
    (S.FAILED, E.OFFER_RECEIVED): S.OFFERED,
    (S.REFUSED, E.OFFER_RECEIVED): S.OFFERED,
    (S.ROLLED_BACK, E.OFFER_RECEIVED): S.OFFERED,
    # A newer release overtakes the one that is on its way; one in probation has done nothing wrong so far.
    (S.OFFERED, E.OFFER_RECEIVED): S.OFFERED,
    (S.FETCHING, E.OFFER_RECEIVED): S.OFFERED,
    (S.VERIFIED, E.OFFER_RECEIVED): S.OFFERED,
    (S.STAGED, E.OFFER_RECEIVED): S.OFFERED,
    (S.HELD, E.OFFER_RECEIVED): S.OFFERED,
    (S.PROBATION, E.OFFER_RECEIVED): S.OFFERED,
    (S.OFFERED, E.FETCH_STARTED): S.FETCHING,
    (S.OFFERED, E.REFUSED): S.REFUSED,
    (S.FETCHING, E.DIGEST_VERIFIED): S.VERIFIED,
    (S.FETCHING, E.FAILED): S.FAILED,
    (S.VERIFIED, E.TRIAL_PASSED): S.STAGED,
    (S.VERIFIED, E.REFUSED): S.REFUSED,
    (S.VERIFIED, E.FAILED): S.FAILED,
    (S.VERIFIED, E.HELD): S.HELD,
    (S.HELD, E.TRIAL_PASSED): S.STAGED,
    (S.HELD, E.REFUSED): S.REFUSED,
    (S.STAGED, E.ACTIVATION_STARTED): S.ACTIVATING,
    (S.ACTIVATING, E.ACTIVATED): S.PROBATION,
    (S.ACTIVATING, E.FAILED): S.FAILED,
    (S.PROBATION, E.PROBATION_PASSED): S.ACTIVE,
    (S.PROBATION, E.ROLLED_BACK): S.ROLLED_BACK,
    (S.OFFERED, E.WITHDRAWN): S.IDLE,
    (S.FETCHING, E.WITHDRAWN): S.IDLE,
    (S.VERIFIED, E.WITHDRAWN): S.IDLE,
    (S.STAGED, E.WITHDRAWN): S.IDLE,
    (S.HELD, E.WITHDRAWN): S.IDLE,
    (S.ACTIVE, E.ROLLED_BACK): S.ROLLED_BACK,  # somebody on the device asked for it
}


def transition(state: SlotState, event: SlotEvent) -> SlotState:
    """The state after an event.

    Raises:
        RolloutError: The event cannot happen in this state.
    """
    if (state, event) not in TRANSITIONS:
        raise RolloutError(f"a slot that is {state} cannot take the event {event!r}")
    return TRANSITIONS[state, event]
