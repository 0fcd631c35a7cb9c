"""The page of one task: to look at, with the buttons for what may be done to it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from tasks_app.admin.actions import ACTIONS, CANCEL, RETRY
from tasks_app.admin.history import history_of, log_of
from tasks_app.admin.index_order import WINDOW, IndexOrder, unindexed
from tasks_app.admin.masking import pretty, shown_params, shown_result
from tasks_app.admin.rows import Rows
from tasks_app.models import Task
from tasks_app.schemas import clipped
from tasks_app.states import Status
from tasks_app.store.clock import database_now
from tasks_app.store.ledger import alias
from tasks_app.templatetags.tasks import resumable

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    Base = ModelAdmin[Task]
else:
    Base = object

#: How much of parameters and result a page shows unless it is asked for all of it.
JSON_SHOWN = 20_000
#: The digits of the largest id, less one: any number of so many is one that a database takes.
ID_DIGITS = 18
#: How many related tasks it names.
RELATED = 10


class DetailViews(Base):
    """What TaskAdmin has of a task's page."""

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        if not self.has_view_permission(request):
            raise PermissionDenied
        task = self.get_object(request, object_id)
        if task is None:
            said = _("There is no task %(id)s. It may have been deleted.") % {"id": object_id}
            self.message_user(request, said, messages.WARNING)
            return HttpResponseRedirect(
                reverse("admin:tasks_app_task_changelist", current_app=self.admin_site.name)
            )
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            **self._shown(request, task),
            "title": task.label,
            "opts": self.opts,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/tasks_app/task/change_form.html", context)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Task | None:
        """Read where is written: starts and retries lead here before a replica has the task."""
        tasks = self.get_queryset(request).using(alias())
        try:
            return tasks.select_related("owner", "worker", "retried_from").get(pk=object_id)
        except (Task.DoesNotExist, ValidationError):
            return None

    def _shown(self, request: HttpRequest, task: Task) -> dict[str, Any]:
        # Before anything is read of its history, so that the page's stream goes on from there.
        since = resumable()
        now = database_now(alias())
        [row] = Rows.of([task], request.user, now, self.admin_site.name)
        before, whole = _id_of(request.GET.get("before", "")), "whole" in request.GET
        lines, earlier = log_of(task, before)
        params, declared = shown_params(task)
        result, _declared = shown_result(task)
        again = Task.primary.filter(retried_from=task).first()
        history = history_of(task)
        attempts = history.attempts
        params_text, result_text = pretty(params), pretty(result)
        most = None if whole else JSON_SHOWN
        return {
            "task": task,
            "row": row,
            "since": since,
            "history": history,
            # Of an attempt that is to be followed by another, or was until somebody cancelled it.
            "last_error": attempts[-1].error if attempts and not task.error_type else "",
            "lines": lines,
            "earlier": earlier,
            "before": before,
            "params": clipped(params_text, most) if most else params_text,
            "declared": declared,
            "result": clipped(result_text, most) if most else result_text,
            "has_result": task.status == Status.COMPLETED,
            "params_clipped": most is not None and len(params_text) > most,
            "result_clipped": most is not None and len(result_text) > most,
            "again": again,
            "same_key": list(same_key(self.get_queryset(request), task)) if task.unique_key else [],
            "window": WINDOW,
            "acts": [
                {
                    "act": action,
                    "url": row.shared.url(action.name, task),
                    "now": task.status in action.sources
                    and not (action is CANCEL and row.is_cancelling),
                }
                for action in ACTIONS.values()
                if action.allowed(request.user, task)
                and not (action is RETRY and (again or task.status == Status.COMPLETED))
            ],
        }


def _id_of(text: str) -> int | None:
    """The id of an event that a text is; None for anything else, and for more than ids have."""
    return int(text) if text.isdecimal() and len(text) <= ID_DIGITS else None


def same_key(tasks: QuerySet[Task], task: Task) -> QuerySet[Task]:
    """Other tasks of its unique key, among the newest: no index has those that have finished."""
    newest = IndexOrder.of({})
    found = unindexed(tasks, "unique_key", exact=task.unique_key).exclude(pk=task.pk)
    end: datetime | None = newest.window_end(Task.objects.order_by())
    if end is not None:
        found = newest.up_to(found, end)
    return found.order_by("-created_at").only("pk", "name", "status", "created_at")[:RELATED]
