"""The declaration of a task class: options, `execute`, parameters; and checks of it."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.errors import PydanticErrorMixin, PydanticSchemaGenerationError

from tasks_app.exceptions import InvalidTask

#: The similarity to an option's name, from 0 to 1, at which a name counts as a misspelling.
ALIKE = 0.85
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_names(owner: str, namespace: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise InvalidTask for an attribute that looks like a misspelled option.

    `options` maps each option to the types of its value. Only a value of such a type counts as a
    misspelling.
    """
    by_lower = {name.lower(): name for name in options}
    for name, value in namespace.items():
        if name.startswith("_") or name in options:
            continue
        for near in difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=ALIKE):
            if isinstance(value, options[by_lower[near]]):
                raise InvalidTask(
                    f"{owner} has no option {name!r}. Did you mean {by_lower[near]!r}? "
                    f"If it is something else, rename it, or let its name start with _."
                )


def check_values(owner: str, namespace: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise InvalidTask for a value that would silently mean something else, such as "no"."""
    for name in options.keys() & namespace.keys():
        value = namespace[name]
        if options[name] is bool and not isinstance(value, bool):
            raise InvalidTask(f"{owner}.{name} must be True or False, not {value!r}.")
    model = namespace.get("Params")
    if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise InvalidTask(f"{owner}.Params must be a Pydantic model, not {model!r}.")


def check_errors(owner: str, option: str, kinds: Any) -> None:
    """Raise InvalidTask unless these are exception classes."""
    alone = kinds if isinstance(kinds, tuple) else (kinds,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in alone):
        raise InvalidTask(
            f"{owner}.{option} must be a tuple of exception classes, such as (OSError,), "
            f"not {kinds!r}."
        )


def check_execute(owner: str, execute: Any) -> None:
    """Raise InvalidTask for an `execute` that a thread cannot call with a progress handle."""
    if isinstance(execute, (staticmethod, classmethod)):
        raise InvalidTask(
            f"{owner}.execute must be a plain method: execute(self, progress, …), "
            f"not a {type(execute).__name__}."
        )
    if not (callable(execute) or hasattr(execute, "__get__")):
        raise InvalidTask(
            f"{owner}.execute must be a method: execute(self, progress, …), not {execute!r}."
        )
    if inspect.iscoroutinefunction(execute):
        raise InvalidTask(
            f"{owner}.execute is async, and tasks run in threads. "
            f"Write a plain function; call async code by asgiref.sync.async_to_sync."
        )
    if inspect.isfunction(execute) and not _takes_progress(execute):
        raise InvalidTask(
            f"{owner}.execute must take progress first: execute(self, progress, …), "
            f"not execute{inspect.signature(execute)}."
        )


def _takes_progress(execute: Callable[..., Any]) -> bool:
    """Return whether the first argument after `self` is the progress handle, by name or type."""
    first, *others = inspect.signature(execute).parameters.values()
    if first.kind in _VARIADIC:
        return True  # A decorator's wrapper; see `model_from_signature`.
    progress = others[0] if others else None
    if progress is None or progress.kind is inspect.Parameter.KEYWORD_ONLY:
        return False
    if progress.kind in _VARIADIC:
        return progress.kind is inspect.Parameter.VAR_POSITIONAL
    annotation = progress.annotation
    named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return progress.name.strip("_") in ("", "progress") or "ProgressHandle" in named


@contextmanager
def buildable(what: str) -> Iterator[None]:
    """Raise InvalidTask for any error while a model, a schema or a form is built.

    Each type's own code takes part and may raise anything: Pydantic's EmailStr raises ImportError
    if email-validator is not installed.
    """
    try:
        yield
    except InvalidTask:
        raise
    except Exception as error:
        why = error.message if isinstance(error, PydanticErrorMixin) else str(error)
        raise InvalidTask(f"{what} cannot be read: {why or type(error).__name__}") from error


def hints_of(owner: str, execute: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(execute, include_extras=True)
    except NameError as error:
        raise InvalidTask(
            f"An annotation of {owner}.execute cannot be read: {error}. "
            f"Import the name at run time, not only under TYPE_CHECKING."
        ) from error


def check_fields(owner: str, execute: Callable[..., Any], model: type[BaseModel]) -> None:
    """Raise InvalidTask if `execute` does not take the fields of a model."""
    try:
        inspect.signature(execute).bind(None, None, **dict.fromkeys(model.model_fields))
    except TypeError as error:
        raise InvalidTask(
            f"{owner}.execute does not take the fields of {model.__name__}: {error}. "
            f"Name each of them, or take them all as **params."
        ) from error


def model_from_signature(owner: str, execute: Callable[..., Any]) -> type[BaseModel]:
    """Return a model of the parameters that follow progress. Raises InvalidTask."""
    fields: dict[str, Any] = {}
    hints = hints_of(owner, execute)
    for place, parameter in enumerate(inspect.signature(execute).parameters.values()):
        if parameter.kind in _VARIADIC:
            raise InvalidTask(
                f"{owner}.execute takes {parameter}, which declares nothing. "
                f"Name each parameter with its type, or set Params to a Pydantic model."
            )
        if place < 2:
            continue  # self and progress
        if parameter.name.startswith("_"):
            raise InvalidTask(
                f"{owner}.execute takes {parameter.name}, but Pydantic allows no names that start "
                f"with an underscore. Rename it."
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    try:
        with warnings.catch_warnings():
            # Pydantic warns of parameters named as its methods are, such as `copy` or `json`.
            warnings.simplefilter("ignore", UserWarning)
            return create_model(f"{owner}Params", __config__=ConfigDict(extra="forbid"), **fields)
    except PydanticSchemaGenerationError as error:
        raise InvalidTask(
            f"A parameter of {owner}.execute has a type that Pydantic does not know: "
            f"{error.message}"
        ) from error
