import uuid
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from project.airports.csvfile import COLUMNS
from project.airports.models import Airport
from project.airports.tasks import ExportAirports, FarthestReachable, ImportAirports
from project.middleware import POLICY
from tasks_app.models import Task
from tasks_app.service import task_service
from tasks_app.states import Status
from tests.admin.secrets import Secretive
from tests.rows import enqueued

pytestmark = pytest.mark.django_db

HEADER = ",".join(COLUMNS)


def start(owner: User | None, task: Any = ExportAirports, **params: Any) -> Task:
    return Task.objects.get(pk=task_service.start_task(task, params, owner=owner).task_id)


@pytest.fixture
def page(client: Client, ada: User) -> Any:
    """Return a function that gets a page as Ada and returns its text."""
    client.force_login(ada)

    def page(url: str, status: int = 200) -> str:
        response = client.get(url)
        assert response.status_code == status
        return response.content.decode()

    return page


PAGES = ["home", "airports", "start-import", "start-export", "start-reach"]


class TestVisibility:
    @pytest.mark.parametrize("name", PAGES)
    def test_anonymous_user_is_redirected_to_login(self, client: Client, name: str) -> None:
        response = client.get(reverse(name))
        assert response.status_code == 302
        assert response["Location"] == f"{reverse('login')}?next={reverse(name)}"

    @pytest.mark.parametrize("name", ["task", "task-file"])
    def test_anonymous_user_learns_nothing_about_a_task(
        self, client: Client, ada: User, name: str
    ) -> None:
        for task_id in (start(ada).pk, uuid.uuid4()):
            response = client.get(reverse(name, args=[task_id]))
            assert response.status_code == 302

    @pytest.mark.parametrize("name", PAGES)
    def test_users_see_the_pages(self, page: Any, name: str) -> None:
        assert "<h1>" in page(reverse(name))

    def test_list_has_only_own_tasks(self, page: Any, ada: User, bob: User) -> None:
        mine, his, nobodys = start(ada), start(bob), start(None)
        text = page(reverse("home"))
        assert str(mine.pk) in text
        assert str(his.pk) not in text
        assert str(nobodys.pk) not in text

    @pytest.mark.parametrize("name", ["task", "task-file"])
    def test_other_users_task_is_not_found(self, page: Any, bob: User, name: str) -> None:
        assert "Page not found" in page(reverse(name, args=[start(bob).pk]), status=404)

    def test_staff_with_the_permission_see_any_task(
        self, client: Client, ada: User, bob: User
    ) -> None:
        bob.user_permissions.add(Permission.objects.get(codename="view_task"))
        client.force_login(bob)
        text = client.get(reverse("task", args=[start(ada).pk])).content.decode()
        assert "by ada" in text


class TestMyTasks:
    def test_empty_list_links_to_the_start_forms(self, page: Any) -> None:
        text = page(reverse("home"))
        assert "No tasks yet" in text
        assert reverse("start-import") in text

    def test_list_is_paginated(self, page: Any, ada: User) -> None:
        for _ in range(11):
            start(ada)
        assert page(reverse("home")).count("<task-progress") == 10
        assert page(reverse("home") + "?page=2").count("<task-progress") == 1
        # A page number out of range shows the last page.
        assert "Page 2 of 2" in page(reverse("home") + "?page=99")

    def test_number_of_queries_is_constant(
        self, client: Client, ada: User, django_assert_max_num_queries: Any
    ) -> None:
        client.force_login(ada)
        for _ in range(10):
            start(ada)
        # Session, user, permissions twice, count, tasks, and the cursor for the stream, which takes
        # two queries on PostgreSQL.
        with django_assert_max_num_queries(8):
            client.get(reverse("home"))


