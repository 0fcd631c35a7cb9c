"""What a worker has under way, and what is known of it that the database does not know yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from tasks_app.exceptions import LeaseLost
from tasks_app.logs import SafeLogger
from tasks_app.store.claims import Claim
from tasks_app.worker.execution import Outcome
from tasks_app.worker.run import Run

logger = SafeLogger("tasks_app.worker")


class Runs(dict[Claim, Run]):
    """Every run that occupies a hand, lost ones too. Belongs to the coordinator's thread."""

    def __init__(self) -> None:
        super().__init__()
        #: Known and not yet written. What a hand delivers goes before what was made of its run
        #: in the meantime: work that came to its end must not be handed back.
        self.outcomes: dict[Run, Outcome] = {}
        #: Those with progress to write.
        self.reported: set[Run] = set()

    @property
    def going_on(self) -> list[Run]:
        """Those whose outcome is not known."""
        return [run for run in self.values() if run not in self.outcomes]

    @property
    def next_writes(self) -> Iterator[float]:
        """The moments at which there is something to write."""
        yield from (max(run.flush_at, run.held_until) for run in self.reported)
        yield from (run.held_until for run in self.outcomes)

    def due(self, moment: float) -> set[Run]:
        """Those of which something is to be written now."""
        due = {run for run in self.reported if moment >= run.flush_at} | self.outcomes.keys()
        return {run for run in due if moment >= run.held_until}

    def take_in(self, item: Outcome | Run) -> bool:
        """Take what a hand delivered; return whether it is the outcome of a run.

        What was given up meanwhile, or released at the end of a shutdown, is of no run here.
        """
        run = item.run if isinstance(item, Outcome) else item
        if run.claim not in self:
            return False
        if isinstance(item, Outcome):
            self.outcomes[run] = item
            return True
        self.reported.add(run)
        return False

    def conclude(self, outcomes: Iterable[Outcome]) -> None:
        """Let runs end so, unless their hands still deliver before it is written."""
        self.outcomes |= {outcome.run: outcome for outcome in outcomes}

    def hold_back(self, claims: Iterable[Claim], moment: float) -> None:
        """Leave runs alone for a while whose rows other sessions hold.

        Their leases are safe, although they are not renewed: who rescues looks for a heartbeat too.
        """
        for claim in claims:
            run = self[claim]
            if run.hold_back(moment):
                logger.warning(
                    "Another session holds the row of task %s; what it says waits for that",
                    run,
                    extra=run.log_extra,
                )

    def lose(self, claims: Collection[Claim]) -> None:
        """Stop runs whose claims are void: nothing they still do counts."""
        for claim in claims:
            run = self[claim]
            if not run.lost:
                run.lost = True
                run.stop(LeaseLost())
                logger.warning(
                    "Task %s was taken from this worker; what it still does is void",
                    run,
                    extra=run.log_extra,
                )

    def settle(self, outcome: Outcome) -> None:
        """Forget a run whose outcome is written, or of no use."""
        del self[outcome.run.claim]
        self.outcomes.pop(outcome.run, None)
        self.reported.discard(outcome.run)
