"""Connected Content: parameters read, SessionM's JSON made ready for Liquid."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.customer import Customer
from bridge.fields import FieldError, Whole
from bridge.intake.rules import Rules
from bridge.lookups.query import PARAMETERS, Query, read_query
from bridge.lookups.shape import (
    MOST_BYTES,
    NEVER,
    OwnWrites,
    Part,
    customer_answer,
    encode,
    not_understood,
    offers_answer,
    tags_answer,
)

NOW = 1_764_590_400.0  # 2025-12-01T12:00:00Z
ANN = Customer("user_id", "ann")
BRAZE_ID = Rules(ttl=1).braze_id
NOT_FOUND = Part("not_found", {}, NOW - 2, reason="SessionM does not know this customer.")
UNAVAILABLE = Part("unavailable", reason="SessionM is unavailable.")

KINDS: dict[str, Any] = {"int": int, "str": str, "list": list, "dict": dict, "bool": bool}
KINDS["number"] = int | float


def kinds(described: str) -> dict[str, Any]:
    """``"a:int b:str"`` as names and types."""
    return {name: KINDS[kind] for name, kind in (one.split(":") for one in described.split())}


HEAD = "status:str reason:str user_id:str external_id:str stale:bool age:int as_of:str "
TAGS = "tags:dict names:list count:int braze:dict pending:list expires:dict truncated:bool "
OFFERS = (
    "available_points:number total_points:number count:int total:int truncated:bool "
    "offers:list first:dict next_to_expire:dict "
)
OFFER = kinds("offer_id:str title:str group:str category:str expires_at:str days_left:int")
SHAPES = {
    "tags": kinds(HEAD + TAGS),
    "offers": kinds(HEAD + OFFERS),
    "customer": kinds(HEAD + TAGS + OFFERS + "parts:dict tags_count:int"),
}


def answer(
    lookup: str, tags: Part, offers: Part, own: OwnWrites | None = None, **query: Any
) -> dict[str, Any]:
    """What is sent to Braze, read back as Braze reads it."""
    own, asked = own or OwnWrites(), Query(ANN, **query)
    made = {
        "tags": lambda: tags_answer(ANN, tags, own, BRAZE_ID, NOW),
        "offers": lambda: offers_answer(asked, "ann", offers, NOW),
        "customer": lambda: customer_answer(asked, "ann", tags, offers, own, BRAZE_ID, NOW),
    }[lookup]()
    body = encode(made)
    assert len(body) <= MOST_BYTES
    found: dict[str, Any] = json.loads(body, parse_constant=pytest.fail)
    return found


def ok(document: Mapping[str, Any], **more: Any) -> Part:
    return Part("ok", document, NOW - 3, **more)


def wallet(*offers: Any, **payload: Any) -> Part:
    return ok({"status": "ok", "payload": {"user_offers": list(offers), **payload}})


def assert_documented(lookup: str, found: dict[str, Any]) -> None:
    """The keys and types of the documentation, and no null anywhere."""
    shape = SHAPES[lookup]
    assert found.keys() == shape.keys()
    for name, kind in shape.items():
        assert isinstance(found[name], kind), name
    assert "null" not in json.dumps(without_texts(found))
    if "offers" in shape:
        assert len(found["offers"]) == found["count"] <= found["total"]
        assert found["first"] == (found["offers"][0] if found["offers"] else {})
        for offer in found["offers"]:
            assert all(isinstance(offer[name], kind) for name, kind in OFFER.items())
    if "tags" in shape:
        assert all(type(count) is int for count in found["tags"].values())
        assert found["names"] == list(found["tags"])
        assert found["braze"].keys() == {"campaigns", "canvases"}


def without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return [without_texts(one) for one in value.values()]
    if isinstance(value, list):
        return [without_texts(one) for one in value]
    return "" if isinstance(value, str) else value


SEED_OFFER = {
    "offer_id": "1a2b3324",
    "offer_group_id": "g-1",
    "offer_type": "manual_fulfillment",
    "offer_category_id": "c-1",
    "name": "Free coffee",
    "expiration_date": "2025-12-11T00:00:00Z",
    "redeem_date": None,
    "media": [{"uri": None, "kind": "image"}, None],
}
SEED_OFFERS = wallet(
    SEED_OFFER,
    user_id="ann",
    offer_groups=[{"id": "g-1", "name": "All Offers", "sort_order": 0}],
    offer_categories=[{"id": "c-1", "name": "Drinks", "sort_order": 0}],
    total_points=1000,
    available_points=100,
)
SEED_TAGS = ok({"tags": {"tag1": 2, "braze_campaign_c-9": 0, "braze_canvas_v-9": 0}})


def test_tags_are_ready_for_liquid() -> None:
    own = OwnWrites(["soon", "tag1"], {"braze_campaign_c-9": NOW + 60, "soon": NOW, "gone": NOW})
    found = answer("tags", SEED_TAGS, UNAVAILABLE, own)
    assert found.items() >= {"status": "ok", "user_id": "ann", "external_id": "", "age": 3}.items()
    assert found["tags"] == {"tag1": 2, "braze_campaign_c-9": 0, "braze_canvas_v-9": 0}
    assert (found["names"][0], found["count"]) == ("tag1", 3)
    assert found["braze"] == {"campaigns": ["c-9"], "canvases": ["v-9"]}
    assert found["pending"] == ["soon", "tag1"]
    times = {"braze_campaign_c-9": "2025-12-01T12:01:00Z", "soon": "2025-12-01T12:00:00Z"}
    assert found["expires"] == times
    assert found["as_of"] == "2025-12-01T11:59:57Z"


def test_offers_are_ready_for_liquid() -> None:
    found = answer("offers", UNAVAILABLE, SEED_OFFERS)
    assert found["first"] == found["next_to_expire"] == found["offers"][0]
    assert found["first"] == {
        **{name: value for name, value in SEED_OFFER.items() if value is not None},
        "media": [{"kind": "image"}],
        "title": "Free coffee",
        "group": "All Offers",
        "category": "Drinks",
        "expires_at": "2025-12-11T00:00:00Z",
        "days_left": 9,
    }
    assert (found["count"], found["total"], found["truncated"]) == (1, 1, False)
    assert (found["available_points"], found["total_points"]) == (100, 1000)


HUGE_OFFER = {"offer_id": "h", "terms": "é" * 600_000, "expiration_date": "2026-01-01"}
HUGE_TAGS = ok({"tags": {f"{n:06}{'x' * 240}": n for n in range(8000)}})
PARTS = {
    "ok": (SEED_TAGS, SEED_OFFERS),
    "not found": (NOT_FOUND, NOT_FOUND),
    "unavailable": (UNAVAILABLE, UNAVAILABLE),
    "one of two": (SEED_TAGS, UNAVAILABLE),
    "empty": (ok({}), ok({})),
    "empty lists": (ok({"tags": {}}), wallet()),
    "null": (ok({"tags": None}), ok({"payload": None})),
    "huge": (HUGE_TAGS, wallet(*[{"offer_id": "o", "terms": "x" * 5000}] * 1000)),
    "huge offers": (SEED_TAGS, wallet(HUGE_OFFER, HUGE_OFFER)),
    "one huge tag": (ok({"tags": {"x" * 2_000_000: 1}}), wallet()),
    "a huge tag of Braze": (ok({"tags": {"braze_campaign_" + "x" * 600_000: 1}}), wallet()),
}


@pytest.mark.parametrize(("tags", "offers"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("lookup", SHAPES)
def test_an_answer_has_the_documented_keys_and_types(lookup: str, tags: Part, offers: Part) -> None:
    assert_documented(lookup, answer(lookup, tags, offers, limit=1000))


def test_offers_over_a_megabyte_are_dropped_from_the_end() -> None:
    many = [{"offer_id": str(n), "terms": "é" * 1000} for n in range(1000)]
    found = answer("offers", UNAVAILABLE, wallet(*many), limit=1000)
    assert found["truncated"]
    assert [offer["offer_id"] for offer in found["offers"]] == [
        str(n) for n in range(found["count"])
    ]
    assert len(encode(found)) > MOST_BYTES * 0.99


def test_what_waits_for_a_customer_never_makes_the_answer_too_large() -> None:
    tags = [f"{n:06}{'x' * 240}" for n in range(6000)]
    own = OwnWrites(tags, dict.fromkeys(tags, NOW + 60))
    for part in (NOT_FOUND, SEED_TAGS, HUGE_TAGS):
        for lookup in ("tags", "customer"):
            assert_documented(lookup, answer(lookup, part, SEED_OFFERS, own))


@pytest.mark.parametrize("field", ["media", "offer_id", "expiration_date", "available_points"])
@pytest.mark.parametrize("depth", [100, 450, 800])
def test_nesting_of_any_depth_is_survived(field: str, depth: int) -> None:
    deep = json.loads('{"a":[' * (depth // 2) + "1" + "]}" * (depth // 2))
    part = wallet({"offer_id": "o", field: deep}, **{field: deep})
    assert_documented("offers", answer("offers", UNAVAILABLE, part))


def test_failures_say_why_and_whose() -> None:
    found = answer("customer", SEED_TAGS, UNAVAILABLE)
    assert (found["status"], found["reason"]) == ("unavailable", "SessionM is unavailable.")
    assert found["parts"] == {"tags": "ok", "offers": "unavailable"}
    assert (found["user_id"], found["tags_count"], found["as_of"][:4]) == ("ann", 3, "2025")
    assert answer("tags", UNAVAILABLE, UNAVAILABLE)["as_of"] == ""
    assert answer("tags", NOT_FOUND, NOT_FOUND)["age"] == 2


def test_both_identifiers_are_shown_where_they_are_known() -> None:
    query = Query(Customer("external_id", "e-1"))
    found = offers_answer(query, "u-1", SEED_OFFERS, NOW)
    assert (found["user_id"], found["external_id"]) == ("u-1", "e-1")
    assert offers_answer(query, "", NOT_FOUND, NOW)["user_id"] == ""


EXPIRIES: dict[str, tuple[Any, str | None, int]] = {
    "tomorrow": ("2025-12-02T12:00:00Z", "2025-12-02T12:00:00Z", 1),
    "in a minute": ("2025-12-01T12:01:00Z", "2025-12-01T12:01:00Z", 0),
    "without zone": ("2025-12-03 00:00:00", "2025-12-03T00:00:00Z", 1),
    "another zone": ("2025-12-02T12:00:00+02:00", "2025-12-02T10:00:00Z", 0),
    "seven digits of a second": ("2025-12-02T12:00:00.0000000Z", "2025-12-02T12:00:00Z", 1),
    "only a day": (" 2025-12-03 ", "2025-12-03T00:00:00Z", 1),
    "now": ("2025-12-01T12:00:00Z", None, 0),
    "yesterday": ("2025-11-30", None, 0),
    "the year 1": ("0001-01-01T00:00:00+14:00", None, 0),
    "1970": ("1970-01-01T00:00:00Z", None, 0),
    "never": (None, "", NEVER),
    "blank": (" ", "", NEVER),
    "no date": ("someday", "", NEVER),
    "a list": (["2025"], "", NEVER),
    "UTC behind a space": ("2025-12-02 12:00:00 UTC", "2025-12-02T12:00:00Z", 1),
    "epoch seconds": (1_764_676_800, "2025-12-02T12:00:00Z", 1),
    "epoch milliseconds as text": ("1764676800000", "2025-12-02T12:00:00Z", 1),
    "RFC 1123": ("Tue, 02 Dec 2025 12:00:00 GMT", "2025-12-02T12:00:00Z", 1),
    "Microsoft's JSON": ("/Date(1764676800000)/", "2025-12-02T12:00:00Z", 1),
    "American": ("12/2/2025 12:00:00 PM", "2025-12-02T12:00:00Z", 1),
    "the end of a day": ("2025-12-02T24:00:00Z", "2025-12-03T00:00:00Z", 1),
    "expired long ago": ("1/1/2020", None, 0),
    "the day first": ("31/12/2025", "", NEVER),
}


@pytest.mark.parametrize(("value", "expires_at", "days"), EXPIRIES.values(), ids=EXPIRIES)
@pytest.mark.parametrize("name", ["expiration_date", "expires_at"])
def test_expired_offers_are_dropped_and_others_dated(
    name: str, value: Any, expires_at: str | None, days: int
) -> None:
    found = answer("offers", UNAVAILABLE, wallet({"offer_id": "o", name: value}))
    shown = [(offer["expires_at"], offer["days_left"]) for offer in found["offers"]]
    assert shown == ([] if expires_at is None else [(expires_at, days)])
    assert found["total"] == len(shown)


def test_an_offer_to_the_end_of_time_is_shown() -> None:
    last = wallet({"offer_id": "o", "expiration_date": "9999-12-31T23:59:59-14:00"})
    assert answer("offers", UNAVAILABLE, last)["count"] == 1


FOUR = wallet(
    {"offer_id": "a", "offer_type": "coupon", "offer_group_id": "g"},
    {"offer_id": "b", "offer_category_id": "k", "expiration_date": "2026-03-01"},
    {"offer_id": "c", "offer_type": "Coupon", "expiration_date": "2026-01-01"},
    {"offer_id": "d", "category": "Food", "group": "Deals", "expiration_date": "2026-02-01"},
    offer_groups=[{"id": "g", "name": "Weekly"}],
    offer_categories=[{"id": "k", "name": "Drinks"}],
)


@pytest.mark.parametrize(
    ("query", "ids", "total"),
    [
        ({}, "abcd", 4),
        ({"limit": 2}, "ab", 4),
        ({"sort": "expiry"}, "cdba", 4),
        ({"sort": "-expiry"}, "bdca", 4),
        ({"sort": "expiry", "limit": 1}, "c", 4),
        ({"type": "COUPON"}, "ac", 2),
        ({"type": "coupon", "sort": "expiry"}, "ca", 2),
        ({"group": "weekly"}, "a", 1),
        ({"group": "g"}, "a", 1),
        ({"group": "deals"}, "d", 1),
        ({"category": "drinks"}, "b", 1),
        ({"category": "k"}, "b", 1),
        ({"category": "food"}, "d", 1),
        ({"category": "none"}, "", 0),
    ],
    ids=str,
)
def test_offers_are_filtered_sorted_and_limited(
    query: dict[str, Any], ids: str, total: int
) -> None:
    found = answer("offers", UNAVAILABLE, FOUR, **query)
    assert "".join(offer["offer_id"] for offer in found["offers"]) == ids
    assert found["total"] == total


@pytest.mark.parametrize(
    ("query", "soonest"),
    [({}, "c"), ({"limit": 1}, "c"), ({"category": "food"}, "d"), ({"group": "g"}, None)],
    ids=str,
)
def test_the_next_offer_to_expire_is_one_of_those_asked_for(
    query: dict[str, Any], soonest: str | None
) -> None:
    found = answer("offers", UNAVAILABLE, FOUR, **query)
    assert found["next_to_expire"].get("offer_id") == soonest


def test_only_the_fields_that_are_asked_for_are_shown() -> None:
    found = answer("offers", UNAVAILABLE, FOUR, fields=("offer_id", "offer_type", "terms"))
    assert found["first"] == {"offer_id": "a", "offer_type": "coupon", "terms": ""}
    assert found["next_to_expire"] == {"offer_id": "c", "offer_type": "Coupon", "terms": ""}


NO_POINTS: list[Any] = [None, True, "many", "9" * 5000, [], float("nan"), float("inf")]


@pytest.mark.parametrize(
    ("given", "points"),
    [
        *((100, 100), (1.5, 1.5), ("100", 100), ("1.5", 1.5), ("1,240", 1240), ("1 240", 1240)),
        *(("1.240,50", 1240.5), *((value, 0) for value in NO_POINTS)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_points_are_always_a_number(given: Any, points: float) -> None:
    found = answer("offers", UNAVAILABLE, wallet(available_points=given, total_points=given))
    assert (found["available_points"], found["total_points"]) == (points, points)


def test_what_is_not_understood_is_named_by_its_form_alone() -> None:
    part = wallet(
        {"offer_id": "a", "expiration_date": "31/12/2026 Ann"},
        {"offer_id": "b", "expires_at": ["2026"]},
        {"offer_id": "c", "expiration_date": "2026-01-01"},
        *({"offer_id": "d", "expiration_date": blank} for blank in (None, "", " \u200b", 0)),
        available_points="1,240 points",
        total_points=True,
    )
    assert list(not_understood(part.document)) == [
        "available_points 9,999 a",
        "total_points true, false or null",
        "expiration_date 99/99/9999 a",
        "expires_at a list",
    ]
    assert list(not_understood(SEED_OFFERS.document)) == []


@pytest.mark.parametrize("number", [10**400, -(10**400), float("inf")], ids=["+", "-", "inf"])
def test_numbers_beyond_reason_are_survived(number: Any) -> None:
    offers = wallet({"offer_id": number, "value": number}, available_points=number)
    for lookup in SHAPES:
        assert_documented(lookup, answer(lookup, ok({"tags": {"a": number}}), offers))


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=10)
DATES = st.sampled_from(["9999-12-31T23:59:59-23:59", "0001-01-01", "2026-01-01", "10000-01-01"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, "1e999", "1.e400"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT | DATES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)


def objects(*names: str) -> st.SearchStrategy[Any]:
    return JSON | st.dictionaries(st.sampled_from(names) | ANY_TEXT, JSON, max_size=6)


NAMED = st.lists(objects("id", "name"), max_size=3)
WALLETS = st.fixed_dictionaries(
    {},
    optional={
        "user_offers": JSON
        | st.lists(
            objects("offer_id", "title", "offer_group_id", "expiration_date", "days_left"),
            max_size=4,
        ),
        "offer_groups": JSON | NAMED,
        "offer_categories": JSON | NAMED,
        "available_points": JSON,
        "total_points": JSON,
    },
)
DOCUMENTS = objects("tags", "payload").filter(lambda document: isinstance(document, dict)) | (
    st.fixed_dictionaries({"tags": JSON | st.dictionaries(ANY_TEXT, JSON), "payload": WALLETS})
)


@given(st.sampled_from(sorted(SHAPES)), DOCUMENTS, st.sampled_from(["", "expiry", "-expiry"]))
def test_whatever_sessionm_sends_has_the_documented_shape(
    lookup: str, document: dict[str, Any], sort: str
) -> None:
    part = ok(document)
    assert_documented(lookup, answer(lookup, part, part, sort=sort))
    assert all(len(form) < 100 for form in not_understood(document))


def query(lookup: str = "offers", **given: Any) -> Query:
    return read_query(lookup, given)


def test_a_query_has_the_documented_defaults() -> None:
    asked = query(user_id=" ann\u00a0")
    assert asked == Query(ANN, "en-US", 20, "", "", "", "", (), retry=False)
    assert query("tags", user_id="", external_id="e").customer == Customer("external_id", "e")
    assert query("tags", user_id="ann", external_id="e").customer == ANN


def test_every_parameter_is_read() -> None:
    given = {"culture": "fr-CA", "limit": Whole("1000"), "type": "t", "category": "c", "group": "g"}
    asked = query(**given, user_id="ann", sort="-expiry", fields=" b, a,,b", on_error="retry")
    assert asked == Query(ANN, "fr-CA", 1000, "t", "c", "g", "-expiry", ("a", "b"), retry=True)
    assert query(user_id="ann", **dict.fromkeys(given, " ")) == Query(ANN)
    assert [query(user_id="ann", limit=limit).limit for limit in (5, "5.0", 5.0)] == [5, 5, 5]


@pytest.mark.parametrize(
    ("written", "culture"),
    [
        *((name, "en-US") for name in ("en-US", "en_US", "EN-us", "en", "EN", "\u200een_us ")),
        *(("fr_ca", "fr-CA"), ("fr", "fr"), ("zh_hans_cn", "zh-Hans-CN"), ("es-419", "es-419")),
    ],
)
def test_a_culture_is_read_however_it_is_written(written: str, culture: str) -> None:
    for lookup in ("offers", "customer"):
        assert query(lookup, user_id="ann", culture=written).culture == culture


@pytest.mark.parametrize("lookup", SHAPES)
@pytest.mark.parametrize("value", ["", "1", "{{x}}", 5, None, ["a"], {"a": 1}])
def test_v_is_ignored(lookup: str, value: Any) -> None:
    assert query(lookup, user_id="ann", v=value) == Query(ANN)


def test_the_other_identifier_is_used_where_one_is_a_word_for_no_value() -> None:
    assert query(user_id="null", external_id="e").customer == Customer("external_id", "e")
    with pytest.raises(FieldError, match='external_id is "nil"'):
        query(user_id=" ", external_id="nil")


BAD: list[tuple[str, Any]] = [
    *(("limit", value) for value in ("0", "1001", "-1", "1.5", "x", "²", "9" * 200, True, 1.5)),
    *(("limit", value) for value in ("0000000015000", "00000000" + "1" * 20)),
    *(("limit", value) for value in ("20.5", 20.5, "1,0")),
    *(("culture", value) for value in ("english", "en_US_", "en-US/..", "e", ["en"], "en US")),
    *(("sort", value) for value in ("title", "EXPIRY", "--expiry")),
    *(("on_error", value) for value in ("fail", "1")),
    *(("fields", value) for value in (["a"], "x" * 300, "{{a}}")),
    *((name, "{{x}}") for name in ("type", "category", "group", "external_id")),
    *(("user_id", value) for value in ("null", "None", "undefined", "[object Object]", "#N/A")),
    *(("user_id", value) for value in ("", " \u00a0", "{{${user_id}}}", "..", "a\nb", True, None)),
    *((name, "x") for name in ("userid", "tags", "USER_ID", "")),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: ascii(value)[:30])
def test_a_bad_parameter_is_named(name: str, value: Any) -> None:
    customer = {} if name == "user_id" else {"external_id": "e"}
    with pytest.raises(FieldError) as caught:
        query(**{**customer, name: value})
    assert (name or '""') in str(caught.value)


def test_tags_take_no_parameters_of_offers() -> None:
    for name in PARAMETERS["offers"].keys() - PARAMETERS["tags"].keys():
        with pytest.raises(FieldError, match=name):
            query("tags", user_id="ann", **{name: "1"})


@given(st.sampled_from(sorted(PARAMETERS)), st.data())
def test_any_parameters_are_read_or_refused(lookup: str, data: Any) -> None:
    names = st.sampled_from(sorted(PARAMETERS[lookup])) | ANY_TEXT
    given = data.draw(st.dictionaries(names, JSON | st.text("0123456789")))
    try:
        asked = read_query(lookup, {**given, "user_id": "ann"})
    except FieldError as refused:
        assert str(refused)  # noqa: PT017 - either is right
    else:
        assert 1 <= asked.limit <= 1000
