"""Bar charts of finished tasks over time. Each status has its own pattern beside its colour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.translation import gettext as _

from tasks_app.states import TERMINAL, Status
from tasks_app.store.statistics import HOUR, Course, Period

#: The size of the drawing in its own units. The page scales it to the available space.
WIDTH, HEIGHT = 600, 120
#: The gap between two bars, as a part of a period's width.
GAP = 0.2
#: The least height of a piece, so that a single task is visible.
LEAST = 3.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar: the tasks that ended with one status."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One period of a chart."""

    x: float
    start: datetime
    completed: int
    failed: int
    cancelled: int
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, with all numbers that its template shows."""

    #: Part of the ids of its elements.
    name: str
    title: str
    course: Course
    bars: list[Bar]
    #: The number of tasks at the top of the scale.
    most: int
    pitch: float
    thick: float

    @property
    def completed(self) -> int:
        return self.course.ended[Status.COMPLETED]

    @property
    def cancelled(self) -> int:
        return self.course.ended[Status.CANCELLED]

    @property
    def middle(self) -> datetime:
        return self.bars[len(self.bars) // 2].start


def chart(name: str, course: Course) -> Chart:
    scale = round_up(max(period.total for period in course.periods))
    pitch = WIDTH / len(course.periods)
    return Chart(
        name=name,
        title=_("Finished per hour") if course.step == HOUR else _("Finished per minute"),
        course=course,
        bars=[_bar(period, number * pitch, scale) for number, period in enumerate(course.periods)],
        most=scale,
        pitch=round(pitch, 2),
        thick=round(pitch * (1 - GAP), 2),
    )


def _bar(period: Period, x: float, scale: int) -> Bar:
    pieces = []
    top = float(HEIGHT)
    # Failed tasks are at the bottom, where the heights of bars are easy to compare.
    for kind in (Status.FAILED, Status.COMPLETED, Status.CANCELLED):
        if count := period.ended.get(kind, 0):
            height = max(HEIGHT * count / scale, LEAST)
            top -= height
            pieces.append(Piece(kind.value, round(top, 2), round(height, 2)))
    ended = {kind.value: period.ended.get(kind, 0) for kind in TERMINAL}
    return Bar(x=round(x, 2), start=timezone.localtime(period.start), pieces=pieces, **ended)


def round_up(number: int) -> int:
    """Return the next round number for an axis: the digit 1, 2, 4, 5, 6 or 8, and zeros."""
    step = 1
    while True:
        for factor in (1, 2, 4, 5, 6, 8):
            if number <= factor * step:
                return factor * step
        step *= 10
