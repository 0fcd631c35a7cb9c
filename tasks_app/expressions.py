"""What SQL says that Django has no word for."""

from __future__ import annotations

from typing import Any

from django.db import models


class Unindexed(models.Func):
    """A column, which SQLite must not take for a reason to choose an index by it.

    It would read all that is due by one index and sort it, where another has the order asked for.
    See "The unary + operator" in https://www.sqlite.org/optoverview.html
    """

    template = "%(expressions)s"
    arity = 1

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="+%(expressions)s", **context)


class CurrentTransaction(models.Func):
    """The id of the running transaction on PostgreSQL; NULL elsewhere, where ids suffice."""

    output_field = models.BigIntegerField()

    def as_sql(self, compiler: Any, connection: Any, **_context: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        return "NULL", []

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        return "pg_current_xact_id()::text::bigint", []
