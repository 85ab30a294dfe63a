"""Read a file of customers as rows of a SessionM batch job, and refuse unusable lines.

Pure, and streamed: a file of millions of lines takes constant memory. Two formats are read, both by
their column names. Braze's segment exports have the customer in ``user_id`` (blank for anonymous
profiles) and dozens of other columns; the caller names the tag. SessionM's own format has
``user_id`` or ``external_id``, ``tag`` and ``expires``.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from bridge.customer import CUSTOMER_KINDS, Customer, CustomerKind
from bridge.fields import (
    MAX_TTL,
    FieldError,
    csv_text,
    duration,
    identifier,
    is_no_value,
    required,
    shown,
    trim,
)
from bridge.intake.rules import Rules

DAY = 86400
CHUNK = 64 * 1024
# Characters of a line and of a record. The longest columns of an export are lists of devices.
MAX_LINE = MAX_RECORD = 1024 * 1024
MAX_COLUMNS = 5000
# Tags whose kind (counter or expiring) is remembered. Files usually have a few.
MOST_TAGS = 10_000

# Column name in lower case without spaces and underscores -> identifier. SessionM does not know
# Braze's own ID ("Braze ID", "Appboy ID").
_ID_COLUMNS: dict[str, CustomerKind] = {
    "userid": "user_id",
    "externalid": "external_id",
    "externaluserid": "external_id",
}
# Braze's columns, in the same spelling, without an identifier of SessionM.
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
# Bytes that are not UTF-8, as `lines_of` decodes them.
_UNDECODED = re.compile("[\ud800-\udfff]")
# Common identifiers, which need no further check: digits, GUIDs, and those that begin like loyal-1
# and a.b@c. This saves 25 % of the time for a row.
_PLAIN = re.compile(
    r"[0-9]{1,255}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|[A-Za-z][A-Za-z0-9]{0,63}[-_@][A-Za-z0-9._@:-]{0,190}"
)
# A formula that keeps a cell as text in a spreadsheet: ="00123".
_FORMULA_TEXT = re.compile(r'="([^"]*)"')
# A long number in a spreadsheet's scientific notation, with a local decimal separator.
_SCIENTIFIC = re.compile(r"[+-]?[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+|[+-]?[0-9][.,][0-9]+[eE]-[0-9]+")
_WITH_ZERO = re.compile(r"[0-9]+[.,]0+")
# The first line of some spreadsheets names the separator: sep=; (not in RFC 4180).
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"\r\n])"?[\r\n]*', re.IGNORECASE)


class FileRefusedError(Exception):
    """A file that cannot be used; ``str()`` is one sentence.

    Attributes:
        option: the option that solves the problem, such as ``id_column``; or "". The caller may
            append the option's own name to the sentence.
    """

    def __init__(self, problem: str, option: str = "") -> None:
        super().__init__(problem)
        self.option = option


@dataclass(frozen=True)
class SegmentOptions:
    """How to read a file.

    Attributes:
        tag: the tag of all rows, for a file without a column ``tag``.
        ttl: seconds, for the same rows; ``None`` makes *tag* a counter.
        id_column: name of the column that holds the customer; "" finds it by its usual name.
        id_kind: the identifier of SessionM's that the column holds.
        customers_only: read no tags, whatever columns there are.
    """

    tag: str = ""
    ttl: int | None = None
    id_column: str = ""
    id_kind: CustomerKind | None = None
    customers_only: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One tag for one customer: expiring after *days*, or a counter if *days* is ``None``."""

    line: int
    customer: Customer
    tag: str
    days: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused line, with the reason."""

    line: int
    reason: str


@dataclass
class Segment:
    """An opened file.

    Attributes:
        kinds: the kinds of identifiers in its rows, and so the columns of SessionM's file.
        own_tags: whether each row names its tag, as in SessionM's own format.
    """

    kinds: tuple[CustomerKind, ...]
    own_tags: bool
    _records: Iterator[tuple[int, list[str]]]
    _columns: dict[str, int]
    _width: int
    _options: SegmentOptions
    _days: int | None
    _rules: Rules
    _counts: dict[str, bool] = field(default_factory=dict)
    _expires: dict[str, int | None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row | Refused]:
        """Yield the rows in order.

        Raises:
            FileRefusedError: a line is not CSV, or is too long.
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
            # An unquoted line break in free text; the rest of it may look like a customer.
            raise FieldError("the line", f"has {len(cells)} fields, the header {self._width}")
        customer = self._customer(cells)
        if not self.own_tags:
            return Row(line, customer, self._options.tag, self._days)
        tag = required(self._cell(cells, "tag"), "tag")
        if is_no_value(tag):
            raise FieldError("tag", f'is "{tag}", which a program prints for no value')
        days = self._read_days(self._cell(cells, "expires"))
        self._refuse_mixed(tag, counts=days is None)
        return Row(line, customer, tag, days)

    def _customer(self, cells: list[str]) -> Customer:
        words = []
        for kind in self.kinds:
            value = self._cell(cells, kind)
            if not value:
                continue
            if _PLAIN.fullmatch(value):
                return Customer(kind, value)
            if found := identifier(value, kind):
                _refuse_spreadsheet_number(found, kind)
                return Customer(kind, found)
            if word := trim(value):
                words.append(f'{kind} is "{word}"')
        if words:
            raise FieldError("the line", f"names no customer: {' and '.join(words)}")
        raise FieldError(" and ".join(self.kinds), "is blank")

    def _cell(self, cells: list[str], name: str) -> str:
        index = self._columns.get(name)
        value = "" if index is None else cells[index]
        if not value.isascii() and _UNDECODED.search(value):
            raise FieldError(name, "is not in UTF-8: save the file as CSV in UTF-8")
        return _text_of(value)

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


