"""The look of a bar. The server and the script show the same."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tasks_app.models import Task
from tasks_app.web.display import duration
from tasks_app.web.words import WORDS

from .pages import bar, part, shows
from .scripted import Serve, task

pytestmark = pytest.mark.browser


def every_state() -> list[Task]:
    # Half a minute away from the next change of any shown time.
    now = datetime.now(UTC) - timedelta(seconds=30)
    name = "shop.tasks.AnImportWithAVeryLongNameThatHasNoPlaceToBreakAnywhere"
    return [
        task(status="pending", name=name),
        task(status="pending", attempt=1, max_attempts=2, progress_text="of the last attempt"),
        task(started_at=now - timedelta(hours=30), progress_text="reading " + "x" * 80),
        task(started_at=now - timedelta(days=3), progress=0.0, attempt=2, max_attempts=3),
        task(started_at=now - timedelta(hours=5), progress=0.29, progress_text="  ö\n<b>\t&amp;"),
        task(started_at=now - timedelta(hours=5), progress=0.9999),
        task(started_at=now - timedelta(hours=5), progress=1 / 3, cancel_requested_at=now),
        task(status="completed", progress=1.0),
        task(status="failed", progress=0.4, error_type="E", error_message="m " * 90),
        task(status="cancelled"),
    ]


def test_server_and_script_show_the_same(page: Page, serve: Serve) -> None:
    rows = every_state()
    site = serve(*rows)
    page.goto(f"{site.url}/page/")
    site.stream()
    # In English. For each part: its text, and whether it is hidden.
    shown = """root => [...root.querySelectorAll("task-progress")].map((bar) => [
        bar.getAttribute("status"),
        bar.querySelector("progress").getAttribute("value") === null,
        bar.querySelector("progress").value,
        bar.querySelector("form")?.hidden ?? true,
        ...["state", "percent", "text", "time", "error", "hint", "notice"].flatMap((name) => {
          const part = bar.querySelector(`[data-part=${name}]`);
          return [part.textContent, part.hidden];
        }),
    ])"""
    rendered = page.evaluate(
        f"""async () => {{
          const html = await (await fetch("/page/")).text();
          return ({shown})(new DOMParser().parseFromString(html, "text/html"));
        }}"""
    )
    assert len(rendered) == len(rows)
    assert page.evaluate(f"({shown})(document)") == rendered
    # The same after the script got it from the stream, not from the page.
    for row in rows:
        site.streams[0].status(row)
    site.streams[0].progress(rows[3], 0.0, "all of it", attempt=2)
    shows(page, rows[3], "Running, attempt 2 of 3", text="all of it")
    rendered[3][8] = "all of it"
    assert page.evaluate(f"({shown})(document)") == rendered


def test_durations_are_formatted_alike(page: Page, serve: Serve) -> None:
    site = serve(task())
    page.goto(f"{site.url}/page/")
    seconds = [0, 0.9, 59.9, 60, 3599.5, 3600, 86_399, 86_400, 3 * 86_400 + 4 * 3600 + 59]
    words = {key: str(word) for key, word in WORDS.items()}
    said = page.evaluate(
        """async ([seconds, words]) => {
          const { duration } = await import("/static/tasks_app/task-state.js");
          return seconds.map((each) => duration(1000 * each, words));
        }""",
        [seconds, words],
    )
    assert said == [duration(each, words) for each in seconds]


@pytest.mark.parametrize("language", ["de", "en_GB", "", "xx-nonsense-1"])
def test_page_may_have_any_language(page: Page, serve: Serve, language: str) -> None:
    row = task(status="pending", run_after=datetime.now(UTC) + timedelta(days=2))
    site = serve(row)
    site.language = language
    page.goto(f"{site.url}/page/")
    # The server's text names its zone. The script's is in the viewer's own.
    expect(part(page, row, "state")).not_to_contain_text("UTC")
    expect(part(page, row, "state")).to_contain_text("Waiting until")


def test_right_to_left(browser: Browser, serve: Serve) -> None:
    """Numbers come before their units, and a task's text has its own direction."""
    row = task(progress=0.5, progress_text="3 rows, done.")
    site = serve(row)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        page.evaluate("document.documentElement.dir = 'rtl'")
        site.stream().send("task_log", row, level="info", message="a line.")
        for name in ("time", "text"):
            # The positions of the first and the last character, from left to right.
            ends = part(page, row, name).evaluate(
                """part => {
                  const at = (index) => {
                    const range = document.createRange();
                    range.setStart(part.firstChild, index);
                    range.setEnd(part.firstChild, index + 1);
                    return range.getBoundingClientRect().left;
                  };
                  return [at(0), at(part.textContent.length - 1)];
                }"""
            )
            assert ends[0] < ends[1], name


