"""Looks at releases in a process of its own, which `edge.channel.apart` starts, asks and ends.

Lines of JSON come in on standard input, the first of them with the root, then documents and releases; for the first
and for each release one line goes out on standard output. It ends with whoever started it, when standard input ends;
where it hangs, its own alarm ends it. Where memory is short, it is what the system ends first.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from edge.channel.codec import decode
from edge.channel.messages import Desired, Meta, Order
from edge.channel.vetting import LONGEST_LOOK_S, DistrustError
from edge.contract.errors import ChannelError, ConfigError


def serve(lines: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the lines end."""

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    first = lines.readline()
    if not first:
        return
    opening = json.loads(first)
    try:
        from edge.channel.updates import Trust

        root = base64.b64decode(opening["root"])
        trust = Trust(Path(opening["folder"]), root, fleet=opening["fleet"], device=opening["device"])
    except ModuleNotFoundError as exc:
        say(config=f"{exc.name} is not installed: pip install 'edgeloop[signed]'")
        return
    except (ImportError, MemoryError) as exc:  # a library that is there and finds no memory, too, is an ImportError
        say(unable=f"cannot load what it needs: {exc or 'no memory'}")
        return
    except ConfigError as exc:
        say(config=str(exc))
        return
    say(ready=True)
    signal.alarm(0)  # whoever asks may take their time
    for line in lines:
        signal.alarm(round(LONGEST_LOOK_S))
        leaf, said = json.loads(line)
        message = decode(leaf, said.encode()) if leaf else None
        if message is None:
            trust.begin()
        elif isinstance(message, Meta):
            with suppress(ChannelError):  # it stays missing
                trust.take(message)
        elif isinstance(message, Desired | Order):
            try:
                found = trust.look(message)
            except DistrustError as exc:
                say(kind=exc.kind, detail=str(exc))
            except OSError as exc:
                say(errno=exc.errno or 0)
            else:
                say(believed=found, missing=trust.missing)
        signal.alarm(0)


def main() -> None:
    """What a library prints goes elsewhere."""
    signal.alarm(round(LONGEST_LOOK_S))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
