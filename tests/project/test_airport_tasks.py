import csv
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from project.airports.csvfile import COLUMNS, NotAirportsCSV
from project.airports.models import Airport
from project.airports.tasks import BATCH, ExportAirports, FarthestReachable, ImportAirports
from tasks_app.exceptions import InvalidParams, TaskCancelled, TaskError
from tasks_app.tasks.progress import ProgressHandle

pytestmark = pytest.mark.django_db

HEADER = ",".join(COLUMNS)
OSLO = "ENGM,OSL,Oslo Gardermoen Airport,Oslo,Viken,NO,681,60.1939,11.1004,Europe/Oslo,"


class Watched(ProgressHandle):
    """Records every value, and may stop the task at one of them."""

    def __init__(self, stop_at: float = 2) -> None:
        super().__init__(self._look)
        self.values: list[float | None] = []
        self.stop_at = stop_at

    def _look(self) -> None:
        update, _ = self.take()
        self.values.append(update.value)
        if (update.value or 0) >= self.stop_at:
            self.stop(TaskCancelled())


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_bundled_airports_are_imported_and_the_bar_moves() -> None:
    progress = Watched()
    summary = ImportAirports().run(progress, {})
    assert summary["rows"] == summary["added"] == Airport.objects.count() > 28_000
    assert summary["rejected"] == 0
    assert summary["file"] is None
    assert len(set(progress.values)) > 100
    assert progress.values[-1] == 1.0
    zurich = Airport.objects.get(icao="LSZH")
    assert (zurich.iata, zurich.name, zurich.tz) == ("ZRH", "Zurich Airport", "Europe/Zurich")


def test_second_import_changes_only_what_differs(run: Any) -> None:
    run(ImportAirports, limit=20)
    before = list(Airport.objects.order_by("pk").values())
    changed = Airport.objects.order_by("pk")[3]
    Airport.objects.filter(pk=changed.pk).update(name="Renamed")
    summary, _ = run(ImportAirports, limit=20)
    assert (summary["added"], summary["updated"]) == (0, 20)
    assert list(Airport.objects.order_by("pk").values()) == before


def test_good_rows_are_imported_and_bad_ones_reported(run: Any, upload: Any, media: Path) -> None:
    bad = OSLO.replace("60.1939", "91")
    name = upload("\n".join([HEADER, OSLO, "ENXX,,=1+1", "", bad.replace("ENGM", "ENAA")]))
    summary, progress = run(ImportAirports, source=name, filename="norway.csv")
    assert (summary["rows"], summary["added"], summary["rejected"]) == (3, 1, 2)
    assert Airport.objects.get().icao == "ENGM"
    assert summary["rejections"][0] == {"line": 3, "reason": "has 3 columns, the header 11"}
    report = rows(media / summary["file"])
    assert report[0] == ["line", "reason", "row"]
    assert [row[0] for row in report[1:]] == ["3", "5"]
    assert report[2][1] == "lat is '91', must be a number from -90 to 90"
    assert progress.latest.text == "3 rows read, 2 rejected"
    assert progress.lines[0].message == "norway.csv: 4 lines after the header"


def test_file_without_rows_imports_nothing(run: Any, upload: Any) -> None:
    summary, progress = run(ImportAirports, source=upload(HEADER + "\n"))
    assert (summary["rows"], summary["file"]) == (0, None)
    assert progress.latest.value == 1.0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The file is empty."),
        (b"PK\x03\x04", "is a ZIP archive or an Excel workbook"),
        (b"price\n", "The first line is not a header of airports."),
        (f"{HEADER}\n{OSLO}\n".encode() * 2000 + b"\xff", "Line 4,001 is not UTF-8."),
    ],
)
def test_file_without_airports_is_refused(
    run: Any, upload: Any, content: bytes, reason: str
) -> None:
    with pytest.raises(NotAirportsCSV, match=r"^mine\.csv was not imported\.") as refused:
        run(ImportAirports, source=upload(content), filename="mine.csv")
    assert reason in str(refused.value)
    assert not Airport.objects.exists()


