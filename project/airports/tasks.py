"""The site's tasks."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, ClassVar

import airportsdata
from django.db import transaction
from pydantic import BaseModel, ConfigDict, Field

from project.airports import files, reach
from project.airports.csvfile import (
    COLUMNS,
    NotAirportsCSV,
    RejectedRow,
    check_file,
    harmless,
    read_rows,
)
from project.airports.models import Airport
from project.airports.selection import Selection
from tasks_app import BaseTask, ProgressHandle, TaskError

BUNDLED = "bundled"
BUNDLED_FILE = Path(airportsdata.__file__).with_name("airports.csv")

#: Rows in one transaction: few enough that no other process waits noticeably for the database.
BATCH = 500
#: A page shows this many rejected rows or journeys of a result. The file has all of them.
SHOWN = 10


class SiteTask(BaseTask):
    """The base class of this site's tasks, which provides details for a task's page."""

    result_template: ClassVar[str] = "tasks/result.html"
    #: The URL name of the form that starts the task.
    start_page: ClassVar[str] = ""

    @classmethod
    def details(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters in words, by their labels."""
        return {name.replace("_", " ").capitalize(): value for name, value in params.items()}


class Rejection(BaseModel):
    line: int
    reason: str


class ImportSummary(BaseModel):
    rows: int
    added: int
    updated: int
    rejected: int
    #: The first few. The file has all of them.
    rejections: list[Rejection]
    file: str | None


