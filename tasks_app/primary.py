"""Reading where is written, for decisions that must not be made on a replica's old news."""

from __future__ import annotations

from typing import Any

from django.db import models, router


class Primary(models.Manager[Any]):
    """Reads from the database that its model is written to, whatever a router names for reading."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().using(router.db_for_write(self.model))
