"""The files in deploy/ name commands that exist, and graces that are long enough."""

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
from tasks_app.worker.shutdown import RELEASE_SECONDS, STOP_SECONDS
from tests.docs.pages import ROOT

pytestmark = pytest.mark.once

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
#: What a worker takes to end, at most.
LONGEST = TaskSettings().shutdown_grace_seconds + STOP_SECONDS + RELEASE_SECONDS + 1


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(path)
    return parser


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def parse(arguments: list[str]) -> None:
    """Have the command's own parser read what follows manage.py, if anything does."""
    if "manage.py" in arguments:
        name, *options = arguments[arguments.index("manage.py") + 1 :]
        command = Migrate() if name == "migrate" else load_command_class("tasks_app", name)
        command.create_parser("manage.py", name).parse_args(options)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_call_commands_that_exist(path: Path) -> None:
    parse(shlex.split(unit(path)["Service"]["ExecStart"]))


def test_services_call_commands_that_exist() -> None:
    for service in COMPOSE["services"].values():
        command = service.get("command", [])
        parse(shlex.split(command[-1].rstrip("; done")) if command[:1] == ["sh"] else command)
        test = service.get("healthcheck", {}).get("test", [])
        parse(test)


def test_a_worker_has_the_time_to_end_in_good_order() -> None:
    worker = unit(DEPLOY / "systemd" / "tasks-worker.service")["Service"]
    assert float(worker["TimeoutStopSec"]) > LONGEST
    assert worker["Restart"] == "always"
    # And so do the programs that its tasks have started.
    assert worker["KillMode"] == "mixed"
    assert seconds(COMPOSE["services"]["worker"]["stop_grace_period"]) > LONGEST
    told = (ROOT / "docs" / "operations.md").read_text()
    [grace] = re.findall(r"terminationGracePeriodSeconds: (\d+)", told)
    assert float(grace) > LONGEST


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_do_not_start_without_their_secrets(path: Path) -> None:
    service = unit(path)["Service"]
    # With a hyphen before it, a missing file would be ignored.
    assert service["EnvironmentFile"] == "/etc/site.env"
    assert service["UMask"] == "0077"


def test_the_processes_that_tasks_leave_behind_are_collected() -> None:
    """By the first process of a container, which a worker must not be."""
    assert COMPOSE["services"]["worker"]["init"] is True
    told = (ROOT / "docs" / "operations.md").read_text()
    pod = yaml.safe_load(told.partition("### Kubernetes")[2].split("```")[1].removeprefix("yaml"))
    assert pod["shareProcessNamespace"] is True


def test_the_application_exists() -> None:
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
