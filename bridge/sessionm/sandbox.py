"""A stand-in for SessionM, for demonstrations and tests. It is not SessionM.

It keeps customers, tags, wallets and batch jobs in memory, answers over HTTP as the
Tags API and the Connect offers API do, and misbehaves on demand: `POST /sandbox/faults`.
What SessionM's public documents leave open is marked "assumed".

Read it from top to bottom: customers and the seed, faults, the log of calls, batch jobs,
the WSGI application with its routes, and the HTTP server.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import email.utils
import hashlib
import io
import itertools
import json
import math
import random
import re
import shlex
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeGuard, TypeVar
from urllib.parse import quote, unquote, urlsplit

import requests
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from wsgiref.types import StartResponse, WSGIEnvironment

Json = dict[str, Any]

SEED = Path(__file__).with_name("sandbox_seed.json")
REMEMBERED_CALLS = 200_000


@dataclass(frozen=True)
class Credentials:
    """What the sandbox accepts; as made up as its customers."""

    core_key: str = "sandbox-key"
    core_secret: str = "sandbox-secret"  # noqa: S105 - known to everybody, protects nothing
    connect_user: str = "sandbox"
    connect_password: str = "sandbox-password"  # noqa: S105 - likewise
    retailer_id: str = "11111111-1111-4111-8111-111111111111"

    def environment(self, url: str) -> dict[str, str]:
        """Return the bridge's settings that make the sandbox at `url` its SessionM."""
        return {
            "SESSIONM_CORE_URL": url,
            "SESSIONM_CORE_KEY": self.core_key,
            "SESSIONM_CORE_SECRET": self.core_secret,
            "SESSIONM_CONNECT_URL": url,
            "SESSIONM_CONNECT_AUTH": f"{self.connect_user}:{self.connect_password}",
            "SESSIONM_RETAILER_ID": self.retailer_id,
        }

    def token(self, side: str) -> str:
        """Return what follows `Basic ` in the Authorization of `core` or `connect`."""
        core, connect = (
            (self.core_key, self.core_secret),
            (self.connect_user, self.connect_password),
        )
        return base64.b64encode(":".join(core if side == "core" else connect).encode()).decode()


class SeedError(ValueError):
    """A seed file or a customer that cannot be used; the message says where and why."""


class _RefusedError(ValueError):
    """SessionM's refusal: an HTTP status, a code and a message. HTTP may well be 200."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _HangUpError(ConnectionAbortedError):
    """Close the connection without an answer; `reset` does it with a TCP RST."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__("the sandbox was told to hang up")
        self.reset = reset


# --- customers and their tags ---------------------------------------------------------


class Tag(NamedTuple):
    """A counter (`expires_at` is None) or an expiring tag (shown with count 0)."""

    uses: int
    expires_at: float | None


@dataclass(slots=True)
class Customer:
    """`profile` and `offers` may be shared between customers and are never changed."""

    user_id: str
    external_id: str | None
    profile: Json
    offers: Sequence[Json]
    total_points: int
    available_points: int
    tags: dict[str, Tag]

    def counts(self, now: float) -> dict[str, int]:
        """Return all tags that live, with their counts: the answer of the Tags API."""
        live = {n: t for n, t in self.tags.items() if t.expires_at is None or t.expires_at > now}
        self.tags = live
        return {name: tag.uses for name, tag in live.items()}

    def tag(self, names: Iterable[str], ttl: int | None, now: float) -> None:
        """Count each name once, or with `ttl` (seconds) let each live until then.

        A tag cannot change its kind while it lives. That this is answered with
        VALIDATION, and that nothing of the call is applied then, is assumed.
        """
        names = dict.fromkeys(names)
        present = self.counts(now)
        for name in names:
            if name in present and (self.tags[name].expires_at is None) != (ttl is None):
                kind = "a counter" if ttl is not None else "an expiring tag"
                raise _RefusedError(200, "validation", f"Tag {name!r} is {kind} already.")
        for name in names:
            uses = present.get(name, 0) + 1 if ttl is None else 0
            self.tags[name] = Tag(uses, None if ttl is None else now + ttl)


