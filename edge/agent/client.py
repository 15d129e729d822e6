"""For applications on the device: talk to a running agent over its socket.

Example:
    with AgentClient("state/agent.sock") as agent:
        answer = agent.predict("frame-17", image)
        agent.label("frame-17", 3)
"""

from __future__ import annotations

import base64
import errno
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.wire import decode_answer, encode_line, encode_sample
from edge.contract.errors import ChannelError, ConfigError, EdgeError, LearningError, NoAgentError
from edge.contract.files import replace_file
from edge.learning.exchange import HeadRelease
from edge.learning.labels import Joined

# One array, or arrays by the names of the inputs.
Sample = npt.ArrayLike | Mapping[str, npt.ArrayLike]
# A class by number or name, or targets.
Label = int | float | str | np.generic | npt.NDArray[Any] | Sequence[float]

# Of an answer: more than any head has.
_MAX_ANSWER_BYTES = 256 << 20


class AgentClient:
    """A connection to an agent on this device.

    Args:
        path: Its Unix socket.
        timeout_s: For each request.
        clock: A stopwatch, in seconds.
        model: Name of the model that is meant, where the agent has several.

    Raises:
        NoAgentError: Nobody answers there.
    """

    def __init__(
        self,
        path: str | Path,
        timeout_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
        *,
        model: str | None = None,
    ) -> None:
        self._path, self._timeout_s, self._clock, self._model = path, timeout_s, clock, model
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except (OSError, ValueError) as exc:
            self._socket.close()
            raise NoAgentError(f"no agent answers at {path}: {_why(exc)}") from exc

    def request(self, request: dict[str, Any], *expected: str) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: See docs/agent.md.
            expected: What an agent's answer has.

        Raises:
            LearningError: The agent refused it; the message is the agent's.
            ChannelError: The connection broke, the time is over, or it is no agent that answers.
        """
        if self._model is not None:
            request = {"model": self._model, **request}
        try:
            end_s = self._clock() + self._timeout_s
            with suppress(BrokenPipeError):  # perhaps it said why before it hung up
                self._socket.sendall(encode_line(request))
            line = self._line(end_s)
        except TimeoutError as exc:
            raise ChannelError(
                f"no answer at {self._path} within {self._timeout_s:g} s: the agent is busy, or another program has "
                f"this socket"
            ) from exc
        except OSError as exc:
            raise ChannelError(f"the connection to the agent broke: {exc}") from exc
        try:
            answer = decode_answer(line)
            if not ("error" in answer or answer.keys() >= set(expected)):
                raise ValueError("it is not an agent's answer")
        except (ValueError, RecursionError, LearningError) as exc:
            raise ChannelError(f"what answers at {self._path} is no agent: it said {bytes(line[:60])!r}") from exc
        if "error" in answer:
            raise LearningError(str(answer["error"]))
        return answer

    def _line(self, end_s: float) -> bytes:
        """The next line, however slowly it comes, until then."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _MAX_ANSWER_BYTES:
                raise ChannelError(f"what answers at {self._path} is no agent: its answer has no end")
            left_s = end_s - self._clock()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            data = self._socket.recv(1 << 16)
            if not data:
                raise ChannelError("the agent closed the connection")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def predict(self, sample_id: str, x: Sample, *, stream: str | None = None, reset: bool = False) -> dict[str, Any]:
        """What the model says of one sample, as docs/agent.md has it; arrays come as numpy arrays.

        Args:
            sample_id: By which a label may name it later.
            x: ``(*input)``, or such arrays by the names of the inputs.
            stream: Whose state the sample takes, of a model that remembers.
            reset: Whether its stream begins anew with it.
        """
        request: dict[str, Any] = {"op": "predict", "id": sample_id}
        if isinstance(x, Mapping):
            request["inputs"] = {name: encode_sample(np.asarray(array)) for name, array in x.items()}
        else:
            request["x"] = encode_sample(np.asarray(x))
        named = {} if stream is None else {"stream": stream}
        return self.request(request | named | ({"reset": reset} if reset else {}))

    def label(self, sample_id: str, y: Label, weight: float = 1.0) -> Joined:
        """Say what a sample was, and how much that is trusted.

        Returns:
            Whether it counts (it is true or false), and why it does not.

        Raises:
            LearningError: It is no label of this model.
        """
        plain: Any = y.tolist() if isinstance(y, np.generic | np.ndarray) else y
        try:
            target = plain if isinstance(plain, int | float | str) else [float(value) for value in plain]
        except (TypeError, ValueError) as exc:
            raise LearningError(f"label {y!r:.40}: expected a class by number or name, or numbers") from exc
        answer = self.request({"op": "label", "id": sample_id, "y": target, "weight": weight}, "joined")
        if answer["joined"]:
            return Joined(replaced=bool(answer.get("replaced")))
        return Joined(str(answer.get("why") or "the agent does not say why"))

    def add_class(self, name: str) -> int:
        """Add a class to the model while it runs; its number."""
        return int(self.request({"op": "add-class", "name": name}, "class")["class"])

    def status(self) -> dict[str, Any]:
        """What the agent says about itself."""
        return self.request({"op": "status"}, "device", "boot")

    def rollback(self) -> dict[str, Any]:
        """Go back to what was there before the newest head or bundle that took its place.

        Raises:
            LearningError: There is nothing to go back to.
        """
        return self.request({"op": "rollback"}, "slot", "was", "now")

    def export_head(self, path: str | Path) -> dict[str, Any]:
        """Write the head that the agent believes most, as `OnDeviceModel.export_head` does; whole or not at all.

        Raises:
            ConfigError: The file cannot be written; what was there stays.
        """
        answer = self.request({"op": "export"}, "head", "origin", "samples")
        try:
            document = base64.b64decode(answer.pop("head"), validate=True)
            HeadRelease.decode(document, "the head that the agent gave")
        except (ValueError, TypeError, EdgeError) as exc:
            raise ChannelError(f"what answers at {self._path} is no agent: it gave no head, {exc}") from exc
        try:
            with replace_file(Path(path)) as file:
                file.write(document)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
        return answer | {"bytes": len(document)}

    def carry_out(self, path: str | Path, *, checkpoint: bool = False) -> dict[str, Any]:
        """Write what the coordinator would have been told, for `edge-fleet import`; whole or not at all.

        Raises:
            ConfigError: The file cannot be written; what was there stays.
        """
        answer = self.request({"op": "carry-out", "checkpoint": checkpoint}, "parcel", "documents")
        try:
            data = base64.b64decode(answer["parcel"], validate=True)
        except (ValueError, TypeError) as exc:
            raise ChannelError(f"what answers at {self._path} is no agent: it gave no parcel, {exc}") from exc
        try:
            with replace_file(Path(path)) as file:
                file.write(data)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
        return {"documents": answer["documents"], "bytes": len(data)}

    def carry_in(self, path: str | Path) -> list[str]:
        """Take what is for this device out of a file of `edge-fleet export-release`; what was in it, for people."""
        answer = self.request({"op": "carry-in", "path": str(Path(path).absolute())}, "taken")
        return [str(each) for each in answer["taken"]]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _why(error: OSError | ValueError) -> str:
    """What a connection that was not made says about its socket."""
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return "there is no such socket"
    if number == errno.ECONNREFUSED:
        return "nobody listens there any more, or it is no socket"
    if number in (errno.EACCES, errno.EPERM):
        return "it belongs to another user; ask as the user that the agent runs as"
    return getattr(error, "strerror", None) or str(error)
