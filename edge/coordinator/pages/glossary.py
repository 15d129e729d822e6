"""Words that pages use for things of their own, and what they mean; `docs/glossary.md` says the same.

Each has a place on the page of words, to which headings and states lead.
"""

from __future__ import annotations

from collections.abc import Mapping

# By the name of the place: the word, and what it means.
WORDS: Mapping[str, tuple[str, str]] = {
    "bundle": (
        "bundle",
        "The file that edge-convert writes. Its id is the digest of its manifest: edge-bundle verify, "
        "devices, releases and pages show the same 12 digits.",
    ),
    "backbone": (
        "backbone",
        "The part of a model that does not learn. What devices learned on one backbone can be merged; it has "
        "a digest of its own, since two bundles may share it.",
    ),
    "head": (
        "head",
        "The last part of a model, which learns. A device has several that compete; where one head is shown, "
        "it is the one with the most say in its answers when it said so last, by the digest of its "
        "parameters. As far as labels count, the share of the trusted past is not added to the head that it is a copy "
        "of.",
    ),
    "shipped": (
        "shipped",
        "As it came with the bundle, before anything was learned.",
    ),
    "statistics": (
        "statistics, lifted, sgd",
        "Heads that a device itself learns from its labels, each by a method of that name.",
    ),
    "merged": (
        "merged",
        "The head that was made of what several devices learned, as it came.",
    ),
    "on-merge": (
        "statistics on merge, sgd on merge",
        "Heads that learn on from the merged one, with this device's own labels.",
    ),
    "trusted": (
        "trusted",
        "A copy of the head that was believed most while labels agreed with it; the device falls back to it "
        "when new labels contradict all others.",
    ),
    "say": (
        "the say",
        "How much a head counts in the answer of the device, in percent of all its heads. Late labels move "
        "it: who is right gains.",
    ),
    "late-labels": (
        "late labels",
        "Labels that came after the device had answered, so that they can tell how right each head was.",
    ),
    "competes": (
        "competes",
        "The head is one of those that the device asks; nothing has shown yet that it is better or worse than "
        "the others, and its share of the say follows the late labels.",
    ),
    "slot": (
        "slot",
        "Where a release stands on a device: idle, fetching, verified, held, staged, probation, active, or "
        "how it ended (failed, refused, rolled back).",
    ),
    "probation": (
        "probation",
        "The release answers, and is watched: after failures or worse answers the device goes back by itself.",
    ),
    "active": (
        "active",
        "The release passed probation on this device. That says that nothing went wrong, not that it answers "
        "better: where nothing could be compared it says not judged.",
    ),
    "held": (
        "held",
        "A head that answers most samples otherwise than what runs, while no labels vouch for it: it waits. A "
        "rollout is held when nothing can tell whether its release is good.",
    ),
    "staged": (
        "staged",
        "Fetched and tried, and waiting to be activated.",
    ),
    "dealt-with": (
        "dealt with",
        "The device has settled the release: it runs it, or has tried it and gone back or refused it, and "
        "will not take it again.",
    ),
    "release": (
        "release",
        "A numbered bundle or head that devices should run; a higher number replaces a lower one.",
    ),
    "rollout": (
        "rollout, wave, gate",
        "How a release goes out: to one group of devices (wave) after the other, and after each a gate looks "
        "whether it may go on.",
    ),
    "pairs": (
        "labelled pairs",
        "Samples with a label that a device had both the old and the new head answer.",
    ),
    "judge": (
        "judges",
        "Devices that agree to try a head that nobody runs yet on their last labels; they send counts, and the middle "
        "of them decides whether it goes out.",
    ),
    "contribution": (
        "contribution",
        "What a device sends of what it learned: sums or changes, never samples.",
    ),
    "lineage": (
        "lineage",
        "The random name of one learned state. It goes with the state folder, so that labels are counted "
        "once, whatever the device is called.",
    ),
    "left-out-in-turn": (
        "left out in turn",
        "What a merge would give a device if it were made of the others only: so one can estimate what a device "
        "gains that has no labels. It is asked for classes that the others have met, and follows from mean and spread "
        "of samples: nothing was counted.",
    ),
    "left-out": (
        "left out",
        "A contribution that a merge does not take in: it differs from all others in a way that harms them.",
    ),
    "drift": (
        "drift",
        "The error on late labels rose, or the inputs changed.",
    ),
    "online": (
        "online",
        "The device said so, was heard in time, and the coordinator has a working line to the broker.",
    ),
    "silent": (
        "silent",
        "It says to be online, and was not heard for three of its telemetry intervals.",
    ),
    "not-known": (
        "not known",
        "The coordinator has no line to the broker, or has not heard the device since it has one: whether the "
        "device is online cannot be told.",
    ),
    "quarantined": (
        "quarantined",
        "Heard, but offered nothing and not merged until a person approves it: two devices had one name, or "
        "somebody put it there.",
    ),
    "question": (
        "question",
        "A sample whose class a person is asked for once, since several devices have one like it: the answer "
        "becomes a label on all of them.",
    ),
}


def meaning(place: str) -> str:
    """What a word means; "" for one that is not explained."""
    return WORDS[place][1] if place in WORDS else ""
