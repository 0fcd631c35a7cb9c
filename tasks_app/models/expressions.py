"""SQL expressions that Django does not provide."""

from __future__ import annotations

from typing import Any

from django.db import models


class Unindexed(models.Func):
    """A column that SQLite must not use to choose an index.

    Otherwise SQLite reads all due rows by an index on this column and sorts them, although another
    index already has the requested order. See "The unary + operator" in
    https://www.sqlite.org/optoverview.html
    """

    template = "%(expressions)s"
    arity = 1

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="+%(expressions)s", **context)


class CurrentTransaction(models.Func):
    """The id of the current transaction on PostgreSQL; NULL elsewhere, where event ids suffice."""

    output_field = models.BigIntegerField()

    def as_sql(self, compiler: Any, connection: Any, **_context: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        return "NULL", []

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        return "pg_current_xact_id()::text::bigint", []
