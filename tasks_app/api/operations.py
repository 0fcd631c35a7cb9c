"""The operations of the API. Each parses the request, calls the service, and answers."""

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
from tasks_app.api.payloads import (
    CancelledTask,
    EventPage,
    EventsQuery,
    Filters,
    StartRequest,
    TaskPage,
)
from tasks_app.api.problems import NOT_FOUND, Problem, as_problems, declared, invalid
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

#: The seconds after which a user with too many unfinished tasks may try again.
RETRY_AFTER = 10

router = Router(auth=authenticators(), tags=["tasks"])

Key = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[ -~]+$")]


def _reading(*problems: int, **more: Any) -> dict[str, Any]:
    """Return the OpenAPI of an operation, except for what its types give."""
    responses = declared(400, 401, 503, *problems)
    return {"responses": responses | more.pop("responses", {}), **more}


def _changing(*problems: int, **more: Any) -> dict[str, Any]:
    """Return the OpenAPI of an operation that changes something, so it may need a CSRF token."""
    token = {
        "in": "header",
        "name": "X-CSRFToken",
        "schema": {"type": "string"},
        "description": "Only with a session: the CSRF token, which is in the cookie "
        f"{settings.CSRF_COOKIE_NAME}. Other authenticators need none.",
    }
    return _reading(403, *problems, parameters=[token], **more)