def _date(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _made_up_id(*parts: object) -> str:
    """Return the same GUID for the same parts, so that restarts change no identifier."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts)))


# --- the seed -------------------------------------------------------------------------

_CUSTOMER_KEYS = {
    *("user_id", "external_id", "email", "first_name", "last_name", "profile", "tags", "offers"),
    *("points", "total_points", "available_points"),
}
_SEED_KEYS = {
    *("customers", "offers", "offer_groups", "offer_categories", "any_customer", "new_customer"),
}


def load_seed(path: Path = SEED) -> Json:
    """Read a seed file. Raises SeedError if it cannot be read or is no JSON object."""
    try:
        seed = _parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SeedError(f"{path}: {error}") from error
    if not isinstance(seed, dict):
        raise SeedError(f"{path}: must be a JSON object")
    return seed


_MOST = 1e12
_MOST_DAYS = 36525


def _check(good: object, otherwise: str) -> None:
    if not good:
        raise SeedError(otherwise)


def _is_number(value: object, least: float = -_MOST) -> TypeGuard[float]:
    """Say whether it is a finite number that clocks and slices can reckon with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return least <= value <= _MOST


def _is_whole(value: object, least: int = 0) -> TypeGuard[int]:
    return isinstance(value, int) and _is_number(value, least)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _objects(value: object, where: str) -> list[Json]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SeedError(f"{where}: must be a list of objects")
    return value


class Catalogue:
    """The offers, groups and categories that customers' wallets are made of.

    Raises SeedError. `now` (Unix seconds) is what the seed's offsets in days count from.
    """

    def __init__(self, seed: Mapping[str, Any], now: float) -> None:
        self._now = now
        self._offers = seed.get("offers", {})
        _check(isinstance(self._offers, dict), "offers: must be an object of offers by name")
        self.groups = self._named(seed, "offer_groups")
        self.categories = self._named(seed, "offer_categories")

    @staticmethod
    def _named(seed: Mapping[str, Any], key: str) -> dict[str, Json]:
        items = _objects(seed.get(key, []), key)
        for number, item in enumerate(items):
            _check(_is_text(item.get("id")), f"{key}[{number}]: id is missing")
        return {item["id"]: item for item in items}

    def customer(self, given: object, where: str) -> Customer:
        """Make the customer that `given` describes; `where` it stands is for the error."""
        if not isinstance(given, dict):
            raise SeedError(f"{where}: must be an object")
        unknown = ", ".join(sorted(set(given) - _CUSTOMER_KEYS))
        _check(not unknown, f"{where}: unknown key {unknown}; known: {_listing(_CUSTOMER_KEYS)}")
        _check(_is_text(given.get("user_id")), f"{where}: user_id must be a non-empty string")
        external_id = given.get("external_id")
        good = external_id is None or _is_text(external_id)
        _check(good, f"{where}: external_id must be a non-empty string")
        return Customer(
            user_id=given["user_id"],
            external_id=external_id,
            profile=self._profile(given, where),
            offers=self._wallet(given.get("offers", []), f"{where}.offers"),
            total_points=self._points(given, "total_points", where),
            available_points=self._points(given, "available_points", where),
            tags=self._tags(given.get("tags", {}), f"{where}.tags"),
        )

    @staticmethod
    def _profile(given: Json, where: str) -> Json:
        further = given.get("profile", {})
        if not isinstance(further, dict):
            raise SeedError(f"{where}: profile must be an object")
        return {key: given.get(key) for key in ("email", "first_name", "last_name")} | further

    @staticmethod
    def _points(given: Json, key: str, where: str) -> int:
        points = given.get(key, given.get("points", 0))
        if not _is_whole(points):
            raise SeedError(f"{where}: {key} must be a whole number, not {points!r}")
        return points

    def _tags(self, given: object, where: str) -> dict[str, Tag]:
        """Read `["a"]`, `{"a": 3}` (counters) and `{"b": {"ttl": 60}}` (expiring)."""
        if isinstance(given, list):
            _check(all(map(_is_text, given)), f"{where}: every tag must be a non-empty string")
            given = dict.fromkeys(given, 1)
        if not isinstance(given, dict):
            raise SeedError(f"{where}: must be a list or an object")
        return {name: self._tag(value, f"{where}.{name}") for name, value in given.items()}

    def _tag(self, value: object, where: str) -> Tag:
        if isinstance(value, dict) and set(value) == {"ttl"} and _is_whole(value["ttl"], 1):
            return Tag(0, self._now + value["ttl"])
        if not _is_whole(value, 1):
            raise SeedError(f'{where}: must be a count from 1 or {{"ttl": seconds}}, not {value!r}')
        return Tag(value, None)

    def _wallet(self, given: object, where: str) -> tuple[Json, ...]:
        entries = enumerate(_objects(given, where))
        issued = (self._issue(entry, f"{where}[{number}]") for number, entry in entries)
        return tuple(itertools.chain.from_iterable(issued))

    def _issue(self, entry: Json, where: str) -> list[Json]:
        """Return the offer of `entry`, in `copies`.

        `use` names an offer of the seed's `offers`, whose fields `entry` overrides.
        Copies have ids of their own and share `root_offer_id`.
        """
        name = entry.get("use")
        _check(name is None or name in self._offers, f"{where}: there is no offer {name!r} to use")
        offer = dict(self._offers[name]) if name else {}
        offer |= {key: value for key, value in entry.items() if key not in ("use", "copies")}
        copies = entry.get("copies", 1)
        _check(_is_whole(copies, 1), f"{where}: copies must be a whole number from 1")
        offer = self._complete(self._dated(offer, where), where)
        clones = ({"offer_id": _made_up_id(offer["offer_id"], n)} for n in range(1, copies))
        return [offer, *({**offer, **clone} for clone in clones)]

    def _dated(self, offer: Json, where: str) -> Json:
        """Turn `X_in_days: 2` into `X: "2026-12-01T00:00:00Z"`; an X that is given stays."""
        dated: Json = {}
        for key, value in offer.items():
            plain = key.removesuffix("_in_days")
            if plain == key:
                dated[key] = value
            elif plain not in offer:
                dated[plain] = self._in_days(value, f"{where}: {key}")
        return dated

    def _in_days(self, days: object, where: str) -> str | None:
        if days is None:
            return None
        if not _is_number(days) or abs(days) > _MOST_DAYS:
            raise SeedError(f"{where} must be a number of days or null, not {days!r}")
        return _date(self._now + days * 86400)

    @staticmethod
    def _complete(offer: Json, where: str) -> Json:
        translations = offer.get("translations", {})
        good = isinstance(translations, dict)
        good = good and all(isinstance(each, dict) for each in translations.values())
        _check(good, f"{where}: translations must be an object of objects by culture")
        title = offer.get("title") or offer.get("name") or "An offer"
        offer_id = offer.get("offer_id") or _made_up_id(where, title)
        usual = {
            "offer_id": offer_id,
            "root_offer_id": offer_id,
            "offer_group_id": "00000000-0000-0000-0000-000000000000",
            "offer_type": "manual_fulfillment",
            "name": title,
            "title": title,
            "expiration_date": None,
            "redeem_date": None,
        }
        return usual | offer

    def groups_of(self, offers: Iterable[Json]) -> list[Json]:
        return self._named_by(self.groups, {offer.get("offer_group_id") for offer in offers})

    def categories_of(self, offers: Iterable[Json]) -> list[Json]:
        return self._named_by(self.categories, {offer.get("offer_category_id") for offer in offers})

    @staticmethod
    def _named_by(items: dict[str, Json], wanted: set[object]) -> list[Json]:
        return [item for item_id, item in items.items() if item_id in wanted]


def _listing(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))


# --- faults ---------------------------------------------------------------------------

_CODES = {
    400: "argument_error",
    401: "invalid_api_key",
    403: "access_denied",
    404: "not_found",
    405: "not_available",
    422: "validation",
    503: "not_available",
}
_HTML = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1><p>An HTML page.</p></body></html>"


def _between(low: float, high: float = math.inf) -> Callable[[object], object]:
    """Return a check for a number from `low` to `high`."""

    def check(value: object) -> object:
        if not _is_number(value, low) or value > high:
            raise ValueError(f"must be a number {_range(low, high)}")
        return value

    return check


