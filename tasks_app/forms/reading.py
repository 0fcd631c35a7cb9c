"""From the text of an input to what a model takes."""

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

#: The types whose text Pydantic reads, and by which a strict model wants to be given them.
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
#: What is said of a fault in JSON, by the text's own rules.
NOT_JSON = _("Invalid JSON at line %(line)s, column %(column)s: %(fault)s.")


def read(kind: type, text: str) -> Any:
    """Return a value of the type, or the text, for the model to say what is wrong with it."""
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError:
        return text


def moment(text: str, zone: str) -> Any:
    """Return a time; one without a zone is in the current one.

    Raises Django's ValidationError for a time that a change of clocks leaves out, or has twice.
    """
    time = read(datetime.datetime, text)
    if zone == "naive" or not isinstance(time, datetime.datetime) or time.tzinfo:
        return time
    return from_current_timezone(time) if settings.USE_TZ else timezone.make_aware(time)


def from_json(text: str, adapter: TypeAdapter[Any] | None) -> Any:
    """Return what the text says. Raises Django's ValidationError where it is no JSON."""
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
