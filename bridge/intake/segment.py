"""A file of customers -> rows of a SessionM batch job, and the lines that cannot be one.

Pure, and streamed: a file of millions of lines passes through in constant memory. Two kinds of
files are read, both by their column names: Braze's segment exports (the customer in ``user_id``,
dozens of further columns, anonymous profiles with a blank one), which are tagged with a tag that
the caller names, and SessionM's own format (``user_id`` or ``external_id``, ``tag``, ``expires``).
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from bridge.customer import Customer, CustomerKind
from bridge.fields import MAX_TTL, FieldError, duration, identifier, required, shown, trim
from bridge.intake.rules import Rules

DAY = 86400
CHUNK = 64 * 1024
# Characters of one line, and of one record: an export's longest columns are lists of devices.
MAX_LINE = MAX_RECORD = 1024 * 1024
MAX_COLUMNS = 5000
# Of so many tags it is remembered whether they count or expire; files have one, or a few.
MOST_TAGS = 10_000

# By column name in small letters without spaces and underscores. Braze calls its own id Braze ID
# or Appboy ID: it means nothing to SessionM.
_ID_COLUMNS: dict[str, CustomerKind] = {
    "userid": "user_id",
    "externalid": "external_id",
    "externaluserid": "external_id",
}
# Columns of Braze's, written likewise, that hold none of SessionM's identifiers.
_NO_ID_COLUMNS = {
    "brazeid",
    "appboyid",
    "useraliases",
    "email",
    "emailaddress",
    "phone",
    "phonenumber",
    "firstname",
    "lastname",
    "randombucket",
}
_EXPIRES = re.compile(r"([0-9]{1,6})\s*(day|days|week|weeks|hour|hours)", re.IGNORECASE)
_UNIT = {"d": DAY, "w": 7 * DAY, "h": 3600}
# How bytes that are no UTF-8 are read; see `lines_of`.
_UNDECODED = re.compile("[\ud800-\udfff]")
# What needs no further look; everything else goes through `identifier`.
_PLAIN = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+:-]{0,254}")


class FileRefusedError(Exception):
    """A file of which nothing can be used; ``str()`` is one sentence.

    Attributes:
        option: which option would mend it, such as ``id_column``; "" if none does. The sentence
            may go on with "by" and that option, as it is called where the file was given.
    """

    def __init__(self, problem: str, option: str = "") -> None:
        super().__init__(problem)
        self.option = option


@dataclass(frozen=True)
class Wanted:
    """How a file is to be read.

    Attributes:
        tag: for all rows, where the file has no column of that name.
        ttl: seconds, for the same rows; ``None`` makes *tag* a counter.
        id_column: the column that holds the customer, if its name does not say so.
        id_kind: what it is to SessionM.
        customers_only: no row has a tag, whatever columns there are.
    """

    tag: str = ""
    ttl: int | None = None
    id_column: str = ""
    id_kind: CustomerKind | None = None
    customers_only: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One tag for one customer, for so many *days*; ``None`` counts it."""

    line: int
    customer: Customer
    tag: str
    days: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that is left out."""

    line: int
    reason: str


@dataclass
class Segment:
    """An opened file.

    Attributes:
        kinds: the identifiers that its rows may have, which are columns of SessionM's file.
        own_tags: whether each row names its tag: SessionM's own format.
    """

    kinds: tuple[CustomerKind, ...]
    own_tags: bool
    _records: Iterator[tuple[int, list[str]]]
    _columns: dict[str, int]
    _width: int
    _wanted: Wanted
    _days: int | None
    _rules: Rules
    _counts: dict[str, bool] = field(default_factory=dict)
    _expires: dict[str, int | None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row | Refused]:
        """The rows in order.

        Raises:
            FileRefusedError: it is no CSV from some line on, or a line has no end.
        """
        for line, cells in self._records:
            try:
                if row := self._row(line, cells):
                    yield row
            except FieldError as problem:
                yield Refused(line, f"{problem}.")

    def _row(self, line: int, cells: list[str]) -> Row | None:
        if not cells:
            return None
        if len(cells) != self._width:
            # Fewer are what is left behind a line break in free text, and any of it may look like
            # a customer.
            raise FieldError("the line", f"has {len(cells)} fields, the header {self._width}")
        customer = self._customer(cells)
        if not self.own_tags:
            return Row(line, customer, self._wanted.tag, self._days)
        tag = required(self._cell(cells, "tag"), "tag")
        days = self._read_days(self._cell(cells, "expires"))
        self._refuse_mixed(tag, counts=days is None)
        return Row(line, customer, tag, days)

    def _customer(self, cells: list[str]) -> Customer:
        for kind in self.kinds:
            value = self._cell(cells, kind)
            if not value:
                continue
            found = value if _PLAIN.fullmatch(value) else identifier(value, kind)
            if found:
                return Customer(kind, found)
        raise FieldError(" and ".join(self.kinds), "is blank")

    def _cell(self, cells: list[str], name: str) -> str:
        place = self._columns.get(name)
        value = "" if place is None else cells[place]
        if not value.isascii() and _UNDECODED.search(value):
            raise FieldError(name, "is not in UTF-8: save the file as CSV in UTF-8")
        return value

    def _read_days(self, value: str) -> int | None:
        if value not in self._expires:
            if len(self._expires) >= MOST_TAGS:
                self._expires.clear()
            self._expires[value] = read_expires(value)
        return self._expires[value]

    def _refuse_mixed(self, tag: str, *, counts: bool) -> None:
        if tag not in self._counts:
            refuse_mixed(tag, self._rules, counts=counts)
            if len(self._counts) < MOST_TAGS:
                self._counts[tag] = counts
        elif self._counts[tag] is not counts:
            kind = "a counter" if self._counts[tag] else "an expiring tag"
            raise FieldError("tag", f'"{shown(tag)}" is {kind} in earlier lines')


def open_segment(lines: Iterable[str], wanted: Wanted, rules: Rules) -> Segment:
    """Read the header of a file, given as *lines* with their ends.

    Raises:
        FileRefusedError: it names no customer or no tag, or *wanted* cannot be done.
    """
    header, records = _records(lines)
    columns = _columns(header, wanted)
    kinds: tuple[CustomerKind, ...] = tuple(k for k in _KINDS if k in columns)
    named = ", ".join(shown(name) for name in header[:12]) or "none"
    if not kinds:
        raise FileRefusedError(
            f"The file has no column user_id or external_id; its columns are: {named}. "
            "Say which one holds the customer.",
            "id_column",
        )
    if wanted.customers_only:
        columns.pop("tag", None)
    elif wanted.tag and "tag" in columns:
        raise FileRefusedError("The file has a column tag of its own: leave the tag out.")
    elif not wanted.tag and "tag" not in columns:
        raise FileRefusedError(
            "The file has no column tag: say which tag its customers get.", "tag"
        )
    elif wanted.tag and "expires" in columns:
        raise FileRefusedError(
            "The file has a column expires, which goes with a column tag: say each row's tag in "
            "one, or leave expires out and give a TTL with the tag."
        )
    if "," in wanted.tag:
        # In a webhook a comma separates tags.
        raise FileRefusedError(
            f'The tag "{shown(wanted.tag)}" holds a comma: give one tag, and submit the file once '
            "for each."
        )
    if wanted.ttl is not None and not wanted.tag:
        raise FileRefusedError("A TTL goes with a tag; this file has a column expires for it.")
    days = None
    if wanted.tag:
        try:
            days = whole_days(wanted.ttl)
            refuse_mixed(required(wanted.tag, "tag"), rules, counts=days is None)
        except FieldError as problem:
            raise FileRefusedError(f"{problem}.") from None
    return Segment(
        kinds=kinds,
        own_tags="tag" in columns,
        _records=records,
        _columns=columns,
        _width=len(header),
        _wanted=wanted,
        _days=days,
        _rules=rules,
    )


_KINDS: tuple[CustomerKind, ...] = ("user_id", "external_id")


def whole_days(ttl: int | None) -> int | None:
    """*ttl* in the one unit that SessionM documents for files; ``None`` stays ``None``.

    Raises:
        FieldError: it is no whole number of days.
    """
    if ttl is None:
        return None
    if not 0 < ttl <= MAX_TTL or ttl % DAY:
        raise FieldError("ttl", "must be whole days, such as 30d: a batch file says nothing finer")
    return ttl // DAY


def expires(days: int | None) -> str:
    """What stands in the column ``expires``: ``1 day``, ``30 days``, or nothing for a counter.

    SessionM's document shows ``1 day`` and no grammar. That more days are written ``30 days``, and
    that they count from when SessionM takes the row in, is assumed.
    """
    return "" if days is None else "1 day" if days == 1 else f"{days} days"


def read_expires(value: str) -> int | None:
    """Whole days out of ``1 day``, ``30 days``, ``2 weeks``, ``48 hours`` or ``30d``.

    Raises:
        FieldError: it is none of these, or no whole number of days.
    """
    cleaned = trim(value)
    if not cleaned:
        return None
    if match := _EXPIRES.fullmatch(cleaned):
        seconds = int(match[1]) * _UNIT[match[2][0].lower()]
    else:
        try:
            seconds = duration(cleaned)
        except ValueError:
            seconds = 0
    if not 0 < seconds <= MAX_TTL or seconds % DAY:
        raise FieldError("expires", "must be whole days, such as 1 day or 30 days")
    return seconds // DAY


def refuse_mixed(tag: str, rules: Rules, *, counts: bool) -> None:
    """Let no tag be a counter in one place and expiring in another.

    Raises:
        FieldError: by the rules it is the other.
    """
    if counts and rules.always_expires(tag):
        raise FieldError("tag", f'"{shown(tag)}" is an expiring tag by the rules: give it a TTL')
    if not counts and tag in rules.known_counters:
        raise FieldError("tag", f'"{shown(tag)}" is a counter by the rules: it cannot expire')


def sessionm_header(kinds: Sequence[CustomerKind]) -> str:
    """The first line of SessionM's file."""
    return ",".join([*kinds, "tag", "expires"]) + "\n"


