"""A storage class for django-eventstream. It reads the facts that `lifecycle` wrote."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from django.db.models import Max, QuerySet
from django_eventstream.event import Event
from django_eventstream.storage import StorageBase

from tasks_app.live.channels import ALL_TASKS, OWNER_PREFIX, task_of
from tasks_app.models import TaskEvent


def facts_of(channel: str) -> QuerySet[TaskEvent]:
    """Return the facts that a channel carries."""
    facts = TaskEvent.primary.all()
    if channel == ALL_TASKS:
        return facts
    if task_id := task_of(channel):
        return facts.filter(task_id=task_id)
    if channel.startswith(OWNER_PREFIX):
        return facts.filter(task__owner__pk=channel.removeprefix(OWNER_PREFIX))
    return facts.none()


class TaskEventStorage(StorageBase):
    """Reads the past events of a channel from TaskEvent, which has each fact once."""

    def append_event(self, channel: str, event_type: str, data: Any) -> NoReturn:
        raise TypeError(
            f"Cannot append {event_type} to {channel}: only the lifecycle of tasks writes task "
            f"events, in the transaction that makes them true. Send to another channel, for which "
            f"is_channel_reliable() of your channel manager returns False."
        )

    def get_events(self, channel: str, last_id: int, limit: int = 100) -> list[Event]:
        facts = facts_of(channel).filter(id__gt=last_id).order_by("id")[:limit]
        return [
            # django-eventstream writes `data` unchanged, although it is annotated otherwise.
            Event(channel, row.event_type, cast(Any, row.message().model_dump_json()), id=row.pk)
            for row in facts
        ]

    def get_current_id(self, channel: str) -> int:
        newest: int | None = facts_of(channel).aggregate(newest=Max("id"))["newest"]
        return newest or 0
