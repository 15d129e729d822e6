"""Messages: every field survives, strangers' bytes are refused with the field's name."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.channel import messages as m
from edge.channel import topics
from edge.channel.codec import (
    MAX_MESSAGE_BYTES,
    decode,
    decode_offer,
    encode,
    encode_history,
    encode_offer,
    event_document,
    telemetry_document,
)
from edge.contract.errors import ChannelError

D = "0123456789abcdef" * 4
SAMPLES: dict[str, m.Message] = {
    topics.UP_CONN: m.Conn(online=True, session=812, boot=41, ts_ms=1795420800123, state_id=D[:16]),
    topics.UP_BIRTH: m.Birth(
        agent_version="0.1.0",
        boot=41,
        session=812,
        ts_ms=1795420800123,
        profile="raspberry-pi-4",
        hardware={"cores": 4, "ram_mb": 3792},
        bundle=D,
        backbone=D,
        head="",
        release=57,
        n_labels=120,
        limits={"window": 8},
        state_id=D,
    ),
    topics.UP_STATE: m.State(ts_ms=1, seq=7, slot="head", state="active", release=57, digest=D, detail="läuft"),
    topics.DN_DESIRED: m.Desired(
        release=58,
        kind="head",
        digest=D,
        size_bytes=70_000,
        chunk_size_bytes=65_536,
        index_digest=D,
        backbone=D,
        reason="round 3",
        ts_ms=1,
    ),
    topics.UP_REQ: m.Request(op="chunks", digest=D, part="data", want=((0, 3), (9, 9)), window=8),
    topics.upload_status_leaf(D[:16]): m.UploadStatus(have=((0, 3),), window=4, status="receiving"),
    topics.UP_EVENT: m.Event(ts_ms=1, name="drift", detail="p = 0.01"),
    topics.UP_TELE: m.Telemetry(values={"ts": 1795420800123, "lat_p50_ms": 8.1, "model": "kws"}),
    topics.DN_HIST: m.HistoryKept(batch=D[:16]),
    topics.DN_META: m.Meta(name="3.root.json", size_bytes=9, data="KLUv"),
    topics.DN_RESTORE: m.Restore(
        number=3, model="kws", digest=D, size_bytes=9, chunk_size_bytes=1024, index_digest=D, backbone=D, ts_ms=1
    ),
    topics.DN_CANDIDATE: m.Candidate(
        number=3, model="kws", digest=D, size_bytes=9, chunk_size_bytes=1024, index_digest=D, backbone=D, ts_ms=1
    ),
    topics.DN_CMD: m.Command(id="c1", name="sync", args={"now": True}, ttl_s=30.0),
    topics.UP_REPLY: m.Reply(id="c1", rc=-1, detail="busy", out={}),
}
OFFER = m.UploadOffer(
    kind="head-update", digest=D, size_bytes=70_000, chunk_size_bytes=65_536, backbone=D, version=1, n_samples=120
)
FIELDS = [
    (leaf, field.name)
    for leaf, message in SAMPLES.items()
    for field in dataclasses.fields(message)
    if field.name not in ("extra", "values")
]


def changed(leaf: str, **fields: object) -> bytes:
    return json.dumps({**json.loads(encode(SAMPLES[leaf])), **fields}).encode()


@pytest.mark.parametrize("leaf", SAMPLES)
def test_every_message_survives_the_wire(leaf):
    assert decode(leaf, encode(SAMPLES[leaf])) == SAMPLES[leaf]


def test_offer_survives_the_wire():
    assert decode_offer(encode_offer(OFFER)) == OFFER


@pytest.mark.parametrize("leaf", SAMPLES)
def test_a_message_cut_anywhere_is_refused(leaf):
    data = encode(SAMPLES[leaf])
    for end in range(len(data)):
        with pytest.raises(ChannelError):
            decode(leaf, data[:end])


@pytest.mark.parametrize(("leaf", "field"), FIELDS)
def test_a_field_of_a_wrong_type_is_named(leaf, field):
    with pytest.raises(ChannelError, match=rf"\.{field}(\[0\])?(\[0\])? must be"):
        decode(leaf, changed(leaf, **{field: [[["no"]]]}))


@pytest.mark.parametrize("leaf", [leaf for leaf in SAMPLES if leaf != topics.UP_TELE])
def test_unknown_fields_are_kept_and_written_back(leaf):
    message = decode(leaf, changed(leaf, future={"a": [1]}))
    assert message.extra == {"future": {"a": [1]}}
    assert decode(leaf, encode(message)) == message


def test_a_missing_field_is_named_and_a_field_with_a_default_may_be_missing():
    with pytest.raises(ChannelError, match=r"Conn\.session is missing"):
        decode(topics.UP_CONN, b'{"v":1,"online":true,"boot":1,"ts_ms":1}')
    assert decode(topics.UP_REQ, b'{"v":1,"op":"desired"}') == m.Request(op="desired")


@pytest.mark.parametrize("v", [0, 2, True, "1", None, 1.0])
def test_another_version_is_refused(v):
    with pytest.raises(ChannelError, match=r"Conn\.v"):
        decode(topics.UP_CONN, changed(topics.UP_CONN, v=v))


@pytest.mark.parametrize(
    ("leaf", "fields"),
    [
        (topics.UP_CONN, {"session": -1}),
        (topics.UP_CONN, {"session": True}),
        (topics.UP_CONN, {"online": 1}),
        (topics.UP_CONN, {"state_id": "../../etc/passwd"}),
        (topics.UP_CONN, {"state_id": "0" * 65}),
        (topics.UP_STATE, {"slot": "kernel"}),
        (topics.DN_DESIRED, {"digest": ""}),
        (topics.DN_DESIRED, {"digest": "../../etc/passwd"}),
        (topics.DN_DESIRED, {"digest": D.upper()}),
        (topics.UP_REQ, {"want": [[3, 1]]}),
        (topics.UP_REQ, {"want": [[-1, 1]]}),
        (topics.UP_REQ, {"want": [[0, 1.0]]}),
        (topics.UP_REQ, {"want": [[0, 1]] * 1025}),
        (topics.DN_CMD, {"ttl_s": -1}),
        (topics.DN_HIST, {"batch": D}),
        (topics.DN_HIST, {"batch": ""}),
        (topics.UP_EVENT, {"seq": -1}),
    ],
)
def test_values_out_of_range_are_refused(leaf, fields):
    with pytest.raises(ChannelError, match=next(iter(fields))):
        decode(leaf, changed(leaf, **fields))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'{"v":1,"v":1,"online":true,"session":1,"boot":1,"ts_ms":1}',
        b'{"v":1,"online":true,"session":NaN,"boot":1,"ts_ms":1}',
        b'{"v":1,"online":true,"session":1,"boot":1,"ts_ms":9223372036854775808}',
        b'{"v":1,"online":true,"session":1,"boot":1,"ts_ms":1,"x":1e999}',
        b'{"a":' * 100_000,
        b'{"v":1,"x":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"v":1,"x":"\xff"}',
        b'{"v":1,"pad":"' + b"x" * MAX_MESSAGE_BYTES + b'"}',
    ],
    ids=range(11),
)
def test_hostile_json_is_refused(payload):
    with pytest.raises(ChannelError, match="Conn"):
        decode(topics.UP_CONN, payload)


@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=200))
def test_random_bytes_never_crash(leaf, payload):
    with contextlib.suppress(ChannelError):
        decode(leaf, payload)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw of text loads Unicode tables
@given(
    st.sampled_from([leaf for leaf in SAMPLES if leaf != topics.UP_TELE]),
    st.dictionaries(
        st.sampled_from([name for _, name in FIELDS] + ["v", "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=3,
    ),
)
def test_random_values_are_refused_or_can_be_written_again(leaf, fields):
    with contextlib.suppress(ChannelError):
        message = decode(leaf, changed(leaf, **fields))
        assert decode(leaf, encode(message)) == message


@pytest.mark.parametrize("leaf", ["up/nothing", topics.frame_leaf(D[:16]), topics.upload_leaf(D[:16])])
def test_leaves_without_messages_are_refused(leaf):
    with pytest.raises(ChannelError, match="carries a message"):
        decode(leaf, encode(SAMPLES[topics.UP_CONN]))


def test_telemetry_is_flat_plain_numbers_without_envelope():
    values = {"a": float("nan"), "b": float("inf"), "c": np.float32(0.5), "d": np.int64(3), "e": True, "f": "kws"}
    assert json.loads(encode(m.Telemetry(values=values))) == {"c": 0.5, "d": 3, "e": 1, "f": "kws"}


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}])
def test_telemetry_that_is_not_flat_is_refused(value):
    with pytest.raises(ChannelError, match=r"Telemetry\.x"):
        decode(topics.UP_TELE, json.dumps({"x": value}).encode())


def test_a_long_detail_is_cut_and_a_large_message_refused():
    message = decode(topics.UP_EVENT, encode(m.Event(ts_ms=1, name="e", detail="x" * 99_999)))
    assert isinstance(message, m.Event)
    assert len(message.detail) == 500
    with pytest.raises(ChannelError, match="at most"):
        encode(m.Command(id="1", name="x", args={"a": "x" * MAX_MESSAGE_BYTES}, ttl_s=1.0))
    with pytest.raises(ChannelError, match="JSON can hold"):
        encode(m.Command(id="1", name="x", args={"a": object()}, ttl_s=1.0))


def test_examples_in_the_documentation_are_true():
    page = pathlib.Path(__file__).parents[3].joinpath("docs/protocol.md").read_text()
    lines = re.findall(r"^(edge/v1/\S+) ([\[{].*[\]}])$", page, re.MULTILINE)
    assert {decode(topics.parse(topic).leaf, text.encode()).__class__ for topic, text in lines} == {
        m.History,
        *(type(message) for message in SAMPLES.values()),
    }


def test_history_is_an_array_of_telemetry_and_events_and_nothing_else():
    event = m.Event(ts_ms=5, name="drift", detail="p", model="kws", boot=3, seq=9, state_id=D[:16])
    values = {"ts": 4, "seq": 1, "boot": 3, "state_id": D[:16], "experts": {"a": [1.0, 0.5, 3]}}
    payload = encode_history([event_document(event), telemetry_document(m.Telemetry(values=values))])
    assert json.loads(payload)[0]["event"] == "drift"
    assert decode(topics.UP_HIST, payload) == m.History(
        telemetry=(values,), events=(event,), batch=hashlib.sha256(payload).hexdigest()[:16]
    )
    alone = b'[{"ts":1,"event":"x"'
    for wrong in (
        b"", b"{}", b"[1]", b"[[]]", b"[null]", b'[{"a":[]}]', b'[{"a":1,"a":2}]', b'[{"event":1,"ts":1}]',
        b'[{"event":"x"}]', alone + b',"seq":-1}]', alone + b',"boot":1.5}]', alone + b',"state_id":"../.."}]',
        b"[" * 50 + b"]" * 50, b'["' + b"x" * 33_000 + b'"]', payload[:-1], b'[{"a":NaN}]',
    ):  # fmt: skip
        with pytest.raises(ChannelError, match=r"History|Telemetry"):
            decode(topics.UP_HIST, wrong)


@given(st.binary(max_size=200))
def test_random_bytes_as_history_never_crash(payload):
    with contextlib.suppress(ChannelError):
        decode(topics.UP_HIST, b"[" + payload + b"]")


def test_telemetry_of_experts_is_by_name_weight_accuracy_and_labels():
    values = {
        "acc": 0.5,
        "experts": {"merged": [np.float32(0.5), 0.875, np.int64(40)], "shipped": (0.5, float("nan"), 0)},
    }
    message = decode(topics.UP_TELE, encode(m.Telemetry(values=values)))
    assert isinstance(message, m.Telemetry)
    assert message.values["experts"] == {"merged": [0.5, 0.875, 40], "shipped": [0.5, 0, 0]}
    for wrong in ([1], {"a": 1}, {"a": [1, 2]}, {"a": [1, 2, "3"]}, {"a": [1, 2, -3]}, {"a": [1, 2, True]}):
        with pytest.raises(ChannelError, match="by name"):
            decode(topics.UP_TELE, json.dumps({"experts": wrong}).encode())
