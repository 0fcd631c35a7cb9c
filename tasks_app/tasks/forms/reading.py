"""Conversion of the text of an input to a value for the model."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.forms.utils import from_current_timezone
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from pydantic import TypeAdapter, ValidationError

#: Types that Pydantic reads from text. A strict model requires values of these types.
READ: dict[str, type] = {
    "integer": int,
    "number": float,
    "decimal": Decimal,
    "date": datetime.date,
    "date-time": datetime.datetime,
    "time": datetime.time,
    "duration": datetime.timedelta,
    "uuid": UUID,
    "path": Path,
    "file-path": Path,
    "directory-path": Path,
}
#: The error of invalid JSON.
NOT_JSON = _("Invalid JSON at line %(line)s, column %(column)s: %(fault)s.")


def read(kind: type, text: str) -> Any:
    """Return a value of the type; or the text if it is invalid, so that the model reports it."""
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError:
        return text


def read_datetime(text: str, zone: str) -> Any:
    """Return a time. Without a zone, it is in the current time zone.

    Raises Django's ValidationError if a clock change skips or repeats this time.
    """
    time = read(datetime.datetime, text)
    if zone == "naive" or not isinstance(time, datetime.datetime) or time.tzinfo:
        return time
    return from_current_timezone(time) if settings.USE_TZ else timezone.make_aware(time)


def from_json(text: str, adapter: TypeAdapter[Any] | None) -> Any:
    """Return the value of JSON text. Raises Django's ValidationError if it is invalid JSON."""
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        where = {"fault": error.msg, "line": error.lineno, "column": error.colno}
        raise forms.ValidationError(NOT_JSON, "json", where) from error
    except RecursionError as error:
        where = {"fault": _("it is nested too deeply"), "line": 1, "column": 1}
        raise forms.ValidationError(NOT_JSON, "json", where) from error
    if adapter is None:
        return plain
    try:
        return adapter.validate_json(text)
    except ValidationError:
        return plain
