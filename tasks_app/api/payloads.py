"""The parameters of the API's requests and the bodies of its answers, as Pydantic models.

The data that other parts of the app also use is in `tasks_app.schemas`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from tasks_app import schemas
from tasks_app.schemas import Schema, TaskInfo
from tasks_app.states import Status
from tasks_app.store.clock import within_the_calendar

#: The most items of a page, and the default.
PAGE_MAX = 100
PAGE = 50


def _iso(value: Any) -> Any:
    # Pydantic also accepts numbers, as seconds since 1970.
    if not (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[Tt ]", value)):
        raise ValueError("must be a time such as 2026-11-24T13:00:00Z")
    return value


def _utc(time: datetime) -> datetime:
    return within_the_calendar(time).astimezone(UTC)


Time = Annotated[AwareDatetime, BeforeValidator(_iso), AfterValidator(_utc)]
#: A short text without NUL, which databases refuse.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^\\u0000]*$")]
Limit = Annotated[int, Field(ge=1, le=PAGE_MAX)]


class StartRequest(Schema):
    """A task to start."""

    task: Name = Field(description="The dotted path of its class, such as `shop.tasks.Import`.")
    params: dict[str, Any] = Field({}, description="Its parameters, by name.")
    run_after: Time | None = Field(None, description="The earliest time at which it may start.")
    unique_key: Name | None = Field(
        None,
        description="While one of your unfinished tasks has this key, you cannot start another "
        "task with it.",
    )


class ListedTask(TaskInfo):
    """A task as a list shows it: without its result, which may be large."""

    result: None = Field(None, exclude=True)


class CancelledTask(Schema):
    """The answer to a user who may cancel a task, but not see it."""

    task_id: UUID
    status: Status
    cancel_requested: bool


class RecordedEvent(schemas.TaskEvent):
    """An event of a task's history."""

    id: int


class TaskPage(Schema):
    tasks: list[ListedTask]
    next: str | None = Field(
        description="The `cursor` of the next page; null on the last page. A page may hold fewer "
        "tasks than `limit`, or none, and still have a `next`."
    )


class EventPage(Schema):
    events: list[RecordedEvent]
    next: int | None = Field(description="The `after` of the next page; null on the last page.")


class Page(Schema):
    limit: Limit = Field(PAGE, description="The most tasks of a page.")


class Filters(Page):
    """The parameters of a list of tasks."""

    status: list[Status] = Field([], description="Tasks with this status; may be repeated.")
    name: Name | None = Field(None, description="Tasks of the class with this dotted path.")
    queue: Name | None = Field(None, description="Tasks of this queue.")
    owner: Literal["me"] | None = Field(None, description="`me`: only your own tasks.")
    created_after: Time | None = Field(None, description="Created at this time or later.")
    created_before: Time | None = Field(None, description="Created before this time.")
    cursor: str | None = Field(
        None, max_length=200, description="Where to continue: the `next` of the previous page."
    )


class EventsQuery(Schema):
    """The parameters of a list of events."""

    after: int = Field(0, ge=0, lt=2**63, description="Only events after the one with this id.")
    limit: Limit = Field(PAGE, description="The most events of a page.")
