"""Live bars: one stream, the right order, announcements, and escaping."""

from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect
from pytest_django import Settings

from .pages import PATIENT, bar, look, part, shows
from .scripted import Serve, task

pytestmark = pytest.mark.browser

XSS = "<img src=x onerror=alert(1)><script>alert(2)</script>{{ 7|add:7 }}"


def test_twelve_bars_share_one_stream(page: Page, serve: Serve) -> None:
    rows = [task() for _ in range(12)]
    site = serve(*rows)
    # The first one is shown twice.
    site.template = (
        "{% for task in tasks %}{% task_progress task %}{% endfor %}{% task_progress tasks.0 %}"
    )
    page.add_init_script(PATIENT)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    assert sorted(stream.task_ids) == sorted(str(row.pk) for row in rows)
    for number, row in enumerate(rows):
        stream.progress(row, number / 16, f"step {number}")
    for number, row in enumerate(rows[1:], 1):
        shows(page, row, "Running", str(number / 16), f"step {number}")
    expect(part(page, rows[0], "text")).to_have_text(["step 0", "step 0"])
    assert len(site.streams) == 1
    assert site.asked("status") == []


def test_hundred_bars_fit_into_a_request_line(page: Page, serve: Serve) -> None:
    """A request line of 4,094 characters, which is gunicorn's default limit."""
    site = serve(*[task() for _ in range(100)])
    with page.expect_request("**/stream/?*") as asked:
        page.goto(f"{site.url}/page/")
    assert len(site.stream().task_ids) == 100
    assert len(asked.value.url.removeprefix(site.url)) < 4_094 - 500


def test_bar_moves_and_ends(page: Page, serve: Serve) -> None:
    row = task(status="pending")
    site = serve(row)
    page.goto(f"{site.url}/page/")
    page.evaluate(
        "window.ends = [];"
        "addEventListener('task-progress:end', (e) => ends.push([e.detail, "
        "  e.target.querySelector('[data-part=state]').textContent]))"
    )
    stream = site.stream()
    shows(page, row, "Waiting to start", "0")
    stream.send("task_started", row, attempt=1, max_attempts=1, worker="here:1")
    shows(page, row, "Running")
    expect(part(page, row, "bar")).not_to_have_attribute("value", "0")
    assert part(page, row, "bar").evaluate("bar => bar.matches(':indeterminate')")
    expect(part(page, row, "percent")).to_have_text("")
    stream.progress(row, 0.299, "reading")
    shows(page, row, "Running", "0.299", "reading")
    expect(part(page, row, "percent")).to_have_text("29%")
    stream.progress(row, 0.999)
    expect(part(page, row, "percent")).to_have_text("99%")
    stream.send("task_completed", row, result={"rows": 3})
    shows(page, row, "Completed", "1")
    expect(part(page, row, "percent")).to_have_text("100%")
    expect(bar(page, row)).to_have_attribute("status", "completed")
    # The page closed it: the server left it open.
    site.wait_for(lambda: stream.closed, "the page to close its stream")
    ended = {"taskId": str(row.pk), "status": "completed"}
    assert page.evaluate("ends") == [[ended, "Completed"]]
    assert len(site.streams) == 1


def test_failure_is_shown(page: Page, serve: Serve) -> None:
    row = task(progress=0.4)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    error = {"type": "ValueError", "message": "no such file"}
    site.stream().send("task_failed", row, error=error)
    shows(page, row, "Failed", "0.4")
    expect(part(page, row, "error")).to_have_text("ValueError: no such file")


def test_text_is_never_inserted_as_html(page: Page, serve: Serve) -> None:
    rows = [task(name=XSS, progress_text=XSS), task(name=XSS, progress_text=XSS)]
    site = serve(*rows)
    page.goto(f"{site.url}/page/")
    shows(page, rows[0], "Running", text=XSS)
    stream = site.stream()
    stream.progress(rows[0], 0.5, f"{XSS} live")
    shows(page, rows[0], "Running", "0.5", f"{XSS} live")
    stream.send("task_failed", rows[0], error={"type": XSS, "message": XSS})
    expect(part(page, rows[0], "error")).to_have_text(f"{XSS}: {XSS}")
    expect(part(page, rows[0], "announcer")).to_contain_text(XSS)
    assert page.locator("task-progress img, task-progress script").count() == 0