def _whole_between(low: int, high: float = math.inf) -> Callable[[object], object]:
    def check(value: object) -> object:
        if not _is_whole(value, low) or value > high:
            raise ValueError(f"must be a whole number {_range(low, high)}")
        return value

    return check


def _range(low: float, high: float) -> str:
    return f"from {low:g}" + (f" to {high:g}" if high < math.inf else "")


def _one_of(*allowed: object) -> Callable[[object], object]:
    def check(value: object) -> object:
        if not any(value is each or (value == each and isinstance(value, str)) for each in allowed):
            raise ValueError("must be " + " or ".join(json.dumps(each) for each in allowed))
        return value

    return check


def _text(value: object) -> object:
    if not _is_text(value) or not value.isprintable():
        raise ValueError("must be a string")
    return value


def _latency(value: object) -> object:
    match value:
        case [least, most] if _is_number(least, 0) and _is_number(most, least):
            return least, most
        case _ if _is_number(value, 0):
            return value, value
    raise ValueError("must be milliseconds or [min, max]")


def _retry_after(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"http-date:\+\d{1,9}", value):
        return value
    if not _is_number(value, 0):
        raise ValueError('must be seconds or "http-date:+SECONDS"')
    return value


def _expression(value: object) -> object:
    try:
        return re.compile(value) if isinstance(value, str) else _text(value)
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})") from error


_FAULT_CHECKS: dict[str, Callable[[object], object]] = {
    "latency_ms": _latency,
    "error_rate": _between(0, 1),
    "error_status": _whole_between(400, 599),
    "status": _whole_between(400, 599),
    "code": _text,
    "retry_after": _retry_after,
    "ok_error": _one_of(True, False),
    "drop": _one_of("before", "after", "reset"),
    "drop_rate": _between(0, 1),
    "garbage": _one_of(True, False, "json"),
    "hang": _between(0, 3600),
    "hang_after": _between(0, 3600),
    "drip": _between(0, 3600),
    "huge": _whole_between(1, 1_000_000_000),
    "redirect": _text,
    "match": _expression,
    "times": _whole_between(1),
    "where": _one_of("core", "connect", "both"),
}
_SURE_OUTCOMES = ("status", "ok_error", "redirect", "garbage", "drop")


@dataclass(slots=True, eq=False)
class Fault:
    """One way to misbehave; times in seconds but for `latency_ms`.

    Without any effect of its own (only `match`) it exempts calls from the faults after it.
    """

    given: Json
    latency_ms: tuple[float, float] = (0, 0)
    error_rate: float = 0
    error_status: int = 500
    status: int | None = None
    code: str | None = None
    retry_after: float | str | None = None
    ok_error: bool = False
    drop: str = "before"
    drop_rate: float = 0
    garbage: bool | str = False
    hang: float = 0
    hang_after: float = 0
    drip: float = 0
    huge: int = 0
    redirect: str | None = None
    match: re.Pattern[str] = re.compile("")
    times: int | None = None
    where: str = "both"

    @classmethod
    def parse(cls, given: object) -> Self:
        """Raises ValueError that names the key."""
        if not isinstance(given, dict):
            raise ValueError("a fault must be an object")  # noqa: TRY004 - one error for all
        values = {key: cls._value(key, value) for key, value in given.items()}
        cls._refuse_contradictions(values)
        if "drop" in values:
            values.setdefault("drop_rate", 1)
        return cls(given, **values)

    @staticmethod
    def _value(key: str, value: object) -> Any:  # noqa: ANN401 - each key has its own type
        if key not in _FAULT_CHECKS:
            raise ValueError(f"unknown key {key!r}; known: {_listing(_FAULT_CHECKS)}")
        try:
            return _FAULT_CHECKS[key](value)
        except ValueError as error:
            raise ValueError(f"{key} {error}, not {json.dumps(value)}") from error

    @staticmethod
    def _refuse_contradictions(values: Json) -> None:
        """Refuse what would silently do nothing."""
        sure = {key for key in _SURE_OUTCOMES if values.get(key)}
        if "drop_rate" in values:
            sure.discard("drop")
        if len(sure) > 1 and sure != {"status", "garbage"}:
            raise ValueError(f"{' and '.join(sorted(sure))} exclude each other")
        if "status" in values and "error_rate" in values:
            raise ValueError("status is for every call; with error_rate use error_status")
        if "error_status" in values and "error_rate" not in values:
            raise ValueError("error_status needs error_rate")
        if "code" in values and not {"status", "ok_error", "error_rate", "hang"} & set(values):
            raise ValueError("code needs status, ok_error, error_rate or hang")
        statuses = {values.get("status"), values.get("error_status")}
        if "retry_after" in values and not statuses & {429, 503}:
            raise ValueError("retry_after needs status or error_status 429 or 503")

    def shown(self) -> Json:
        return self.given if self.times is None else {**self.given, "times": self.times}

    def strikes(self, side: str, line: str) -> bool:
        """Say whether this is for the call `line` ("METHOD path") to `side`."""
        return self.where in ("both", side) and self.match.search(line) is not None

    def latency(self) -> float:
        return random.uniform(*self.latency_ms) / 1000  # noqa: S311 - a delay, not a secret

    def dropped(self) -> str:
        """Return how this call is dropped ("before", "after", "reset"), or ""."""
        return self.drop if _happens(self.drop_rate) else ""

    def instead(self, now: float, *, writes: bool) -> Response | None:
        """Return what is answered in place of SessionM's own answer, if anything is."""
        if self.garbage:
            return _garbage(self.garbage, self.status or 200)
        if self.redirect:
            return Response(b"", 302, {"Location": self.redirect})
        if self.status:
            return self._error(self.status, now)
        if self.ok_error:
            return self._error(200, now)
        if _happens(self.error_rate):
            return self._error(self.error_status, now)
        # A read has nothing to leave undone: it is only late.
        return self._error(500, now) if self.hang and writes else None

    def _error(self, status: int, now: float) -> Response:
        code = self.code or _CODES.get(status, "internal_server_error")
        response = _error(status, code, "The sandbox was told to fail (POST /sandbox/faults).")
        if self.retry_after is not None and status in (429, 503):
            response.headers["Retry-After"] = self._retry_after(now)
        return response

    def _retry_after(self, now: float) -> str:
        if isinstance(self.retry_after, str):
            ahead = int(self.retry_after.removeprefix("http-date:+"))
            return email.utils.formatdate(now + ahead, usegmt=True)
        return f"{self.retry_after:g}"

    def deform(self, response: Response) -> Response:
        """Make the answer huge or slow."""
        if self.huge and response.is_json:
            response.set_data(_padded(response.get_data(), self.huge))
        if self.drip:
            body = response.get_data()
            response.response = _drips(body, self.drip)
            response.headers["Content-Length"] = str(len(body))
        return response