def open_segment(lines: Iterable[str], options: SegmentOptions, rules: Rules) -> Segment:
    """Read the header of a file, given as *lines* with their line ends.

    Raises:
        FileRefusedError: the file has no column for the customer or the tag, or contradicts
            *options*.
    """
    header, records = _records(lines)
    columns = _columns(header, options)
    kinds: tuple[CustomerKind, ...] = tuple(k for k in CUSTOMER_KINDS if k in columns)
    named = ", ".join(shown(name) for name in header[:12]) or "none"
    if not kinds:
        raise FileRefusedError(
            f"The file has no column user_id or external_id; its columns are: {named}. "
            "Say which one holds the customer.",
            "id_column",
        )
    if options.customers_only:
        columns.pop("tag", None)
    elif options.tag and "tag" in columns:
        raise FileRefusedError("The file has a column tag of its own: leave the tag out.")
    elif not options.tag and "tag" not in columns:
        raise FileRefusedError(
            "The file has no column tag: say which tag its customers get.", "tag"
        )
    elif options.tag and "expires" in columns:
        raise FileRefusedError(
            "The file has a column expires, which goes with a column tag: say each row's tag in "
            "one, or leave expires out and give a TTL with the tag."
        )
    if "," in options.tag:
        # A comma separates tags in a webhook.
        raise FileRefusedError(
            f'The tag "{shown(options.tag)}" holds a comma: give one tag, and submit the file once '
            "for each."
        )
    if options.ttl is not None and not options.tag:
        raise FileRefusedError("A TTL goes with a tag; this file has a column expires for it.")
    days = None
    if options.tag:
        try:
            days = whole_days(options.ttl)
            refuse_mixed(required(options.tag, "tag"), rules, counts=days is None)
        except FieldError as problem:
            raise FileRefusedError(f"{problem}.") from None
    return Segment(
        kinds=kinds,
        own_tags="tag" in columns,
        _records=records,
        _columns=columns,
        _width=len(header),
        _options=options,
        _days=days,
        _rules=rules,
    )


