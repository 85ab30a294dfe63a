"""Webhook bodies: what Braze templates produce is tolerated, the rest is refused in words."""

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.customer import Customer, CustomerKind
from bridge.fields import trim
from bridge.intake.payload import (
    MAX_BODY,
    MAX_TAGS,
    UNSENT,
    Event,
    PartialEvent,
    RefusedError,
    as_sent,
    read_event,
    read_fields,
    read_partial,
)
from tests.unit.test_fields import is_one_line

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
GUIDE = Path(__file__).parents[1] / "samples" / "000_89871c874eea678a.txt"
EVENT = Event(Customer("user_id", "42"), campaign_id="c1", tags=("a", "b"), ttl=90)
PLAIN = '{"user_id":"42","braze_campaign_id":"c1","tags":["a","b"],"ttl":90}'

TOLERATED = {
    "plain": PLAIN,
    "trailing commas": '{"user_id":"42","campaign_id":"c1","tags":["a","b",],"ttl":90,}',
    "trailing commas before spaces": '{"user_id":"42","campaign_id":"c1","tags":["a","b" ,\r\n'
    '\t],"ttl":90 ,\u00a0\n}',
    "byte order mark": "\ufeff" + PLAIN,
    "padding around the body": f"\n\u00a0 {PLAIN}\u00a0\r\n",
    "no-break spaces between values": PLAIN.replace(":", "\u00a0:\u00a0").replace(",", ",\u00a0"),
    "padding inside values": '{"user_id":" 42\u00a0","braze_campaign_id":"\u00a0c1\\n",'
    '"tags":[" a ","\u00a0b"],"ttl":" 90 "}',
    "numbers as text": PLAIN.replace("90", '"90"'),
    "identifiers as numbers": PLAIN.replace('"42"', "42"),
    "a TTL with a unit": PLAIN.replace("90", '"90s"'),
    "blank strings": '{"user_id":"42","external_id":" ","campaign_id":"c1","canvas_id":"",'
    '"tags":["a","b"],"ttl":90,"dispatch_id":"\u00a0"}',
    "nulls": '{"user_id":42,"external_id":null,"campaign_id":"c1","canvas_id":null,'
    '"tags":["a","b"],"ttl":90,"dispatch_id":null}',
    "the user id wins": '{"external_id":"7","user_id":"42","campaign_id":"c1",'
    '"tags":["a","b"],"ttl":90}',
    "both names of a campaign": PLAIN.replace("{", '{"campaign_id":"c1",'),
    "keys twice that agree": PLAIN.replace("{", '{"user_id":"42","ttl":90,'),
    "repeated tags": PLAIN.replace('["a","b"]', '["a","b"," a"]'),
    "tags as one text": PLAIN.replace('["a","b"]', '"a, b,"'),
    "tags as Liquid prints them": PLAIN.replace('["a","b"]', r'"[\"a\", \"b\"]"'),
    "tags as Python prints them": PLAIN.replace('["a","b"]', """ "['a','b']" """),
    "tags with HTML codes": PLAIN.replace('["a","b"]', '"[&quot;a&quot;, &quot;b&quot;]"'),
    "a printed list in a list": PLAIN.replace('["a","b"]', """["['a','b']"]"""),
    "tags in quotes without brackets": PLAIN.replace('["a","b"]', """ "'a', 'b'" """),
    "a TTL with a decimal point": PLAIN.replace("90", "90.0"),
    "a TTL with a decimal point as text": PLAIN.replace("90", '"90.0"'),
    "invisible characters": PLAIN.replace('"42"', '"\u200e42\u2060"').replace(
        '"a"', '"\u202aa \u202c"'
    ),
    "words for identifiers that are not there": PLAIN.replace(
        '"user_id":"42"', '"user_id":"42","external_id":"null","canvas_id":"undefined"'
    ),
    "names": PLAIN.replace("{", '{"campaign_name":"","canvas_name":null,'),
    "unknown fields": PLAIN.replace("{", '{"more":{"deep":[1,2.5,null,true]},'),
}


