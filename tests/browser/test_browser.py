"""The pages in a real browser: Debian's chromium, headless, against the real service."""

from importlib.resources import files
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, expect

from bridge.sandbox import SandboxServer
from tests.browser.conftest import INTRANET, OpenPage
from tests.conftest import ALICE, MakeService, Service, bearer, eventually

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
PATHS = [
    "/dashboard",
    "/dashboard?span=month",
    "/events",
    "/customers",
    "/setup?recipients=100000&speed=90000",
]
NASTY = "\"'><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


# What is wider than the screen, or on a phone than its own frame.
WIDER = """
[document.documentElement, ...(innerWidth < 400 ? document.querySelectorAll(".scroll") : [])]
  .filter((one) => one.scrollWidth > one.clientWidth)
  .map((one) => `${one.className} ${one.ariaLabel}: ${one.scrollWidth - one.clientWidth}`)"""


def make_dead(service: Service, sandbox: SandboxServer, **fields: Any) -> str:
    sandbox.sandbox.set_faults({"ok_error": True, "code": "validation", "match": "POST"})
    event: str = service.webhook(user_id=ALICE, **fields).json()["id"]
    eventually(lambda: state_of(service, event) == "dead")
    sandbox.sandbox.set_faults({})
    return event


def state_of(service: Service, event: str) -> str:
    answer = requests.get(f"{service.url}/api/events/{event}", headers=bearer("admin"), timeout=9)
    state: str = answer.json()["event"]["state"]
    return state


def tab_to(page: Page, words: str) -> None:
    """Press Tab until what has the focus says *words*."""
    for _ in range(150):
        page.keyboard.press("Tab")
        said = page.evaluate(
            "(document.activeElement.ariaLabel || document.activeElement.textContent).trim()"
        )
        if said == words:
            return
    pytest.fail(f"no way to {words!r} by the keyboard")


def test_the_dashboard_shows_the_users_time_with_utc_beside_it(
    shared_service: Service, open_page: OpenPage
) -> None:
    shared_service.webhook(user_id=ALICE, braze_campaign_id="summer")
    page = open_page(f"{shared_service.url}/dashboard")
    seen = page.locator("tbody time").first
    utc, local = seen.get_attribute("title"), seen.text_content()
    assert utc
    assert utc.endswith(" UTC")
    assert local
    # Tokyo is nine hours ahead, all year.
    assert (int(utc[11:13]) + 9) % 24 == int(local[-8:-6])


def test_the_dashboard_renews_itself_and_disturbs_nobody(
    service: Service, open_page: OpenPage
) -> None:
    service.webhook(user_id=ALICE, braze_campaign_id="spring")
    # Another verdict is another section.
    eventually(lambda: "Healthy" in requests_dashboard(service))
    page = open_page("about:blank", viewport={"width": 900, "height": 500})
    page.clock.install()
    page.goto(f"{service.url}/dashboard")
    page.get_by_role("link", name="spring").focus()
    page.evaluate("scrollTo(0, 700); document.querySelector('#flow').known = true")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#patience'))")
    page.evaluate(
        "window.touched = []; new MutationObserver((seen) => seen.forEach((one) =>"
        " window.touched.push(one.target.nodeName + one.target.id))).observe("
        "document.querySelector('#now'), {subtree: true, childList: true})"
    )
    scrolled = page.evaluate("scrollY")
    assert scrolled > 100
    service.webhook(user_id=ALICE, braze_campaign_id="summer")
    eventually(lambda: "summer" in requests_dashboard(service))
    page.clock.run_for(5100)
    expect(page.get_by_role("link", name="summer")).to_be_visible()
    assert page.evaluate("document.activeElement.textContent") in {"spring", "summer"}
    assert page.evaluate("document.activeElement.nodeName") == "A"
    assert page.evaluate("scrollY") == scrolled
    assert page.evaluate("getSelection().toString()") == "Braze's failure budget"
    assert page.evaluate("document.querySelector('#flow').known")
    # The cards stay the nodes that they were.
    assert not {"SECTION", "MAIN", "DIVnow"} & set(page.evaluate("window.touched"))


def requests_dashboard(service: Service) -> str:
    return requests.get(f"{service.url}/dashboard", headers=bearer("admin"), timeout=9).text


