"""What the API does: each operation parses, calls the service, and tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from ninja import Header, Query, Router
from pydantic import BaseModel, StringConstraints

from tasks_app.api.auth import authenticators, caller
from tasks_app.api.bodies import JSONBody
from tasks_app.api.paging import HEAVY, events_after, page_of, stored
from tasks_app.api.problems import NOT_FOUND, Problem, as_problems, declared, invalid
from tasks_app.api.schemas import (
    CancelledTask,
    EventPage,
    Filters,
    Following,
    StartRequest,
    TaskPage,
)
from tasks_app.conf import task_settings
from tasks_app.exceptions import UnknownTask
from tasks_app.live.endpoint import API_STREAM, API_STREAMS, answer, respond
from tasks_app.models import Task
from tasks_app.permissions import (
    may_cancel,
    may_remove,
    may_retry,
    may_start,
    may_view,
    may_view_all,
)
from tasks_app.schemas import TaskInfo, TaskStartResponse
from tasks_app.service import task_service, users_key
from tasks_app.tasks.base import BaseTask
from tasks_app.tasks.registry import find, startable_tasks

if TYPE_CHECKING:
    from tasks_app.permissions import User

#: How long to wait before asking again where a user has too many unfinished tasks, in seconds.
RETRY_AFTER = 10

router = Router(auth=authenticators(), tags=["tasks"])

Key = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[ -~]+$")]


def told(*problems: int, **more: Any) -> dict[str, Any]:
    """What the OpenAPI says of an operation, beside what it is told by types."""
    responses = declared(400, 401, 503, *problems)
    return {"responses": responses | more.pop("responses", {}), **more}


def _changing(*problems: int, **more: Any) -> dict[str, Any]:
    """The same of one that is not only read."""
    token = {
        "in": "header",
        "name": "X-CSRFToken",
        "schema": {"type": "string"},
        "description": "With a session: the CSRF token of the site, which its cookie "
        f"{settings.CSRF_COOKIE_NAME} has. With another authenticator: none.",
    }
    return told(403, *problems, parameters=[token], **more)


def _streamed(parameters: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    resumed = {
        "in": "header",
        "name": "Last-Event-ID",
        "schema": {"type": "string"},
        "description": "The id of the last event that the client had.",
    }
    return {
        "parameters": [*parameters, resumed],
        "responses": {
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            204: {"description": "The client has had everything."},
        },
    }


_MANY = [
    {
        "in": "query",
        "name": "task",
        "schema": {"type": "array", "items": {"type": "string", "format": "uuid"}},
        "description": "A task to watch; may be repeated.",
    },
    {
        "in": "query",
        "name": "mine",
        "schema": {"const": "1"},
        "description": "All your own tasks, those that are still to come too.",
    },
    {
        "in": "query",
        "name": "all",
        "schema": {"const": "1"},
        "description": "Everybody's, where you may see them.",
    },
]
_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where its status is."}}
_STARTED = {
    202: {
        "headers": _LOCATION
        | {
            "Idempotent-Replayed": {
                "schema": {"enum": ["true"]},
                "description": "Where the key had started the task before.",
            }
        }
    }
}


@router.post(
    "",
    operation_id="start_task",
    response={202: TaskStartResponse},
    url_name="task_list",
    openapi_extra=_changing(409, 411, 413, 415, 422, 429, responses=_STARTED),
)
def start(
    request: HttpRequest,
    wanted: Annotated[StartRequest, JSONBody(...)],
    idempotency_key: Annotated[Key | None, Header(None, alias="Idempotency-Key")] = None,
) -> HttpResponse:
    """Start a task that opts in to be started over HTTP.

    With an `Idempotency-Key`, the same request again answers with the same task.
    """
    user = caller(request)
    task = _startable(user, wanted.task)
    if not _started_by(user, idempotency_key):
        _within_the_limit(user)
    with as_problems(user):
        started = task_service.start_task(
            task,
            wanted.params,
            owner=user,
            run_after=wanted.run_after and stored(wanted.run_after),
            unique_key=wanted.unique_key and users_key(user, wanted.unique_key),
            idempotency_key=idempotency_key,
        )
    return _started(request, started)


@router.get(
    "",
    operation_id="list_tasks",
    response=TaskPage,
    url_name="task_list",
    openapi_extra=told(422),
)
def list_tasks(request: HttpRequest, filters: Query[Filters]) -> HttpResponse:
    """List the tasks that you may see, the newest first, without their results.

    By `status`, `name` or `queue` a page looks through a bounded number of tasks: it may hold fewer
    than `limit`, or none, and still have a `next`.
    """
    _only(request, Filters.model_fields)
    user = caller(request)
    visible = Task.objects.visible_to(user)
    tasks = visible.filter(owner_id=user.pk) if filters.owner else visible
    return _json(page_of(tasks, filters, for_staff=may_view_all(user)))


@router.get(
    "/stream",
    operation_id="stream_tasks",
    response={200: None, 204: None},
    url_name=API_STREAMS,
    openapi_extra=told(404, 422, 429, 501, **_streamed(_MANY)),
)
async def stream_many(request: HttpRequest) -> HttpResponseBase:
    """Stream the events of many tasks, of all your own, or of all."""
    return await _stream(request)


@router.get(
    "/{uuid:task_id}",
    operation_id="show_task",
    response=TaskInfo,
    url_name="task",
    openapi_extra=told(404),
)
@router.get(
    "/{uuid:task_id}/status",
    operation_id="show_status",
    response=TaskInfo,
    url_name="task_info",
    openapi_extra=told(404),
)
def status(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Show a task as it stands."""
    user = caller(request)
    return _json(_visible(user, task_id).info(for_staff=may_view_all(user)))


