"""Channel names, read permissions, and the parameters of a request."""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.test import RequestFactory

from tasks_app.live.channels import (
    ALL_TASKS,
    EventFilter,
    InvalidStreamRequest,
    TaskChannelManager,
    channels_of,
    id_of,
    is_ours,
    owner_channel,
    readable,
    requested,
    task_channel,
    task_of,
)
from tasks_app.states import EventType
from tests.rows import saved

ID = uuid.UUID("4b989876-840f-48f8-84a9-bfd1b9303794")
SHORT = urlsafe_b64encode(ID.bytes).decode().rstrip("=")


def asked(query: Any = None, user: Any = None, task_id: uuid.UUID | None = None) -> set[str]:
    request = RequestFactory().get("/tasks/stream/", query)
    request.user = user or AnonymousUser()
    return requested(request, request.user, task_id)


# Selected events.


def wanted(query: Any) -> EventFilter:
    return EventFilter.of(RequestFactory().get("/tasks/stream/", query))


def test_stream_has_only_selected_events() -> None:
    assert wanted({}) == EventFilter(frozenset(EventType.values), results=True)
    asked = wanted({"events": "task_completed,task_failed", "results": "0"})
    assert asked == EventFilter(frozenset({"task_completed", "task_failed"}), results=False)


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        (
            {"events": "task_log,task_done"},
            "events",
            "'task_done' is not an event type. Separate types by commas. The types are task_",
        ),
        ({"events": ""}, "events", "'' is not an event type."),
        (
            {"results": "no"},
            "results",
            "results is 'no', but must be 1, or 0 to leave results out.",
        ),
    ],
)
def test_invalid_selection_is_refused(query: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidStreamRequest) as caught:
        wanted(query)
    assert str(caught.value).startswith(message)
    assert caught.value.fields == [field]


# Names.


@pytest.mark.parametrize("text", [str(ID), ID.hex, SHORT])
def test_id_is_read_in_each_form(text: str) -> None:
    assert id_of(text) == ID


@pytest.mark.parametrize("text", ["", "x", "7" * 21, "!" * 22, "é" * 22, SHORT + "="])
def test_invalid_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the request words it
        id_of(text)


def test_channel_names() -> None:
    assert task_channel(ID) == f"task-{ID}"
    assert owner_channel(7) == "owner-7"
    assert channels_of(ID, 7) == [f"task-{ID}", "owner-7", "tasks"]
    assert channels_of(ID, None) == [f"task-{ID}", "tasks"]


@pytest.mark.parametrize(
    ("channel", "task_id"),
    [
        (f"task-{ID}", ID),
        ("task-", None),
        ("task-7", None),
        (f"other-{ID}", None),
        (str(ID), None),
        ("tasks", None),
        ("owner-7", None),
        ("", None),
    ],
)
def test_task_of_a_channel(channel: str, task_id: uuid.UUID | None) -> None:
    assert task_of(channel) == task_id


@pytest.mark.parametrize(
    ("channel", "ours"),
    [
        ("tasks", True),
        ("owner-7", True),
        (f"task-{ID}", True),
        ("task-7", False),
        ("news", False),
        ("tasks-", False),
        ("", False),
    ],
)
def test_own_channels_are_recognized(channel: str, ours: bool) -> None:
    assert is_ours(channel) is ours
    assert TaskChannelManager().is_channel_reliable(channel) is ours


# Permissions.


def permitted(*codenames: str, **fields: Any) -> User:
    user = User.objects.create(username=f"user{User.objects.count()}", **fields)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="tasks_app", codename__in=codenames)
    )
    return User.objects.get(pk=user.pk)


