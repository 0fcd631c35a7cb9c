"""The overview of all tasks and workers, and the list of workers."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import reverse
from django.utils import timezone

from tasks_app.admin.charts import HEIGHT, WIDTH, chart, round_up
from tasks_app.models import Task, Worker
from tasks_app.states import Status
from tasks_app.store import statistics
from tasks_app.store.statistics import HOUR, MINUTE, Course, Period
from tests.rows import row, saved, worker
from tests.tasks.test_forms import XSS
from tests.test_permissions import someone

pytestmark = pytest.mark.django_db

PAGE = reverse("admin:tasks_app_task_overview")
PART = reverse("admin:tasks_app_task_overview_part")
LIST = reverse("admin:tasks_app_task_changelist")
WORKERS = reverse("admin:tasks_app_worker_changelist")
LOST = timedelta(minutes=5)


def page_of(one: Worker) -> str:
    return reverse("admin:tasks_app_worker_change", args=[one.pk])


def text(response: Any) -> str:
    assert response.status_code == 200
    return str(response.content.decode())


def words(response: Any) -> str:
    """Return the text of a page as one line."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text(response))))


# Permissions.


@pytest.mark.parametrize(
    ("codenames", "fields", "status"),
    [
        (("view_task",), {"is_staff": True}, 200),
        (("start_task", "cancel_task", "view_worker"), {"is_staff": True}, 403),
        ((), {"is_staff": True, "is_superuser": True}, 200),
        (("view_task",), {}, 302),
        (("view_task",), {"is_staff": True, "is_active": False}, 302),
    ],
)
@pytest.mark.parametrize("url", [PAGE, PART])
def test_permission_to_see_it(
    client: Client, url: str, codenames: tuple[str, ...], fields: dict[str, Any], status: int
) -> None:
    client.force_login(someone(*codenames, **fields))
    assert client.get(url).status_code == status


def test_links_lead_only_to_permitted_pages(client: Client, admin_client: Client) -> None:
    one = worker()
    client.force_login(someone("view_task", is_staff=True))
    limited, full = text(client.get(PAGE)), text(admin_client.get(PAGE))
    for url in (page_of(one), WORKERS, reverse("admin:tasks_app_task_start")):
        assert f'href="{url}"' not in limited
        assert f'href="{url}"' in full


@pytest.mark.parametrize("url", [LIST, reverse("admin:app_list", args=["tasks_app"])])
def test_overview_is_linked(admin_client: Client, client: Client, url: str) -> None:
    assert f'href="{PAGE}"' in text(admin_client.get(url))
    client.force_login(someone("view_worker", is_staff=True))
    response = client.get(url)
    assert response.status_code == 403 or PAGE not in text(response)


# Contents.


def test_empty_overview_says_what_to_do(admin_client: Client) -> None:
    content = words(admin_client.get(PAGE))
    assert "No workers yet. Start one with manage.py run_tasks" in content
    assert "No tasks waiting or running." in content
    assert "0 completed" in content


@pytest.mark.usefixtures("still")
def test_numbers(admin_client: Client) -> None:
    by = worker(hostname="red", pid=4711, threads=8, stuck=1, queues=["mails", "night"])
    worker(hostname="grey", heartbeat_at=timezone.now() - LOST)
    worker(hostname="blue", stopped_at=timezone.now())
    saved(Status.RUNNING, worker=by, queue="mails")
    saved(age=timedelta(minutes=3, seconds=5), queue="mails")
    saved(run_after=timezone.now() + timedelta(hours=1))
    for _ in range(3):
        saved(Status.FAILED)
    saved(Status.COMPLETED)
    content = words(admin_client.get(PAGE))
    for expected in (
        "Running 1 8 threads",
        "Waiting 1 longest wait 3 min",
        "Scheduled 1 delayed",
        "Completed 1",
        "Failed 3",
        "Workers 1 1 lost",
        "Stuck threads 1",
        "mails 1 3 min",
        "red 4711 Alive 1 of 8 threads busy 0 s ago 1 mails, night",
        "grey 1 Heartbeat lost 0 of 4 threads busy 5 min 0 s ago 0 all",
        "blue 1 Stopped",
        "1 completed 3 failed 0 cancelled",
    ):
        assert expected in content
    linked = text(admin_client.get(PAGE))
    assert f'href="{LIST}?worker={by.pk}&amp;status=running"' in linked
    assert f'href="{LIST}?queue=mails"' in linked


def test_number_of_further_workers_is_shown(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "WORKERS", 1)
    worker(hostname="red")
    assert "more worker" not in words(admin_client.get(PAGE))
    worker(hostname="grey", heartbeat_at=timezone.now() - LOST)
    content = words(admin_client.get(PAGE))
    assert "And 1 more worker." in content
    assert "Workers 1 1 lost" in content
    assert "grey" in content
    assert "red" not in content
    worker(hostname="blue")
    assert "And 2 more workers." in words(admin_client.get(PAGE))