def read(body: str | bytes | dict[str, Any], content_type: str = JSON) -> Event:
    if isinstance(body, dict):
        body = json.dumps(body)
    return read_event(body.encode() if isinstance(body, str) else body, content_type)


def refused(body: str | bytes | dict[str, Any], content_type: str = JSON) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        read(body, content_type)
    return caught.value


def assert_for_a_marketer(refusal: RefusedError) -> None:
    """Fit for Braze's test dialog, for a log line and for any database."""
    assert refusal.status in {400, 413, 415, 422}
    assert refusal.code
    assert 10 < len(str(refusal)) < 500
    assert is_one_line(str(refusal))


@pytest.mark.parametrize("body", TOLERATED.values(), ids=TOLERATED)
def test_what_braze_templates_produce_is_read(body: str) -> None:
    # Ignored fields give a warning, and are tested there.
    assert read(body)._replace(ignored=()) == EVENT


# The second spelling stands on one of Braze's pages.
FORMS = [
    FORM,
    "application/x-www-form-url-encoded",
    "Application/X-WWW-Form-Url-Encoded; charset=x",
]
TYPES = ["Application/JSON; charset=UTF-8", "application/a+json", "text/plain", "", *FORMS]


@pytest.mark.parametrize("content_type", TYPES)
def test_json_is_read_under_every_type_that_braze_and_curl_send_it(content_type: str) -> None:
    assert read(PLAIN, content_type) == EVENT


@pytest.mark.parametrize(
    "body",
    [
        "user_id=42&braze_campaign_id=c1&tags=a&tags=b&ttl=90",
        "user_id=+42%C2%A0&campaign_id=c1&tags%5B%5D=a&tags%5B%5D=b&ttl=90s&canvas_id=",
        "user_id=42&user_id=42&campaign_id=c1&tags=a,b&ttl=90",
        "user_id=42&campaign_id=c1&tags=[%22a%22,+%22b%22]&ttl=90.0",
        "user_id=42&campaign_id=c1&tags[]=['a','b']&ttl=90",
        "user_id=42&campaign_id=c1&tags=['a']&tags=[%22b%22]&ttl=90",
        "user_id=42&campaign_id=c1&tags=[%5C%22a%5C%22,%5C%22b%5C%22]&ttl=90",
        "&user_id=%E2%80%8E42&&campaign_id=c1&tags=a,b&ttl=90&",
    ],
)
@pytest.mark.parametrize("content_type", FORMS)
def test_a_form_says_the_same_as_json(body: str, content_type: str) -> None:
    assert read(body, content_type) == EVENT


ANN, EVE = Customer("user_id", "ann"), Customer("external_id", "7")


@pytest.mark.parametrize(
    ("fields", "event"),
    [
        ({"external_id": "7", "canvas_id": "v"}, Event(EVE, canvas_id="v")),
        ({"external_user_id": 7, "braze_canvas_id": 5}, Event(EVE, canvas_id="5")),
        ({"user_id": " ", "external_id": "7", "tags": ["t"]}, Event(EVE, tags=("t",))),
        ({"user_id": "ann", "tags": ["x, y", 5]}, Event(ANN, tags=("x, y", "5"))),
        ({"user_id": "null", "external_id": "7", "tags": ["t"]}, Event(EVE, tags=("t",))),
        ({"external_id": "None", "external_user_id": "7", "tags": "t"}, Event(EVE, tags=("t",))),
        (
            {"user_id": "ann", "campaign_id": "c", "campaign_name": " A\nb ", "canvas_name": 5},
            Event(ANN, "c", campaign_name="A\N{REPLACEMENT CHARACTER}b", canvas_name="5"),
        ),
    ],
    ids=str,
)
def test_customers_ids_and_tags_are_read_under_all_their_names(
    fields: dict[str, Any], event: Event
) -> None:
    assert read(fields) == event


