"""A manager that reads from the primary database, for decisions that need current data."""

from __future__ import annotations

from typing import Any

from django.db import models, router


class Primary(models.Manager[Any]):
    """Reads from the database its model is written to, even if a router names a replica."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().using(router.db_for_write(self.model))
