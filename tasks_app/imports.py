"""Import task modules one at a time, whichever threads ask for them.

Python lets two threads import modules that import each other, and breaks the deadlock by giving one
of them an unfinished module. So who imports tasks takes turns.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("tasks_app.registry")

#: How long a thread waits for its turn. After that it imports all the same, for an import may hang.
TURN_SECONDS = 30.0

# A module may ask for another task while it is being imported, so the turn can be taken again.
_turn = threading.RLock()
#: How often the thread whose turn it is has taken it.
_depth = 0
#: Modules that were loaded at a moment when nobody imported in turn, so that none is unfinished.
_complete: set[str] = set()


@contextmanager
def in_turn(module: str) -> Iterator[None]:
    """Wait until no other thread imports in turn, and keep others from it meanwhile.

    Does neither for a module that is known to be complete, so a slow import delays only those who
    need a module that was not loaded when it began.
    """
    global _depth
    if module in _complete:
        yield
        return
    if not _turn.acquire(timeout=TURN_SECONDS):
        logger.warning(
            "Another import goes on for %g s; %s is imported beside it", TURN_SECONDS, module
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
