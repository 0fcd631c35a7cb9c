"""The wait before the next attempt."""

from __future__ import annotations

import random
from datetime import timedelta

from tasks_app.conf import task_settings


def backoff(attempt: int) -> timedelta:
    """Return the wait after this attempt. The first attempt is number 1.

    The wait doubles with each attempt, up to a cap. A random value between half of it and all of it
    is returned, so that tasks that failed together are not retried together.
    """
    conf = task_settings()
    # An exponent above 64 exceeds any cap. Without this bound, it would overflow a float.
    wait = min(
        conf.retry_backoff_seconds * 2.0 ** min(attempt - 1, 64), conf.retry_backoff_max_seconds
    )
    return timedelta(seconds=wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