@pytest.mark.django_db
def test_readable_channels_per_user() -> None:
    ada, bob = permitted(), permitted("cancel_task", "change_task")
    root, viewer = permitted(is_superuser=True), permitted("view_task")
    hers, nobodys = task_channel(saved(owner=ada).pk), task_channel(saved().pk)
    channels = {
        hers,
        nobodys,
        task_channel(uuid.uuid4()),
        owner_channel(ada.pk),
        owner_channel(bob.pk),
        ALL_TASKS,
        "news",
        "task-7",
        "",
    }
    everything = {hers, nobodys, owner_channel(ada.pk), owner_channel(bob.pk), ALL_TASKS}
    for user, expected in (
        (AnonymousUser(), set()),
        (ada, {hers, owner_channel(ada.pk)}),
        (bob, {owner_channel(bob.pk)}),
        (viewer, everything),
        (root, everything),
    ):
        assert readable(user, channels) == expected
        manager = TaskChannelManager()
        assert {one for one in channels if manager.can_read_channel(user, one)} == expected  # type: ignore[arg-type]


@pytest.mark.django_db
def test_task_without_owner_is_hidden_from_ordinary_users() -> None:
    channels = [task_channel(saved().pk), "owner-None", "owner-", ALL_TASKS]
    assert readable(AnonymousUser(), channels) == set()
    assert readable(permitted(), channels) == set()
    assert not TaskChannelManager().can_read_channel(None, ALL_TASKS)


@pytest.mark.django_db
def test_inactive_user_reads_nothing() -> None:
    gone = permitted("view_task", is_active=False)
    channels = [task_channel(saved(owner=gone).pk), owner_channel(gone.pk), ALL_TASKS]
    assert readable(gone, channels) == set()


@pytest.mark.django_db
def test_number_of_queries_is_constant(django_assert_num_queries: Any) -> None:
    ada = permitted()
    channels = [task_channel(saved(owner=ada).pk) for _ in range(20)]
    ada = User.objects.get(pk=ada.pk)
    with django_assert_num_queries(3):  # two for permissions, one for tasks
        assert readable(ada, channels) == set(channels)


# Parameters of a request.


def test_one_task_by_its_url() -> None:
    assert asked(task_id=ID) == {f"task-{ID}"}
    assert asked({"all": "1"}, task_id=ID) == {f"task-{ID}"}


def test_tasks_by_their_ids() -> None:
    other = uuid.uuid4()
    assert asked({"task": [str(ID), ID.hex.upper(), str(other)]}) == {
        f"task-{ID}",
        f"task-{other}",
    }


@pytest.mark.django_db
def test_own_tasks_and_all_tasks() -> None:
    ada = permitted()
    assert asked({"mine": "1"}, user=ada) == {owner_channel(ada.pk)}
    assert asked({"all": "1"}) == {ALL_TASKS}


@pytest.mark.parametrize(
    "query",
    [{}, {"mine": "1", "all": "1"}, {"task": str(ID), "mine": "1"}, {"other": "1"}],
)
def test_kinds_of_channels_cannot_be_mixed(query: dict[str, str]) -> None:
    with pytest.raises(InvalidStreamRequest) as caught:
        asked(query)
    assert str(caught.value) == (
        "Use exactly one of ?task=<id> (may be repeated), ?mine=1 and ?all=1."
    )


@pytest.mark.parametrize("value", ["7", "", "tasks", f"{ID}0"])
def test_id_must_be_a_uuid(value: str) -> None:
    with pytest.raises(InvalidStreamRequest) as caught:
        asked({"task": [str(ID), value]})
    assert str(caught.value) == (
        "A task ID must be a UUID, such as 4b989876-840f-48f8-84a9-bfd1b9303794."
    )


def test_number_of_tasks_is_limited(settings: Any) -> None:
    settings.TASK_STREAM_MAX_TASKS = 3
    ids = [str(uuid.uuid4()) for _ in range(4)]
    assert len(asked({"task": ids[:3] * 2})) == 3
    with pytest.raises(InvalidStreamRequest) as caught:
        asked({"task": ids})
    assert str(caught.value) == (
        "4 tasks requested, but at most 3 are allowed (TASK_STREAM_MAX_TASKS). "
        "Send several requests."
    )


def test_channel_manager_reads_the_same_parameters() -> None:
    request = RequestFactory().get("/", {"task": str(ID)})
    request.user = AnonymousUser()
    manager = TaskChannelManager()
    assert manager.get_channels_for_request(request, {}) == {f"task-{ID}"}
    assert manager.get_channels_for_request(request, {"task_id": ID}) == {f"task-{ID}"}
