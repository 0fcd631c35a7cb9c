"""Reading facts in pages of a bounded number of bytes, so that they do not fill the memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Length

from tasks_app.models import TaskEvent

#: The approximate bytes of facts that a viewer, or the relay, keeps in memory. A single fact may be
#: larger.
PAGE_BYTES = 65_536
#: The most sizes that are read ahead.
SIZES_MAX = 500
#: At most this many facts are read together without a look at their sizes: no fact is much larger
#: than JSON_MAX.
FEW = 4

#: The bytes of a fact beside its data.
ENVELOPE_BYTES = 256
#: The size of a fact. It decides which facts make a page, before their rows are read.
SIZE = Length(Cast("data", TextField())) + ENVELOPE_BYTES

Key = TypeVar("Key")


def pages(facts: QuerySet[TaskEvent]) -> Iterator[list[TaskEvent]]:
    """Yield facts by id, one page at each step. Between two steps, only that page is in memory."""
    last = 0
    while True:
        sizes = list(facts.filter(id__gt=last).order_by("id").values_list("pk", SIZE)[:SIZES_MAX])
        for ids in in_pages(sizes):
            yield _read(ids)
        if len(sizes) < SIZES_MAX:
            return
        last = sizes[-1][0]


def pages_of(ids: Collection[int]) -> Iterator[list[TaskEvent]]:
    """Yield the facts with these ids in pages, as `pages` does. A few are read in one query."""
    rest = sorted(ids)
    while rest:
        batch, rest = rest[:SIZES_MAX], rest[SIZES_MAX:]
        if len(batch) <= FEW:
            yield _read(batch)
        else:
            sizes = TaskEvent.primary.filter(pk__in=batch).order_by("id").values_list("pk", SIZE)
            yield from map(_read, in_pages(sizes))


def _read(ids: Collection[int]) -> list[TaskEvent]:
    # A missing fact was deleted in between, together with its task.
    return list(TaskEvent.primary.filter(pk__in=ids).order_by("id"))


def in_pages(sizes: Iterable[tuple[Key, int]]) -> Iterator[list[Key]]:
    """Group keys so that a group has at most the size of a page. A larger key is a group alone."""
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
    """Join messages into pieces of at most about a page."""
    for page in in_pages((message, len(message)) for message in messages):
        yield b"".join(page)