def _streamed(parameters: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    resumed = {
        "in": "header",
        "name": "Last-Event-ID",
        "schema": {"type": "string"},
        "description": "The id of the last event that the client received.",
    }
    return {
        "parameters": [*parameters, resumed],
        "responses": {
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            204: {"description": "The client has received everything."},
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
        "description": "All your own tasks, including future ones.",
    },
    {
        "in": "query",
        "name": "all",
        "schema": {"const": "1"},
        "description": "The tasks of all users, if you may see them.",
    },
]
_LOCATION = {
    "Location": {"schema": {"type": "string"}, "description": "The URL of the task's status."}
}
_STARTED = {
    202: {
        "headers": _LOCATION
        | {
            "Idempotent-Replayed": {
                "schema": {"enum": ["true"]},
                "description": "If an earlier request with the key started the task.",
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
    body: Annotated[StartRequest, JSONBody(...)],
    idempotency_key: Annotated[Key | None, Header(None, alias="Idempotency-Key")] = None,
) -> HttpResponse:
    """Start a task whose class can be started over HTTP.

    With an `Idempotency-Key`, a repeated request is answered with the same task.
    """
    user = caller(request)
    task = _startable(user, body.task)
    if not _was_started(user, idempotency_key):
        _check_limit(user)
    with as_problems(user):
        started = task_service.start_task(
            task,
            body.params,
            owner=user,
            run_after=body.run_after and stored(body.run_after),
            unique_key=body.unique_key and users_key(user, body.unique_key),
            idempotency_key=idempotency_key,
        )
    return _started(request, started)


@router.get(
    "",
    operation_id="list_tasks",
    response=TaskPage,
    url_name="task_list",
    openapi_extra=_reading(422),
)
def list_tasks(request: HttpRequest, filters: Query[Filters]) -> HttpResponse:
    """List the tasks that you may see, the newest first, without their results.

    With `status`, `name` or `queue`, a page searches a bounded number of tasks. It may hold fewer
    than `limit`, or none, and still have a `next`.
    """
    _check_parameters(request, Filters.model_fields)
    user = caller(request)
    visible = Task.objects.visible_to(user)
    tasks = visible.filter(owner_id=user.pk) if filters.owner else visible
    return _json(page_of(tasks, filters, for_staff=may_view_all(user)))


@router.get(
    "/stream",
    operation_id="stream_tasks",
    response={200: None, 204: None},
    url_name=API_STREAMS,
    openapi_extra=_reading(404, 422, 429, 501, **_streamed(_MANY)),
)
async def stream_many(request: HttpRequest) -> HttpResponseBase:
    """Stream the events of many tasks, of all your own, or of all."""
    return await _stream(request)


@router.get(
    "/{uuid:task_id}",
    operation_id="show_task",
    response=TaskInfo,
    url_name="task",
    openapi_extra=_reading(404),
)
@router.get(
    "/{uuid:task_id}/status",
    operation_id="show_status",
    response=TaskInfo,
    url_name="task_info",
    openapi_extra=_reading(404),
)
def status(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Show the current state of a task."""
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
    openapi_extra=_reading(404, 422),
)
def events(request: HttpRequest, task_id: UUID, query: Query[EventsQuery]) -> HttpResponse:
    """List a task's history, the oldest event first."""
    _check_parameters(request, EventsQuery.model_fields)
    user = caller(request)
    task = _visible(user, task_id)
    return _json(events_after(task, query, for_staff=may_view_all(user)))


@router.post(
    "/{uuid:task_id}/cancel",
    operation_id="cancel_task",
    response=TaskInfo | CancelledTask,
    url_name="task_cancel",
    openapi_extra=_changing(404, 409),
)
def cancel(request: HttpRequest, task_id: UUID) -> HttpResponse:
    """Cancel a pending task immediately, or ask a running one to stop.

    A user who may cancel the task but not see it gets only the outcome.
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
    """Retry a failed or cancelled task, as a new task with the same parameters."""
    user = caller(request)
    task = _permitted(user, task_id, may_retry, "retry")
    if task.owner_id == user.pk:
        _check_limit(user)
    with as_problems(user, task):
        started = task_service.retry_task(task_id, by=user)
    return _started(request, started)


@router.get(
    "/{uuid:task_id}/stream",
    operation_id="stream_task",
    response={200: None, 204: None},
    url_name=API_STREAM,
    openapi_extra=_reading(404, 422, 429, 501, **_streamed()),
)
async def stream(request: HttpRequest, task_id: UUID) -> HttpResponseBase:
    """Stream a task's events until it ends."""
    return await _stream(request, task_id)


# Helpers of the operations.


async def _stream(request: HttpRequest, task_id: UUID | None = None) -> HttpResponseBase:
    user = caller(request)
    if not isinstance(request, ASGIRequest):
        raise Problem(
            HTTPStatus.NOT_IMPLEMENTED,
            "Streams need ASGI. Serve this site with uvicorn or daphne.",
        )
    answered = await answer(request, user, task_id)
    if answered.fields:
        raise invalid(dict.fromkeys(answered.fields, answered.text))
    if answered.status >= HTTPStatus.BAD_REQUEST:
        kept = {name: value for name, value in answered.headers.items() if name != "Content-Type"}
        raise Problem(answered.status, answered.text, headers=kept)
    return respond(request, answered)


def _startable(user: User, name: str) -> type[BaseTask]:
    """Find a task class that a user may start. Others are answered as if they did not exist."""
    allowed = [task for task in startable_tasks() if may_start(user, task)]
    if not allowed:
        raise Problem(HTTPStatus.FORBIDDEN, "You don't have permission to start tasks.")
    try:
        return find(name, allowed)
    except UnknownTask as error:
        raise invalid({"task": f"{error} Or you don't have permission to start it."}) from error


def _was_started(user: User, key: str | None) -> bool:
    return key is not None and Task.primary.filter(owner_id=user.pk, idempotency_key=key).exists()


def _check_limit(user: User) -> None:
    """Refuse a user with too many unfinished tasks. It stops clients that run away.

    Two requests at the same moment may both pass.
    """
    limit = task_settings().api_max_unfinished
    if limit is None:
        return
    unfinished = Task.primary.unfinished().filter(owner_id=user.pk).order_by()
    if len(unfinished.values_list("pk")[:limit]) >= limit:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"You have {limit:,} unfinished tasks, which is the maximum. Wait until some finish.",
            headers={"Retry-After": str(RETRY_AFTER)},
        )


def _visible(user: User, task_id: UUID) -> Task:
    tasks = Task.primary.visible_to(user).filter(pk=task_id).defer("params", "error_traceback")
    if task := tasks.first():
        return task
    raise Problem(HTTPStatus.NOT_FOUND, NOT_FOUND)


def _permitted(user: User, task_id: UUID, may: Callable[[User, Task], bool], verb: str) -> Task:
    """Return a task that a user may act on. For a user who may not see it, it does not exist."""
    task = Task.primary.filter(pk=task_id).defer(*HEAVY).first()
    if task is not None and may(user, task):
        return task
    if task is not None and may_view(user, task):
        raise Problem(HTTPStatus.FORBIDDEN, f"You don't have permission to {verb} this task.")
    raise Problem(HTTPStatus.NOT_FOUND, NOT_FOUND)


def _check_parameters(request: HttpRequest, known: Collection[str]) -> None:
    """Refuse unknown parameters of a query: with a misspelt filter, it would list everything."""
    fault = f"unknown parameter; use {', '.join(sorted(known))}"
    if unknown := sorted(set(request.GET) - set(known)):
        raise invalid(dict.fromkeys(unknown, fault))


def _started(request: HttpRequest, started: TaskStartResponse) -> HttpResponse:
    own = {"stream_url": _url(request, API_STREAM, started.task_id)}
    headers = {"Location": _url(request, "task_info", started.task_id)}
    if started.replayed:
        headers["Idempotent-Replayed"] = "true"
    return _json(started.model_copy(update=own), HTTPStatus.ACCEPTED, headers)


def _url(request: HttpRequest, name: str, task_id: UUID) -> str:
    """Return the URL of an operation in the namespace of the current request."""
    assert request.resolver_match  # noqa: S101 - Django resolved it
    return reverse(f"{request.resolver_match.namespace}:{name}", args=[task_id])


def _json(
    model: BaseModel, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    """Answer with the model's own JSON, which is the same in the pages' endpoints."""
    response = HttpResponse(
        model.model_dump_json(), status=status, content_type="application/json", headers=headers
    )
    add_never_cache_headers(response)
    return response
