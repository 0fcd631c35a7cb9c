"""Form views that start a task."""

from __future__ import annotations

from typing import Any

import pytest
from django import forms
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path
from django.views.generic import FormView

from tasks_app.models import Task
from tasks_app.web.background import BackgroundFormMixin
from tests.tasks import Add, WithModel

pytestmark = pytest.mark.django_db


class AddForm(forms.Form):
    a = forms.CharField()


class AddView(BackgroundFormMixin, FormView):  # type: ignore[type-arg]
    task_class: Any = Add
    form_class: Any = AddForm
    template_name = "airports/start.html"


def post(view: type[AddView], user: Any = None, **data: Any) -> HttpResponse:
    request = RequestFactory().post("/start/?x=1", data)
    request.user = user or User.objects.create_user("ada")
    return view.as_view()(request)


def errors(response: Any) -> dict[str, list[str]]:
    assert response.status_code == 200
    return dict(response.context_data["form"].errors)


def test_form_starts_a_task_and_redirects_to_its_page() -> None:
    response = post(AddView, a="3")
    task = Task.objects.get()
    assert (task.name, task.params) == ("tests.tasks.Add", {"a": 3, "b": 2})
    assert task.owner == User.objects.get()
    assert (response.status_code, response["Location"]) == (302, task.get_absolute_url())


def test_task_of_an_anonymous_user_has_no_owner() -> None:
    post(AddView, AnonymousUser(), a="3")
    assert Task.objects.get().owner is None


def test_refused_param_is_reported_at_its_field() -> None:
    assert errors(post(AddView, a="many")) == {"a": ["Must be a whole number."]}
    assert not Task.objects.exists()


def test_error_without_a_field_is_reported_above_the_form() -> None:
    class Wrong(AddView):
        task_class = WithModel

        def get_task_params(self, form: Any) -> dict[str, Any]:
            return {"number": form.cleaned_data["a"], "kind": "other"}

    reported = errors(post(Wrong, a="1"))
    assert reported == {"__all__": ["kind: Must be one of these: 'import' or 'export'."]}


def test_nested_error_is_reported_at_its_field() -> None:
    class Nested(AddView):
        task_class = "project.airports.tasks.ExportAirports"

        class form_class(forms.Form):  # noqa: N801
            ids = forms.CharField()

        def get_task_params(self, form: Any) -> dict[str, Any]:
            return {"ids": form.cleaned_data["ids"].split()}

    assert errors(post(Nested, ids="1 two"))["ids"] == ["Must be a whole number."]


def test_duplicate_links_to_the_running_task() -> None:
    class One(AddView):
        task_options = {"unique_key": "one"}

    ada = User.objects.create_user("ada")
    post(One, ada, a="1")
    task = Task.objects.get()
    [text] = errors(post(One, ada, a="1"))["__all__"]
    assert f'<a href="{task.get_absolute_url()}?next=%2Fstart%2F%3Fx%3D1">Watch it' in text
    [text] = errors(post(One, User.objects.create_user("bob"), a="1"))["__all__"]
    assert "Someone else is running this" in text
    assert str(task.pk) not in text
    assert Task.objects.count() == 1


def test_success_url_overrides_the_redirect() -> None:
    class Elsewhere(AddView):
        success_url = "/thanks/"

    assert post(Elsewhere, a="1")["Location"] == "/thanks/"


urlpatterns = [path("start/", AddView.as_view())]


@pytest.mark.urls(__name__)
def test_site_without_task_urls_redirects_to_the_start_page() -> None:
    assert post(AddView, a="1")["Location"] == "/"
    assert Task.objects.exists()