def test_singular_plural_and_thousands(admin_client: Client) -> None:
    by = worker(threads=1)
    saved(Status.RUNNING, worker=by)
    Task.objects.bulk_create(row(Status.COMPLETED) for _ in range(1_234))
    Task.objects.bulk_create(row(run_after=timezone.now() + HOUR) for _ in range(1_001))
    content = words(admin_client.get(PAGE))
    assert "1 of 1 thread busy " in content
    assert content.count("1,234 completed") >= 3
    assert not re.search(r"\b(1234|1001)\b", content)
    later = re.search(rf'href="({LIST}[^"]*)">1,001<', text(admin_client.get(PAGE)))
    assert later
    listed = admin_client.get(html.unescape(later[1])).context["cl"].result_list
    assert listed[0].run_after > timezone.now()


@pytest.mark.parametrize(("ago", "trouble"), [(timedelta(hours=2), False), (MINUTE, True)])
def test_old_failures_are_no_current_trouble(
    admin_client: Client, ago: timedelta, trouble: bool
) -> None:
    saved(Status.FAILED, age=ago)
    [tile] = re.findall(r'<div data-status="failed"[^>]*>', text(admin_client.get(PAGE)))
    assert ("data-trouble" in tile) is trouble


def test_number_links_to_as_many_tasks(admin_client: Client) -> None:
    by = worker()
    now = timezone.now()
    for status, many in ((Status.RUNNING, 2), (Status.COMPLETED, 3), (Status.CANCELLED, 1)):
        for _ in range(many):
            saved(status, queue="a&b", worker=by if status == Status.RUNNING else None)
    for age in (timedelta(), HOUR, HOUR * 30):
        saved(Status.FAILED, finished_at=now - age)
        saved(queue="a&b", age=age)
    saved(run_after=now + HOUR, queue="a&b")
    page = text(admin_client.get(PAGE))
    numbers = re.findall(rf'href="({LIST}[^"]*)">([\d,]+)(?: in the last hour)?<', page)
    assert len(numbers) == 6 + 1 + 3
    for url, number in numbers:
        found = admin_client.get(html.unescape(url)).context["cl"].result_count
        assert found == int(number), url


def test_links_of_numbers_work(admin_client: Client) -> None:
    by = worker()
    saved(Status.RUNNING, worker=by, queue="a&b=c")
    for url in set(re.findall(rf'href="({LIST}[^"]*)"', text(admin_client.get(PART)))):
        assert admin_client.get(html.unescape(url)).status_code == 200


@pytest.mark.usefixtures("still")
def test_part_is_the_page_without_its_frame(admin_client: Client) -> None:
    saved(Status.FAILED)
    page, part = text(admin_client.get(PAGE)), admin_client.get(PART)
    assert "<html" not in text(part)
    steady = re.sub(r"<time.*?</time>", "", text(part))
    assert steady.partition("<dl")[2] in page
    assert "no-store" in part.headers["Cache-Control"]


def test_text_is_escaped(admin_client: Client) -> None:
    by = worker(hostname=XSS, queues=[XSS])
    saved(queue=XSS)
    saved(Status.RUNNING, worker=by, queue=XSS, name=XSS)
    for url in (PAGE, PART, WORKERS, page_of(by)):
        page = text(admin_client.get(url))
        assert html.escape(XSS) in page
        assert "<script>alert" not in page


def test_nothing_is_inline(admin_client: Client) -> None:
    worker()
    saved(Status.FAILED)
    for url in (PAGE, WORKERS):
        page = text(admin_client.get(url))
        assert not re.search(r"\sstyle=|\son\w+=|<style", page)
        assert "<script>" not in page


def test_number_of_queries_is_constant(admin_client: Client) -> None:
    def queries(url: str) -> int:
        with CaptureQueriesContext(connection) as executed:
            text(admin_client.get(url))
        return len(executed)

    by = worker()
    queries(PAGE)
    before = queries(PAGE), queries(PART), queries(WORKERS)
    for _ in range(20):
        worker()
    Task.objects.bulk_create(
        row(status, queue=f"q{number}", worker=by if status is Status.RUNNING else None)
        for status in Status
        for number in range(20)
    )
    assert (queries(PAGE), queries(PART), queries(WORKERS)) == before
    # The session, the user, and the statistics.
    assert before[1] <= 9


# Charts.


def course(*ended: dict[str, int]) -> Course:
    now = timezone.now()
    periods = [Period(now + MINUTE * number, each) for number, each in enumerate(ended)]
    return Course(MINUTE, periods)


def test_height_of_bars_is_proportional() -> None:
    drawn = chart(
        "hour",
        course(
            {}, {Status.COMPLETED: 10}, {Status.COMPLETED: 15, Status.FAILED: 5, "cancelled": 0}
        ),
    )
    assert drawn.most == 20
    empty, half, whole = drawn.bars
    assert empty.pieces == []
    assert [(piece.kind, piece.y, piece.height) for piece in half.pieces] == [
        ("completed", HEIGHT / 2, HEIGHT / 2)
    ]
    assert [(piece.kind, piece.y, piece.height) for piece in whole.pieces] == [
        ("failed", HEIGHT * 0.75, HEIGHT * 0.25),
        ("completed", 0, HEIGHT * 0.75),
    ]
    assert [bar.x for bar in drawn.bars] == [0, WIDTH / 3, WIDTH / 1.5]


