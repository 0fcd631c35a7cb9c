"""Pages are in one language: no text of ours uses Django's translations.

An app's catalogue is merged with Django's. A text of ours that Django also has, such as "Search",
would be translated although the texts around it are not, and with Django's meaning. Such texts have
the context "tasks_app".
"""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.test import Client
from django.urls import reverse
from django.utils.translation.template import templatize

from tests.test_layers import APP, FILES

#: Texts that Django itself shows on every admin page or in its forms. Ours may use the same.
DJANGOS = {"Home", "Error:", "Yes", "No"}
CALL = re.compile(r"""\b(n?gettext\w*)\(u?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def words_of_python(path: Path) -> Iterator[str]:
    names = {"_": "gettext", "__": "gettext"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        name = names.get(node.func.id, node.func.id)
        if name.startswith(("gettext", "ngettext")):
            for argument in node.args[: 2 if name.startswith("n") else 1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value)


def words_of_template(path: Path) -> Iterator[str]:
    for _name, literal in CALL.findall(templatize(path.read_text())):
        yield str(ast.literal_eval(literal))


def words() -> Iterator[tuple[str, str]]:
    for path in FILES:
        for word in words_of_python(path):
            yield path.name, word
    for path in sorted(APP.rglob("*.html")):
        for word in words_of_template(path):
            yield path.name, word


def django_texts() -> set[str]:
    """Return what Django translates into German or French without a context."""
    found: set[str] = set()
    for language in ("de", "fr"):
        pattern = f"**/locale/{language}/LC_MESSAGES/django.mo"
        for catalogue in Path(django.__file__).parent.glob(pattern):
            with catalogue.open("rb") as file:
                known = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            found |= {key[0] if isinstance(key, tuple) else key for key in known}
    return found


@pytest.mark.once
def test_no_text_uses_djangos_translation() -> None:
    known, ours = django_texts(), list(words())
    assert {"Search", "Delete", "Yes"} <= known
    assert len(ours) > 200
    borrowed = [(where, word) for where, word in ours if word in known]
    assert {word for _, word in borrowed} <= DJANGOS, borrowed


@pytest.mark.django_db
def test_german_page_does_not_mix_languages(admin_client: Client, settings: Any) -> None:
    settings.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    page = admin_client.get(
        reverse("admin:tasks_app_task_changelist"), headers={"Accept-Language": "de"}
    )
    assert page.headers["Content-Language"] == "de"
    assert "Abmelden" in page.content.decode()  # Django's own text
    assert ">Search</button>" in page.content.decode()
    assert "Suchen" not in page.content.decode()
