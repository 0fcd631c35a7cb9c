"""How long to leave a database alone that does not answer."""

from __future__ import annotations

PAUSE, PAUSE_MAX = 0.1, 5.0


class Trouble:
    """The pause between two tries, in seconds: it doubles with each that fails, up to a maximum."""

    def __init__(self) -> None:
        self.pause = 0.0
        #: By the monotonic clock.
        self.retry_at = 0.0

    def strike(self, moment: float) -> float:
        """Take note that a try failed; return how long to wait until the next."""
        self.pause = min(max(self.pause * 2, PAUSE), PAUSE_MAX)
        self.retry_at = moment + self.pause
        return self.pause
