"""Reading the body of a request: JSON of a bounded size."""

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
    """Reads a body as django-ninja does, but reports each fault as a problem."""

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
        # Servers deliver a body whole, however long it is. So the length must be known before.
        raise Problem(
            HTTPStatus.LENGTH_REQUIRED, "Send the length of the body in the Content-Length header."
        )
    _check_length(int(length))
    content_type = request.content_type or ""
    if content_type != "application/json":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The content type is {content_type[:100] or 'missing'}, but must be "
            f"application/json. Send JSON with this Content-Type header.",
        )
    # Some servers accept more bytes than the header says.
    _check_length(len(request.body))
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(HTTPStatus.BAD_REQUEST, f"The body is not valid JSON: {reason}.") from error


def _check_length(length: int) -> None:
    limit = task_settings().api_max_body_bytes
    if length > limit:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has {length:,} bytes, but at most {limit:,} are allowed.",
        )