def whole_days(ttl: int | None) -> int | None:
    """Return *ttl* seconds as days, the one unit that SessionM documents for files.

    Raises:
        FieldError: *ttl* is not a whole number of days.
    """
    if ttl is None:
        return None
    if not 0 < ttl <= MAX_TTL or ttl % DAY:
        raise FieldError("ttl", "must be whole days, such as 30d: a batch file says nothing finer")
    return ttl // DAY


def expires(days: int | None) -> str:
    """Return a cell of the column ``expires``: ``1 day``, ``30 days``, or "" for a counter.

    SessionM's document shows ``1 day`` and no grammar. Assumed: more days are written ``30 days``,
    and they run from the moment at which SessionM reads the row.
    """
    return "" if days is None else "1 day" if days == 1 else f"{days} days"


def read_expires(value: str) -> int | None:
    """Read ``1 day``, ``30 days``, ``2 weeks``, ``48 hours`` or ``30d`` as whole days.

    Raises:
        FieldError: it is none of these, or not a whole number of days.
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
    """Refuse a tag that is a counter here and expiring by the rules, or the reverse.

    Raises:
        FieldError: the kinds differ.
    """
    if counts and rules.always_expires(tag):
        raise FieldError("tag", f'"{shown(tag)}" is an expiring tag by the rules: give it a TTL')
    if not counts and tag in rules.known_counters:
        raise FieldError("tag", f'"{shown(tag)}" is a counter by the rules: it cannot expire')


def sessionm_header(kinds: Sequence[CustomerKind]) -> str:
    """Return the first line of SessionM's file."""
    return ",".join([*kinds, "tag", "expires"]) + "\n"


def sessionm_rows(kinds: Sequence[CustomerKind], rows: Iterable[Row]) -> str:
    """Return *rows* as lines of SessionM's file."""
    cells = (
        [
            *(row.customer.id if kind == row.customer.kind else "" for kind in kinds),
            row.tag,
            expires(row.days),
        ]
        for row in rows
    )
    return csv_text(cells, "\n")


def customers_in(header: str, lines: str) -> Iterator[Customer]:
    """Yield the customers in *lines* of a file of SessionM's with that *header*."""
    names = header.strip().split(",")
    kinds = [kind for kind in CUSTOMER_KINDS if kind in names]
    for cells in csv.reader(io.StringIO(lines, newline="")):
        kind = next(kind for kind in kinds if cells[names.index(kind)])
        yield Customer(kind, cells[names.index(kind)])


def without(customer: Customer, header: str, lines: str) -> tuple[str, int]:
    """Return *lines* without those of *customer*, and the number of remaining lines."""
    index = header.strip().split(",").index(customer.kind)
    rows = csv.reader(io.StringIO(lines, newline=""))
    kept = [cells for cells in rows if cells[index] != customer.id]
    return csv_text(kept, "\n"), len(kept)


def lines_of(read: Callable[[int], bytes]) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, with their line ends.

    All lines must end like the first one: in a line feed, or in a bare carriage return. Bytes that
    are not UTF-8 become lone surrogates, which identifiers must not hold. Columns that are not
    read may thus be in any encoding.

    Args:
        read: returns up to the given number of bytes, like `io.RawIOBase.read`.

    Raises:
        FileRefusedError: the file is of another type, or a line is too long.
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


# The line feed after a carriage return may be in the next block.
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


def _text_of(cell: str) -> str:
    """Return a cell without the formula that keeps leading zeros: ``="00123"`` becomes 00123."""
    match = _FORMULA_TEXT.fullmatch(trim(cell)) if cell and "=" in cell else None
    return match[1] if match else cell


def _refuse_spreadsheet_number(value: str, name: str) -> None:
    """Refuse a value that a spreadsheet has changed.

    Raises:
        FieldError: the value is a rounded number, ``1.23457E+15``, or has decimals, ``12345.0``.
    """
    if _SCIENTIFIC.fullmatch(value):
        raise FieldError(
            name, f"is {value}, rounded by a spreadsheet: save the column as text, not as numbers"
        )
    if _WITH_ZERO.fullmatch(value):
        raise FieldError(
            name,
            f"is {value}, a whole number written with decimals: save the column as text, not as "
            "numbers",
        )


