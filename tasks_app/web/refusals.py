"""Reasons why something could not be done to a task, in words for people."""

from __future__ import annotations

from inspect import cleandoc

from django.utils.translation import gettext as _

from tasks_app.exceptions import (
    AlreadyRetried,
    DuplicateTask,
    IllegalTransition,
    TaskError,
    TaskNotFound,
    TaskProtected,
    UnknownTask,
)
from tasks_app.states import Status


def reason(error: type[TaskError], status: Status | None) -> str:
    """Return the reason why something could not be done to a task."""
    if issubclass(error, AlreadyRetried):
        return _("already retried")
    if issubclass(error, IllegalTransition) and status is not None:
        word = {"status": str(status.label).lower()}
        return (_("already %(status)s") if status.is_terminal else _("still %(status)s")) % word
    if issubclass(error, DuplicateTask):
        return _("another task with its unique key has not finished")
    if issubclass(error, TaskProtected):
        return _("other records refer to it")
    if issubclass(error, UnknownTask):
        return _("its task class no longer exists")
    if issubclass(error, TaskNotFound):
        return _("the task no longer exists")
    # An error of the site's own service: use its docstring, which the site may translate.
    doc = cleandoc(error.__doc__ or error.__name__)
    return _(doc.partition("\n")[0]).rstrip(".")


def why(error: TaskError) -> str:
    """Return the reason for one task's error."""
    return reason(type(error), error.status if isinstance(error, IllegalTransition) else None)


def sentence(error: TaskError) -> str:
    return _("Couldn't do that: %(reason)s.") % {"reason": why(error)}