def test_single_failure_among_very_many_is_visible() -> None:
    drawn = chart("hour", course({Status.COMPLETED: 1_000_000, Status.FAILED: 1}))
    [failed, _] = drawn.bars[0].pieces
    assert failed.kind == "failed"
    assert failed.height >= 3


@pytest.mark.parametrize(
    ("number", "rounded"),
    [(0, 1), (1, 1), (2, 2), (3, 4), (6, 6), (9, 10), (11, 20), (50, 50), (61, 80)],
)
def test_axis_ends_at_a_round_number(number: int, rounded: int) -> None:
    assert round_up(number) == rounded


def test_charts_have_text_and_tables(admin_client: Client) -> None:
    now = timezone.now()
    for status, many in ((Status.COMPLETED, 3), (Status.FAILED, 2), (Status.CANCELLED, 1)):
        for _ in range(many):
            saved(status, finished_at=now)
    page = text(admin_client.get(PART))
    for found in re.findall(r"<svg.*?</svg>", page, re.S):
        drawing = ElementTree.fromstring(found)
        label, summary = drawing.attrib["aria-labelledby"].split()
        assert f'id="{label}"' in page
        assert f'id="{summary}"' in page
        titles = [title.text for title in drawing.iter("title")]
        assert "3 completed, 2 failed, 1 cancelled" in (titles[-1] or "") + (titles[-2] or "")
    assert page.count("<svg") == 2
    # The table is not a landmark, because its section is one with the same name.
    assert 'role="region"' not in page
    assert len(re.findall(r'<th scope="row">\d\d:\d\d</th>', page)) == 60 + 24
    assert re.search(r"<td>3</td><td>2</td><td>1</td>", page)


@override_settings(LANGUAGES=[("en", "English"), ("de", "German")])
def test_numbers_in_drawings_are_not_localized(admin_client: Client) -> None:
    """A browser cannot read a number with a decimal comma."""
    saved(Status.COMPLETED)
    response = admin_client.get(PART, headers={"accept-language": "de"})
    page = text(response)
    assert response.headers["Content-Language"] == "de"
    assert re.search(r'(?:x|y|width|height)="\d+\.\d', page)
    assert not re.search(r'(?:x|y|width|height)="\d+,\d', page)


def test_charts_of_hour_and_day_have_different_titles() -> None:
    assert (
        chart("day", Course(HOUR, [Period(timezone.now(), {})])).title
        != chart("hour", Course(MINUTE, [Period(timezone.now(), {})])).title
    )


# Workers.


@pytest.mark.usefixtures("still")
def test_workers_are_listed_with_their_state(admin_client: Client) -> None:
    now = timezone.now()
    by = worker(hostname="red", pid=4711, queues=["mails"])
    worker(hostname="grey", heartbeat_at=now - LOST)
    worker(hostname="blue", stopped_at=now)
    saved(Status.RUNNING, worker=by)
    content = words(admin_client.get(WORKERS))
    assert "red:4711 Alive 1 of 4 threads busy 0 mails" in content
    assert "grey:1 Heartbeat lost 0 of 4 threads busy 0 all 5 min 0 s ago" in content
    assert "blue:1 Stopped 0 of 4 threads busy" in content
    for state, host in (("alive", "red"), ("lost", "grey"), ("stopped", "blue")):
        found = admin_client.get(WORKERS, {"state": state}).context["cl"].result_list
        assert [one.hostname for one in found] == [host]
    tasks = f"{LIST}?worker={by.pk}&amp;status=running"
    assert tasks in text(admin_client.get(WORKERS))
    assert admin_client.get(html.unescape(tasks)).context["cl"].result_list


def test_page_of_a_worker(admin_client: Client) -> None:
    by = worker(hostname="red", pid=4711, stuck=2)
    saved(Status.RUNNING, worker=by)
    content = words(admin_client.get(page_of(by)))
    for expected in ("red:4711", "Alive", "1 of 4 threads busy", "Stuck threads"):
        assert expected in content


def test_workers_are_read_only(admin_client: Client) -> None:
    by = worker()
    before = Worker.objects.values().get()
    assert admin_client.get(reverse("admin:tasks_app_worker_add")).status_code == 403
    assert admin_client.post(page_of(by), {"pid": 2}).status_code == 403
    url = reverse("admin:tasks_app_worker_delete", args=[by.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    assert Worker.objects.values().get() == before


@pytest.mark.parametrize(("codename", "status"), [("view_worker", 200), ("view_task", 403)])
def test_permission_to_see_workers(client: Client, codename: str, status: int) -> None:
    client.force_login(someone(codename, is_staff=True))
    assert client.get(WORKERS).status_code == status
    assert client.get(page_of(worker())).status_code == status
