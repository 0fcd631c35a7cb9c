"""Bars when the connection, the server or the user's rights fail."""

import pytest
from playwright.sync_api import Page, expect
from pytest_django import Settings

from tests.harness import eventually

from .pages import PATIENT, bar, part, pass_time, shows
from .scripted import Request, Serve, task

pytestmark = pytest.mark.browser

INTERRUPTED = "Live updates are interrupted. Checking every few seconds…"
LOST = "Connection lost. Trying again…"


def test_broken_stream_is_resumed(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.add_init_script(PATIENT)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.send("task_log", row, "12", level="info", message="hello")
    stream.progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    row.progress = 0.7
    stream.drop()
    again = site.stream(2)
    assert again.last_event_id == "12"
    shows(page, row, "Running", "0.7")
    again.progress(row, 0.8)
    shows(page, row, "Running", "0.8")
    expect(part(page, row, "hint")).to_be_hidden()
    assert site.asked("status") == []


def test_deploy(page: Page, serve: Serve, settings: Settings) -> None:
    """Streams are refused for a while. Bars poll, say so, and return to a stream when they can."""
    # Time runs fast here, so a slow stream must not look broken.
    settings.TASK_STREAM_KEEPALIVE_SECONDS = 3_600
    rows = [task(name=f"task {number}") for number in range(3)]
    row = rows[0]
    site = serve(*rows)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.1)
    shows(page, row, "Running", "0.1")

    site.answers["stream"] = (502, {})
    stream.drop()
    # Polled immediately, in case all tasks have ended, and then every few seconds.
    pass_time(page, site, lambda: len(site.asked("status")) >= 2)
    for each in rows:
        expect(part(page, each, "hint")).to_have_text(INTERRUPTED)
    expect(part(page, row, "announcer")).to_have_text(f"task 0: {INTERRUPTED}")
    expect(part(page, rows[1], "announcer")).to_have_text("")
    row.progress, row.progress_text = 0.4, "asked for"
    asked = len(site.asked("status"))
    pass_time(page, site, lambda: len(site.asked("status")) >= asked + 2)
    shows(page, row, "Running", "0.4", "asked for")
    # One request for all bars. The stream is retried all the time, at growing intervals.
    assert len(site.asked("status")[-1].task_ids) == 3
    tries = len(site.asked("stream"))
    passed = pass_time(page, site, lambda: len(site.asked("stream")) >= tries + 8)
    assert passed > 60
    expect(part(page, row, "hint")).to_have_text(INTERRUPTED)

    del site.answers["stream"]
    pass_time(page, site, lambda: len(site.streams) == 2)
    site.stream(2).progress(row, 0.6, "live")
    shows(page, row, "Running", "0.6", "live")
    for each in rows:
        expect(part(page, each, "hint")).to_be_hidden()
    # One request may have been in progress.
    asked = len(site.asked("status")) + 1
    page.clock.run_for(20_000)
    assert len(site.asked("status")) <= asked
    assert len(site.streams) == 2


def test_server_outage(page: Page, serve: Serve) -> None:
    """In the oldest supported browsers too: this test deletes what they lack."""
    row = task()
    site = serve(row)
    page.clock.install()
    page.add_init_script("delete AbortSignal.any; delete window.trustedTypes")
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    site.answers |= {"stream": (503, {}), "status": (503, {})}
    stream.drop()
    site.wait_for(lambda: site.asked("status"), "a first look")
    page.clock.run_for(5_000)
    expect(part(page, row, "hint")).to_have_text(LOST)
    del site.answers["status"]
    row.progress = 0.3
    asked = len(site.asked("status"))
    pass_time(page, site, lambda: len(site.asked("status")) > asked)
    expect(part(page, row, "hint")).to_have_text(INTERRUPTED)
    shows(page, row, "Running", "0.3")


def test_silent_stream(page: Page, serve: Serve) -> None:
    """As behind a proxy that buffers the response."""
    row = task(progress=0.2)
    site = serve(row)
    site.greets = False
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    page.clock.run_for(5_000)
    expect(part(page, row, "hint")).to_have_text(INTERRUPTED)
    # It was only slow.
    stream.status(row)
    expect(part(page, row, "hint")).to_be_hidden()


