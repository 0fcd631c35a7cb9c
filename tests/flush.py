"""A pytest plugin that empties the database after a test whose transactions were real.

Django's own way runs `flush`, and makes all permissions and content types again. That takes more
time than most of these tests do. Here those two tables stay, unless a test changed them.
"""

from __future__ import annotations

import pytest
from django.db import connections, transaction
from django.test import TransactionTestCase

#: Made by `migrate`.
KEPT = ["auth_permission", "django_content_type"]

_flush = TransactionTestCase._fixture_teardown
_kept: dict[str, list[object]] = {}


def _read_kept(using: str) -> list[object]:
    with connections[using].cursor() as cursor:
        rows: list[object] = []
        for table in KEPT:
            cursor.execute(f"SELECT * FROM {table} ORDER BY id")
            rows += cursor.fetchall()
        return rows


def _empty(using: str) -> None:
    connection = connections[using]
    with transaction.atomic(using), connection.cursor() as cursor:
        # In any order, because foreign keys are checked at the end of the transaction.
        for table in connection.introspection.table_names(cursor):
            if table not in (*KEPT, "django_migrations"):
                cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")


def _fixture_teardown(self: TransactionTestCase) -> None:
    names = self._databases_names(include_mirrors=False)  # type: ignore[attr-defined]
    if all(_read_kept(using) == _kept[using] for using in names):
        for using in names:
            _empty(using)
    else:
        _flush(self)
        _kept.update((using, _read_kept(using)) for using in names)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: pytest.FixtureRequest) -> None:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]
        _kept.update((using, _read_kept(using)) for using in connections)
    TransactionTestCase._fixture_teardown = _fixture_teardown  # type: ignore[method-assign]