@router.delete(
    "/{uuid:task_id}",
    operation_id="remove_task",
    response={204: None},
    url_name="task",
    openapi_extra=_changing(404, 409),
)
def remove(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Remove a finished task and its history."""
    user = caller(request)
    _permitted(user, task_id, may_remove, "remove")
    with as_problems(user):
        task_service.remove_completed_task(task_id)
    return HttpResponse(status=HTTPStatus.NO_CONTENT)


@router.get(
    "/{uuid:task_id}/events",
    operation_id="list_events",
    response=EventPage,
    url_name="task_events",
    openapi_extra=told(404, 422),
)
def events(request: HttpRequest, task_id: UUID, following: Query[Following]) -> HttpResponse:
    """List a task's history, the oldest event first."""
    _only(request, Following.model_fields)
    user = caller(request)
    task = _visible(user, task_id)
    return _json(events_after(task, following, for_staff=may_view_all(user)))


@router.post(
    "/{uuid:task_id}/cancel",
    operation_id="cancel_task",
    response=TaskInfo | CancelledTask,
    url_name="task_cancel",
    openapi_extra=_changing(404, 409),
)
def cancel(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Cancel a pending task at once; ask a running one to stop.

    Who may cancel a task and not see it is told only what became of that.
    """
    user = caller(request)
    task = _permitted(user, task_id, may_cancel, "cancel")
    with as_problems(user):
        info = task_service.cancel_task(task_id, by=user)
    if may_view(user, task):
        return _json(info)
    return _json(CancelledTask(**info.model_dump(include=set(CancelledTask.model_fields))))


@router.post(
    "/{uuid:task_id}/retry",
    operation_id="retry_task",
    response={202: TaskStartResponse},
    url_name="task_retry",
    openapi_extra=_changing(404, 409, 429, responses={202: {"headers": _LOCATION}}),
)
def retry(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Start a failed or cancelled task anew, as another task with the same parameters."""
    user = caller(request)
    task = _permitted(user, task_id, may_retry, "retry")
    if task.owner_id == user.pk:
        _within_the_limit(user)
    with as_problems(user, task):
        started = task_service.retry_task(task_id, by=user)
    return _started(request, started)


@router.get(
    "/{uuid:task_id}/stream",
    operation_id="stream_task",
    response={200: None, 204: None},
    url_name=API_STREAM,
    openapi_extra=told(404, 422, 429, 501, **_streamed()),
)
async def stream(request: HttpRequest, task_id: UUID) -> HttpResponseBase:
    """Stream a task's events until it ends."""
    return await _stream(request, task_id)


# What operations share.


async def _stream(request: HttpRequest, task_id: UUID | None = None) -> HttpResponseBase:
    user = caller(request)
    if not isinstance(request, ASGIRequest):
        raise Problem(
            HTTPStatus.NOT_IMPLEMENTED, "Streams need ASGI; serve this site by uvicorn or daphne."
        )
    found = await answer(request, user, task_id)
    if found.fields:
        raise invalid(dict.fromkeys(found.fields, found.text))
    if found.status >= HTTPStatus.BAD_REQUEST:
        kept = {name: value for name, value in found.headers.items() if name != "Content-Type"}
        raise Problem(found.status, found.text, headers=kept)
    return respond(request, found)


def _startable(user: User, name: str) -> type[BaseTask]:
    """Find what a user may start. What they may not is answered like what does not exist."""
    theirs = [task for task in startable_tasks() if may_start(user, task)]
    if not theirs:
        raise Problem(HTTPStatus.FORBIDDEN, "You may not start tasks.")
    try:
        return find(name, theirs)
    except UnknownTask as error:
        raise invalid({"task": f"{error} Or you may not start it."}) from error


def _started_by(user: User, key: str | None) -> bool:
    return key is not None and Task.primary.filter(owner_id=user.pk, idempotency_key=key).exists()


def _within_the_limit(user: User) -> None:
    """Two requests at the same moment may both pass: it is against runaway clients."""
    most = task_settings().api_max_unfinished
    if most is None:
        return
    unfinished = Task.primary.unfinished().filter(owner_id=user.pk).order_by()
    if len(unfinished.values_list("pk")[:most]) >= most:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"You have {most:,} unfinished tasks, and that is the most. Wait for some to end.",
            headers={"Retry-After": str(RETRY_AFTER)},
        )


def _visible(user: User, task_id: UUID) -> Task:
    task = Task.primary.visible_to(user).filter(pk=task_id).defer("params", "error_traceback")
    if found := task.first():
        return found
    raise Problem(HTTPStatus.NOT_FOUND, NOT_FOUND)


def _permitted(user: User, task_id: UUID, may: Callable[[User, Task], bool], what: str) -> Task:
    """Return a task that a user may do something to; who may not even see it learns of none."""
    task = Task.primary.filter(pk=task_id).defer(*HEAVY).first()
    if task is not None and may(user, task):
        return task
    if task is not None and may_view(user, task):
        raise Problem(HTTPStatus.FORBIDDEN, f"You may see this task, and not {what} it.")
    raise Problem(HTTPStatus.NOT_FOUND, NOT_FOUND)


def _only(request: HttpRequest, known: Collection[str]) -> None:
    """Refuse what a query names that there is not: a filter misspelt would list everything."""
    fault = f"there is no such parameter; there are {', '.join(sorted(known))}"
    if unknown := sorted(set(request.GET) - set(known)):
        raise invalid(dict.fromkeys(unknown, fault))


def _started(request: HttpRequest, started: TaskStartResponse) -> HttpResponse:
    own = {"stream_url": _url(request, API_STREAM, started.task_id)}
    headers = {"Location": _url(request, "task_info", started.task_id)}
    if started.replayed:
        headers["Idempotent-Replayed"] = "true"
    return _json(started.model_copy(update=own), HTTPStatus.ACCEPTED, headers)


def _url(request: HttpRequest, name: str, task_id: UUID) -> str:
    """The URL of an operation beside the one that was called, wherever a site has put them."""
    assert request.resolver_match  # noqa: S101 - Django resolved it
    return reverse(f"{request.resolver_match.namespace}:{name}", args=[task_id])


def _json(
    model: BaseModel, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """Answer in the JSON of the model itself, which is the same at every door."""
    response = HttpResponse(
        model.model_dump_json(), status=status, content_type="application/json", headers=headers
    )
    add_never_cache_headers(response)
    return response
