"""Detecting that the server of this process is shutting down.

ASGI does not report it. At a shutdown, a server first waits for open responses, and a stream has no
end. But every server begins by closing its listening socket, after a signal, a limit of requests,
or a reload alike. Any code in the process can see that. So this needs no interface of a particular
server, and touches no signal handler.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from django_eventstream.views import get_listener_manager

#: The interval between checks while streams are open.
LOOK_SECONDS = 0.25
#: The time in which clients can read the rest of their streams after the sockets are closed.
GRACE_SECONDS = 1.0
#: The directories that list the open files of a process: on Linux, and on macOS and BSD.
_OPEN_FILES = ("/proc/self/fd", "/dev/fd")


class Server:
    """The sockets on which the server of this process listened at the first request.

    On Windows, or if another process accepts the connections, it finds none. Then it never detects
    a shutdown.
    """

    def __init__(self) -> None:
        #: The inode behind each descriptor. Numbers alone are not enough: free ones are reused.
        self._sockets: dict[int, int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams = 0
        self._waiting: set[asyncio.Event] = set()
        #: Once true, it stays true.
        self.is_closing = False

    def find_sockets(self, scope: Any) -> None:
        """At the first request, record the sockets that listen on the address of the request."""
        if self._sockets is None:
            self._sockets = dict(_listening(scope.get("server")))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Check for a shutdown as long as a stream is open, and wake the streams when it begins."""
        self._streams += 1
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._look(loop)
        try:
            yield
        finally:
            self._streams -= 1

    async def grace_over(self) -> None:
        """Wait until GRACE_SECONDS after a shutdown began. Clients that read are served by then."""
        over = asyncio.Event()
        self._waiting.add(over)
        try:
            await over.wait()
        finally:
            self._waiting.discard(over)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        if not self._streams:
            self._loop = None
        elif any(_inode(number) != inode for number, inode in (self._sockets or {}).items()):
            self.is_closing = True
            _wake_streams()
            loop.call_later(GRACE_SECONDS, self._give_up)
        else:
            loop.call_later(LOOK_SECONDS, self._look, loop)

    def _give_up(self) -> None:
        for over in self._waiting:
            over.set()


def _wake_streams() -> None:
    manager = get_listener_manager()
    with manager.lock:
        for listener in set().union(*manager.listeners_by_channel.values()):
            listener.wake_threadsafe()


def _listening(address: Any) -> Iterator[tuple[int, int]]:
    """Yield this process's sockets that accept connections on an address of the ASGI scope."""
    folder = next(filter(os.path.isdir, _OPEN_FILES), None)
    for name in os.listdir(folder) if folder else ():
        number = int(name)
        with suppress(OSError):
            if (inode := _inode(number)) is None:
                continue
            with closing(socket.socket(fileno=os.dup(number))) as copy:
                accepts = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if accepts and _is_at(copy, address):
                    yield number, inode


def _inode(number: int) -> int | None:
    """Return the inode of a descriptor's socket; None if it is closed or not a socket."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def _is_at(listening: socket.socket, address: Any) -> bool:
    """Compare only ports, because the host may be a wildcard. A Unix socket has no port."""
    _host, port = address or (None, None)
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        return port is not None and str(listening.getsockname()[1]) == str(port)
    return port is None


server = Server()
