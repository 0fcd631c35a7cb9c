from __future__ import annotations

import threading

import pytest
from django.db import connection, transaction

from tasks_app.worker.queries import Queries, discard, end_left_behind

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_thread_of_a_running_task_is_not_rolled_back() -> None:
    """It belongs to no run, so nobody can tell whose it is."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1").fetchall()
            begun.set()
            done.wait(30)
        connection.close()

    thread = threading.Thread(target=work, name="own")
    thread.start()
    try:
        assert begun.wait(30)
        assert end_left_behind([Queries()]) == []
    finally:
        done.set()
        thread.join()


def test_a_discarded_connection_does_not_go_back_to_a_pool() -> None:
    """SQLite has none, and a database in memory would be lost with its connection."""
    connection.ensure_connection()
    discard()
    assert connection.is_usable() is (connection.vendor == "sqlite")
    connection.close()
