"""The setup page without a browser: steps, previews, fields, frames, and the send planner."""

import base64
import json
import re
from collections.abc import Callable
from html import unescape
from threading import Thread
from typing import Any

import pytest
from flask.testing import FlaskClient

from bridge.liquid.snippets import snippets
from bridge.ops.telemetry import Period
from bridge.sandbox import SandboxServer
from bridge.web.progress import since
from tests.app.test_pages import ADMIN, get, post, words
from tests.conftest import ALICE, KEYS, LetPass, MakeApp, bearer, eventually, send
from tests.conftest import post as send_webhook

UNSENT = "dispatch_id_for_unsent_campaign"


def test_the_setup_is_filled_in_with_the_address_that_braze_uses(make_app: MakeApp) -> None:
    seen = get(make_app().test_client(), "/setup")
    assert "http://localhost/webhooks/braze" in seen
    assert "localhost is this machine alone" in seen
    near = {"Host": "bridge:8080", **ADMIN}
    seen = words(make_app().test_client().get("/setup", headers=near))
    assert "It is not https" in seen
    assert "Port 8080: Braze calls ports 80 and 443 only" in seen
    assert "bridge is a name within this network" in seen
    seen = get(make_app(BRIDGE_PUBLIC_URL="https://bridge.example").test_client(), "/setup")
    assert "https://bridge.example/webhooks/braze" in seen
    assert "https://bridge.example/connected-content/offers" in seen
    assert "YOUR-BRIDGE" not in seen
    assert "Braze can use this address" in seen
    through = {"X-Forwarded-Host": "b.example", "X-Forwarded-Proto": "https", **ADMIN}
    proxied = make_app(BRIDGE_TRUSTED_PROXIES="1").test_client().get("/setup", headers=through)
    assert "https://b.example/webhooks/braze" in proxied.text


def test_the_setup_shows_names_of_keys_and_no_secret(client: FlaskClient) -> None:
    answer = client.get("/setup", headers=ADMIN).text
    assert "YOUR-WEBHOOK-SECRET" in answer
    for secret in KEYS.values():
        assert secret not in answer


def test_a_customer_may_be_known_by_an_external_id(client: FlaskClient) -> None:
    answer = get(client, "/setup?id=external_id")
    assert "?external_id={{${user_id} | url_param_escape}}" in answer
    assert '"external_id": "{{${user_id} | json_escape}}"' in answer
    assert "user_id={{${user_id} | url" not in answer.replace("external_id=", "")


@pytest.fixture
def render(client: FlaskClient) -> Callable[..., str]:
    """Renders a template on the setup page; what the page then says of it."""

    def try_out(source: str, customer: str = ALICE, **more: str) -> str:
        answer = post(client, "/setup", part="outcome", source=source, customer=customer, **more)
        assert answer.status_code == 200, words(answer)
        return words(answer)

    return try_out


def test_a_message_without_the_data_of_a_call_is_not_reported_as_rendered(
    client: FlaskClient,
) -> None:
    for source, is_rendered in ((OFFERS, True), (OFFERS.replace("offers", "ofers"), False)):
        answer = post(client, "/setup", part="outcome", source=source, customer=ALICE)
        assert ("data-rendered" in answer.text) is is_rendered


OFFERS = (
    "{% connected_content http://localhost/connected-content/offers?user_id={{${user_id}}}&limit=1"
    " :basic_auth bridge :save wallet %}"
)


