"""Signals that end a run: remembered, so that an iteration is finished and the checkpoint written."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a flag that the loop reads between iterations."""
    stop = False

    def remember(*_: object) -> None:
        nonlocal stop
        stop = True

    old = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
