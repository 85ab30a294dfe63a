"""Connected Content lookups through the application, with the sandbox over HTTP."""

import itertools
import time
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge.parts import parts_of
from bridge.sandbox import SandboxServer
from tests.conftest import ALICE, MakeApp, at_most, bearer, eventually, post

BOB = "b4e2d3c5-1c6f-4d70-9b82-a3c4d5e6f702"
EMPTY = "c5d3e4b6-2d70-4e81-8c93-b4d5e6f70803"
MANY = "d6c4f5a7-3e81-4f92-9da4-c5e6f7081904"


def get(client: FlaskClient, what: str, **parameters: Any) -> TestResponse:
    return client.get(
        f"/connected-content/{what}", query_string=parameters, headers=bearer("content")
    )


def content(answer: TestResponse) -> dict[str, Any]:
    found: dict[str, Any] = answer.get_json()
    return found


def test_tags_come_with_names_counts_and_the_braze_ids_in_them(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    requests.post(
        f"{sandbox.url}/sandbox/customers",
        json={"user_id": "u1", "tags": {"vip": 3, "braze_campaign_c1": {"ttl": 60}}},
        timeout=5,
    )
    answer = content(get(client, "tags", user_id="u1"))
    assert answer["status"] == "ok"
    assert answer["tags"] == {"vip": 3, "braze_campaign_c1": 0}
    assert (answer["names"], answer["count"]) == (["vip", "braze_campaign_c1"], 2)
    assert answer["braze"] == {"campaigns": ["c1"], "canvases": []}
    assert (answer["stale"], answer["reason"]) == (False, "")


def test_offers_are_shaped_for_liquid_and_expired_ones_dropped(client: FlaskClient) -> None:
    answer = content(get(client, "offers", user_id=ALICE, sort="expiry"))
    assert answer["status"] == "ok"
    assert (answer["count"], answer["total"]) == (4, 4)
    assert answer["first"] == answer["offers"][0] == answer["next_to_expire"]
    assert answer["first"]["days_left"] in {1, 2}
    assert all(offer["title"] and offer["group"] for offer in answer["offers"])
    assert answer["offers"][-1]["expires_at"] == ""


@pytest.mark.both_databases
def test_offers_by_external_id_go_through_the_profile_once(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    for _ in range(3):
        answer = content(get(client, "offers", external_id="loyal-1001"))
    assert (answer["user_id"], answer["external_id"]) == (ALICE, "loyal-1001")
    assert answer["count"] == 4
    assert sandbox.sandbox.counts()["profile"] == 1
    assert sandbox.sandbox.counts()["offers"] == 1


def test_limit_and_fields_narrow_the_offers(client: FlaskClient) -> None:
    limited = content(get(client, "offers", user_id=MANY, limit=5, fields="title,offer_id,nothing"))
    assert (limited["count"], limited["total"]) == (5, 60)
    assert all(
        set(offer) == {"title", "offer_id", "nothing"} and offer["nothing"] == ""
        for offer in limited["offers"]
    )


def test_the_culture_reaches_sessionm(client: FlaskClient) -> None:
    english = content(get(client, "offers", user_id=ALICE))["first"]["title"]
    french = content(get(client, "offers", user_id=ALICE, culture="fr-FR"))["first"]["title"]
    assert english != french


def test_an_unknown_customer_is_found_out_politely(client: FlaskClient) -> None:
    for what in ("tags", "offers", "customer"):
        answer = get(client, what, user_id="nobody")
        assert answer.status_code == 200
        assert content(answer)["status"] == "not_found"
        assert content(answer)["reason"]


def test_a_retried_unknown_customer_is_still_no_failure(client: FlaskClient) -> None:
    assert get(client, "tags", user_id="nobody", on_error="retry").status_code == 200


def test_failure_is_200_to_fall_back_on_or_503_to_retry(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 500})
    fallback = get(client, "tags", user_id=ALICE)
    assert (fallback.status_code, content(fallback)["status"]) == (200, "unavailable")
    assert get(client, "tags", user_id=ALICE, on_error="retry").status_code == 503


@pytest.mark.both_databases
def test_twenty_repeats_cost_sessionm_one_call(client: FlaskClient, sandbox: SandboxServer) -> None:
    numbers = itertools.count()

    def calls_for_twenty_lookups() -> int:
        customer = f"repeated-{next(numbers)}"
        sandbox.sandbox.put_customer({"user_id": customer})
        before = sandbox.sandbox.counts().get("offers", 0)
        for _ in range(20):
            get(client, "offers", user_id=customer)
        return int(sandbox.sandbox.counts()["offers"]) - before

    # In a fleet, no answer is kept while a busy machine holds up the database's notifications.
    eventually(lambda: calls_for_twenty_lookups() == 1, 10)


def test_cache_headers_tell_hit_and_miss(client: FlaskClient) -> None:
    miss, hit = (get(client, "tags", user_id=ALICE) for _ in range(2))
    assert miss.headers["Cache-Status"].startswith("bridge; fwd=miss; stored")
    assert hit.headers["Cache-Status"].startswith("bridge; hit; ttl=")
    assert hit.headers["Age"] == "0"
    again = client.get(
        f"/connected-content/tags?user_id={ALICE}",
        headers={**bearer("content"), "If-None-Match": hit.headers["ETag"]},
    )
    assert again.status_code == 304


@pytest.mark.both_databases
def test_a_stale_answer_is_served_while_one_refresh_is_under_way(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(BRIDGE_TAGS_MAX_AGE="0").test_client()
    get(client, "tags", user_id=ALICE)
    time.sleep(0.01)
    sandbox.sandbox.set_faults({"latency_ms": 300})
    with at_most(0.2):
        answer = content(get(client, "tags", user_id=ALICE))
    assert (answer["status"], answer["stale"]) == ("ok", True)
    eventually(lambda: sandbox.sandbox.counts()["tags_read"] == 2)


@pytest.mark.both_databases
def test_a_stale_answer_is_better_than_none_when_sessionm_fails(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(BRIDGE_TAGS_MAX_AGE="0", BRIDGE_STALE_WHILE_REVALIDATE="0").test_client()
    get(client, "tags", user_id=ALICE)
    sandbox.sandbox.set_faults({"status": 500})
    answer = content(get(client, "tags", user_id=ALICE))
    assert (answer["status"], answer["stale"]) == ("ok", True)
    assert "vip" in answer["names"]


@pytest.mark.parametrize(
    "fault",
    [{"hang": 5}, {"drip": 0.3}, {"huge": 10_000_000}],
)
def test_the_deadline_holds_whatever_sessionm_does(
    make_app: MakeApp, sandbox: SandboxServer, fault: dict[str, Any]
) -> None:
    client = make_app(BRIDGE_LOOKUP_DEADLINE="0.5").test_client()
    sandbox.sandbox.set_faults(fault)
    # Braze waits for 2 s.
    with at_most(1.5):
        answer = get(client, "customer", user_id=ALICE)
    assert content(answer)["status"] == "unavailable"


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({}, "user_id"),
        ({"user_id": "{{${user_id}}}"}, "user_id"),
        ({"user_id": "a", "limit": "0"}, "limit"),
        ({"user_id": "a", "api_key": "s"}, "api_key"),
        ({"user_id": ["a", "b"]}, "user_id"),
        ({"user_id": "null"}, 'user_id is "null"'),
    ],
)
def test_a_bad_parameter_is_named(
    client: FlaskClient, parameters: dict[str, Any], word: str
) -> None:
    posted = [
        client.post("/connected-content/offers", headers=bearer("content"), **{form: parameters})
        for form in ("json", "data")
        if not isinstance(parameters.get("user_id"), list)
    ]
    for answer in (get(client, "offers", **parameters), *posted):
        assert answer.status_code == 400
        assert word in content(answer)["errors"]["message"]


def test_an_unescaped_ampersand_is_named_not_read_as_another_customer(
    client: FlaskClient,
) -> None:
    path, broken = "/connected-content/tags", "external_id=M&Ms-77"
    asked = client.get(f"{path}?{broken}", headers=bearer("content"))
    form = {"content_type": "application/x-www-form-url-encoded", "headers": bearer("content")}
    for answer in (asked, client.post(path, data=broken, **form)):
        assert answer.status_code == 400
        assert content(answer)["errors"]["message"].startswith('external_id is followed by "Ms-77"')


def test_all_spellings_of_a_culture_and_any_v_share_one_call(
    client: FlaskClient, sandbox: SandboxServer
) -> None:
    for v, culture in enumerate(("en-US", "en_US", "en", "EN-us", "")):
        answer = get(client, "offers", user_id=f"\u200e{ALICE}\u2060", culture=culture, v=v)
        assert content(answer)["status"] == "ok"
    assert sandbox.sandbox.counts()["offers"] == 1


def test_an_expiry_is_read_in_any_usual_form_and_one_that_is_not_is_named(
    client: FlaskClient, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    expiries = {
        "gone": "2020-01-01 00:00:00 UTC",
        "gone too": 1_577_836_800,
        "and this": "/Date(1577836800000)/",
        "left": "12/1/2199 11:59:59 PM",
        "odd": "31/12/2199 for Ann",
        "odd too": "30/11/2199 for Eve",
    }
    offers = [{"title": title, "expiration_date": when} for title, when in expiries.items()]
    for customer in ("u1", "u2"):
        sandbox.sandbox.put_customer({"user_id": customer, "offers": offers})
        shown = content(get(client, "offers", user_id=customer))["offers"]
        found = [(offer["title"], offer["expires_at"]) for offer in shown]
        assert found == [("left", "2199-12-01T23:59:59Z"), ("odd", ""), ("odd too", "")]
        assert [offer["days_left"] for offer in shown[1:]] == [9999, 9999]
        get(client, "offers", user_id=customer, limit=1)

    def health() -> Any:
        return client.get("/health", headers=bearer("admin")).get_json()

    counted = {"not_understood_last_day": 4, "last_form": "expiration_date 99/99/9999 a a"}
    eventually(lambda: health()["checks"]["offers"] == counted)
    assert not any("expir" in one for one in health()["reasons"])
    logged = [record for record in caplog.records if "not understood" in record.getMessage()]
    assert [record.getMessage() for record in logged] == [
        "not understood: expiration_date 99/99/9999 a a"
    ]


def test_offers_parameters_are_unknown_to_tags(client: FlaskClient) -> None:
    assert get(client, "tags", user_id="a", limit=3).status_code == 400


@pytest.mark.parametrize("form", ["json", "data"])
def test_post_works_like_get(client: FlaskClient, form: str) -> None:
    body: Any = {form: {"user_id": ALICE, "limit": "2"}}
    answer = client.post("/connected-content/offers", headers=bearer("content"), **body)
    assert content(answer)["count"] == 2


def test_without_a_connect_url_offers_are_off_and_say_so(make_app: MakeApp) -> None:
    off = {
        "SESSIONM_CONNECT_URL": "",
        "SESSIONM_CONNECT_AUTH": "",
        "SESSIONM_RETAILER_ID": "",
    }
    client = make_app(**off).test_client()
    answer = content(get(client, "offers", user_id=ALICE))
    assert answer["status"] == "unavailable"
    assert "SESSIONM_CONNECT_URL" in answer["reason"]
    # The tags are answered.
    for customer, status in ((ALICE, "ok"), ("nobody", "not_found")):
        answer = content(get(client, "customer", user_id=customer))
        assert answer["parts"] == {"tags": status, "offers": "unavailable"}
        assert (answer["status"], answer["offers"]) == (status, [])


@pytest.mark.both_databases
def test_what_was_fetched_survives_a_restart(make_app: MakeApp, sandbox: SandboxServer) -> None:
    first = make_app()
    get(first.test_client(), "offers", user_id=ALICE)
    sandbox.stop()
    parts_of(first).close()
    answer = get(make_app().test_client(), "offers", user_id=ALICE)
    assert content(answer)["status"] == "ok"
    assert answer.headers["Cache-Status"].startswith("bridge; hit")


@pytest.mark.both_databases
def test_what_is_pending_is_shown_though_the_wallet_is_late(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(BRIDGE_LOOKUP_DEADLINE="2").test_client()
    assert post(client, braze_campaign_id="c1").status_code == 202
    sandbox.sandbox.set_faults({"hang": 20, "match": "offers"})
    answer = content(get(client, "customer", user_id=ALICE))
    assert answer["parts"]["offers"] == "unavailable"
    assert answer["pending"] == ["braze_campaign_c1"]