TRIED_OUT = (
    ("Hi {{${first_name}}}" + OFFERS + "{{wallet.first.title}}", "Hi Ann"),
    (OFFERS + "{{wallet.first.title}}", "Free barista coffee"),
    (OFFERS.replace("http://localhost", "https://YOUR-BRIDGE") + "{{wallet.status}}!", "ok!"),
    ("{% abort_message('no offer') %}", "The message is aborted: no offer"),
    ("{{ 'a' | nofilter }}", "Line 1, column 1 : Braze has no filter nofilter and ignores it."),
    ("x\n {% if %}{% endif %}", "cannot be rendered. Line 2, column 2 : a condition is missing"),
    (OFFERS + "{{wallet.frist.title}}", "wallet.frist does not exist; did you mean first ?"),
    (OFFERS.replace(":save wallet", "") + "{{wallet.count}}", "its answer with :save wallet"),
    ("{{content_blocks.${footer}}}", "give its text as a test value"),
    ("a<!-- " + OFFERS + " -->b", "ab Connected Content calls none"),
    (OFFERS.replace(" :basic_auth bridge", ""), "add :basic_auth bridge"),
    (OFFERS.replace("bridge :save", "other :save"), "no credential is named 'other'"),
    (OFFERS.replace("localhost", "127.0.0.1:9"), "no host but this bridge"),
    (OFFERS.replace("http://localhost", ""), "no address that can be called"),
    (OFFERS.replace("http://", "http://["), "The address or a header of this call is malformed"),
    (OFFERS.replace(":save", ':headers {"X": "a\\nb"} :save'), "a header of this call is malf"),
    (OFFERS.replace("limit=1", "limit=none"), "limit must be a whole number"),
    (OFFERS.replace("limit=1", "limit=none"), "after a call that works, its fields appear here."),
    (OFFERS.replace("offers?", "nothing?"), "There is nothing at this path"),
    (OFFERS.replace("{{${user_id}}}", "{{${unknown}}}"), "user_id is missing or blank"),
    (
        OFFERS.replace("connected-content/offers", "health").replace("&limit=1", ""),
        "a content key does not open it",
    ),
    (
        '{"braze_campaign_id": "{{campaign.${api_id}}}", "user_id": "{{${user_id}}}"}',
        "would be accepted , and would write: braze_campaign_example-campaign-id for 30 d",
    ),
    ('{"braze_campaign_id": "x"}', "this would be rejected. 422"),
    (
        '{"campaign_id": "x", "user_id": "y", "tgas": "vip"}',
        'no such field: "tgas" (did you mean tags?). Show as',
    ),
    # An answer printed as JSON is no webhook.
    (OFFERS + "{{wallet | as_json_string}}", "Rendered: 1 call answered. Show as"),
    (OFFERS + "{{wallet.status}}", "Connected Content calls ✓ 1 answered"),
    (
        OFFERS + OFFERS.replace("limit=1", "limit=none"),
        "Rendered: 1 call answered, 1 call failed.",
    ),
    ("{% for i in (1..100000000) %}x{% endfor %}", "the loops take over 100,000 rounds"),
    ("<script>alert(1)</script>", "<script>alert(1)</script>"),
)


def test_a_template_is_tried_out_and_its_faults_are_explained(render: Callable[..., str]) -> None:
    for source, expected in TRIED_OUT:
        assert expected in render(source, first_name="Ann"), source
    assert "Rendered: 1 call found no data." in render(OFFERS, "nobody")


def test_code_in_a_warning_is_shown_as_code_and_never_run(client: FlaskClient) -> None:
    source = OFFERS + "{{wallet.frist}}{{wallet['<b>']}}"
    page = post(client, "/setup", part="outcome", source=source, customer=ALICE).text
    assert "<code>wallet.frist</code> does not exist; did you mean <code>first</code>?" in page
    assert "<code>wallet[&#39;&lt;b&gt;&#39;]</code>" in page


def test_a_preview_works_while_sessionm_is_away(
    render: Callable[..., str], sandbox: SandboxServer
) -> None:
    sandbox.sandbox.set_faults({"status": 500})
    answer = render(OFFERS + "{% if wallet.status != 'ok' %}a fallback{% endif %}", "cold")
    assert "a fallback" in answer
    assert "SessionM is unavailable" in answer
    answer = render(OFFERS.replace("&limit=1", "&on_error=retry").replace(":save", ":retry :save"))
    assert "The message is aborted: Connected Content failed: HTTP 503" in answer


def test_a_preview_reads_no_secret_and_counts_nothing(make_app: MakeApp) -> None:
    app = make_app(BRIDGE_ALLOWED_IPS="10.0.0.0/8")
    client = app.test_client()
    answer = post(
        client,
        "/setup",
        part="outcome",
        source="{{settings}}{{credentials}}" + OFFERS + "{{wallet.status}}"
        "{% connected_content http://localhost/connected-content/tags?user_id={{${user_id}}}"
        ' :headers {"Authorization":"Basic YOUR-BASE64-ENCODED-KEY"} :save r %}'
        "{{r.status}} YOUR-BASE64-ENCODED-KEY",
        customer=ALICE,
    )
    assert "okok YOUR-BASE64-ENCODED-KEY" in words(answer)
    for secret in KEYS.values():
        assert secret not in answer.text
        assert base64.b64encode(f"test:{secret}".encode()).decode() not in answer.text
    health = client.get("/health", headers=ADMIN).get_json()
    assert health["checks"]["cache"]["lookups"] == 0


TYPED = {
    "language": "fr",
    "time_zone": "Asia/Tokyo",
    "custom_attribute": '{"points": 600, "vip": true}',
    "event_properties": '{"items": [{"sku": "A1"}]}',
    "context": '{"n": 2.5}',
    "api_trigger_properties": '{"code": "00501"}',
    "field:content_blocks:hi": 'Hello <a href="x">{{${first_name}}}</a>',
    "field::city": "Ulm",
    "field:subscribed_state:email_global": "opted_in",
}


