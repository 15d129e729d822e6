"""What a person writes: the plan, the query, the waves."""

from __future__ import annotations

import random

import pytest

from edge.contract.errors import ConfigError
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.plan import Plan, soak_s
from edge.coordinator.rollout.query import FIELDS, DeviceFacts, parse
from edge.coordinator.rollout.waves import shuffled, sizes, wave_of

DEFAULT = Plan(release=57)


def test_only_the_release_is_needed_and_a_plan_comes_back_as_it_was() -> None:
    found = plans.of_toml(b"release = 57")
    assert found == DEFAULT
    assert plans.of_document(plans.to_document(found)) == found
    whole = plans.of_toml(
        b"""
        release = 57
        select  = 'profile = "raspberry-pi-4" and tag.site ~ "north-*"'
        seed    = "x"
        use     = "compete"
        waves   = [5, 100, "25 %", "50 %", "100 %"]
        soak    = ["30 min", "1 d", "1 d", "1 d"]
        start   = { at = "2026-12-01T02:00:00+01:00", approvals = 0, join = false }
        on_stop = "revert"
        pace    = { transfers = 5, bytes_per_s = 0, device_mb_per_day = 0 }
        window  = ""
        deadline = { fetch = "1 d", activate = "7 d", probation = "2 h" }
        health  = { pause = [0.05, 2], revert = [0.20, 5], quorum = 0.5 }
        model   = { margin = 0.02, liars = 0.10, wait = "7 d", judge_by = ["site"] }
        """
    )
    assert plans.of_document(plans.to_document(whole)) == whole
    assert whole.start.at_ms == 1_796_086_800_000
    assert plans.of_toml(b'release = 57\nmodel = "off"').model.off


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        plans.of_toml(
            b"""
            release = 0
            selec = "x"
            waves = [5, "30 %x", -1]
            soak = ["3 fortnights"]
            use = "both"
            [health]
            pause = [2, 1]
            quorm = 0.5
            """
        )
    words = ("release", "did you mean 'select'", "waves[1]", "waves[2]", "soak[0]", "use", "health.pause", "'quorum'")
    assert [word for word in words if word not in str(told.value)] == []
    with pytest.raises(ConfigError) as told:
        plans.of_toml(
            b'release = 1\nselect = "profil = 1"\nwaves = [10, 5, "50 %"]\nwindow = "Mon"\n'
            b'start = { at = "tomorrow", approvals = 2 }'
        )
    words = ("'profile'", '"100 %"', "must not go down", "window", "start.at")
    assert [word for word in words if word not in str(told.value)] == []


@pytest.mark.parametrize("data", [b"", b"\xff", b"release = [", b"[" * 5000, b"release = 1\n" + b"#" * 20_000, b"x=1"])
def test_what_is_no_plan_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ConfigError, match="plan"):
        plans.of_toml(data)


CAMERA = DeviceFacts(
    id="cam-1", profile="raspberry-pi-4", release=57, online=True, heard_s=30.0, samples=80, tags={"site": "north-1"}
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ('profile = "raspberry-pi-4" and tag.site ~ "north-*"', True),
        ('profile = "x" or tag.site ~ "south-*"', False),
        ('tag.site != "south"', True),
        ('tag.none != "south"', False),
        ('not tag.none = "south"', True),
        ('tag.none in ("")', False),
        ('id in ("cam-2", "cam-1")', True),
        ("heard < 7 d and online = true", True),
        ("heard >= 1 min", False),
        ("release >= 57 and release < 58 and samples != 81", True),
        ('not (profile = "x" or online = false) and id ~ "cam-?"', True),
        # `and` binds more than `or`.
        ('id = "cam-1" or id = "x" and id = "y"', True),
        (r'id = "a\"b"', False),
    ],
)
def test_query_tests_devices(text: str, holds: bool) -> None:
    assert parse(text)(CAMERA) is holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('profil = "x"', "did you mean 'profile'"),
        ("heard < 7", "number and a unit"),
        ("release = 7 d", "a number for release"),
        ('online = "yes"', "true or false"),
        ("id < 5", "one of = != ~"),
        ("tag. = 5", "no field 'tag.'"),
        ('(id = "a"', "it ends"),
        ('id = "a" id', '"and" or "or"'),
        ("id in ()", "a text"),
        ("$", "at '$'"),
        ('id = "a', "expected"),
        ("(" * 100 + 'id = "a"', "parentheses"),
        ('id = "' + "a" * 2048 + '"', "at most 2048 bytes"),
        ("and", "no field 'and'"),
    ],
)
def test_what_is_no_query_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse(text)
    assert said in str(told.value)


def test_no_text_does_anything_but_be_a_query_or_be_refused() -> None:
    rng = random.Random(0)
    words = [
        *FIELDS,
        "and",
        "or",
        "not",
        "in",
        "(",
        ")",
        ",",
        "=",
        "!=",
        "<",
        "~",
        '"x"',
        "5",
        "7 d",
        "true",
        "tag.a",
        '"',
    ]
    for _ in range(3000):
        text = " ".join(rng.choices(words, k=rng.randint(1, 8)))
        try:
            found = parse(text)
        except ConfigError:
            continue
        assert isinstance(found(CAMERA), bool)


def test_waves_are_cumulative_capped_at_a_quarter_and_end_with_everybody() -> None:
    for n in (1, 2, 3, 4, 7, 10, 19, 20, 37, 60, 119, 200, 399, 2000, 100_003):
        found = sizes(n, DEFAULT.waves)
        counts = [count for count, _ in found]
        assert counts == sorted(set(counts))
        assert counts[-1] == n
        assert found[-1][1] == len(DEFAULT.waves) - 1
        assert len(found) == 1 or counts[0] <= max(1, n // 4)
        assert counts[0] <= 10
        assert {wave_of(place, found) for place in range(n)} == set(range(len(found)))
        assert wave_of(n + 5, found) == len(found) - 1, "who joins is of the last wave"
    assert sizes(0, DEFAULT.waves) == []


def test_order_is_of_the_seed_alone_and_each_device_is_as_likely_to_be_first() -> None:
    devices = [f"d{i}" for i in range(20)]
    assert shuffled(devices, "a") == shuffled(devices[::-1], "a")
    assert shuffled(devices, "a") != shuffled(devices, "b")
    firsts = [shuffled(devices, str(seed))[0] for seed in range(2000)]
    assert all(50 < firsts.count(device) < 160 for device in devices)


def test_soak_is_the_plans_and_that_of_a_small_fleet_is_none() -> None:
    assert [soak_s(DEFAULT, wave, 200) for wave in range(5)] == [1800.0, 86_400.0, 86_400.0, 86_400.0, 0.0]
    assert [soak_s(DEFAULT, wave, 3) for wave in range(5)] == [0.0] * 5
    given = plans.of_document({"release": 1, "soak": ["1 min", "2 min"]})
    assert [soak_s(given, wave, 3) for wave in range(5)] == [60.0, 120.0, 120.0, 120.0, 0.0]