def test_stale_messages_change_nothing(page: Page, serve: Serve) -> None:
    row, witness = task(max_attempts=3), task()
    site = serve(row, witness)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.6, "far")
    stream.progress(row, 0.2, "late")
    stream.progress(witness, 0.1)
    shows(page, witness, "Running", "0.1")
    shows(page, row, "Running", "0.6", "far")
    later = {"run_after": "2099-01-01T10:00:00Z", "error": {"type": "E", "message": "m"}}
    stream.send("task_retry_scheduled", row, attempt=1, **later)
    expect(part(page, row, "state")).to_contain_text("Attempt 1 of 3 failed, trying again at")
    expect(part(page, row, "state")).to_contain_text("2099")
    expect(part(page, row, "bar")).to_have_attribute("value", "0")
    stream.progress(row, 0.7, "late", attempt=1)
    stream.send("task_started", row, attempt=2, max_attempts=3)
    shows(page, row, "Running, attempt 2 of 3")
    stream.progress(row, 0.1, "again", attempt=2)
    shows(page, row, "Running, attempt 2 of 3", "0.1", "again")
    stream.progress(row, 0.9, "late", attempt=1)
    stream.progress(witness, 0.2)
    shows(page, witness, "Running", "0.2")
    shows(page, row, "Running, attempt 2 of 3", "0.1", "again")
    stream.send("task_cancelled", row)
    shows(page, row, "Cancelled", "0.1")
    stream.progress(row, 0.8, "late", attempt=2)
    stream.send("task_completed", row)
    stream.status(row)
    stream.progress(witness, 0.3)
    shows(page, witness, "Running", "0.3")
    shows(page, row, "Cancelled", "0.1", "again")


def test_facts_before_the_state_change_nothing(page: Page, serve: Serve) -> None:
    """A resumed stream sends the current state, and then the facts since."""
    now = datetime.now(UTC)
    # In the middle of a minute: the page receives it a moment later, and shows a later value.
    later = (now + timedelta(minutes=2)).replace(second=20, microsecond=0)
    waiting = task(status="pending", attempt=1, max_attempts=2, run_after=later)
    handed_back, witness = task(progress=0.4, started_at=now), task()
    site = serve(waiting, handed_back, witness)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    past = now - timedelta(minutes=1)
    late = {"run_after": (now + timedelta(hours=1)).isoformat()}
    stream.send("task_queued", waiting, at=past, **late)
    stream.send("task_started", waiting, at=past, attempt=1, max_attempts=2)
    stream.send("task_retry_scheduled", waiting, at=past, attempt=1, **late)
    for _ in range(2):
        stream.send("task_started", handed_back, at=past, attempt=1, max_attempts=1)
        stream.send("task_queued", handed_back, at=past, reason="released", **late)
    stream.send("task_started", handed_back, at=now, attempt=1, max_attempts=1)
    stream.progress(witness, 0.5)
    shows(page, witness, "Running", "0.5")
    shows(page, handed_back, "Running", "0.4")
    before = page.evaluate(
        "date => new Intl.DateTimeFormat('en', {timeStyle: 'short'}).format(new Date(date))",
        waiting.run_after.isoformat(),
    )
    shows(page, waiting, f"Attempt 1 of 2 failed, trying again at {before}")