def test_a_preview_has_what_braze_knows_with_types(render: Callable[..., str]) -> None:
    answer = render(
        "{% if custom_attribute.${points} >= 500 %}gold{% else %}silver{% endif %}"
        "{% if custom_attribute.${vip} == true %} vip{% endif %} language={{${language}}}"
        " {{ 1628067600 | time_zone: ${time_zone} | date: '%H' }}"
        " {{event_properties.${items}[0].sku}} {{context.${n} | round}}"
        " {{api_trigger_properties.${code}}} {{content_blocks.${hi}}}"
        " {{${city}}} {{subscribed_state.${email_global}}}!",
        first_name="Ann",
        **TYPED,
    )
    assert '18 A1 3 00501 Hello <a href="x">Ann</a> Ulm opted_in!' in answer
    assert "gold vip language=fr" in answer
    assert "Worth a look" not in answer


def test_what_braze_knows_stays_on_the_page(client: FlaskClient) -> None:
    source = "{{${city}}}{{content_blocks.${hi}}}{{subscribed_state.${email_global}}}"
    answer = post(client, "/setup", source=source, customer=ALICE, **TYPED)
    for value in TYPED.values():
        assert value in unescape(answer.text)


def test_only_fields_that_the_message_uses_get_an_input(client: FlaskClient) -> None:
    hidden = "".join(f"{{{{${{f{number}}}}}}}" for number in range(50))
    source = (
        f"{{% comment %}}{{% comment %}}{{% endcomment %}}{hidden}{{% endcomment %}}"
        f"{{% raw %}}{{% x {hidden}{{% endraw %}}"
        "{{${sms}}}{{${content_blocks}}}{{${custom_attribute}}}"
        "{{sms.${x}}}{{content_blocks.${a}}}{{${city}}}"
    )
    names = ("field::sms", "field::content_blocks", "field::custom_attribute")
    values = dict.fromkeys((*names, "field:sms:x", "field:content_blocks:a"), "typed")
    answer = post(client, "/setup", source=source, customer=ALICE, **values)
    assert answer.status_code == 200
    asked = re.findall(r'name="(field:[^"]*)"', answer.text)
    assert asked == ["field:sms:x", "field:content_blocks:a", "field::city"]


def test_what_braze_knows_is_refused_by_name_if_it_is_no_json(client: FlaskClient) -> None:
    for field, value, expected in (
        ("custom_attribute", "{points: 5}", "Custom attributes is not JSON: line 1, column 2"),
        ("context", '{"a": 1,\n "b": [2, ]}', "line 2, column 9: delete the comma before ]"),
        ("context", "[1]", "Context is not a JSON object"),
        ("event_properties", "{“a”: 1}", "these are curly quotes: type straight ones."),
        ("catalogs", '{"x": 5}', 'needs an object of items for the catalog "x"'),
        ("api_trigger_properties", "{" + " " * 100_000, "is longer than 100,000 characters"),
    ):
        answer = post(client, "/setup", source="my own words", customer=ALICE, **{field: value})
        assert answer.status_code == 400
        assert expected in words(answer)
        assert "my own words" in answer.text


def test_lookups_are_answered_while_a_hostile_template_renders(make_app: MakeApp) -> None:
    app = make_app()
    lookup = f"/connected-content/tags?user_id={ALICE}"
    client = app.test_client()
    assert client.get(lookup, headers=bearer("content")).status_code == 200
    endless = "{% for i in (1..90000) %}{{ i | sha2 | slice: 0 }}{% endfor %}" * 20
    previews = [
        Thread(target=post, args=(app.test_client(), "/setup"), kwargs=kwargs)
        for kwargs in [{"source": endless, "customer": ALICE}] * 2
    ]
    for preview in previews:
        preview.start()
    answered = 0
    while any(preview.is_alive() for preview in previews):
        assert client.get(lookup, headers=bearer("content")).get_json()["status"] == "ok"
        answered += 1
    assert answered > 20


def test_a_preview_without_a_customer_says_so(client: FlaskClient) -> None:
    answer = post(client, "/setup", source="my own words", customer=" ")
    assert '<p class="notice warn" id="no-customer">Choose a customer.</p>' in answer.text
    assert "my own words" in answer.text


def test_another_snippet_is_loaded_without_scripts(client: FlaskClient) -> None:
    answer = post(client, "/setup", load="tag_check", source="my own", customer=ALICE)
    assert "Your VIP lounge is open." in edited(answer.text)
    assert f'value="{ALICE}"' in answer.text
    assert "Your own text was put aside" in words(answer)
    back = post(client, "/setup", load="aside", source=edited(answer.text), aside="my own")
    assert edited(back.text) == "my own"


