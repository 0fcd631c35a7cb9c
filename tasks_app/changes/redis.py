"""Redis: a notice with each commit, from any host to any other, whatever the database."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.signals import setting_changed

from tasks_app.changes.listening import Listening
from tasks_app.changes.outage import Outage

# Loaded where it is used only: it may not be installed, and takes each process a while.
if TYPE_CHECKING:
    import redis

#: Redis knows channels by name only. Sites that share a server wake each other, and find nothing.
CHANNEL = "tasks_app"
#: The most that a commit waits for a server that does not answer, at the first and at each try.
PUBLISH_TIMEOUT = 0.25
CONNECT_TIMEOUT = 5.0
#: How soon the reading thread hears that it is not wanted any more.
READ_SECONDS = 1.0


def client(timeout: float) -> redis.Redis:
    """Return a client of the site's server that tries once, and for no longer than this."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    limits = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 30,
    }
    return redis.Redis(**(settings.EVENTSTREAM_REDIS | limits))


class RedisChanges(Listening):
    """Hears what `publish` tells. A notice that Redis loses costs up to a second."""

    service = "Redis"
    safety_seconds = 1.0

    def open(self) -> RedisLine:
        return RedisLine()


class RedisLine:
    """A subscription. A thread reads it, since the library does not say what to wait for."""

    def __init__(self) -> None:
        self._closed = False
        self._error: Exception | None = None
        self._subscription = client(CONNECT_TIMEOUT).pubsub()
        try:
            self._subscription.subscribe(CHANNEL)
            if not self._subscription.get_message(timeout=CONNECT_TIMEOUT):
                raise TimeoutError("the subscription is not confirmed")
            self._hearing, self._speaking = socket.socketpair()
        except BaseException:
            self._subscription.close()
            raise
        self._hearing.setblocking(False)
        self._speaking.setblocking(False)
        threading.Thread(target=self._read, name="tasks-redis", daemon=True).start()

    def fileno(self) -> int:
        return self._hearing.fileno()

    def take(self) -> bool:
        try:
            told = self._hearing.recv(4096)
        except BlockingIOError:
            return False
        if not told:
            raise self._error or ConnectionError("the subscription ended")
        return True

    def close(self) -> None:
        self._closed = True
        self._hearing.close()

    def _read(self) -> None:
        try:
            while not self._closed:
                if self._subscription.get_message(timeout=READ_SECONDS):
                    with suppress(BlockingIOError):  # It has more to read than it needs.
                        self._speaking.send(b"!")
        except Exception as error:  # noqa: BLE001 - `take` raises it where it is heard
            self._error = error
        finally:
            self._subscription.close()
            self._speaking.close()


class Publisher:
    """This process's voice. Belongs to all its threads."""

    def __init__(self) -> None:
        self._client = client(PUBLISH_TIMEOUT)
        self._outage = Outage("Redis", "what is committed here is noticed up to a second late")

    def publish(self) -> None:
        import redis

        if not self._outage.may_try():
            return
        try:
            self._client.publish(CHANNEL, b"")
        except (redis.RedisError, OSError) as error:
            self._outage.strike(error)
        else:
            self._outage.end()


_publisher: Publisher | None = None


def publish() -> None:
    """Tell those who listen. Never raises for want of a server, and hardly waits for one."""
    global _publisher
    if _publisher is None:
        _publisher = Publisher()
    _publisher.publish()


def _forget(*, setting: str, **_kwargs: Any) -> None:
    global _publisher
    if setting == "EVENTSTREAM_REDIS":
        _publisher = None


setting_changed.connect(_forget, dispatch_uid="tasks_app.changes.redis")
