"""Pydantic's errors in plain words that can be translated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

#: Texts by the type of Pydantic's error, or by the prefix of a family of types. Names in braces
#: come from the error's context. Other errors keep Pydantic's own text.
PLAIN: Mapping[str, _StrPromise] = {
    "missing": _("Required."),
    "extra_forbidden": _("There is no such field."),
    "int_": _("Must be a whole number."),
    "float_": _("Must be a number."),
    "decimal_parsing": _("Must be a number."),
    "decimal_type": _("Must be a number."),
    "finite_number": _("Must be a finite number."),
    "bool_": _("Must be true or false."),
    "string_type": _("Must be text."),
    "string_too_short": _("Must have {min_length} or more characters."),
    "string_too_long": _("Must have {max_length} or fewer characters."),
    "string_pattern_mismatch": _("Must match the pattern {pattern}."),
    "greater_than_equal": _("Must be at least {ge}."),
    "greater_than": _("Must be more than {gt}."),
    "less_than_equal": _("Must be at most {le}."),
    "less_than": _("Must be less than {lt}."),
    "multiple_of": _("Must be a multiple of {multiple_of}."),
    "list_type": _("Must be a JSON list, such as [1, 2]."),
    "tuple_type": _("Must be a JSON list, such as [1, 2]."),
    "set_type": _("Must be a JSON list, such as [1, 2]."),
    "dict_type": _("Must be a JSON object, such as {{}}."),
    "mapping_type": _("Must be a JSON object, such as {{}}."),
    "model_type": _("Must be a JSON object, such as {{}}."),
    "model_attributes_type": _("Must be a JSON object, such as {{}}."),
    "too_short": _("Must have {min_length} or more items."),
    "too_long": _("Must have {max_length} or fewer items."),
    "literal_error": _("Must be one of these: {expected}."),
    "enum": _("Must be one of these: {expected}."),
    "date_parsing": _("Must be a date, such as 2026-01-31."),
    "date_from_datetime_parsing": _("Must be a date, such as 2026-01-31."),
    "date_type": _("Must be a date, such as 2026-01-31."),
    "datetime_parsing": _("Must be a date and a time, such as 2026-01-31T14:30."),
    "datetime_from_date_parsing": _("Must be a date and a time, such as 2026-01-31T14:30."),
    "datetime_type": _("Must be a date and a time, such as 2026-01-31T14:30."),
    "timezone_aware": _("Must have a time zone, such as 2026-01-31T14:30Z."),
    "time_parsing": _("Must be a time, such as 14:30."),
    "time_type": _("Must be a time, such as 14:30."),
    "time_delta_parsing": _("Must be a duration, such as 01:30:00."),
    "time_delta_type": _("Must be a duration, such as 01:30:00."),
    "uuid_": _("Must be a UUID."),
    "url_": _("Must be a URL, such as https://example.com/."),
}


def plain_by_field(faults: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the texts of Pydantic's errors by field, with dots between names of nested fields.

    A field with several errors, such as a union, gets each text once.
    """
    found: dict[str, list[str]] = {}
    for fault in faults:
        texts = found.setdefault(".".join(map(str, fault["loc"])), [])
        if (text := plain(fault)) not in texts:
            texts.append(text)
    return {field: " ".join(texts) for field, texts in found.items()}


def plain(fault: Mapping[str, Any]) -> str:
    """Return the text of a Pydantic error, without its input, which may be secret."""
    kind, context = str(fault.get("type", "")), fault.get("ctx") or {}
    if kind in ("value_error", "assertion_error") and "error" in context:
        return str(context["error"]) or str(fault["msg"])
    words = PLAIN.get(kind) or PLAIN.get(f"{kind.partition('_')[0]}_")
    if words is None:
        return str(fault["msg"])
    try:
        return str(words).format(**{name: _bare(value) for name, value in context.items()})
    except KeyError:
        return str(fault["msg"])


def _bare(value: Any) -> Any:
    """Return a bound as people write it: 10 for 10.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
