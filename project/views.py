"""Pages about tasks of any class."""

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
#: A page shows at most this many events: the newest.
SHOWN_EVENTS = 200


@login_required
def my_tasks(request: HttpRequest) -> HttpResponse:
    tasks = Task.objects.visible_to(request.user).filter(owner_id=request.user.pk)
    page = Paginator(tasks, TASKS_PER_PAGE).get_page(request.GET.get("page"))
    return render(request, "tasks/list.html", {"page": page, "newest": page.number == 1})


class SiteTaskPage(TaskPage):
    """The page of a task, with details that its class provides."""

    template_name = "tasks/detail.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        task = self.object
        cls = _task_class(task)
        # From the primary, like the task itself: a replica may lack the newest events.
        history = TaskEvent.primary.filter(task=task)
        newest = list(history.order_by("-id")[: SHOWN_EVENTS + 1])
        return super().get_context_data(
            # Secrets are masked, as in the admin.
            details=cls.details(shown_params(task)[0]),
            start_page=cls.start_page,
            events=[(event, describe(event)) for event in newest[:SHOWN_EVENTS][::-1]],
            events_left_out=len(newest) > SHOWN_EVENTS,
            outcome_template=_outcome_template(task),
            file_kept=isinstance(task.result, dict) and bool(files.find(task.result.get("file"))),
            **kwargs,
        )


@login_required
def task_file(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Send the file that a task's result names to a user who may see the task."""
    task = get_object_or_404(Task.objects.visible_to(request.user), pk=task_id)
    result = task.result if isinstance(task.result, dict) else {}
    path = files.find(result.get("file"))
    if path is None:
        raise Http404("This task has no file, or the file has been deleted. Run the task again.")
    # FileResponse has no advantage: under ASGI it reads the whole file too, and warns about it.
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
    """Return the class that provides the page's details; SiteTask if the task's own does not."""
    try:
        cls = resolve(task.name)
    except UnknownTask:
        return SiteTask
    return cls if issubclass(cls, SiteTask) else SiteTask
