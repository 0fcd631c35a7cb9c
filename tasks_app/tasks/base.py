"""The base class of tasks, for their authors."""

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

from tasks_app.exceptions import InvalidParams, InvalidResult, InvalidTask, UnknownTask
from tasks_app.schemas import NAME_MAX
from tasks_app.tasks.declaration import (
    buildable,
    check_errors,
    check_execute,
    check_names,
    check_values,
    hints_of,
    model_from_signature,
)
from tasks_app.tasks.imports import in_turn
from tasks_app.tasks.progress import ProgressHandle
from tasks_app.tasks.stored_json import check_json, dump, read_back

__all__ = ["BaseTask", "ProgressHandle", "resolve"]


class Unset:
    """Marks an option that was not given, because None is a valid value."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


class BaseTask:
    """A unit of background work. Subclass it, write `execute`, and start it by `task_service`.

    The parameters are the arguments of `execute` after `progress`. Their annotations become a
    Pydantic model; or set `Params` to a model of your own. The same holds for the result: use the
    return annotation, or `Result`. A worker imports the class by its dotted path, so it must be at
    the top level of a module. The worker creates a new instance for each attempt.
    """

    #: The parameters, if a signature cannot express them.
    Params: ClassVar[type[BaseModel] | None] = None
    #: The result: a Pydantic model or any other type Pydantic can validate.
    Result: ClassVar[Any] = None

    #: The name that people read. Without one, it is made from the class name.
    verbose_name: ClassVar[str] = ""
    #: The message for the owner when a run fails, unless the error has its own. The error's type,
    #: message and traceback are for staff.
    public_error: ClassVar[str] = ""
    queue: ClassVar[str] = "default"
    #: Higher runs first.
    priority: ClassVar[int] = 0
    #: Seconds an attempt may run. Default: TASK_TIMEOUT_SECONDS. None means no limit.
    timeout: ClassVar[float | Unset | None] = UNSET
    #: The number of attempts. If more than 1, it must be safe to run again after half a run.
    max_attempts: ClassVar[int] = 1
    #: Errors after which another attempt follows, if one is left. TaskTimedOut is included only if
    #: it is named. Invalid parameters and results are never included.
    retry_on: ClassVar[tuple[type[BaseException], ...]] = (Exception,)
    #: Exceptions to `retry_on`: no attempt follows these errors.
    no_retry_on: ClassVar[tuple[type[BaseException], ...]] = ()
    #: If True, an exception may be raised anywhere in its code, once it was asked to stop and makes
    #: no progress call. If False, such a run is abandoned, and its thread with it.
    interruptible: ClassVar[bool] = True
    #: If True, it may be started over HTTP, from the admin and the API, with this permission.
    startable: ClassVar[bool] = False
    start_permission: ClassVar[str] = "tasks_app.start_task"
    #: If True, a run that a worker's shutdown cuts short is released and starts again on another
    #: worker. If False, it fails: choose this if half a run followed by a whole one does harm.
    restart_on_shutdown: ClassVar[bool] = True

    _progress: ProgressHandle | None = None

    if TYPE_CHECKING:
        # Each task has its own parameters, which a type checker would report as a wrong override.
        execute: Callable[..., Any]
    else:

        def execute(self, progress: ProgressHandle, /, **params: Any) -> Any:
            """Do the work and return its result."""
            raise NotImplementedError(f"{type(self).__name__} must define execute()")

    @property
    def is_cancelled(self) -> bool:
        """True if this run must stop: cancelled, timed out, or taken by another worker."""
        return self._progress is not None and self._progress.is_cancelled

    def run(self, progress: ProgressHandle, params: Mapping[str, Any]) -> Any:
        """Validate, execute, validate; return the result as JSON-able data.

        Raises InvalidParams and InvalidResult, and what `execute` raises.
        """
        self._progress = progress
        try:
            # Validate JSON, as the row holds it: a strict model takes a date from JSON only.
            model = self.params_model().model_validate_json(json.dumps(params))
        except ValidationError as error:
            # Drop the cause, which quotes the values: they may be secret.
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
        # Not inherited: a child does not get its parent's name.
        if "verbose_name" not in declared:
            cls.verbose_name = camel_case_to_spaces(cls.__name__).capitalize()

    @classmethod
    def _is_own(cls, base: type) -> bool:
        """Return whether a base is the class itself or a mixin of its package, open to renaming."""
        package = base.__module__.partition(".")[0] == cls.__module__.partition(".")[0]
        return base is cls or (package and not issubclass(base, BaseTask))

    @classmethod
    def name(cls) -> str:
        """Return the dotted path by which a worker finds the class.

        Raises InvalidTask if there is none, because the class is in a script, a function or another
        class, or if the path is longer than its column.
        """
        if cls.__module__ == "__main__":
            raise InvalidTask(
                f"{cls.__qualname__} is in the script that is running (__main__), which is a "
                f"different one in a worker. Move it to a module that a worker can import."
            )
        if "." in cls.__qualname__:
            raise InvalidTask(
                f"{cls.__qualname__} is not at the top level of {cls.__module__}, "
                f"so a worker could not import it. Move it there."
            )
        name = f"{cls.__module__}.{cls.__qualname__}"
        if len(name) > NAME_MAX:
            raise InvalidTask(
                f"{name} has {len(name)} characters; a task's dotted path has at most {NAME_MAX}. "
                f"Rename it, or move it to a module with a shorter path."
            )
        return name

    @classmethod
    @cache
    def params_model(cls) -> type[BaseModel]:
        """Return the Pydantic model of the parameters. Raises InvalidTask if it cannot be built."""
        with buildable(f"The parameters of {cls.__name__}"):
            if cls.execute is BaseTask.execute:
                return cls.Params or create_model(
                    f"{cls.__name__}Params", __config__=ConfigDict(extra="forbid")
                )
            if cls.Params is None:
                return model_from_signature(cls.__name__, cls.execute)
            cls.Params.model_rebuild()  # Does nothing unless the model still lacks a type.
            return cls.Params

    @classmethod
    @cache
    def result_type(cls) -> TypeAdapter[Any]:
        """Return the validator of the result. Raises InvalidTask if it cannot be built."""
        with buildable(f"The result of {cls.__name__}"):
            if cls.Result is not None:
                return TypeAdapter(cls.Result)
            return TypeAdapter(hints_of(cls.__name__, cls.execute).get("return", Any))

    @classmethod
    def validate_params(cls, params: Mapping[str, Any] | BaseModel | None) -> dict[str, Any]:
        """Return the parameters as the JSON data that the row keeps.

        Secrets are revealed, because the worker needs them. Raises InvalidParams with each field
        that is invalid, or that the worker would read back as something else.
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
            # Pydantic dumps a set of models as a set of dicts, and then raises TypeError.
            raise InvalidParams(cls.__name__, [{"loc": (), "msg": str(error)}]) from error
        if faults := read_back(model, schema, text):
            raise InvalidParams(cls.__name__, faults)
        return cast(dict[str, Any], data)

    @classmethod
    def validate_result(cls, result: Any) -> Any:
        """Return the result as JSON data. Raises InvalidResult."""
        try:
            adapter = cls.result_type()
            data = to_jsonable_python(adapter.validate_python(result))
            check_json(data)
        except ValidationError as error:
            raise InvalidResult(cls.__name__, error.errors()) from None
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidResult(cls.__name__, [{"loc": (), "msg": str(error)}]) from error
        return data


