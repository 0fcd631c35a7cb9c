"""The names of the channels, and who may read each of them. All other channels are denied."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from django.http import HttpRequest
from django_eventstream.channelmanager import ChannelManagerBase

from tasks_app.conf import task_settings
from tasks_app.models import Task
from tasks_app.permissions import may_view_all
from tasks_app.states import EventType

if TYPE_CHECKING:
    from tasks_app.permissions import User

ALL_TASKS = "tasks"
TASK_PREFIX = "task-"
OWNER_PREFIX = "owner-"
#: The length of a task's id in base64. At this length, a hundred ids fit into a request line.
SHORT_ID = 22


def task_channel(task_id: UUID) -> str:
    return f"{TASK_PREFIX}{task_id}"


def owner_channel(owner_id: Any) -> str:
    return f"{OWNER_PREFIX}{owner_id}"


def channels_of(task_id: UUID, owner_id: Any) -> list[str]:
    """Return all channels that carry a task's events."""
    owned = [owner_channel(owner_id)] if owner_id is not None else []
    return [task_channel(task_id), *owned, ALL_TASKS]


def task_of(channel: str) -> UUID | None:
    """Return the id of the task whose channel this is; None for other channels."""
    try:
        return UUID(channel.removeprefix(TASK_PREFIX)) if channel.startswith(TASK_PREFIX) else None
    except ValueError:
        return None


def id_of(text: str) -> UUID:
    """Parse a task's id: a UUID, or 22 characters of base64. Raises ValueError."""
    if len(text) == SHORT_ID:
        return UUID(bytes=urlsafe_b64decode(f"{text}=="))
    return UUID(text)


def is_ours(channel: str) -> bool:
    return channel == ALL_TASKS or channel.startswith(OWNER_PREFIX) or task_of(channel) is not None


def readable(user: User, channels: Collection[str]) -> set[str]:
    """Return the channels that a user may read. One query checks all channels of tasks."""
    if not user.is_authenticated or not user.is_active:
        return set()
    by_task = {task_id: channel for channel in channels if (task_id := task_of(channel))}
    visible = Task.primary.visible_to(user).filter(pk__in=by_task).values_list("pk", flat=True)
    own = {owner_channel(user.pk)}
    of_many = {channel for channel in channels if channel == ALL_TASKS or _is_of_owner(channel)}
    allowed = of_many if of_many - own and may_view_all(user) else of_many & own
    return {by_task[pk] for pk in visible} | allowed


def _is_of_owner(channel: str) -> bool:
    return channel.startswith(OWNER_PREFIX)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """The event types that a stream sends, and how much of each event."""

    kinds: frozenset[str] = frozenset(EventType.values)
    #: True if states and terminal events include the task's result, which may be large.
    results: bool = True

    @classmethod
    def of(cls, request: HttpRequest) -> Self:
        """Parse `?events=` and `?results=`. Raises InvalidStreamRequest."""
        query = request.GET
        kinds = cls().kinds
        if "events" in query:
            kinds = frozenset(query["events"].split(","))
            if unknown := kinds - cls().kinds:
                raise InvalidStreamRequest(
                    f"{min(unknown)[:80]!r} is not an event type. Separate types by commas. The "
                    f"types are {', '.join(EventType.values)}.",
                    fields=["events"],
                )
        results = query.get("results", "1")
        if results not in ("0", "1"):
            raise InvalidStreamRequest(
                f"results is {results[:80]!r}, but must be 1, or 0 to leave results out.",
                fields=["results"],
            )
        return cls(kinds, results == "1")


class InvalidStreamRequest(ValueError):
    """A request for a stream has a wrong parameter. `fields` names the parameters at fault."""

    def __init__(self, message: str, fields: Collection[str] = ("task",)) -> None:
        self.fields = fields
        super().__init__(message)


def requested(request: HttpRequest, user: User | None, task_id: UUID | None = None) -> set[str]:
    """Return the channels that a request asks for. Raises InvalidStreamRequest.

    It asks for the task in the URL, or by `?task=…` (repeated), `?mine=1` or `?all=1`. It must use
    only one of them, because two channels could carry the same task and send its events twice.
    """
    if task_id is not None:
        return {task_channel(task_id)}
    query = request.GET
    kinds = [kind for kind in ("task", "mine", "all") if kind in query]
    if len(kinds) != 1:
        raise InvalidStreamRequest(
            "Use exactly one of ?task=<id> (may be repeated), ?mine=1 and ?all=1.",
            fields=kinds or ["task"],
        )
    if kinds == ["all"]:
        return {ALL_TASKS}
    if kinds == ["mine"]:
        return {owner_channel(getattr(user, "pk", None))}
    limit = task_settings().stream_max_tasks
    ids = set(query.getlist("task"))
    if len(ids) > limit:
        raise InvalidStreamRequest(
            f"{len(ids)} tasks requested, but at most {limit} are allowed "
            f"(TASK_STREAM_MAX_TASKS). Send several requests."
        )
    try:
        return {task_channel(id_of(value)) for value in ids}
    except ValueError:
        raise InvalidStreamRequest(
            "A task ID must be a UUID, such as 4b989876-840f-48f8-84a9-bfd1b9303794."
        ) from None


class TaskChannelManager(ChannelManagerBase):
    """Lets users read the channels of their own tasks, or all channels by permission.

    Denies every channel that is not of tasks. A site that has other channels subclasses it.
    """

    def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: dict[str, Any]
    ) -> set[str]:
        return requested(request, request.user, view_kwargs.get("task_id"))

    def can_read_channel(self, user: User | None, channel: str) -> bool:
        return user is not None and channel in readable(user, [channel])

    def is_channel_reliable(self, channel: str) -> bool:
        return is_ours(channel)
