"""Files of customers, read as Braze and spreadsheets write them."""

import io
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.bulk.segment import (
    MAX_LINE,
    FileRefusedError,
    Refused,
    Row,
    SegmentOptions,
    customers_in,
    expires,
    lines_of,
    open_segment,
    read_expires,
    sessionm_header,
    sessionm_rows,
)
from bridge.customer import Customer, CustomerKind
from bridge.fields import CURLY_QUOTES
from bridge.intake.rules import Rule, Rules

RULES = Rules(ttl=86400, campaigns={"c": Rule(counters=("touches",), tags=("promo",))})
TAG = SegmentOptions(tag="t", ttl=86400)
BRAZE = (
    "Braze ID,country,created_at,devices,date_of_birth,email,user_id,first_name,random_bucket\r\n"
)


def read(file: str | bytes, wanted: SegmentOptions = TAG) -> list[Row | Refused]:
    body = file.encode() if isinstance(file, str) else file
    return list(open_segment(lines_of(io.BytesIO(body).read), wanted, RULES))


def ids(rows: Iterable[Row | Refused]) -> list[str]:
    return [row.customer.key for row in rows if isinstance(row, Row)]


def refused(rows: Iterable[Row | Refused]) -> list[int]:
    return [row.line for row in rows if isinstance(row, Refused)]


def test_a_braze_export_with_its_quirks() -> None:
    devices = '"[{""model"":""iPhone, 15"",\n""os"":""iOS""}]"'
    file = (
        "\ufeff" + BRAZE + f"5f1,US,2026-01-01,{devices},,a@b.c,u1,Anne,17\r\n"
        "5f2,US,2026-01-01,[],,,,,18\r\n"
        '5f3,DE,2026-01-01,[],,"x@y.z", u2 ,"O""Hara, Jr.",19\r\n'
        "\r\n"
        "5f4,DE,2026-01-01,[],,,{{${user_id}}},,20\r\n"
    )
    rows = read(file)
    assert ids(rows) == ["user_id:u1", "user_id:u2"]
    assert [row.line for row in rows] == [2, 4, 5, 7]
    assert refused(rows) == [4, 7]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("user_id", "user_id"),
        ("User ID", "user_id"),
        ("USER_ID", "user_id"),
        ("external_id", "external_id"),
        ("External ID", "external_id"),
        ("external_user_id", "external_id"),
    ],
)
def test_the_customers_column_is_found_by_its_name(header: str, kind: str) -> None:
    assert ids(read(f"Braze ID,{header}\n5f1,u1\n")) == [f"{kind}:u1"]


def test_which_column_and_what_it_is_can_be_said() -> None:
    file = "loyalty no,user_id\nl1,u1\n"
    assert ids(
        read(file, SegmentOptions(tag="t", id_column="loyalty no", id_kind="external_id"))
    ) == ["external_id:l1"]
    assert ids(read(file, SegmentOptions(tag="t", id_kind="external_id"))) == ["external_id:u1"]


def test_a_column_of_brazes_may_hold_the_customer_where_that_is_said() -> None:
    wanted = SegmentOptions(tag="t", id_column="email", id_kind="external_id")
    assert ids(read("email,user_id\na@b.c,u1\n", wanted)) == ["external_id:a@b.c"]


