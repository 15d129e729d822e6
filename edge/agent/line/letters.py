"""What an agent publishes, with the topic of its device."""

from __future__ import annotations

from edge.agent.config import AgentConfig
from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.messages import Message
from edge.channel.transport import Publish


def letter(
    config: AgentConfig,
    leaf: str,
    content: Message | bytes,
    *,
    qos: int,
    retain: bool = False,
    expiry_s: int | None = None,
) -> Publish:
    """A message, or a frame, on a leaf of this device."""
    payload = content if isinstance(content, bytes) else encode(content)
    topic = topics.build(config.fleet, config.device, leaf)
    return Publish(topic=topic, payload=payload, qos=qos, retain=retain, expiry_s=expiry_s)
