"""Reads the project's pages, so that tests can compare them with the code."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "task_system_usage.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^( *)```(.*)$")
_HEADING = re.compile(r"^(#+) (.+)$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language, the options after it, and its place."""

    page: Path
    line: int
    language: str
    options: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The file to write it to, from `file=…`."""
        for option in self.options:
            if option.startswith("file="):
                return option.removeprefix("file=")
        return None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def snippets(page: Path, language: str | None = None) -> list[Snippet]:
    """Return the fenced blocks of a page, or those of one language."""
    return [
        snippet for snippet in _snippets(page) if language is None or snippet.language == language
    ]


def _snippets(page: Path) -> Iterator[Snippet]:
    opened: tuple[int, str, list[str]] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, lines = (number, fence[1], fence[2].split()), []
        elif fence and not fence[2]:
            start, indent, words = opened
            text = "\n".join(line.removeprefix(indent) for line in lines) + "\n"
            yield Snippet(page, start, words[0] if words else "", tuple(words[1:]), text)
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{page.name} has a fence that is never closed"


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return "\n".join(line for line, fenced in _lines(page) if not fenced)


def section(page: Path, title: str) -> str:
    """Return the text under a heading, up to the next heading of the same level."""
    found: list[str] = []
    rank = 0
    for line, fenced in _lines(page):
        heading = None if fenced else _HEADING.match(line)
        if heading and rank and len(heading[1]) <= rank:
            break
        if rank:
            found.append(line)
        elif heading and heading[2] == title:
            rank = len(heading[1])
    assert rank, f"{page.name} has no section {title!r}"
    return "\n".join(found)


def _lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a page, and whether each is in a fenced block."""
    inside = False
    for line in page.read_text().splitlines():
        fence = bool(_FENCE.match(line))
        yield line, inside or fence
        inside ^= fence


def table(page: Path, title: str) -> list[list[str]]:
    """Return the rows of the first table under a heading, without the header."""
    rows: list[list[str]] = []
    for line in section(page, title).splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            break
    assert len(rows) > 2, f"{page.name} has no table under {title!r}"
    return rows[2:]


def code(text: str) -> list[str]:
    """Return the text in single backticks."""
    return _CODE.findall(text)


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    titles = [heading[2] for line in prose(page).splitlines() if (heading := _HEADING.match(line))]
    return {_anchor(title) for title in titles}


def _anchor(title: str) -> str:
    words = "".join(
        letter
        for letter in title.lower()
        if letter in " -_" or unicodedata.category(letter)[0] in "LN"
    )
    return words.replace(" ", "-")
