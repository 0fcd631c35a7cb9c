"""The events of a task in words."""

from typing import Any

from tasks_app import EventType
from tasks_app.models import TaskEvent


def describe(event: TaskEvent) -> str:
    data = event.message().data
    match event.event_type:
        case EventType.QUEUED:
            return f"Queued again: {data['reason']}" if data.get("reason") else "Queued"
        case EventType.STARTED:
            attempt = f", attempt {data.get('attempt')} of {data.get('max_attempts')}"
            where = f", by worker {data['worker']}" if data.get("worker") else ""
            return "Started" + (attempt if data.get("max_attempts", 1) > 1 else "") + where
        case EventType.LOG:
            return str(data.get("message", ""))
        case EventType.RETRY_SCHEDULED:
            return f"Attempt {data.get('attempt')} failed: {_error(data)}. Another attempt follows"
        case EventType.FAILED:
            return f"Failed: {_error(data)}"
        case EventType.CANCEL_REQUESTED | EventType.CANCELLED if data.get("by"):
            return f"{EventType(event.event_type).label} by {data['by']}"
        case _:
            return str(EventType(event.event_type).label)


def _error(data: dict[str, Any]) -> str:
    """Return the error in words for the task's owner."""
    return str(data["error"]["message"]).rstrip(".")
