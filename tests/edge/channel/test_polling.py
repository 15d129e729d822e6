"""Sockets with numbers that `select` does not take."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Iterator

import paho.mqtt.client
import pytest

from edge.channel import polling
from edge.channel.mqtt import MqttTransport

NUMBER = 1500


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends, the first with a large number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * NUMBER)), hard))
    one, other = socket.socketpair()
    os.dup2(one.fileno(), NUMBER)
    one.close()
    with socket.socket(fileno=NUMBER) as large, other:
        yield large, other
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_large_number_is_waited_for_as_any(pair: tuple[socket.socket, socket.socket]) -> None:
    large, other = pair
    with pytest.raises(ValueError, match="out of range"):
        select.select([large], [], [], 0.0)
    assert polling.select([large], [], [], 0.0) == ([], [], [])
    assert polling.select([large, other], [large], [], 0.0) == ([], [large], [])
    other.send(b"x")
    assert polling.select([large, other], [other], [], 1.0) == ([large], [other], [])
    large.recv(1)
    other.close()
    assert polling.select([large], [], [], 1.0) == ([large], [], [])  # it hung up: to read says so


def test_what_is_no_socket_is_said_as_select_says_it() -> None:
    with socket.socket() as one:
        pass
    with pytest.raises(ValueError, match="closed"):
        polling.select([one], [], [], 0.0)
    with pytest.raises(TypeError):
        polling.select([None], [], [], 0.0)


def test_the_mqtt_client_waits_so() -> None:
    assert MqttTransport.__module__ == "edge.channel.mqtt"
    assert vars(paho.mqtt.client)["select"] is polling