@pytest.mark.parametrize(
    ("path", "asked_for"), [("/dashboard", "/dashboard"), ("/setup", "/setup/progress")]
)
def test_a_page_that_nobody_sees_asks_nothing(
    shared_service: Service, open_page: OpenPage, path: str, asked_for: str
) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(f"{shared_service.url}{path}")
    expect(page.locator("main")).to_be_visible()
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(60_000)
    assert not [url for url in asked if url.endswith(asked_for)]
    with page.expect_response(f"**{asked_for}"):
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: false});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
    page.close()
    # The clock is a script that Playwright puts into every frame, the message's too.
    assert all("sandboxed" in one for one in complaints_of(open_page))
    complaints_of(open_page).clear()


def test_the_dashboard_says_when_the_bridge_cannot_be_reached(
    service: Service, open_page: OpenPage
) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(f"{service.url}/dashboard")
    lost = page.locator("#lost")
    expect(lost).to_be_hidden()
    service.kill()
    page.clock.run_for(5100)
    expect(lost).to_contain_text("The bridge cannot be reached")
    assert lost.get_attribute("role") == "status"
    service.start()
    page.clock.run_for(5100)
    expect(lost).to_be_hidden()
    refused = [one for one in complaints_of(open_page) if "net::ERR_CONNECTION" in one]
    complaints_of(open_page).clear()
    assert refused


def complaints_of(open_page: OpenPage) -> list[str]:
    found: list[str] = open_page.complaints  # type: ignore[attr-defined]
    return found


def test_a_dead_event_is_found_replayed_and_seen_to_be_delivered(
    service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    make_dead(service, sandbox, braze_campaign_id="summer")
    service.webhook(user_id=ALICE, braze_campaign_id="winter")
    page = open_page(f"{service.url}/dashboard")
    expect(page.get_by_role("status").first).to_contain_text("Degraded")
    page.get_by_role("link", name="Events").click()
    page.get_by_label("State").select_option("dead")
    page.get_by_label("Reason contains").fill("validation")
    page.get_by_role("button", name="Search").click()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("summer")
    rows.get_by_role("link").first.click()
    # SessionM hangs for a while, so that the event is seen to wait.
    sandbox.sandbox.set_faults({"latency_ms": [1500, 1500], "match": "POST"})
    page.get_by_role("link", name="Replay…").click()
    page.get_by_role("button", name="Replay").click()
    state = page.locator("dd .chip").first
    expect(state).to_contain_text("queued")
    expect(state).to_contain_text("delivered", timeout=15_000)
    expect(page.locator("section.write")).to_contain_text("2 tries")
    assert "braze_campaign_summer" in sandbox.sandbox.tags(ALICE)


def test_a_customers_search_leaves_no_trace_in_the_address(
    shared_service: Service, open_page: OpenPage
) -> None:
    shared_service.webhook(user_id="looked-for", braze_campaign_id="summer")
    page = open_page(f"{shared_service.url}/events")
    page.get_by_label("Customer ID").fill("looked-for")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert page.url == f"{shared_service.url}/events"


def test_on_plain_http_copying_and_forms_work_too(service: Service, open_page: OpenPage) -> None:
    page = open_page(f"http://{INTRANET}:{service.port}/setup")
    assert not page.evaluate("isSecureContext")
    page.get_by_role("button", name="Copy", exact=True).first.click()
    expect(page.locator("#said")).to_contain_text("Copied to the clipboard")
    page.get_by_label("Customer ID").focus()
    page.keyboard.press("Control+A")
    page.keyboard.press("Control+V")
    address = f"http://{INTRANET}:{service.port}"
    expect(page.get_by_label("Customer ID")).to_have_value(address)
    page.goto(f"http://{INTRANET}:{service.port}/delivery/pause")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".incident", has_text="paused by hand (test)")).to_be_visible()
    page.get_by_role("link", name="Resume…").click()
    expect(page.get_by_role("button", name="Resume")).to_be_focused()


