"""Background tasks for Django with live progress: the public names.

Import them from here. They are loaded at their first use, because models need ready apps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks_app.exceptions import DuplicateTask as DuplicateTask
    from tasks_app.exceptions import InvalidParams as InvalidParams
    from tasks_app.exceptions import Retry as Retry
    from tasks_app.exceptions import TaskCancelled as TaskCancelled
    from tasks_app.exceptions import TaskError as TaskError
    from tasks_app.live.asgi import with_task_streams as with_task_streams
    from tasks_app.schemas import TaskInfo as TaskInfo
    from tasks_app.schemas import TaskProgressUpdate as TaskProgressUpdate
    from tasks_app.schemas import TaskStartResponse as TaskStartResponse
    from tasks_app.service import TaskService as TaskService
    from tasks_app.service import task_service as task_service
    from tasks_app.states import EventType as EventType
    from tasks_app.states import Status as Status
    from tasks_app.tasks.base import BaseTask as BaseTask
    from tasks_app.tasks.forms import TaskForm as TaskForm
    from tasks_app.tasks.forms import form_for as form_for
    from tasks_app.tasks.progress import ProgressHandle as ProgressHandle
    from tasks_app.web.background import BackgroundFormMixin as BackgroundFormMixin
    from tasks_app.web.background import background_action as background_action
    from tasks_app.web.views import TaskPage as TaskPage

#: The module of each public name.
_HOMES = {
    "BackgroundFormMixin": "tasks_app.web.background",
    "BaseTask": "tasks_app.tasks.base",
    "DuplicateTask": "tasks_app.exceptions",
    "EventType": "tasks_app.states",
    "InvalidParams": "tasks_app.exceptions",
    "ProgressHandle": "tasks_app.tasks.progress",
    "Retry": "tasks_app.exceptions",
    "Status": "tasks_app.states",
    "TaskCancelled": "tasks_app.exceptions",
    "TaskError": "tasks_app.exceptions",
    "TaskForm": "tasks_app.tasks.forms",
    "TaskInfo": "tasks_app.schemas",
    "TaskPage": "tasks_app.web.views",
    "TaskProgressUpdate": "tasks_app.schemas",
    "TaskService": "tasks_app.service",
    "TaskStartResponse": "tasks_app.schemas",
    "background_action": "tasks_app.web.background",
    "form_for": "tasks_app.tasks.forms",
    "task_service": "tasks_app.service",
    "with_task_streams": "tasks_app.live.asgi",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
