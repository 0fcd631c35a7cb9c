"""Admin actions and form views that start a task and redirect to its live page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import get_script_prefix
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from tasks_app.exceptions import DuplicateTask, InvalidParams
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.tasks.base import BaseTask, task_class
from tasks_app.tasks.forms.faults import plain_by_field
from tasks_app.web.display import page_url

if TYPE_CHECKING:
    from django import forms
    from django.utils.functional import _StrPromise

    from tasks_app.service import Params

    Action = Callable[[Any, HttpRequest, QuerySet[Any]], HttpResponseBase | None]
    Given = Callable[[Any, HttpRequest, QuerySet[Any]], Params | HttpResponseBase | None]

#: The most selected rows whose keys are passed to a task, unless the action sets another limit.
MOST_SELECTED = 10_000


class TooManySelected(ValueError):
    """More rows are selected than a task accepts."""


def background_action(
    task: type[BaseTask] | str,
    *,
    ids: str = "ids",
    most: int = MOST_SELECTED,
    description: str | _StrPromise | None = None,
    permissions: Sequence[str] | None = None,
    **options: Any,
) -> Callable[[Given], Action]:
    """Return a decorator for a ModelAdmin action that starts a task and redirects to its page.

    The decorated method takes the arguments of any action. It returns the parameters of the task.
    If it returns None, the parameter named by `ids` gets the primary keys of the selected rows;
    more than `most` rows are refused. If it returns a response, such as a confirmation page, that
    response is shown instead.

    `description` and `permissions` are those of Django's `admin.action`; no other permission is
    checked. `options` are those of `start_task`. The owner is the user who runs the action.
    """

    def decorate(method: Given) -> Action:
        @wraps(method)
        def action(
            modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]
        ) -> HttpResponseBase | None:
            cls = task_class(task)
            try:
                params = method(modeladmin, request, queryset)
                if isinstance(params, HttpResponseBase):
                    return params
                if params is None:
                    params = {ids: keys(queryset, most)}
                with transaction.atomic():
                    row = start(cls, params, request, options)
                    modeladmin.log_addition(request, row, _log_message(action, params, ids))
            except DuplicateTask as error:
                text: str = already_running(cls, error, request)
                modeladmin.message_user(request, text, messages.WARNING)
            except InvalidParams as error:
                modeladmin.message_user(request, _not_started(error), messages.ERROR)
            except TooManySelected as error:
                modeladmin.message_user(request, str(error), messages.ERROR)
            else:
                if url := page_url(row, request.get_full_path()):
                    return HttpResponseRedirect(url)
                text = _("“{task}” was started.").format(task=row.label)
                modeladmin.message_user(request, text, messages.SUCCESS)
            return None

        return cast(
            "Action", admin.action(action, permissions=permissions, description=description)
        )

    return decorate


def _not_started(error: InvalidParams) -> str:
    faults = plain_by_field(error.faults).items()
    said = " ".join(f"{field}: {fault}" if field else fault for field, fault in faults)
    return _("Not started. {faults}").format(faults=said)


def keys(queryset: QuerySet[Any], most: int = MOST_SELECTED) -> list[Any]:
    """Return the primary keys of rows. Raises TooManySelected if there are more than `most`."""
    found = list(queryset.order_by("pk").values_list("pk", flat=True)[: most + 1])
    if len(found) > most:
        raise TooManySelected(
            _(
                "At most {most:,} rows can be selected for this action. "
                "Narrow the list by a filter or a search, or select fewer rows."
            ).format(most=most)
        )
    return found


def _log_message(action: Any, params: Params, ids: str) -> str:
    """Return the message for the admin's log."""
    name = getattr(action, "short_description", None) or capfirst(action.__name__.replace("_", " "))
    selected = params.get(ids) if isinstance(params, Mapping) else None
    if not isinstance(selected, list):
        return _("Started by the action “{action}”.").format(action=name)
    return ngettext(
        "Started by the action “{action}” for {count} selected row.",
        "Started by the action “{action}” for {count} selected rows.",
        len(selected),
    ).format(action=name, count=len(selected))


def start(
    task: type[BaseTask], params: Params, request: HttpRequest, options: Mapping[str, Any]
) -> Task:
    """Start a task for the logged-in user. Raises what `start_task` raises."""
    owner = request.user if request.user.is_authenticated else None
    started = task_service.start_task(task, params, **{"owner": owner, **options})
    row: Task = Task.primary.get(pk=started.task_id)
    return row


def already_running(task: type[BaseTask], error: DuplicateTask, request: HttpRequest) -> SafeString:
    """Return a message that the task is already running, with a link if the user may see it."""
    running = Task.primary.visible_to(request.user).filter(pk=cast(UUID, error.task_id)).first()
    if running is None:
        where: str = _("Someone else is running this. Try again later.")
    elif url := page_url(running, request.get_full_path()):
        where = format_html('<a href="{}">{}</a>', url, _("Watch it, or cancel it first."))
    else:
        where = _("Wait for it, or cancel it first.")
    message = _("“{task}” is already running or waiting. Only one can run at a time.")
    return format_html("{} {}", message.format(task=task.verbose_name), where)


class BackgroundFormMixin:
    """Makes a form view start a task with the form's data, and redirect to the task's live page.

    Put it before FormView (or a similar class) in the bases. If the task refuses a parameter, the
    error is shown at the field of that name, if the form has one.
    """

    #: The task class, or its dotted path.
    task_class: type[BaseTask] | str
    #: Options of `start_task`, such as `unique_key`. The owner is the logged-in user.
    task_options: Mapping[str, Any] = {}
    #: The URL to redirect to, instead of the task's page.
    success_url: str | _StrPromise | None = None

    request: HttpRequest
    #: The started task. Set after the start.
    task: Task

    def get_task_class(self) -> type[BaseTask]:
        return task_class(self.task_class)

    def get_task_params(self, form: Any) -> Params:
        """Return the parameters of the task: the form's cleaned data, unless overridden."""
        params: dict[str, Any] = form.cleaned_data
        return params

    def get_task_options(self) -> Mapping[str, Any]:
        return self.task_options

    def get_success_url(self) -> str:
        return str(self.success_url or "") or page_url(self.task) or get_script_prefix()

    def form_valid(self, form: forms.BaseForm) -> HttpResponse:
        params = self.get_task_params(form)
        try:
            self.task = start(self.get_task_class(), params, self.request, self.get_task_options())
        except (InvalidParams, DuplicateTask) as error:
            return self.task_refused(form, params, error)
        return HttpResponseRedirect(self.get_success_url())

    def task_refused(
        self, form: forms.BaseForm, params: Params, error: InvalidParams | DuplicateTask
    ) -> HttpResponse:
        """Show the form again, with the reason why no task was started."""
        if isinstance(error, DuplicateTask):
            form.add_error(None, already_running(self.get_task_class(), error, self.request))
        else:
            for path, fault in plain_by_field(error.faults).items():
                # An error of "orders.0.number" belongs to the field "orders".
                field = path.partition(".")[0]
                known = field in form.fields
                form.add_error(
                    field if known else None, fault if known or not path else f"{path}: {fault}"
                )
        response: HttpResponse = self.form_invalid(form)  # type: ignore[attr-defined]
        return response
