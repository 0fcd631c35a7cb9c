"""The base classes of the filters of the list of tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from tasks_app.admin.index_order import IndexOrder

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

Choices = Iterable[tuple[str, "str | _StrPromise"]]


class TaskFilter(admin.SimpleListFilter):
    """A filter by one value. All its choices stay visible when one is selected."""

    parameter_name: str
    template = "admin/tasks_app/task/filter.html"

    def has_output(self) -> bool:
        return True

    def index_order(self, request: HttpRequest) -> IndexOrder:
        return IndexOrder.of(request.GET)


class LinkedFilter(TaskFilter):
    """A filter that only links set: it shows no choices."""

    def has_output(self) -> bool:
        return False

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> Choices:
        return []
