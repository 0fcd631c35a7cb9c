"""Refusals when a task class is defined, or when something else is started."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from tasks_app.exceptions import InvalidTask, UnknownTask
from tasks_app.tasks.base import BaseTask, ProgressHandle, task_class
from tests.tasks import Add, Noop, Order


def declared(**namespace: Any) -> type[BaseTask]:
    return type("Made", (BaseTask,), namespace)


def refusal(**namespace: Any) -> str:
    with pytest.raises(InvalidTask) as caught:
        declared(**namespace)
    return str(caught.value)


# Options.


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("max_attempt", 3, "max_attempts"),
        ("MAX_ATTEMPTS", 3, "max_attempts"),
        ("time_out", None, "timeout"),
        ("prority", 1, "priority"),
        ("queues", "mails", "queue"),
        ("interruptable", False, "interruptible"),
        ("restart_on_shut_down", False, "restart_on_shutdown"),
        ("params", Order, "Params"),
        ("Results", Order, "Result"),
    ],
)
def test_misspelled_option_is_refused(name: str, value: Any, meant: str) -> None:
    assert refusal(**{name: value}) == (
        f"Made has no option {name!r}. Did you mean {meant!r}? "
        f"If it is something else, rename it, or let its name start with _."
    )


def test_misspelled_option_of_a_mixin_is_refused() -> None:
    class Patient:
        max_attempt = 3

    with pytest.raises(InvalidTask, match="Made has no option 'max_attempt'"):
        type("Made", (Patient, BaseTask), {})
    Patient.__module__ = "somebody_elses"
    type("Made", (Patient, BaseTask), {})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("startable", "no", "True or False"),
        ("interruptible", None, "True or False"),
        ("restart_on_shutdown", 0, "True or False"),
        ("Params", dict, "a Pydantic model"),
        ("execute", 5, "a method: execute(self, progress, …)"),
    ],
)
def test_option_of_another_type_is_refused(name: str, value: Any, rule: str) -> None:
    assert refusal(**{name: value}) == f"Made.{name} must be {rule}, not {value!r}."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 3),
        ("queues", ["a", "b"]),
        ("result", None),
        ("params", {"a": 1}),
        ("_max_attempt", 3),
        ("executes", lambda self: None),
    ],
)
def test_other_attributes_are_allowed(name: str, value: Any) -> None:
    assert vars(declared(execute=Add.execute, **{name: value}))[name] is value


@pytest.mark.parametrize("option", ["retry_on", "no_retry_on"])
@pytest.mark.parametrize("wrong", [[OSError], "OSError", (OSError(),), (int,)])
def test_retry_errors_must_be_exception_classes(option: str, wrong: Any) -> None:
    """Anything else would raise in the worker after the task has failed."""
    assert refusal(**{option: wrong}).startswith(
        f"Made.{option} must be a tuple of exception classes, such as (OSError,), not "
    )


def test_single_exception_class_is_allowed() -> None:
    assert declared(retry_on=OSError).retry_on is OSError


# Execute.


async def _async(self: object, progress: ProgressHandle) -> None: ...


TAKES = "Made.execute must take progress first: execute(self, progress, …), not execute"


@pytest.mark.parametrize(
    ("execute", "message"),
    [
        (_async, "Made.execute is async, and tasks run in threads. Write a plain function; call "
                 "async code by asgiref.sync.async_to_sync."),
        (lambda self: None, f"{TAKES}(self)."),
        (lambda self, number: None, f"{TAKES}(self, number)."),
        (lambda self, *, progress: None, f"{TAKES}(self, *, progress)."),
        (lambda self, **params: None, f"{TAKES}(self, **params)."),
        (staticmethod(lambda progress: None), "Made.execute must be a plain method: "
                                              "execute(self, progress, …), not a staticmethod."),
    ],
)  # fmt: skip
def test_execute_that_no_worker_could_call_is_refused(execute: Any, message: str) -> None:
    assert refusal(execute=execute) == message


def _typed(self: object, handle: ProgressHandle) -> None: ...
def _typed_in_words(self: object, handle: "ProgressHandle | None") -> None: ...  # noqa: UP037


@pytest.mark.parametrize(
    "execute",
    [_typed, _typed_in_words, lambda self, _: None, lambda self, _progress: None],
)
def test_progress_is_recognized_by_name_or_type(execute: Any) -> None:
    assert declared(execute=execute).params_model().model_fields == {}


def test_misspelled_execute_is_refused() -> None:
    assert "Made has no option 'excute'. Did you mean 'execute'?" in refusal(
        excute=lambda self, progress: None
    )


def wrapped(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate without functools.wraps, which hides the signature."""
    return lambda *args, **kwargs: execute(*args, **kwargs)


def test_wrapper_that_hides_parameters_needs_a_model() -> None:
    hidden = declared(execute=wrapped(Add.execute))
    with pytest.raises(InvalidTask, match=r"^Made\.execute takes \*args, which declares nothing"):
        hidden.params_model()
    with_model = declared(execute=wrapped(lambda self, progress, **params: params), Params=Order)
    assert with_model().run(ProgressHandle(), {"number": 1}) == {"number": 1, "kind": "import"}
    honest = declared(execute=functools.wraps(Add.execute)(wrapped(Add.execute)))
    assert list(honest.params_model().model_fields) == ["a", "b"]


# Arguments of a start.


def test_class_and_its_path_are_accepted() -> None:
    assert task_class(Add) is Add
    assert task_class("tests.tasks.Add") is Add


class Lookalike:
    """A stand-in for a task of django.tasks, which Django 5.2 lacks."""


Lookalike.__module__ = "django.tasks.base"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (Noop(), "Give the class Noop, and its parameters separately."),
        (Lookalike(), "Start a task of django.tasks by its own enqueue()."),
        (Order, "Derive Order from tasks_app.BaseTask."),
        (wrapped, "Write a class with a method execute(self, progress, …) that calls it."),
        (Add.execute, "Write a class with a method execute(self, progress, …) that calls it."),
        (None, "Give a subclass of BaseTask, or its dotted path."),
    ],
)
def test_refusal_says_what_to_pass_instead(given: Any, remedy: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        task_class(given)
    assert str(caught.value) == f"{given!r} is not a task class. {remedy}"


def test_path_to_something_else_is_unknown() -> None:
    with pytest.raises(UnknownTask):
        task_class("tests.tasks.Order")


def test_class_in_a_script_has_no_name() -> None:
    """In a worker, `__main__` is another module."""
    task = declared(execute=Noop.execute, __module__="__main__")
    with pytest.raises(InvalidTask) as caught:
        task.name()
    assert str(caught.value) == (
        "Made is in the script that is running (__main__), which is a different one in a worker. "
        "Move it to a module that a worker can import."
    )


class _Fields(BaseModel):
    a: int


def test_base_class_may_lack_execute() -> None:
    base = declared(Params=_Fields)
    assert base.params_model() is _Fields
    assert declared().params_model().model_fields == {}
