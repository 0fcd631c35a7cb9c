"""Import task modules one at a time, even if several threads ask.

If two threads import modules that import each other, Python breaks the deadlock by giving one of
them an unfinished module. So the threads that import task modules take turns.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tasks_app.logs import SafeLogger

logger = SafeLogger("tasks_app.registry")

#: A thread waits this long for its turn. Then it imports anyway, because an import may hang.
TURN_SECONDS = 30.0

# Reentrant, because a module may ask for another task while it is being imported.
_turn = threading.RLock()
#: The number of times that the lock's holder has acquired it.
_depth = 0
#: Modules that were loaded while no import was running under the lock, so they are complete.
_complete: set[str] = set()


@contextmanager
def in_turn(module: str) -> Iterator[None]:
    """Wait until no other thread imports under the lock, and then hold the lock.

    Does nothing if the module is known to be complete. So a slow import delays only threads that
    need a module that was not loaded before it began.
    """
    global _depth
    if module in _complete:
        yield
        return
    if not _turn.acquire(timeout=TURN_SECONDS):
        logger.warning(
            "Another import has run for more than %g s; importing %s beside it",
            TURN_SECONDS,
            module,
        )
        yield
        return
    try:
        _note_complete()
        _depth += 1
        yield
    finally:
        _depth -= 1
        _note_complete()
        _turn.release()


def _note_complete() -> None:
    if _depth == 0:
        _complete.update(list(sys.modules))
