"""Streams between processes: a worker writes, a web process sends, viewers read."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client

from tasks_app.models import Task
from tasks_app.service import task_service
from tests.harness import PATIENCE, Process, Viewer, Web, begins, ends, eventually
from tests.tasks import Add, Burst, Fail, Noop, Steps, Talk

Watch = Callable[..., Viewer]


@pytest.fixture
def site(start_web: Callable[..., Web], start_worker: Callable[..., Process]) -> Iterator[Web]:
    """A web process and a worker."""
    start_worker()
    return start_web()


def stream(web: Web, task_id: object) -> str:
    return f"{web.url}/tasks/{task_id}/stream/"


def rises(values: list[float]) -> bool:
    return values == sorted(values)


def test_two_viewers_of_one_task_both_get_everything(
    site: Web, watch: Watch, owner: User, reins: Path
) -> None:
    task = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    begins(task.task_id)
    viewers = [watch(stream(site, task.task_id)) for _ in range(2)]
    for viewer in viewers:
        viewer.sees("task_status")
    for step in range(1, 11):
        reins.write_text(str(step))
        for viewer in viewers:
            eventually(
                lambda v=viewer, s=step: (
                    s / 10 in v.values(task.task_id) or "task_completed" in v.types
                )
            )
    for viewer in viewers:
        viewer.finish()
        assert viewer.types[0] == "task_status"
        assert viewer.facts == ["task_completed"]
        values = viewer.values(task.task_id)
        assert rises(values)
        assert len(set(values)) >= 9


def test_stream_opens_with_the_state_and_ends_with_the_task(
    site: Web, watch: Watch, owner: User
) -> None:
    task = task_service.start_task(Add, {"a": 1}, owner=owner)
    viewer = watch(stream(site, task.task_id)).finish()
    opening = json.loads(viewer.events[0].data)
    assert viewer.events[0].event == opening["event_type"] == "task_status"
    assert opening["data"]["task_id"] == str(task.task_id)
    end = viewer.sees("task_completed")
    assert end["data"] == {"result": 3, "progress": {"text": "adding", "value": 1.0}}
    assert end["task_id"] == str(task.task_id)
    assert viewer.headers["content-type"] == "text/event-stream"
    assert viewer.headers["cache-control"] == "no-cache, no-store, no-transform, private"
    assert viewer.headers["x-accel-buffering"] == "no"


def test_raw_stream_is_valid_and_ends_by_itself(site: Web, cookie: str, owner: User) -> None:
    task = task_service.start_task(Add, {"a": 1}, owner=owner)
    asked = {"cookies": {"sessionid": cookie}, "timeout": PATIENCE}
    body = httpx.get(stream(site, task.task_id), **asked).text
    assert body.endswith("\n\n")
    blocks = [block.split("\n") for block in body.strip().split("\n\n")]
    assert blocks[0][:3] == [": events of tasks", "retry: 2000", "event: task_status"]
    assert [block[0] for block in blocks[-2:]] == ["event: task_completed", "event: stream-end"]
    for line in itertools.chain(*blocks):
        assert line.split(":")[0] in ("", "event", "id", "data", "retry")


def test_reconnecting_viewer_misses_nothing_and_gets_nothing_twice(
    site: Web, watch: Watch, owner: User, reins: Path
) -> None:
    task = task_service.start_task(Steps, {"reins": reins}, owner=owner, max_attempts=2)
    first = watch(stream(site, task.task_id))
    first.sees("task_status")
    begins(task.task_id)
    last_id = eventually(lambda: first.last_event_id)
    first.leave()
    had = first.facts
    task_service.cancel_task(task.task_id)
    ends(task.task_id)
    again = watch(stream(site, task.task_id), last_event_id=last_id).finish()
    history = list(
        Task.objects.get(pk=task.task_id)
        .events.filter(pk__gt=int(last_id.split("@")[0]))
        .order_by("pk")
        .values_list("event_type", flat=True)
    )
    assert again.facts == history
    assert again.facts[-1] == "task_cancelled"
    assert not {"task_cancelled"} & set(had)


def test_reconnect_after_the_end_gets_204(site: Web, watch: Watch, owner: User) -> None:
    task = task_service.start_task(Add, {"a": 1}, owner=owner)
    viewer = watch(stream(site, task.task_id)).finish()
    assert (
        watch(stream(site, task.task_id), last_event_id=viewer.last_event_id).finish().status == 204
    )


def test_last_event_id_may_be_in_the_query(site: Web, cookie: str, owner: User) -> None:
    task = task_service.start_task(Add, {"a": 1}, owner=owner)
    ends(task.task_id)
    last = Task.objects.get(pk=task.task_id).events.order_by("-pk")[0].pk
    answer = httpx.get(
        stream(site, task.task_id),
        params={"lastEventId": last},
        cookies={"sessionid": cookie},
        timeout=PATIENCE,
    )
    assert answer.status_code == 204


def test_viewer_after_the_end_gets_state_and_terminal_event(
    site: Web, watch: Watch, owner: User
) -> None:
    task = task_service.start_task(Fail, owner=owner)
    ends(task.task_id)
    viewer = watch(stream(site, task.task_id)).finish()
    assert viewer.types == ["task_status", "task_failed", "stream-end"]
    assert viewer.sees("task_status")["data"]["error"] == {
        "type": None,
        "message": "The task failed.",
    }
    received = "".join(event.data for event in viewer.events)
    assert not [hidden for hidden in ("Traceback", "ValueError", "it broke") if hidden in received]


def test_burst_of_progress_does_not_hide_the_end(site: Web, watch: Watch, owner: User) -> None:
    tasks = [task_service.start_task(Burst, {"calls": 5000}, owner=owner) for _ in range(4)]
    viewers = [watch(stream(site, task.task_id)) for task in tasks for _ in range(5)]
    for viewer in viewers:
        viewer.finish()
        assert viewer.facts.count("task_completed") == 1
        assert viewer.types[-2:] == ["task_completed", "stream-end"]


def test_many_log_lines_arrive_in_order(site: Web, watch: Watch, owner: User) -> None:
    """More lines at once than a listener queues: the rest is read from the database."""
    viewer = watch(f"{site.url}/tasks/stream/?mine=1")
    eventually(lambda: viewer.status)
    task = task_service.start_task(Talk, {"lines": 300}, owner=owner)
    eventually(lambda: "task_completed" in viewer.types)
    late = watch(stream(site, task.task_id), last_event_id="0").finish()
    for reader in (viewer, late):
        lines = [
            json.loads(event.data)["data"]["message"]
            for event in reader.events
            if event.event == "task_log"
        ]
        assert lines == [f"line {number}" for number in range(300)]
    assert late.facts == ["task_queued", "task_started", *["task_log"] * 300, "task_completed"]


def test_one_stream_for_many_tasks(site: Web, watch: Watch, owner: User, reins: Path) -> None:
    held = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    quick = task_service.start_task(Add, {"a": 1}, owner=owner)
    ends(quick.task_id)
    viewer = watch(f"{site.url}/tasks/stream/?task={held.task_id}&task={quick.task_id}")
    viewer.sees("task_completed")
    assert viewer.types.count("task_status") == 2
    reins.write_text("10")
    viewer.finish()
    assert viewer.facts.count("task_completed") == 2


def test_task_whose_transaction_commits_late_is_not_missed(
    site: Web, watch: Watch, owner: User
) -> None:
    """On PostgreSQL its event ids are smaller than ids that were sent before it became visible."""
    viewer = watch(f"{site.url}/tasks/stream/?mine=1")
    eventually(lambda: viewer.status)
    later: list[object] = []
    with transaction.atomic():
        early = task_service.start_task(Noop, owner=owner)
        if transaction.get_connection().vendor == "postgresql":
            # On SQLite no other connection can write now.
            later.append(_start_elsewhere(owner))
            eventually(lambda: "task_completed" in viewer.types)
    eventually(lambda: viewer.types.count("task_completed") == 1 + len(later))
    sent = [json.loads(event.data) for event in viewer.events if event.event != "task_status"]
    mine = [event["event_type"] for event in sent if event["task_id"] == str(early.task_id)]
    assert [kind for kind in mine if kind != "progress_update"] == [
        "task_queued",
        "task_started",
        "task_completed",
    ]
    resumed = watch(f"{site.url}/tasks/stream/?mine=1", last_event_id=viewer.last_event_id)
    task_service.start_task(Add, {"a": 5}, owner=owner)
    resumed.sees("task_completed")
    assert resumed.facts == ["task_queued", "task_started", "task_completed"]


def _start_elsewhere(owner: User) -> object:
    """Start a task in another thread, and so in another connection and transaction."""
    started: list[object] = []

    def start() -> None:
        started.append(task_service.start_task(Noop, owner=owner).task_id)
        connection.close()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    return started[0]


def test_web_process_may_be_killed_while_a_task_starts(
    start_web: Callable[..., Web],
    start_worker: Callable[..., Process],
    watch: Watch,
    owner: User,
    reins: Path,
) -> None:
    start_worker()
    web = start_web()
    task = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    before = watch(stream(web, task.task_id))
    reins.write_text("3")
    eventually(lambda: 0.3 in before.values(task.task_id))
    web.send(signal.SIGKILL)
    web.wait()
    reins.write_text("6")
    web = start_web(web.port)
    after = watch(stream(web, task.task_id), last_event_id=before.last_event_id)
    after.sees("task_status")
    reins.write_text("10")
    after.finish()
    assert rises(before.values(task.task_id) + after.values(task.task_id))
    assert after.facts[-1] == "task_completed"
    assert (before.facts + after.facts).count("task_started") <= 1


def test_stream_shows_the_end_of_a_killed_workers_task(
    start_web: Callable[..., Web],
    start_worker: Callable[..., Process],
    watch: Watch,
    owner: User,
    reins: Path,
) -> None:
    worker, web = start_worker(), start_web()
    task = task_service.start_task(Steps, {"reins": reins}, owner=owner)
    viewer = watch(stream(web, task.task_id))
    begins(task.task_id)
    worker.send(signal.SIGKILL)
    start_worker()
    viewer.finish()
    assert viewer.sees("task_failed")
    # The reason is only for staff.
    assert Task.objects.get(pk=task.task_id).error_type == "WorkerLost"


def test_user_cannot_read_streams_of_other_users(site: Web, cookie: str, owner: User) -> None:
    other = User.objects.create_user("eve")
    task = task_service.start_task(Noop, owner=other)

    def read(path: str, **cookies: str) -> int:
        return httpx.get(f"{site.url}/tasks/{path}", cookies=cookies, timeout=PATIENCE).status_code

    assert read(f"{task.task_id}/stream/", sessionid=cookie) == 404
    assert read(f"stream/?task={task.task_id}", sessionid=cookie) == 404
    assert read("stream/?all=1", sessionid=cookie) == 404
    assert read(f"{task.task_id}/stream/") == 403
    assert read("stream/?task=nonsense", sessionid=cookie) == 400
    assert read("stream/", sessionid=cookie) == 400


def test_staff_read_streams_by_permission(site: Web, watch: Watch, owner: User) -> None:
    admin = User.objects.create_superuser("root")
    client = Client()
    client.force_login(admin)
    task = task_service.start_task(Add, {"a": 1}, owner=owner)
    session = client.cookies["sessionid"].value
    assert watch(stream(site, task.task_id), session).finish().facts[-1] == "task_completed"
    everything = watch(f"{site.url}/tasks/stream/?all=1", session)
    eventually(lambda: everything.status == 200)
    second = task_service.start_task(Add, {"a": 2}, owner=owner)
    eventually(lambda: "task_completed" in everything.types)
    assert json.loads(everything.events[-1].data)["task_id"] == str(second.task_id)


def test_cors_follows_django_eventstreams_settings(
    start_web: Callable[..., Web], owner: User, cookie: str
) -> None:
    web = start_web(EVENTSTREAM_ALLOW_ORIGIN="https://pages.example")
    task = task_service.start_task(Noop, owner=owner)
    task_service.cancel_task(task.task_id)
    answer = httpx.get(
        stream(web, task.task_id),
        cookies={"sessionid": cookie},
        headers={"Origin": "https://pages.example"},
        timeout=PATIENCE,
    )
    assert answer.headers.get("access-control-allow-origin") == "https://pages.example"


def test_many_streams_need_few_threads(
    start_web: Callable[..., Web], watch: Watch, owner: User
) -> None:
    """A stream needs neither a thread nor a database connection."""
    web = start_web()
    task = task_service.start_task(Noop, owner=owner)
    viewers = []
    for _ in range(60):
        # One after another: SQLite keeps as many files open as were open at the same time.
        viewers.append(watch(stream(web, task.task_id)))
        viewers[-1].sees("task_status")
    threads = len(list(Path(f"/proc/{web.pid}/task").iterdir()))
    assert threads <= 10
    files = [link.resolve() for link in Path(f"/proc/{web.pid}/fd").iterdir()]
    database = transaction.get_connection().settings_dict["NAME"]
    assert sum(str(file) == str(database) for file in files) <= 3
    task_service.cancel_task(task.task_id)
    for viewer in viewers:
        assert viewer.finish().facts == ["task_cancelled"]
    eventually(lambda: len(list(Path(f"/proc/{web.pid}/task").iterdir())) < threads)


@pytest.mark.parametrize("why", ["signal", "limit"])
@pytest.mark.parametrize("application", ["project.asgi:application", "project.asgi:site"])
def test_streams_do_not_delay_a_server_shutdown(
    start_web: Callable[..., Web], watch: Watch, owner: User, application: str, why: str
) -> None:
    """For each reason to stop, with the README's command, and also without the wrapper."""
    limits = {"UVICORN_LIMIT_MAX_REQUESTS": "8"} if why == "limit" else {}
    web = start_web(application=application, **limits)
    task = task_service.start_task(Noop, owner=owner)
    viewers = [watch(stream(web, task.task_id)) for _ in range(3)]
    for viewer in viewers:
        viewer.sees("task_status")
    if why == "signal":
        web.send(signal.SIGTERM)
    else:
        with contextlib.suppress(httpx.TransportError):
            for _ in range(8):
                httpx.get(f"{web.url}/login/", timeout=PATIENCE)
    web.wait()
    for viewer in viewers:
        assert viewer.finish().types == ["task_status"]


def test_relay_ends_with_the_last_viewer(
    start_web: Callable[..., Web], cookie: str, owner: User
) -> None:
    web = start_web(LOG_LEVEL="DEBUG")
    task = task_service.start_task(Noop, owner=owner)
    asked = {"cookies": {"sessionid": cookie}, "timeout": PATIENCE}
    with httpx.stream("GET", stream(web, task.task_id), **asked) as response:
        # Keep a reference: an iterator that is collected closes the connection.
        chunks = response.iter_bytes()
        next(chunks)
        web.says("The relay started at event")
        assert "The relay stopped" not in web.output
    web.says("The relay stopped: no open streams")
