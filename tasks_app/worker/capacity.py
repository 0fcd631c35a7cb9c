"""How many tasks a worker claims, and when it releases tasks that no thread has begun."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tasks_app.states import Verb
from tasks_app.worker.execution import Outcome
from tasks_app.worker.run import NEVER, Run

#: The most tasks of a worker under way at once, where that is more than it has threads.
GROUP_MAX = 200
#: How long claimed tasks wait for threads that finish nothing, before they are handed back.
UNBEGUN_SECONDS = 0.1


def room(threads: int, runs: int, outcomes: Collection[Outcome]) -> int:
    """Return how many tasks to claim: one for each free hand, more while tasks are short.

    What the threads finished since the last cycle, they will about finish until the next one;
    so twice that is in flight, and a group commit carries many of them. Were there only as
    many as threads, the threads would idle through every commit.
    """
    finished = sum(outcome.verb is not Verb.RELEASE for outcome in outcomes)
    aim = min(max(threads, 2 * finished), max(threads, GROUP_MAX))
    return aim - (runs - len(outcomes))


def recall_at(
    threads: int, runs: Iterable[Run], under_way: int, delivered_at: float, moment: float
) -> float:
    """Return when to hand back what no hand has begun: once none has finished one for a while."""
    waiting = [run.claimed for run in runs if run.began == NEVER]
    if not waiting:
        return NEVER
    all_busy = under_way - len(waiting) >= threads
    return (max(delivered_at, min(waiting)) if all_busy else moment) + UNBEGUN_SECONDS
