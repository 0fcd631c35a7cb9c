"""The admin's views behind its buttons and bulk actions: cancel, retry and delete tasks."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import LogEntry
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_protect

from tasks_app.admin.actions import (
    ACTIONS,
    CANCEL,
    REMOVE,
    RETRY,
    Action,
    messages_about,
    translated,
    write_log,
)
from tasks_app.admin.filters.times import RetriedFilter
from tasks_app.admin.index_order import RETRIED
from tasks_app.exceptions import TaskError, TaskNotFound
from tasks_app.models import Task
from tasks_app.store import bulk
from tasks_app.store.clock import database_now, parse_time
from tasks_app.store.ledger import alias
from tasks_app.web.refusals import sentence, why

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Task]
else:
    Base = object

#: One request changes at most this many tasks.
MAX_TASKS = 20_000
#: The confirmation page names at most this many tasks.
NAMED = 20


class ActionViews(Base):
    """The part of TaskAdmin that changes tasks: a button for one, an action for many."""

    def has_cancel_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return request.user.has_perm("tasks_app.cancel_task")

    def has_retry_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return request.user.has_perm("tasks_app.retry_task")

    def has_remove_permission(self, request: HttpRequest, obj: Task | None = None) -> bool:
        return request.user.has_perm("tasks_app.delete_task")

    def get_urls(self) -> list[URLPattern]:
        action_urls = [
            path(
                f"<uuid:task_id>/{action.name}/",
                self.admin_site.admin_view(partial(self.action_view, action=action)),
                name=f"tasks_app_task_{action.name}",
            )
            for action in ACTIONS.values()
        ]
        return action_urls + super().get_urls()

    @admin.action(permissions=["cancel"], description=CANCEL.menu_label)
    def cancel_selected(
        self, request: HttpRequest, _queryset: QuerySet[Task]
    ) -> HttpResponseBase | None:
        return self._act_on_many(request, CANCEL)

    @admin.action(permissions=["retry"], description=RETRY.menu_label)
    def retry_selected(
        self, request: HttpRequest, _queryset: QuerySet[Task]
    ) -> HttpResponseBase | None:
        return self._act_on_many(request, RETRY)

    @admin.action(permissions=["remove"], description=REMOVE.menu_label)
    def remove_selected(
        self, request: HttpRequest, _queryset: QuerySet[Task]
    ) -> HttpResponseBase | None:
        return self._act_on_many(request, REMOVE)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Ask before a task is deleted.

        Replaces Django's view, which reads the whole history of the task.
        """
        task = self.get_object(request, object_id)
        if task is None:
            raise Http404(_("There is no such task."))
        if not REMOVE.allowed(request.user, task):
            raise PermissionDenied
        if request.method == "POST":
            return self._act_on_one(request, task, REMOVE)
        return self._ask(
            request,
            REMOVE,
            {
                "tasks": [task],
                "task": task,
                "refused": ""
                if task.status in REMOVE.sources
                else _("Only finished tasks can be deleted: cancel this one first."),
            },
        )

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show who did what, in the language of the reader."""
        response: Any = super().history_view(request, object_id, extra_context)
        # A redirect has no context.
        for entry in getattr(response, "context_data", {}).get("action_list", ()):
            entry.get_change_message = partial(_log_message, entry)
        return cast(HttpResponse, response)

    def action_view(self, request: HttpRequest, task_id: UUID, action: Action) -> HttpResponseBase:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        return csrf_protect(self._posted)(request, task_id, action)

    def _posted(self, request: HttpRequest, task_id: UUID, action: Action) -> HttpResponse:
        # Read from the primary: a replica may lag behind, and this decides what may be done.
        task = self.get_queryset(request).using(alias()).filter(pk=task_id).first()
        if task is None:
            raise Http404(_("There is no such task."))
        if not action.allowed(request.user, task):
            raise PermissionDenied
        if (
            action.needs_confirmation
            and task.status in action.sources
            and request.accepts("text/html")
            and not request.POST.get("confirmed")
        ):
            back = _way_back(request, self._url("change", task.pk))
            return self._ask(request, action, {"tasks": [task], "task": task, "back": back})
        return self._act_on_one(request, task, action)

    def _act_on_one(self, request: HttpRequest, task: Task, action: Action) -> HttpResponse:
        user = request.user
        try:
            with transaction.atomic(using=alias()):
                outcome = action.do(task.pk, user)
                write_log(action, user, [bulk.Done(task, outcome)])
        except TaskError as error:
            if not request.accepts("text/html"):
                return JsonResponse({"detail": why(error)}, status=HTTPStatus.CONFLICT)
            self.message_user(request, sentence(error), messages.ERROR)
            return HttpResponseRedirect(_way_back(request, self._url("change", task.pk)))
        if not request.accepts("text/html"):
            return JsonResponse({"detail": action.message(outcome)})
        self.message_user(request, f"{task.label}: {action.message(outcome)}", messages.SUCCESS)
        if action is REMOVE:
            return HttpResponseRedirect(self._url("changelist"))
        if action is RETRY:
            return HttpResponseRedirect(self._url("change", outcome.task_id))
        return HttpResponseRedirect(_way_back(request, self._url("change", task.pk)))

    def _url(self, view: str, *args: UUID) -> str:
        name = f"admin:tasks_app_task_{view}"
        return reverse(name, args=args, current_app=self.admin_site.name)

    def _act_on_many(self, request: HttpRequest, action: Action) -> HttpResponseBase | None:
        across = request.POST.get("select_across") == "1"
        chosen = list(dict.fromkeys(request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)))
        # Rows change in place on the page, so a selected task may no longer match the filters.
        selected = self.get_queryset(request).filter(pk__in=chosen)
        changelist: Any = self.get_changelist_instance(request)
        asked_at = parse_time(request.POST.get("asked", ""))
        confirmed = bool(request.POST.get("confirmed")) and (asked_at is not None or not across)
        if (action.needs_confirmation or across) and not confirmed:
            tasks = changelist.queryset if across else selected
            context = {
                "tasks": tasks.select_related(None).only("pk", "name", "status")[:NAMED],
                "chosen": chosen[:1] if across else chosen,
                "across": across,
                "count": changelist.result_count if across else len(chosen),
                "or_more": across and (changelist.is_bounded or changelist.window is not None),
                "action": f"{action.name}_selected",
                "asked": database_now(alias()).isoformat() if across else "",
            }
            return self._ask(request, action, context)
        # Tasks that were selected one by one are all tried, and the message lists each refusal.
        # "All matching tasks" leaves out those the action cannot change, which may be very many.
        if asked_at is not None and across:
            selected = action.possible(changelist.everything, asked_at)[: MAX_TASKS + 1]
        ids = list(selected.values_list("pk", flat=True))
        began = database_now(alias())
        summary = bulk.each(
            ids[:MAX_TASKS],
            lambda task_id: action.do(task_id, request.user),
            partial(write_log, action, request.user),
        )
        if not across and (gone := len(chosen) - len(ids)):
            summary.refused[TaskNotFound, None] += gone
        limit = MAX_TASKS if len(ids) > MAX_TASKS else None
        for succeeded, text in messages_about(action, summary, limit):
            if succeeded and action is RETRY:
                text = self._with_link(text, RetriedFilter.between(began, database_now(alias())))
            self.message_user(request, text, messages.SUCCESS if succeeded else messages.WARNING)
        return None

    def _with_link(self, text: str, retried: str) -> str:
        """Add a link to the tasks that a bulk retry started."""
        url = f"{self._url('changelist')}?{urlencode({RETRIED: retried})}"
        return format_html('{} <a href="{}">{}</a>', text, url, _("View new tasks"))

    def _ask(
        self, request: HttpRequest, action: Action, context: dict[str, Any]
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name
        count = 1 if "task" in context else context["count"]
        return TemplateResponse(
            request,
            "admin/tasks_app/task/confirm.html",
            {
                **self.admin_site.each_context(request),
                "title": action.question(count),
                "opts": self.opts,
                "act": action,
                "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
                **context,
            },
        )


def _log_message(entry: LogEntry) -> str:
    return translated(LogEntry.get_change_message(entry))


def _way_back(request: HttpRequest, default: str) -> str:
    """Return the page to go back to: the one the form names, else the referring page."""
    url = request.POST.get("back") or request.headers.get("Referer")
    if url and url_has_allowed_host_and_scheme(
        url, {request.get_host()}, require_https=request.is_secure()
    ):
        return url
    return default
