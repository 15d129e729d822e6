"""Releases are looked at in a process of its own, as long as there is something to look at.

Theory of operation. What proves releases (python-tuf, cryptography) takes 19 MiB, for some seconds a month. So it runs
in `edge.channel.judge`, which is started when a release comes, answers with a value, and is ended when nothing more
comes. It keeps what was believed in the state folder, as it would here. Nobody waits for it: `look` takes what was
answered so far. Where it dies, nothing is decided; the next look starts another one, which is told again all that was
handed in.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.messages import Candidate, Desired, Meta, Order, Restore
from edge.channel.vetting import DistrustError, NotJudgedError, unsigned
from edge.contract.errors import ConfigError

_LEAVES: dict[type, str] = {
    Desired: topics.DN_DESIRED,
    Restore: topics.DN_RESTORE,
    Candidate: topics.DN_CANDIDATE,
    Meta: topics.DN_META,
}
_PIECE = 1 << 16
_MAX_ANSWER_BYTES = 1 << 16
_MOMENTS, _MOMENT_S = 50, 0.002
_WHO = "the process that looks at releases"


def _end_of(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    reason = ", as where memory is short" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{reason}"


class _Process:
    """A process that is asked by lines and answers with lines; nothing here waits for it but `wait`.

    Raises:
        OSError: None can be started.
    """

    def __init__(self, command: list[str]) -> None:
        (stdin, self._to), (self._from, stdout) = os.pipe(), os.pipe()
        try:
            self.pid = os.posix_spawn(
                command[0],
                command,
                os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)],
                setpgroup=0,  # a Ctrl-C is for the agent
            )
        except OSError:
            os.close(self._to)
            os.close(self._from)
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._unsent = self._came = b""

    def tell(self, document: Any) -> None:
        """Send a line, as far as it is taken now."""
        self._unsent += json.dumps(document).encode() + b"\n"
        self._push()

    def _push(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self._to, self._unsent[:_PIECE]) :]

    def heard(self) -> dict[str, Any] | None:
        """The next line, or None where there is none yet.

        Raises:
            EOFError: It has ended, and how.
            ValueError: It says nothing of use.
        """
        self._push()
        with suppress(BlockingIOError):
            while b"\n" not in self._came:
                piece = os.read(self._from, _PIECE)
                if not piece:
                    done, status = os.waitpid(self.pid, os.WNOHANG)
                    if not done:
                        return None  # any moment now
                    self.pid = 0
                    raise EOFError(_end_of(os.waitstatus_to_exitcode(status)))
                self._came += piece
                if len(self._came) > _MAX_ANSWER_BYTES:
                    raise ValueError("too much")
        line, end, rest = self._came.partition(b"\n")
        if not end:
            return None
        self._came = rest
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found

    def wait(self, timeout_s: float) -> None:
        """Until it says something, or ends."""
        select.select([self._from], [], [], timeout_s)

    def end(self) -> None:
        """End it. One that has not gone within a moment, as on a busy device, is waited for by a thread of its own."""
        for file in (self._to, self._from):
            if file >= 0:
                os.close(file)
        self._to = self._from = -1
        if not self.pid:
            return
        os.kill(self.pid, signal.SIGKILL)  # it is ours until it was waited for
        for _ in range(_MOMENTS):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            select.select([], [], [], _MOMENT_S)
        threading.Thread(target=os.waitpid, args=(self.pid, 0), daemon=True).start()


class Apart:
    """A `edge.channel.vetting.Trust` that has its libraries in another process; see the module.

    Args:
        folder: Where metadata are kept that were believed; created when something is looked at.
        root: The root document that the device was given.
        fleet: Fleet id.
        device: Device id.
        command: What is started.
    """

    def __init__(self, folder: Path, root: bytes, *, fleet: str, device: str, command: list[str] | None = None) -> None:
        self._folder, self._root, self._fleet, self._device = folder.absolute(), root, fleet, device
        self._command = command or [sys.executable, "-P", "-m", "edge.channel.judge"]
        self._process: _Process | None = None
        self._documents: dict[str, Meta] = {}
        self._told: set[str] = set()  # names of documents that the process has
        self._is_ready = self._is_wanted = False
        self._about: Desired | Order | None = None  # of which it owes an answer
        self.missing: str | None = None

    def check(self, timeout_s: float = 0.0) -> bool:
        """Whether the root document was found to be one; False where nothing was said of it so far.

        What was believed before is not looked at again: python-tuf keeps it.

        Args:
            timeout_s: How long to wait for an answer.

        Raises:
            ConfigError: It is none, or a package is not installed.
            NotJudgedError: Nobody can say so.
        """
        with suppress(OSError):
            if any(path.read_bytes() == self._root for path in (self._folder / "root_history").glob("*.root.json")):
                return True
        process = self._started()
        if timeout_s:
            process.wait(timeout_s)
        is_said = self._is_ready or self._heard() is not None
        if is_said and not self._is_wanted:
            self.rest()
        return is_said

    def _started(self) -> _Process:
        if self._process is None:
            try:
                self._process = _Process(self._command)
            except OSError as exc:
                raise NotJudgedError(f"{_WHO} cannot be started: {exc.strerror}") from exc
            self._is_ready, self._about = False, None
            self._told.clear()
            opening = {"folder": str(self._folder), "fleet": self._fleet, "device": self._device}
            self._process.tell(opening | {"root": base64.b64encode(self._root).decode()})
        return self._process

    def take(self, message: Meta) -> None:
        """Hand in a document, or that there is none of its name. Whether it can be read is seen by `look`."""
        self._documents[message.name] = message
        self._told.discard(message.name)

    def begin(self) -> None:
        """Forget what was handed in."""
        self._documents.clear()
        self.missing = None
        self._told.clear()
        if self._process is not None:
            self._process.tell(["", ""])

    def rest(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
        self._process, self._is_wanted = None, False

    def look(self, desired: Desired | Order) -> bool:
        """See `edge.channel.vetting.Trust.look`."""
        self.missing = None
        if not desired.signature:  # a process for each that anybody may say would be much to ask
            raise unsigned(desired)
        if self._about is not None and self._about != desired:
            self.rest()  # another one came before it was answered
        self._started()
        self._is_wanted = True
        try:
            if not self._is_ready and self._heard() is None:
                return False
        except ConfigError as exc:
            raise NotJudgedError(str(exc)) from exc
        if self._about is None:
            for name in self._documents.keys() - self._told:
                self._say(self._documents[name])
                self._told.add(name)
            self._say(desired)
            self._about = desired
        answer = self._heard()
        if answer is None:
            return False
        self._about = None
        try:
            return self._found(answer)
        except (KeyError, TypeError, ValueError) as exc:
            raise self._gone(f"{_WHO} said nothing of use") from exc

    def _say(self, message: Meta | Desired | Order) -> None:
        assert self._process is not None
        self._process.tell([_LEAVES[type(message)], encode(message).decode()])

    def _heard(self) -> dict[str, Any] | None:
        """The next answer, or None; the first is about the root.

        Raises:
            ConfigError: Nothing can be looked at before that is corrected.
            NotJudgedError: It has ended, cannot begin, or says nothing of use.
        """
        assert self._process is not None
        try:
            answer = self._process.heard()
        except EOFError as exc:
            raise self._gone(f"{_WHO} {exc}") from exc
        except (OSError, ValueError) as exc:
            raise self._gone(f"{_WHO} said nothing of use") from exc
        if answer is not None and not self._is_ready:
            if "config" in answer:
                self.rest()
                raise ConfigError(str(answer["config"]))
            if "unable" in answer:
                raise self._gone(f"{_WHO} {answer['unable']}")
            self._is_ready = True
        return answer

    def _gone(self, why: str) -> NotJudgedError:
        self.rest()
        return NotJudgedError(why)

    def _found(self, answer: dict[str, Any]) -> bool:
        """What an answer says.

        Raises:
            DistrustError: That it is not to be believed.
            OSError: That metadata could not be kept.
        """
        if "kind" in answer:
            raise DistrustError(str(answer["kind"]), str(answer["detail"]))
        if "errno" in answer:
            number = int(answer["errno"])
            raise OSError(number, os.strerror(number))
        if answer["believed"] is True:
            return True
        self.missing = str(answer["missing"])
        return False
