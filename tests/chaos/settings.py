"""Settings with times so short that much goes wrong in a minute, and URLs for the feeder."""

import os

from project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.chaos.urls"

TASK_LEASE_SECONDS = float(os.environ.get("TASK_LEASE_SECONDS", "2"))
TASK_HEARTBEAT_SECONDS = float(os.environ.get("TASK_HEARTBEAT_SECONDS", "0.5"))
TASK_SHUTDOWN_GRACE_SECONDS = 0.2
TASK_RETRY_BACKOFF_SECONDS = 0.1
TASK_RETRY_BACKOFF_MAX_SECONDS = 0.5
TASK_CLEANUP_INTERVAL_SECONDS = 1.0
TASK_RETENTION_SECONDS = TASK_FAILED_RETENTION_SECONDS = 3600.0
# A viewer that is asked to leave notices it at the next keep-alive.
TASK_STREAM_KEEPALIVE_SECONDS = 0.5
