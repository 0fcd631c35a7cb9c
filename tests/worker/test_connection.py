"""A worker's one connection to the database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections, transaction

from tasks_app.ledger import LOCK_MILLISECONDS
from tasks_app.worker.connection import Connection

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_worker_stands_in_no_line_for_a_connection() -> None:
    """It is none of a pool's, which its own hands may use up."""

    def connected() -> list[Any]:
        pooled = connections["default"] = connections["default"].copy()
        pooled.settings_dict["OPTIONS"]["pool"] = pool
        try:
            Connection("default").open()
            own = connections["default"]
            found = [one.settings_dict["OPTIONS"].get("pool") for one in (pooled, own)]
            return [*found, own.is_usable()]
        finally:
            connections.close_all()

    pool = {"max_size": 1}
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(connected).result() == [pool, None, True]


def test_a_worker_waits_and_reads_as_it_must() -> None:
    def connected() -> Any:
        try:
            Connection("default").open()
            own = connections["default"]
            with transaction.atomic(), own.cursor() as cursor:
                if own.vendor == "sqlite":
                    cursor.execute("PRAGMA busy_timeout")
                else:
                    cursor.execute("SHOW transaction_isolation")
                return own.vendor, cursor.fetchone()[0]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(connected).result() in [
            ("sqlite", LOCK_MILLISECONDS),
            ("postgresql", "read committed"),
        ]
