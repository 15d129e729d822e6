"""``--source`` and ``--answers`` of ``edge-agent run``: here transports are made."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.agent.sources.payloads import Source
    from edge.agent.sources.sinks import Sink
    from edge.channel.transport import Transport
    from edge.channel.url import BrokerUrl


def feeds_of(
    sources: Sequence[str], answers: Sequence[str], device: str, *, stdin: bool = False
) -> tuple[list[Source], list[Sink]]:
    """Sources and sinks, opened.

    Args:
        sources: As the command line names them.
        answers: The same, of where answers go.
        device: Name of the device.
        stdin: Whether requests are read from standard input.

    Raises:
        ConfigError: One is none, or cannot be used.
    """
    if not sources and not answers:
        return [], []
    if not sources:
        raise ConfigError("--answers: expected --source beside it; answers over the socket go to who asked")
    if list(sources).count("-") + stdin > 1:
        raise ConfigError("--source -: there is one standard input; name it once, and not with --stdin beside it")
    from edge.agent.service import standard_input
    from edge.agent.sources.specs import World, open_sink, open_source

    def connect(url: BrokerUrl, end: str, keep: bool) -> Transport:
        from edge.channel.mqtt import MqttTransport

        return MqttTransport(url, f"{device}-{end}", clean_start=not keep)

    world = World(connect=connect, clock_s=time.monotonic, stdin=standard_input(), stdout=sys.stdout.buffer)
    found = [open_source(text, i, world) for i, text in enumerate(sources)]
    return found, [open_sink(text, i, world) for i, text in enumerate(answers)]
