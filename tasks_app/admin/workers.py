"""Workers in the admin: to look at only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.http import HttpRequest

from tasks_app.models import Worker

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Worker]
else:
    Base = admin.ModelAdmin


class WorkerAdmin(Base):
    list_display = ("__str__", "hands", "busy", "stuck", "started_at", "heartbeat_at", "stopped_at")
    ordering = ("-heartbeat_at",)
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        return False
