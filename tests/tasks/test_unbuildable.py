"""Task classes whose models cannot be built: every view reports it, and none fails."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pydantic import BaseModel, ConfigDict, Field

from tasks_app.checks import check_tasks
from tasks_app.exceptions import InvalidTask
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.tasks.base import BaseTask, ProgressHandle
from tasks_app.tasks.forms import form_for
from tests import rows

pytestmark = pytest.mark.django_db

MISSING = "email-validator is not installed, run `pip install 'pydantic[email]'`"


class Address(str):
    """Raises on use, as Pydantic's EmailStr does without email-validator."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> Any:
        raise ImportError(MISSING)


class Shy(str):
    """Can be validated, but has no JSON schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, handler: Any) -> Any:
        return handler(str)

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: object) -> Any:
        raise RuntimeError("no schema today")


def _no_default() -> str:
    raise LookupError("no default today")


class InSignature(BaseTask):
    startable = True

    def execute(self, progress: ProgressHandle, to: Address) -> None: ...


class Deferred(BaseTask):
    startable = True

    class Params(BaseModel):
        model_config = ConfigDict(defer_build=True)

        to: Address

    def execute(self, progress: ProgressHandle, to: str) -> None: ...


class InResult(BaseTask):
    startable = True

    def execute(self, progress: ProgressHandle) -> Address: ...


class Undescribed(BaseTask):
    startable = True

    def execute(self, progress: ProgressHandle, to: Shy) -> Shy: ...


class NoDefault(BaseTask):
    startable = True

    class Params(BaseModel):
        to: str = Field(default_factory=_no_default)

    def execute(self, progress: ProgressHandle, to: str) -> None: ...


BROKEN = {
    InSignature: f"The parameters of InSignature cannot be read: {MISSING}",
    Deferred: f"The parameters of Deferred cannot be read: {MISSING}",
    InResult: f"The result of InResult cannot be read: {MISSING}",
}


@pytest.mark.parametrize("task", BROKEN)
def test_start_is_refused(task: type[BaseTask], admin_client: Client) -> None:
    with pytest.raises(InvalidTask) as caught:
        task_service.start_task(task, {"to": "ada@example.org"})
    assert str(caught.value) == BROKEN[task]
    answer = admin_client.post(
        "/api/tasks/", {"task": task.name(), "params": {"to": "x"}}, content_type="application/json"
    )
    assert (answer.status_code, answer.json()["errors"]) == (422, {"task": BROKEN[task]})
    form = reverse("admin:tasks_app_task_start_form", args=[task.name()])
    for page in (admin_client.get(form), admin_client.post(form, {"params-to": "x"})):
        assert page.status_code == 200
    assert "pip install" in page.content.decode()
    assert not Task.objects.exists()


@pytest.mark.parametrize("task", [*BROKEN, Undescribed])
def test_pages_of_its_tasks_hide_values(task: type[BaseTask], admin_client: Client) -> None:
    row = rows.saved(
        rows.Status.COMPLETED, name=task.name(), params={"to": "s3cret"}, result="also s3cret"
    )
    page = admin_client.get(reverse("admin:tasks_app_task_change", args=[row.pk]))
    assert page.status_code == 200
    hidden = "also s3cret" if task is InResult else "&quot;s3cret"
    assert hidden not in page.content.decode()
    assert admin_client.get(reverse("task", args=[row.pk])).status_code == 200


def test_form_without_a_working_default_is_empty() -> None:
    assert form_for(NoDefault)()["to"].value() is None
    assert "to" in str(form_for(NoDefault)())


def test_check_reports_it_with_a_hint() -> None:
    messages = {
        message.msg: message.hint for message in check_tasks(None) if __name__ in message.hint
    }
    undescribed = "The parameters of Undescribed cannot be read: no schema today"
    assert messages.keys() == {*BROKEN.values(), undescribed}
    assert messages[BROKEN[InSignature]] == (
        f"Tasks of {InSignature.name()} cannot be started, and pages hide their values. "
        f"Change the annotation, or install what its type needs."
    )
