"""Forty thousand webhook bodies gone wrong: each is understood, or refused in words.

What is accepted is held against a second, strict reading that shares no code with the bridge: it
may only be what plain JSON (or a plain form) says, after the tolerated quirks are undone.
"""

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from bridge.customer import Customer
from bridge.intake.payload import MAX_BODY, Event, RefusedError, read_event
from tests.conftest import KEYS, MakeService
from tests.unit.test_fields import is_one_line

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
SEEDS = range(4)
BODIES = 40_000
OVER_HTTP = 1_000

CUSTOMER = "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601"
EVENTS: list[dict[str, Any]] = [
    {"braze_campaign_id": "0d2f6f5e-1111", "user_id": CUSTOMER, "dispatch_id": "d-1"},
    {"braze_canvas_id": "c-7", "external_id": "loyal-1001", "tags": ["vip", "Größe 38"]},
    {"campaign_id": 12345, "external_user_id": 98765432109876543210, "ttl": "30d"},
    {"user_id": CUSTOMER, "tags": ["summer_promo"], "ttl": 1209600, "more": {"deep": [1, None]}},
    {"user_id": " 42 ", "braze_campaign_id": "\u00a0c1", "canvas_id": "", "tags": "a, b,"},
    {"user_id": "somebody@example.com", "tags": ['say "hi"', "back\\slash", "x,]}"], "ttl": "15m"},
    {"user_id": "null", "external_id": "loyal-2", "tags": '["vip", "gold"]', "ttl": 86400.0},
]
# Pieces that break a body, by mistake or on purpose.
PIECES = [
    *("", ",", ",,", ":", '"', "'", "\\", "{", "}", "[", "]", "{}", "[]", ",}", ",]", "null"),
    *("true", "NaN", "-Infinity", "1e999", "-0", "0.5", "9" * 30, "1" * 5000, "[" * 2000),
    *('{"a":' * 500, "{{${user_id}}}", "{% if x %}", "${api_id}", "\ufeff", "\u00a0", "\u200b"),
    *("\u2028", "\x00", "\x07", "\r\n", "\t", "\\u0000", "\\ud800", "\\ud83d\\ude00", "é", "😀"),
    *("../..", "%2e%2e", "%ff", "+", "&", "=", "&user_id=evil", '"user_id":"evil",', "<script>"),
    *('"tags":["x"],', '"ttl":0,', '"ttl":-1,', '"user_id":null,', "//", "/* */", "x" * 300),
    *("\u201c", "\u2019", "\u200e", "\u2060", '"null"', '"[object Object]"', ".0", "['a','b']"),
]
BYTES = [
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\x1f\x8b",
    b"\x00",
]
TYPES = [
    *(JSON, JSON, JSON, JSON, FORM, FORM, "text/plain", "", "application/json; charset=utf-8"),
    *("application/vnd.x+json", "text/html", "multipart/form-data; boundary=x", "\u00e9;;;"),
]


def originals(chance: random.Random) -> tuple[bytes, str]:
    """A body as a Braze template makes it, with some of the quirks, and its type."""
    event = dict(chance.choice(EVENTS))
    if chance.random() < 0.3:
        event.pop(chance.choice(list(event)))
    kind = chance.choice(TYPES)
    if kind == FORM:
        return urlencode(event, doseq=True).encode(), kind
    text = json.dumps(event, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1]))
    quirks: list[Callable[[str], str]] = [
        lambda text: text[:-1] + ",}",
        lambda text: "\ufeff" + text,
        lambda text: text.replace(": ", "\u00a0:\u00a0"),
        lambda text: text.replace("]", ",]"),
        lambda text: f"\n {text}\u00a0",
    ]
    for quirk in chance.sample(quirks, chance.randrange(3)):
        text = quirk(text)
    return text.encode(), kind


def mutated(body: bytes, chance: random.Random) -> bytes:
    """*body* with a slip or a few: bytes flipped, dropped, doubled, swapped, put in."""
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 8])):
        at = chance.randrange(len(body) + 1)
        to = min(len(body), at + chance.randrange(1, 12))
        how = chance.randrange(6)
        if how == 0:
            body = body[:at] + body[to:]
        elif how == 1:
            body = body[:at] + body[at:to] * 2 + body[to:]
        elif how == 2:
            body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
        elif how == 3:
            body = body[:at] + chance.choice(PIECES).encode() + body[at:]
        elif how == 4:
            body = body[:at] + chance.choice(BYTES) + body[to:]
        else:
            body = body[: chance.randrange(len(body) + 1)]
    return body


def bodies(seed: int, number: int) -> Iterator[tuple[bytes, str]]:
    chance = random.Random(seed)  # noqa: S311 - the same bodies in every run
    for _ in range(number):
        body, kind = originals(chance)
        yield mutated(body, chance), kind


TAG_NAMES = ("tags", "tags[]")
PADDING = "".join(
    char
    for char in map(chr, range(0x10000))
    if char.isspace() or unicodedata.category(char) == "Cf"
)
NO_VALUES = {"null", "undefined", "none", "nil", "nan", "[object object]"}


