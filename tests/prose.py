"""Find sentences that are hard to read: `python -m tests.prose`, a part of `make lint`.

It counts two habits that make a reader go back: sentences that open with a clause in place of
their subject ("What the worker holds, it releases"), and words that are rare in technical English.
Both are fine now and then, so each kind of text may have a small share of them. If it has more,
every such sentence is printed with its place.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ROOTS = ("tasks_app", "project", "templates", "tests", "benchmarks", "docs", "README.md")
SKIPPED = {"__pycache__", "migrations"}

#: At most this share of a kind's sentences, and of its words.
OPENINGS_MAX, WORDS_MAX = 0.02, 0.001

OPENING = re.compile(
    r"(What|Who|Whom|Whoever|Whatever|Whose|Where|Of|Those|Such|That|Which|How|Whether|Why|When"
    r"|Its|Nobody|Nothing|Each of|None of|From there|So (much|many))\b(?!.*\?$)"
)
#: A word, and what to write instead.
INSTEAD = {
    "anew": "again",
    "at once": "immediately, or at the same time",
    "but for": "except",
    "for good": "permanently",
    "goes on|go on|went on": "continues, or happens",
    "heeds?": "respects, or checks",
    "hence|thereby": "so",
    "in the midst": "during",
    "is (its|their) own|of its own": "has a separate …",
    "just now": "a moment ago",
    "lest": "so that … not",
    "likewise": "also",
    "meanwhile": "in the meantime, or while …",
    "news": "changes, or what is new",
    "nobody": "no user, no worker …",
    "so long|so many": "as long as, or at most …",
    "(does|do|did) so": "name the verb again",
    "somebody": "a user, another process …",
    "stands? (in|for|at|there|first|upon)": "is, or means",
    "told|tells?|telling": "sent, shows, returns, says",
    "void": "stale, or without effect",
    "whoever|whatever": "name the subject",
}
WORDS = {re.compile(rf"\b({word})\b", re.I): better for word, better in INSTEAD.items()}
#: No prose: names, code and quotations from a program.
QUOTED = re.compile(r"`[^`]*`|“[^”]*”|\"[^\"]*\"|<[^>]*>|\{\{?.*?\}?\}")
#: Sentences that are as they should be, by how they begin.
ALLOWED = ("Whether ",)


class Sentence(NamedTuple):
    kind: str
    place: str
    text: str

    @property
    def opens_badly(self) -> bool:
        return bool(OPENING.match(self.text)) and not self.text.startswith(ALLOWED)

    def rare_words(self) -> Iterator[tuple[str, str]]:
        text = QUOTED.sub("", self.text)
        for word, better in WORDS.items():
            for found in word.finditer(text):
                yield found[0], better


def sentences(path: Path) -> Iterator[Sentence]:
    """Read the sentences of a file; none of a file whose type has no prose."""
    reader = {
        ".py": _python,
        ".js": _script,
        ".css": _script,
        ".md": _markdown,
        ".html": _template,
    }.get(path.suffix)
    for kind, line, text in reader(path.read_text()) if reader else ():
        place = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}"
        for part in re.split(r"(?<=[.!])\s+", " ".join(text.split())):
            if part:
                yield Sentence(kind, place, part)


Found = Iterator[tuple[str, int, str]]


def _python(source: str) -> Found:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield "docstrings", node.body[0].lineno, text
        elif isinstance(node, ast.Call) and _is_translated(node.func):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield "messages", argument.lineno, argument.value
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#:! ")
        if text.startswith(("noqa", "type:", "pragma")):
            continue
        if token.start[0] != start + len(block):
            yield "comments", start, " ".join(block)
            block, start = [], token.start[0]
        block.append(text)
    yield "comments", start, " ".join(block)


def _is_translated(function: ast.expr) -> bool:
    name = getattr(function, "id", getattr(function, "attr", ""))
    return name == "_" or "gettext" in name


def _script(source: str) -> Found:
    for found in re.finditer(r"(?s:/\*+(.*?)\*/)|(?<!:)//\s*(.*)", source):
        text = (found[1] or found[2] or "").replace("*", " ")
        yield "scripts and styles", source.count("\n", 0, found.start()) + 1, text


def _markdown(source: str) -> Found:
    is_code = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("#"):
            yield "docs", number, re.sub(r"^[-*|>\d. ]+", "", line)


def _template(source: str) -> Found:
    texts = (
        r"{% (?:translate|trans) [\"'](.*?)[\"']|{% blocktranslate.*?%}(.*?){% endblocktranslate"
    )
    for found in re.finditer(texts, source, re.S):
        yield "messages", source.count("\n", 0, found.start()) + 1, found[1] or found[2]


def files(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and not SKIPPED.intersection(path.parts):
                yield path


def main(arguments: list[str]) -> int:
    roots = [Path(name) for name in arguments] or [ROOT / name for name in ROOTS]
    kinds: dict[str, list[Sentence]] = {}
    for path in files(roots):
        for sentence in sentences(path):
            kinds.setdefault(sentence.kind, []).append(sentence)
    failed = False
    for kind, found in kinds.items():
        openings = [sentence for sentence in found if sentence.opens_badly]
        rare = [(sentence, word) for sentence in found for word in sentence.rare_words()]
        words = sum(len(sentence.text.split()) for sentence in found)
        shares = len(openings) / len(found), len(rare) / words
        print(
            f"{kind}: {len(found)} sentences, {shares[0]:.1%} open without their subject; "
            f"{words} words, {1000 * shares[1]:.1f} rare in a thousand"
        )
        if shares[0] > OPENINGS_MAX:
            failed = True
            for sentence in openings:
                print(f"  {sentence.place}: begin with the subject: {sentence.text}")
        if shares[1] > WORDS_MAX:
            failed = True
            for sentence, (word, better) in rare:
                print(f"  {sentence.place}: {word!r}: write {better}: {sentence.text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
