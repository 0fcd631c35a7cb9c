"""Settings: types, defaults, and refused values."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from tasks_app.conf import PREFIX, TaskSettings, declared, task_settings

#: As documented. The settings of this project override some of them.
DEFAULTS = {
    "max_workers": 4,
    "timeout_seconds": 300.0,
    "lease_seconds": 30.0,
    "heartbeat_seconds": 10.0,
    "shutdown_grace_seconds": 25.0,
    "interrupt_grace_seconds": 5.0,
    "interrupt": True,
    "max_stuck": 4,
    "progress_interval_seconds": 0.1,
    "poll_interval_seconds": 0.1,
    "listen": True,
    "max_log_lines": 1000,
    "retry_backoff_seconds": 5.0,
    "retry_backoff_max_seconds": 3600.0,
    "cleanup_interval_seconds": 600.0,
    "retention_seconds": 604800.0,
    "failed_retention_seconds": 2592000.0,
    "service": "tasks_app.service.TaskService",
    "stream_keepalive_seconds": 4.0,
    "stream_max_tasks": 100,
    "stream_max_per_user": 100,
    "api_auth": ["tasks_app.api.SessionAuth"],
    "api_max_body_bytes": 2097152,
    "api_max_unfinished": 1000,
}


def test_defaults() -> None:
    assert TaskSettings().model_dump() == DEFAULTS


def test_defaults_are_consistent() -> None:
    conf = TaskSettings()
    assert conf.lease_seconds >= 2 * conf.heartbeat_seconds


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("MAX_WORKERS", 1, 1),
        ("MAX_WORKERS", "8", 8),
        ("TIMEOUT_SECONDS", None, None),
        ("TIMEOUT_SECONDS", 0.5, 0.5),
        ("SHUTDOWN_GRACE_SECONDS", 0, 0.0),
        ("PROGRESS_INTERVAL_SECONDS", 0, 0.0),
        ("RETENTION_SECONDS", None, None),
        ("FAILED_RETENTION_SECONDS", None, None),
        ("API_MAX_UNFINISHED", None, None),
        ("STREAM_MAX_PER_USER", None, None),
    ],
)
def test_site_overrides_settings(name: str, value: Any, stored: Any) -> None:
    with override_settings(**{PREFIX + name: value}):
        assert getattr(task_settings(), name.lower()) == stored


def test_changed_settings_are_read_again() -> None:
    with override_settings(TASK_MAX_WORKERS=7):
        assert task_settings().max_workers == 7
        assert task_settings() is task_settings()
        with override_settings(TASK_MAX_WORKERS=9):
            assert task_settings().max_workers == 9
        assert task_settings().max_workers == 7
    assert task_settings().max_workers == 4


#: An invalid value for every setting, and the rule it breaks.
INVALID: list[tuple[str, Any, str]] = [
    ("MAX_WORKERS", 0, "Input should be greater than 0"),
    ("MAX_WORKERS", 1.5, "Input should be a valid integer, got a number with a fractional part"),
    ("MAX_WORKERS", None, "Input should be a valid integer"),
    ("TIMEOUT_SECONDS", 0, "Input should be greater than 0"),
    ("TIMEOUT_SECONDS", float("nan"), "Input should be a finite number"),
    ("LEASE_SECONDS", 0, "Input should be greater than 0"),
    ("HEARTBEAT_SECONDS", -1, "Input should be greater than 0"),
    ("SHUTDOWN_GRACE_SECONDS", -1, "Input should be greater than or equal to 0"),
    ("INTERRUPT_GRACE_SECONDS", 0, "Input should be greater than 0"),
    ("INTERRUPT", "perhaps", "Input should be a valid boolean, unable to interpret input"),
    ("MAX_STUCK", 0, "Input should be greater than 0"),
    ("LISTEN", None, "Input should be a valid boolean"),
    ("PROGRESS_INTERVAL_SECONDS", -0.1, "Input should be greater than or equal to 0"),
    ("POLL_INTERVAL_SECONDS", 0, "Input should be greater than 0"),
    ("MAX_LOG_LINES", 0, "Input should be greater than 0"),
    ("RETRY_BACKOFF_SECONDS", 0, "Input should be greater than 0"),
    ("RETRY_BACKOFF_MAX_SECONDS", 0, "Input should be greater than 0"),
    ("CLEANUP_INTERVAL_SECONDS", 0, "Input should be greater than 0"),
    ("RETENTION_SECONDS", 0, "Input should be greater than 0"),
    (
        "FAILED_RETENTION_SECONDS",
        "soon",
        "Input should be a valid number, unable to parse string as a number",
    ),
    ("RETENTION_SECONDS", float("inf"), "Input should be a finite number"),
    ("LEASE_SECONDS", 1e12, "Input should be less than or equal to 3153600000"),
    ("SERVICE", 5, "Input should be a valid string"),
    ("STREAM_KEEPALIVE_SECONDS", 0, "Input should be greater than 0"),
    ("STREAM_MAX_TASKS", 0, "Input should be greater than 0"),
    ("STREAM_MAX_PER_USER", 0, "Input should be greater than 0"),
    ("API_AUTH", [], "List should have at least 1 item after validation, not 0"),
    ("API_AUTH", "shop.auth.Token", "Input should be a valid list"),
    ("API_MAX_BODY_BYTES", 0, "Input should be greater than 0"),
    ("API_MAX_UNFINISHED", 0, "Input should be greater than 0"),
]


@pytest.mark.parametrize(("name", "value", "rule"), INVALID)
def test_error_names_setting_value_and_rule(name: str, value: Any, rule: str) -> None:
    with (
        override_settings(**{PREFIX + name: value}),
        pytest.raises(ImproperlyConfigured) as caught,
    ):
        task_settings()
    assert str(caught.value) == f"{PREFIX}{name} = {value!r}: {rule}"


def test_every_setting_has_an_invalid_value() -> None:
    assert {name.lower() for name, _, _ in INVALID} == set(TaskSettings.model_fields)


def test_all_errors_are_reported_together() -> None:
    with (
        override_settings(TASK_MAX_WORKERS=0, TASK_LEASE_SECONDS="x"),
        pytest.raises(ImproperlyConfigured) as caught,
    ):
        task_settings()
    assert str(caught.value) == (
        "TASK_MAX_WORKERS = 0: Input should be greater than 0; "
        "TASK_LEASE_SECONDS = 'x': Input should be a valid number, "
        "unable to parse string as a number"
    )


def test_settings_of_other_apps_are_ignored() -> None:
    with override_settings(TASK_OF_ANOTHER_APP="x", MAX_WORKERS=3):
        assert "of_another_app" not in declared()
        assert task_settings().max_workers == 4


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="Instance is frozen"):
        task_settings().max_workers = 9  # type: ignore[misc]
