"""Whether the server of this process is shutting down.

ASGI does not tell: at a shutdown a server first waits for open responses, and a stream has no end.
But all servers begin by closing the socket on which they listen, whatever made them stop: a signal,
a limit of requests, a reload. Any code of the process can see that, so no server's own means are
needed, and no signal handler of theirs is touched.
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

#: How often it is looked at while streams are open.
LOOK_SECONDS = 0.25
#: How long a client that reads may take to be sent the rest of its stream.
GRACE_SECONDS = 1.0
#: Where the open files of a process are listed: on Linux, and on macOS and BSD.
_OPEN_FILES = ("/proc/self/fd", "/dev/fd")


class Server:
    """The sockets on which the server of this process listened at the first request.

    None are found on Windows, or where another process accepts connections. Then it is never seen
    to close.
    """

    def __init__(self) -> None:
        #: The socket behind each file descriptor; a number that is free is soon given again.
        self._sockets: dict[int, int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams = 0
        self._waiting: set[asyncio.Event] = set()
        #: Once true, it stays so.
        self.is_closing = False

    def notice(self, scope: Any) -> None:
        """Take note of the sockets at which a request came in, if none came before."""
        if self._sockets is None:
            self._sockets = dict(_listening(scope.get("server")))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look whether it closes, for as long as any stream is open; tell streams when it does."""
        self._streams += 1
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._look(loop)
        try:
            yield
        finally:
            self._streams -= 1

    async def gone(self) -> None:
        """Wait until it has been closing for so long that every client that reads is served."""
        gone = asyncio.Event()
        self._waiting.add(gone)
        try:
            await gone.wait()
        finally:
            self._waiting.discard(gone)

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
        for gone in self._waiting:
            gone.set()


def _wake_streams() -> None:
    manager = get_listener_manager()
    with manager.lock:
        for listener in set().union(*manager.listeners_by_channel.values()):
            listener.wake_threadsafe()


def _listening(address: Any) -> Iterator[tuple[int, int]]:
    """The sockets of this process that accept connections to an address of the ASGI scope."""
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
    """What identifies the socket of a file descriptor; None if it has none."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else None


def _is_at(listening: socket.socket, address: Any) -> bool:
    """Compare ports: the host may be a wildcard. A Unix socket has none."""
    _host, port = address or (None, None)
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        return port is not None and str(listening.getsockname()[1]) == str(port)
    return port is None


server = Server()