class TestTaskPage:
    def end(self, task: Task, **outcome: Any) -> Task:
        """End a task directly, without a worker."""
        Task.objects.filter(pk=task.pk).update(
            status=Status.COMPLETED, finished_at=task.created_at, **outcome
        )
        return Task.objects.get(pk=task.pk)

    def test_shows_bar_parameters_and_history(self, page: Any, ada: User) -> None:
        task = start(ada, FarthestReachable, country="NO", hops=3)
        text = page(reverse("task", args=[task.pk]))
        assert "<task-progress" in text
        assert "The result will appear here" in text
        assert "500 km" in text
        assert "Queued" in text
        assert f'<time datetime="{task.created_at.isoformat()}">' in text

    def test_shows_no_secrets(self, page: Any, ada: User) -> None:
        params = Secretive.validate_params({"plain": "seen", "token": "s3cret"})
        task = enqueued(name=Secretive.name(), params=params, owner=ada)
        text = page(reverse("task", args=[task.pk]))
        assert "seen" in text
        assert "s3cret" not in text

    def test_shows_the_result_and_a_link_to_the_file(
        self, page: Any, ada: User, media: Path
    ) -> None:
        result = {"airports": 1234, "bytes": 2048, "file": "a" * 32 + ".csv"}
        task = self.end(start(ada), result=result)
        text = page(reverse("task", args=[task.pk]))
        assert "1,234" in text
        assert "The file has been deleted" in text
        assert reverse("task-file", args=[task.pk]) not in text
        media.mkdir(parents=True, exist_ok=True)
        (media / result["file"]).write_text("icao\n")
        assert reverse("task-file", args=[task.pk]) in page(reverse("task", args=[task.pk]))

    def test_rejected_rows_are_escaped(self, page: Any, ada: User) -> None:
        summary = {
            "rows": 2,
            "added": 1,
            "updated": 0,
            "rejected": 1,
            "rejections": [{"line": 2, "reason": "name is '<script>'"}],
            "file": None,
        }
        task = self.end(start(ada, ImportAirports), result=summary)
        text = page(reverse("task", args=[task.pk]))
        assert "name is &#x27;&lt;script&gt;&#x27;" in text

    def test_cancelled_task_is_described(self, page: Any, ada: User) -> None:
        task = start(ada)
        task_service.cancel_task(task.pk, by=ada)
        text = page(reverse("task", args=[task.pk]))
        assert "The task was cancelled, so there is no result." in text
        assert "Cancelled by ada" in text

    def test_task_whose_class_is_gone_has_a_page(self, page: Any, ada: User) -> None:
        task = start(ada, country="NO")
        Task.objects.filter(pk=task.pk).update(name="gone.tasks.Old")
        task = self.end(task, result={"answer": 42})
        text = page(reverse("task", args=[task.pk]))
        assert "gone.tasks.Old" in text
        assert "&#x27;answer&#x27;: 42" in text
        assert "Min elevation" in text


class TestFile:
    def test_file_is_sent_as_a_download(
        self, client: Client, ada: User, run: Any, norway: list[Airport]
    ) -> None:
        task = start(ada)
        result, _ = run(ExportAirports)
        Task.objects.filter(pk=task.pk).update(result=result)
        client.force_login(ada)
        response = client.get(reverse("task-file", args=[task.pk]))
        assert response["Content-Type"] == "text/csv; charset=utf-8"
        name = f"export-airports-{str(task.pk)[:8]}.csv"
        assert response["Content-Disposition"] == f'attachment; filename="{name}"'
        assert len(response.content.splitlines()) == 4

    @pytest.mark.parametrize("result", [None, 3, {}, {"file": None}, {"file": "../db.sqlite3"}])
    def test_missing_file_is_not_found(self, page: Any, ada: User, result: Any) -> None:
        task = start(ada)
        Task.objects.filter(pk=task.pk).update(result=result)
        page(reverse("task-file", args=[task.pk]), status=404)