def test_user_id_wins_and_external_id_fills_in() -> None:
    rows = read("user_id,external_id,tag,expires\nu1,e1,a,\n,e2,a,\n", SegmentOptions())
    assert ids(rows) == ["user_id:u1", "external_id:e2"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_spreadsheets_of_other_countries_are_read(separator: str) -> None:
    assert ids(read(f"user_id{separator}name\nu1{separator}A, B\n")) == ["user_id:u1"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_first_line_may_name_the_separator(
    separator: str, end: str, quote: str, mark: str
) -> None:
    lines = [
        f"{quote}sep={separator}{quote}",
        f"user_id{separator}name",
        f"u1{separator}x",
        "u2",
        "",
    ]
    first, second = read(mark + end.join(lines))
    assert ids([first]) == ["user_id:u1"]
    # Lines are counted as an editor counts them.
    assert (first.line, refused([second])) == (3, [4])


@pytest.mark.parametrize(
    "header",
    [
        '"Name, first",user_id',
        '"a,b,c";user_id',
        '"a;b;c",user_id',
        '\ufeff"a\tb,"\tuser_id',
        '"x""y,"";"";";user_id',
    ],
    ids=ascii,
)
def test_a_separator_within_a_quoted_name_separates_nothing(header: str) -> None:
    separator = header.removesuffix("user_id")[-1]
    assert ids(read(f"{header}\r\nx{separator}u1\r\n")) == ["user_id:u1"]


@pytest.mark.parametrize(
    ("cell", "customer"),
    [
        *(
            ('="00123"', "00123"),
            ('"=""00123"""', "00123"),
            (' ="00123" ', "00123"),
            ("007", "007"),
        ),
        *(("\u200eu1\u2060", "u1"), ('"u\u200d1"', "u\u200d1"), ("1.5", "1.5"), ("5e12", "5e12")),
        *(("12E34", "12E34"), ("1.0.0", "1.0.0"), ("a@b.c", "a@b.c"), ("=1", "=1")),
    ],
    ids=ascii,
)
def test_a_cell_is_read_as_the_spreadsheet_shows_it(cell: str, customer: str) -> None:
    assert ids(read(f"user_id,name\n{cell},x\n")) == [f"user_id:{customer}"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        *((cell, "rounded by a spreadsheet") for cell in ("1.23457E+15", '"1,23457E+15"', "1E+15")),
        *((cell, "rounded by a spreadsheet") for cell in ("-1.5e+20", "1.2E-05")),
        *((cell, "written with decimals") for cell in ("12345.0", "12345.00", '"12345,0"')),
        *((cell, f'is "{cell}"') for cell in ("#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!")),
        *((cell, f'is "{cell}"') for cell in ("null", "NULL", "None", "undefined", "\\N", "nan")),
        ("[object Object]", "object"),
    ],
)
@pytest.mark.parametrize(
    "wanted", [TAG, SegmentOptions(customers_only=True)], ids=["tag", "customers"]
)
def test_a_spoilt_cell_is_refused_with_the_reason_and_no_other(
    cell: str, reason: str, wanted: SegmentOptions
) -> None:
    rows = read(f"user_id,name\nu1,x\n{cell},x\n12346,x\n", wanted)
    assert ids(rows) == ["user_id:u1", "user_id:12346"]
    [row] = [row for row in rows if isinstance(row, Refused)]
    assert row.line == 3
    assert reason in row.reason


def test_a_word_for_no_value_leaves_the_row_to_the_other_identifier() -> None:
    rows = read("user_id,external_id\nnull,e1\n#N/A,e2\n1.2E+15,e3\n,NULL\n")
    assert ids(rows) == ["external_id:e1", "external_id:e2"]
    assert refused(rows) == [4, 5]


@pytest.mark.parametrize("cell", ["null", "#N/A", "\\N", ""])
def test_a_word_for_no_value_is_no_tag(cell: str) -> None:
    assert refused(
        read(f'user_id,tag,expires\nu1,{cell},\nu2,="vip",30 days\n', SegmentOptions())
    ) == [2]


@pytest.mark.parametrize(
    ("value", "days"),
    [
        ("1 day", 1),
        ("30 days", 30),
        ("30 DAYS", 30),
        ("2 weeks", 14),
        ("48 hours", 2),
        ("30d", 30),
        ("86400", 1),
        ("86400.0", 1),
        ('="1 day"', 1),
        ("", None),
        ("  ", None),
    ],
)
def test_expires_is_read_in_forms_that_are_whole_days(value: str, days: int | None) -> None:
    [row] = read(f"user_id,tag,expires\nu1,a,{value}\n", SegmentOptions())
    assert isinstance(row, Row)
    assert row.days == days


@pytest.mark.parametrize("value", ["1 month", "90 minutes", "36 hours", "0 days", "-1 day", "soon"])
def test_what_is_no_whole_number_of_days_is_refused(value: str) -> None:
    assert refused(read(f"user_id,tag,expires\nu1,a,{value}\n", SegmentOptions())) == [2]


@given(st.integers(1, 3650))
def test_what_is_written_is_read_the_same(days: int) -> None:
    assert read_expires(expires(days)) == days
    assert expires(1) == "1 day"


def test_a_tag_is_a_counter_or_expires_but_not_both() -> None:
    rows = read(
        "user_id,tag,expires\nu1,a,\nu1,a,1 day\nu1,touches,1 day\nu1,promo,\n", SegmentOptions()
    )
    assert refused(rows) == [3, 4, 5]


@pytest.mark.parametrize(
    ("file", "wanted", "expected"),
    [
        ("", TAG, "no column"),
        ("email\nx\n", TAG, "email"),
        ("Braze ID\nx\n", TAG, "no column user_id"),
        ("user_id\nu1\n", SegmentOptions(), "no column tag"),
        ("user_id,tag\nu1,a\n", TAG, "of its own"),
        ("user_id,tag\nu1,a\n", SegmentOptions(ttl=86400), "expires"),
        ("user_id\nu1\n", SegmentOptions(tag="t", ttl=5400), "whole days"),
        ("user_id\nu1\n", SegmentOptions(tag="touches", ttl=86400), "counter"),
        ("user_id\nu1\n", SegmentOptions(tag="promo"), "expiring"),
        ("user_id\nu1\n", SegmentOptions(tag="t", id_column="no"), '"no"'),
        ("PK\x03\x04rest", TAG, "ZIP"),
        ("user_id\nu1\n".encode("utf-16"), TAG, "UTF-16"),
        ('[{"user_id":"u1"}]', TAG, "JSON"),
        ('user_id\nu1\n"u2\n' + "u3\n" * 10, TAG, "Line 3"),
        ("user_id\n" + "u" * (MAX_LINE + 100_000), TAG, "longer"),
        ("user_id,expires\nu1,30 days\n", SegmentOptions(tag="t"), "column expires"),
        ("user_id,expires\nu1,30 days\n", TAG, "column expires"),
        ('user_id,a,b\nu1,"ab"c,"hello\nVICTIM,x,bye"\n', TAG, "Line 2 .* closing quote"),
        ('user_id,a\nu0,\nu1,"a\nb"c\n', TAG, "lines 3 to 4"),
        ("user_id,a\nu1,hello\rVICTIM,bye\n", TAG, "Line 2 has a line end"),
        ("user_id,a\ru1,hello\nVICTIM,bye\r", TAG, "Line 2 has a line end"),
        ("user_id,user_id\nu1,u2\n", TAG, '2 columns "user_id"'),
        ("User ID,user_id\nu1,u2\n", TAG, '2 columns "User ID"'),
        ("user_id,tag,Tag\nu1,a,b\n", SegmentOptions(), '2 columns "tag"'),
        ("no,no\nu1,u2\n", SegmentOptions(tag="t", id_column="no"), '2 columns "no"'),
        (
            "Email,user_id\na@b,u1\n",
            SegmentOptions(tag="t", id_column="Email"),
            '"Email" of a Braze export',
        ),
        (
            "Braze ID\n5f1\n",
            SegmentOptions(tag="t", id_column="Braze ID"),
            '"Braze ID" of a Braze export',
        ),
        ("user_id\nu1\n", SegmentOptions(tag="summer,2026"), "holds a comma"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_the_reason(
    file: str | bytes, wanted: SegmentOptions, expected: str
) -> None:
    with pytest.raises(FileRefusedError, match=expected):
        read(file, wanted)


def test_a_shifted_line_is_refused_rather_than_misread() -> None:
    assert refused(read("name,user_id\nDoe, John,u1\nJane,u2\n")) == [2]


def test_what_is_left_behind_a_line_break_in_free_text_is_no_customer() -> None:
    rows = read("user_id,name,notes\nu1,Anne,hello\nVICTIM and more\nu2,Bob,bye\n")
    assert ids(rows) == ["user_id:u1", "user_id:u2"]
    [row] = [row for row in rows if isinstance(row, Refused)]
    assert (row.line, row.reason) == (3, "the line has 1 fields, the header 3.")


def test_a_cell_of_nothing_is_a_blank_customer_and_a_line_of_nothing_is_no_row() -> None:
    rows = read('user_id\nu1\n""\n\nu2\n')
    assert ids(rows) == ["user_id:u1", "user_id:u2"]
    assert refused(rows) == [3]


def test_lines_may_end_as_on_old_macs() -> None:
    rows = read('user_id,a\ru1,"x\ry"\ru2,\r')
    assert ids(rows) == ["user_id:u1", "user_id:u2"]
    assert ids(read("user_id\r\r\nu1\r\r\n")) == ["user_id:u1"]


def test_windows_line_ends_are_known_however_the_file_comes_in_pieces() -> None:
    file = io.BytesIO(b"user_id,a\r\nu1,\r\nu2,\r\n")
    rows = open_segment(lines_of(lambda _size: file.read(1)), TAG, RULES)
    assert ids(rows) == ["user_id:u1", "user_id:u2"]


def test_an_encoding_other_than_utf_8_is_named_where_it_matters() -> None:
    [first, second] = read("user_id,name\nu1,Ren\u00e9\nRen\u00e9,x\n".encode("latin-1"))
    assert ids([first]) == ["user_id:u1"]
    assert isinstance(second, Refused)
    assert "save the file as CSV in UTF-8" in second.reason


def test_a_record_that_does_not_end_is_refused_before_it_is_read_whole() -> None:
    file = io.BytesIO(b"user_id,a,b\nu1,x,y\nu2," + b'"a\nb",' * (MAX_LINE // 2))
    with pytest.raises(FileRefusedError, match="line 3 is longer"):
        list(open_segment(lines_of(file.read), TAG, RULES))
    assert file.tell() < 1.2 * MAX_LINE


def test_identifiers_that_no_url_or_database_takes_are_refused() -> None:
    rows = read(b"user_id\n..\n.\na\x00b\n\xff\xfe\n" + b"x" * 256 + b"\nok\n")
    assert ids(rows) == ["user_id:ok"]
    assert len(refused(rows)) == 5


@given(st.binary(max_size=400))
def test_no_file_breaks_the_reader(file: bytes) -> None:
    try:
        rows = read(b"user_id,x\n" + file)
    except FileRefusedError:
        return
    for row in rows:
        assert row.line > 1


@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_categories=["C", "Z"], exclude_characters=CURLY_QUOTES),
                min_size=1,
                max_size=20,
            ).filter(
                lambda text: text not in {".", ".."} and "{{" not in text and "${" not in text
            ),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_sessionms_file_says_what_the_rows_say(customers: list[tuple[str, bool]]) -> None:
    given_ = [Customer("user_id" if own else "external_id", name) for name, own in customers]
    kinds: tuple[CustomerKind, ...] = ("user_id", "external_id")
    lines = sessionm_rows(kinds, [Row(1, customer, "t, 1", 1) for customer in given_])
    assert list(customers_in(sessionm_header(kinds), lines)) == given_
