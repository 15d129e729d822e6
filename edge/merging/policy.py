"""How a fleet's contributions are merged, as its operator decides. Only values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edge.contract.errors import ConfigError

ROBUST_RULES = ("median", "trimmed-mean", "krum")
OPTIMIZER_RULES = ("fedadam", "fedyogi", "fedadagrad")
BY_TAG, BY_CLUSTER = "tag.", "cluster"
RULES = ("mean", *ROBUST_RULES, *OPTIMIZER_RULES)

# Of a tag's key and value: no more than a topic or a command line takes.
TAG = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_BY_TAG = re.compile(rf"tag\.{TAG}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePolicy:
    """How contributions are merged.

    Statistics are always summed; `screen` is about them, and all else about changes of heads.

    Attributes:
        rule: One of `RULES`: the mean weighted by samples, a robust rule of `edge.merging.robust`, or the mean with a
            step of `edge.merging.server_optimizers`.
        garbage_share: Share of devices that the robust rules assume to send garbage, from 0 up to one half; rounded up
            to whole devices.
        clip_norm: Longer changes are shortened to this norm, 0 for no limit.
        noise_multiplier: Noise on the sum of changes in units of `clip_norm`, 0 for none. Statistics are then left out
            of merges: there is no noise for them.
        privacy_delta: The delta for which the epsilon spent so far is stated.
        expected_devices: Devices that the noisy sum is divided by: those expected in a round, not those that came.
        server_rate: Step size of the server's optimizer.
        prior_samples: How many samples the shipped statistics are worth in a sum at the most. A device begins with 20;
            in a merge 100 were better for cameras outside it and for the old ones, and no worse for those in it
            (docs/learning.md). Where the shipped head is hardly ever right on what was learned they are worth 20, too,
            but not where labels mean nothing.
        min_samples: Labelled samples that a contribution must have behind it to be merged.
        min_merge_samples: Labelled samples that a merge must have behind it.
        merge_by: What divides the fleet into groups with a head each: "" for nothing, ``tag.KEY`` for the value of that
            tag, ``cluster`` for statistics that are alike.
        screen: Whether statistics that do not look like samples, or like those of other devices, are left out.
        merge_noised: Whether what devices told under noise is merged: nobody can say whether that looks like samples.

    Raises:
        ConfigError: A value is out of its range, or two do not go together; all faults in one message.
    """

    rule: str = "mean"
    garbage_share: float = 0.2
    clip_norm: float = 0.0
    noise_multiplier: float = 0.0
    privacy_delta: float = 1e-5
    expected_devices: int = 0
    server_rate: float = 0.1
    screen: bool = True
    prior_samples: float = 100.0
    min_samples: int = 10
    min_merge_samples: int = 20
    merge_by: str = ""
    merge_noised: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.rule not in RULES:
            faults.append(f"merge rule {self.rule!r}: expected one of {', '.join(RULES)}")
        if not 0 <= self.garbage_share < 0.5:
            faults.append(f"garbage share {self.garbage_share}: expected a number from 0 up to, not including, 0.5")
        for name, number in (("clip norm", self.clip_norm), ("noise multiplier", self.noise_multiplier)):
            if not 0 <= number < math.inf:
                faults.append(f"{name} {number}: expected 0 for none, or a number above it")
        if not 0 < self.privacy_delta < 1:
            faults.append(f"privacy delta {self.privacy_delta}: expected a number between 0 and 1")
        if self.expected_devices < 0:
            faults.append(f"expected devices {self.expected_devices}: expected a number from 1 up, or 0 without noise")
        if not 0 < self.server_rate < math.inf:
            faults.append(f"server rate {self.server_rate}: expected a number above 0")
        if not 0 < self.prior_samples < math.inf:
            faults.append(f"prior samples {self.prior_samples}: expected a number above 0")
        for name, number in (("min samples", self.min_samples), ("min merge samples", self.min_merge_samples)):
            if number < 1:
                faults.append(f"{name} {number}: expected a number from 1 up")
        if self.merge_by not in ("", BY_CLUSTER) and not _BY_TAG.fullmatch(self.merge_by):
            faults.append(f"merge by {self.merge_by!r}: expected tag.KEY, as in tag.model, or {BY_CLUSTER}")
        if self.merge_noised and self.merge_by == BY_CLUSTER:
            faults.append(f"contributions with noise and groups by {BY_CLUSTER}: expected one, they cannot be compared")
        if self.merge_by and (self.rule in OPTIMIZER_RULES or self.noise_multiplier > 0):
            faults.append("groups with noise or a server optimizer: expected neither, they go on from the whole fleet")
        if self.noise_multiplier > 0:
            if self.rule in ROBUST_RULES:
                faults.append(f"noise with the rule {self.rule}: expected mean or one of {', '.join(OPTIMIZER_RULES)}")
            if self.clip_norm == 0:
                faults.append("noise without a clip norm: expected one above 0, noise is measured in units of it")
            if self.expected_devices == 0:
                faults.append("noise without expected devices: expected how many take part in a merge, from 1 up")
        if faults:
            raise ConfigError("; ".join(faults))

    def n_garbage(self, n_devices: int) -> int:
        """Of so many devices, those that are assumed to send garbage."""
        return math.ceil(self.garbage_share * n_devices - 1e-9)
