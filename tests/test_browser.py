"""The pages in a real browser: Debian's chromium, headless, against the real service."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bridge.sessionm.sandbox import SandboxServer
from tests.conftest import ALICE, KEYS, MakeService, Service, bearer, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
# On plain HTTP a browser trusts no name but the machine's own: as on an intranet.
INTRANET = "bridge.test"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {INTRANET} 127.0.0.1",
]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
PATHS = ["/dashboard", "/dashboard?span=day", "/events", "/setup?recipients=100000&speed=90000"]
NASTY = "\"'><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine; `apt-get install chromium` brings one")
    assert CHROMIUM, "CI needs a chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages as an operator; at the end no page may have complained.

    A complaint is an error in the console, such as a violation of the content security policy,
    or an exception. What a test expects it takes off ``page.complaints``.
    """
    complaints: list[str] = []
    contexts = []

    def open_one(url: str, **options: Any) -> Page:
        context = browser.new_context(
            http_credentials={"username": "test", "password": KEYS["admin"]},
            timezone_id="Asia/Tokyo",
            locale="en-GB",
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda line: complaints.append(line.text) if line.type == "error" else None,
        )
        page.goto(url)
        return page

    open_one.complaints = complaints  # type: ignore[attr-defined]
    yield open_one
    for context in contexts:
        with suppress(Exception):
            context.close()
    assert complaints == []


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
    service: Service, open_page: OpenPage
) -> None:
    service.webhook(user_id=ALICE, braze_campaign_id="summer")
    page = open_page(f"{service.url}/dashboard")
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
    page.evaluate("scrollTo(0, 700); document.querySelector('#sessionm').known = true")
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
    assert page.evaluate("getSelection().toString()") == "How far is Braze from halting us?"
    assert page.evaluate("document.querySelector('#sessionm').known")
    # The cards stay the nodes that they were.
    assert not {"SECTION", "MAIN", "DIVnow"} & set(page.evaluate("window.touched"))


def requests_dashboard(service: Service) -> str:
    return requests.get(f"{service.url}/dashboard", headers=bearer("admin"), timeout=9).text


def test_a_page_that_nobody_sees_asks_nothing(service: Service, open_page: OpenPage) -> None:
    page = open_page("about:blank")
    page.clock.install()
    page.goto(f"{service.url}/dashboard")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.clock.run_for(60_000)
    assert not [url for url in asked if "dashboard" in url]
    with page.expect_response("**/dashboard"):
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: false});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )


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
    rows.get_by_role("link").click()
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
    service: Service, open_page: OpenPage
) -> None:
    service.webhook(user_id=ALICE, braze_campaign_id="summer")
    service.webhook(user_id="somebody-else", braze_campaign_id="winter")
    page = open_page(f"{service.url}/events")
    page.get_by_label("Customer ID").fill(ALICE)
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert page.url == f"{service.url}/events"


def test_a_snippet_is_copied(service: Service, open_page: OpenPage) -> None:
    page = open_page(f"{service.url}/setup")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy: A webhook campaign, request body")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("Copied to the clipboard")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#webhook_campaign-body").text_content()
    assert '"user_id": "{{${user_id} | json_escape}}"' in copied


def test_on_plain_http_copying_and_forms_work_too(service: Service, open_page: OpenPage) -> None:
    page = open_page(f"http://{INTRANET}:{service.port}/setup")
    assert not page.evaluate("isSecureContext")
    page.get_by_role("button", name="Copy", exact=True).first.click()
    expect(page.locator("#said")).to_contain_text("Copied to the clipboard")
    page.get_by_label("Customer ID in SessionM").focus()
    page.keyboard.press("Control+V")
    address = f"http://{INTRANET}:{service.port}"
    expect(page.get_by_label("Customer ID in SessionM")).to_have_value(address)
    page.goto(f"http://{INTRANET}:{service.port}/delivery/pause")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#late ~ *", has_text="paused by hand").first).to_be_visible()


def test_a_snippet_is_previewed_edited_and_its_faults_are_explained(
    service: Service, open_page: OpenPage
) -> None:
    page = open_page(f"{service.url}/setup#preview")
    page.get_by_label("Customer ID in SessionM").fill(ALICE)
    page.get_by_role("button", name="Render").click()
    message = page.get_by_role("region", name="The rendered message")
    expect(message).to_contain_text("Free barista coffee")
    page.locator("summary", has_text="/connected-content/tags").click()
    expect(page.get_by_role("region", name="JSON of tags")).to_contain_text('"status": "ok"')

    template = page.get_by_label("Template, with Braze's Liquid")
    template.fill(template.input_value() + "P.S. {{wallet.available_points}} points")
    template.press("Control+Enter")
    expect(message).to_contain_text("P.S. 1240 points")
    # It stands open, as it was left.
    expect(page.get_by_role("region", name="JSON of tags")).to_be_visible()

    template.fill(template.input_value() + "{% endif %}")
    template.press("Control+Enter")
    expect(page.locator("#outcome")).to_contain_text("This template cannot be rendered. Line")
    assert "P.S." in template.input_value()

    page.locator("#trial select[name=snippet]").select_option("points_balance")
    eventually(lambda: "points" in template.input_value() and "P.S." not in template.input_value())
    page.get_by_label("Customer ID in SessionM").fill("nobody")
    page.get_by_role("button", name="Render").click()
    expect(message).to_contain_text("Open the app to see your points.")
    expect(page.locator("#outcome")).to_contain_text("SessionM does not know this customer.")
    page.get_by_label("Customer ID in SessionM").fill("")
    page.get_by_role("button", name="Render").click()
    expect(page.locator("#outcome")).to_contain_text("type one that SessionM knows")
    assert all("400" in one for one in complaints_of(open_page))
    complaints_of(open_page).clear()


