"""Errors, in one envelope: RFC 9457's problem details."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pydantic
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.core.signals import got_request_exception
from django.db import InterfaceError, OperationalError, connections
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.utils.cache import add_never_cache_headers
from django.utils.log import log_response
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError

from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    IdempotencyKeyReused,
    IllegalTransition,
    InvalidParams,
    InvalidTask,
    TaskNotFound,
    TaskProtected,
    UnknownTask,
)
from tasks_app.live.endpoint import NO_DATABASE, RETRY_SECONDS, log_unavailable
from tasks_app.models import Task
from tasks_app.permissions import conflict_details
from tasks_app.schemas import printable
from tasks_app.states import Status
from tasks_app.tasks.forms.faults import plain_by_field

if TYPE_CHECKING:
    from tasks_app.permissions import User

MEDIA_TYPE = "application/problem+json"
NOT_FOUND = "Task not found, or you don't have permission to view it."

logger = logging.getLogger("django.request")


class Problem(HttpError):
    """An answer that says what is wrong: the value, the rule, the remedy.

    `more` are members of its own beside those that every problem has.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(int(status), detail)
        self.headers = dict(headers or {})
        self.more = more

    def response(self, request: HttpRequest) -> HttpResponse:
        response = HttpResponse(
            status=self.status_code, content_type=MEDIA_TYPE, headers=self.headers
        )
        body = {
            # Nothing more than the status says, which is what this type is for.
            "type": "about:blank",
            "title": response.reason_phrase,
            "status": self.status_code,
            "detail": self.message,
            "instance": request.path,
        }
        response.content = json.dumps(body | self.more, default=str).encode()
        add_never_cache_headers(response)
        return response


def invalid(errors: Mapping[str, str]) -> Problem:
    """What is wrong with which field; an empty name stands for all of them."""
    told = {printable(field): printable(fault) for field, fault in errors.items()}
    faults = "; ".join(
        f"{field}: {fault.removesuffix('.')}" if field else fault for field, fault in told.items()
    )
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, faults, errors=told)


@contextmanager
def as_problems(user: User, retried: Task | None = None) -> Iterator[None]:
    """Tell what the service refuses as problems, and of tasks only what a user may see."""
    try:
        yield
    except TaskNotFound:
        raise Problem(HTTPStatus.NOT_FOUND, NOT_FOUND) from None
    except AlreadyRetried as error:
        told = conflict_details(user, error, retried)
        raise Problem(HTTPStatus.CONFLICT, **told, task_status=error.status) from error
    except IllegalTransition as error:
        raise Problem(HTTPStatus.CONFLICT, str(error), task_status=error.status) from error
    except TaskProtected as error:
        raise Problem(HTTPStatus.CONFLICT, str(error)) from error
    except (DuplicateTask, UnknownTask) as error:
        raise Problem(HTTPStatus.CONFLICT, **conflict_details(user, error, retried)) from error
    except IdempotencyKeyReused as error:
        raise invalid({"Idempotency-Key": str(error)}) from error
    except InvalidTask as error:
        raise invalid({"task": str(error)}) from error
    except InvalidParams as error:
        faults = plain_by_field(error.faults).items()
        raise invalid({f"params.{field}".rstrip("."): fault for field, fault in faults}) from error
    except pydantic.ValidationError as error:
        raise invalid(plain_by_field(error.errors())) from error


def unavailable(request: HttpRequest, error: Exception) -> HttpResponse:
    """Answer where the database does not, which is no fault of the API's code."""
    response = Problem(
        HTTPStatus.SERVICE_UNAVAILABLE, NO_DATABASE, headers={"Retry-After": str(RETRY_SECONDS)}
    ).response(request)
    message = "No answer: the database does not answer (%s): %s"
    log_unavailable(request, response, message, str(error), request.path, logger=logger)
    return response


def answer_problem(request: HttpRequest, problem: Problem) -> HttpResponse:
    """Answer with a problem; for `add_exception_handler` of a NinjaAPI of one's own."""
    return problem.response(request)


def answer_all(api: NinjaAPI, challenge: str = "Session") -> None:
    """Have an API answer everything that goes wrong with a problem.

    `challenge` is the WWW-Authenticate of who is not logged in.
    """

    def http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
        if isinstance(error.__cause__, Problem):
            error = error.__cause__
        headers = {"WWW-Authenticate": challenge} if error.status_code == 401 else {}
        if isinstance(error, Problem):
            error.headers = headers | error.headers
            return error.response(request)
        detail = "Log in first." if error.status_code == 401 else error.message
        return Problem(error.status_code, detail, headers=headers).response(request)

    def wrong_input(request: HttpRequest, error: ValidationError) -> HttpResponse:
        faults = []
        for fault in error.errors:
            # Where it is from, and for a body, or within a list, the argument that takes it.
            within = fault["loc"][0] == "body" or len(fault["loc"]) > 2
            faults.append({**fault, "loc": fault["loc"][2 if within else 1 :]})
        return invalid(plain_by_field(faults)).response(request)

    def not_found(request: HttpRequest, _error: Http404) -> HttpResponse:
        return Problem(HTTPStatus.NOT_FOUND, NOT_FOUND).response(request)

    def forbidden(request: HttpRequest, error: PermissionDenied) -> HttpResponse:
        return Problem(
            HTTPStatus.FORBIDDEN, str(error) or "You don't have permission to do this."
        ).response(request)

    def bad_request(request: HttpRequest, error: Exception) -> HttpResponse:
        return Problem(HTTPStatus.BAD_REQUEST, str(error)).response(request)

    def too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
        return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)).response(request)

    def unexpected(request: HttpRequest, error: Exception) -> HttpResponse:
        # As Django does for a view of its own: whoever reports errors hears of this one.
        got_request_exception.send(sender=None, request=request)
        detail = "Something went wrong here, and was logged. Ask again later."
        response = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail).response(request)
        log_response(
            "Internal Server Error: %s",
            request.path,
            response=response,
            request=request,
            exception=error,
        )
        return response

    handlers: dict[type[Exception], Any] = {
        HttpError: http_error,
        ValidationError: wrong_input,
        Http404: not_found,
        PermissionDenied: forbidden,
        BadRequest: bad_request,
        MultiPartParserError: bad_request,
        SuspiciousOperation: bad_request,
        UnreadablePostError: bad_request,
        RequestDataTooBig: too_big,
        OperationalError: unavailable,
        InterfaceError: unavailable,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        api.add_exception_handler(kind, _undoing(handler))


def _undoing(handler: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Roll back what ATOMIC_REQUESTS would commit: of the error it sees the answer alone."""

    @wraps(handler)
    def undoing(request: HttpRequest, error: Exception) -> HttpResponse:
        for connection in connections.all(initialized_only=True):
            if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
                connection.set_rollback(True)
        return handler(request, error)

    return undoing


#: What the OpenAPI says of a problem.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "Problem details, as RFC 9457 has them.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "The value, the rule, the remedy."},
        "instance": {"type": "string", "description": "The path that was asked for."},
        "errors": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "With 422: what is wrong with which field.",
        },
        "task_status": {
            "enum": list(Status),
            "description": "With 409: the present status of the task.",
        },
        "task": {
            "type": "string",
            "format": "uuid",
            "description": "With 409: the task that is in the way, if you may see it.",
        },
    },
}


def declared(*statuses: int) -> dict[int, Any]:
    """What the OpenAPI says of answers that are problems."""
    return {
        int(status): {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": SCHEMA}},
        }
        for status in sorted(statuses)
    }
