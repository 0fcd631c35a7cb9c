"""Facts read a bounded number of bytes at a time, so that they do not fill the memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Length

from tasks_app.models import TaskEvent

#: About how many bytes of facts a viewer, or the relay, has in memory at a time. One fact may be
#: larger.
PAGE_BYTES = 65_536
#: How many sizes are read ahead.
SIZES_MAX = 500
#: This many facts are read together, whatever their size: no fact has much more than JSON_MAX.
FEW = 4

#: What a fact takes beside its data.
ENVELOPE_BYTES = 256
#: The size of a fact, by which pages are cut before their rows are read.
SIZE = Length(Cast("data", TextField())) + ENVELOPE_BYTES

Key = TypeVar("Key")


def pages(facts: QuerySet[TaskEvent]) -> Iterator[list[TaskEvent]]:
    """Read facts by their ids, one page at each step. Between two steps only that page is kept."""
    last = 0
    while True:
        sizes = list(facts.filter(id__gt=last).order_by("id").values_list("pk", SIZE)[:SIZES_MAX])
        for ids in in_pages(sizes):
            yield _read(ids)
        if len(sizes) < SIZES_MAX:
            return
        last = sizes[-1][0]


def pages_of(ids: Collection[int]) -> Iterator[list[TaskEvent]]:
    """Read the facts that have these ids as `pages` does. A few are read in one query."""
    rest = sorted(ids)
    while rest:
        some, rest = rest[:SIZES_MAX], rest[SIZES_MAX:]
        if len(some) <= FEW:
            yield _read(some)
        else:
            sizes = TaskEvent.primary.filter(pk__in=some).order_by("id").values_list("pk", SIZE)
            yield from map(_read, in_pages(sizes))


def _read(ids: Collection[int]) -> list[TaskEvent]:
    # A fact that is missing was deleted in between, and its task with it.
    return list(TaskEvent.primary.filter(pk__in=ids).order_by("id"))


def in_pages(sizes: Iterable[tuple[Key, int]]) -> Iterator[list[Key]]:
    """Group keys so that their sizes make at most a page; a larger one stands alone."""
    page: list[Key] = []
    total = 0
    for key, size in sizes:
        if page and total + size > PAGE_BYTES:
            yield page
            page, total = [], 0
        page.append(key)
        total += size
    if page:
        yield page


def pieces(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Join messages into pieces of about a page."""
    for page in in_pages((message, len(message)) for message in messages):
        yield b"".join(page)