def test_a_send_is_planned_in_place(service: Service, open_page: OpenPage) -> None:
    page = open_page(f"{service.url}/setup#planner")
    page.get_by_label("Recipients", exact=True).fill("1 000 000")
    page.get_by_label("Each gets").select_option("webhook")
    page.get_by_role("button", name="Plan").click()
    expect(page.locator(".answer")).to_contain_text("messages a minute")
    assert "recipients=1+000+000" in page.url
    page.reload()
    expect(page.locator(".answer")).to_contain_text("messages a minute")


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
    rejected = page.locator("tbody tr", has_text="rejected").get_by_role("link")
    paths = [rejected.get_attribute("href"), *(f"/events/{event}" for event in events), *PATHS]
    for path in paths:
        page.goto(f"{service.url}{path}")
        assert "pwned" not in page.title(), path
        # Shown as text, and made into no element.
        assert page.locator("img[src=x]").count() == 0, path
    page.goto(f"{service.url}/setup")
    page.get_by_label("Customer ID in SessionM").fill(ALICE)
    page.get_by_label("Template, with Braze's Liquid").fill(
        "{% connected_content " + service.url + "/connected-content/offers?user_id={{${user_id}}}"
        " :basic_auth bridge :save w %}{{w.first.title}}" + NASTY
    )
    page.get_by_role("button", name="Render").click()
    message = page.get_by_role("region", name="The rendered message")
    expect(message).to_contain_text("onerror")
    assert page.locator("img[src=x]").count() == 0
    assert "pwned" not in page.title()


@pytest.fixture
def full(service: Service, sandbox: SandboxServer) -> tuple[Service, list[str]]:
    """A service with something on every page, and the paths of the pages."""
    dead = make_dead(service, sandbox, braze_campaign_id="a-campaign-with-quite-a-long-id" * 3)
    service.webhook(user_id=ALICE, braze_canvas_id="welcome")
    service.webhook(user_id="{{${user_id}}}", braze_campaign_id="summer")
    for _ in range(3):
        service.lookup("offers", user_id=ALICE)
    more = [f"/events/{dead}", f"/events/{dead}/discard", "/events/nonsense", "/delivery/pause"]
    return service, [*PATHS, "/events?state=dead", "/events?state=expired", *more]


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(
    full: tuple[Service, list[str]], open_page: OpenPage, width: int
) -> None:
    service, paths = full
    page = open_page(f"{service.url}/setup", viewport={"width": width, "height": 700})
    for path in paths:
        page.goto(f"{service.url}{path}")
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 0, (path, over)
    complaints_of(open_page).clear()  # of the page that is not there


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(
    full: tuple[Service, list[str]], open_page: OpenPage, scheme: str
) -> None:
    service, paths = full
    page = open_page(f"{service.url}/setup", color_scheme=scheme)
    for path in paths:
        page.goto(f"{service.url}{path}")
        check(page, path)
    page.goto(f"{service.url}/setup")
    for use in page.locator("details.use summary").all():
        use.click()
    page.get_by_label("Customer ID in SessionM").fill(ALICE)
    page.get_by_role("button", name="Render").click()
    page.locator("summary", has_text="/connected-content/customer").click()
    check(page, "a preview")
    complaints_of(open_page).clear()  # of the page that is not there


def check(page: Page, path: str) -> None:
    page.evaluate(AXE)
    found = page.evaluate(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})"
    )
    told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
    assert told == [], path
    assert len(found["passes"]) > 10


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
    page.wait_for_url("**/events?state=dead")
    page.goto(f"{service.url}/events/{event}")
    tab_to(page, "Replay…")
    page.keyboard.press("Enter")
    page.wait_for_url("**/replay")
    expect(page.get_by_role("button", name="Replay")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/events/*told=replayed")
    expect(page.locator("dd .chip").first).to_contain_text("delivered")


def test_everything_works_without_scripts(
    service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    event = make_dead(service, sandbox, braze_campaign_id="summer")
    page = open_page(f"{service.url}/dashboard", java_script_enabled=False)
    expect(page.locator("tbody time").first).to_contain_text("UTC")
    page.get_by_role("link", name="Last day").click()
    expect(page.locator(".plot")).to_have_count(4)
    page.get_by_role("link", name="Events").click()
    page.get_by_label("State").select_option("dead")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="Replay them…").click()
    expect(page.locator("h1")).to_have_text("Replay 1 dead event?")
    page.get_by_role("button", name="Replay 1").click()
    expect(page.locator("h1")).to_have_text("1 of 1 replayed")
    eventually(lambda: state_of(service, event) == "delivered")
    page.get_by_role("link", name="Set up").click()
    expect(page.get_by_role("button", name="Copy").first).to_be_hidden()
    page.get_by_label("Customer ID in SessionM").fill(ALICE)
    page.get_by_role("button", name="Render").click()
    expect(page.locator(".message")).to_contain_text("Free barista coffee")
    page.locator("#trial select[name=snippet]").select_option("tag_check")
    page.get_by_role("button", name="Load the snippet").click()
    expect(page.get_by_label("Template")).to_contain_text("Your VIP lounge is open.")
    page.get_by_label("Recipients", exact=True).fill("50000")
    page.get_by_role("button", name="Plan").click()
    expect(page.locator(".answer")).to_contain_text("messages a minute")
