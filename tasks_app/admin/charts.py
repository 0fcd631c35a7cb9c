"""What ended when, as bars: shapes that need no colour to be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.translation import gettext as _

from tasks_app.states import TERMINAL, Status
from tasks_app.store.statistics import HOUR, Course, Period

#: What the drawing is measured in. A page stretches it to the room there is.
WIDTH, HEIGHT = 600, 120
#: The part of a period's width that stays free between two bars.
GAP = 0.2
#: The least height of what is not nothing.
LEAST = 3.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar, of tasks that ended alike."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    start: datetime
    completed: int
    failed: int
    cancelled: int
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Chart:
    #: For the ids of its parts.
    name: str
    title: str
    course: Course
    bars: list[Bar]
    #: What the full height stands for.
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
    most = round_up(max(period.total for period in course.periods))
    pitch = WIDTH / len(course.periods)
    return Chart(
        name=name,
        title=_("Finished per hour") if course.step == HOUR else _("Finished per minute"),
        course=course,
        bars=[_bar(period, number * pitch, most) for number, period in enumerate(course.periods)],
        most=most,
        pitch=round(pitch, 2),
        thick=round(pitch * (1 - GAP), 2),
    )


def _bar(period: Period, x: float, most: int) -> Bar:
    pieces = []
    top = float(HEIGHT)
    # What failed stands at the bottom, where bars can be compared.
    for kind in (Status.FAILED, Status.COMPLETED, Status.CANCELLED):
        if count := period.ended.get(kind, 0):
            height = max(HEIGHT * count / most, LEAST)
            top -= height
            pieces.append(Piece(kind.value, round(top, 2), round(height, 2)))
    ended = {kind.value: period.ended.get(kind, 0) for kind in TERMINAL}
    return Bar(x=round(x, 2), start=timezone.localtime(period.start), pieces=pieces, **ended)


def round_up(most: int) -> int:
    """Return the next number that reads well on an axis: one digit, even or 5, and zeros."""
    step = 1
    while True:
        for factor in (1, 2, 4, 5, 6, 8):
            if most <= factor * step:
                return factor * step
        step *= 10
