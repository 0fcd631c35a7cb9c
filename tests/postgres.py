"""A PostgreSQL server from a wheel, on a machine that may be busy."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def insist(start: Callable[[], T]) -> T:
    """Start a server, with retries.

    Its wheel gives up after 10 seconds, but finds the started server at the next call.
    """
    for _ in range(2):
        with contextlib.suppress(subprocess.SubprocessError):
            return start()
    return start()
