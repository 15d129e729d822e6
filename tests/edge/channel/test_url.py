"""Broker addresses."""

import pytest

from edge.channel.url import BrokerUrl
from edge.contract.errors import ConfigError


def test_reads_every_part(tmp_path):
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    url = BrokerUrl.parse(f"mqtts://me:p%40ss@broker.lan?ca={tmp_path}/ca&cert={tmp_path}/cert&key={tmp_path}/key")
    assert (url.host, url.port, url.tls, url.username, url.password) == ("broker.lan", 8883, True, "me", "p@ss")
    assert url.key == tmp_path / "key"
    assert BrokerUrl.parse("mqtt://[::1]:1884").port == 1884
    assert BrokerUrl.parse("mqtt://me:a@h", password="b").password == "b"


def test_websockets_have_a_path_and_ports_of_their_own():
    url = BrokerUrl.parse("ws://broker:9001")
    assert (url.websocket, url.tls, url.port, url.path, str(url)) == (
        True,
        False,
        9001,
        "/mqtt",
        "ws://broker:9001/mqtt",
    )
    url = BrokerUrl.parse("wss://me:secret@broker/a/b")
    assert (url.websocket, url.tls, url.port, url.path, str(url)) == (True, True, 443, "/a/b", "wss://broker:443/a/b")
    with pytest.raises(ConfigError):
        BrokerUrl.parse("ws://broker?ca=/etc/hosts")


def test_never_shows_the_password():
    url = BrokerUrl.parse("mqtt://me:secret@h")
    assert "secret" not in repr(url) + str(url)
    with pytest.raises(ConfigError) as caught:
        BrokerUrl.parse("http://me:secret@h")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "localhost:1883",
        "http://h",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://h:99999",
        "mqtt://h:x",
        "mqtt://h/topic",
        "mqtt://h?user=me",
        "mqtts://h?ca=/does/not/exist",
        "mqtt://h#x",
        "mqtt://[",
    ],
)
def test_refuses_other_things(text):
    with pytest.raises(ConfigError, match="broker address"):
        BrokerUrl.parse(text)


def test_refuses_certificates_without_tls_and_keys_without_certificates(tmp_path):
    (tmp_path / "x").touch()
    for text in (f"mqtt://h?ca={tmp_path}/x", f"mqtts://h?key={tmp_path}/x"):
        with pytest.raises(ConfigError):
            BrokerUrl.parse(text)


def test_several_places_are_one_address():
    url = BrokerUrl.parse("mqtts://me:a%2Cb@one.lan,two.lan:8884,[::1]?")
    assert [str(url.place(n)) for n in range(4)] == [
        "mqtts://one.lan:8883",
        "mqtts://two.lan:8884",
        "mqtts://[::1]:8883",
        "mqtts://one.lan:8883",
    ]
    assert {url.place(n).password for n in range(3)} == {"a,b"}
    assert BrokerUrl.parse("mqtt://one").others == ()
    for wrong in ("mqtt://one,", "mqtt://one,two:x", "mqtt://,two", "mqtt://one,two:99999"):
        with pytest.raises(ConfigError):
            BrokerUrl.parse(wrong)
