"""Form fields for the parameters of a task."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

from django import forms
from django.conf import settings
from django.forms.utils import pretty_name, to_current_timezone
from django.utils import timezone
from django.utils.functional import lazy
from django.utils.html import escape
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python

from tasks_app.tasks.base import UNSET
from tasks_app.tasks.forms.reading import READ, from_json, read, read_datetime
from tasks_app.tasks.forms.schema import Schema, holds_secret, reduced, walk
from tasks_app.tasks.forms.shape import Shape, shape_of
from tasks_app.tasks.secret_types import is_secret_schema

#: A text that may have more characters than this gets an input with several lines.
LONG = 300
#: Kinds for which browsers have a special input. All others use a text input.
INPUTS = {
    "integer": "number",
    "number": "number",
    "decimal": "number",
    "date": "date",
    "date-time": "datetime-local",
    "time": "time",
    "email": "email",
    "uri": "url",
}


class ParamField(forms.Field):
    """Turns text into a value for the model. Does not validate it."""

    def __init__(
        self,
        *,
        read: Callable[[Any], Any],
        empty: Any,
        shape: Shape | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.read = read
        #: The shape of its JSON, if it takes JSON.
        self.shape = shape
        #: The value if it is left empty. UNSET means no value, so that the model's default applies.
        self.empty = empty

    def clean(self, value: Any) -> Any:
        if value is None:
            return UNSET  # The field was not in the form at all: browsers send every input.
        return self.read(value) if value != "" else self.empty


class JSONText(forms.Textarea):
    """A text area that does not show a secret value again, like a password input."""

    def __init__(self, *, is_secret: bool, attrs: dict[str, Any]) -> None:
        super().__init__({"rows": 4, "spellcheck": "false", "class": "vLargeTextField", **attrs})
        self.is_secret = is_secret

    def format_value(self, value: Any) -> Any:
        return None if self.is_secret else super().format_value(value)


class Parameter:
    """A field of the model, to be turned into a field of the form."""

    def __init__(
        self, name: str, info: FieldInfo, schema: Schema, whole: Schema, strict: bool
    ) -> None:
        self.name, self.info, self.whole, self.strict = name, info, whole, strict
        self.schema, self.nullable = reduced(schema, whole)
        self.kind = self._kind()
        self.is_secret = holds_secret(info.annotation) or any(
            is_secret_schema(found) for found in walk(schema, whole)
        )

    def field(self) -> forms.Field:
        options: dict[str, Any] = {
            "label": self._label(),
            "help_text": self._help(),
            "initial": self._initial(),
        }
        if self.kind == "boolean" and not self.nullable:
            return forms.BooleanField(required=False, **options)
        return ParamField(
            # For display only: the model itself reports a missing value.
            required=self.info.is_required() and not self.nullable,
            read=self._reader(),
            empty=self._empty(),
            widget=self._widget(),
            shape=shape_of(self.schema, self.whole) if self.kind == "json" else None,
            **options,
        )

    def _kind(self) -> str:
        """Return the kind of input that the parameter needs."""
        if "choices" in self.schema:
            return "choice"
        kind = self.schema.get("type")
        if kind == "string" and "contentSchema" not in self.schema:
            return str(self.schema.get("format", "text"))
        return str(kind) if kind in ("integer", "number", "boolean") else "json"

    # For display.

    def _label(self) -> Any:
        label = self.info.title or pretty_name(self.name)
        if self.kind != "date-time" or self._zone() == "naive":
            return label
        # Evaluated when it is shown: each request may have its own time zone.
        return format_lazy("{} ({})", label, lazy(timezone.get_current_timezone_name, str)())

    def _help(self) -> Any:
        # Django treats a help text as HTML, but this is plain text.
        about = escape(self.info.description or self.schema.get("description", ""))
        if self.kind != "json":
            return about
        return format_lazy("{} ({})", about, _("JSON")) if about else _("JSON")

    def _default(self) -> Any:
        if self.info.is_required() or self.info.default_factory_takes_validated_data:
            return UNSET
        try:
            return self.info.get_default(call_default_factory=True)
        except Exception:  # noqa: BLE001 - the site's own code
            return UNSET  # The page works without a default. A start raises the error.

    def _initial(self) -> Any:
        if self.is_secret or self.info.is_required():
            return None
        if self.info.default_factory is None:
            return self._shown()
        return self._shown  # Called again for each form.

    def _shown(self) -> Any:
        """Return the default as the input shows it."""
        default = self._default()
        if default is UNSET or (default is None and self.kind != "boolean"):
            return None
        if self.kind == "choice":
            choices = self._choices().items()
            return next((key for key, value in choices if _bare(value) == _bare(default)), None)
        if self.kind == "boolean":
            return default if not self.nullable else {True: "true", False: "false"}.get(default)
        if isinstance(default, datetime.datetime):
            local = default if self._zone() == "naive" else to_current_timezone(default)
            return local.replace(tzinfo=None).isoformat(
                timespec="milliseconds" if local.microsecond else "seconds"
            )
        try:
            plain = to_jsonable_python(default)
        except PydanticSerializationError:
            return None
        if self.kind == "json":
            return json.dumps(plain, indent=2, ensure_ascii=False)
        return str(plain)

    def _choices(self) -> dict[str, Any]:
        """Return the choices by their values in HTML."""
        choices = self.schema["choices"]
        keys = [str(_bare(value)) for value in choices]
        if len(set(keys)) < len(keys) or "" in keys:
            keys = [str(number) for number in range(len(choices))]
        return dict(zip(keys, choices, strict=True))

    def _widget(self) -> forms.Widget:
        attrs = self._attrs()
        if self.kind == "choice":
            named = [(key, _label(value)) for key, value in self._choices().items()]
            return forms.Select(attrs, self._with_none(named))
        if self.kind == "boolean":
            return forms.Select(attrs, self._with_none([("true", _("Yes")), ("false", _("No"))]))
        if self.kind == "json":
            return JSONText(is_secret=self.is_secret, attrs=attrs)
        if self.is_secret:
            return forms.PasswordInput(
                {"autocomplete": "new-password", "class": "vTextField", **attrs}
            )
        if self.kind in INPUTS:
            widget = forms.TextInput(attrs)
            widget.input_type = INPUTS[self.kind]
            return widget
        long = self.schema.get("maxLength", 0) > LONG or "\n" in str(self._default())
        if long and self.kind == "text":
            return forms.Textarea({"rows": 4, "class": "vLargeTextField", **attrs})
        return forms.TextInput({"class": "vTextField", **attrs})

    def _with_none(self, choices: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Prepend an empty choice, unless another choice is always selected."""
        none = self.nullable or self._initial() is None
        return [("", "---------"), *choices] if none else list(choices)

    def _attrs(self) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        if example := next(iter(self.info.examples or self.schema.get("examples", [])), None):
            attrs["placeholder"] = (
                json.dumps(to_jsonable_python(example), ensure_ascii=False)
                if self.kind == "json"
                else str(to_jsonable_python(example))
            )
        names = {"minLength": "minlength", "maxLength": "maxlength"}
        if INPUTS.get(self.kind) == "number":
            names = {"minimum": "min", "maximum": "max"}
            attrs["step"] = 1 if self.kind == "integer" else "any"
            if self.kind == "integer" and "exclusiveMinimum" in self.schema:
                attrs["min"] = self.schema["exclusiveMinimum"] + 1
        elif self.kind in ("time", "date-time"):
            attrs["step"] = "any"
        for constraint, name in names.items():
            if constraint in self.schema and self.kind != "json":
                attrs[name] = self.schema[constraint]
        return attrs

    # For reading.

    def _empty(self) -> Any:
        if self.nullable and (self.info.is_required() or not self.is_secret):
            return None
        if self.kind == "text" and not self.is_secret and not self.info.is_required():
            return ""  # The input was shown, and the user emptied it.
        return UNSET

    def _reader(self) -> Callable[[Any], Any]:
        if self.kind == "choice":
            choices = self._choices()
            return lambda key: choices.get(key, key)
        if self.kind == "boolean":
            return lambda key: {"true": True, "false": False}.get(key, key)
        if self.kind == "json":
            return partial(from_json, adapter=self._adapter())
        if self.kind == "date-time":
            return partial(read_datetime, zone=self._zone())
        if self.kind in READ:
            return partial(read, READ[self.kind])
        return str

    def _adapter(self) -> TypeAdapter[Any] | None:
        """Return a reader of JSON for a strict model, which does not accept a list for a set."""
        annotation: Any = self.info.annotation
        return TypeAdapter(annotation) if self.strict else None

    def _zone(self) -> str:
        """Return whether times have a zone: "aware" or "naive"."""
        zone = self.schema.get("zone")
        return str(zone or ("aware" if settings.USE_TZ else "naive"))


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _label(value: Any) -> Any:
    """Return the text of a choice. Django's choices have their own labels."""
    if not isinstance(value, Enum):
        return str(value)
    return getattr(value, "label", None) or pretty_name(value.name.lower())
