"""Tasks that can be started over HTTP, and one that cannot."""

from datetime import date

from pydantic import BaseModel, Field, SecretStr

from tasks_app.tasks.base import BaseTask, ProgressHandle


class Place(BaseModel):
    name: str
    people: int = Field(ge=1)


class Greet(BaseTask):
    startable = True

    def execute(
        self,
        progress: ProgressHandle,
        place: Place,
        day: date | None = None,
        token: SecretStr | None = None,
    ) -> str:
        return f"Hello, {place.name}"


class Anything(BaseTask):
    """Takes any JSON value."""

    startable = True

    def execute(self, progress: ProgressHandle, value: object = None) -> object:
        return value


class Reserved(BaseTask):
    """Can be started with the permission to change workers."""

    startable = True
    start_permission = "tasks_app.change_worker"

    def execute(self, progress: ProgressHandle) -> None:
        pass


class Closed(BaseTask):
    def execute(self, progress: ProgressHandle) -> None:
        pass


class Ping(BaseTask):
    startable = True

    def execute(self, progress: ProgressHandle) -> None:
        pass
