"""Errors as problem details of RFC 9457."""

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
    """An error answer. Its detail gives the value, the rule, and the remedy.

    `more` are additional members, beside those that every problem has.
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
            # This type means that the problem says no more than its status.
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
    """Return a problem with the error of each field. An empty name means the whole input."""
    faults = {printable(field): printable(fault) for field, fault in errors.items()}
    detail = "; ".join(
        f"{field}: {fault.removesuffix('.')}" if field else fault for field, fault in faults.items()
    )
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=faults)


@contextmanager
def as_problems(user: User, retried: Task | None = None) -> Iterator[None]:
    """Turn the service's errors into problems that reveal only what the user may see."""
    try:
        yield
    except TaskNotFound:
        raise Problem(HTTPStatus.NOT_FOUND, NOT_FOUND) from None
    except AlreadyRetried as error:
        details = conflict_details(user, error, retried)
        raise Problem(HTTPStatus.CONFLICT, **details, task_status=error.status) from error
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
    """Answer 503 if the database does not answer, which is not an error in the API's code."""
    response = Problem(
        HTTPStatus.SERVICE_UNAVAILABLE, NO_DATABASE, headers={"Retry-After": str(RETRY_SECONDS)}
    ).response(request)
    message = "No answer: the database does not answer (%s): %s"
    log_unavailable(request, response, message, str(error), request.path, logger=logger)
    return response


def answer_problem(request: HttpRequest, problem: Problem) -> HttpResponse:
    """Return the response for a problem. A site's own NinjaAPI can use it as exception handler."""
    return problem.response(request)


def answer_all(api: NinjaAPI, challenge: str = "Session") -> None:
    """Make an API answer every error with a problem.

    `challenge` is the WWW-Authenticate header of a 401.
    """

    def http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
        if isinstance(error.__cause__, Problem):
            error = error.__cause__
        headers = {"WWW-Authenticate": challenge} if error.status_code == 401 else {}
        if isinstance(error, Problem):
            error.headers = headers | error.headers
            return error.response(request)
        needs_login = error.status_code == HTTPStatus.UNAUTHORIZED
        detail = "Authentication required. Log in first." if needs_login else error.message
        return Problem(error.status_code, detail, headers=headers).response(request)

    def wrong_input(request: HttpRequest, error: ValidationError) -> HttpResponse:
        faults = []
        for fault in error.errors:
            # Drop the source, and for a body or within a list also the name of the argument.
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
        # Django sends this for its own views. Error reporters listen to it.
        got_request_exception.send(sender=None, request=request)
        detail = "Internal error. It has been logged. Try again later."
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
    """Roll back the transaction of ATOMIC_REQUESTS, which sees only the answer, not the error."""

    @wraps(handler)
    def undoing(request: HttpRequest, error: Exception) -> HttpResponse:
        for connection in connections.all(initialized_only=True):
            if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
                connection.set_rollback(True)
        return handler(request, error)

    return undoing


#: The OpenAPI schema of a problem.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "Problem details of RFC 9457.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "The value, the rule, and the remedy."},
        "instance": {"type": "string", "description": "The requested path."},
        "errors": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "With 422: the error of each field.",
        },
        "task_status": {
            "enum": list(Status),
            "description": "With 409: the current status of the task.",
        },
        "task": {
            "type": "string",
            "format": "uuid",
            "description": "With 409: the conflicting task, if you may see it.",
        },
    },
}


def declared(*statuses: int) -> dict[int, Any]:
    """Return the OpenAPI responses for problems with these statuses."""
    return {
        int(status): {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": SCHEMA}},
        }
        for status in sorted(statuses)
    }
