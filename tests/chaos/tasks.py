"""The tasks of the load. Each records its start and its successful end in the ledger."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from django.db import transaction

from tasks_app.service import task_service
from tasks_app.tasks.base import BaseTask, ProgressHandle
from tests.chaos import ledger

STEP_SECONDS = 0.02


class Chore(BaseTask):
    """Must not run twice, but starts again after a release at a shutdown."""

    def execute(self, progress: ProgressHandle, key: str, steps: int = 3) -> str:
        run = ledger.begin(key)
        self.work(progress, run, steps)
        ledger.end(run)
        return run

    def work(self, progress: ProgressHandle, run: str, steps: int) -> None:
        pause = threading.Event()
        for step in range(1, steps + 1):
            pause.wait(STEP_SECONDS)
            # The text names the run, so that the audit can attribute the progress.
            progress.send_progress(run, step / steps)


class Once(Chore):
    """Must never start twice."""

    restart_on_shutdown = False


class Sturdy(Chore):
    max_attempts = 3


class Flaky(Sturdy):
    """Fails in its first two runs."""

    def work(self, progress: ProgressHandle, run: str, steps: int) -> None:
        super().work(progress, run, steps)
        key = ledger.key_of(run)
        for number in (1, 2):
            try:
                (ledger.folder() / f"{key}.{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            raise ConnectionError(f"not in run {number}")


class Broken(Chore):
    def work(self, progress: ProgressHandle, run: str, steps: int) -> None:
        super().work(progress, run, steps)
        raise ValueError("it always breaks")


class BrokenThrice(Broken):
    max_attempts = 3


class Chatty(Chore):
    def work(self, progress: ProgressHandle, run: str, steps: int) -> None:
        for step in range(steps):
            progress.log(f"{run} line {step}")
            super().work(progress, run, 1)


class Family(Chore):
    """Starts two tasks in a transaction that commits, and one in a transaction that rolls back."""

    def work(self, progress: ProgressHandle, run: str, steps: int) -> None:
        super().work(progress, run, steps)
        # Separate keys, even if this task itself starts again.
        name = run.replace("/", "-")
        children, ghost = [f"{name}-1", f"{name}-2"], f"{name}-ghost"
        with transaction.atomic():
            for child in children:
                task_service.start_task(Chore, {"key": child})
        for child in children:
            ledger.note("ledger", what="child", key=ledger.key_of(run), run=child)
        ledger.note("ledger", what="ghost", key=ledger.key_of(run), run=ghost)
        with transaction.atomic():
            task_service.start_task(Chore, {"key": ghost})
            transaction.set_rollback(True)


class Held(BaseTask):
    """Waits for its test's orders to this process, and carries them out."""

    def execute(self, progress: ProgressHandle, orders: Path) -> int:
        pause = threading.Event()
        progress.send_progress("held", 0.1)
        done = 0
        while True:
            pause.wait(0.01)
            mine = orders / str(os.getpid())
            words = mine.read_text().split() if mine.exists() else []
            for word in words[done:]:
                done += 1
                match word:
                    case "complete":
                        return os.getpid()
                    case "fail":
                        raise ValueError("stale")
                    case "report":
                        progress.send_progress("stale", 0.9)
                    case "log":
                        progress.log("stale")
                    case "look":
                        progress.check_cancelled()
