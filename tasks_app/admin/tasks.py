"""Tasks in the admin: the list, and the page of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.http import HttpRequest

from tasks_app.admin.overview import OverviewViews
from tasks_app.admin.start import StartViews
from tasks_app.models import Task

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Task]
else:
    Base = admin.ModelAdmin


class TaskAdmin(StartViews, OverviewViews, Base):
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return False
