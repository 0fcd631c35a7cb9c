"""A Django form made from a task's parameters.

Only the Pydantic model of the parameters validates them. The fields turn text into values that the
model takes, and show its errors where they belong.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, ClassVar

from django import forms
from pydantic import BaseModel

from tasks_app.exceptions import InvalidParams
from tasks_app.tasks.base import UNSET, BaseTask
from tasks_app.tasks.declaration import buildable
from tasks_app.tasks.forms.faults import plain_by_field
from tasks_app.tasks.forms.fields import Parameter
from tasks_app.tasks.forms.schema import FormSchema
from tasks_app.tasks.stored_json import given_as

__all__ = ["TaskForm", "fields_of", "form_for", "given"]


class TaskForm(forms.Form):
    """The parameters of one task. `form_for` makes the class."""

    task: ClassVar[type[BaseTask]]
    required_css_class = "required"
    prefix = "params"

    #: The parameters to start the task with, once the form is valid. This is not the JSON of a row,
    #: which a strict model would not accept as input.
    params: dict[str, Any]

    def clean(self) -> dict[str, Any]:
        cleaned = self.cleaned_data
        self.params = given(cleaned)
        # A field that could not be read already has an error. The model only finds it missing.
        unread = set(self.errors)
        try:
            self.task.validate_params(self.params)
        except InvalidParams as error:
            self.refuse(error, unread)
        return cleaned

    def refuse(self, error: InvalidParams, unread: Container[str] = ()) -> None:
        """Show each fault at its field, except for fields that were `unread`."""
        for path, fault in plain_by_field(error.faults).items():
            field, deeper = self._place(path)
            if field not in unread:
                self.add_error(field, f"{deeper}: {fault}" if deeper else fault)

    def _place(self, path: str) -> tuple[str | None, str]:
        """Return the field that a fault belongs to, if any, and its path within the field."""
        for name in self.fields:
            if f"{path}.".startswith(f"{name}."):
                return name, path.removeprefix(name).removeprefix(".")
        return None, path


def form_for(task: type[BaseTask]) -> type[TaskForm]:
    """Return the form of a task's parameters.

    It has a field for each parameter, named as the model takes it. Types without an HTML input are
    written as JSON. Secrets are never shown again. An empty field is None if that is allowed, and
    else as if the field were missing. Raises InvalidTask.
    """
    form = type(f"{task.__name__}Form", (TaskForm,), {"task": task})
    # Not as class attributes, because a parameter may be named `task` or `clean`.
    with buildable(f"The parameters of {task.__name__}"):
        form.base_fields = fields_of(task.params_model())  # type: ignore[attr-defined]
    return form


def fields_of(model: type[BaseModel]) -> dict[str, forms.Field]:
    """Return a field for each field of a model, under the name that the model takes."""
    whole = model.model_json_schema(by_alias=False, schema_generator=FormSchema)
    strict = bool(model.model_config.get("strict"))
    fields: dict[str, forms.Field] = {}
    for name, info in model.model_fields.items():
        schema = whole.get("properties", {}).get(name, {})
        fields[given_as(name, info)] = Parameter(name, info, schema, whole, strict).field()
    return fields


def given(cleaned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for the model, from the values that the fields have read."""
    return {name: value for name, value in cleaned.items() if value is not UNSET}