_NO_FAULT = Fault({})


def _happens(rate: float) -> bool:
    return rate > 0 and random.random() < rate  # noqa: S311 - dice, not a secret


def _pause(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _garbage(kind: bool | str, status: int) -> Response:  # noqa: FBT001 - as it stands in the fault
    if kind == "json":
        return Response(b'{"status":"ok","tags":{"tag1":2,"ta', status, mimetype="application/json")
    return Response(_HTML, status, mimetype="text/html")


def _padded(body: bytes, size: int) -> bytes:
    """Bring a JSON object to `size` bytes with one more key."""
    head, tail = body.rstrip()[:-1] + b',"padding":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


def _drips(body: bytes, seconds: float) -> Iterator[bytes]:
    for byte in body:
        yield bytes([byte])
        _pause(seconds)


def _parse_faults(given: object) -> list[Fault]:
    """Read one fault object, or `{"faults": [...]}`. Raises ValueError naming the key."""
    if not given:
        return []
    if isinstance(given, dict) and "faults" in given:
        if not isinstance(given["faults"], list) or len(given) > 1:
            raise ValueError("faults must be a list, and the only key")
        return [Fault.parse(each) for each in given["faults"]]
    return [Fault.parse(given)]


# --- the log of calls -----------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """One call as it arrived; `status` stays None until (and unless) it is answered."""

    at: float
    method: str
    path: str
    body: bytes
    authorization: str
    status: int | None = None
    applied: bool = False
    answered_at: float | None = None

    def shown(self) -> Json:
        shown: Json = {each.name: getattr(self, each.name) for each in fields(self)}
        try:
            return shown | {"body": _parse_json(self.body) if self.body else None}
        except ValueError:
            return shown | {"body": self.body.decode("utf-8", "replace")}


class _CallLog:
    """The latest calls, and how many there were of each kind since the last clearing."""

    KINDS = ("tags_write", "tags_read", "profile", "offers", "batch")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._calls: deque[_Call] = deque(maxlen=REMEMBERED_CALLS)
            self._counts = Counter(dict.fromkeys(self.KINDS, 0))

    def add(self, call: _Call, kind: str) -> None:
        with self._lock:
            self._calls.append(call)
            if kind:
                self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def select(self, method: str | None, match: str | None, since: float | None) -> list[_Call]:
        with self._lock:
            calls = list(self._calls)
        wanted = re.compile(match or "")
        return [
            call
            for call in calls
            if (method is None or call.method == method.upper())
            and (since is None or call.at >= since)
            and wanted.search(f"{call.method} {call.path}")
        ]


# --- batch jobs -----------------------------------------------------------------------

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_TIMEOUT = (5, 30)  # seconds to connect, seconds between two bytes
_SHOWN_ERRORS = 10


@dataclass(slots=True)
class _Job:
    """A CSV file of tags. States: created, processing, completed, failed (assumed)."""

    id: int
    request_id: str
    url: str
    md5: str
    notify: str | None
    status: str = "created"
    rows: int = 0
    applied: int = 0
    failed: int = 0
    message: str = ""
    errors: list[str] = field(default_factory=list)

    SHOWN: ClassVar = ("id", "request_id", "status", "rows", "applied", "failed", "message")

    def receipt(self) -> Json:
        return {"id": self.id, "request_id": self.request_id, "status": self.status}

    def shown(self) -> Json:
        return {key: getattr(self, key) for key in self.SHOWN} | {"errors": self.errors[:]}

    def count(self, error: str) -> None:
        """Count one row, which went wrong if `error` is not empty."""
        self.rows += 1
        self.applied += not error
        self.failed += bool(error)
        if error and len(self.errors) < _SHOWN_ERRORS:
            self.errors.append(f"row {self.rows}: {error}")


def _seconds(expires: str) -> int | None:
    """Read `1 day` or `12 hours`; blank is None, a counter. Raises ValueError."""
    if not expires:
        return None
    found = re.fullmatch(r"(\d{1,6}) ?(second|minute|hour|day|week)s?", expires, re.IGNORECASE)
    if not found or not int(found[1]):
        raise ValueError(f"expires {expires!r} is not like '1 day' or '12 hours'")
    return int(found[1]) * _UNITS[found[2].lower()]


def _download(http: requests.Session, job: _Job, file: IO[bytes]) -> None:
    """Fetch the job's file and check it. Raises ValueError or an OSError of requests."""
    digest = hashlib.md5(usedforsecurity=False)
    with http.get(job.url, stream=True, timeout=_TIMEOUT) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_content(65536):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != job.md5.lower():
        raise ValueError(f"md5 is {digest.hexdigest()}, not {job.md5}")
    file.seek(0)


def _rows(file: IO[bytes]) -> Iterator[dict[str, str]]:
    """Yield the rows, trimmed. Raises ValueError (bad header, not UTF-8) or csv.Error."""
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), restval="")
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    header = set(reader.fieldnames)
    if "tag" not in header or not header & {"user_id", "external_id"}:
        raise ValueError("the header must have tag, and user_id or external_id")
    for row in reader:
        yield {name: value.strip() for name, value in row.items() if name}


def _notify(http: requests.Session, job: _Job) -> None:
    """Call the job's `notify` once, with its three words replaced in the query."""
    if not job.notify:
        return
    values = {"JOB_ID": job.id, "JOB_STATUS": job.status, "JOB_REQUEST_ID": job.request_id}
    base, mark, query = job.notify.partition("?")
    query = re.sub("|".join(values), lambda word: quote(str(values[word[0]]), safe=""), query)
    try:
        http.get(base + mark + query, timeout=_TIMEOUT).close()
    except requests.RequestException as error:
        job.message = f"{job.message} (not notified: {error})".strip()


# --- the application ------------------------------------------------------------------


