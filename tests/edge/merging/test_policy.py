"""What operators may ask of merges."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edge.contract.errors import ConfigError
from edge.merging.policy import RULES, MergePolicy


def test_without_options_it_is_the_screened_mean_without_noise() -> None:
    policy = MergePolicy()
    assert (policy.rule, policy.screen, policy.noise_multiplier, policy.clip_norm) == ("mean", True, 0.0, 0.0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_can_be_asked_for(rule: str) -> None:
    assert MergePolicy(rule=rule, clip_norm=1.0).rule == rule


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "best"}, "expected one of mean, median"),
        ({"garbage_share": 0.5}, "garbage share 0.5: expected"),
        ({"garbage_share": -0.1}, "garbage share -0.1: expected"),
        ({"garbage_share": math.nan}, "garbage share nan: expected"),
        ({"clip_norm": -1.0}, "clip norm -1.0: expected"),
        ({"clip_norm": math.inf}, "clip norm inf: expected"),
        ({"noise_multiplier": -1.0}, "noise multiplier -1.0: expected"),
        ({"privacy_delta": 1.0}, "privacy delta 1.0: expected"),
        ({"expected_devices": -1}, "expected devices -1: expected"),
        ({"server_rate": 0.0}, "server rate 0.0: expected"),
        ({"noise_multiplier": 1.0, "expected_devices": 3}, "noise without a clip norm: expected"),
        ({"noise_multiplier": 1.0, "clip_norm": 1.0}, "noise without expected devices: expected"),
        (
            {"noise_multiplier": 1.0, "clip_norm": 1.0, "expected_devices": 3, "rule": "krum"},
            "noise with the rule krum: expected mean",
        ),
    ],
)
def test_bad_values_are_refused_with_what_was_expected(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MergePolicy(**options)


def test_all_faults_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"merge rule .*; garbage share .*; server rate "):
        MergePolicy(rule="x", garbage_share=2.0, server_rate=-1.0)


@pytest.mark.parametrize(("share", "n", "expected"), [(0.2, 1, 1), (0.2, 5, 1), (0.2, 6, 2), (0.0, 9, 0), (0.1, 30, 3)])
def test_garbage_is_counted_in_whole_devices_rounded_up(share: float, n: int, expected: int) -> None:
    assert MergePolicy(garbage_share=share).n_garbage(n) == expected
