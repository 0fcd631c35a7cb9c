"""django-eventstream's storage on top of the facts that the lifecycle wrote."""

from __future__ import annotations

import json
import uuid

import pytest
from django.contrib.auth.models import User
from django_eventstream.eventstream import get_storage

from tasks_app.live.channels import ALL_TASKS, owner_channel, task_channel
from tasks_app.live.storage import TaskEventStorage
from tasks_app.models import TaskEvent
from tasks_app.states import Status
from tests.rows import ended, enqueued

pytestmark = pytest.mark.django_db


@pytest.fixture
def storage() -> TaskEventStorage:
    return TaskEventStorage()


def ids(storage: TaskEventStorage, channel: str, last_id: int = 0, limit: int = 100) -> list[int]:
    return [int(event.id) for event in storage.get_events(channel, last_id, limit)]


def test_site_is_configured_with_this_storage() -> None:
    assert isinstance(get_storage(), TaskEventStorage)


def test_each_channel_has_its_facts(storage: TaskEventStorage) -> None:
    ada = User.objects.create(username="ada")
    hers, other = ended(Status.COMPLETED, owner=ada), enqueued()
    of_hers = list(TaskEvent.objects.filter(task=hers).values_list("pk", flat=True))
    of_other = list(TaskEvent.objects.filter(task=other).values_list("pk", flat=True))
    assert len(of_hers) == 3
    for channel, expected in (
        (task_channel(hers.pk), of_hers),
        (task_channel(other.pk), of_other),
        (owner_channel(ada.pk), of_hers),
        (ALL_TASKS, of_hers + of_other),
        (task_channel(uuid.uuid4()), []),
        ("news", []),
    ):
        assert ids(storage, channel) == expected
        assert storage.get_current_id(channel) == max(expected, default=0)


def test_events_after_an_id_in_order_up_to_a_limit(storage: TaskEventStorage) -> None:
    task = ended(Status.FAILED)
    first, second, third = ids(storage, task_channel(task.pk))
    assert first < second < third
    assert ids(storage, ALL_TASKS, first) == [second, third]
    assert ids(storage, ALL_TASKS, third) == []
    assert ids(storage, ALL_TASKS, 0, 2) == [first, second]


def test_event_has_the_same_form_as_in_a_stream(storage: TaskEventStorage) -> None:
    task = enqueued()
    [event] = storage.get_events(task_channel(task.pk), 0)
    assert (event.channel, event.type) == (task_channel(task.pk), "task_queued")
    message = json.loads(event.data)
    assert message == TaskEvent.objects.get().message().model_dump(mode="json")
    assert message["task_id"] == str(task.pk)


def test_append_is_refused(storage: TaskEventStorage) -> None:
    task = enqueued()
    with pytest.raises(TypeError) as caught:
        storage.append_event(task_channel(task.pk), "task_completed", {})
    assert str(caught.value).startswith(
        f"Cannot append task_completed to task-{task.pk}: only the lifecycle of tasks writes task "
        f"events, in the transaction that makes them true."
    )
    assert TaskEvent.objects.count() == 1
