"""For applications on the device: talk to a running agent over its socket.

Example:
    with AgentClient("state/agent.sock") as agent:
        answer = agent.predict("frame-17", image)
        agent.label("frame-17", 3)
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.wire import encode_line, encode_sample
from edge.contract.errors import ChannelError, LearningError

# A class by number or name, or targets.
Label = int | str | np.integer[Any] | npt.NDArray[Any] | Sequence[float]


class AgentClient:
    """A connection to an agent on this device.

    Args:
        path: Its Unix socket.
        timeout_s: For each request.

    Raises:
        ChannelError: Nobody answers there.
    """

    def __init__(self, path: str | Path, timeout_s: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as exc:
            self._socket.close()
            raise ChannelError(f"no agent answers at {path}: {exc.strerror or exc}") from exc
        self._file = self._socket.makefile("rb")

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            LearningError: The agent refused it; the message is the agent's.
            ChannelError: The connection broke.
        """
        try:
            self._socket.sendall(encode_line(request))
            line = self._file.readline()
        except OSError as exc:
            raise ChannelError(f"the connection to the agent broke: {exc}") from exc
        if not line:
            raise ChannelError("the agent closed the connection")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LearningError(str(answer["error"]))
        return answer

    def predict(self, sample_id: str, x: npt.NDArray[Any]) -> dict[str, Any]:
        """The answer for one sample ``(*input)``, which is remembered until a label names it.

        For classes their number, name, calibrated confidence and logits; else outputs and values.
        """
        return self.request({"op": "predict", "id": sample_id, "x": encode_sample(np.asarray(x))})

    def label(self, sample_id: str, y: Label, weight: float = 1.0) -> bool:
        """Say what a sample was, and how much that is trusted; False when the agent no longer remembers it."""
        if isinstance(y, np.integer | np.ndarray):
            y = y.tolist()
        target = y if isinstance(y, int | str) else [float(value) for value in y]
        return bool(self.request({"op": "label", "id": sample_id, "y": target, "weight": weight})["joined"])

    def add_class(self, name: str) -> int:
        """Add a class to the model while it runs; its number."""
        return int(self.request({"op": "add-class", "name": name})["class"])

    def status(self) -> dict[str, Any]:
        """What the agent says about itself."""
        return self.request({"op": "status"})

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
