"""Tasks, the events of their history, and the workers that run them."""

from tasks_app.models.event import TaskEvent
from tasks_app.models.task import DEFAULT_QUEUE, WAITS, Task, aware
from tasks_app.models.worker import Worker

__all__ = ["DEFAULT_QUEUE", "WAITS", "Task", "TaskEvent", "Worker", "aware"]