def sessionm_rows(kinds: Sequence[CustomerKind], rows: Iterable[Row]) -> str:
    """Lines of SessionM's file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(
        [
            *(row.customer.id if kind == row.customer.kind else "" for kind in kinds),
            row.tag,
            expires(row.days),
        ]
        for row in rows
    )
    return text.getvalue()


def customers_in(header: str, lines: str) -> Iterator[Customer]:
    """Whom *lines* of a file of SessionM's with that *header* are about."""
    names = header.strip().split(",")
    kinds = [kind for kind in _KINDS if kind in names]
    for cells in csv.reader(io.StringIO(lines, newline="")):
        kind = next(kind for kind in kinds if cells[names.index(kind)])
        yield Customer(kind, cells[names.index(kind)])


def without(customer: Customer, header: str, lines: str) -> tuple[str, int]:
    """*lines* but for those about *customer*, and how many are left."""
    place = header.strip().split(",").index(customer.kind)
    rows = csv.reader(io.StringIO(lines, newline=""))
    kept = [cells for cells in rows if cells[place] != customer.id]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    return text.getvalue(), len(kept)


def lines_of(read: Callable[[int], bytes]) -> Iterator[str]:
    """The lines of a file in UTF-8, ends included; *read* gives up to so many bytes of it.

    They end as the first of them does: in a line feed, or in a bare carriage return.

    What is no UTF-8 becomes lone surrogates, which no identifier may hold: columns that nobody
    asks for may be in whatever encoding.

    Raises:
        FileRefusedError: it is another kind of file, or a line has no end.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    rest, number, first, end = "", 0, True, ""
    while chunk := read(CHUNK):
        if first:
            _refuse_other_files(chunk)
            first = False
        rest += decoder.decode(chunk)
        if not end and (match := _LINE_END.search(rest)):
            end = match[0]
        *lines, rest = rest.split(end or "\n")
        number += len(lines)
        for line in lines:
            yield line + end
        if len(rest) > MAX_LINE:
            raise FileRefusedError(f"Line {number + 1} is longer than {MAX_LINE} characters.")
    if rest := rest + decoder.decode(b"", final=True):
        yield rest


# A carriage return at the end of what is read may have its line feed yet to come.
_LINE_END = re.compile("\n|\r(?=[^\r\n])")
_OTHER_FILES = {
    b"PK\x03\x04": "The file is a ZIP archive: unpack it first.",
    b"\x1f\x8b": "The file is packed with gzip: unpack it first.",
    b"\xff\xfe": "The file is in UTF-16: save it as CSV in UTF-8.",
    b"\xfe\xff": "The file is in UTF-16: save it as CSV in UTF-8.",
    b"{": "The file is JSON: a CSV file is needed.",
    b"[": "The file is JSON: a CSV file is needed.",
}


def _refuse_other_files(start: bytes) -> None:
    for magic, problem in _OTHER_FILES.items():
        if start.startswith(magic):
            raise FileRefusedError(problem)


def _records(
    lines: Iterable[str],
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header's names, and each further record with the number of its first line."""
    csv.field_size_limit(MAX_RECORD)
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=source.separator, strict=True)
    records = _numbered(reader, source)
    _, header = next(records, (1, []))
    if len(header) > MAX_COLUMNS:
        raise FileRefusedError(f"The header has more than {MAX_COLUMNS} columns.")
    return [trim(name) for name in header], records


