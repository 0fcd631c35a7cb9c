"""What the list's script asks where no stream tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, JsonResponse
from django.urls import URLPattern, path
from django.views.decorators.cache import never_cache

from tasks_app.admin.index_order import SINCE
from tasks_app.admin.rows import Rows, shown
from tasks_app.models import Task, aware
from tasks_app.store.clock import database_now, parse_time
from tasks_app.store.ledger import alias

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Task]
else:
    Base = object

#: What the script asks: how rows stand, and which the list would show now.
IDS, NEW = "_ids", "_new"


class LiveViews(Base):
    """What TaskAdmin has of answers to the list's script."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(never_cache(self.live_view))
        return [path("live/", view, name="tasks_app_task_live"), *super().get_urls()]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """How the tasks `_ids` stand; with `_new`, also the ids of those that came `_since` to the
        list as it is asked for by the rest of the query.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = request.GET.copy()
        ids, news = ",".join(query.pop(IDS, [])), query.pop(NEW, None)
        since = parse_time("".join(query.pop(SINCE, [])))
        try:
            wanted = [UUID(text) for text in ids.split(",") if text][: self.list_per_page]
        except ValueError:
            return JsonResponse({"detail": "An id is a UUID."}, status=400)
        now = database_now(alias())
        answer: dict[str, Any] = {"now": aware(now).isoformat(), "tasks": [], "top": None}
        if wanted:
            tasks = self.get_queryset(request).using(alias()).filter(pk__in=wanted)
            rows = Rows.of(shown(tasks), request.user, now, self.admin_site.name)
            answer["tasks"] = [row.info for row in rows]
        if news:
            request.GET = query  # type: ignore[assignment]  # ours, and read only from here on
            try:
                changelist: Any = self.get_changelist_instance(request)
            except IncorrectLookupParameters:
                return JsonResponse({"detail": "The list's query is wrong."}, status=400)
            answer["top"] = [str(task.pk) for task in changelist.news(since)]
        return JsonResponse(answer)
