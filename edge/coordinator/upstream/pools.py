"""What a site gives the coordinator above, and what it has from there; all of it in the database.

Up goes the sum of what its devices learned, one contribution for each backbone, with a version that only goes up. Down
comes the merge of all sites. What this site had in it is subtracted, so that the site's own next merge is the sum of
what is known elsewhere and of what its devices have by now: cut off from above it goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.digest import sha256
from edge.contract.errors import EdgeError, LearningError
from edge.coordinator.records import Contribution
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.merging.pooling import Elsewhere, elsewhere, pooled

_KEY = "upstream"
# Contributions that a merge from above may still have in it.
MOST_KEPT = 16
# Releases from above that may still be taken back.
MOST_MADE = 256
# Devices that count elsewhere; the oldest are forgotten, and are told anew where that was wrong.
MOST_LEFT = 20_000


class Pools:
    """See the module.

    Args:
        store: The database.
        artifacts: Files by digest.
        new_id: A random identity, 32 hexadecimal digits.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, new_id: Callable[[], str]) -> None:
        self._store = store
        self._artifacts = artifacts
        self._new_id = new_id
        self._elsewhere: dict[tuple[str, str], Elsewhere] = {}  # by digests of the merge and of what was ours in it

    # What is kept

    def read(self) -> dict[str, Any]:
        """All that is kept, made where there is nothing yet."""
        text = self._store.rollouts.setting(_KEY)
        if text:
            found: dict[str, Any] = json.loads(text)
            return found
        made = {"state_id": self._new_id(), "boot": 0, "session": 0, "of": {}, "left": {}, "models": {}}
        self.write(made)
        return made

    def write(self, document: dict[str, Any]) -> None:
        """Keep it."""
        self._store.rollouts.set(_KEY, json.dumps(document))

    def _of(self, document: dict[str, Any], backbone: str) -> dict[str, Any]:
        """What is kept for a backbone: lineage, contributions, the merge from above, and heads of changes."""
        empty = {"lineage": self._new_id(), "sent": [], "above": None, "base": [0, 0]}
        found: dict[str, Any] = document["of"].setdefault(backbone, empty)
        return found

    # For merges here

    def counts(self, row: Contribution, now: Now) -> bool:
        """Whether a contribution counts here, and not at another site that its device moved to or from."""
        left = self.read()["left"].get(row.lineage)
        return left is None or row.version > left[0] or 0 < left[1] <= now.wall_ms

    def leave(self, lineages: dict[str, int], again_s: float, now: Now) -> None:
        """Leave contributions up to these versions out: they are counted elsewhere.

        Args:
            lineages: By lineage, the version; 0 for what counts here again.
            again_s: Try again after this; 0 for never.
            now: The time.
        """
        document = self.read()
        left = document["left"]
        for lineage, version in lineages.items():
            left.pop(lineage, None)  # to the end: the oldest go first
            if version:
                left[lineage] = [version, now.wall_ms + round(1000 * again_s) if again_s else 0]
        document["left"] = dict(list(left.items())[-MOST_LEFT:])
        self.write(document)

    def returns_ms(self) -> int:
        """When the first of those that were left out for a while is tried again, ms since 1970; 0 for never."""
        return min((until for _, until in self.read()["left"].values() if until), default=0)

    def knows(self, backbone: str) -> bool:
        """Whether there is a merge of statistics from above."""
        return self.read()["of"].get(backbone, {}).get("above") is not None

    def is_news(self, backbone: str) -> bool:
        """Whether no merge here has the newest one from above in it."""
        above = self.read()["of"].get(backbone, {}).get("above")
        return above is not None and not above["in"]

    def elsewhere(self, bundle: Bundle) -> Elsewhere | None:
        """What the rest of the fleet has learned; None while nothing is known of it, or where that is gone."""
        kept = self.read()["of"].get(bundle.manifest.backbone_digest)
        if kept is None or kept["above"] is None:
            return None
        key = kept["above"]["head"], kept["above"]["own"]
        if key not in self._elsewhere:
            try:
                release = HeadRelease.decode(self._artifacts.get(key[0]).path.read_bytes(), "the merge from above")
                own = self._contribution(key[1]) if key[1] else None
                self._elsewhere = {key: elsewhere(bundle, release, kept["lineage"], own)}
            except (EdgeError, OSError):  # the next one will come
                return None
        return self._elsewhere[key]

    def merged(self, backbone: str, counter: int) -> None:
        """A release here has the newest merge from above in it."""
        document = self.read()
        above = document["of"].get(backbone, {}).get("above")
        if above is not None and not above["in"]:
            above["in"] = counter
            self.write(document)

    def release_of(self, backbone: str, counter: int) -> int:
        """The release here that has a merge from above in it; 0 while there is none.

        Args:
            backbone: Of the merge.
            counter: Of its release above.
        """
        above = self.read()["of"].get(backbone, {}).get("above")
        return int(above["in"]) if above is not None and above["release"] == counter else 0

    def made(self, above: int, here: int) -> None:
        """A release from above goes to the devices as one of this site: what takes it back has to name that."""
        document = self.read()
        found = document.get("made", {}) | {str(above): here}
        document["made"] = dict(list(found.items())[-MOST_MADE:])
        self.write(document)

    def made_of(self, above: int) -> int:
        """The release here that a release from above became; 0 where it became none."""
        return int(self.read().get("made", {}).get(str(above), 0))

    # Up

    def compose(self, bundle: Bundle, inside: Sequence[tuple[Contribution, HeadUpdate]], now: Now) -> None:
        """Make one contribution of those of the devices, where that is another one than the last.

        Args:
            bundle: Of their backbone.
            inside: What counts here; of changes only those are taken that start from the newest head.
            now: The time.
        """
        document = self.read()
        kept = self._of(document, bundle.manifest.backbone_digest)
        updates = [(row.device, update) for row, update in inside if update.learner == "statistics"]
        above, here = 0, 0
        if not updates:
            above, here = kept["base"]
            updates = [
                (row.device, update)
                for row, update in inside
                if update.learner == "delta" and update.base_release == here and update.n_samples
            ]
        last = kept["sent"][-1] if kept["sent"] else None
        if last is None and not updates:
            return
        version = max(now.wall_ms, 1 + (last["version"] if last else 0))
        if updates:
            made = pooled(
                bundle, updates, lineage=kept["lineage"], version=version, state_id=document["state_id"],
                base_release=above,
            )  # fmt: skip
        elif last is not None and last["samples"] and (before := self._contribution(last["digest"])).parts:
            # All that was in it is forgotten, or moved away: nothing is what it says from now on.
            nothing = {name: array * 0 for name, array in before.tensors.items()}
            made = replace(before, version=version, n_samples=0, tensors=nothing, parts={})
        else:
            return
        if last is not None:
            same = replace(made, version=last["version"]).encode()
            if sha256(same) == last["digest"]:
                self._artifacts.put(same)  # it may be gone, as after a restored backup
                return
        data = made.encode()
        sent = {"version": version, "digest": self._artifacts.put(data).digest, "samples": made.n_samples}
        kept["sent"] = [*kept["sent"], sent]
        in_use = {each["above"]["own"] for each in document["of"].values() if each["above"]}
        gone = [each for each in kept["sent"][:-MOST_KEPT] if each["digest"] not in in_use]
        kept["sent"] = [each for each in kept["sent"] if each not in gone]
        self.write(document)
        for each in gone:
            self._artifacts.remove(each["digest"])

    def newest(self, backbone: str) -> tuple[int, bytes] | None:
        """The newest contribution, its version and its bytes; None while there is none."""
        sent = self.read()["of"].get(backbone, {}).get("sent")
        if not sent:
            return None
        try:
            return sent[-1]["version"], self._artifacts.get(sent[-1]["digest"]).path.read_bytes()
        except (EdgeError, OSError):  # it is made anew
            return None

    def samples(self, backbone: str) -> int:
        """Labelled samples in the newest contribution."""
        sent = self.read()["of"].get(backbone, {}).get("sent")
        return int(sent[-1]["samples"]) if sent else 0

    def backbones(self) -> list[str]:
        """Of which there are contributions."""
        return sorted(backbone for backbone, kept in self.read()["of"].items() if kept["sent"])

    def _contribution(self, digest: str) -> HeadUpdate:
        return HeadUpdate.decode(self._artifacts.get(digest).path.read_bytes(), "what was sent up")

    # Down

    def take(self, bundle: Bundle, release: HeadRelease, counter: int) -> None:
        """Take the merge of all sites.

        Args:
            bundle: Of its backbone.
            release: It, a merge of statistics.
            counter: Of it above.

        Raises:
            LearningError: It cannot be used: it is of other shapes, or what was ours in it is not known any more.
        """
        document = self.read()
        kept = self._of(document, bundle.manifest.backbone_digest)
        own = self._ours(kept, release)
        contribution = self._contribution(own) if own else None
        elsewhere(bundle, release, kept["lineage"], contribution)  # raises where that cannot be
        head = self._artifacts.put(release.encode()).digest
        kept["above"] = {"head": head, "own": own, "release": counter, "in": 0}
        self.write(document)

    def expanded(self, backbone: str, release: HeadRelease) -> HeadRelease:
        """A merge of changes for the devices here: for this site, which they know nothing of, it names them.

        Raises:
            LearningError: What was ours in it is not known any more.
        """
        kept = self._of(self.read(), backbone)
        own = self._ours(kept, release)
        included = {each: version for each, version in release.included.items() if each != kept["lineage"]}
        return replace(release, included=included | (dict(self._contribution(own).parts) if own else {}))

    def _ours(self, kept: dict[str, Any], release: HeadRelease) -> str:
        """What this site had in a merge, by digest; "" for nothing."""
        version = release.included.get(kept["lineage"])
        if version is None:
            return ""
        found = [str(each["digest"]) for each in kept["sent"] if each["version"] == version]
        try:
            return self._artifacts.get(found[0]).digest
        except (EdgeError, IndexError) as exc:
            raise LearningError(
                "what this site had in the merge is not known here any more; the next one will do"
            ) from exc

    def begin_from(self, backbone: str, above: int, here: int) -> None:
        """Changes start from here on from this head: its counter above, and here."""
        document = self.read()
        self._of(document, backbone)["base"] = [above, here]
        self.write(document)
