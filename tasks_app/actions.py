"""Actions of the admin, and forms, that start a task and go on to its live page."""

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

from tasks_app.base import BaseTask, task_class
from tasks_app.display import page_url
from tasks_app.exceptions import DuplicateTask, InvalidParams
from tasks_app.models import Task
from tasks_app.service import task_service

if TYPE_CHECKING:
    from django import forms
    from django.utils.functional import _StrPromise

    from tasks_app.service import Params

    Action = Callable[[Any, HttpRequest, QuerySet[Any]], HttpResponseBase | None]
    Given = Callable[[Any, HttpRequest, QuerySet[Any]], Params | HttpResponseBase | None]

#: The most selected rows whose keys a task is given, unless the action says otherwise.
MOST_SELECTED = 10_000


class TooManySelected(ValueError):
    """More rows are selected than a task is given by their keys."""


def background_action(
    task: type[BaseTask] | str,
    *,
    ids: str = "ids",
    most: int = MOST_SELECTED,
    description: str | _StrPromise | None = None,
    permissions: Sequence[str] | None = None,
    **options: Any,
) -> Callable[[Given], Action]:
    """Make an action of a ModelAdmin start a task, and land on the task's live page.

    The decorated method takes what any action takes. What it returns are the task's parameters;
    where it returns nothing, the primary keys of the selected rows are, under the name of `ids`,
    and more than `most` of them are refused. What it returns of a response, such as a page that
    asks back, is shown instead.

    `description` and `permissions` are those of Django's `admin.action`; there are no others to
    start it. `options` are those of `start_task`; the owner is whoever runs the action.
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
                    modeladmin.log_addition(request, row, _told(action, params, ids))
            except DuplicateTask as error:
                text: str = already_running(cls, error, request)
                modeladmin.message_user(request, text, messages.WARNING)
            except (InvalidParams, TooManySelected) as error:
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


def keys(queryset: QuerySet[Any], most: int = MOST_SELECTED) -> list[Any]:
    """Return the primary keys of rows. Raises TooManySelected, after reading so many and one."""
    found = list(queryset.order_by("pk").values_list("pk", flat=True)[: most + 1])
    if len(found) > most:
        raise TooManySelected(
            _(
                "More than {most:,} are selected, and that is the most this can do at once. "
                "Narrow the list by a filter or a search, or select fewer."
            ).format(most=most)
        )
    return found


def _told(action: Any, params: Params, ids: str) -> str:
    """What the admin's own log says of it."""
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
    """Start a task for whoever is logged in. Raises what `start_task` raises."""
    owner = request.user if request.user.is_authenticated else None
    started = task_service.start_task(task, params, **{"owner": owner, **options})
    row: Task = Task.primary.get(pk=started.task_id)
    return row


def already_running(task: type[BaseTask], error: DuplicateTask, request: HttpRequest) -> SafeString:
    """Say that one at a time is enough, and where it is to be seen, by whom it may be."""
    running = Task.primary.visible_to(request.user).filter(pk=cast(UUID, error.task_id)).first()
    if running is None:
        where: str = _("It is somebody else’s. Try again when it is done.")
    elif url := page_url(running, request.get_full_path()):
        where = format_html('<a href="{}">{}</a>', url, _("Watch it, or cancel it first."))
    else:
        where = _("Wait for it, or cancel it first.")
    said = _("“{task}” is running or waiting already, and one at a time is enough.")
    return format_html("{} {}", said.format(task=task.verbose_name), where)


class BackgroundFormMixin:
    """Makes a form view start a task with what the form says, and go on to the task's live page.

    For FormView and its kin, before them in the bases. A parameter that the task refuses is an
    error of its field, where the form has it.
    """

    #: The task, or its dotted path.
    task_class: type[BaseTask] | str
    #: Options of `start_task`, such as `unique_key`; the owner is whoever is logged in.
    task_options: Mapping[str, Any] = {}
    #: Where to go instead of the task's page.
    success_url: str | _StrPromise | None = None

    request: HttpRequest
    #: What was started, once it was.
    task: Task

    def get_task_class(self) -> type[BaseTask]:
        return task_class(self.task_class)

    def get_task_params(self, form: Any) -> Params:
        """Return the parameters: what the form's fields hold, unless overridden."""
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
        """Show the form again, and why no task was started."""
        if isinstance(error, DuplicateTask):
            form.add_error(None, already_running(self.get_task_class(), error, self.request))
        else:
            for path, fault in error.errors.items():
                # "orders.0.number" is of the field that holds the orders.
                field = path.partition(".")[0]
                known = field in form.fields
                form.add_error(
                    field if known else None, fault if known or not path else f"{path}: {fault}"
                )
        response: HttpResponse = self.form_invalid(form)  # type: ignore[attr-defined]
        return response
