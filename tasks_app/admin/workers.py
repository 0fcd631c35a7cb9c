"""The admin of workers, which is read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from tasks_app.admin.overview import PRESENCES, live
from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.store import statistics
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias
from tasks_app.store.statistics import Presence
from tasks_app.web import display
from tasks_app.web.words import WORDS

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Worker]
else:
    Base = admin.ModelAdmin


class PresenceFilter(admin.SimpleListFilter):
    """Alive, lost and stopped workers."""

    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, Any]]:
        return [(presence.value, word) for presence, word in PRESENCES.items()]

    def queryset(self, _request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        now = database_now(alias())
        match self.value():
            case Presence.STOPPED.value:
                return queryset.filter(stopped_at__isnull=False)
            case Presence.LOST.value:
                return queryset.lost(now)  # type: ignore[attr-defined,no-any-return]
            case Presence.ALIVE.value:
                lost = queryset.model.objects.lost(now)
                return queryset.filter(stopped_at__isnull=True).exclude(pk__in=lost.values("pk"))
            case _:
                return queryset


class WorkerChangeList(ChangeList):
    """A list whose workers have their current state."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = _seen(self.result_list)


class WorkerAdmin(Base):
    """Workers, whether each is alive, and how busy it is."""

    list_display = ("process", "state", "work", "stuck_threads", "from_queues", "beat", "started")
    list_filter = (PresenceFilter,)
    ordering = ("-heartbeat_at",)
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions = None
    fields = readonly_fields = (
        "process",
        "state",
        "work",
        "stuck_threads",
        "from_queues",
        "started",
        "beat",
        "heartbeat",
        "stopped",
    )

    class Media:
        css = {"all": ["tasks_app/admin.css", "tasks_app/overview.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Worker | None = None) -> bool:
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"live": live(request.get_full_path()), **(extra_context or {})}
        return super().changelist_view(request, context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        context = {"live": live(request.get_full_path()), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return WorkerChangeList

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Worker | None:
        worker = super().get_object(request, object_id, from_field)
        return _seen([worker])[0] if worker else None

    @admin.display(description=gettext_lazy("host and process"))
    def process(self, worker: Worker) -> str:
        return str(worker)

    @admin.display(description=gettext_lazy("state"))
    def state(self, worker: Worker) -> SafeString:
        presence = _of(worker).presence
        return format_html(
            '<span class="worker-presence" data-presence="{}">{}</span>',
            presence.value,
            PRESENCES[presence],
        )

    @admin.display(description=gettext_lazy("busy"))
    def work(self, worker: Worker) -> str | SafeString:
        running = _of(worker).running
        text = ngettext(
            "%(busy)s of %(threads)s thread busy",
            "%(busy)s of %(threads)s threads busy",
            worker.threads,
        ) % {"busy": running, "threads": worker.threads}
        if not running or not self.admin_site.is_registered(Task):
            return text
        tasks = reverse("admin:tasks_app_task_changelist", current_app=self.admin_site.name)
        url = f"{tasks}?worker={worker.pk}&status={Status.RUNNING}"
        return format_html('<a href="{}">{}</a>', url, text)

    @admin.display(description=gettext_lazy("stuck threads"))
    def stuck_threads(self, worker: Worker) -> int:
        return worker.stuck

    @admin.display(description=gettext_lazy("queues"))
    def from_queues(self, worker: Worker) -> str:
        return ", ".join(worker.queues) or _("all")

    @admin.display(description=gettext_lazy("last heartbeat"))
    def beat(self, worker: Worker) -> str:
        words = {key: str(word) for key, word in WORDS.items()}
        return _("%(time)s ago") % {"time": display.duration(_of(worker).silence, words)}

    @admin.display(description=display.zoned(gettext_lazy("started")))
    def started(self, worker: Worker) -> SafeString:
        return display.time_element(worker.started_at)

    @admin.display(description=display.zoned(gettext_lazy("last heartbeat at")))
    def heartbeat(self, worker: Worker) -> SafeString:
        return display.time_element(worker.heartbeat_at)

    @admin.display(description=display.zoned(gettext_lazy("stopped")))
    def stopped(self, worker: Worker) -> str:
        # Django shows None as "None" in a read-only field.
        if worker.stopped_at is None:
            return str(self.get_empty_value_display())
        return display.time_element(worker.stopped_at)


def _seen(workers: Any) -> list[Worker]:
    """Add to each worker its current state: presence, running tasks, time since a heartbeat."""
    rows = list(workers)
    for worker, state in zip(rows, statistics.seen(rows), strict=True):
        worker.seen = state
    return rows


def _of(worker: Worker) -> statistics.Seen:
    state: statistics.Seen = worker.seen  # type: ignore[attr-defined]
    return state
