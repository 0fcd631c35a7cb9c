"""The admin's pages that start a task."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import escape, format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_post_parameters
from pydantic import ValidationError

from tasks_app.exceptions import DuplicateTask, InvalidParams, InvalidTask, UnknownTask
from tasks_app.models import Task
from tasks_app.permissions import may_start
from tasks_app.service import StartOptions, task_service, users_key
from tasks_app.store.ledger import alias
from tasks_app.tasks import registry
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.forms import TaskForm, fields_of, form_for, given
from tasks_app.tasks.forms.faults import plain

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    from tasks_app.permissions import User

    Base = ModelAdmin[Task]
else:
    Base = object


class StartViews(Base):
    """The part of TaskAdmin that starts tasks."""

    def get_urls(self) -> list[URLPattern]:
        # The posted data may hold secrets, which must not appear in error reports.
        form_view = sensitive_post_parameters()(self.start_form_view)
        return [
            path(
                "start/",
                self.admin_site.admin_view(self.start_view),
                name="tasks_app_task_start",
            ),
            path(
                "start/<str:name>/",
                self.admin_site.admin_view(form_view),
                name="tasks_app_task_start_form",
            ),
            *super().get_urls(),
        ]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return super().has_module_permission(request) or bool(startable_by(request.user))

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        """Show "Add" on the admin's index to users who may start a task, and to no others.

        `has_add_permission` would not do: the site's own forms that refer to tasks would show it
        too.
        """
        return super().get_model_perms(request) | {"add": bool(startable_by(request.user))}

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the start page, because adding a task means starting it."""
        if not startable_by(request.user):
            raise PermissionDenied
        return HttpResponseRedirect(self._start_url())

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Add `start_url` to the context, empty if the user may start no task."""
        start_url = self._start_url() if startable_by(request.user) else ""
        return super().changelist_view(request, {"start_url": start_url, **(extra_context or {})})

    def start_view(self, request: HttpRequest) -> HttpResponse:
        """List the tasks that the user may start."""
        offers = [Offer(task) for task in startable_by(request.user)]
        if not offers and not self.has_view_permission(request):
            raise PermissionDenied
        search = request.GET.get("q", "").strip()
        return self._page(
            request,
            "list.html",
            title=_("Start a task"),
            offers=[offer for offer in offers if offer.is_found_by(search)],
            many=len(offers),
            search=search,
            problems=registry.problems(),
        )

    def start_form_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for the parameters of one task, and start it."""
        try:
            task = registry.find(name, among=startable_by(request.user))
        except UnknownTask:
            # A task that the user may not start looks like one that does not exist.
            raise Http404(_("There is no such task, or none that you may start.")) from None
        form = options = None
        refused = ""
        try:
            data = request.POST if request.method == "POST" else None
            form, options = form_for(task)(data), OptionsForm(task, data)
            if form.is_valid() & options.is_valid():
                return self._start(request, task, form, options)
        except InvalidTask as error:
            refused = str(error)
        except InvalidParams as error:
            # Valid a moment ago: a rule depends on the time or on the database.
            cast(TaskForm, form).refuse(error)
        except DuplicateTask as error:
            cast(OptionsForm, options).add_error("unique_key", self._taken(request, error))
        _focus(form, options)
        return self._page(
            request,
            "form.html",
            title=_("Start: %(task)s") % {"task": task.verbose_name},
            offer=Offer(task),
            form=form,
            options=options,
            refused=refused,
        )

    def _taken(self, request: HttpRequest, error: DuplicateTask) -> str:
        """Return the error for a taken unique key, with a link if the user may see the task."""
        holder = Task.primary.visible_to(request.user).filter(pk=cast(Any, error.task_id)).first()
        if holder is None:
            return error.without_key
        url = reverse(
            "admin:tasks_app_task_change", args=[holder.pk], current_app=self.admin_site.name
        )
        return format_html('{} <a href="{}">{}</a>', error.without_key, url, _("View task"))

    def _start(
        self, request: HttpRequest, task: type[BaseTask], form: TaskForm, options: OptionsForm
    ) -> HttpResponse:
        chosen = dict(options.chosen)
        if key := chosen.get("unique_key"):
            chosen["unique_key"] = users_key(request.user, key)
        with transaction.atomic(using=alias()):
            started = task_service.start_task(task, form.params, owner=request.user, **chosen)
            row = Task.primary.get(pk=started.task_id)
            self.log_addition(request, row, [{"added": {}}])
        self.message_user(
            request, _("%(task)s was started.") % {"task": task.verbose_name}, messages.SUCCESS
        )
        if not self.has_view_permission(request, row):
            return HttpResponseRedirect(self._start_url())
        return HttpResponseRedirect(
            reverse("admin:tasks_app_task_change", args=[row.pk], current_app=self.admin_site.name)
        )

    def _start_url(self) -> str:
        return reverse("admin:tasks_app_task_start", current_app=self.admin_site.name)

    def _page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        return TemplateResponse(
            request,
            f"admin/tasks_app/start/{template}",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                **context,
            },
        )


def startable_by(user: User) -> list[type[BaseTask]]:
    """Return the tasks that a user may start."""
    return [task for task in registry.startable_tasks() if may_start(user, task)]


@dataclass(frozen=True, slots=True)
class Offer:
    """A task that a user can choose to start."""

    task: type[BaseTask]

    @property
    def name(self) -> str:
        return self.task.name()

    @property
    def label(self) -> str:
        return str(self.task.verbose_name)

    @property
    def description(self) -> str:
        """The docstring of the class itself, not an inherited one."""
        return inspect.cleandoc(self.task.__doc__ or "")

    @property
    def summary(self) -> str:
        return self.description.partition("\n")[0]

    def is_found_by(self, search: str) -> bool:
        """Return whether it contains every word of a search."""
        text = f"{self.label} {self.name} {self.description} {self.task.queue}".casefold()
        return all(word in text for word in search.casefold().split())


class OptionsForm(forms.Form):
    """Options of the start that replace those of the task class. StartOptions validates them."""

    prefix = "options"

    HELP = {
        "queue": gettext_lazy("Leave blank for the default (%(default)s)."),
        "priority": gettext_lazy("Higher runs first. Leave blank for the default (%(default)s)."),
        "run_after": gettext_lazy("Leave blank to start now."),
        "unique_key": gettext_lazy("Only one unfinished task of yours can have this key."),
    }

    def __init__(self, task: type[BaseTask], data: Any = None) -> None:
        super().__init__(data)
        self.task = task
        fields = fields_of(StartOptions)
        for name, help_text in self.HELP.items():
            field = self.fields[name] = fields[name]
            default = getattr(task, name, None)
            if name == "run_after":
                zone = timezone.get_current_timezone_name()
                field.label = _("Earliest start (%(zone)s)") % {"zone": zone}
            field.help_text = str(help_text) % {"default": escape(default)}
            # No option is required, because the class has a default.
            field.required = False
            if default is not None:
                field.widget.attrs["placeholder"] = default

    def clean(self) -> dict[str, Any]:
        self.chosen = given(self.cleaned_data)
        try:
            StartOptions.of(self.task, self.chosen)
        except ValidationError as error:
            for fault in error.errors():
                name = str(fault["loc"][0])
                self.add_error(name if name in self.fields else None, plain(fault))
        return self.cleaned_data


def _focus(*candidates: forms.Form | None) -> None:
    """Set the focus of the page on the first field with an error."""
    for form in filter(None, candidates):
        # In the order of the page: `errors` has the form's own errors before the model's.
        for name, field in form.fields.items():
            if name in form.errors:
                field.widget.attrs["autofocus"] = True
                return
