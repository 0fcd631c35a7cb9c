"""All words that the pages' scripts show. They are translated only here.

The server uses the same words when it renders a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

from tasks_app.states import Status

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

#: The words of bars and of lists of tasks.
WORDS: Mapping[str, str | _StrPromise] = {
    "waiting": _("Waiting to start"),
    "waiting_until": _("Waiting until {time}"),
    "retry_at": _("Attempt {attempt} of {max_attempts} failed, trying again at {time}"),
    "running": _("Running"),
    "running_again": _("Running, attempt {attempt} of {max_attempts}"),
    "cancelling": _("Cancelling…"),
    "completed": _("Completed"),
    "failed": _("Failed"),
    "cancelled": _("Cancelled"),
    "percent": _("{percent}%"),
    "attempts": _("Attempt {attempt} of {max_attempts}"),
    "took": _("took {duration}"),
    "left_days": _("about {count} d left"),
    "left_hours": _("about {count} h left"),
    "left_minutes": _("about {count} min left"),
    "left_seconds": _("about {count} s left"),
    "stalled": _("no progress for {duration}"),
    "days": _("{days} d {hours} h"),
    "hours": _("{hours} h {minutes} min"),
    "minutes": _("{minutes} min {seconds} s"),
    "seconds": _("{seconds} s"),
    "interrupted": _("Live updates are interrupted. Checking every few seconds…"),
    "lost": _("Connection lost. Trying again…"),
    "polled": _("Updates every few seconds."),
    "gone": _("No more updates: the task was deleted, or you were signed out. Reload the page."),
    "denied": _("Live updates stopped: you may have been signed out. Reload the page."),
    "cancel_sure": _("Cancel this task?"),
    "cancel_refused": _("You don't have permission to cancel this task."),
    "cancel_failed": _("The task could not be cancelled. Try again."),
    "new_task": _("New task: {label}"),
    "new_tasks": _("There are new tasks. Reload the page to see them."),
}

#: The state of a page's connection and its troubles, by the names that live.js gives them.
CONNECTION_WORDS: Mapping[str, str | _StrPromise] = {
    "live": _("Live"),
    "polling": WORDS["polled"],
    "paused": _("Paused"),
    "interrupted": WORDS["interrupted"],
    "lost": WORDS["lost"],
    "denied": WORDS["denied"],
}

#: The words of the admin's list.
LIST_WORDS: Mapping[str, str | _StrPromise] = {
    **WORDS,
    **CONNECTION_WORDS,
    **{f"is_{status.value}": status.label for status in Status},
    "starts_in": _("starts in {duration}"),
    "attempt_of": _("{attempt} of {max_attempts}"),
    "removed": _("Deleted"),
    "new_one": _("Show 1 new task"),
    # The script chooses between these, because it has no plural forms.
    "new_some": _("Show {count} new tasks"),
    "new_many": _("Show {count} or more new tasks"),
    "refused": _("Couldn't do that: {reason}"),
    "forbidden": _("you don't have permission, or you've signed in again. Reload the page."),
    "gone_now": _("the task no longer exists."),
    "no_answer": _("unexpected server response. Check the task and try again."),
    "news": _("{label}: {state}"),
}
