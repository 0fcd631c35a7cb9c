"""The pages about tasks of every kind."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render

from project.airports import files
from project.airports.tasks import SiteTask
from project.history import describe
from tasks_app import Status, TaskPage
from tasks_app.admin.masking import shown_params
from tasks_app.exceptions import UnknownTask
from tasks_app.models import Task, TaskEvent
from tasks_app.tasks.base import resolve

TASKS_PER_PAGE = 10
#: A history that is longer shows its newest part.
SHOWN_EVENTS = 200


@login_required
def my_tasks(request: HttpRequest) -> HttpResponse:
    tasks = Task.objects.visible_to(request.user).filter(owner_id=request.user.pk)
    page = Paginator(tasks, TASKS_PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "tasks/list.html", {"page": page, "newest": page.number == 1})


class SiteTaskPage(TaskPage):
    """The page of a task, with what this site knows of its kind."""

    template_name = "tasks/detail.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        task = self.object
        page = _task_class(task)
        # From where it is written, as the page itself: a replica may lack the newest.
        history = TaskEvent.primary.filter(task=task)
        newest = list(history.order_by("-id")[: SHOWN_EVENTS + 1])
        return super().get_context_data(
            # As in the admin: what is declared secret is not for pages.
            details=page.details(shown_params(task)[0]),
            start_page=page.start_page,
            events=[(event, describe(event)) for event in newest[:SHOWN_EVENTS][::-1]],
            events_left_out=len(newest) > SHOWN_EVENTS,
            outcome_template=_outcome_template(task),
            file_kept=isinstance(task.result, dict) and bool(files.find(task.result.get("file"))),
            **kwargs,
        )


@login_required
def task_file(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Send the file that a task names in its result, to whoever may see the task."""
    task = get_object_or_404(Task.objects.visible_to(request.user), pk=task_id)
    result = task.result if isinstance(task.result, dict) else {}
    path = files.find(result.get("file"))
    if path is None:
        raise Http404("This task has no file, or it is no longer kept. Run the task again.")
    # Not FileResponse: under ASGI it reads the whole file as well, and warns that it does.
    response = HttpResponse(path.read_bytes(), content_type="text/csv; charset=utf-8")
    name = re.sub(r"\W+", "-", task.label.lower()).strip("-")
    response.headers["Content-Disposition"] = (
        f'attachment; filename="{name}-{str(task.pk)[:8]}.csv"'
    )
    return response


def _outcome_template(task: Task) -> str:
    match task.status:
        case Status.COMPLETED:
            return _task_class(task).result_template
        case Status.FAILED:
            return "tasks/failed.html"
        case Status.CANCELLED:
            return "tasks/cancelled.html"
        case _:
            return "tasks/unfinished.html"


def _task_class(task: Task) -> type[SiteTask]:
    """Return how the page of a task looks: plain, where its class does not say."""
    try:
        found = resolve(task.name)
    except UnknownTask:
        return SiteTask
    return found if issubclass(found, SiteTask) else SiteTask