class _Lines:
    """The lines of a file for a CSV reader, and only so many for one record."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._first: str | None = next(self._lines, "")
        # Spreadsheets write the separator of their country.
        self.separator = max(",;\t", key=self._first.count)
        self._record = 1
        self._length = 0

    def begin(self, line: int) -> None:
        """A record begins in that line."""
        self._record, self._length = line, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._first is None:
            line = next(self._lines)
        else:
            line, self._first = self._first, None
        self._length += len(line)
        if self._length > MAX_RECORD:
            raise FileRefusedError(
                f"The record in line {self._record} is longer than {MAX_RECORD} characters: "
                "does it open a quote that is never closed?"
            )
        return line


def _numbered(reader: Any, source: _Lines) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line.

    Raises:
        FileRefusedError: one is no CSV. What follows it could be anything: reading might go on
            inside a quoted field, and take free text for customers.
    """
    while True:
        line = reader.line_num + 1
        source.begin(line)
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FileRefusedError(_no_csv(line, reader.line_num, str(error))) from None


def _no_csv(line: int, until: int, error: str) -> str:
    if "unexpected end" in error:
        return f"Line {line} opens a quote that is never closed."
    where = f"Line {line}" if until <= line else f"The record in lines {line} to {until}"
    if "expected after" in error:
        return f"{where} has text behind a closing quote; a quote within quotes is doubled."
    if "new-line" in error:
        return f"{where} has a line end that is unlike those of other lines; put it in quotes."
    return f"{where} is not CSV: {error}."