def test_missing_upload_is_named(run: Any) -> None:
    with pytest.raises(TaskError, match=r"'mine\.csv' has been deleted\. Upload it again"):
        run(ImportAirports, source="f" * 32 + ".csv", filename="mine.csv")


@pytest.mark.parametrize("source", ["", "../secret.csv", "/etc/passwd", "bundled\n", "x.csv"])
def test_source_is_never_a_path(run: Any, source: str) -> None:
    with pytest.raises(InvalidParams) as invalid:
        run(ImportAirports, source=source)
    assert list(invalid.value.errors) == ["source"]


def test_cancelled_import_keeps_whole_batches() -> None:
    with pytest.raises(TaskCancelled):
        ImportAirports().run(Watched(stop_at=0.5), {})
    assert 0 < Airport.objects.count() < 28_000
    assert Airport.objects.count() % BATCH == 0


def test_export_can_be_imported_again(run: Any, norway: list[Airport], media: Path) -> None:
    summary, progress = run(ExportAirports, country="NO", min_elevation=100)
    exported = media / summary["file"]
    assert summary["airports"] == 2
    assert summary["bytes"] == exported.stat().st_size
    assert progress.latest.value == 1.0
    assert [row[0] for row in rows(exported)] == ["icao", "ENBR", "ENGM"]
    before = list(Airport.objects.order_by("pk").values())
    again, _ = run(ImportAirports, source=summary["file"])
    assert (again["updated"], again["rejected"]) == (2, 0)
    assert list(Airport.objects.order_by("pk").values()) == before


def test_export_of_nothing_has_a_header(run: Any, media: Path) -> None:
    summary, _ = run(ExportAirports, country="XX")
    assert summary["airports"] == 0
    assert rows(media / summary["file"]) == [list(COLUMNS)]


def test_farthest_airports_are_found(run: Any, norway: list[Airport], media: Path) -> None:
    summary, progress = run(FarthestReachable, range_km=850, hops=2)
    assert (summary["airports"], summary["isolated"]) == (3, 0)
    longest = summary["journeys"][0]
    assert {longest["start"], longest["end"]} == {"Bergen Airport", "Rost Airport"}
    assert sorted(longest["route"]) == ["ENBR", "ENGM", "ENRS"]
    # Each pair once, although the file has both directions.
    assert len(summary["journeys"]) == 2
    assert len(rows(media / summary["file"])) == 1 + 3
    assert progress.latest.value == 1.0


def test_airports_out_of_range_are_counted(run: Any, norway: list[Airport]) -> None:
    summary, _ = run(FarthestReachable, range_km=10, hops=1)
    assert (summary["isolated"], summary["journeys"]) == (3, [])


def test_cancelled_computation_leaves_no_file(norway: list[Airport], media: Path) -> None:
    with pytest.raises(TaskCancelled):
        FarthestReachable().run(Watched(stop_at=0.3), {})
    assert list(media.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "params", "field"),
    [
        (ExportAirports, {"country": "Norway"}, "country"),
        (ExportAirports, {"min_elevation": 40_000}, "min_elevation"),
        (FarthestReachable, {"range_km": 5}, "range_km"),
        (FarthestReachable, {"hops": 0}, "hops"),
        (FarthestReachable, {"hop": 3}, "hop"),
    ],
)
def test_invalid_params_are_refused(
    run: Any, task: Any, params: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidParams) as invalid:
        run(task, **params)
    assert list(invalid.value.errors) == [field]


def test_rejected_rows_are_not_kept_in_memory(run: Any, upload: Any, media: Path) -> None:
    """A row can be two bytes long, so an upload may have millions of them."""
    name = upload(f"{HEADER}\n" + "x\n" * 20_000)
    tracemalloc.start()
    try:
        summary, _ = run(ImportAirports, source=name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (summary["rejected"], len(summary["rejections"])) == (20_000, 10)
    assert len(rows(media / summary["file"])) == 20_001
    assert peak < 2_000_000
