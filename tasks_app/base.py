"""What task authors write against."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.utils.module_loading import import_string
from django.utils.text import camel_case_to_spaces
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_jsonable_python

from tasks_app.declaration import (
    buildable,
    check_errors,
    check_execute,
    check_names,
    check_values,
    hints_of,
    model_from_signature,
)
from tasks_app.exceptions import InvalidParams, InvalidResult, InvalidTask, UnknownTask
from tasks_app.imports import in_turn
from tasks_app.progress import ProgressHandle
from tasks_app.schemas import NAME_MAX
from tasks_app.stored_json import check_json, dump, read_back

__all__ = ["BaseTask", "ProgressHandle", "resolve"]


class Unset:
    """Marks an option that was not given, where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


class BaseTask:
    """A unit of background work. Subclass it, write `execute`, start it by `task_service`.

    Parameters are what `execute` takes after `progress`: its annotations are made into a Pydantic
    model, or name one of your own in `Params`. The same goes for the result: the return
    annotation, or `Result`. A worker imports the class by its dotted path, so it must stand at the
    top level of a module, and makes a new instance for each attempt.
    """

    #: The parameters, where a signature cannot say it all.
    Params: ClassVar[type[BaseModel] | None] = None
    #: The result: a Pydantic model or any other type Pydantic can validate.
    Result: ClassVar[Any] = None

    #: What people read; made from the class name when unset.
    verbose_name: ClassVar[str] = ""
    #: What the owner reads when a run fails, unless the error has words of its own for them. The
    #: error's type, message and traceback are for staff.
    public_error: ClassVar[str] = ""
    queue: ClassVar[str] = "default"
    #: Higher runs first.
    priority: ClassVar[int] = 0
    #: Seconds an attempt may run: TASK_TIMEOUT_SECONDS when unset, without limit when None.
    timeout: ClassVar[float | Unset | None] = UNSET
    #: How often it may be begun. Above 1 it must be safe to run again after half a run.
    max_attempts: ClassVar[int] = 1
    #: After which errors another attempt follows, where there is one left. TaskTimedOut is none of
    #: them unless it is named, and wrong parameters and results never are.
    retry_on: ClassVar[tuple[type[BaseException], ...]] = (Exception,)
    #: After which of them none does.
    no_retry_on: ClassVar[tuple[type[BaseException], ...]] = ()
    #: Whether an exception may be raised anywhere in its code, where it was told to stop and does
    #: not call in. Off: such a run is given up instead, and its thread with it.
    interruptible: ClassVar[bool] = True
    #: Whether it may be started over HTTP, from the admin and the API, and the permission to do so.
    startable: ClassVar[bool] = False
    start_permission: ClassVar[str] = "tasks_app.start_task"
    #: What becomes of a run that a worker's shutdown cuts short: released, to begin anew on another
    #: worker, or failed where half a run followed by a whole one would do harm.
    restart_on_shutdown: ClassVar[bool] = True

    _progress: ProgressHandle | None = None

    if TYPE_CHECKING:
        # Every task has parameters of its own, which a checker would take for a wrong override.
        execute: Callable[..., Any]
    else:

        def execute(self, progress: ProgressHandle, /, **params: Any) -> Any:
            """Do the work and return its result."""
            raise NotImplementedError(f"{type(self).__name__} must define execute()")

    @property
    def is_cancelled(self) -> bool:
        """Whether this run must stop: cancelled, out of time, or taken by another worker."""
        return self._progress is not None and self._progress.is_cancelled

    def run(self, progress: ProgressHandle, params: Mapping[str, Any]) -> Any:
        """Validate, execute, validate; return the result as JSON-able data.

        Raises InvalidParams and InvalidResult, and what `execute` raises.
        """
        self._progress = progress
        try:
            # As JSON, which the row holds: a strict model takes a date from it, not from a str.
            model = self.params_model().model_validate_json(json.dumps(params))
        except ValidationError as error:
            # Without its cause, which quotes what was given: secrets, too.
            raise InvalidParams(type(self).__name__, error.errors()) from None
        arguments = {name: getattr(model, name) for name in type(model).model_fields}
        arguments |= model.model_extra or {}
        return self.validate_result(self.execute(progress, **arguments))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = cls.__dict__
        names = {"execute": FunctionType} if cls.execute is BaseTask.execute else {}
        for base in filter(cls._is_own, cls.__mro__):
            check_names(cls.__name__, vars(base), _OPTIONS | names)
            check_values(cls.__name__, vars(base), _OPTIONS)
        for option in _OF_ERRORS & declared.keys():
            check_errors(cls.__name__, option, declared[option])
        if "execute" in declared:
            check_execute(cls.__name__, declared["execute"])
        # Of its own name: what a parent is called, its children are not.
        if "verbose_name" not in declared:
            cls.verbose_name = camel_case_to_spaces(cls.__name__).capitalize()

    @classmethod
    def _is_own(cls, base: type) -> bool:
        """Whether it is the class itself or a mixin of the same package, which can be renamed."""
        package = base.__module__.partition(".")[0] == cls.__module__.partition(".")[0]
        return base is cls or (package and not issubclass(base, BaseTask))

    @classmethod
    def name(cls) -> str:
        """The dotted path by which a worker finds the class.

        Raises InvalidTask where there is none: a class of a script, or inside a function or another
        class; and for one longer than the column that holds it.
        """
        if cls.__module__ == "__main__":
            raise InvalidTask(
                f"{cls.__qualname__} is in the script that is running (__main__), which is another "
                f"one in a worker. Move it to a module that a worker can import."
            )
        if "." in cls.__qualname__:
            raise InvalidTask(
                f"{cls.__qualname__} is not at the top level of {cls.__module__}, "
                f"so a worker could not import it. Move it there."
            )
        name = f"{cls.__module__}.{cls.__qualname__}"
        if len(name) > NAME_MAX:
            raise InvalidTask(
                f"{name} has {len(name)} characters, and a task's dotted path may have {NAME_MAX}. "
                f"Rename it, or move it to a module with a shorter path."
            )
        return name

    @classmethod
    @cache
    def params_model(cls) -> type[BaseModel]:
        """The Pydantic model of the parameters. Raises InvalidTask if it cannot be built."""
        with buildable(f"The parameters of {cls.__name__}"):
            if cls.execute is BaseTask.execute:
                return cls.Params or create_model(
                    f"{cls.__name__}Params", __config__=ConfigDict(extra="forbid")
                )
            if cls.Params is None:
                return model_from_signature(cls.__name__, cls.execute)
            cls.Params.model_rebuild()  # Does nothing, unless the model still waits for a type.
            return cls.Params

    @classmethod
    @cache
    def result_type(cls) -> TypeAdapter[Any]:
        """What validates the result. Raises InvalidTask if it cannot be built."""
        with buildable(f"The result of {cls.__name__}"):
            if cls.Result is not None:
                return TypeAdapter(cls.Result)
            return TypeAdapter(hints_of(cls.__name__, cls.execute).get("return", Any))

    @classmethod
    def validate_params(cls, params: Mapping[str, Any] | BaseModel | None) -> dict[str, Any]:
        """Return the parameters as the JSON-able data that the row keeps.

        Secrets are revealed: the worker needs them. Raises InvalidParams, naming each field that is
        wrong, or that the worker would not read as it was given.
        """
        schema = cls.params_model()
        try:
            model = _model_of(schema, {} if params is None else params)
        except ValidationError as error:
            raise InvalidParams(cls.__name__, error.errors()) from None
        try:
            data = dump(model)
            text = check_json(data)
        except (PydanticSerializationError, TypeError, ValueError) as error:
            # Pydantic raises TypeError for a set of models, which it would dump as a set of dicts.
            raise InvalidParams(cls.__name__, [{"loc": (), "msg": str(error)}]) from error
        if faults := read_back(model, schema, text):
            raise InvalidParams(cls.__name__, faults)
        return cast(dict[str, Any], data)

    @classmethod
    def validate_result(cls, result: Any) -> Any:
        """Return the result as JSON-able data. Raises InvalidResult."""
        try:
            adapter = cls.result_type()
            data = to_jsonable_python(adapter.validate_python(result))
            check_json(data)
        except ValidationError as error:
            raise InvalidResult(cls.__name__, error.errors()) from None
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidResult(cls.__name__, [{"loc": (), "msg": str(error)}]) from error
        return data


