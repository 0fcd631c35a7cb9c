"""A pytest plugin that finds Chromium for the tests marked `browser`, or says how to install it.

If chromium-headless-shell is installed too, most tests use it. It behaves the same, but draws no
windows, and those take more processor time than the pages.
"""

import os
import shutil

import pytest

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
SHELL = None if "CHROMIUM" in os.environ else shutil.which("chromium-headless-shell")
NONE = "no Chromium"
HOW_TO_GET_ONE = (
    "The browser tests were skipped, for there is no Chromium here. To run them as well: "
    "`apt-get install chromium`, or set CHROMIUM to the path of one."
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("browser")]
    if CHROMIUM or not wanted:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError(
            "There is no Chromium, and CI skips nothing. Install Debian's: apt-get install chromium"
        )
    for item in wanted:
        item.add_marker(pytest.mark.skip(reason=NONE))


def pytest_unconfigure(config: pytest.Config) -> None:
    # Not in the terminal summary, so that these are the last lines of the run.
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if any(NONE in str(report.longrepr) for report in skipped):
        reporter.write_line(HOW_TO_GET_ONE, yellow=True)
