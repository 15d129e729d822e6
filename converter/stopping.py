"""Signals: they end a conversion as Ctrl-C does, until it writes; then they come too late."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from edge.contract.errors import Stopped

_ASK_AGAIN_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def without_signals() -> Iterator[None]:
    """Too late to stop: outputs that belong together are written, all of them."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:  # one has come, and code that is not ours has lost it
        signal.raise_signal(signal.SIGALRM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let signals end the work as Ctrl-C does, so that nothing half done stays behind.

    Code that is not ours may lose the exception (in a destructor, or by catching everything): while the work goes on it
    comes again.
    """
    ours: list[signal.Signals] = []
    process = os.getpid()

    def stop(number: int, _frame: object) -> None:
        if os.getpid() != process:  # a worker that the user's code has forked: it ends as usual
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if number == signal.SIGALRM:
            number = ours[-1]
        ours.append(signal.Signals(number))
        signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_S)
        raise Stopped(number)

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and a shell's background jobs have it
            signal.signal(number, stop)
    signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (*_SIGNALS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # what is left to do is to clean up
