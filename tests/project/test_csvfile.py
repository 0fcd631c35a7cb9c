from pathlib import Path

import pytest

from project.airports.csvfile import (
    COLUMNS,
    AirportRow,
    NotAirportsCSV,
    RejectedRow,
    check_file,
    check_head,
    harmless,
    read_rows,
)
from project.airports.tasks import BUNDLED_FILE

HEADER = ",".join(COLUMNS)
GOOD = "ENGM,OSL,Oslo Airport,Oslo,Viken,NO,681,60.1939,11.1004,Europe/Oslo,"


def with_cell(name: str, value: str) -> str:
    cells = dict(zip(COLUMNS, GOOD.split(","), strict=True)) | {name: value}
    return ",".join(cells.values())


def only_row(line: str) -> AirportRow | RejectedRow:
    [(number, row)] = read_rows([HEADER + "\n", line + "\n"])
    assert number == 2
    return row


def test_every_bundled_row_is_valid() -> None:
    with BUNDLED_FILE.open(encoding="utf-8") as lines:
        rows = [row for _, row in read_rows(lines)]
    assert len(rows) > 28_000
    assert [row for row in rows if isinstance(row, RejectedRow)] == []


def test_codes_are_read_in_any_case_and_spacing() -> None:
    row = only_row(" engm ,osl,Oslo Airport,Oslo,Viken,no,681,60.1939,11.1004,Europe/Oslo,")
    assert isinstance(row, AirportRow)
    assert (row.icao, row.iata, row.country) == ("ENGM", "OSL", "NO")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("icao", "", "must be 4 letters or digits"),
        ("icao", "EN-M", "must be 4 letters or digits"),
        ("iata", "OS", "must be 3 letters or digits, or nothing"),
        ("name", "", "must be 1 to 100 characters"),
        ("name", "x" * 101, "must be 1 to 100 characters"),
        ("city", "a\x07b", "must be at most 100 characters"),
        ("country", "NOR", "must be 2 letters"),
        ("elevation", "high", "must be feet, a number from -2000 to 30000"),
        ("elevation", "nan", "must be feet, a number from -2000 to 30000"),
        ("elevation", "-2001", "must be feet, a number from -2000 to 30000"),
        ("lat", "90.1", "must be a number from -90 to 90"),
        ("lat", "inf", "must be a number from -90 to 90"),
        ("lon", "-180.5", "must be a number from -180 to 180"),
        ("tz", "somewhere", "must be a time zone such as Europe/Berlin"),
        ("lid", "x" * 11, "must be at most 10 letters and digits"),
    ],
)
def test_bad_cell_rejects_its_row_with_value_and_rule(column: str, value: str, rule: str) -> None:
    row = only_row(with_cell(column, value))
    assert isinstance(row, RejectedRow)
    assert row.reason == f"{column} is {value[:40]!r}, {rule}"
    assert row.line == 2


def test_all_errors_of_a_row_are_reported_together() -> None:
    row = only_row("E,O,Oslo Airport,Oslo,Viken,NO,681,99,11,Europe/Oslo,")
    assert isinstance(row, RejectedRow)
    assert [error.split()[0] for error in row.reason.split("; ")] == ["icao", "iata", "lat"]


def test_row_of_another_length_is_rejected() -> None:
    row = only_row("ENGM,OSL")
    assert row == RejectedRow(2, "has 2 columns, the header 11", "ENGM,OSL")


def test_open_quote_rejects_only_its_row() -> None:
    rows = dict(read_rows([HEADER, '"ENGM,OSL', GOOD]))
    assert isinstance(rows[2], RejectedRow)
    assert rows[2].reason.startswith("quotes in this line do not match")
    assert isinstance(rows[3], AirportRow)


def test_repeated_airport_is_rejected_and_names_the_first() -> None:
    rows = dict(read_rows([HEADER, GOOD, "", GOOD]))
    assert list(rows) == [2, 4]
    assert isinstance(rows[4], RejectedRow)
    assert rows[4].reason == "icao 'ENGM' is already in line 2"


def test_columns_may_be_reordered_and_extra() -> None:
    cells = dict(zip(COLUMNS, GOOD.split(","), strict=True))
    header = ["note", *reversed(COLUMNS)]
    line = ["seen", *(cells[name] for name in reversed(COLUMNS))]
    [(_, row)] = read_rows([",".join(header), ",".join(line)])
    assert isinstance(row, AirportRow)
    assert row.name == "Oslo Airport"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "The file is empty. The file must be CSV in UTF-8"),
        (b"\n \r\n", "The file is empty."),
        (
            b"PK\x03\x04rest",
            "The file is a ZIP archive or an Excel workbook and not CSV. Export",
        ),
        (b"\x1f\x8brest", "The file is a gzip archive"),
        (b"%PDF-1.7", "The file is a PDF"),
        ("icao,iata".encode("utf-16"), "The file is UTF-16. Save it as CSV in UTF-8."),
        (b"icao\0iata", "The file is binary, not CSV."),
        ("icao,iata\nZürich".encode("latin-1"), "Line 2 is not UTF-8. Save the file as CSV in"),
        (b"hello world", "The first line is not a header of airports. The file must be CSV"),
        (
            b"icao,iata,name",
            "The first line does not name these columns: city, subd,",
        ),
        (HEADER.replace(",", ";").encode(), "The columns are separated by semicolons. Export"),
        (HEADER.replace(",", "\t").encode(), "The columns are separated by tabs."),
        (f"{HEADER},icao".encode(), "The first line names these columns twice: icao."),
    ],
)
def test_file_without_airports_is_refused_with_a_remedy(head: bytes, message: str) -> None:
    with pytest.raises(NotAirportsCSV) as refused:
        check_head(head)
    assert str(refused.value).startswith(message)


def test_byte_order_mark_is_accepted() -> None:
    assert check_head(b"\xef\xbb\xbf" + HEADER.encode()) == list(COLUMNS)


def test_head_may_end_inside_a_character() -> None:
    assert check_head(f"{HEADER}\nZü".encode()[:-1])


def test_whole_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "airports.csv"
    file.write_text("\n".join([HEADER, *[GOOD] * 2000]))
    assert check_file(file) == 2001
    with file.open("ab") as end:
        end.write(b"\n\nZ\xfcrich")
    with pytest.raises(NotAirportsCSV, match=r"Line 2,003 is not UTF-8\."):
        check_file(file)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx"])
def test_formulas_are_escaped(text: str) -> None:
    assert harmless(text) == f"'{text}"


def test_other_cells_are_unchanged() -> None:
    assert harmless("Oslo = home") == "Oslo = home"
