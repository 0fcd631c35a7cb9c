"""The names that application code imports from `tasks_app`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import tasks_app
from tasks_app import task_service
from tasks_app.service import task_service as home

pytestmark = pytest.mark.once


def test_type_checkers_see_the_same_names() -> None:
    """Each is there twice: imported for type checkers, and listed for its first use."""
    tree = ast.parse(Path(tasks_app.__file__).read_text())
    [for_types] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == tasks_app._HOMES
    assert sorted(seen) == tasks_app.__all__


@pytest.mark.parametrize("name", tasks_app.__all__)
def test_each_name_is_found(name: str) -> None:
    assert getattr(tasks_app, name) is not None
    assert name in dir(tasks_app)


def test_name_can_be_patched_and_is_restored() -> None:
    with mock.patch("tasks_app.task_service") as patched:
        assert tasks_app.task_service is patched
    assert tasks_app.task_service is task_service is home


def test_unknown_name_is_an_import_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tasks_app.nothing


@pytest.mark.slow
def test_package_is_imported_without_settings_and_apps() -> None:
    """Names that need no models can be used then, too. The others work once the apps are ready."""
    code = (
        "import tasks_app\n"
        "from tasks_app import Status, TaskError, __all__\n"
        "try:\n"
        "    tasks_app.task_service\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django.contrib.auth', 'django.contrib.contenttypes',"
        " 'tasks_app'])\n"
        "django.setup()\n"
        "from tasks_app import *\n"
        "print(task_service.__class__.__name__)\n"
    )
    environment = {name: value for name, value in os.environ.items() if "SETTINGS" not in name}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert found.stdout.split() == ["ImproperlyConfigured", "TaskService"], found.stderr