def _columns(header: list[str], wanted: Wanted) -> dict[str, int]:
    """Where ``user_id``, ``external_id``, ``tag`` and ``expires`` stand, as far as they do."""
    plain = [re.sub(r"[\s_]", "", name.lower()) for name in header]
    found: dict[str, int] = {n: _place(n, plain, header) for n in ("tag", "expires") if n in plain}
    if wanted.id_column:
        if wanted.id_column not in header:
            named = ", ".join(shown(name) for name in header[:12])
            raise FileRefusedError(
                f'The file has no column "{shown(wanted.id_column)}"; its columns are: {named}.'
            )
        place = _place(wanted.id_column, header, header)
        if wanted.id_kind is None and plain[place] in _NO_ID_COLUMNS:
            raise FileRefusedError(
                f'The column "{shown(wanted.id_column)}" of a Braze export holds neither the '
                "user_id nor the external_id of SessionM. If it does in this file, say which.",
                "id_kind",
            )
        kind = wanted.id_kind or _ID_COLUMNS.get(plain[place], "user_id")
        return {**found, kind: place}
    ids: dict[str, int] = {}
    for name, kind in _ID_COLUMNS.items():
        if name in plain:
            ids.setdefault(kind, _place(name, plain, header))
    if wanted.id_kind and len(ids) == 1:
        ids = {wanted.id_kind: next(iter(ids.values()))}
    elif wanted.id_kind:
        ids = {kind: place for kind, place in ids.items() if kind == wanted.id_kind}
    return {**found, **ids}


def _place(name: str, names: list[str], header: list[str]) -> int:
    place = names.index(name)
    if names.count(name) > 1:
        raise FileRefusedError(
            f'The file has {names.count(name)} columns "{shown(header[place])}": leave only the '
            "one that counts."
        )
    return place