#: The allowed types of each option's value.
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
        return params  # Reading it back validates it, since it may have changed after validation.
    if isinstance(params, BaseModel):
        params = params.model_dump(by_alias=True, round_trip=True)
    return schema.model_validate(params)


def resolve(name: str) -> type[BaseTask]:
    """Import a task class by its dotted path. Raises UnknownTask, with what was found instead."""
    try:
        with in_turn(name.rpartition(".")[0]):
            found = import_string(name)
    except (Exception, SystemExit) as error:
        # Importing a module runs its code, which may raise anything, also SystemExit.
        raise UnknownTask(name, str(error) or type(error).__name__) from error
    if not (isinstance(found, type) and issubclass(found, BaseTask)):
        raise UnknownTask(name, f"it is a {type(found).__name__!r}, not a subclass of BaseTask")
    return found


def task_class(task: object) -> type[BaseTask]:
    """Return the task class, given as a class or as its dotted path.

    Raises UnknownTask if the path leads to no task class, and InvalidTask for anything else, with
    what to give instead.
    """
    if isinstance(task, str):
        return resolve(task)
    if isinstance(task, type) and issubclass(task, BaseTask):
        return task
    if isinstance(task, BaseTask):
        remedy = f"Give the class {type(task).__name__}, and its parameters separately."
    elif type(task).__module__.partition(".")[0] == "django":
        remedy = "Start a task of django.tasks by its own enqueue()."
    elif isinstance(task, type):
        remedy = f"Derive {task.__name__} from tasks_app.BaseTask."
    elif callable(task):
        remedy = "Write a class with a method execute(self, progress, …) that calls it."
    else:
        remedy = "Give a subclass of BaseTask, or its dotted path."
    raise InvalidTask(f"{task!r} is not a task class. {remedy}")
