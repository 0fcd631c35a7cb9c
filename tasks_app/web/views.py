"""Views for pages: a task's page, its status and stream; and to cancel and retry it."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.core.handlers.asgi import ASGIRequest
from django.db.models import QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    JsonResponse,
)
from django.urls import get_script_prefix
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from django.views.generic import DetailView

from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    IllegalTransition,
    TaskNotFound,
    UnknownTask,
)
from tasks_app.live.channels import InvalidStreamRequest, requested, task_of
from tasks_app.live.endpoint import answer, respond, stream_view
from tasks_app.models import Task, aware
from tasks_app.permissions import conflict_details, may_cancel, may_retry, may_view
from tasks_app.service import task_service
from tasks_app.web.display import is_stalled, no_worker
from tasks_app.web.refusals import sentence

if TYPE_CHECKING:
    TaskDetailView = DetailView[Task]
else:
    TaskDetailView = DetailView

NOT_FOUND = "Task not found, or you don't have permission to view it."


@login_not_required  # A script gets an error, not a redirect. So do the views below.
@stream_view
async def stream(request: HttpRequest, task_id: UUID | None = None) -> HttpResponseBase:
    """Hand a stream over to `with_task_streams`; or send it if asgi.py does not use that.

    In the second case, each open stream keeps a thread as long as it lasts.
    """
    if not isinstance(request, ASGIRequest):
        return HttpResponse(
            "Streams need ASGI. Serve this site with uvicorn or daphne.",
            status=HTTPStatus.NOT_IMPLEMENTED,
            content_type="text/plain",
        )
    return respond(request, await answer(request, request.user, task_id))


class TaskPage(LoginRequiredMixin, TaskDetailView):
    """The page of one task, for users who may see it; 404 for others.

    `?next=` is the page to go back to. To give it the site's design, override the template
    `tasks_app/base.html`, or subclass this view.
    """

    template_name = "tasks_app/task_page.html"
    context_object_name = "task"
    pk_url_kwarg = "task_id"

    def get_queryset(self) -> QuerySet[Task]:
        # All views here read the primary: a replica may lack a task that was just started.
        visible: QuerySet[Task] = Task.primary.visible_to(self.request.user)
        return visible

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        back = _of_this_site(self.request, self.request.GET.get("next"))
        return super().get_context_data(back=back, **kwargs)


@login_not_required
@require_safe
@never_cache
def status(request: HttpRequest, task_id: UUID) -> JsonResponse:
    task = Task.primary.visible_to(request.user).filter(pk=task_id).first()
    if task is None:
        return JsonResponse({"detail": NOT_FOUND}, status=404)
    return _dated(_as_it_stands([task], request)[0])


@login_not_required
@require_safe
@never_cache
def statuses(request: HttpRequest) -> JsonResponse:
    """Return the status of the tasks in the query that the user may see."""
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "Log in to see tasks."}, status=403)
    try:
        ids = [
            task_id for channel in requested(request, request.user) if (task_id := task_of(channel))
        ]
        if not ids:
            raise InvalidStreamRequest(
                "Name at least one task by ?task=<id>; repeat it for more tasks."
            )
    except InvalidStreamRequest as error:
        return JsonResponse({"detail": str(error)}, status=400)
    tasks = Task.primary.visible_to(request.user).filter(pk__in=ids)
    return _dated({"tasks": _as_it_stands(tasks, request)})


def _as_it_stands(tasks: Iterable[Task], request: HttpRequest) -> list[dict[str, Any]]:
    """Return a TaskInfo of each task.

    A task that has waited for long also gets `no_worker`: the message if no worker takes its queue,
    else an empty string.
    """
    now, tasks = timezone.now(), list(tasks)
    queues = {task.queue for task in tasks if is_stalled(task, now)}
    messages = dict.fromkeys(queues, "") | no_worker(queues, request.user)
    return [
        task.info().model_dump(mode="json")
        | ({"no_worker": messages[task.queue]} if is_stalled(task, now) else {})
        for task in tasks
    ]


@require_POST
def cancel(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Cancel a task. Answer a script with JSON, and a page without script with a redirect."""
    task = Task.primary.filter(pk=task_id).first()
    user = request.user
    if task is None or not user.is_authenticated or not may_cancel(user, task):
        return _not_found(request)
    code = HTTPStatus.OK
    try:
        info = task_service.cancel_task(task_id, by=user)
    except IllegalTransition:
        # Read it again: the row read above may be from when the task still ran.
        ended = Task.primary.filter(pk=task_id).first()
        if ended is None:
            return _not_found(request)
        code, info = HTTPStatus.CONFLICT, ended.info()
    except TaskNotFound:
        return _not_found(request)
    if request.accepts("text/html"):
        return HttpResponseRedirect(_way_back(request))
    # A user who may cancel a task may not always see it. Hide its parameters and its result then.
    fields = None if may_view(user, task) else {"task_id", "status", "cancel_requested"}
    return _dated(info.model_dump(mode="json", include=fields), status=code)


@require_POST
def retry(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Retry a failed or cancelled task. Answer a script with JSON, else redirect to the new task.

    If the form field `next` is a page of this site, redirect there instead.
    """
    task = Task.primary.filter(pk=task_id).first()
    user = request.user
    if task is None or not user.is_authenticated or not may_retry(user, task):
        return _not_found(request)
    try:
        started = task_service.retry_task(task_id, by=user)
    except TaskNotFound:
        return _not_found(request)
    except (IllegalTransition, DuplicateTask, UnknownTask) as error:
        return _not_retried(request, error, task)
    if request.accepts("text/html"):
        return _to_task(request, started.task_id)
    return JsonResponse(started.model_dump(mode="json"), status=HTTPStatus.ACCEPTED)


def _dated(data: dict[str, Any], status: int = HTTPStatus.OK) -> JsonResponse:
    """Return a response with the server's time: not every server sends a Date header."""
    return JsonResponse({**data, "time": aware(timezone.now()).isoformat()}, status=status)


def _not_retried(
    request: HttpRequest, error: IllegalTransition | DuplicateTask | UnknownTask, task: Task
) -> HttpResponse:
    if not request.accepts("text/html"):
        details = conflict_details(request.user, error, task)
        return JsonResponse(details, status=HTTPStatus.CONFLICT)
    if isinstance(error, AlreadyRetried):
        # Another request was first. The new task is what this one wants, too.
        return _to_task(request, error.retried_as)
    messages.error(request, sentence(error), fail_silently=True)
    return HttpResponseRedirect(_way_back(request))


def _to_task(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Redirect to the page the form names; else to the task's page, if this user may see it."""
    if url := _of_this_site(request, request.POST.get("next")):
        return HttpResponseRedirect(url)
    task = Task.primary.visible_to(request.user).filter(pk=task_id).first()
    return HttpResponseRedirect(task.get_absolute_url() if task else _way_back(request))


def _not_found(request: HttpRequest) -> HttpResponse:
    if request.accepts("text/html"):
        raise Http404(NOT_FOUND)
    return JsonResponse({"detail": NOT_FOUND}, status=404)


def _way_back(request: HttpRequest) -> str:
    """Return the page that the form was on, if it is one of this site's."""
    named = _of_this_site(request, request.POST.get("next"))
    came_from = _of_this_site(request, request.headers.get("Referer"))
    return named or came_from or get_script_prefix()


def _of_this_site(request: HttpRequest, url: str | None) -> str:
    """Return a URL if it leads to this site, else an empty string."""
    safe = url_has_allowed_host_and_scheme(
        url, {request.get_host()}, require_https=request.is_secure()
    )
    return url if url and safe else ""
