"""The site's settings, on a disk that is full as long as a file exists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

from project.settings import *  # noqa: F403

FULL = Path(os.environ["TEST_DISK_FULL"])


def obey(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """Let SQLite's file grow only while the disk is not full."""
    if context["connection"].vendor == "sqlite":
        # The limit does not shrink a file: it only keeps it from growing.
        limit = 1 if FULL.exists() else 2**30
        context["cursor"].connection.execute(f"PRAGMA max_page_count = {limit}")
    return execute(sql, params, many, context)


def wrap(connection: Any, **_kwargs: Any) -> None:
    connection.execute_wrappers.append(obey)


connection_created.connect(wrap, dispatch_uid="tests.small_disk")