def test_stream_that_died_silently(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    page.add_init_script(
        """
        window.keptAlive = 0;
        const listen = EventSource.prototype.addEventListener;
        EventSource.prototype.addEventListener = function (type, listener) {
          listen.call(this, type, listener);
          if (type === "keep-alive") listen.call(this, type, () => { keptAlive += 1; });
        };
        """
    )
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    for heard in range(4):
        page.clock.run_for(30_000)
        stream.raw("event: keep-alive\ndata:\n\n")
        while page.evaluate("keptAlive") <= heard:
            pass
    assert len(site.streams) == 1
    page.clock.run_for(40_000)
    site.wait_for(lambda: stream.closed, "the dead stream to be given up")
    site.stream(2)


def test_all_tasks_ended_during_an_outage(page: Page, serve: Serve) -> None:
    row = task(progress=0.5)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.6)
    shows(page, row, "Running", "0.6")
    ended = task(pk=row.pk, status="failed", error_type="OSError", public_error="disk full")
    site.rows[str(row.pk)] = ended
    # A server's answer to a client that returns to a finished stream.
    site.answers["stream"] = (204, b"")
    stream.drop()
    shows(page, row, "Failed")
    expect(part(page, row, "error")).to_have_text("disk full")
    expect(part(page, row, "hint")).to_be_hidden()


def test_late_answer_changes_nothing(page: Page, serve: Serve) -> None:
    """The answer was in progress while the stream was restored and went further."""
    row = task(progress=0.5, max_attempts=2)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    early = {"tasks": [row.info().model_dump(mode="json")]}
    part(page, row, "state").evaluate(
        """state => {
          window.said = [];
          new MutationObserver(() => said.push(state.textContent))
            .observe(state, {childList: true, characterData: true, subtree: true});
        }"""
    )

    def late(_request: Request) -> tuple[int, object]:
        site.wait_for(lambda: row.progress == 0.2, "the second attempt")
        return 200, early

    site.answers |= {"stream": (502, {}), "status": late}
    # Listen from here on: Playwright may miss a request that comes just before.
    answered = []
    page.on("response", lambda response: "/status/" in response.url and answered.append(response))
    stream.drop()
    site.wait_for(lambda: site.asked("status"), "a look")
    del site.answers["stream"]
    stream = site.stream(2)
    stream.send("task_started", row, attempt=2, max_attempts=2)
    stream.progress(row, 0.2, "again", attempt=2)
    shows(page, row, "Running, attempt 2 of 2", "0.2", "again")
    with site.changed:
        site.changed.notify_all()
    eventually(lambda: page.evaluate("true") and answered, what="the answer comes")
    stream.progress(row, 0.3, "further", attempt=2)
    shows(page, row, "Running, attempt 2 of 2", "0.3", "further")
    assert page.evaluate("said") == ["Running, attempt 2 of 2"]


@pytest.mark.parametrize("status", [302, 401, 403, 404])
def test_sign_out_during_polling(page: Page, serve: Serve, status: int) -> None:
    row = task()
    site = serve(row)
    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    site.answers |= {"stream": (403, {}), "status": (status, {})}
    stream.drop()
    expect(part(page, row, "hint")).to_have_text(
        "Live updates stopped: you may have been signed out. Reload the page."
    )
    expect(bar(page, row).get_by_role("button")).to_be_hidden()
    asked = len(site.requests)
    page.clock.run_for(60_000)
    assert len(site.requests) == asked


def test_task_that_was_removed(page: Page, serve: Serve) -> None:
    row, other = task(), task()
    site = serve(row, other)
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    stream.progress(row, 0.5)
    shows(page, row, "Running", "0.5")
    del site.rows[str(row.pk)]
    site.answers["stream"] = lambda _request: (404, {})
    stream.drop()
    expect(part(page, row, "hint")).to_have_text(
        "No more updates: the task was deleted, or you were signed out. Reload the page."
    )
    del site.answers["stream"]
    again = site.stream(2)
    assert again.task_ids == [str(other.pk)]
    again.progress(other, 0.5)
    shows(page, other, "Running", "0.5")


def test_online_event_retries_immediately(page: Page, serve: Serve) -> None:
    row = task()
    site = serve(row)
    tries: list[Request] = []

    def refuse(request: Request) -> tuple[int, object]:
        tries.append(request)
        return 502, {}

    page.clock.install()
    page.goto(f"{site.url}/page/")
    stream = site.stream()
    site.answers["stream"] = refuse
    stream.drop()
    pass_time(page, site, lambda: len(tries) >= 5)
    expect(part(page, row, "hint")).to_have_text(INTERRUPTED)
    # The clock stands still, so only this event can cause a retry.
    page.clock.pause_at(page.evaluate("Date.now() / 1000 + 5"))
    del site.answers["stream"]
    while len(site.streams) < 2:
        page.evaluate("dispatchEvent(new Event('online'))")
    expect(part(page, row, "hint")).to_be_hidden()
