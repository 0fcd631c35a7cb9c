"""The tasks that tests run, in this process and in workers. No task sleeps by itself."""

import threading
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from tasks_app.tasks.base import BaseTask, ProgressHandle


class Noop(BaseTask):
    def execute(self, progress: ProgressHandle) -> None:
        pass


class Add(BaseTask):
    verbose_name = "Add two numbers"

    def execute(self, progress: ProgressHandle, a: int, b: int = 2) -> int:
        progress.send_progress("adding", 0.5)
        return a + b


class Fail(BaseTask):
    def execute(self, progress: ProgressHandle, message: str = "it broke") -> None:
        progress.send_progress("about to fail", 0.25)
        raise ValueError(message)


class FailTwice(BaseTask):
    """Fails until its third attempt. It counts attempts in a file."""

    max_attempts = 3

    def execute(self, progress: ProgressHandle, ledger: Path) -> int:
        with ledger.open("a") as file:
            file.write("x")
        if len(ledger.read_text()) < 3:
            raise ConnectionError("not yet")
        return len(ledger.read_text())


class Burst(BaseTask):
    """Reports progress as fast as it can."""

    def execute(self, progress: ProgressHandle, calls: int = 5000) -> int:
        for _ in progress.track(range(calls), text="bursting"):
            pass
        return calls


class Steps(BaseTask):
    """Takes a step each time a file allows one more, so that the test controls it.

    The file holds the number of steps allowed so far. The task reports each step it takes.
    """

    def execute(self, progress: ProgressHandle, reins: Path, steps: int = 10) -> str:
        pause = threading.Event()
        progress.send_progress_text("ready")
        for step in range(1, steps + 1):
            while int(reins.read_text() or 0) < step:
                progress.check_cancelled()
                pause.wait(0.01)
            progress.send_progress(f"step {step}", step / steps)
        return "done"


class Deaf(BaseTask):
    """Reports once, and then ignores stop requests until a file appears.

    It creates a second file at its end, with the suffix .heard.
    """

    def execute(self, progress: ProgressHandle, until: Path) -> str:
        pause = threading.Event()
        progress.send_progress_text("calls in no more")
        while not until.exists():
            pause.wait(0.01)
        until.with_suffix(".heard").touch()
        return "heard nothing"


class Stubborn(BaseTask):
    """Catches every Exception."""

    def execute(self, progress: ProgressHandle, seconds: float = 30.0) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                progress.send_progress_text("still here")
            except Exception:  # noqa: BLE001 - the point of it
                progress.log("caught")
        return "outlived"


class Talk(BaseTask):
    def execute(self, progress: ProgressHandle, lines: int = 3) -> None:
        for number in range(lines):
            progress.log(f"line {number}", level="warning" if number % 2 else "info")


class Quit(BaseTask):
    def execute(self, progress: ProgressHandle) -> None:
        raise SystemExit(3)


class WrongResult(BaseTask):
    def execute(self, progress: ProgressHandle) -> int:
        return "seven"  # type: ignore[return-value]


class Order(BaseModel):
    """Parameters declared as a model."""

    number: int = Field(gt=0)
    kind: Literal["import", "export"] = "import"


class WithModel(BaseTask):
    Params = Order

    def execute(self, progress: ProgressHandle, **params: object) -> dict[str, object]:
        return params


class Urgent(BaseTask):
    queue = "urgent"
    priority = 10
    timeout = None

    def execute(self, progress: ProgressHandle) -> None:
        pass