def _records(
    lines: Iterable[str],
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the header's names, and the records, each with the number of its first line."""
    csv.field_size_limit(MAX_RECORD)
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=source.separator, strict=True)
    records = _numbered(reader, source)
    _, header = next(records, (1, []))
    if len(header) > MAX_COLUMNS:
        raise FileRefusedError(f"The header has more than {MAX_COLUMNS} columns.")
    return [trim(_text_of(name)) for name in header], records


class _Lines:
    """The lines of a file for a CSV reader, with a limit of `MAX_RECORD` characters for a record.

    Attributes:
        separator: the separator of cells.
        skipped: number of lines before the header.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        first = next(self._lines, "")
        self.skipped = 0
        if match := _SEPARATOR_LINE.fullmatch(first):
            self.skipped = 1
            self.separator = match[1]
            first = next(self._lines, "")
        else:
            # Spreadsheets use a local separator. Quoted names may hold other separators.
            self.separator = max(",;\t", key=re.sub('"[^"]*"', "", first).count)
        self._first: str | None = first
        self._record = 1
        self._length = 0

    def begin(self, line: int) -> None:
        """Start to count the characters of the record that starts in *line*."""
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
    """Yield each record with the number of its first line.

    Raises:
        FileRefusedError: a record is not CSV. The reader stops there: it may be inside a quoted
            field, and would take free text for customers.
    """
    while True:
        line = reader.line_num + 1 + source.skipped
        source.begin(line)
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            until = reader.line_num + source.skipped
            raise FileRefusedError(_not_csv(line, until, str(error))) from None


def _not_csv(line: int, until: int, error: str) -> str:
    if "unexpected end" in error:
        return f"Line {line} opens a quote that is never closed."
    where = f"Line {line}" if until <= line else f"The record in lines {line} to {until}"
    if "expected after" in error:
        return f"{where} has text behind a closing quote; a quote within quotes is doubled."
    if "new-line" in error:
        return f"{where} has a line end that is unlike those of other lines; put it in quotes."
    return f"{where} is not CSV: {error}."


def _columns(header: list[str], options: SegmentOptions) -> dict[str, int]:
    """Return the indexes of the columns ``user_id``, ``external_id``, ``tag`` and ``expires``."""
    plain = [re.sub(r"[\s_]", "", name.lower()) for name in header]
    found: dict[str, int] = {
        n: _index_of(n, plain, header) for n in ("tag", "expires") if n in plain
    }
    if options.id_column:
        if options.id_column not in header:
            named = ", ".join(shown(name) for name in header[:12])
            raise FileRefusedError(
                f'The file has no column "{shown(options.id_column)}"; its columns are: {named}.'
            )
        index = _index_of(options.id_column, header, header)
        if options.id_kind is None and plain[index] in _NO_ID_COLUMNS:
            raise FileRefusedError(
                f'The column "{shown(options.id_column)}" of a Braze export holds neither the '
                "user_id nor the external_id of SessionM. If it does in this file, say which.",
                "id_kind",
            )
        kind = options.id_kind or _ID_COLUMNS.get(plain[index], "user_id")
        return {**found, kind: index}
    ids: dict[str, int] = {}
    for name, kind in _ID_COLUMNS.items():
        if name in plain:
            ids.setdefault(kind, _index_of(name, plain, header))
    if options.id_kind and len(ids) == 1:
        ids = {options.id_kind: next(iter(ids.values()))}
    elif options.id_kind:
        ids = {kind: index for kind, index in ids.items() if kind == options.id_kind}
    return {**found, **ids}


def _index_of(name: str, names: list[str], header: list[str]) -> int:
    index = names.index(name)
    if names.count(name) > 1:
        raise FileRefusedError(
            f'The file has {names.count(name)} columns "{shown(header[index])}": leave only the '
            "one that counts."
        )
    return index