def strictly(body: bytes, kind: str) -> dict[str, Any]:
    """What *body* says to a reader of plain JSON or forms, the tolerated quirks undone."""
    text = body.decode().strip(PADDING)
    if kind.startswith(FORM) and not text.startswith("{"):
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
        return {**dict(pairs), "tags": [value for name, value in pairs if name in TAG_NAMES]}
    out, inside, escaped = [], False, False
    for at, char in enumerate(text):
        if inside:
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            inside = True
        elif char in PADDING or (char == "," and re.match(rf"[{PADDING}]*[\]}}]", text[at + 1 :])):
            out.append(" ")
            continue
        out.append(char)
    found: dict[str, Any] = json.loads("".join(out), strict=False, parse_int=str)
    return found


def values(fields: dict[str, Any], *names: str) -> set[str]:
    found = {str(fields[name]).strip(PADDING) for name in names if fields.get(name) is not None}
    return {value for value in found if value and value.lower() not in NO_VALUES}


def check(event: Event, fields: dict[str, Any]) -> None:
    """*event* says no more and no less than *fields*."""
    assert isinstance(fields, dict)
    user, external = values(fields, "user_id"), values(fields, "external_id", "external_user_id")
    assert {event.customer.id} == (user or external)
    assert event.customer.kind == ("user_id" if user else "external_id")
    for found, names in (
        (event.campaign_id, ("braze_campaign_id", "campaign_id")),
        (event.canvas_id, ("braze_canvas_id", "canvas_id")),
        (event.dispatch_id, ("dispatch_id",)),
    ):
        assert ({found} if found else set()) == values(fields, *names)
    check_tags(event, fields.get("tags") or [])
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    ttl = next(iter(values(fields, "ttl")), None)
    if ttl is None:
        assert event.ttl is None
    else:
        number = float(ttl.lower().rstrip("smhd").strip())
        assert event.ttl == number * unit.get(ttl.lower()[-1], 1)
    texts = [event.customer.id, event.campaign_id, event.canvas_id, *event.tags]
    for text in filter(None, texts):
        assert len(text) <= 255
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]|\{\{|\{%|\$\{", text)


# Lists as text, and quotes around items: the tests of the reader hold those.
PRINTED = re.compile(r"^\W*[\[\"'&]|,\s*[\"']")


def check_tags(event: Event, tags: Any) -> None:
    if any(PRINTED.search(str(tag)) for tag in (tags if isinstance(tags, list) else [tags])):
        return
    if (
        isinstance(tags, list)
        and len(tags) == 1
        and "," in str(tags[0])
        and event.tags != tuple(tags)
    ):
        tags = tags[0]
    if isinstance(tags, str):
        tags = [] if tags.strip(PADDING).lower() in NO_VALUES else tags.split(",")
    stripped = [str(tag).strip(PADDING) for tag in tags]
    assert list(event.tags) == list(dict.fromkeys(filter(None, stripped)))


def outcome(read: Callable[..., Event], *given: object) -> Event | RefusedError:
    try:
        return read(*given)
    except RefusedError as refusal:
        return refusal


@pytest.mark.parametrize("seed", SEEDS)
def test_a_body_gone_wrong_is_understood_as_it_stands_or_refused_in_words(seed: int) -> None:
    seen: Counter[int] = Counter()
    for body, kind in bodies(seed, BODIES // len(SEEDS)):
        found = outcome(read_event, body, kind)
        if isinstance(found, Event):
            check(found, strictly(body, kind))
            seen[202] += 1
        else:
            assert is_one_line(str(found)), (body, str(found))
            assert len(str(found)) < 400
            seen[found.status] += 1
        outcome(read_event, body, kind, Customer("user_id", CUSTOMER))
    assert set(seen) <= {202, 400, 413, 415, 422}
    # The mutations neither spare everything nor spoil everything.
    assert min(seen[status] for status in (202, 400, 415, 422)) > 100, seen
    assert all(len(body) <= MAX_BODY for body, _ in bodies(seed, 100))


def test_bodies_gone_wrong_get_2xx_and_4xx_over_http_and_are_all_kept(
    make_service: MakeService,
) -> None:
    service = make_service("--workers", "1", BRIDGE_SESSIONM_RPS="1")
    connection = HTTPConnection("127.0.0.1", service.port, timeout=20)
    statuses: Counter[int] = Counter()
    accepted: list[tuple[str, Customer]] = []
    for body, kind in bodies(99, OVER_HTTP):
        headers = {"Authorization": f"Bearer {KEYS['webhook']}"}
        if kind.isascii() and kind:
            headers["Content-Type"] = kind
        connection.request("POST", "/webhooks/braze", body, headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        statuses[answer.status] += 1
        assert answer.status in {200, 202, 400, 413, 415, 422}, (body, said)
        if answer.status == 202:
            kept = read_event(body, headers.get("Content-Type", ""))
            assert said["customer"] == kept.customer.ids
            accepted.append((said["id"], kept.customer))
    assert min(statuses[status] for status in (202, 400, 415, 422)) > 20, statuses
    kept_rejected = 0
    page = ""
    while True:
        connection.request(
            "GET",
            f"/api/events?state=rejected&limit=500&before={page}",
            headers={"Authorization": f"Bearer {KEYS['admin']}"},
        )
        found = json.loads(connection.getresponse().read())
        kept_rejected += len(found["events"])
        assert all(event["reason"] for event in found["events"])
        page = found["next"]
        if not page:
            break
    connection.close()
    assert kept_rejected == sum(statuses[status] for status in (400, 413, 415, 422))
    assert '"action": "fault"' not in service.log.read_text()
