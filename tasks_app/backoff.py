"""The wait before the next attempt."""

from __future__ import annotations

import random
from datetime import timedelta

from tasks_app.conf import task_settings


def backoff(attempt: int) -> timedelta:
    """Return the wait after an attempt, numbered from 1.

    It doubles with each attempt, up to a cap, and is drawn from its upper half, so that what failed
    together does not return together.
    """
    conf = task_settings()
    # An exponent past 64 is over any cap; without the bound it overflows a float.
    wait = min(
        conf.retry_backoff_seconds * 2.0 ** min(attempt - 1, 64), conf.retry_backoff_max_seconds
    )
    return timedelta(seconds=wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
