"""The check of prose in `make lint` finds what is hard to read, in every kind of file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import prose

pytestmark = pytest.mark.once

BAD = "What the worker holds, it releases anew."
FILES = {
    "docstring.py": ('"""{}"""\n', "docstrings", 1),
    "function.py": ('def run():\n    """{}"""\n', "docstrings", 2),
    "comment.py": ("x = 1\n#: {}\n", "comments", 2),
    "message.py": ('_("{}")\n', "messages", 1),
    "page.md": ("# Title\n\n- {}\n", "docs", 3),
    "page.js": ("// {}\n", "scripts and styles", 1),
    "page.css": ("/* {} */\n", "scripts and styles", 1),
    "page.html": ("<p>\n{{% translate '{}' %}}\n", "messages", 2),
}


@pytest.mark.parametrize("name", FILES)
def test_hard_sentence_is_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, kind, line = FILES[name]
    path = tmp_path / name
    path.write_text(text.format(BAD))
    assert prose.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert f"{kind}: 1 sentences" in printed
    assert f"{path}:{line}: begin with the subject: {BAD}" in printed
    assert f"{path}:{line}: 'anew': write again: {BAD}" in printed


@pytest.mark.parametrize(
    "text",
    [
        "A worker releases what it holds.",
        "Whether the task has ended.",
        "What does a second signal do?",
        "The event `told` is not prose, nor is “void”.",
    ],
)
def test_plain_sentence_passes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"{text}\n\n```sh\nmake anew\n```\n")
    assert prose.main([str(path)]) == 0


def test_few_hard_sentences_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    plain = "The worker releases each task that it holds, and ends.\n\n"
    path.write_text(100 * plain + "Where it cannot, it waits.\n")
    assert prose.main([str(path)]) == 0
    path.write_text(10 * plain + "Where it cannot, it waits.\n")
    assert prose.main([str(path)]) == 1
