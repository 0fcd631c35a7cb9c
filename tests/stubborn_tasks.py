"""Tasks that are hard for their worker: they do not stop, or they leave something behind."""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import itertools
import logging
import multiprocessing
import resource
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import OperationalError, ProgrammingError, connection, transaction
from django.utils import timezone, translation

from tasks_app.tasks.base import BaseTask, ProgressHandle

logger = logging.getLogger("tests.stubborn")


class Raising(BaseTask):
    """Raises the error that the test sets."""

    error: ClassVar[BaseException] = ValueError("it broke")
    retry_on = (ValueError, OSError)
    no_retry_on = (FileNotFoundError,)

    def execute(self, progress: ProgressHandle) -> None:
        progress.check_cancelled()
        raise self.error.with_traceback(None)


class Spins(BaseTask):
    """Computes without calling any progress method."""

    def execute(self, progress: ProgressHandle) -> None:
        progress.send_progress_text("spinning")
        number = 0
        while True:
            number = (number + 1) % 1_000_003


class SpinsShielded(Spins):
    interruptible = False


class LogsInALoop(BaseTask):
    """Spends nearly all its time inside the logging module."""

    def execute(self, progress: ProgressHandle) -> None:
        progress.send_progress_text("logging")
        while True:
            logger.debug("and on and on: %s", "x" * 10)


class WaitsInALoop(BaseTask):
    """Waits in a loop for an event that is never set."""

    def execute(self, progress: ProgressHandle) -> None:
        progress.send_progress_text("waiting")
        ready = threading.Event()
        while not ready.wait(0.05):
            pass


class Awaits(BaseTask):
    """Awaits something for very long, and cleans up when it is cancelled."""

    def execute(self, progress: ProgressHandle, note: Path, by_asgiref: bool = True) -> None:
        async def main() -> None:
            progress.send_progress_text("awaiting")
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0)
                note.write_text("cleaned up")

        if by_asgiref:
            async_to_sync(main)()
        else:
            asyncio.run(main())


class SpinsAsync(BaseTask):
    """Computes in a coroutine that never yields to the event loop."""

    def execute(self, progress: ProgressHandle) -> None:
        async def main() -> None:
            progress.send_progress_text("spinning")
            while True:
                pass

        async_to_sync(main)()


def query_for_ever() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_sleep(1000)")
        else:
            cursor.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                "SELECT count(*) FROM n"
            )
            cursor.fetchall()


class QueriesForEver(BaseTask):
    """Runs a query that never ends, and treats its error as an ordinary one."""

    def execute(self, progress: ProgressHandle, by_asyncio: bool = False) -> None:
        async def main() -> None:
            await sync_to_async(query_for_ever)()

        progress.send_progress_text("querying")
        try:
            if by_asyncio:
                asyncio.run(main())
            else:
                query_for_ever()
        except OperationalError as error:
            raise ValueError("the query failed") from error


class CountsUsers(BaseTask):
    def execute(self, progress: ProgressHandle) -> int:
        return User.objects.count()


class CleansUp(BaseTask):
    """Cleans up when it is stopped."""

    def execute(self, progress: ProgressHandle, note: Path) -> None:
        progress.send_progress_text("spinning")
        try:
            while True:
                pass
        finally:
            note.write_text("cleaned up")


class SpinsInTransaction(BaseTask):
    def execute(self, progress: ProgressHandle) -> None:
        with transaction.atomic():
            list(User.objects.all())
            progress.send_progress_text("spinning")
            while True:
                pass


class SwallowsAll(BaseTask):
    """Catches every exception until a file appears."""

    def execute(self, progress: ProgressHandle, until: Path) -> str:
        progress.send_progress_text("deaf")
        while not until.exists():
            try:
                while not until.exists():
                    pass
            except BaseException:  # noqa: BLE001 - the point of it
                continue
        return "outlived"


class LeavesTransaction(BaseTask):
    """Returns, but leaves a thread that is in a transaction and never ends."""

    def execute(self, progress: ProgressHandle, note: Path) -> None:
        holds = threading.Event()

        def hold() -> None:
            try:
                with transaction.atomic():
                    User.objects.create(username="left open")
                    holds.set()
                    while not note.exists():
                        time.sleep(0.01)
            except ProgrammingError:
                note.write_text("not committed")
            while True:
                time.sleep(1)

        ThreadPoolExecutor(1, "left-behind").submit(hold)
        holds.wait(20)


class HoldsInterpreter(BaseTask):
    """Runs C code that holds the interpreter's lock, as a slow regular expression may."""

    def execute(self, progress: ProgressHandle, hold: Path) -> None:
        progress.send_progress_text("ready")
        while not hold.exists():
            time.sleep(0.01)
        ctypes.PyDLL(None).sleep(1000)


class Breaks(BaseTask):
    """Stops in the debugger, as a developer has it."""

    def execute(self, progress: ProgressHandle) -> str:
        breakpoint()
        return "went on"


class StuckInExecutor(BaseTask):
    """Waits for a non-daemon thread of its own; neither of them ends."""

    def execute(self, progress: ProgressHandle, until: Path) -> None:
        pause = threading.Event()

        def wait() -> None:
            while not until.exists():
                pause.wait(0.01)

        progress.send_progress_text("waiting")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(wait).result()


class SpoilsProcess(BaseTask):
    """Takes from its process the means to open another file."""

    def execute(self, progress: ProgressHandle) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4096))


class CopiesDatabase(BaseTask):
    """Copies SQLite's file directly, which drops every lock that its process has on it."""

    def execute(self, progress: ProgressHandle, to: Path) -> None:
        shutil.copyfile(connection.settings_dict["NAME"], to)


class HoldsLock(BaseTask):
    """Holds the database's write lock in one long transaction, as a task should not."""

    def execute(self, progress: ProgressHandle, take: Path, until: Path, most: float = 60) -> str:
        progress.send_progress("before", 0.1)
        pause = threading.Event()
        while not take.exists():
            pause.wait(0.01)
        with transaction.atomic():
            User.objects.create(username="written early")
            # Accepted now, and written after the lock is released.
            progress.send_progress("in the transaction", 0.5)
            progress.log("locked")
            end = time.monotonic() + most
            while not until.exists() and time.monotonic() < end:
                pause.wait(0.01)
        return "done"


class LargeLater(BaseTask):
    """Returns a result that is too large, after a file appears."""

    def execute(self, progress: ProgressHandle, until: Path) -> str:
        progress.send_progress_text("ready")
        pause = threading.Event()
        while not until.exists():
            pause.wait(0.01)
        return "x" * 900_000


class Surroundings(BaseTask):
    """Returns its language, time zone and decimal precision, and may change them."""

    def execute(self, progress: ProgressHandle, change: bool = False) -> list[str]:
        if change:
            translation.activate("de")
            timezone.activate("Asia/Tokyo")
            decimal.getcontext().prec = 3
        precision = str(decimal.getcontext().prec)
        return [str(translation.get_language()), timezone.get_current_timezone_name(), precision]


def _loop_forever(begun: Any) -> None:
    begun.set()
    # Never returns to Python's bytecode loop, which would run a signal handler.
    sum(itertools.repeat(0))


class EndsAProcess(BaseTask):
    """Forks a process that would run for ever, and terminates it, as a process pool does."""

    def execute(self, progress: ProgressHandle) -> int | None:
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        process = context.Process(target=_loop_forever, args=(begun,))
        process.start()
        # Python drops a signal that arrives during the fork.
        begun.wait(20)
        process.terminate()
        process.join(20)
        exitcode = process.exitcode
        process.kill()
        process.join()
        return exitcode
