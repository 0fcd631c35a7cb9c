"""The admin's pages in a theme whose templates differ from Django's."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.test import Client, override_settings
from django.urls import reverse

from tasks_app.admin.filters import FILTERS
from tasks_app.admin.filters.base import LinkedFilter
from tasks_app.states import Status
from tests import rows

pytestmark = [pytest.mark.django_db, pytest.mark.once]


def test_each_part_of_a_page_appears_once(admin_client: Client) -> None:
    task = rows.ended(Status.FAILED)
    with override_settings(INSTALLED_APPS=["jazzmin", *settings.INSTALLED_APPS]):
        listed = admin_client.get(reverse("admin:tasks_app_task_changelist")).content.decode()
        page = admin_client.get(reverse("admin:tasks_app_task_change", args=[task.pk]))
    assert "/static/jazzmin/" in listed
    for part, count in (
        ("data-task-list", 1),
        ('id="searchbar"', 1),
        ('class="task-filter"', len([one for one in FILTERS if not issubclass(one, LinkedFilter)])),
        (f'href="{reverse("admin:tasks_app_task_overview")}"', 1),
        (f'href="{reverse("admin:tasks_app_task_start")}"', 1),
    ):
        assert listed.count(part) == count, part
    assert len(re.findall(r"<h1[^>]*>\s*Noop\s*</h1>", page.content.decode())) == 1