#: The types that the value of an option has.
_OPTIONS: dict[str, Any] = {
    "verbose_name": str,
    "public_error": str,
    "queue": str,
    "priority": int,
    "timeout": (int, float, type(None)),
    "max_attempts": int,
    "retry_on": (tuple, type),
    "no_retry_on": (tuple, type),
    "interruptible": bool,
    "startable": bool,
    "start_permission": str,
    "restart_on_shutdown": bool,
    "Params": type,
    "Result": type,
}
_OF_ERRORS = {"retry_on", "no_retry_on"}


def _model_of(schema: type[BaseModel], params: Mapping[str, Any] | BaseModel) -> BaseModel:
    if isinstance(params, schema):
        return params  # It may have been changed since it was made: reading it back validates it.
    if isinstance(params, BaseModel):
        params = params.model_dump(by_alias=True, round_trip=True)
    return schema.model_validate(params)


def resolve(name: str) -> type[BaseTask]:
    """Import a task class by its dotted path. Raises UnknownTask, saying what was found instead."""
    try:
        with in_turn(name.rpartition(".")[0]):
            found = import_string(name)
    except (Exception, SystemExit) as error:
        # Its module may do anything when it is imported, and end a script.
        raise UnknownTask(name, str(error) or type(error).__name__) from error
    if not (isinstance(found, type) and issubclass(found, BaseTask)):
        raise UnknownTask(name, f"it is {type(found).__name__!r} and no subclass of BaseTask")
    return found


def task_class(task: object) -> type[BaseTask]:
    """Return the task class that was given as itself or as its dotted path.

    Raises UnknownTask for a path that leads to none, and InvalidTask for anything else, saying what
    to give instead.
    """
    if isinstance(task, str):
        return resolve(task)
    if isinstance(task, type) and issubclass(task, BaseTask):
        return task
    if isinstance(task, BaseTask):
        remedy = f"Give the class, {type(task).__name__}, and its parameters beside it."
    elif type(task).__module__.partition(".")[0] == "django":
        remedy = "A task of django.tasks is started by its own enqueue()."
    elif isinstance(task, type):
        remedy = f"Derive {task.__name__} from tasks_app.base.BaseTask."
    elif callable(task):
        remedy = "Write a class with a method execute(self, progress, …) that calls it."
    else:
        remedy = "Give a subclass of BaseTask, or its dotted path."
    raise InvalidTask(f"{task!r} is no task class. {remedy}")
