"""The files in deploy/ use existing commands, and their grace periods are long enough."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import load_command_class
from django.core.management.commands.migrate import Command as Migrate

from tasks_app.conf import TaskSettings
from tasks_app.worker.stopping import RELEASE_SECONDS, STOP_SECONDS
from tests.docs.pages import ROOT

pytestmark = pytest.mark.once

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
#: The longest time that a worker takes to stop.
LONGEST = TaskSettings().shutdown_grace_seconds + STOP_SECONDS + RELEASE_SECONDS + 1


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(path)
    return parser


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def parse(arguments: list[str]) -> None:
    """Parse the arguments after manage.py, if any, with the command's own parser."""
    if "manage.py" in arguments:
        name, *options = arguments[arguments.index("manage.py") + 1 :]
        command = Migrate() if name == "migrate" else load_command_class("tasks_app", name)
        command.create_parser("manage.py", name).parse_args(options)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_call_existing_commands(path: Path) -> None:
    parse(shlex.split(unit(path)["Service"]["ExecStart"]))


def test_services_call_existing_commands() -> None:
    for service in COMPOSE["services"].values():
        command = service.get("command", [])
        parse(shlex.split(command[-1].rstrip("; done")) if command[:1] == ["sh"] else command)
        test = service.get("healthcheck", {}).get("test", [])
        parse(test)


def test_worker_has_enough_time_to_stop() -> None:
    worker = unit(DEPLOY / "systemd" / "tasks-worker.service")["Service"]
    assert float(worker["TimeoutStopSec"]) > LONGEST
    assert worker["Restart"] == "always"
    # The programs that its tasks have started get the same time.
    assert worker["KillMode"] == "mixed"
    assert seconds(COMPOSE["services"]["worker"]["stop_grace_period"]) > LONGEST
    page = (ROOT / "docs" / "operations.md").read_text()
    [grace] = re.findall(r"terminationGracePeriodSeconds: (\d+)", page)
    assert float(grace) > LONGEST


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_do_not_start_without_their_secrets(path: Path) -> None:
    service = unit(path)["Service"]
    # A leading hyphen would ignore a missing file.
    assert service["EnvironmentFile"] == "/etc/site.env"
    assert service["UMask"] == "0077"


def test_orphaned_processes_are_reaped() -> None:
    """The first process of a container must do that, so it must not be the worker."""
    assert COMPOSE["services"]["worker"]["init"] is True
    page = (ROOT / "docs" / "operations.md").read_text()
    pod = yaml.safe_load(page.partition("### Kubernetes")[2].split("```")[1].removeprefix("yaml"))
    assert pod["shareProcessNamespace"] is True


def test_application_exists() -> None:
    for text in (
        unit(DEPLOY / "systemd" / "tasks-web.service")["Service"]["ExecStart"],
        " ".join(COMPOSE["services"]["web"]["command"]),
    ):
        [name] = re.findall(r"([\w.]+):application", text)
        assert (ROOT / Path(*name.split("."))).with_suffix(".py").exists()


def test_every_variable_is_read_by_the_settings() -> None:
    settings = (ROOT / "project" / "settings.py").read_text()
    for name in COMPOSE["x-site"]["environment"]:
        assert f'"{name}"' in settings, name
