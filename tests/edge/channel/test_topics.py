"""Topics: what is written is read, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.channel import topics
from edge.channel.topics import Topic, build, check_id, parse
from edge.contract.errors import ChannelError, ConfigError

LEAVES = [
    topics.UP_CONN,
    topics.UP_TELE,
    topics.DN_DESIRED,
    topics.frame_leaf("0123456789abcdef"),
    topics.upload_leaf("0123456789abcdef"),
    topics.upload_status_leaf("0123456789abcdef"),
]


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("device", ["pi-7", topics.ALL, "0", "a" * 64])
def test_parse_reads_what_build_writes(leaf, device):
    assert parse(build("lab", device, leaf)) == Topic(fleet="lab", device=device, leaf=leaf)


@pytest.mark.parametrize("text", ["", "A", "a/b", "a+", "#", "a" * 65, "ü", "a_b", "a\n", "..", "all", "a\0"])
def test_refuses_what_is_no_identifier(text):
    with pytest.raises(ConfigError, match="device id"):
        check_id(text, "device")


def test_hint_is_an_identifier():
    with pytest.raises(ConfigError, match="try 'my-pi-4'"):
        check_id("My Pi/4", "device")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edge/v1/lab/pi",
        "edge/v2/lab/pi/up/tele",
        "edge/v1/lab/pi/sideways/x",
        "edge/v1/lab/+/up/tele",
        "/edge/v1/lab/pi/up/tele",
        "edge/v1/lab/pi/up/tele/",
        "edge/v1/lab/pi/up/#",
        "edge/v1/LAB/pi/up/tele",
        "edge/v1/lab/pi/up/tele\n",
        "edge/v1/lab/pi/up/a/b/c/d",
        "edge/v1/lab/pi/dn/f/../x",
    ],
)
def test_refuses_foreign_topics(topic):
    with pytest.raises(ChannelError, match="topic"):
        parse(topic)


@given(st.text(max_size=60))
def test_random_text_is_refused_or_survives_the_way_back(text):
    try:
        topic = parse(text)
    except ChannelError:
        return
    assert "/".join([topics.ROOT, topic.fleet, topic.device, topic.leaf]) == text


def test_a_coordinator_is_not_mistaken_for_a_device():
    for way in ("up", "dn"):
        probe = topics.coordinator_probe("lab", way, "c1")
        assert topics.is_probe(probe)
        with pytest.raises(ChannelError):
            parse(probe)
    assert not topics.is_probe("edge/v1/lab/c/up/probe/c1")


def test_filters_are_two_rules_for_a_device_and_two_for_a_coordinator():
    assert topics.device_filters("lab", "pi") == [("edge/v1/lab/pi/dn/#", 1), ("edge/v1/lab/all/dn/#", 1)]
    assert topics.coordinator_filters("lab") == [("edge/v1/lab/+/up/#", 1), ("edge/v1/lab/_c/dn/#", 1)]


def test_transfer_is_read_from_the_leaf():
    for leaf in (topics.frame_leaf, topics.upload_leaf, topics.upload_status_leaf):
        assert topics.transfer_of(leaf("ab")) == "ab"
    assert topics.transfer_of(topics.UP_TELE) is None


def test_longest_topic_has_at_most_seven_slashes():
    assert max(build("f", "d", leaf).count("/") for leaf in LEAVES) <= 7
