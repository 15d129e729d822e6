"""``edge-convert`` with a fault at every place where something may fail, for `tests.converter.test_faults`.

Where something may fail, the process forks for each fault: the child has it, ends as the command ends, and is looked
at; the parent goes on. What was found is written to standard output as JSON behind ``FOUND``.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import converter.pipeline
from converter import cli
from edge.contract import foreign
from edge.contract.errors import Stopped

FAULTS: dict[str, Callable[[], BaseException]] = {
    "OSError": lambda: OSError(28, "No space left on device"),
    "RuntimeError": lambda: RuntimeError("something odd"),
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SIGTERM": lambda: Stopped(15),
    "SystemExit": lambda: SystemExit(0),
}
# An exporter that gives up hands over to the next one, which takes six seconds to import.
LAST_RESORT = {"exporters.py:_by_old_exporter": ("OSError", "MemoryError", "KeyboardInterrupt")}
# Stages that have each fault of `EVERY`; the others have two, each another two.
THOROUGH = ("loading the model", "quantizing: int8 dynamic", "packing")
EVERY = [fault for fault in FAULTS if fault != "SystemExit"]


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


class _Places:
    """Where something may fail, and what was found there."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.process = os.getpid()
        self._seen: set[str] = set()
        self._scratch = os.environ["TMPDIR"]

    def fail(self, place: str, faults: Sequence[str]) -> None:
        """Fork for each fault: the child has it, the parent notes how it ended."""
        if place in self._seen or os.getpid() != self.process:
            return
        self._seen.add(place)
        for fault in faults:
            sys.stdout.flush()
            shutil.copytree(self._scratch, "../kept", dirs_exist_ok=True)  # the child takes the parent's away, too
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.dup2(write, 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                raise FAULTS[fault]()
            os.close(write)
            with os.fdopen(read, "rb") as stream:
                said = stream.read().decode(errors="replace")
            _, status = os.waitpid(child, 0)
            row = {"place": place, "fault": fault, "code": os.waitstatus_to_exitcode(status), "said": said}
            self.found.append(row | {"files": names("."), "scratch": names(self._scratch)})
            shutil.copytree("../kept", self._scratch, dirs_exist_ok=True)
            shutil.rmtree("../kept")

    def tell(self) -> None:
        """Write down what was found, where all of it was."""
        if os.getpid() == self.process:
            sys.stdout.write("FOUND" + json.dumps(self.found))
            sys.stdout.flush()


def main() -> None:
    """The command, on one thread: a fork would lose the others."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    places = _Places()
    foreign_faults, stage_faults = itertools.cycle(FAULTS), itertools.cycle(EVERY)
    plain = foreign.foreign

    @contextlib.contextmanager
    def watched(what: str, kind: Any, advice: str = "", **options: Any) -> Iterator[None]:
        code = sys._getframe(2).f_code
        place = f"{code.co_filename.rpartition('/')[2]}:{code.co_name}"
        with plain(what, kind, advice, **options):
            places.fail(place, LAST_RESORT.get(place) or (next(foreign_faults), next(foreign_faults)))
            yield

    for module in list(sys.modules.values()):
        if getattr(module, "foreign", None) is plain:
            module.foreign = watched  # type: ignore[attr-defined]
    tell = converter.pipeline._Clock.__call__

    def stage(clock: converter.pipeline._Clock, name: str) -> None:
        tell(clock, name)
        places.fail(name, EVERY if name in THOROUGH else (next(stage_faults), next(stage_faults)))

    converter.pipeline._Clock.__call__ = stage  # type: ignore[method-assign]
    atexit.register(places.tell)
    cli.main()
