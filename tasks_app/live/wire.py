"""The messages of a stream, encoded as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.utils import timezone
from django_eventstream.utils import sse_encode_event

from tasks_app import schemas
from tasks_app.live.cursor import Cursor
from tasks_app.logs import SafeLogger
from tasks_app.models import Task, TaskEvent, aware
from tasks_app.states import EventType

logger = SafeLogger("tasks_app.relay")

KEEP_ALIVE = b"event: keep-alive\ndata:\n\n"
#: The last message of a stream that ends by itself, however its tasks ended. Some clients, such as
#: htmx's, reopen a closed stream unless an event with one certain name stops them.
STREAM_END = b"event: stream-end\ndata:\n\n"
#: The first bytes of a stream. They make the server send the headers even before the first event,
#: and give the milliseconds after which a browser reconnects. `retry` is a field of the first
#: event, because some clients would take a blank line after it for another event.
BEGINNING = b": events of tasks\nretry: 2000\n"


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest progress of a running task, as stored in its row."""

    task_id: UUID
    attempt: int
    value: float | None
    text: str

    def follows(self, other: Progress) -> bool:
        """Return whether this is newer than other progress of the same task."""
        if self.attempt != other.attempt:
            return self.attempt > other.attempt
        return self != other and (other.value is None or (self.value or 0.0) >= other.value)


@dataclass(kw_only=True)
class Fact:
    """A fact for listeners, encoded once for all of them.

    It has the attributes that django-eventstream needs of an event, and those that streams need.
    """

    type: str
    data: str
    id: int
    wire: bytes
    #: The same bytes without the task's result.
    brief: bytes
    task_id: UUID
    transaction: int | None
    #: The cursor of a viewer who has received this.
    cursor: Cursor
    #: A number that the relay counts up. A stream uses it to merge its channels in order.
    order: int = 0


@dataclass(kw_only=True)
class Report:
    """Progress for listeners. It has no id, because a stream cannot resume from it."""

    type: str
    data: str
    id: None = None
    wire: bytes
    progress: Progress
    order: int = 0


def fact(row: TaskEvent, cursor: Cursor) -> Fact:
    """Encode a stored fact. A viewer who receives it has received what the cursor covers."""
    kind, message = row.event_type, row.message()
    data = message.model_dump_json()
    whole = _encode(kind, data, cursor)
    brief = whole
    if message.data.get("result") is not None:
        rest = message.model_dump_json(exclude={"data": {"result"}})
        brief = _encode(kind, rest, cursor)
    return Fact(
        type=kind,
        data=data,
        id=row.pk,
        wire=whole,
        brief=brief,
        task_id=row.task_id,
        transaction=row.transaction,
        cursor=cursor,
    )


def fact_if_known(row: TaskEvent, cursor: Cursor) -> Fact | None:
    """Encode a stored fact. Return None and log an error if it cannot be sent.

    A newer worker may write an event type that this process does not know.
    """
    try:
        return fact(row, cursor)
    except ValueError:
        logger.exception("Event %s cannot be sent and was skipped", row.pk)
        return None


def report(progress: Progress) -> Report:
    update = schemas.TaskProgressUpdate(text=progress.text, value=progress.value)
    data = _message(
        EventType.PROGRESS, progress.task_id, update.model_dump() | {"attempt": progress.attempt}
    )
    kind = EventType.PROGRESS.value
    return Report(type=kind, data=data, wire=_encode(kind, data), progress=progress)


def status(task: Task, cursor: Cursor | None, *, results: bool = True) -> bytes:
    left_out = None if results else {"result"}
    info = task.info().model_dump(mode="json", exclude=left_out)
    data = _message(EventType.STATUS, task.pk, info)
    return _encode(EventType.STATUS.value, data, cursor)


def _message(kind: EventType, task_id: UUID, data: dict[str, object]) -> str:
    event = schemas.TaskEvent(
        event_type=kind, task_id=task_id, timestamp=aware(timezone.now()), data=data
    )
    return event.model_dump_json()


def _encode(kind: str, data: str, cursor: Cursor | None = None) -> bytes:
    event_id = None if cursor is None else str(cursor)
    return str(sse_encode_event(kind, data, event_id=event_id)).encode()