def test_stored_text_is_never_run(
    make_service: MakeService, sandbox: SandboxServer, open_page: OpenPage, tmp_path: Any
) -> None:
    (tmp_path / "rules.toml").write_text(
        f"[campaigns.summer]\nname = '''{NASTY}'''\ntags = ['''{NASTY}''']\n"
    )
    service = make_service()
    sandbox.sandbox.put_customer(
        {
            "user_id": ALICE,
            "tags": {NASTY: 1},
            "offers": [{"offer_id": "1", "title": NASTY, "name": NASTY}],
        }
    )
    sandbox.sandbox.set_faults({"ok_error": True, "code": NASTY, "match": "POST"})
    events = [
        service.webhook(user_id=ALICE, braze_campaign_id="summer").json()["id"],
        service.webhook(user_id=NASTY, braze_canvas_id=NASTY, tags=[NASTY], ttl=99).json()["id"],
    ]
    requests.post(f"{service.url}/webhooks/braze", data=NASTY, headers=bearer("webhook"), timeout=9)
    for event in events:
        eventually(lambda event=event: state_of(service, event) == "dead")  # type: ignore[misc]
    sandbox.sandbox.set_faults({})
    page = open_page(f"{service.url}/events")
    rejected = page.locator("tbody tr", has_text="rejected").get_by_role("link").first
    paths = [rejected.get_attribute("href"), *(f"/events/{event}" for event in events), *PATHS]
    for path in paths:
        page.goto(f"{service.url}{path}")
        assert "pwned" not in page.title(), path
        # Shown as text, and made into no element.
        assert page.locator("img[src=x]").count() == 0, path


@pytest.fixture
def full(service: Service, sandbox: SandboxServer) -> tuple[Service, list[str]]:
    """A service with something on every page, and the paths of the pages."""
    dead = make_dead(service, sandbox, braze_campaign_id="a-campaign-with-quite-a-long-id" * 3)
    requests.get(f"{service.url}/health", headers=bearer("admin"), timeout=9)
    service.webhook(user_id=ALICE, braze_canvas_id="welcome", canvas_name="Welcome")
    service.webhook(user_id="{{${user_id}}}", braze_campaign_id="summer")
    for _ in range(3):
        service.lookup("offers", user_id=ALICE)
    campaign = "a-campaign-with-quite-a-long-id" * 3
    more = [
        f"/campaigns/{campaign}",
        f"/events/{dead}",
        f"/events/{dead}/discard",
        "/events/nonsense",
        "/delivery/pause",
    ]
    return service, [*PATHS, "/events?state=dead", "/events?state=expired", *more]


def test_axe_finds_nothing_and_a_narrow_screen_needs_no_sideways_scrolling(
    full: tuple[Service, list[str]], open_page: OpenPage
) -> None:
    service, paths = full
    page = open_page(f"{service.url}/setup")
    size = page.viewport_size
    assert size
    for path in [*paths, "/docs", "/docs/marketers"]:
        page.set_viewport_size(size)
        page.goto(f"{service.url}{path}")
        # It takes long on /docs, where an operation that was searched for is checked.
        if path != "/docs":
            check(page, path)
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for width in (320, 390, 720, 768, 800):
            page.set_viewport_size({"width": width, "height": 700})
            over = page.evaluate(WIDER)
            assert over == [], (path, width, over)
    complaints_of(open_page).clear()  # of the page that is not there


EVERYTHING = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']"
# The other rules find the same in both schemes.
COLOURS = "{type: 'rule', values: ['color-contrast']}"


def check(page: Page, path: str) -> None:
    """See that axe finds no violation on *page*, in the light scheme and in the dark one."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    assert passed(page, EVERYTHING, path) > 10
    page.emulate_media(color_scheme="dark")
    assert passed(page, COLOURS, path)
    page.emulate_media(color_scheme="light")


def passed(page: Page, rules: str, path: str) -> int:
    """How many of axe's *rules* the page obeys; it must break none."""
    # Of other results one node is enough: a page has hundreds that obey a rule.
    found = page.evaluate(f"axe.run({{runOnly: {rules}, resultTypes: ['violations']}})")
    broken = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
    assert broken == [], path
    return len(found["passes"])


