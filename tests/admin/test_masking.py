"""Values that are declared secret are masked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from tasks_app.admin.masking import MASK, masked, shown_params, shown_result
from tasks_app.models import Task
from tasks_app.store import lifecycle
from tests import rows
from tests.admin.secrets import Ruled, Secretive, Strict, Unspoken

#: Every secret in these parameters contains this.
HIDDEN = "s3cret"
PARAMS = {
    "plain": "seen",
    "token": "s3cret 1",
    "logins": {
        "one": {"kind": "key", "name": "seen", "secret": "s3cret 2"},
        "two": {"kind": "password", "user": "seen", "word": "s3cret 3", "spare": ["s3cret 4"]},
        "three": {"kind": "password", "user": "seen", "word": None, "spare": []},
    },
    "server": {"host": "seen", "token": "s3cret 5"},
    "pair": ["seen", "s3cret 6"],
    "tree": {
        "label": "seen",
        "pin": "s3cret 7",
        "below": [{"label": "seen", "pin": "s3cret 8", "below": []}],
    },
    "anything": {"deep": [1, {"token": "seen"}]},
    "as-it-is-sent": "s3cret 9",
    "marked": "s3cret 10",
}


def test_secrets_are_masked_at_every_depth() -> None:
    stored = Secretive.validate_params(PARAMS)
    assert json.dumps(stored).count(HIDDEN) == 10
    data, declared = shown_params(Task(name=Secretive.name(), params=stored))
    assert declared
    assert HIDDEN not in json.dumps(data)
    assert json.dumps(data).count("seen") == json.dumps(stored).count("seen") == 9
    assert data["logins"]["one"] == {"kind": "key", "name": "seen", "secret": MASK}
    assert data["logins"]["three"]["word"] is None
    assert data["pair"] == ["seen", MASK]
    assert data["tree"]["below"] == [{"label": "seen", "pin": MASK, "below": []}]
    assert data["anything"] == PARAMS["anything"]


def test_undeclared_parameters_are_masked() -> None:
    task = Task(name=Strict.name(), params={"plain": "seen", "password": "s3cret"})
    assert shown_params(task) == ({"plain": "seen", "password": MASK}, True)


def test_only_values_without_a_schema_are_masked() -> None:
    stored = Unspoken.validate_params({"odd": "s3cret", "plain": 3})
    task = Task(name=Unspoken.name(), params=stored, result="s3cret")
    assert shown_params(task) == ({"odd": MASK, "plain": 3}, True)
    assert shown_result(task) == (MASK, True)


@pytest.mark.parametrize("name", ["shop.tasks.Gone", "tests.admin.secrets.Key", "odd"])
def test_values_of_unknown_tasks_are_masked(name: str) -> None:
    task = Task(name=name, params={"plain": {"a": "b"}, "none": None}, result={"a": "s3cret"})
    assert shown_params(task) == ({"plain": MASK, "none": MASK}, False)
    assert shown_result(task) == ({"a": MASK}, False)


def test_recursive_schema_terminates() -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}
    assert masked({"b": 1}, [(schema, schema)]) == {"b": 1}


def test_work_does_not_grow_exponentially_with_depth() -> None:
    """It would never end if it followed each path through a recursive union separately."""

    def nested(depth: int) -> Any:
        leaf = {"name": "seen", "value": HIDDEN}
        if not depth:
            return leaf
        rule = nested(depth - 1)
        return [{"rule": rule}, {"every": [leaf, rule]}, {"some": [rule, leaf]}][depth % 3]

    depth = 30
    stored = Ruled.validate_params({"rule": nested(depth)})
    data, _declared = shown_params(Task(name=Ruled.name(), params=stored))
    assert HIDDEN not in json.dumps(data)
    assert json.dumps(data).count("seen") == json.dumps(stored).count("seen") == 1 + depth * 2 // 3


@pytest.mark.django_db
def test_page_shows_no_secret(admin_client: Client) -> None:
    task, claim = rows.claimed(name=Secretive.name(), params=Secretive.validate_params(PARAMS))
    result: Any = {"kind": "key", "name": "seen", "secret": "s3cret 11"}
    lifecycle.complete({claim: result})
    page = admin_client.get(reverse("admin:tasks_app_task_change", args=[task.pk]))
    assert HIDDEN not in page.content.decode()
    assert MASK in page.content.decode()


@pytest.mark.django_db
def test_page_says_that_values_are_hidden(admin_client: Client) -> None:
    task = rows.enqueued(name="shop.tasks.Gone", params={"token": "s3cret"})
    page = admin_client.get(reverse("admin:tasks_app_task_change", args=[task.pk]))
    assert "cannot be loaded here" in page.content.decode()
    assert "s3cret" not in page.content.decode()