@dataclass(slots=True)
class _Exchange:
    """One call on its way through the sandbox: what was asked, and by which route."""

    request: Request
    body: bytes
    params: dict[str, str]
    call: _Call

    def json(self) -> Json:
        try:
            body = _parse_json(self.body)
        except ValueError as error:
            raise _RefusedError(400, "argument_error", f"The body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise _RefusedError(400, "argument_error", "The body must be a JSON object.")
        return body


class _Route(NamedTuple):
    """`side` is core, connect or sandbox; `kind` is what the log counts it as."""

    method: str
    segments: tuple[str, ...]
    side: str
    kind: str
    action: Callable[[Any, _Exchange], Json]

    def params(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return what stands in the places of `:name`, or None: another path."""
        if len(segments) != len(self.segments):
            return None
        pairs = list(zip(self.segments, segments, strict=True))
        if all(there if want[:1] == ":" else there == want for want, there in pairs):
            return {want[1:]: there for want, there in pairs if want[:1] == ":"}
        return None


_ROUTES: list[_Route] = []
_Action = TypeVar("_Action", bound="Callable[[Any, _Exchange], Json]")


def _route(rule: str, side: str = "sandbox", kind: str = "") -> Callable[[_Action], _Action]:
    """Have `METHOD /path/:name` answered by the method below."""
    method, path = rule.split(" ")

    def register(action: _Action) -> _Action:
        _ROUTES.append(_Route(method, tuple(path.split("/")), side, kind, action))
        return action

    return register


def _find(method: str, path: str) -> tuple[_Route, dict[str, str]]:
    """Raises _RefusedError 404 for an unknown path, 405 for an unknown method."""
    segments = [unquote(segment) for segment in path.split("/")]
    found = [(r, params) for r in _ROUTES if (params := r.params(segments)) is not None]
    for route, params in found:
        if route.method == method:
            return route, params
    if found:
        allowed = _listing({route.method for route, _ in found})
        raise _RefusedError(405, "not_available", f"{method} is not possible here: {allowed}.")
    raise _RefusedError(404, "not_found", f"There is no {path}.")


def _raw_path(environ: WSGIEnvironment) -> str:
    """Return the path as it was sent: only there `a%2Fb` is one segment still."""
    target = str(environ.get("REQUEST_URI") or environ.get("RAW_URI") or "")
    if not target:
        return quote(environ.get("PATH_INFO", "/"))
    return target.partition("?")[0] if target.startswith("/") else urlsplit(target).path


def _parse_json(text: bytes) -> object:
    """Raises ValueError, also for NaN and for nesting that Python cannot follow."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _reply(payload: Json, status: int = 200) -> Response:
    body = json.dumps(payload, separators=(",", ":")).encode()
    return Response(body, status, mimetype="application/json")


def _error(status: int, code: str, message: str) -> Response:
    return _reply({"status": "error", "errors": {"code": code, "message": message}}, status)


def _invalid(message: str) -> _RefusedError:
    """Return a refusal that SessionM words in the body of an HTTP 200 (assumed)."""
    return _RefusedError(200, "argument_error", message)


def _whole(body: Json, key: str, default: int) -> int:
    value = body.get(key, default)
    if not _is_whole(value):
        raise _invalid(f"{key} must be a whole number.")
    return value


class Sandbox:
    """SessionM in memory: a WSGI application that many threads may call at once.

    `seed` is what `load_seed` returns (None: the built-in one). With `any_customer`
    every unknown identifier becomes a customer when it is first used. Raises SeedError.
    """

    def __init__(
        self,
        *,
        seed: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        any_customer: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        seed = load_seed() if seed is None else seed
        unknown = _listing(set(seed) - _SEED_KEYS)
        _check(not unknown, f"unknown key {unknown}; known: {_listing(_SEED_KEYS)}")
        self.credentials = credentials or Credentials()
        self._clock = clock
        self._lock = threading.Lock()  # guards customers, faults and jobs; never held asleep
        self._log = _CallLog()
        self._faults: list[Fault] = []
        self._jobs: dict[int, _Job] = {}
        self._catalogue = Catalogue(seed, clock())
        self._fill(seed, any_customer=any_customer)

    def _fill(self, seed: Mapping[str, Any], *, any_customer: bool) -> None:
        listed = seed.get("any_customer", False)
        _check(isinstance(listed, bool), "any_customer: must be true or false")
        self._any_customer = any_customer or listed
        like = seed.get("new_customer", {})
        good = isinstance(like, dict) and not {"user_id", "external_id"} & set(like)
        _check(good, "new_customer: must be an object without identifiers")
        self._newcomer = self._catalogue.customer({**like, "user_id": "new"}, "new_customer")
        self._customers: dict[str, Customer] = {}
        self._by_external_id: dict[str, Customer] = {}
        for number, given in enumerate(_objects(seed.get("customers", []), "customers")):
            where = f"customers[{number}]"
            customer = self._catalogue.customer(given, where)
            _check(customer.user_id not in self._customers, f"{where}: user_id stands there twice")
            self._add(customer, where)

    # what tests and demonstrations in the same process use

    def put_customer(self, given: Mapping[str, Any]) -> None:
        """Create or replace a customer, given as in the seed. Raises SeedError."""
        customer = self._catalogue.customer(dict(given), "customer")
        with self._lock:
            self._add(customer, "customer")

    def remove_customer(self, user_id: str) -> bool:
        """Say whether there was such a customer."""
        with self._lock:
            return self._remove(user_id)

    def tags(self, user_id: str) -> dict[str, int]:
        """Return a customer's living tags and counts. Raises KeyError."""
        with self._lock:
            return self._customers[user_id].counts(self._clock())

    def customers(self, limit: int | None = None) -> list[Json]:
        """Return what there is to say about each customer, wallets only by their size."""
        with self._lock:
            now = self._clock()
            some = list(itertools.islice(self._customers.values(), limit))
            return [_summary(customer, now) for customer in some]

    def set_faults(self, given: Mapping[str, Any]) -> None:
        """Replace the faults; `{}` clears them. Raises ValueError that names the key."""
        faults = _parse_faults(dict(given))
        with self._lock:
            self._faults = faults

    def calls(
        self, method: str | None = None, match: str | None = None, since: float | None = None
    ) -> list[Json]:
        """Return what came in, oldest first; `match` is searched in "METHOD path"."""
        return [call.shown() for call in self._log.select(method, match, since)]

    def counts(self) -> dict[str, int]:
        """Return how many calls of each kind came in since the last clearing."""
        return self._log.counts()

    def clear_calls(self) -> None:
        self._log.clear()

    # customers; the lock is held by the caller

    def _add(self, customer: Customer, where: str) -> None:
        other = self._by_external_id.get(customer.external_id or "")
        if other and other.user_id != customer.user_id:
            raise SeedError(f"{where}: external_id belongs to {other.user_id} already")
        self._remove(customer.user_id)
        self._customers[customer.user_id] = customer
        if customer.external_id:
            self._by_external_id[customer.external_id] = customer

    def _remove(self, user_id: str) -> bool:
        customer = self._customers.pop(user_id, None)
        if customer and customer.external_id:
            del self._by_external_id[customer.external_id]
        return customer is not None

    def _customer(self, ids: Mapping[str, str]) -> Customer:
        """Find by `user_id`, which wins, or `external_id`. Raises _RefusedError 404."""
        user_id, external_id = ids.get("user_id"), ids.get("external_id")
        customer = (
            self._customers.get(user_id) if user_id else self._by_external_id.get(external_id or "")
        )
        if customer is None and self._any_customer and (user_id or external_id):
            customer = self._create(user_id, external_id)
        if customer is None:
            raise _RefusedError(404, "user_not_found", "There is no such customer.")
        return customer

    def _create(self, user_id: str | None, external_id: str | None) -> Customer:
        like = self._newcomer
        customer = Customer(
            user_id=user_id or _made_up_id("customer", external_id),
            external_id=None if user_id else external_id,
            profile=like.profile,
            offers=like.offers,
            total_points=like.total_points,
            available_points=like.available_points,
            tags=dict(like.tags),
        )
        self._add(customer, "customer")
        return customer

    # from the call to the answer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = self._respond(Request(environ))
        response.headers["Server"] = "sessionm-sandbox"
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        path, body = _raw_path(request.environ), request.get_data()
        call = _Call(self._clock(), request.method, path, body, "missing")
        try:
            route, params = _find(request.method, path)
        except _RefusedError as refused:
            self._log.add(call, "")
            response = _error(refused.status, refused.code, str(refused))
        else:
            exchange = _Exchange(request, body, params, call)
            if route.side == "sandbox":
                return self._perform(route, exchange)
            call.authorization = self._authorization(request, route.side)
            self._log.add(call, route.kind)
            response = self._misbehave(route, exchange)
        call.status, call.answered_at = response.status_code, self._clock()
        return response

    def _misbehave(self, route: _Route, exchange: _Exchange) -> Response:
        """Carry the call out as the faults that are set want it."""
        fault = self._fault(route.side, f"{route.method} {exchange.call.path}")
        _pause(fault.latency())
        drop = fault.dropped()
        if drop in ("before", "reset"):
            raise _HangUpError(reset=drop == "reset")
        if drop == "after":
            self._perform(route, exchange)
            raise _HangUpError
        writes = route.method == "POST" and route.side == "core"
        response = fault.instead(self._clock(), writes=writes)
        _pause(fault.hang)
        response = response or self._perform(route, exchange)
        _pause(fault.hang_after)
        return fault.deform(response)

    def _fault(self, side: str, line: str) -> Fault:
        """Return the first fault that strikes, and use it up by one time."""
        with self._lock:
            fault = next((each for each in self._faults if each.strikes(side, line)), _NO_FAULT)
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
            return fault

    def _perform(self, route: _Route, exchange: _Exchange) -> Response:
        try:
            self._authorize(route, exchange)
            return _reply(route.action(self, exchange))
        except _RefusedError as refused:
            return _error(refused.status, refused.code, str(refused))

    def _authorization(self, request: Request, side: str) -> str:
        given = request.headers.get("Authorization")
        if not given:
            return "missing"
        scheme, _, token = given.partition(" ")
        good = scheme.lower() == "basic" and token.strip() == self.credentials.token(side)
        return "ok" if good else "wrong"

    def _authorize(self, route: _Route, exchange: _Exchange) -> None:
        if route.side == "sandbox":
            return
        if exchange.call.authorization != "ok":
            why = f"The Basic credential is {exchange.call.authorization}."
            raise _RefusedError(401, "invalid_api_key", why)
        if exchange.params.get("api_key") not in (None, self.credentials.core_key):
            raise _RefusedError(401, "invalid_api_key", "The key in the path is another one.")

    # SessionM Core

    @_route("POST /priv/v1/apps/:api_key/users/:user_id/tags", "core", "tags_write")
    @_route("POST /priv/v1/apps/:api_key/external/users/:external_id/tags", "core", "tags_write")
    def _write_tags(self, exchange: _Exchange) -> Json:
        body = exchange.json()
        tags, ttl = body.get("tags"), body.get("ttl")
        with self._lock:
            customer = self._customer(exchange.params)
            if not isinstance(tags, list) or not tags or not all(map(_is_text, tags)):
                raise _invalid("tags must be a list of one or more strings.")
            if "ttl" in body and not _is_whole(ttl, 1):
                raise _invalid("ttl must be a whole number of seconds, 1 or more.")
            now = self._clock()
            customer.tag(tags, ttl, now)
            exchange.call.applied = True
            return {"status": "ok", "tags": customer.counts(now)}

    @_route("GET /priv/v1/apps/:api_key/users/:user_id/tags", "core", "tags_read")
    @_route("GET /priv/v1/apps/:api_key/external/users/:external_id/tags", "core", "tags_read")
    def _read_tags(self, exchange: _Exchange) -> Json:
        with self._lock:
            customer = self._customer(exchange.params)
            return {"status": "ok", "tags": customer.counts(self._clock())}

    @_route("GET /priv/v1/apps/:api_key/users/:user_id", "core", "profile")
    @_route("GET /priv/v1/apps/:api_key/external/users/:external_id", "core", "profile")
    def _read_profile(self, exchange: _Exchange) -> Json:
        """Answer with the fields that real profiles have in common (assumed)."""
        with self._lock:
            customer = self._customer(exchange.params)
        return {
            "status": "ok",
            "user": {
                "id": customer.user_id,
                "external_id": customer.external_id,
                "opted_in": True,
                "activated": True,
                "suspended": False,
                "available_points": customer.available_points,
                **customer.profile,
            },
        }

    @_route("POST /priv/v1/apps/:api_key/batch/tags", "core", "batch")
    def _create_batch(self, exchange: _Exchange) -> Json:
        """Take a job on; `notify` may be left out (assumed)."""
        given = exchange.json().get("tags")
        if not isinstance(given, dict):
            raise _invalid("tags must be an object with request_id, url, md5 and notify.")
        for key in ("request_id", "url", "md5"):
            if not _is_text(given.get(key)):
                raise _invalid(f"tags.{key} must be a non-empty string.")
        if given.get("notify") is not None and not _is_text(given["notify"]):
            raise _invalid("tags.notify must be a URL.")
        with self._lock:
            number = len(self._jobs) + 1
            job = _Job(
                id=number,
                request_id=given["request_id"],
                url=given["url"],
                md5=given["md5"],
                notify=given.get("notify"),
            )
            self._jobs[number] = job
        receipt = job.receipt()
        threading.Thread(target=self._run_job, args=[job], daemon=True).start()
        exchange.call.applied = True
        return {"status": "ok", "tags": receipt}

    @_route("GET /priv/v1/apps/:api_key/batch/tags/:job_id", "core", "batch")
    def _read_batch(self, exchange: _Exchange) -> Json:
        """Show a job. No document names this call: it is assumed, like the row counts."""
        number = exchange.params["job_id"]
        with self._lock:
            job = self._jobs.get(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
        if job is None:
            raise _RefusedError(404, "not_found", "There is no such job.")
        return {"status": "ok", "tags": job.shown()}

    def _run_job(self, job: _Job) -> None:
        job.status = "processing"
        with requests.Session() as http:
            http.trust_env = False  # no proxy stands between the sandbox and the bridge
            try:
                with tempfile.SpooledTemporaryFile(max_size=8_000_000) as file:
                    _download(http, job, file)
                    for row in _rows(file):
                        job.count(self._tag_row(row))
                job.status = "completed"
            except (ValueError, OSError, csv.Error) as error:
                job.message, job.status = str(error), "failed"
            _notify(http, job)

    def _tag_row(self, row: Mapping[str, str]) -> str:
        """Apply one row; return what is wrong with it, or ""."""
        try:
            ttl = _seconds(row.get("expires", ""))
            if not row["tag"]:
                return "the tag is blank"
            with self._lock:
                self._customer(row).tag([row["tag"]], ttl, self._clock())
        except ValueError as error:
            return str(error)
        return ""

    # SessionM Connect

    @_route("POST /offers/api/2.0/offers/get_user_offers", "connect", "offers")
    def _read_offers(self, exchange: _Exchange) -> Json:
        body = exchange.json()
        if body.get("retailer_id") != self.credentials.retailer_id:
            raise _invalid("retailer_id is not a retailer of this credential.")
        if not _is_text(body.get("user_id")):
            raise _invalid("user_id must be a non-empty string.")
        culture = body.get("culture", "en-US")
        if not _is_text(culture):
            raise _invalid('culture must be a string such as "en-US".')
        skip, take = _whole(body, "skip", 0), _whole(body, "take", 1000)
        with self._lock:
            customer = self._customer({"user_id": body["user_id"]})
        page = range(len(customer.offers))[skip : skip + take]
        offers = [_issued(customer, number, culture) for number in page]
        return {"status": "ok", "payload": self._wallet(customer, offers)}

    def _wallet(self, customer: Customer, offers: list[Json]) -> Json:
        return {
            "user": {
                "opted_in": False,
                "activated": False,
                "external_id": customer.external_id,
                **customer.profile,
            },
            "user_id": customer.user_id,
            "user_offers": offers,
            "total_records": len(customer.offers),
            "offer_groups": self._catalogue.groups_of(customer.offers),
            "offer_categories": self._catalogue.categories_of(customer.offers),
            "total_points": customer.total_points,
            "available_points": customer.available_points,
        }

    # what is the sandbox's own

    @_route("GET /")
    def _say_what_this_is(self, _: _Exchange) -> Json:
        return {
            "service": "sessionm-sandbox",
            "message": "This is a stand-in for demonstrations and tests. It is not SessionM.",
            "routes": [f"{route.method} {'/'.join(route.segments) or '/'}" for route in _ROUTES],
        }

    @_route("GET /sandbox/faults")
    def _show_faults(self, _: _Exchange) -> Json:
        with self._lock:
            return {"status": "ok", "faults": [fault.shown() for fault in self._faults]}

    @_route("POST /sandbox/faults")
    def _replace_faults(self, exchange: _Exchange) -> Json:
        try:
            self.set_faults(exchange.json())
        except _RefusedError:
            raise
        except ValueError as error:
            raise _RefusedError(400, "argument_error", f"faults: {error}") from error
        return self._show_faults(exchange)

    @_route("DELETE /sandbox/faults")
    def _clear_faults(self, exchange: _Exchange) -> Json:
        self.set_faults({})
        return self._show_faults(exchange)

    @_route("GET /sandbox/calls")
    def _show_calls(self, exchange: _Exchange) -> Json:
        """Filters: method, match, since (Unix seconds), limit (only the latest)."""
        asked = exchange.request.args
        try:
            since = float(asked["since"]) if "since" in asked else None
            limit = int(asked["limit"]) if "limit" in asked else REMEMBERED_CALLS
            calls = self._log.select(asked.get("method"), asked.get("match"), since)
        except (ValueError, re.error) as error:
            raise _RefusedError(400, "argument_error", f"calls: {error}") from error
        latest = [call.shown() for call in calls[max(0, len(calls) - limit) :]]
        return {"status": "ok", "calls": latest, "count": len(calls), "counts": self.counts()}

    @_route("DELETE /sandbox/calls")
    def _clear_calls(self, _: _Exchange) -> Json:
        self.clear_calls()
        return {"status": "ok"}

    @_route("GET /sandbox/customers")
    def _list_customers(self, _: _Exchange) -> Json:
        """List the first thousand: with any_customer there may be millions."""
        listed = self.customers(1000)
        return {"status": "ok", "customers": listed, "count": len(self._customers)}

    @_route("POST /sandbox/customers")
    def _put_customer(self, exchange: _Exchange) -> Json:
        try:
            self.put_customer(exchange.json())
        except SeedError as error:
            raise _RefusedError(400, "argument_error", str(error)) from error
        return {"status": "ok"}

    @_route("DELETE /sandbox/customers/:user_id")
    def _delete_customer(self, exchange: _Exchange) -> Json:
        if not self.remove_customer(exchange.params["user_id"]):
            raise _RefusedError(404, "user_not_found", "There is no such customer.")
        return {"status": "ok"}


def _summary(customer: Customer, now: float) -> Json:
    return {
        "user_id": customer.user_id,
        "external_id": customer.external_id,
        "tags": customer.counts(now),
        "offers": len(customer.offers),
        "total_points": customer.total_points,
        "available_points": customer.available_points,
    }


def _issued(customer: Customer, number: int, culture: str) -> Json:
    """Return the offer in that place of the wallet, in the customer's language if it has it."""
    offer = customer.offers[number]
    translation = offer.get("translations", {}).get(culture, {})
    mine = {"user_offer_id": _made_up_id(customer.user_id, number, offer["offer_id"])}
    shown = {key: value for key, value in offer.items() if key != "translations"}
    return {**mine, **shown, **translation}


# --- the server -----------------------------------------------------------------------


class _Handler(WSGIRequestHandler):
    """HTTP/1.1 with connections that stay open.

    Werkzeug's own handler closes after every answer, and it sends head and body in
    packets of their own, which costs 40 ms (Nagle) on a connection that is kept.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 300  # seconds of silence
    reset = False

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        try:
            # Read all of it: what is left over would be taken for the next request.
            environ["wsgi.input"] = io.BytesIO(self._body(environ))
            environ["wsgi.input_terminated"] = True
            self._answer(environ)
        except _HangUpError as hang_up:
            self.reset = hang_up.reset
            self.close_connection = True

    def _body(self, environ: WSGIEnvironment) -> bytes:
        if environ.get("wsgi.input_terminated"):  # sent in chunks, which are joined here
            return bytes(environ["wsgi.input"].read())
        length = self.headers.get("Content-Length") or "0"
        if not re.fullmatch("[0-9]{1,9}", length):
            self.close_connection = True
            return b""
        return self.rfile.read(int(length))

    def _answer(self, environ: WSGIEnvironment) -> None:
        head: list[str] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], *_: object
        ) -> Callable[[bytes], object]:
            connection = "close" if self.close_connection else "keep-alive"
            always = [("Date", self.date_time_string()), ("Connection", connection)]
            head.append(f"HTTP/1.1 {status}\r\n")
            head.extend(f"{name}: {value}\r\n" for name, value in (*headers, *always))
            return self.wfile.write

        parts = iter(self.server.app(environ, start_response))
        first = next(parts, b"")
        self.wfile.write("".join([*head, "\r\n"]).encode("latin-1") + first)
        for part in parts:
            self.wfile.write(part)

    def finish(self) -> None:
        super().finish()
        if self.reset:
            # Closed here, with nothing to linger for, the kernel sends RST; the server
            # would shut the connection down first, politely, with FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log(self, *args: object, **kwargs: object) -> None:
        """Say nothing: `GET /sandbox/calls` tells more."""


class _Server(ThreadedWSGIServer):
    """Knows its open connections, so that it can cut them all."""

    def __init__(self, listener: socket.socket, app: Sandbox) -> None:
        host, port = listener.getsockname()[:2]
        self._connections: set[socket.socket] = set()
        super().__init__(host, port, app, _Handler, fd=listener.fileno())

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as inherited
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as inherited
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in self._connections.copy():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class SandboxServer:
    """The sandbox on a port of this machine; starts and stops as often as you like.

    `port` 0 takes a free one, which it then keeps. `start` raises OSError if the port
    is taken.
    """

    def __init__(self, sandbox: Sandbox, host: str = "127.0.0.1", port: int = 9090) -> None:
        self.sandbox = sandbox
        self.host = host
        self.port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> Self:
        """Serve in a thread; connections are taken as soon as this returns."""
        if self._server is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            address = (self.host, self.port)
            with socket.create_server(address, family=family, backlog=1024) as listener:
                self._server = _Server(listener, self.sandbox)
            self.port = self._server.port
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=[0.02], name="sessionm-sandbox", daemon=True
            )
            self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server and thread:
            server.shutdown()
            thread.join()
            server.cut()

    def serve_forever(self) -> None:
        """Serve until Ctrl-C, or until `stop` is called elsewhere."""
        thread = self.start()._thread  # noqa: SLF001 - its own
        with contextlib.suppress(KeyboardInterrupt):
            if thread:
                thread.join()
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


def serve(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 9090) -> SandboxServer:
    """Return the sandbox's server, started. Raises OSError if the port is taken."""
    return SandboxServer(sandbox, host, port).start()


def run(host: str, port: int, seed: Path | None) -> None:
    """Serve in the foreground until Ctrl-C or SIGTERM, and say how to use it.

    Raises SeedError for a bad seed file, OSError for a port that is taken.
    """
    server = serve(Sandbox(seed=load_seed(seed or SEED)), host, port)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.stdout.write(_instructions(server))
        sys.stdout.flush()
        server.serve_forever()
    finally:
        signal.signal(signal.SIGTERM, before)
        server.stop()


def _instructions(server: SandboxServer) -> str:
    settings = server.sandbox.credentials.environment(server.url)
    lines = [
        f"SessionM sandbox on {server.url}",
        "A stand-in for demonstrations and tests: it is not SessionM.",
        "",
        "Settings that make it the bridge's SessionM:",
        *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
        "",
        "Customers:",
        *(
            f"  {each['user_id']}  {each['external_id'] or '-'}"
            f"  ({each['offers']} offers, tags: {', '.join(each['tags']) or 'none'})"
            for each in server.sandbox.customers(20)
        ),
        "",
        f"Make it fail: POST {server.url}/sandbox/faults",
        f"See what came in: GET {server.url}/sandbox/calls",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines) + "\n"