def test_everything_is_within_reach_of_the_keyboard(
    service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    event = make_dead(service, sandbox, braze_campaign_id="summer")
    page = open_page(f"{service.url}/dashboard")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(page, "1")
    page.keyboard.press("Enter")
    page.wait_for_url("**/events?state=dead&direction=to_sessionm")
    page.goto(f"{service.url}/events/{event}")
    tab_to(page, "Replay…")
    page.keyboard.press("Enter")
    page.wait_for_url("**/replay")
    expect(page.get_by_role("button", name="Replay")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/events/*notice=replayed")
    expect(page.locator("dd .chip").first).to_contain_text("delivered")


def test_everything_works_without_scripts(
    service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    event = make_dead(service, sandbox, braze_campaign_id="summer")
    page = open_page(f"{service.url}/dashboard", java_script_enabled=False)
    expect(page.locator("tbody time").first).to_contain_text("UTC")
    page.get_by_role("link", name="Day", exact=True).click()
    expect(page.locator(".plot")).to_have_count(4)
    page.get_by_role("link", name="Events").click()
    page.get_by_label("State").select_option("dead")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="Replay them…").click()
    expect(page.locator("h1")).to_have_text("Replay 1 dead event?")
    page.get_by_role("button", name="Replay 1").click()
    expect(page.locator("h1")).to_have_text("1 of 1 replayed")
    eventually(lambda: state_of(service, event) == "delivered")


def test_a_plot_says_its_values_by_mouse_touch_and_keyboard(
    service: Service, open_page: OpenPage
) -> None:
    for number in range(3):
        service.webhook(user_id=ALICE, braze_campaign_id=f"c{number}")
    eventually(lambda: "accepted <strong>3" in requests_dashboard(service))
    # Of a month, one value is of six hours: the minute may end meanwhile.
    page = open_page(f"{service.url}/dashboard?span=month", has_touch=True)
    plot, tip = page.locator("[data-plot]").first, page.locator(".tip")
    page.keyboard.press("Tab")
    plot.focus()
    page.keyboard.press("End")
    expect(tip).to_contain_text("accepted 3")
    expect(tip).to_contain_text("dead 0")
    expect(page.locator("#said")).to_contain_text("accepted 3")
    page.keyboard.press("Home")
    expect(tip).to_contain_text("accepted 0")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    box = plot.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    expect(tip).to_contain_text("accepted 3")
    page.mouse.move(5, 5)
    page.locator("h2", has_text="Activity").tap()
    expect(tip).to_be_hidden()
    page.touchscreen.tap(box["x"] + box["width"] - 2, box["y"] + 20)
    expect(tip).to_contain_text("accepted 3")
    assert tip.bounding_box()["x"] >= 0  # type: ignore[index]


def test_an_incident_says_what_to_do_and_leads_to_its_events(
    service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    make_dead(service, sandbox, braze_campaign_id="summer", campaign_name="Summer promotion")
    service.webhook(user_id="somebody-else", braze_campaign_id="winter")
    page = open_page(f"{service.url}/dashboard")
    incident = page.locator(".incident")
    expect(incident).to_contain_text("1 write is dead: HTTP 200: VALIDATION")
    expect(incident).to_contain_text("Correct what SessionM refuses")
    expect(incident).to_contain_text("1 customer")
    page.locator("[data-plot]").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#said")).to_contain_text("incident open")
    incident.get_by_role("link", name="See them").click()
    expect(page.locator("#state")).to_have_text("! Degraded")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody").get_by_role("link", name="Summer promotion").click()
    expect(page.locator("h1")).to_have_text("Summer promotion")
    expect(page.locator(".funnel")).to_contain_text("dead")


def test_a_row_of_events_has_date_direction_and_whole_identifiers(
    service: Service, open_page: OpenPage
) -> None:
    campaign = "0d2f6f5e-1111-4b5c-9aaa-000000000001"
    service.webhook(user_id=ALICE, braze_campaign_id=campaign)
    message = {"braze_campaign_id": campaign, "user_id": ALICE, "user_offer_id": "1"}
    requests.post(
        f"{service.url}/webhooks/sessionm/message",
        json=message,
        headers=bearer("trigger"),
        timeout=30,
    )
    for width in (390, 1280):
        page = open_page(f"{service.url}/events", viewport={"width": width, "height": 800})
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text("→to Braze")
        expect(rows.nth(1)).to_contain_text("→to SessionM")
        # In the user's time, and with the day, which for Tokyo may be another.
        local = page.evaluate(
            "new Intl.DateTimeFormat('en-GB', {month: 'short', day: 'numeric'}).format(new Date())"
        )
        expect(rows.nth(0).locator("time")).to_contain_text(f"{local}, ")
        expect(rows.nth(0)).to_contain_text(campaign)
        customer = rows.nth(0).get_by_role("button", name=f"Copy {ALICE}")
        expect(customer).to_have_text(f"{ALICE[:8]}…")
        before = customer.bounding_box()
        customer.click()
        expect(page.locator("#said")).to_contain_text("Copied")
        assert customer.bounding_box() == before
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_arrows_keep_their_width_while_messages_wait_and_a_link_leads_to_past_incidents(
    service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    sandbox.sandbox.set_faults({"status": 401, "where": "braze"})
    requests.post(
        f"{service.url}/webhooks/sessionm/message",
        json={"braze_campaign_id": "award", "user_id": ALICE, "user_offer_id": "1"},
        headers=bearer("trigger"),
        timeout=30,
    )
    eventually(lambda: service.health()["checks"]["delivery_to_braze"]["held_by"] == "refused")
    page = open_page(f"{service.url}/dashboard", viewport={"width": 1440, "height": 900})
    expect(page.locator(".node.here").nth(1)).to_contain_text("1 waiting")
    boxes = [arrow.bounding_box() for arrow in page.locator(".flow .link").all()]
    assert min(box["width"] for box in boxes if box) > 150
    page.get_by_role("link", name="Past incidents").click()
    expect(page.locator("#past")).to_be_in_viewport()


def test_the_search_is_one_row_on_a_usual_screen(
    shared_service: Service, open_page: OpenPage
) -> None:
    page = open_page(f"{shared_service.url}/events", viewport={"width": 1280, "height": 800})
    boxes = [
        page.get_by_label("Direction").bounding_box(),
        page.get_by_label("Reason contains").bounding_box(),
        page.get_by_role("button", name="Search").bounding_box(),
    ]
    bottoms = {round(box["y"] + box["height"]) for box in boxes if box}
    assert len(boxes) == 3
    assert max(bottoms) - min(bottoms) <= 2


def test_campaigns_are_found_and_sorted_and_a_customer_by_her_id(
    service: Service, open_page: OpenPage
) -> None:
    identifier = "0d2f6f5e-1111-4b5c-9aaa-000000000001"
    service.webhook(user_id=ALICE, braze_campaign_id=identifier, campaign_name="Summer promotion")
    service.webhook(user_id=ALICE, braze_campaign_id="winter")
    page = open_page(f"{service.url}/dashboard")
    page.get_by_label("Name or ID").fill("summer")
    page.get_by_role("button", name="Find").click()
    rows = page.locator("table", has_text="Accepted").locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name=f"Copy {identifier}").click()
    expect(page.locator("#said")).to_contain_text("Copied")
    page.get_by_role("link", name="Clear").click()
    page.get_by_role("link", name="Name or ID").click()
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("Summer promotion")
    page.get_by_role("link", name="Customer", exact=True).click()
    page.get_by_label("Customer ID").fill(ALICE)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#findings ~ ul")).to_be_visible()
    expect(page.locator("main")).to_contain_text("Free barista coffee")
    assert page.url == f"{service.url}/customers"


def test_an_operation_of_the_api_is_found_by_its_words(
    shared_service: Service, open_page: OpenPage
) -> None:
    page = open_page(f"{shared_service.url}/docs")
    shown = page.locator(".use:visible .name")
    page.get_by_label("Find an operation").fill("Culture POST")
    expect(shown.filter(has_text="offers")).not_to_have_count(0)
    expect(shown.filter(has_text="Turn a Braze webhook")).to_have_count(0)
    expect(page.get_by_role("heading", name="Administration")).to_be_hidden()
    page.get_by_label("Find an operation").fill("queue_full Prefer ttl")
    expect(page.get_by_role("status").filter(has_text="1 found")).to_be_visible()
    page.get_by_text("Turn a Braze webhook into SessionM tags").click()
    expect(page.locator("main")).to_contain_text("Braze retries by itself, after Retry-After")
    check(page, "/docs")
    page.get_by_label("Find an operation").fill("zzz")
    expect(page.locator("#found")).to_have_text("Nothing matches")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Administration")).to_be_visible()