U: dict[str, Any] = {"user_id": "u", "campaign_id": "c"}
PRINTED: dict[str, list[str]] = {
    "[]": [],
    "[ ]": [],
    " \u200b[]\u00a0": [],
    "nil": [],
    "null": [],
    '["vip", "gold"]': ["vip", "gold"],
    "['vip','gold']": ["vip", "gold"],
    "[vip, gold]": ["vip", "gold"],
    '["vip",]': ["vip"],
    "[1, 2]": ["1", "2"],
    '["a, b"]': ["a, b"],
    '["a, b", "c"]': ["a, b", "c"],
    '"a, b", c': ["a, b", "c"],
    r'["say \"hi\"", "x"]': ['say "hi"', "x"],
    '["say "hi"", "x"]': ['say "hi"', "x"],
    "['it's', \"it's\"]": ["it's"],
    r"['it\'s', 'x\\y']": ["it's", "x\\y"],
    r'["\ud83d\ude00", "\u00fc"]': ["😀", "ü"],
    "[&#39;vip&#39;, &#39;R&amp;B&#39;]": ["vip", "R&B"],
    # Text separated by commas, which only resembles a list.
    "[promo] spring, x": ["[promo] spring", "x"],
    'say "hi", x': ['say "hi"', "x"],
    '5" disc, "90s': ['5" disc', '"90s'],
}


@pytest.mark.parametrize("printed", PRINTED, ids=ascii)
def test_a_list_printed_by_liquid_is_a_list(printed: str) -> None:
    expected = tuple(PRINTED[printed])
    assert read({**U, "tags": printed}).tags == expected
    assert read(urlencode({**U, "tags": printed}), FORM).tags == expected
    if expected:
        body = json.dumps({"tags": printed}).encode()
        assert read_event(body, JSON, Customer("user_id", "u")).tags == expected


WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9)


