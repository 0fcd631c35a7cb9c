"""How all tasks and workers stand, on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.urls import URLPattern

from tasks_app.models import Task

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Task]
else:
    Base = object


class OverviewViews(Base):
    """What TaskAdmin has of views that tell of all tasks."""

    def get_urls(self) -> list[URLPattern]:
        return super().get_urls()