def test_finished_task_stays_finished(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    info = row.info().model_dump(mode="json")
    messages = [
        ("task_status", info),
        ("progress_update", {"attempt": 9, "value": 0.5, "text": ""}),
        ("task_started", {"attempt": 9, "max_attempts": 9}),
        ("task_queued", {"run_after": info["created_time"]}),
        ("task_retry_scheduled", {"attempt": 9, "run_after": info["created_time"]}),
        ("task_cancel_requested", {}),
        ("task_completed", {}),
        ("task_failed", {"error": {"type": "E", "message": "m"}}),
    ]
    kept = page.evaluate(
        """async (messages) => {
          const { reduce } = await import("/static/tasks_app/task-state.js");
          const state = { status: "cancelled", attempt: 1, value: null, heard: 0, started: 1 };
          return messages.map(([type, data]) =>
            reduce(state, { type, data, time: 5, asked: 5, received: 5 }) === state);
        }""",
        messages,
    )
    assert kept == [True] * len(messages)


def test_released_task_waits_and_starts_again(page: Page, serve: Serve) -> None:
    row = task(progress=0.5)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_queued", row, run_after="2020-01-01T10:00:00Z", reason="released")
    shows(page, row, "Waiting to start", "0")
    stream.send("task_started", row, attempt=1, max_attempts=1)
    stream.progress(row, 0.1, "from the start")
    shows(page, row, "Running", "0.1", "from the start")


def test_cancel_requested_elsewhere(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    expect(bar(page, row).get_by_role("button")).to_be_visible()
    site.stream().send("task_cancel_requested", row, by="somebody")
    shows(page, row, "Cancelling…")
    expect(bar(page, row).get_by_role("button")).to_be_hidden()


def test_progress_is_announced_at_intervals(page: Page, serve: Serve) -> None:
    rows = [task(name=f"task {number}") for number in range(2)]
    site = serve(*rows)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    page.evaluate(
        """() => {
          window.said = [];
          window.began = performance.now();
          for (const region of document.querySelectorAll('[aria-live=polite]'))
            new MutationObserver(() => said.push(region.textContent))
              .observe(region, {childList: true, characterData: true, subtree: true});
        }"""
    )

    def step(value: float) -> None:
        for row in rows:
            stream.progress(row, value, "on")
        for row in rows:
            expect(part(page, row, "percent")).to_have_text(f"{value:.0%}")

    for percent in range(1, 19):
        step(percent / 100)
    said, passed = page.evaluate("[said, performance.now() - began]")
    # One announcement for both bars every five seconds, however slow this test is.
    assert len(said) <= 1 + passed / 5_000
    page.clock.run_for(30_000)
    before, said = len(said), page.evaluate("said")
    # The newest value at each interval, once per bar.
    assert len(said) <= before + 2
    assert sorted(said[-2:]) == ["task 0: Running, 18%, on", "task 1: Running, 18%, on"]
    # Important changes are announced immediately.
    stream.send("task_completed", rows[0])
    expect(part(page, rows[0], "announcer")).to_have_text("task 0: Completed, 100%, on")


def test_end_of_a_delay_is_shown(page: Page, serve: Serve) -> None:
    row = task(status="pending")
    site = serve(row)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    row.run_after = datetime.now(UTC) + timedelta(seconds=30)
    site.stream().status(row)
    expect(part(page, row, "state")).to_contain_text("Waiting until")
    row.run_after = datetime.now(UTC)  # The server's time has advanced too.
    page.clock.fast_forward(30_000)
    shows(page, row, "Waiting to start")


def test_missing_worker_is_shown(page: Page, serve: Serve) -> None:
    """The page polls for it while the task waits, because no stream reports it."""
    row = task(status="pending")
    site = serve(row)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    site.stream().status(row)
    for said in ("Waiting for a worker", ""):
        row.no_worker = said  # type: ignore[attr-defined]
        page.clock.fast_forward(10_000)
        shows(page, row, said or "Waiting to start")


def test_times_advance(page: Page, serve: Serve, settings: Settings) -> None:
    row = task()
    site = serve(row)
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 86_400
    page.clock.install()
    page.goto(f"{site.url}/page/")
    site.stream().progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    page.clock.fast_forward(3 * 3600_000 + 5 * 60_000)
    expect(part(page, row, "time")).to_have_text("3 h 5 min")


def test_facts_reach_the_page(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    page.evaluate(
        "window.facts = [];"
        "addEventListener('task-progress:event', ({detail}) => facts.push(detail))"
    )
    site.stream().send("task_log", row, "1041", level="info", message=XSS)
    site.stream().progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    [fact] = page.evaluate("facts")
    assert fact.pop("timestamp")
    assert fact == {
        "taskId": str(row.pk),
        "eventId": 1041,
        "eventType": "task_log",
        "data": {"level": "info", "message": XSS},
    }


def test_moved_bar_keeps_its_stream(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.5, "half")
    shows(page, row, "Running", "0.5")
    bar(page, row).evaluate(
        "bar => document.body.appendChild(document.createElement('section')).append(bar)"
    )
    stream.progress(row, 0.6, "on")
    shows(page, row, "Running", "0.6", "on")
    assert len(site.streams) == 1


def test_bar_put_back_gets_what_it_missed(page: Page, serve: Serve) -> None:
    """The stream has already reported its task to other bars, and does not repeat it."""
    row, other = task(), task()
    site = serve(row, other)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    # Like a part of a page that was fetched while the task ran, and is inserted later.
    page.evaluate("() => { window.taken = document.querySelector('task-progress'); }")
    fragment = site.render("{% task_progress tasks.0 assets=False %}")
    bar(page, row).evaluate("bar => bar.remove()")
    row.status, row.finished_at = "completed", datetime.now(UTC)
    stream.send("task_completed", row)
    stream.progress(other, 0.25)
    shows(page, other, "Running", "0.25")
    page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", fragment)
    shows(page, row, "Completed")
    # The same element, removed and put back.
    bar(page, row).evaluate("bar => bar.remove()")
    page.evaluate("document.body.append(taken)")
    shows(page, row, "Completed")
    assert len(site.streams) == 1


def test_bar_added_later_joins_the_stream(page: Page, serve: Serve) -> None:
    first, second = task(), task()
    site = serve(first)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_log", first, "41", level="info", message="hello")
    stream.progress(first, 0.5)
    shows(page, first, "Running", "0.5")
    site.rows[str(second.pk)] = second
    page.evaluate(
        "html => document.body.insertAdjacentHTML('beforeend', html)",
        site.render("{% task_progress tasks.1 %}"),
    )
    joined = site.stream(2)
    assert joined.task_ids == [str(first.pk), str(second.pk)]
    assert joined.last_event_id == "41"
    site.wait_for(lambda: stream.closed, "the first stream to close")
    joined.progress(second, 0.25)
    shows(page, second, "Running", "0.25")
    page.evaluate("document.querySelectorAll('task-progress').forEach(bar => bar.remove())")
    site.wait_for(lambda: joined.closed, "the stream of nobody to close")


def test_script_may_be_loaded_twice(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    site.head += '<script type="module" src="/static/tasks_app/task-progress.js?again"></script>'
    page.goto(f"{site.url}/page/")
    site.stream().progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    assert len(site.streams) == 1


def test_hidden_page_closes_its_stream_and_misses_nothing(page: Page, serve: Serve) -> None:
    row, other = task(), task()
    site = serve(row, other)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    page.evaluate(
        "window.facts = [];"
        "addEventListener('task-progress:event', ({detail}) => facts.push(detail.data.message))"
    )
    stream = site.stream()
    stream.send("task_log", row, "41", level="info", message="before")
    stream.progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    look(page, away=True)
    page.clock.run_for(1_500)
    stream.progress(row, 0.55)
    shows(page, row, "Running", "0.55")
    look(page)
    look(page, away=True)
    page.clock.run_for(2_000)
    # The page was not hidden for long.
    stream.progress(row, 0.6)
    shows(page, row, "Running", "0.6")
    page.clock.run_for(1_000)
    site.wait_for(lambda: stream.closed, "a page that nobody sees to close its stream")
    asked = len(site.requests)
    page.clock.run_for(600_000)
    assert len(site.requests) == asked

    site.rows[str(other.pk)] = task(pk=other.pk, status="completed")
    look(page)
    page.clock.run_for(1_000)
    again = site.stream(2)
    assert again.last_event_id == "41"
    again.send("task_log", row, "42", level="info", message="meanwhile")
    again.progress(row, 0.9)
    shows(page, row, "Running", "0.9")
    shows(page, other, "Completed")
    assert page.evaluate("facts") == ["before", "meanwhile"]


def test_more_bars_than_a_stream_allows(page: Page, serve: Serve, settings: Settings) -> None:
    settings.TASK_STREAM_MAX_TASKS = 2
    rows = [task(progress=0.1) for _ in range(3)]
    site = serve(*rows)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    assert stream.task_ids == [str(row.pk) for row in rows[:2]]
    expect(part(page, rows[2], "hint")).to_have_text("Updates every few seconds.")
    expect(part(page, rows[0], "hint")).to_be_hidden()
    rows[2].progress = 0.4
    page.clock.run_for(3_500)
    shows(page, rows[2], "Running", "0.4")
    assert site.asked("status")[-1].task_ids == [str(rows[2].pk)]
    # One ends, so there is room.
    stream.send("task_completed", rows[0])
    assert site.stream(2).task_ids == [str(row.pk) for row in rows[1:]]
    expect(part(page, rows[2], "hint")).to_be_hidden()
