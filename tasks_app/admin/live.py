"""The view that the list's script asks for the state of rows and for new tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, path
from django.views.decorators.cache import never_cache

from tasks_app.admin.index_order import SINCE
from tasks_app.admin.rows import COLUMNS, Rows, cell, shown
from tasks_app.models import Task, aware
from tasks_app.store.clock import database_now, parse_time
from tasks_app.store.ledger import alias

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Task]
else:
    Base = object

#: Query parameters: the ids of rows to read again, and whether to look for new tasks.
IDS, NEW = "_ids", "_new"


class LiveViews(Base):
    """The part of TaskAdmin that answers the list's script."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(never_cache(self.live_view))
        return [path("live/", view, name="tasks_app_task_live"), *super().get_urls()]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """Return the cells of the tasks in `_ids`, as HTML by the name of their column.

        With `_new`, also return the ids of tasks that are new since `_since` to the list that the
        rest of the query describes.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = request.GET.copy()
        ids, news = ",".join(query.pop(IDS, [])), query.pop(NEW, None)
        since = parse_time("".join(query.pop(SINCE, [])))
        try:
            wanted = [UUID(text) for text in ids.split(",") if text][: self.list_per_page]
        except ValueError:
            return JsonResponse({"detail": "_ids must be UUIDs, separated by commas."}, status=400)
        now = database_now(alias())
        answer: dict[str, Any] = {"now": aware(now).isoformat(), "rows": {}, "top": None}
        if wanted:
            tasks = self.get_queryset(request).using(alias()).filter(pk__in=wanted)
            rows = Rows.of(shown(tasks), request.user, now, self.admin_site.name)
            answer["rows"] = {
                str(row.task.pk): {column: cell(column, row.task) for column in COLUMNS}
                for row in rows
            }
        if news:
            request.GET = query  # type: ignore[assignment]  # ours, and read only from here on
            try:
                changelist: Any = self.get_changelist_instance(request)
            except IncorrectLookupParameters:
                return JsonResponse(
                    {"detail": "The query of the list is invalid."},
                    status=400,
                )
            answer["top"] = [str(task.pk) for task in changelist.news(since)]
        return JsonResponse(answer)
