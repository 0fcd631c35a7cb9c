"""The overview: the state of all tasks and workers on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache

from tasks_app.admin.charts import HEIGHT, WIDTH, chart
from tasks_app.admin.start import startable_by
from tasks_app.conf import task_settings
from tasks_app.models import Task, Worker, aware
from tasks_app.states import EventType
from tasks_app.store import statistics
from tasks_app.store.statistics import Presence
from tasks_app.templatetags.tasks import streams_url
from tasks_app.web import display
from tasks_app.web.words import CONNECTION_WORDS, WORDS

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
    from django.utils.functional import _StrPromise

    Base = ModelAdmin[Task]
else:
    Base = object

PRESENCES: Mapping[Presence, _StrPromise] = {
    Presence.ALIVE: gettext_lazy("Alive"),
    Presence.LOST: gettext_lazy("Heartbeat lost"),
    Presence.STOPPED: gettext_lazy("Stopped"),
}


class OverviewViews(Base):
    """The part of TaskAdmin that shows the overview."""

    def get_urls(self) -> list[URLPattern]:
        def view(part: str) -> Any:
            def overview_view(request: HttpRequest) -> HttpResponse:
                return self.overview_view(request, part)

            return self.admin_site.admin_view(never_cache(overview_view))

        return [
            path("overview/", view("page"), name="tasks_app_task_overview"),
            path("overview/part/", view("part"), name="tasks_app_task_overview_part"),
            *super().get_urls(),
        ]

    def overview_view(self, request: HttpRequest, part: str) -> HttpResponse:
        """Show the page, or only the part that its script reloads."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = shown(statistics.overview()) | {
            "opts": self.opts,
            "may_view_workers": self.admin_site.is_registered(Worker)
            and request.user.has_perm("tasks_app.view_worker"),
        }
        if part == "page":
            context |= {
                **self.admin_site.each_context(request),
                "title": _("Overview"),
                "may_start": bool(startable_by(request.user)),
                "live": live(
                    reverse("admin:tasks_app_task_overview_part", current_app=self.admin_site.name),
                    stream_url=stream_url(
                        request, EventType.STATUS, EventType.PROGRESS, EventType.LOG
                    ),
                ),
            }
        return TemplateResponse(request, f"admin/tasks_app/overview/{part}.html", context)


def live(part_url: str, stream_url: str = "") -> dict[str, Any]:
    """Return the data with which the script keeps a page up to date.

    The script reloads `part_url`: after events of the stream, or every few seconds without one.
    """
    return {
        "part_url": part_url,
        "stream_url": stream_url,
        "keepalive": task_settings().stream_keepalive_seconds,
        "words": json.dumps({key: str(word) for key, word in CONNECTION_WORDS.items()}),
    }


def shown(found: statistics.Overview) -> dict[str, Any]:
    """Return the context of the templates, with durations in words."""
    words = {key: str(word) for key, word in WORDS.items()}

    def since(moment: datetime | None) -> str:
        if moment is None:
            return ""
        return display.duration(max(0.0, (found.now - aware(moment)).total_seconds()), words)

    return {
        "overview": found,
        "charts": [chart("hour", found.last_hour), chart("day", found.last_day)],
        "chart_width": WIDTH,
        "chart_height": HEIGHT,
        "alive": found.presences[Presence.ALIVE],
        "lost": found.presences[Presence.LOST],
        "oldest": since(min((q.oldest for q in found.queues if q.oldest), default=None)),
        "queues": [(queue, since(queue.oldest)) for queue in found.queues],
        "workers": [
            (seen, PRESENCES[seen.presence], display.duration(seen.silence, words))
            for seen in found.workers
        ],
    }


def stream_url(request: HttpRequest, *unused: EventType) -> str:
    """Return the URL of the stream of all tasks, without results and without `unused` events.

    Empty if the site serves no streams.
    """
    address = streams_url(request)
    events = ",".join(event for event in EventType.values if event not in unused)
    query = urlencode({"all": 1, "events": events, "results": 0}, safe=",")
    return f"{address}?{query}" if address else ""
