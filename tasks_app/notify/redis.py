"""Change signals over Redis: a notice with each commit, between hosts, for any database."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.signals import setting_changed

from tasks_app.notify.listening import Listening
from tasks_app.notify.outage import Outage

# Imported only where it is used: it may not be installed, and importing it is slow.
if TYPE_CHECKING:
    import redis

#: The channel of the notices. Sites that share a Redis server wake each other for nothing.
CHANNEL = "tasks_app"
#: A commit waits this long for a server that does not answer, at the first and each later try.
PUBLISH_TIMEOUT = 0.25
CONNECT_TIMEOUT = 5.0
#: The interval at which the reading thread checks whether it must stop.
READ_SECONDS = 1.0


def client(timeout: float) -> redis.Redis:
    """Return a client of the site's server that tries once and has this time limit."""
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
    """Receives what `publish` sends. A notice that Redis loses delays changes by up to a second."""

    service = "Redis"
    safety_seconds = 1.0

    def open(self) -> RedisLine:
        return RedisLine()


class RedisLine:
    """A subscription. A thread reads it, because the library does not expose its descriptor."""

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
            received = self._hearing.recv(4096)
        except BlockingIOError:
            return False
        if not received:
            raise self._error or ConnectionError("the subscription ended")
        return True

    def close(self) -> None:
        self._closed = True
        self._hearing.close()

    def _read(self) -> None:
        try:
            while not self._closed:
                if self._subscription.get_message(timeout=READ_SECONDS):
                    with suppress(BlockingIOError):  # The reader has a byte to read already.
                        self._speaking.send(b"!")
        except Exception as error:  # noqa: BLE001 - `take` raises it in the reader's thread
            self._error = error
        finally:
            self._subscription.close()
            self._speaking.close()


class Publisher:
    """Publishes this process's notices. All its threads share it."""

    def __init__(self) -> None:
        self._client = client(PUBLISH_TIMEOUT)
        self._outage = Outage("Redis", "commits here may be noticed a second late")

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
    """Notify the listening processes. Never raises without a server, and hardly waits for one."""
    global _publisher
    if _publisher is None:
        _publisher = Publisher()
    _publisher.publish()


def _forget(*, setting: str, **_kwargs: Any) -> None:
    global _publisher
    if setting == "EVENTSTREAM_REDIS":
        _publisher = None


setting_changed.connect(_forget, dispatch_uid="tasks_app.notify.redis")
