"""The list of airports, and the forms that start tasks about them."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.views.generic import FormView

from project.airports import files
from project.airports.forms import ImportForm, ReachForm, SelectionForm
from project.airports.models import Airport
from project.airports.tasks import BUNDLED, ExportAirports, FarthestReachable, ImportAirports
from tasks_app.base import BaseTask
from tasks_app.exceptions import DuplicateTask, InvalidParams
from tasks_app.models import Task
from tasks_app.service import task_service

AIRPORTS_PER_PAGE = 25


@login_required
def airport_list(request: HttpRequest) -> HttpResponse:
    search = request.GET.get("q", "").strip()
    page = Paginator(Airport.objects.search(search), AIRPORTS_PER_PAGE).get_page(
        request.GET.get("page")
    )
    return render(request, "airports/list.html", {"page": page, "search": search})


class StartTask(LoginRequiredMixin, FormView):  # type: ignore[type-arg]
    """A form that starts one kind of task, and goes on to its page."""

    task: ClassVar[type[BaseTask]]
    unique_key: ClassVar[str | None] = None
    template_name = "airports/start.html"
    intro = ""
    button = "Start"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=self.task.verbose_name, intro=self.intro, button=self.button, **kwargs
        )

    def get_form_kwargs(self) -> dict[str, Any]:
        return super().get_form_kwargs() | {"label_suffix": ""}

    def params(self, form: Any) -> dict[str, Any]:
        params: dict[str, Any] = form.params()
        return params

    def form_valid(self, form: forms.Form) -> HttpResponse:
        params = self.params(form)
        try:
            started = task_service.start_task(
                self.task, params, owner=self.request.user, unique_key=self.unique_key
            )
        except InvalidParams as error:
            self.withdraw(params)
            for field, fault in error.errors.items():
                form.add_error(field if field in form.fields else None, fault)
            return self.form_invalid(form)
        except DuplicateTask as error:
            self.withdraw(params)
            return self.already_running(error)
        return redirect("task", started.task_id)

    def withdraw(self, params: dict[str, Any]) -> None:
        """Undo what `params()` did, for no task was started."""

    def already_running(self, error: DuplicateTask) -> HttpResponse:
        user = self.request.user
        link: str
        if error.task_id and Task.objects.visible_to(user).filter(pk=error.task_id).exists():
            link = format_html(
                '<a href="{}">Watch it</a>, or cancel it first.',
                reverse("task", args=[error.task_id]),
            )
        else:
            link = "It is somebody else’s; try again when it is done."
        text = format_html(
            "“{}” is running or waiting already, and one at a time is enough. {}",
            self.task.verbose_name,
            link,
        )
        messages.warning(self.request, text)
        return redirect(self.request.path)


class StartImport(StartTask):
    task = ImportAirports
    # Two imports at once would only wait for each other.
    unique_key = "import-airports"
    form_class = ImportForm
    intro = (
        "Each row is checked; the good ones are stored, and airports that are there already are "
        "brought up to date. You can watch it happen, and cancel it."
    )
    button = "Import"

    def params(self, form: ImportForm) -> dict[str, Any]:
        upload = form.cleaned_data["file"]
        if upload is None:
            return {"source": BUNDLED}
        return {"source": files.keep_upload(upload), "filename": upload.name}

    def withdraw(self, params: dict[str, Any]) -> None:
        files.discard(params["source"])


class StartExport(StartTask):
    task = ExportAirports
    form_class = SelectionForm
    intro = "Writes the airports you choose to a CSV file for you to download."
    button = "Export"


class StartReach(StartTask):
    task = FarthestReachable
    form_class = ReachForm
    intro = (
        "For each airport: which is the farthest one a small aeroplane comes to in a few hops? "
        "For all airports of the world this takes some minutes, in which you may leave the page, "
        "or think better of it and cancel."
    )
    button = "Compute"