def test_a_snippet_brings_the_test_values_that_it_needs(client: FlaskClient) -> None:
    def values(page: str) -> Any:
        found = re.search(r'<textarea name="api_trigger_properties"[^>]*>\n(.*?)<', page, re.DOTALL)
        assert found
        return json.loads(unescape(found[1]) or "{}")

    filled = {"title": "Free barista coffee", "bridge_event": "example-event"}
    linked = client.get("/setup?snippet=offer_awarded", headers=ADMIN).text
    assert values(linked) == filled
    typed = '{"title": "Mine", "more": 1}'
    loaded = post(client, "/setup", load="offer_awarded", api_trigger_properties=typed)
    assert values(loaded.text) == {**filled, "title": "Mine", "more": 1}
    # What is being previewed has the values that were typed, and no others.
    source = edited(loaded.text)
    fields = {"snippet": "offer_awarded", "source": source, "customer": ALICE}
    previewed = post(client, "/setup", api_trigger_properties='{"title": "Mine"}', **fields)
    assert values(previewed.text) == {"title": "Mine"}
    half = post(client, "/setup", load="offer_awarded", api_trigger_properties='{"title')
    assert "{&#34;title</textarea>" in half.text


def test_a_snippet_that_was_not_changed_is_not_put_aside(client: FlaskClient) -> None:
    first = edited(client.get("/setup", headers=ADMIN).text)
    answer = post(client, "/setup", load="tag_check", source=first, aside="kept before")
    assert 'name="aside" value="kept before"' in answer.text
    answer = post(client, "/setup", load="tag_check", source=first)
    assert 'name="aside" value=""' in answer.text


