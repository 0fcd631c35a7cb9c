"""The tasks that the benchmarks run."""

import time

from tasks_app import BaseTask, ProgressHandle


class Noop(BaseTask):
    def execute(self, progress: ProgressHandle) -> None:
        pass


class Stamp(BaseTask):
    """Returns the time at which it started."""

    def execute(self, progress: ProgressHandle) -> float:
        return time.time()


class Ticks(BaseTask):
    """Sends the time as its progress text at intervals."""

    def execute(self, progress: ProgressHandle, ticks: int = 40, pause: float = 0.15) -> None:
        for tick in range(1, ticks + 1):
            progress.send_progress(repr(time.time()), tick / ticks)
            time.sleep(pause)