class ImportAirports(SiteTask):
    """Import airports from a CSV file, and report invalid rows.

    Can be repeated: a row with a known ICAO code updates that airport.
    """

    verbose_name = "Import airports"
    timeout = 600
    result_template = "airports/results/import.html"
    start_page = "start-import"

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid")

        #: "bundled", or the name of an uploaded file.
        source: Annotated[str, Field(pattern=rf"^({BUNDLED}|{files.NAME_PATTERN})$")] = BUNDLED
        #: The file's name on the uploader's machine.
        filename: Annotated[str, Field(max_length=255)] = ""
        #: Read this many rows at most.
        limit: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def details(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        bundled = params.get("source") == BUNDLED
        details = {"File": "from the package airportsdata" if bundled else params.get("filename")}
        if params.get("limit"):
            details["Maximum rows"] = params["limit"]
        return details

    def execute(
        self,
        progress: ProgressHandle,
        source: str,
        filename: str = "",
        limit: int | None = None,
    ) -> ImportSummary:
        path = BUNDLED_FILE if source == BUNDLED else files.find(source)
        if path is None:
            raise TaskError(f"The uploaded file {filename!r} has been deleted. Upload it again.")
        progress.send_progress("Checking the file", 0.0)
        try:
            lines = check_file(path)
        except NotAirportsCSV as error:
            raise NotAirportsCSV(f"{filename or path.name} was not imported. {error}") from error
        total = max(min(lines - 1, limit or lines), 1)
        progress.log(f"{filename or path.name}: {lines - 1:,} lines after the header")

        existing = set(Airport.objects.values_list("icao", flat=True))
        rows = added = 0
        batch: list[Airport] = []
        rejected = 0
        rejections: list[Rejection] = []
        with ExitStack() as report, path.open(encoding="utf-8-sig") as text:
            for line, row in read_rows(text):
                rows += 1
                if isinstance(row, RejectedRow):
                    # Written immediately, because a file of 50 MB may have 25 million of them.
                    if not rejected:
                        result = report.enter_context(files.new_result())
                        writer = csv.writer(result.text)
                        writer.writerow(["line", "reason", "row"])
                    rejected += 1
                    writer.writerow([row.line, harmless(row.reason), harmless(row.text)])
                    if rejected <= SHOWN:
                        rejections.append(Rejection(line=row.line, reason=row.reason[:500]))
                else:
                    added += row.icao not in existing
                    batch.append(Airport(**row.model_dump()))
                if len(batch) >= BATCH:
                    _upsert(batch)
                    batch.clear()
                if rows % 50 == 0:
                    progress.send_progress(
                        f"{rows:,} of {total:,} rows", min((line - 1) / total, 1) * 0.99
                    )
                if rows == limit:
                    break
            _upsert(batch)

        if rejected:
            progress.log(f"{rejected:,} rows were rejected", "warning")
        progress.send_progress(f"{rows:,} rows read, {rejected:,} rejected", 1.0)
        return ImportSummary(
            rows=rows,
            added=added,
            updated=rows - added - rejected,
            rejected=rejected,
            rejections=rejections,
            file=result.name if rejected else None,
        )


class ExportSummary(BaseModel):
    airports: int
    bytes: int
    file: str


class ExportAirports(SiteTask):
    """Export a selection of airports to a CSV file that ImportAirports can read."""

    verbose_name = "Export airports"
    timeout = 600
    # It only reads the database, and each attempt writes its own file: running it twice is safe.
    max_attempts = 3
    startable = True
    result_template = "airports/results/export.html"
    start_page = "start-export"

    class Params(Selection):
        #: The airports that a user selected one by one.
        ids: list[int] | None = None

    @classmethod
    def details(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        if (ids := params.get("ids")) is not None:
            return {"Airports": f"{len(ids):,} selected"}
        return _selection_in_words(params)

    def execute(
        self, progress: ProgressHandle, ids: list[int] | None = None, **selection: Any
    ) -> ExportSummary:
        airports = Airport.objects.selected(Selection(**selection)).order_by("icao")
        if ids is not None:
            airports = airports.filter(pk__in=ids)
        count = airports.count()
        with files.new_result() as result:
            writer = csv.writer(result.text)
            writer.writerow(COLUMNS)
            text = f"Writing {count:,} airports"
            written = 0
            rows = airports.values_list(*COLUMNS).iterator(chunk_size=500)
            for row in progress.track(rows, total=count, text=text):
                writer.writerow(map(_cell, row))
                written += 1
            size = result.text.tell()
        progress.send_progress_text(f"{written:,} airports written")
        return ExportSummary(airports=written, bytes=size, file=result.name)


JOURNEY_COLUMNS = (
    "icao",
    "name",
    "country",
    "farthest_icao",
    "farthest_name",
    "farthest_country",
    "distance_km",
    "route",
    "reachable",
)


class ShownJourney(BaseModel):
    """One journey, with all data that the page shows."""

    start: str
    end: str
    distance_km: float
    #: The ICAO codes of the airports on the route, including both ends.
    route: list[str]
    reachable: int


class ReachSummary(BaseModel):
    airports: int
    #: The number of airports without another one in range.
    isolated: int
    journeys: list[ShownJourney]
    file: str


class FarthestReachable(SiteTask):
    """Find the farthest airport that can be reached from each airport in a few hops."""

    verbose_name = "Farthest reachable airports"
    timeout = 3600
    # It only reads the database, and each attempt writes its own file: running it twice is safe.
    max_attempts = 3
    startable = True
    result_template = "airports/results/reach.html"
    start_page = "start-reach"

    class Params(Selection):
        range_km: Annotated[
            float, Field(ge=10, le=2_000, description="The maximum length of a hop.")
        ] = 500
        hops: Annotated[int, Field(ge=1, le=20)] = 4

    @classmethod
    def details(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **_selection_in_words(params),
            "Maximum length of a hop": f"{params.get('range_km', 0):,g} km",
            "Maximum hops": params.get("hops"),
        }

    def execute(
        self, progress: ProgressHandle, range_km: float, hops: int, **selection: Any
    ) -> ReachSummary:
        progress.send_progress("Reading airports", 0.0)
        airports = list(
            Airport.objects.selected(Selection(**selection))
            .order_by("icao")
            .values_list("icao", "name", "country", "lat", "lon")
        )
        places = [reach.vector(lat, lon) for *_, lat, lon in airports]
        count = len(places)
        links = list(
            progress.track(
                reach.link(places, range_km),
                total=count,
                text=f"Finding neighbours within {range_km:g} km for {count:,} airports",
                within=(0.0, 0.05),
            )
        )
        progress.log("Found the neighbours of every airport")

        journeys: list[reach.Journey] = []
        with files.new_result() as result:
            writer = csv.writer(result.text)
            writer.writerow(JOURNEY_COLUMNS)
            for start in progress.track(range(count), within=(0.05, 1.0)):
                if start % 100 == 0:
                    progress.send_progress_text(f"{start:,} of {count:,} airports searched")
                journey = reach.farthest(start, places, links, hops)
                ends = (*airports[start][:3], *airports[journey.route[-1]][:3])
                route = " ".join(airports[index][0] for index in journey.route)
                distance = f"{journey.distance_km:.1f}"
                writer.writerow([*map(harmless, ends), distance, route, journey.reachable])
                journeys.append(journey)
        progress.send_progress_text(f"{count:,} airports searched")
        return ReachSummary(
            airports=count,
            isolated=sum(not journey.reachable for journey in journeys),
            journeys=[
                ShownJourney(
                    start=airports[journey.route[0]][1],
                    end=airports[journey.route[-1]][1],
                    distance_km=round(journey.distance_km, 1),
                    route=[airports[index][0] for index in journey.route],
                    reachable=journey.reachable,
                )
                for journey in _longest(journeys)
            ],
            file=result.name,
        )


def _selection_in_words(params: Mapping[str, Any]) -> dict[str, Any]:
    height = params.get("min_elevation")
    return {
        "Country": params.get("country") or "all countries",
        "Only with an IATA code": params.get("has_iata", False),
        "Elevation": "any" if height is None else f"{height:,g} ft or more",
    }


def _longest(journeys: list[reach.Journey]) -> list[reach.Journey]:
    """Return the longest few journeys, each in one direction only."""
    longest: dict[frozenset[int], reach.Journey] = {}
    for journey in sorted(journeys, key=lambda journey: -journey.distance_km):
        if journey.reachable and len(longest) < SHOWN:
            longest.setdefault(frozenset((journey.route[0], journey.route[-1])), journey)
    return list(longest.values())


def _upsert(airports: list[Airport]) -> None:
    with transaction.atomic():
        Airport.objects.bulk_create(
            airports,
            update_conflicts=True,
            unique_fields=["icao"],
            update_fields=[name for name in COLUMNS if name != "icao"],
        )


def _cell(value: str | float) -> str | float:
    return harmless(value) if isinstance(value, str) else value
