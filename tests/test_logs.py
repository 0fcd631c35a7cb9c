from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tasks_app.logs import SafeLogger

pytestmark = pytest.mark.once


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("nobody takes records")


@pytest.fixture
def broken() -> Iterator[None]:
    handler = Broken()
    logging.getLogger("tests.logs").addHandler(handler)
    yield
    logging.getLogger("tests.logs").removeHandler(handler)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("reported", [True, False])
def test_error_of_a_handler_is_not_raised(
    reported: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", reported)
    SafeLogger("tests.logs").error("a %s", "record")
    assert ("nobody takes records" in capsys.readouterr().err) is reported


def test_records_have_the_name_of_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    logger = SafeLogger("tests.logs")
    logger.info("too early")
    assert not logger.isEnabledFor(logging.INFO)
    with caplog.at_level(logging.INFO, "tests.logs"):
        logger.info("a %s", "record", extra={"task_id": "1"})
    [record] = caplog.records
    assert (record.name, record.message, record.filename) == (
        "tests.logs",
        "a record",
        "test_logs.py",
    )
    assert vars(record)["task_id"] == "1"