def edited(page: str) -> str:
    """What the page has in its editor."""
    found = re.search(r'<textarea id="source"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert found
    return unescape(found[1])


def test_a_send_is_planned(make_app: MakeApp) -> None:
    client = make_app(BRIDGE_SESSIONM_RPS="20").test_client()
    answer = get(client, "/setup?recipients=100,000&message=webhook")
    assert "Set the rate limit in Braze to 960 messages a minute" in answer
    assert "80 % of 20 calls/s × 60 ÷ 1 calls per recipient = 960 a minute, the lowest" in answer
    answer = get(client, "/setup?recipients=100000&message=webhook&counters=1&speed=6000")
    assert "Set the rate limit in Braze to 480" in answer
    assert "At your 6,000 a minute, tags come faster than SessionM takes them: 200 writes" in answer
    assert "without one, a retry by Braze counts twice" in answer
    for message, lookups in (("context", 1), ("offers", 3)):
        answer = get(client, f"/setup?recipients=100000&calls=&message={message}")
        assert f"Calls per recipient: {lookups} lookup" in answer
    for percents in ("retries=0.5&warm=12.5", "retries=0,5+%25&warm=12,5"):
        answer = get(client, f"/setup?recipients=1.000&message=offers&{percents}")
        assert "Calls per recipient: 3 lookups × 1.005" in answer
        assert "and none for the 12 % fetched ahead" in answer
    for field, refusal in (
        ("recipients=many", "The number of recipients must be a whole number"),
        ("recipients=100.5", "The number of recipients must be a whole number"),
        ("recipients=9&calls=0.5", "The number of calls per recipient must be a whole number"),
        ("recipients=9&retries=some", "The retry rate must be a number from 0 to 100"),
        ("recipients=9&warm=101", "fetched ahead must be a number from 0 to 100"),
    ):
        bad = client.get(f"/setup?{field}", headers=ADMIN)
        assert bad.status_code == 400
        assert refusal in words(bad)


def test_each_field_of_the_planner_says_what_it_is_and_where_to_find_it(
    client: FlaskClient,
) -> None:
    page = client.get("/setup", headers=ADMIN).text
    form = page[page.index('class="planner"') : page.index('aria-live="polite"')]
    for name in ("recipients", "message", "calls", "retries", "warm", "speed", "counters"):
        assert f'name="{name}"' in form
        assert f'aria-describedby="about-{name}"' in form
        assert f'id="about-{name}"' in form
    assert form.count("In Braze: ") == 3
    assert form.count("Example: ") == 5


def test_the_setup_says_which_way_suits_a_large_audience(make_app: MakeApp) -> None:
    off = get(make_app(BRIDGE_SESSIONM_RPS="20").test_client(), "/setup")
    assert "at most 20 calls a second to SessionM Core" in off
    assert "1,000,000 1,000,000 calls, 13 h 53 min 10 jobs" in off
    assert "Off here. Where the person who runs the bridge switches it on" in off
    assert "Batch jobs are off on this bridge" in off
    assert "bridge batch submit segment.csv --tag" in off
    on = make_app(
        BRIDGE_SESSIONM_RPS="20",
        BRIDGE_BULK_THRESHOLD="500",
        BRIDGE_PUBLIC_URL="https://bridge.acme.com",
    )
    answer = get(on.test_client(), "/setup")
    assert "On here: above a backlog of 500 writes" in answer
    assert "Batch jobs are off" not in answer
    planned = get(on.test_client(), "/setup?recipients=100000&message=webhook&speed=60000")
    assert "delivered by batch jobs" in planned


def test_no_name_of_a_setting_is_shown_to_a_marketer(make_app: MakeApp) -> None:
    for path in ("/setup", "/setup?recipients=1000000&message=both&speed=900000"):
        assert "BRIDGE_" not in make_app().test_client().get(path, headers=ADMIN).text


# --- Customers to try -----------------------------------------------------------------------------


def picked(client: FlaskClient, path: str = "/setup") -> list[str]:
    return re.findall('name="pick" value="([^"]*)"', client.get(path, headers=ADMIN).text)


def test_customers_of_recent_sends_come_first_then_the_sandboxs(make_app: MakeApp) -> None:
    client = make_app(deliver=True).test_client()
    assert f"user_id:{ALICE}" in picked(client)
    # The same customer under both identifiers is one, and a mistyped one is none.
    send(client, user_id=ALICE, braze_campaign_id="c")
    send(client, user_id=None, external_id="loyal-1001", braze_campaign_id="c")
    send(client, user_id="loyal-1001", braze_campaign_id="c")
    send_webhook(client, user_id="{{${user_id}}}", braze_campaign_id="c")
    send(client, user_id=None, external_id="loyal-1002", braze_campaign_id="c")
    newest = ["external_id:loyal-1002", "external_id:loyal-1001"]
    eventually(lambda: picked(client, "/setup?id=external_id")[:2] == newest)
    found = picked(client)
    assert found[1] == f"user_id:{ALICE}"
    assert len(found) == len({one.partition(":")[2] for one in found}) == 6
    assert not [one for one in found if "loyal" in one]


def test_a_preview_begins_with_a_customer_that_sessionm_knows(
    make_app: MakeApp, sandbox: SandboxServer
) -> None:
    client = make_app(deliver=True).test_client()
    for customer in (ALICE, "nobody"):
        send(client, user_id=customer, braze_campaign_id="c")
    eventually(lambda: progress_of(client)["send"]["unknown_customer"])
    # As in production, where no sandbox names its customers.
    sandbox.stop()
    assert picked(client) == [f"user_id:{ALICE}"]
    assert f'name="customer" value="{ALICE}"' in client.get("/setup", headers=ADMIN).text


def test_a_sandbox_that_is_away_is_no_harm(make_app: MakeApp, sandbox: SandboxServer) -> None:
    client = make_app().test_client()
    sandbox.stop()
    assert "ask for the ID of a test customer" in get(client, "/setup")


@pytest.mark.parametrize(
    ("typed", "kind", "is_external"),
    [("loyal-1001", "user_id", True), (ALICE, "external_id", False)],
)
def test_an_id_of_the_other_kind_is_found_and_said(
    render: Callable[..., str], typed: str, kind: str, *, is_external: bool
) -> None:
    source = OFFERS.replace("?user_id=", f"?{kind}=") + "{{wallet.first.title}}"
    answer = render(source, customer=typed, id=kind)
    assert "Free barista coffee" in answer
    other = ("an external ID", "external ID") if is_external else ("a user ID", "user ID")
    assert f"{typed} is {other[0]} in SessionM" in answer
    assert f"use the {other[1]} in step 1" in answer


def test_an_id_of_the_right_kind_is_not_commented_on(render: Callable[..., str]) -> None:
    answer = render(OFFERS + "{{wallet.first.title}}")
    assert "in SessionM, and the message asks by" not in answer
    assert "neither by user ID" in render(OFFERS, customer="nobody")


def test_an_unknown_customer_is_no_fault_of_the_message(render: Callable[..., str]) -> None:
    answer = render(OFFERS + "{{wallet.first.title}}{{wallet.frist}}", customer="nobody")
    assert "{{wallet.first.title}} prints nothing" in answer
    assert "wallet.first.title does not exist" not in answer
    assert "wallet.frist does not exist" in answer
    answer = render(OFFERS + "{% endif %}", customer="nobody")
    assert "SessionM does not know this customer" not in answer
    assert "Correct the message first" in answer


# --- Calls, fields, frame -------------------------------------------------------------------------


def test_a_call_shows_what_brazes_debugger_shows(render: Callable[..., str]) -> None:
    render(OFFERS)
    answer = render(OFFERS)
    assert "✓ 1 answered" in answer
    assert "cache hit" in answer
    assert "Authorization ***" in answer
    assert "Cache-Status bridge; hit" in answer
    assert '"available_points": 1240' in answer


def test_fields_are_listed_with_the_customers_values(client: FlaskClient) -> None:
    page = post(client, "/setup", part="outcome", source=OFFERS, customer=ALICE).text
    inserts = [unescape(one) for one in re.findall('data-insert="([^"]*)"', page)]
    assert "{{ wallet.first.title | default: '…' | escape }}" in inserts
    assert "{{ wallet.available_points | default: 0 }}" in inserts
    assert "{{ wallet.first.expires_at | date: '%d %B %Y' }}" in inserts
    assert "{% for offer in wallet.offers %}\n  {{ offer.title | escape }}\n{% endfor %}" in inserts
    assert "Free barista coffee" in unescape(page)


def test_a_message_without_a_call_is_offered_one(
    client: FlaskClient, render: Callable[..., str]
) -> None:
    page = post(client, "/setup", part="outcome", source="Hi", customer=ALICE).text
    found = re.search('data-insert-first="([^"]*)"', page)
    assert found
    assert "1240" in render(unescape(found[1]) + "{{ customer.available_points }}")


def test_every_field_shows_what_its_liquid_renders(
    client: FlaskClient, render: Callable[..., str]
) -> None:
    page = post(client, "/setup", part="outcome", source=OFFERS, customer=ALICE).text
    for one in sorted({unescape(one) for one in re.findall('data-insert="([^"]*)"', page)}):
        answer = render(f"{OFFERS}{one}")
        assert "Worth a look" not in answer, one
        assert "cannot be rendered" not in answer, one


@pytest.mark.parametrize("message", ["<p style='color:red'>Hi", "<!DOCTYPE html><html>Hi"])
def test_a_message_is_a_document_in_which_nothing_runs(client: FlaskClient, message: str) -> None:
    answer = post(client, "/setup/frame", message=message)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none'; style-src 'unsafe-inline'")
    assert "script" not in policy
    assert "frame-ancestors 'self'" in policy
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.text.lower().count("<html") == 1
    assert message in answer.text
    away = {"Sec-Fetch-Site": "cross-site", **ADMIN}
    assert client.post("/setup/frame", data={"message": "x"}, headers=away).status_code == 403


# --- Snippets -------------------------------------------------------------------------------------


def test_each_snippet_has_a_picture_of_what_it_becomes(client: FlaskClient) -> None:
    page = client.get("/setup", headers=ADMIN).text
    pictures = re.findall(r'class="picture">(.*?)</div>', page, re.DOTALL)
    assert len(pictures) == len(snippets())
    assert all(re.sub("<[^>]*>", "", one).strip() for one in pictures)
    assert "Free barista coffee" in pictures[0]
    assert "{{" not in "".join(pictures)


# --- Progress -------------------------------------------------------------------------------------


def progress_of(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/setup/progress", headers=ADMIN)
    assert answer.headers["Cache-Control"] == "no-store"
    found: dict[str, Any] = answer.get_json()
    return found


def basic(name: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"


def arrived(client: FlaskClient) -> str:
    return get(client, "/setup?part=progress")


def test_the_steps_wait_on_a_new_bridge(client: FlaskClient) -> None:
    answer = progress_of(client)
    assert not any(answer["steps"].values())
    assert answer["send"] is None
    assert "Waiting for a test send" in arrived(client)
    assert "Waiting for the first Connected Content call" in arrived(client)
    assert "Waiting for a message from SessionM" in arrived(client)
    assert "Message not tried yet" in arrived(client)


def test_a_test_send_is_shown_with_what_it_became(make_app: MakeApp) -> None:
    client = make_app(deliver=True, BRIDGE_PUBLIC_URL="https://b.example").test_client()
    event = send(client, braze_campaign_id="summer", dispatch_id=UNSENT, colour="red")
    eventually(lambda: progress_of(client)["send"]["state"] == "delivered")
    # Real sends come in between.
    send(client, braze_campaign_id="other", user_id="somebody-else")
    answer = progress_of(client)
    assert answer["send"] == {
        "id": event,
        "state": "delivered",
        "unknown_customer": False,
        "test": True,
    }
    assert answer["steps"] == {"address": True, "webhook": True, "credential": False, "test": True}
    seen = arrived(client)
    assert "A test send has arrived" in seen
    assert f"{ALICE} (user ID, as Braze sent it)" in seen
    assert "braze_campaign_summer for 30 d" in seen
    assert "in SessionM" in seen
    assert "colour" in seen


@pytest.mark.parametrize("body", ['{"user_id": "", "braze_campaign_id": "c", "dispatch_id": "%s"}'])
def test_a_rejected_test_send_says_why(client: FlaskClient, body: str) -> None:
    rejected = client.post(
        "/webhooks/braze",
        data=body % UNSENT,
        content_type="application/json",
        headers=bearer("webhook"),
    )
    assert rejected.status_code == 422
    reason = rejected.get_json()["errors"]["message"]
    assert not progress_of(client)["steps"]["webhook"]
    assert "! Webhook a send was rejected" in arrived(client)
    assert arrived(client).count(reason) == 2
    send(client, braze_campaign_id="a-real-one")
    assert progress_of(client)["steps"]["webhook"]
    assert not progress_of(client)["steps"]["test"]
    seen = arrived(client)
    assert "A send has arrived and was rejected" in seen
    assert "✓ Webhook a send has arrived" in seen
    assert f"{reason} A later send was accepted." in seen


def test_a_test_send_for_an_unknown_customer_says_what_to_do(
    make_app: MakeApp,
) -> None:
    client = make_app(deliver=True).test_client()
    send(client, braze_campaign_id="summer", campaign_name="Summer sale", user_id="loyal-1001")
    eventually(lambda: progress_of(client)["send"]["unknown_customer"])
    seen = arrived(client)
    assert "! Test waiting for the customer" in seen
    assert "SessionM has no customer with this user ID" in seen
    event = progress_of(client)["send"]["id"]
    assert "SessionM has no customer with this ID" in get(client, f"/events/{event}")
    assert "HTTP 404" not in seen
    assert "Summer sale" in seen
    # A second one waits behind the first, and says the same at once.
    second = send(client, braze_campaign_id="summer", user_id="loyal-1001", dispatch_id=UNSENT)
    assert "! Test waiting for the customer" in arrived(client)
    assert "SessionM has no customer with this ID" in get(client, f"/events/{second}")
    waiting = words(post(client, "/customers", kind="user_id", id="loyal-1001"))
    assert "Waiting for the customer to be created in SessionM." in waiting


def test_what_came_before_the_beginning_turns_no_step_green(client: FlaskClient) -> None:
    lookup = f"/connected-content/tags?user_id={ALICE}"
    send(client, braze_campaign_id="a-demos-own", dispatch_id=UNSENT)
    client.get(lookup, headers=bearer("content"))
    assert progress_of(client)["steps"]["credential"]
    assert client.post("/setup/progress", headers=bearer("viewer")).status_code == 403
    begun = client.post("/setup/progress", headers=ADMIN).get_json()
    assert not any(begun["steps"].values())
    assert "Waiting for a test send" in arrived(client)
    assert "Waiting for the first Connected Content call" in arrived(client)
    client.get(lookup, headers=bearer("content"))
    send(client, braze_campaign_id="mine", dispatch_id=UNSENT, user_id="another")
    steps = progress_of(client)["steps"]
    assert (steps["webhook"], steps["credential"]) == (True, True)
    assert "Test on its way to SessionM" in arrived(client)
    assert "1 Connected Content call answered so far" in arrived(client)


def test_a_send_with_a_wrong_key_is_shown(client: FlaskClient) -> None:
    client.post("/webhooks/braze", json={}, headers={"Authorization": "Bearer wrong"})
    assert progress_of(client)["sends_not_let_in"] == 1
    seen = arrived(client)
    assert "! Webhook wrong key" in seen
    assert seen.count("1 send of the last 15 minutes had a wrong key, or none") == 2
    assert seen.count("holds no webhook key of the bridge") == 2
    # A later test send shows that the key is corrected.
    send(client, braze_campaign_id="summer", dispatch_id=UNSENT)
    seen = arrived(client)
    assert "✓ Webhook a send has arrived" in seen
    assert seen.count("had a wrong key") == 1
    assert "A later send had a right key." in seen
    # The step is as the last call, whatever came before.
    client.post("/webhooks/braze", json={}, headers={"Authorization": "Bearer wrong"})
    assert "! Webhook wrong key" in arrived(client)
    assert arrived(client).count("2 sends of the last 15 minutes had a wrong key") == 2


def test_a_message_with_a_wrong_key_is_shown(client: FlaskClient) -> None:
    client.post("/webhooks/sessionm/message", json={}, headers=bearer("webhook"))
    assert progress_of(client)["messages_not_let_in"] == 1
    seen = arrived(client)
    assert "1 message of the last 15 minutes had a wrong key, or none" in seen
    assert "The key test is for webhook: here a key for trigger is needed" in seen
    assert "the secret of a trigger key" in seen


def test_what_was_wrong_before_the_last_success_does_not_count() -> None:
    minutes = [Period(at) for at in (0.0, 60.0, 120.0)]
    assert [one.at for one in since(minutes, 60.0)] == [60, 120]
    assert [one.at for one in since(minutes, 119.0)] == [60, 120]
    assert since(minutes, None) == minutes


def test_a_rejected_connected_content_call_says_what_was_wrong(client: FlaskClient) -> None:
    content = basic("test", KEYS["content"])
    for number, (authorization, query, reason) in enumerate(
        (
            ("", "", "add :basic_auth and the credential's name to the tag"),
            (basic("test", "wrong"), "", "name test is right, but the password is not the secret"),
            (basic("bob", KEYS["content"]), "", "user name is not the name of a content key."),
            (
                basic("test", KEYS["webhook"]),
                "",
                "is for webhook: here a key for content is needed",
            ),
            (content, "", "user_id is missing or blank: name a customer"),
            (content, "?ann@example.com=1", '"…" is not a parameter here'),
            (content, '?ann"s"@example.com=1', '"…" is not a parameter here'),
            (content, "?user_id=“ann@example.com”", 'a word processor: "…". Delete them'),
        ),
        1,
    ):
        headers = {"Authorization": authorization} if authorization else {}
        client.get(f"/connected-content/tags{query}", headers=headers)
        assert progress_of(client)["rejected"] == number
        assert reason in arrived(client)


def test_a_connected_content_call_marks_the_credential(client: FlaskClient) -> None:
    path = f"/connected-content/tags?user_id={ALICE}"
    client.get(path, headers={"Authorization": "Bearer wrong"})
    # A person's browser is asked for its key as well.
    client.get("/setup")
    post(client, "/setup", part="outcome", source=OFFERS, customer=ALICE)
    answer = progress_of(client)
    assert not answer["steps"]["credential"]
    assert answer["rejected"] == 1
    assert "1 Connected Content call of the last 15 minutes was rejected" in arrived(client)
    client.get(path, headers=bearer("content"))
    assert progress_of(client)["steps"]["credential"]
    seen = arrived(client)
    assert "Braze uses the credential. 1 Connected Content call answered" in seen
    # A success is not contradicted in red.
    assert "notice bad" not in client.get("/setup?part=progress", headers=ADMIN).text
    assert re.search(r"the last one at \d{4}-\d\d-\d\d \d\d:\d\d UTC", seen)


# --- Blank outputs, faults and states -------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected", "unexpected"),
    [
        (OFFERS + "Offer: {{wallet.first.none}}.", "1 call answered, 1 warning.", "Blank for"),
        (
            "{{ '' | append: '' }}{{${first_name}}}",
            "Rendered. Blank for other customers:",
            "Blank for this",
        ),
        ("{% abort_message('no') %}{{${first_name}}}", "Nothing would be sent.", "Blank for"),
        (OFFERS + "{% for x in y %}x{% endfor %}", "The whole message is blank", "aborted"),
        (OFFERS + "{% endif %}", "cannot be rendered", "Connected Content calls none"),
        (
            "{{ 'a' | date: '%d', 'x' }}",
            "the filter date takes 1 value after its colon, and has 2",
            "Connected Content calls none",
        ),
    ],
)
def test_blank_outputs_and_faults_are_reported(
    render: Callable[..., str], source: str, expected: str, unexpected: str
) -> None:
    answer = render(source, first_name="Ann")
    assert expected in answer
    assert unexpected not in answer


def test_a_message_is_shown_for_the_states_of_a_customer(render: Callable[..., str]) -> None:
    source = OFFERS + (
        "{% if wallet.status == 'ok' %}{{wallet.count}} offers{{wallet.first.title}}, "
        "{{wallet.available_points}} points{% else %}{{wallet.status}}: "
        "{{wallet.reason}}{% endif %}!"
    )
    assert "0 offers, 1240 points!" in render(source, state="no_offers")
    assert "Shown as if this customer had no offers" in render(source, state="no_offers")
    assert "not_found: SessionM does not know this customer.!" in render(source, state="not_found")
    assert "unavailable: SessionM is unavailable.!" in render(source, state="unavailable")
    retried = render(source.replace("&limit=1", "&on_error=retry"), state="unavailable")
    assert "failed" in retried
    assert "1 offersFree barista coffee, 1240 points!" in render(source, state="other")


def test_a_preview_reports_stale_and_missing_answers(
    render: Callable[..., str], sandbox: SandboxServer, let_pass: LetPass
) -> None:
    assert "The data is" not in render(OFFERS)
    let_pass(2000)
    sandbox.sandbox.set_faults({"status": 500})
    assert "The data is 33 min 20 s old." in render(OFFERS)
    assert "SessionM does not answer at the moment" in render(OFFERS, customer="cold")
