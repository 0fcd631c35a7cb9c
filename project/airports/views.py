"""The list of airports, and the forms that start tasks about them."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.generic import FormView

from project.airports import files
from project.airports.forms import ImportForm, ReachForm, SelectionForm
from project.airports.models import Airport
from project.airports.tasks import BUNDLED, ExportAirports, FarthestReachable, ImportAirports
from tasks_app import BackgroundFormMixin

AIRPORTS_PER_PAGE = 25


@login_required
def airport_list(request: HttpRequest) -> HttpResponse:
    search = request.GET.get("q", "").strip()
    page = Paginator(Airport.objects.search(search), AIRPORTS_PER_PAGE).get_page(
        request.GET.get("page")
    )
    return render(request, "airports/list.html", {"page": page, "search": search})


class StartTask(LoginRequiredMixin, BackgroundFormMixin, FormView):  # type: ignore[type-arg]
    """A form that starts a task and then shows the task's page."""

    template_name = "airports/start.html"
    intro = ""
    button = "Start"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=self.get_task_class().verbose_name,
            intro=self.intro,
            button=self.button,
            **kwargs,
        )

    def get_form_kwargs(self) -> dict[str, Any]:
        return super().get_form_kwargs() | {"label_suffix": ""}

    def get_task_params(self, form: Any) -> dict[str, Any]:
        params: dict[str, Any] = form.params()
        return params


class StartImport(StartTask):
    task_class = ImportAirports
    # Two imports at the same time would only wait for each other.
    task_options = {"unique_key": "import-airports"}
    form_class = ImportForm
    intro = (
        "Imports valid rows, updates existing airports and reports invalid rows. You can watch the "
        "progress and cancel at any time."
    )
    button = "Import"

    def get_task_params(self, form: ImportForm) -> dict[str, Any]:
        upload = form.cleaned_data["file"]
        if upload is None:
            return {"source": BUNDLED}
        return {"source": files.keep_upload(upload), "filename": upload.name}

    def task_refused(self, form: Any, params: Any, error: Any) -> HttpResponse:
        # No task will read it.
        files.discard(params["source"])
        return super().task_refused(form, params, error)


class StartExport(StartTask):
    task_class = ExportAirports
    form_class = SelectionForm
    intro = "Creates a CSV file of the airports you choose, for you to download."
    button = "Export"


class StartReach(StartTask):
    task_class = FarthestReachable
    form_class = ReachForm
    intro = (
        "Finds the farthest airport that a small plane can reach from each airport in a few hops. "
        "For all airports of the world this takes a few minutes. You can leave the page, or cancel."
    )
    button = "Compute"
