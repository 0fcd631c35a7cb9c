"""Airports as CSV: check a file, and read its rows."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

#: The format of a file is recognised by this many first bytes.
HEAD_BYTES = 64 * 1024

BINARY_FORMATS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"SQLite format 3": "an SQLite database",
}

# BeforeValidator runs before the pattern is checked; Pydantic's own `to_upper` runs after.
Code = Annotated[str, BeforeValidator(lambda value: value.strip().upper())]
# No control characters: they do not belong here, and databases refuse NUL.
Words = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Number = Annotated[float, Field(allow_inf_nan=False)]


class NotAirportsCSV(ValueError):
    """The whole file cannot be read as airports. The message gives the remedy."""

    public_error = property(str)


class AirportRow(BaseModel):
    """One valid row. The descriptions of the fields are used in the reasons for a rejection."""

    model_config = ConfigDict(extra="forbid")

    # airportsdata invents codes with underscores for airports without a code.
    icao: Annotated[Code, Field(pattern=r"^[A-Z0-9_]{4}$", description="4 letters or digits")]
    iata: Annotated[
        Code, Field(pattern=r"^([A-Z0-9]{3})?$", description="3 letters or digits, or nothing")
    ] = ""
    name: Annotated[Words, Field(min_length=1, description="1 to 100 characters")]
    city: Annotated[Words, Field(description="at most 100 characters")] = ""
    subd: Annotated[Words, Field(description="at most 100 characters")] = ""
    country: Annotated[Code, Field(pattern=r"^[A-Z]{2}$", description="2 letters")]
    elevation: Annotated[
        Number, Field(ge=-2_000, le=30_000, description="feet, a number from -2000 to 30000")
    ]
    lat: Annotated[Number, Field(ge=-90, le=90, description="a number from -90 to 90")]
    lon: Annotated[Number, Field(ge=-180, le=180, description="a number from -180 to 180")]
    # Checks the form only, because the list of zones depends on the machine.
    tz: Annotated[
        str,
        StringConstraints(strip_whitespace=True, max_length=50, pattern=r"^[A-Z][A-Za-z0-9_+/-]+$"),
        Field(description="a time zone such as Europe/Berlin"),
    ]
    lid: Annotated[
        Code,
        Field(max_length=10, pattern=r"^[A-Z0-9_-]*$", description="at most 10 letters and digits"),
    ] = ""


class RejectedRow(NamedTuple):
    """One invalid row: its line, the reason, and its text."""

    line: int
    reason: str
    text: str


COLUMNS = tuple(AirportRow.model_fields)
EXPECTED = f"The file must be CSV in UTF-8 with the columns {', '.join(COLUMNS)}."


def check_head(head: bytes) -> list[str]:
    """Return the columns in the header of a file, from its first bytes.

    Raises NotAirportsCSV.
    """
    if not head.strip():
        raise NotAirportsCSV(f"The file is empty. {EXPECTED}")
    for magic, kind in BINARY_FORMATS.items():
        if head.startswith(magic):
            raise NotAirportsCSV(f"The file is {kind} and not CSV. Export it as CSV (UTF-8) first.")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotAirportsCSV("The file is UTF-16. Save it as CSV in UTF-8.")
    if b"\0" in head:
        raise NotAirportsCSV(f"The file is binary, not CSV. {EXPECTED}")
    try:
        # An incremental decoder, because the first bytes may end within a character.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError as error:
        raise NotAirportsCSV(_not_utf8(head.count(b"\n", 0, error.start) + 1)) from error
    return _check_header(text.splitlines()[0] if text else "")


def check_file(path: Path) -> int:
    """Return the number of lines in a file of airports.

    Reads the whole file, so that an error at its end is found before anything is imported.
    Raises NotAirportsCSV.
    """
    with path.open("rb") as file:
        check_head(file.read(HEAD_BYTES))
    count = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for count, line in enumerate(lines, start=1):
                if "\0" in line:
                    raise NotAirportsCSV(f"Line {count:,} is binary. {EXPECTED}")
    except UnicodeDecodeError as error:
        # The decoder reads in blocks, so the line is found in the bytes.
        raise NotAirportsCSV(_not_utf8(_first_bad_line(path))) from error
    return count


def read_rows(lines: Iterable[str]) -> Iterator[tuple[int, AirportRow | RejectedRow]]:
    """Yield each row, valid or rejected, with its line number. Empty lines are skipped.

    Every row is one line, so that a missing closing quote spoils one row and not the rest.
    """
    numbered = enumerate(lines, start=1)
    header = _check_header(next(numbered, (1, ""))[1])
    first_seen: dict[str, int] = {}
    for number, line in numbered:
        if not line.strip():
            continue
        row = _read_row(header, number, line)
        if isinstance(row, AirportRow):
            first = first_seen.setdefault(row.icao, number)
            if first != number:
                reason = f"icao {row.icao!r} is already in line {first:,}"
                row = RejectedRow(number, reason, line.rstrip("\r\n"))
        yield number, row


def harmless(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _read_row(header: list[str], number: int, line: str) -> AirportRow | RejectedRow:
    line = line.rstrip("\r\n")
    try:
        cells = next(csv.reader((line,), strict=True))
    except csv.Error as error:
        return RejectedRow(number, f"quotes in this line do not match ({error})", line)
    if len(cells) != len(header):
        return RejectedRow(number, f"has {len(cells)} columns, the header {len(header)}", line)
    values = {name: cell for name, cell in zip(header, cells, strict=True) if name in COLUMNS}
    try:
        return AirportRow.model_validate(values)
    except ValidationError as error:
        wrong = {str(fault["loc"][0]): fault["input"] for fault in error.errors()}
        reasons = [
            f"{name} is {value[:40]!r}, must be {AirportRow.model_fields[name].description}"
            for name, value in wrong.items()
        ]
        return RejectedRow(number, "; ".join(reasons), line)


def _check_header(line: str) -> list[str]:
    try:
        names = [name.strip().lower() for name in next(csv.reader((line,)), [])]
    except csv.Error as error:
        raise NotAirportsCSV(f"The first line is not a CSV header ({error}). {EXPECTED}") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        if len(names) == 1 and (";" in line or "\t" in line):
            separator = "semicolons" if ";" in line else "tabs"
            raise NotAirportsCSV(
                f"The columns are separated by {separator}. Export the file with commas."
            )
        if len(missing) == len(COLUMNS):
            raise NotAirportsCSV(f"The first line is not a header of airports. {EXPECTED}")
        raise NotAirportsCSV(
            f"The first line does not name these columns: {', '.join(missing)}. {EXPECTED}"
        )
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise NotAirportsCSV(
            f"The first line names these columns twice: {', '.join(repeated)}. Rename one."
        )
    return names


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _not_utf8(line: int) -> str:
    return f"Line {line:,} is not UTF-8. Save the file as CSV in UTF-8."
