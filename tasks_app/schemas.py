"""The data that the app gives to callers, browsers and programs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.utils.translation import gettext_lazy
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tasks_app.states import EventType, Status


def printable(text: str) -> str:
    """Replace characters that a database or a socket refuses: NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def ascii_only(text: str) -> str:
    """Return the text in ASCII, which every encoding has. Other characters are escaped."""
    return text.encode("ascii", "backslashreplace").decode()


def escaped(text: str, keep: str = "") -> str:
    """Escape control characters of a text, such as \\n and \\x1b, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text
    )


def clipped(text: str, most: int) -> str:
    """Return the text, cut to `most` characters. The last one is then an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


# The most characters kept of texts that tasks and their errors supply. The rest is cut off.
PROGRESS_MAX = 1_000
LOG_LINE_MAX = 10_000
TYPE_MAX = 200
MESSAGE_MAX = 10_000
TRACEBACK_MAX = 100_000
#: The most bytes of parameters, and of a result, as JSON. Larger values are refused.
JSON_MAX = 1_048_576
#: The deepest nesting of lists and objects in them. Pydantic reads 200 levels at most.
DEPTH_MAX = 100
# The most characters of the names of a task and its queue, and of its keys. Longer ones are
# refused.
NAME_MAX = 200
QUEUE_MAX = 100
KEY_MAX = 200
#: The highest number of attempts that a task may be allowed.
ATTEMPTS_MAX = 1_000_000

#: The message for the owner of a failed task if neither the error nor the class has one.
NO_WORDS = gettext_lazy("The task failed.")

Text = Annotated[str, AfterValidator(printable)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskProgressUpdate(Schema):
    """The newest progress: a text, and the fraction that is done."""

    text: Text = ""
    #: None if the task has not reported it or cannot know it.
    value: Fraction | None = None


class TaskStartResponse(Schema):
    task_id: UUID
    #: None if the site does not include `tasks_app.urls`.
    stream_url: str | None
    status: Status
    #: True if an earlier start with the same idempotency key made the task. Not in the JSON.
    replayed: bool = Field(False, exclude=True)


class TaskError(Schema):
    """The reason why a task failed.

    The owner gets the message that the task has for them. The exception's type and message are for
    users who may see all tasks; its traceback is for the admin and commands.
    """

    #: None if the message is the one for the owner.
    type: str | None = None
    message: str

    @classmethod
    def public(cls, text: str | None) -> TaskError:
        return cls(message=text or str(NO_WORDS))


class TaskInfo(Schema):
    """The current state of a task."""

    task_id: UUID
    name: str
    status: Status
    progress: TaskProgressUpdate
    attempt: int
    max_attempts: int
    cancel_requested: bool
    created_time: datetime
    #: The earliest start; None unless it is pending.
    run_after: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    result: Any = None
    error: TaskError | None = None
    #: The finished task that this one retries.
    retried_from: UUID | None = None


class TaskEvent(Schema):
    """One message of a stream. `data` depends on the type; see docs/task_system_usage.md."""

    event_type: EventType
    task_id: UUID
    timestamp: datetime
    data: dict[str, Any]
