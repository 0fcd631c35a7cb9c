"""The body of a request: JSON, of a bounded size."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest
from ninja import NinjaAPI
from ninja.params.models import Body, BodyModel

from tasks_app.api.problems import Problem
from tasks_app.conf import task_settings


class JSONBodyModel(BodyModel):
    """Reads a body as django-ninja does, and says what is wrong with it."""

    @classmethod
    def get_request_data(
        cls, request: HttpRequest, api: NinjaAPI, path_params: dict[str, Any]
    ) -> dict[str, Any] | None:
        return {cls.__read_from_single_attr__: read(request)}


class JSONBody(Body):  # type: ignore[misc]  # as django-ninja does
    """Marks the argument that takes the body."""

    _model = JSONBodyModel

    @classmethod
    def _param_source(cls) -> str:
        return "body"


def read(request: HttpRequest) -> Any:
    """Return the body of a request. Raises Problem: 411, 413, 415, or 400."""
    length = request.headers.get("Content-Length", "")
    if not re.fullmatch("[0-9]{1,18}", length):
        # Servers hand a body over whole, however long it is; so it must be known beforehand.
        raise Problem(
            HTTPStatus.LENGTH_REQUIRED, "Send the length of the body, by the header Content-Length."
        )
    _within_the_bound(int(length))
    kind = request.content_type or ""
    if kind != "application/json":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The body is {kind[:100] or 'of no type'}, and must be application/json: send "
            f"JSON, with the header Content-Type.",
        )
    # Not every server holds a client to the length it told.
    _within_the_bound(len(request.body))
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(HTTPStatus.BAD_REQUEST, f"The body is no JSON: {why}.") from error


def _within_the_bound(length: int) -> None:
    most = task_settings().api_max_body_bytes
    if length > most:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has {length:,} bytes, and {most:,} is the most.",
        )
