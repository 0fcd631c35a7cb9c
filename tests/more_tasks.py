"""More tasks for tests, of other kinds than those in `tests.tasks`."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import logging
import pathlib
import uuid
from typing import Annotated, Any

from django.contrib.auth.models import User
from django.db import connection, transaction
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr, computed_field

from tasks_app.exceptions import TaskError
from tasks_app.tasks.base import BaseTask, ProgressHandle
from tests.tasks import Steps


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    sku: str
    price: decimal.Decimal
    key: SecretStr = SecretStr("")


class Everything(BaseTask):
    """Takes one value of each type that Pydantic converts to JSON and back, and returns them."""

    def execute(
        self,
        progress: ProgressHandle,
        day: datetime.date,
        moment: datetime.datetime,
        amount: decimal.Decimal,
        path: pathlib.Path,
        key: uuid.UUID,
        colour: Colour,
        items: list[Item],
        by_name: dict[str, Item],
        pair: tuple[int, str],
        tags: set[str],
    ) -> str:
        values = dict(locals())
        return repr([values[name] for name in self.params_model().model_fields])


class Secrets(BaseTask):
    def execute(
        self,
        progress: ProgressHandle,
        password: SecretStr,
        token: SecretBytes,
        items: list[Item],
        by_name: dict[str, Item],
        maybe: SecretStr | None = None,
    ) -> list[Any]:
        return [
            password.get_secret_value(),
            token.get_secret_value().decode(),
            items[0].key.get_secret_value(),
            by_name["a"].key.get_secret_value(),
            maybe and maybe.get_secret_value(),
        ]


class Bounded(BaseTask):
    def execute(
        self, progress: ProgressHandle, number: Annotated[int, Field(ge=1, le=3)], text: str = "x"
    ) -> str:
        return text * number


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    day: datetime.date
    number: int


class StrictTask(BaseTask):
    Params = Strict

    def execute(self, progress: ProgressHandle, day: datetime.date, number: int) -> str:
        return f"{day:%Y-%m-%d} {number}"


class Aliased(BaseModel):
    from_: int = Field(alias="from")


class TakesAlias(BaseTask):
    Params = Aliased

    def execute(self, progress: ProgressHandle, from_: int) -> int:
        return from_


class Doubled(BaseModel):
    """Dumps more fields than it accepts."""

    model_config = ConfigDict(extra="forbid")

    number: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.number * 2


class TakesComputed(BaseTask):
    Params = Doubled

    def execute(self, progress: ProgressHandle, number: int) -> int:
        return number


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class TakesMore(BaseTask):
    Params = Open

    def execute(self, progress: ProgressHandle, **params: Any) -> Any:
        return params


class SecretSet(BaseTask):
    def execute(self, progress: ProgressHandle, keys: set[SecretStr]) -> list[str]:
        return [key.get_secret_value() for key in keys]


class Floats(BaseTask):
    def execute(self, progress: ProgressHandle, number: float) -> float:
        return number


class Summary(BaseModel):
    rows: int
    when: datetime.date


class Summarise(BaseTask):
    def execute(self, progress: ProgressHandle, rows: Any) -> Summary:
        return Summary(rows=rows, when=datetime.date(2026, 1, 2))


class SummariseLoosely(BaseTask):
    """Declares its result type separately from `execute`."""

    Result = Summary

    def execute(self, progress: ProgressHandle, rows: Any) -> Any:
        return {"rows": rows, "when": "2026-01-02"}


class Echo(BaseTask):
    """Returns the value it is given, of any type."""

    def execute(self, progress: ProgressHandle, value: Any = None) -> Any:
        return value


class Untyped(BaseTask):
    def execute(self, progress, value, other=1):  # type: ignore[no-untyped-def]
        return value


class StartsBadly(BaseTask):
    def __init__(self) -> None:
        raise RuntimeError("no instance")

    def execute(self, progress: ProgressHandle) -> None: ...


class CleansUpBadly(BaseTask):
    """Fails in its own clean-up after it was asked to stop."""

    def execute(self, progress: ProgressHandle) -> None:
        try:
            progress.check_cancelled()
        finally:
            raise ValueError("clean-up failed")


class Translates(BaseTask):
    """Turns an interruption into its own error."""

    def execute(self, progress: ProgressHandle) -> None:
        try:
            progress.check_cancelled()
        except BaseException as error:
            raise RuntimeError("stopped") from error


class MakesUsers(BaseTask):
    """Uses the database, as most tasks do."""

    def execute(self, progress: ProgressHandle, names: list[str]) -> int:
        for name in progress.track(names):
            User.objects.create(username=name)
        return User.objects.count()


class Logs(BaseTask):
    """Writes to its own logger."""

    def execute(self, progress: ProgressHandle) -> None:
        logging.getLogger("tests.more_tasks").info("hello")


class NeverAgain(BaseTask):
    restart_on_shutdown = False

    def execute(self, progress: ProgressHandle) -> None:
        pass


class Abstract(BaseTask):
    """Has no `execute` method."""


class StepsOnce(Steps):
    restart_on_shutdown = False


@dataclasses.dataclass
class Rejected(Exception):
    """Is not hashable, like every dataclass with eq."""

    line: int


class Mute(Exception):
    def __str__(self) -> str:
        return self.words  # type: ignore[attr-defined,no-any-return]


#: Exceptions that are hard to report, by name.
ODD_ERRORS: dict[str, BaseException] = {
    "unhashable": Rejected(3),
    "mute": Mute(),
    "nameless": type("", (Exception,), {})("it broke"),
    "long name": type("E" * 300, (Exception,), {})("it broke"),
    "long message": ValueError("x" * 20_000),
    "long traceback": RuntimeError("\n" * 200_000),
    # The line number is not a number; only Python's own parser sets it reliably.
    "untraceable": SyntaxError("bad", ("shop.txt", 1, "no number", "text\n")),  # type: ignore[arg-type]
    "half a surrogate": ValueError("\ud800 and \0"),
}


class RaisesOdd(BaseTask):
    def execute(self, progress: ProgressHandle, which: str) -> None:
        raise ODD_ERRORS[which].with_traceback(None)


class Unstorable(BaseTask):
    """Returns a value that no database stores as JSON, and skips the validation of its result."""

    def execute(self, progress: ProgressHandle) -> None: ...

    def run(self, progress: ProgressHandle, params: Any) -> Any:
        return float("nan")


class LeavesOpen(BaseTask):
    """Begins a transaction, writes in it, and never ends it."""

    def execute(self, progress: ProgressHandle) -> None:
        transaction.atomic().__enter__()
        User.objects.create(username="never")


class Large(BaseTask):
    def execute(self, progress: ProgressHandle, size: int) -> str:
        return "x" * size


class Wordy(BaseTask):
    def execute(self, progress: ProgressHandle, size: int) -> None:
        progress.log("l" * size)
        progress.send_progress_text("p" * size)


def nested(levels: int) -> Any:
    """Return a list in a list in a list…"""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


class Nested(BaseTask):
    def execute(self, progress: ProgressHandle, levels: int) -> Any:
        return nested(levels)


class Digits(BaseTask):
    def execute(self, progress: ProgressHandle, digits: int) -> int:
        return 10 ** (digits - 1)


class Repeats(BaseTask):
    """Returns a text repeated a number of times."""

    def execute(self, progress: ProgressHandle, text: str, times: int) -> str:
        return text * times


class SaysMuch(BaseTask):
    """Reports and logs a long text, and fails with it."""

    def execute(self, progress: ProgressHandle, text: str, times: int) -> None:
        progress.send_progress_text(text * times)
        progress.log(text * times)
        raise ValueError(text * times)


class LogsLines(BaseTask):
    def execute(self, progress: ProgressHandle, lines: int) -> None:
        for number in range(lines):
            progress.log(f"line {number}")


#: Characters that an encoding such as LATIN1 or SQL_ASCII lacks.
NAIVE = "na\u00efve \u2192"


class SaysNaive(BaseTask):
    """Sends NAIVE in the way that the test chooses."""

    def execute(self, progress: ProgressHandle, how: str) -> str:
        if how == "progress":
            progress.send_progress_text(NAIVE)
        if how == "log":
            progress.log(NAIVE)
            progress.log(f"{NAIVE}, again")
        if how == "error":
            raise ValueError(NAIVE)
        if how == "public":
            raise TaskError(NAIVE)
        return NAIVE if how == "result" else ""


class CountsQueries(BaseTask):
    """Returns the number of queries that DEBUG kept from earlier tasks, and runs more."""

    def execute(self, progress: ProgressHandle, make: int) -> int:
        kept = len(connection.queries)
        for _ in range(make):
            User.objects.count()
        return kept