class TestStart:
    def test_import_starts_and_redirects_to_its_page(self, client: Client, ada: User) -> None:
        client.force_login(ada)
        response = client.post(reverse("start-import"), {"source": "bundled"})
        task = Task.objects.get()
        assert response["Location"] == reverse("task", args=[task.pk])
        assert task.owner == ada
        assert task.params == {"source": "bundled", "filename": "", "limit": None}

    def test_upload_is_kept_for_the_task(self, client: Client, ada: User, media: Path) -> None:
        client.force_login(ada)
        file = SimpleUploadedFile("mine.csv", f"{HEADER}\n".encode())
        client.post(reverse("start-import"), {"source": "upload", "file": file})
        params = Task.objects.get().params
        assert params["filename"] == "mine.csv"
        assert (media / params["source"]).read_text() == f"{HEADER}\n"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "Choose the file to import."),
            (b"", "The file is empty."),
            (b"PK\x03\x04", "Export it as CSV (UTF-8) first."),
            (b"a,b\n", "The first line is not a header of airports."),
            (b"\xff\xfei\x00", "Save it as CSV in UTF-8."),
        ],
    )
    def test_form_refuses_a_file_that_is_not_csv(
        self, client: Client, ada: User, media: Path, content: bytes | None, message: str
    ) -> None:
        client.force_login(ada)
        data: dict[str, Any] = {"source": "upload"}
        if content is not None:
            data["file"] = SimpleUploadedFile("mine.csv", content)
        response = client.post(reverse("start-import"), data)
        assert message in str(response.context["form"].errors["file"])
        assert not Task.objects.exists()
        assert not media.exists()

    def test_too_large_file_is_refused(
        self, client: Client, ada: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("project.airports.forms.MAX_UPLOAD_BYTES", 10)
        client.force_login(ada)
        file = SimpleUploadedFile("mine.csv", HEADER.encode())
        response = client.post(reverse("start-import"), {"source": "upload", "file": file})
        assert "The maximum is 10\xa0bytes. Split the file." in str(
            response.context["form"].errors["file"]
        )

    def test_second_import_links_to_the_first(self, client: Client, ada: User, media: Path) -> None:
        client.force_login(ada)
        client.post(reverse("start-import"), {"source": "bundled"})
        file = SimpleUploadedFile("mine.csv", f"{HEADER}\n".encode())
        response = client.post(reverse("start-import"), {"source": "upload", "file": file})
        task = Task.objects.get()
        page = f"{reverse('task', args=[task.pk])}?next=%2Fairports%2Fimport%2F"
        assert f'<a href="{page}">Watch it, or cancel it first.</a>' in response.content.decode()
        assert list(media.iterdir()) == []

    def test_other_users_import_is_not_linked(self, client: Client, ada: User, bob: User) -> None:
        client.force_login(bob)
        client.post(reverse("start-import"), {"source": "bundled"})
        client.force_login(ada)
        text = client.post(reverse("start-import"), {"source": "bundled"}).content.decode()
        assert "Someone else is running this" in text
        assert str(Task.objects.get().pk) not in text

    def test_selection_becomes_parameters(
        self, client: Client, ada: User, norway: list[Airport]
    ) -> None:
        client.force_login(ada)
        data = {"country": "NO", "has_iata": "on", "min_elevation": "", "range_km": 300, "hops": 2}
        client.post(reverse("start-reach"), data)
        assert Task.objects.get().params == {
            "country": "NO",
            "has_iata": True,
            "min_elevation": None,
            "range_km": 300.0,
            "hops": 2,
        }

    def test_empty_selection_is_refused(
        self, client: Client, ada: User, norway: list[Airport]
    ) -> None:
        client.force_login(ada)
        response = client.post(reverse("start-export"), {"min_elevation": 29_000})
        assert "No airport matches" in str(response.context["form"].errors)
        assert not Task.objects.exists()

    def test_params_refused_by_the_task_are_shown_at_their_field(
        self, client: Client, ada: User, norway: list[Airport], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The form's limits are those of the task. The patch makes them differ.
        monkeypatch.setattr(
            "project.airports.forms.ReachForm.params",
            lambda form: form.cleaned_data | {"hops": 99, "fuel": 1},
        )
        client.force_login(ada)
        response = client.post(reverse("start-reach"), {"range_km": 300, "hops": 2})
        errors = response.context["form"].errors
        assert "at most 20" in str(errors["hops"])
        assert "There is no such field." in str(errors["__all__"])
        assert not Task.objects.exists()


class TestAirports:
    def test_empty_list_says_how_to_import(self, page: Any) -> None:
        assert "No airports yet" in page(reverse("airports"))

    @pytest.mark.parametrize(
        ("search", "found"),
        [
            ("osl", {"ENGM"}),
            ("engm", {"ENGM"}),
            ("NO", {"ENGM", "ENBR", "ENRS"}),
            ("nordland rost", {"ENRS"}),
            ("  bergen ", {"ENBR"}),
            ("bergen rost", set()),
        ],
    )
    def test_search_matches_every_word(
        self, norway: list[Airport], search: str, found: set[str]
    ) -> None:
        assert {airport.icao for airport in Airport.objects.search(search)} == found

    def test_pagination_keeps_the_search(
        self, page: Any, norway: list[Airport], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("project.airports.views.AIRPORTS_PER_PAGE", 2)
        text = page(reverse("airports") + "?q=NO")
        assert "3 airports matching “NO”" in text
        assert 'href="?q=NO&amp;page=2"' in text

    def test_search_text_is_escaped(self, page: Any, norway: list[Airport]) -> None:
        assert "No airports match “&lt;b&gt;”" in page(reverse("airports") + "?q=<b>")


class TestPolicy:
    @pytest.mark.parametrize("url", ["/", "/login/", "/nowhere/", "/admin/login/"])
    def test_every_page_has_the_policy(self, client: Client, url: str) -> None:
        assert client.get(url)["Content-Security-Policy"] == POLICY

    @pytest.mark.parametrize("name", PAGES)
    def test_no_page_has_inline_styles_or_scripts(self, page: Any, name: str) -> None:
        text = page(reverse(name))
        assert "<style" not in text
        assert " style=" not in text
        assert "<script>" not in text
        assert " onclick=" not in text
