"""The admin's page of one task, with a button for each action that the user may take."""

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

#: A page shows this many characters of parameters and of a result; a link shows all of them.
JSON_SHOWN = 20_000
#: At most this many digits, so that the number fits a bigint.
ID_DIGITS = 18
#: A page lists at most this many related tasks.
RELATED = 10


class DetailViews(Base):
    """The part of TaskAdmin that shows one task."""

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
            text = _("There is no task %(id)s. It may have been deleted.") % {"id": object_id}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(
                reverse("admin:tasks_app_task_changelist", current_app=self.admin_site.name)
            )
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            **self._task_context(request, task),
            "title": task.label,
            "opts": self.opts,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/tasks_app/task/change_form.html", context)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Task | None:
        """Read from the primary: a start or a retry leads here before a replica has the task."""
        tasks = self.get_queryset(request).using(alias())
        try:
            return tasks.select_related("owner", "worker", "retried_from").get(pk=object_id)
        except (Task.DoesNotExist, ValidationError):
            return None

    def _task_context(self, request: HttpRequest, task: Task) -> dict[str, Any]:
        # Take the cursor before reading the history: the page's stream then misses no event.
        since = resumable()
        now = database_now(alias())
        [row] = Rows.of([task], request.user, now, self.admin_site.name)
        before, whole = _id_of(request.GET.get("before", "")), "whole" in request.GET
        lines, earlier = log_of(task, before)
        params, declared = shown_params(task)
        result, _declared = shown_result(task)
        retry = Task.primary.filter(retried_from=task).first()
        history = history_of(task)
        attempts = history.attempts
        params_text, result_text = pretty(params), pretty(result)
        limit = None if whole else JSON_SHOWN
        return {
            "task": task,
            "row": row,
            "since": since,
            "history": history,
            # The error of the last attempt, if another attempt follows or the task was cancelled.
            "last_error": attempts[-1].error if attempts and not task.error_type else "",
            "lines": lines,
            "earlier": earlier,
            "before": before,
            "params": clipped(params_text, limit) if limit else params_text,
            "declared": declared,
            "result": clipped(result_text, limit) if limit else result_text,
            "has_result": task.status == Status.COMPLETED,
            "params_clipped": limit is not None and len(params_text) > limit,
            "result_clipped": limit is not None and len(result_text) > limit,
            "again": retry,
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
                and not (action is RETRY and (retry or task.status == Status.COMPLETED))
            ],
        }


def _id_of(text: str) -> int | None:
    """Return the text as the ID of an event; None if it is not a number or is too long."""
    return int(text) if text.isdecimal() and len(text) <= ID_DIGITS else None


def same_key(tasks: QuerySet[Task], task: Task) -> QuerySet[Task]:
    """Return other tasks with its unique key, among the newest ones.

    No index covers the unique keys of finished tasks.
    """
    newest = IndexOrder.of({})
    others = unindexed(tasks, "unique_key", exact=task.unique_key).exclude(pk=task.pk)
    end: datetime | None = newest.window_end(Task.objects.order_by())
    if end is not None:
        others = newest.up_to(others, end)
    return others.order_by("-created_at").only("pk", "name", "status", "created_at")[:RELATED]