def test_compact_bar_wraps_on_a_narrow_screen(browser: Browser, serve: Serve) -> None:
    row = task(name="A task whose name is far too long for one line of a phone", progress=0.5)
    site = serve(row)
    site.template = "{% task_progress tasks.0 form='compact' url='/elsewhere/' cancel=True %}"
    with browser.new_context(viewport={"width": 320, "height": 600}) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        cut = part(page, row, "label").evaluate(
            "part => part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight"
        )
        assert not cut
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        page.emulate_media(media="print")
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_bar_fits_on_a_narrow_screen(browser: Browser, serve: Serve) -> None:
    site = serve(*every_state())
    with browser.new_context(viewport={"width": 320, "height": 600}) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        site.stream()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == 320


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_reduced_motion_is_respected(browser: Browser, serve: Serve, motion: Any) -> None:
    row = task()
    site = serve(row)
    with browser.new_context(reduced_motion=motion) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        site.stream()
        animation = part(page, row, "bar").evaluate("bar => getComputedStyle(bar).animationName")
    assert animation == ("none" if motion == "reduce" else "task-progress-sweep")


@pytest.mark.parametrize("scheme", ["light", "dark", "dark by theme", "light by theme"])
def test_contrast(browser: Browser, serve: Serve, scheme: Any) -> None:
    """WCAG 2 AA: 4.5 to 1 for text, 3 to 1 for shapes, with the page's colours or the admin's."""
    rows = every_state()
    site = serve(*rows)
    dark, by_theme = scheme.startswith("dark"), scheme.endswith("theme")
    preferred = ("light" if dark else "dark") if by_theme else scheme
    with browser.new_context(color_scheme=preferred) as context:
        page = context.new_page()
        page.goto(f"{site.url}/page/")
        site.stream()
        if by_theme:
            theme = "dark" if dark else "light"
            page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            # The admin's own styles do this for the theme.
            page.evaluate("theme => { document.documentElement.style.colorScheme = theme }", theme)
        colours = page.evaluate(
            """() => {
              const canvas = document.createElement("canvas").getContext("2d");
              const rgb = (colour, ground) => {
                for (const fill of [ground, colour]) {
                  canvas.fillStyle = fill;
                  canvas.fillRect(0, 0, 1, 1);
                }
                return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
              };
              const probe = document.body.appendChild(document.createElement("i"));
              probe.style.color = "Canvas";
              const ground = getComputedStyle(probe).color;
              const found = [];
              for (const bar of document.querySelectorAll("task-progress")) {
                for (const name of ["label", "state", "text", "time", "error"])
                  found.push([name, 4.5, getComputedStyle(
                    bar.querySelector(`[data-part=${name}]`)).color]);
                const icon = getComputedStyle(bar.querySelector("[data-part=icon]"));
                found.push([`icon ${bar.getAttribute("status")}`, 3,
                  icon.borderTopWidth === "0px" ? icon.backgroundColor : icon.borderTopColor]);
                found.push(["edge", 3, getComputedStyle(
                  bar.querySelector("[data-part=hint]")).borderInlineStartColor]);
                found.push(["edge of the bar", 3, getComputedStyle(
                  bar.querySelector("[data-part=bar]")).borderTopColor]);
              }
              return found.map(([name, least, colour]) =>
                [name, least, rgb(colour, ground), rgb(ground, ground)]);
            }"""
        )
    grounds = {tuple(ground) for _, _, _, ground in colours}
    assert len(grounds) == 1
    assert (luminance(grounds.pop()) < 0.5) is dark
    for name, least, colour, ground in colours:
        lighter, darker = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= least, (name, colour, ground)


def luminance(colour: Any) -> float:
    red, green, blue = (
        part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in colour
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_page_sets_the_colours(page: Page, serve: Serve) -> None:
    row = task(progress=0.5)
    site = serve(row)
    page.goto(f"{site.url}/page/")
    page.evaluate("document.documentElement.style.setProperty('--task-accent', 'rgb(1, 2, 3)')")
    icon = bar(page, row).locator('[data-part="icon"]')
    assert icon.evaluate("icon => getComputedStyle(icon).backgroundColor") == "rgb(1, 2, 3)"