@given(st.lists(WORDS, max_size=5))
def test_a_printed_list_has_the_tags_that_were_printed(tags: list[str]) -> None:
    tags = [tag for tag in dict.fromkeys(tags) if not re.search(r"\{\{|\{%|\$\{", tag)]
    for printed in (json.dumps(tags), json.dumps(tags, ensure_ascii=False), repr(tags)):
        assert read({**U, "tags": printed}).tags == tuple(tags)


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        ('["vip"', "does not end"),
        ("['vip', 'gold'", "does not end"),
        ("[object Object]", "object Object"),
        ('[["vip"], "gold"]', "something else than texts"),
        ('[{"name": "vip"}]', "something else than texts"),
        ("[\u201cvip\u201d]", "something else than texts"),
        ('["vip", ""]', "is empty"),
        ('["vip", nil]', "is empty"),
        (json.dumps([f"t{i}" for i in range(MAX_TAGS + 1)]), "more than 100"),
        ("a," * 100_000, "more than 100"),
        ('["{{x}}"]', "placeholder"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_list_gone_wrong_is_refused_by_name(printed: str, says: str) -> None:
    refusal = refused({**U, "tags": printed})
    assert str(refusal).startswith("tags")
    assert says in str(refusal)
    assert_for_a_marketer(refusal)


NO_CUSTOMERS = [
    *("null", "NULL", "undefined", "None", "nil", "NaN", "[object Object]", "#N/A", " nil\u200e")
]


@pytest.mark.parametrize("word", NO_CUSTOMERS, ids=ascii)
@pytest.mark.parametrize("name", ["user_id", "external_id", "external_user_id"])
def test_a_word_for_no_value_is_no_customer(name: str, word: str) -> None:
    fields = {"campaign_id": "c", name: word}
    for refusal in (refused(fields), refused(urlencode(fields), FORM)):
        assert (refusal.status, refusal.code) == (422, "no_customer")
        assert f'{name} is "{trim(word)}"' in str(refusal)
        assert_for_a_marketer(refusal)


@pytest.mark.parametrize("kind", ["user_id", "external_id"])
def test_a_word_for_no_value_in_a_path_is_no_customer(kind: CustomerKind) -> None:
    with pytest.raises(RefusedError) as caught:
        read_event(b'{"tags":["a"]}', JSON, Customer(kind, "null"))
    assert caught.value.code == "no_customer"


def test_a_word_for_no_value_makes_neither_duplicates_nor_a_campaign() -> None:
    assert read({**U, "dispatch_id": "null"}).dedupe_key(None) is None
    same = read({**U, "dispatch_id": "d"})
    assert same.dedupe_key("undefined") == same.dedupe_key(None)
    assert read({**U, "canvas_id": "null"}).canvas_id is None
    assert refused({"user_id": "u", "campaign_id": "null"}).code == "nothing_to_tag"


LONG = "x" * 256
REFUSED: dict[str, tuple[str | bytes | dict[str, Any], int, str]] = {
    "empty body": ("", 400, "empty"),
    "blank body": ("\ufeff \n", 400, "empty"),
    "not UTF-8": (b'{"user_id":"\xff"}', 400, "UTF-8"),
    "UTF-16": ('{"user_id":"u"}'.encode("utf-16"), 400, "UTF-8"),
    "cut short": ('{"user_id":"u', 400, "line 1, column"),
    "not JSON": ("hello", 400, "not valid JSON"),
    "two documents": ('{"user_id":"u"} {}', 400, "not valid JSON"),
    "comma twice": ('{"user_id":"u",,}', 400, "not valid JSON"),
    "NaN": ('{"user_id":NaN}', 400, "NaN"),
    "infinity": ('{"user_id":-Infinity}', 400, "Infinity"),
    "a list": ("[]", 422, "object"),
    "a text": ('"x"', 422, "object"),
    "Liquid without quotes": ('{"user_id":{{${user_id}}}}', 400, "Liquid"),
    "control character near the fault": ('{"user_id":\0}', 400, "column 12"),
    "too large": (b" " * (MAX_BODY + 1), 413, "256 KB"),
    "nesting bomb": ('{"a":' + "[" * 100_000, 400, "nested"),
    "closed nesting bomb": ('{"a":' + "[" * 50_000 + "]" * 50_000 + "}", 400, "nested"),
    "keys twice that disagree": ('{"user_id":"u","user_id":"v"}', 400, '"user_id" is given twice'),
    "odd keys twice": ('{"\\ud800\\n":1,"\\ud800\\n":2}', 400, "given twice"),
    "no customer": ({"campaign_id": "c"}, 422, "user_id"),
    "blank customer": ({**U, "user_id": " \u00a0"}, 422, "user_id"),
    "no ID and no tags": ({"user_id": "u"}, 422, "braze_campaign_id"),
    "nothing but a field that is none": (
        {"user_id": "42", "tag": "x"},
        422,
        'no such field: "tag"',
    ),
    "a customer under another name": (
        {"userid": "42"},
        422,
        'no such field: "userid" (did you mean user_id?).',
    ),
    "misspelt fields beside another's": (
        {"user_id": "42", "campain_id": "c", "note": "x"},
        422,
        '"campain_id" (did you mean campaign_id?), "note".',
    ),
    "blank ID and no tags": ({**U, "campaign_id": "", "tags": []}, 422, "Nothing to tag"),
    "TTL of 5,000 digits": ('{"user_id":"u","tags":["a"],"ttl":' + "9" * 5000 + "}", 422, "ttl"),
    "two campaigns": ({**U, "braze_campaign_id": "d"}, 422, "braze_campaign_id and campaign_id"),
    "too many tags": ({**U, "tags": [f"t{i}" for i in range(MAX_TAGS + 1)]}, 422, "tags"),
}


@pytest.mark.parametrize(("body", "status", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_an_event_is_refused_in_words(
    body: str | bytes | dict[str, Any], status: int, says: str
) -> None:
    refusal = refused(body)
    assert refusal.status == status
    assert says in str(refusal)
    assert_for_a_marketer(refusal)


NO_TAGS = ["", " ", None, True, 1.5, ["a"], LONG, "a\nb", "{{b}}", "\ud83d{{"]
BAD_FIELDS: dict[str, list[Any]] = {
    "user_id": ["{{${user_id}}}", LONG, "a\0b", "..", "“42”", True, 1.5, ["u"]],
    "external_id": ["{% x %}", LONG, {}],
    "campaign_id": ["${api_id}", {}, "a\nb"],
    "braze_canvas_id": ["{{a}}", False],
    "dispatch_id": ["{{a}}", ["d"]],
    "tags": [{"a": 1}, True, 1.5, *(["a", tag] for tag in NO_TAGS)],
    "ttl": ["{{ttl}}", 0, -5, 1.5, True, "3651d", "a month", [5]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_FIELDS.items() for value in values]
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    refusal = refused({**U, name: value})
    assert (refusal.status, refusal.code) == (422, "invalid_field")
    assert str(refusal).startswith("tags[1] " if value in BAD_FIELDS["tags"][3:] else f"{name} ")
    assert_for_a_marketer(refusal)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("user_id=%FF&campaign_id=c", 400, "form"),
        ("a=1&" * 1001, 400, "form"),
        ("user_id=u&user_id=v&campaign_id=c", 400, "user_id"),
        ("a%0A=1&a%0A=2", 400, "given twice"),
        ("user_id={{${user_id}}}&campaign_id=c", 422, "user_id"),
        ("user_id=u&tags=a&tags=", 422, "tags[1]"),
        ("user_id=u%00&campaign_id=c", 422, "user_id"),
        ("external_id=M&Ms-77&campaign_id=c", 400, 'external_id is followed by "Ms-77"'),
        ("campaign_id=c&external_id=M%26Ms&x", 400, 'external_id is followed by "x"'),
        ("hello", 400, '"hello" has no "="'),
        ("user_id=a+b&na%0Ame=1&%0A", 400, "na"),
        ("", 422, "user_id"),
    ],
)
def test_a_form_is_refused_for_the_same_reasons(body: str, status: int, says: str) -> None:
    refusal = refused(body, FORM)
    assert refusal.status == status
    assert says in str(refusal)
    assert_for_a_marketer(refusal)


@pytest.mark.parametrize("content_type", ["text/html", "application/xml", "multipart/form-data"])
def test_another_content_type_is_refused(content_type: str) -> None:
    refusal = refused(PLAIN, content_type)
    assert refusal.status == 415
    assert content_type in str(refusal)


BROKEN: dict[str, tuple[str, str]] = {
    "{“user_id”: “42”}": ("", "Curly quotes, pasted from a word processor?"),
    '{"user_id": “42”}': ("user_id", "Curly quotes"),
    '{"user_id”: "42"}': ("user_id", "Curly quotes"),
    '{"user_id": "42”}': ("user_id", "Curly quotes"),
    '{"user_id": "42”, "campaign_id": "c"}': ("user_id", "Curly quotes"),
    '{"user_id": „42“}': ("user_id", "Curly quotes"),
    '{"user_id": «42»}': ("user_id", "Curly quotes"),
    '{"user_id": ‘42’}': ("user_id", "Curly quotes"),
    "{'user_id': '42'}": ("", "Single quotes"),
    "{\"user_id\": '42'}": ("user_id", "Single quotes"),
    '{"user_id": `42`}': ("user_id", "Single quotes"),
    "{&quot;user_id&quot;: 42}": ("", "HTML codes"),
    '{"first_name": "Dwayne "The Rock" Johnson"}': ("first_name", "json_escape"),
    '{"name": "“Rocky” x "B"", "user_id": 1}': ("name", "json_escape"),
    '{"tags": "["vip", "gold"]"}': ("tags", "list that Liquid prints"),
    '{"user_id: "42"}': ("user_id", "closing quote of the text before"),
    '{"user_id": "42, "campaign_id": "c"}': ("user_id", "closing quote of the text before"),
    '{"user_id": 42", "campaign_id": "c"}': ("user_id", "opening quote of the text before"),
    '{"user_id": "42}': ("user_id", "never closed"),
    '{"campaign_id": "c" "user_id": "42"}': ("campaign_id", "comma is missing"),
    '{"user_id" "42"}': ("", "colon is missing"),
    '{"user_id" = "42"}': ("", "colon is missing"),
    '{"ttl": , "user_id": "42"}': ("ttl", "did Liquid find none?"),
    '{"user_id": "42", "ttl":}': ("ttl", "did Liquid find none?"),
    '{"user_id": abc}': ("user_id", "Put the text in quotes"),
    '{"user_id": None}': ("user_id", "Put the text in quotes"),
    '{"user_id": 00123}': ("user_id", "Put the text in quotes"),
    '{"user_id": 5f3a-1}': ("user_id", "Put the text in quotes"),
    '{user_id: "42"}': ("", "Put the name in quotes"),
    '{"user_id": "42",,}': ("user_id", "one comma too many"),
    r'{"user_id": "C:\x"}': ("user_id", "backslash"),
    '{"user_id": "42" // ann\n}': ("user_id", "comments"),
    '{"user_id": "42"': ("user_id", "ends too early"),
    '{"user_id": "42"} and more': ("user_id", "follows the end"),
    '"user_id": "42"': ("", "first { is missing"),
    "user_id=42&campaign_id=c": ("", "Content-Type application/x-www-form-urlencoded"),
    "<html></html>": ("", "JSON"),
}


@pytest.mark.parametrize("body", BROKEN, ids=ascii)
def test_broken_json_is_refused_with_the_likely_cause(body: str) -> None:
    field, cause = BROKEN[body]
    refusal = refused(body)
    assert (refusal.status, refusal.code) == (400, "invalid_json")
    assert "not valid JSON at line 1, column " in str(refusal)
    assert cause in str(refusal)
    assert (f", in {field}, near" in str(refusal)) if field else (", in " not in str(refusal))
    assert_for_a_marketer(refusal)


@pytest.mark.parametrize("value", ["“quoted”, he said", "it's", "a: “b”", "‘x’"])
def test_curly_quotes_within_a_text_are_part_of_it(value: str) -> None:
    assert read({**U, "tags": [value]}).tags == (value,)
    broken = json.dumps({"a": value, "b": "x"}, ensure_ascii=False)[:-1] + ",,}"
    assert "Curly" not in str(refused(broken))


def seed_payload() -> bytes:
    """The campaign payload of Braze's SessionM guide, byte for byte."""
    found = re.search(rb'```\n(\{\n"braze_campaign_id.*?,\n\})\n```', GUIDE.read_bytes(), re.DOTALL)
    assert found
    return found[1]


def test_the_guides_own_payload_is_accepted_with_its_trailing_comma() -> None:
    body = seed_payload().replace(b"{{CAMPAIGN ID}}", b"c-1").replace(b"{{CANVAS ID}}", b"v-1")
    body = body.replace(b"{", b'{\n"user_id": "u-1",', 1)
    assert read(body) == Event(Customer("user_id", "u-1"), "c-1", "v-1")


def test_the_guides_own_payload_unfilled_is_called_a_placeholder() -> None:
    refusal = refused(seed_payload().replace(b"{", b'{"user_id": "u-1",', 1))
    assert refusal.status == 422
    assert "braze_campaign_id still holds a placeholder ({{CAMPAIGN ID}})" in str(refusal)


def test_a_body_of_exactly_256_kb_is_read() -> None:
    assert read(PLAIN.ljust(MAX_BODY)) == EVENT


def test_the_place_of_a_fault_is_right_in_spite_of_trailing_commas() -> None:
    body = '{"tags":["a",],"more":["b",],"ttl":ninety}'
    message = str(refused(body))
    assert f"column {body.index('ninety') + 1}" in message
    assert "near: ninety}" in message


def test_a_body_in_sessionms_own_shape_is_for_the_customer_of_the_path() -> None:
    body = b'{"tags":["a",],"ttl":"60","user_id":"somebody else","dispatch_id":"d"}'
    event = read_event(body, JSON, Customer("external_id", "e 1"))
    assert event == Event(Customer("external_id", "e 1"), tags=("a",), ttl=60, dispatch_id="d")


@pytest.mark.parametrize(
    ("path_id", "body", "says"),
    [("{{id}}", b'{"tags":["a"]}', "user_id"), ("u", b'{"campaign_id":"c"}', "tags")],
)
def test_sessionms_own_shape_needs_a_customer_and_tags(
    path_id: str, body: bytes, says: str
) -> None:
    with pytest.raises(RefusedError, match=says):
        read_event(body, JSON, Customer("user_id", path_id))


def key(idempotency_key: str | None = None, **more: Any) -> str | None:
    return read({**U, "tags": ["a", "b"], "dispatch_id": "d", **more}).dedupe_key(idempotency_key)


def test_the_same_event_has_the_same_key() -> None:
    assert key() == key(tags=["b", "a", "b"]) == key(user_id=" u ")
    assert key("k") == key("k", dispatch_id="another") == key("k", dispatch_id=None)


OTHERS: list[dict[str, Any]] = [
    *({"user_id": "v"}, {"user_id": "", "external_id": "u"}, {"campaign_id": "d"}),
    *({"campaign_id": "", "canvas_id": "c"}, {"tags": ["a"]}, {"tags": ["a,b"]}),
    {"dispatch_id": "e"},
]


@pytest.mark.parametrize("more", OTHERS, ids=str)
def test_another_event_has_another_key(more: dict[str, Any]) -> None:
    assert key(**more) != key()


def test_nothing_is_a_duplicate_without_a_key_and_a_test_send_never() -> None:
    assert key(dispatch_id="") is None
    assert key(dispatch_id=UNSENT) is key("k", dispatch_id=f"x_{UNSENT}") is None
    assert read({**U, "dispatch_id": UNSENT}).is_test
    assert not read({**U, "dispatch_id": "d"}).is_test


@pytest.mark.parametrize("depth", [10, 100, 300, 480, 600, 900, 1000, 5000])
@pytest.mark.parametrize("bracket", ["[]", '{"a":}'])
def test_nesting_is_read_and_passed_on_or_refused(bracket: str, depth: int) -> None:
    body = '{"tags":' + bracket[:-1] * depth + "1" + bracket[-1] * depth + "}"
    try:
        fields = read_fields(body.encode(), JSON)
    except RefusedError as refusal:
        assert "nested" in str(refusal)  # noqa: PT017 - either is right
    else:
        assert json.dumps(as_sent(fields), separators=(",", ":")) == body


HOSTILE = [
    *('"', "\\", ",", "[", "{", " ", "\u00a0", '\\"', '"\\', '",', ",]", ",}", ", ", ",\u00a0"),
    *('"a",', '{"a":', '{"a":1,', '"a":1,', "[1,", "[],", "1", "-", "{{", "{%", "\n,", '""', "[,"),
]


@pytest.mark.parametrize("start", ["", '{"a":', '{"a":"', '{"a":[1,'], ids=repr)
@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
def test_256_kb_of_hostile_text_are_refused_at_once(start: str, unit: str) -> None:
    body = start + unit * ((MAX_BODY - len(start)) // len(unit.encode()))
    assert_for_a_marketer(refused(body))


@pytest.mark.parametrize("unit", ["&", "=", "%", "+", "a=&", "%00", "tags=a&", "tags=&"])
def test_256_kb_of_hostile_form_are_refused_at_once(unit: str) -> None:
    assert_for_a_marketer(refused(unit * (MAX_BODY // len(unit)), FORM))


NAMES = ["user_id", "external_id", "campaign_id", "braze_canvas_id", "tags", "ttl", "dispatch_id"]
TRICKY = st.text(st.sampled_from(',]}[{"\\ \u00a0\n:a')) | st.text()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TRICKY
    | st.sampled_from(["", "u", "30d", "{{x}}", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES) | TRICKY, VALUES, max_size=6)


def read_or_refused(body: bytes, content_type: str) -> None:
    try:
        event = read_event(body, content_type)
    except RefusedError as refusal:
        assert_for_a_marketer(refusal)
    else:
        assert event.campaign_id or event.canvas_id or event.tags
        assert event.customer.id.strip()


@pytest.mark.parametrize(
    ("body", "customer"),
    [
        ('{"first_name": "An"na", "user_id": "u1"}', ("user_id", "u1")),
        ('{"external_id": "e1"\n "tags": "vip"}', ("external_id", "e1")),
        ('{"user_id": 00123}', ("user_id", "00123")),
        ("{“user_id”: “u1”}", ("user_id", "u1")),
        ('{"UserID": "u1"}', ("user_id", "u1")),
        ('{"user_id": "", "External-User ID": "e1"}', ("external_id", "e1")),
        ('{"external_id": "E1", "userId": "u1", "ttl": "abc"}', ("external_id", "E1")),
        # Not beyond doubt.
        ('{"userId": "a", "UserID": "b"}', None),
        ('{"user_email": "jane@example.com", "step_id": "S9", "braze_user_id": "B1"}', None),
        ('{"user_id": "A"B", "x": 1}', None),
        ('{"user_id": "a", "user_id": "b"}', None),
        ('{"user_id": {{${user_id}}}}', None),
        ('{"user_id": "null" x}', None),
        ('{"user_id": "M\xfcller", x}'.encode("latin-1"), None),
        ("user_id=M&Ms-77", None),
    ],
)
def test_a_customer_is_read_of_a_refused_body_if_beyond_doubt(
    body: str | bytes, customer: tuple[str, str] | None
) -> None:
    encoded = body if isinstance(body, bytes) else body.encode()
    assert read_partial(encoded, JSON).customer == customer


@pytest.mark.parametrize(
    ("ids", "others"),
    [
        ({"braze_campaign_id": "summer"}, {"campaign": "Summer promo"}),
        ({"braze_canvas_id": "C1"}, {"canvas_step_id": "S9"}),
        ({"braze_campaign_id": "summer"}, {"braze_user_id": "B1", "canvas": "Winter"}),
        ({"external_id": "E1"}, {"user_email": "jane@example.com", "ttl": "abc"}),
    ],
)
def test_similar_names_change_no_identifier_of_a_refused_body(
    ids: dict[str, str], others: dict[str, str]
) -> None:
    alone, among_others = (
        read_partial(json.dumps(fields).encode(), JSON) for fields in (ids, {**ids, **others})
    )
    assert alone == among_others != PartialEvent()


@pytest.mark.parametrize("piece", ["a ", '"a":', "a" * 60, ' "a : "', '"'])
def test_a_hostile_body_is_searched_in_linear_time(piece: str) -> None:
    started = time.process_time()
    read_partial((piece * (MAX_BODY // len(piece))).encode(), JSON)
    assert time.process_time() - started < 1.0


@given(st.binary(), st.sampled_from([JSON, FORM, "", "text/plain"]))
def test_arbitrary_bytes_are_read_or_refused(body: bytes, content_type: str) -> None:
    read_or_refused(body, content_type)


@given(OBJECTS, st.data())
def test_arbitrarily_broken_json_is_read_or_refused(fields: dict[str, Any], data: Any) -> None:
    body = json.dumps(fields, ensure_ascii=data.draw(st.booleans())).encode(errors="surrogatepass")
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(body)))
        put = data.draw(
            st.sampled_from([b"", *b',":\\{}[] \n\xa00'.split(b"|"), b'"', b",", b"{{"])
        )
        body = body[:at] + put + body[at + data.draw(st.integers(0, 3)) :]
    read_or_refused(body, JSON)


def with_trailing_commas(value: object, comma: str) -> str:
    """*value* as JSON with *comma* behind the last item of every object and list."""
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}:{with_trailing_commas(v, comma)}" for k, v in value.items()]
        return "{" + ",".join(items) + (comma if items else "") + "}"
    if isinstance(value, list):
        items = [with_trailing_commas(item, comma) for item in value]
        return "[" + ",".join(items) + (comma if items else "") + "]"
    return json.dumps(value, ensure_ascii=False) if value != "\ud800" else '"\\ud800"'


@given(OBJECTS, st.sampled_from([",", " ,", ",\n ", ",\u00a0", "\u00a0,\t"]))
@example({"a": ',]",}', 'b",}': ["\\", '\\",]']}, ",")
def test_mending_changes_nothing_but_the_trailing_commas(
    fields: dict[str, Any], comma: str
) -> None:
    plain = read_fields(json.dumps(fields).encode(), JSON)
    assert read_fields(with_trailing_commas(fields, comma).encode(), JSON) == plain
    assert as_sent(plain) == fields
