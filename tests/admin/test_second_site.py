"""On a site with two admins, each links only to itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from tasks_app.models import Task
from tasks_app.states import Status
from tests import rows
from tests.api.tasks import Ping

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.admin.second_site")]


def url(view: str, *args: Any) -> str:
    return reverse(f"support:tasks_app_{view}", args=args)


def test_pages_link_to_their_own_site(admin_client: Client) -> None:
    failed = rows.ended(Status.FAILED, unique_key="key")
    by = rows.worker()
    running = rows.saved(Status.RUNNING, worker=by, unique_key="key", retried_from=failed)
    rows.enqueued()
    for address in (
        url("task_changelist"),
        url("task_change", failed.pk),
        url("task_change", running.pk),
        url("task_history", failed.pk),
        url("task_delete", failed.pk),
        url("task_overview"),
        url("task_overview_part"),
        url("task_start"),
        url("task_start_form", Ping.name()),
        url("worker_changelist"),
        url("worker_change", by.pk),
    ):
        page = admin_client.get(address)
        assert page.status_code == 200
        links = re.findall(r'(?:href|action|data-[\w-]*url)="([^"]*)"', page.content.decode())
        assert [link for link in links if "/support/" in link] or address.endswith("part/")
        assert [link for link in links if link.startswith("/admin/")] == [], address


def test_actions_redirect_to_their_own_site(admin_client: Client) -> None:
    def redirect_of(view: str, task: Task) -> str:
        answer = admin_client.post(url(f"task_{view}", task.pk), {"confirmed": "yes"})
        return str(answer["Location"])

    failed = rows.ended(Status.FAILED)
    assert redirect_of("retry", failed) == url(
        "task_change", Task.objects.get(retried_from=failed).pk
    )
    assert redirect_of("retry", failed) == url("task_change", failed.pk)
    waiting = rows.enqueued()
    assert redirect_of("cancel", waiting) == url("task_change", waiting.pk)
    assert redirect_of("remove", failed) == url("task_changelist")
    deleted = admin_client.get(url("task_change", failed.pk))
    assert deleted["Location"] == url("task_changelist")


def test_site_of_workers_has_no_links_to_tasks(admin_client: Client) -> None:
    rows.saved(Status.RUNNING, worker=rows.worker())
    for address in (
        reverse("workers:app_list", args=["tasks_app"]),
        reverse("workers:tasks_app_worker_changelist"),
    ):
        page = admin_client.get(address)
        assert page.status_code == 200
        assert "/task/" not in page.content.decode()


def test_site_of_tasks_has_no_links_to_workers(admin_client: Client) -> None:
    rows.saved(Status.RUNNING, worker=rows.worker())
    for view in ("changelist", "overview"):
        page = admin_client.get(reverse(f"of_tasks:tasks_app_task_{view}"))
        assert page.status_code == 200
        assert "/worker/" not in page.content.decode()
