"""The setup page in a real browser, as a marketer uses it: mouse, keyboard, touch, no scripts."""

import re
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from bridge.liquid.snippets import snippets
from bridge.sandbox import SandboxServer
from tests.browser.conftest import OpenPage
from tests.browser.test_browser import NASTY, check, complaints_of, tab_to
from tests.conftest import ALICE, MakeService, Service, eventually

UNSENT = "dispatch_id_for_unsent_campaign"


@pytest.fixture(scope="module")
def service(shared_service: Service) -> Service:
    return shared_service


@pytest.fixture
def own_service(make_service: MakeService) -> Service:
    return make_service()


def open_setup(service: Service, open_page: OpenPage, path: str = "/setup", **options: Any) -> Page:
    page = open_page(f"{service.url}{path}", **options)
    expect(page.locator("#summary")).to_contain_text("Rendered")
    return page


def editor(page: Page) -> Any:
    return page.get_by_label("Message, in Braze's Liquid")


def message(page: Page) -> Any:
    """The source of the rendered message, whichever view is chosen."""
    return page.locator(".view.source pre")


def mail(page: Page) -> FrameLocator:
    return page.frame_locator("iframe:not([data-coming])")


def choose(page: Page, customer: str) -> None:
    page.get_by_label("Customer ID").fill(customer)
    page.get_by_label("Customer ID").press("Enter")


def use(page: Page, snippet: str) -> None:
    page.locator(f'button[name=load][value="{snippet}"]').click()


# --- From the page to a message -------------------------------------------------------------------


def test_a_newcomer_sees_an_offer_without_typing_anything(
    own_service: Service, open_page: OpenPage
) -> None:
    own_service.webhook(user_id=ALICE, braze_campaign_id="summer")
    # The customers of what SessionM has taken are offered.
    eventually(lambda: own_service.health()["checks"]["delivery"]["queued"] == 0)
    page = open_setup(own_service, open_page)
    expect(page.get_by_label("Customer ID")).to_have_value(ALICE)
    expect(mail(page).locator("body")).to_contain_text("Your offer: Free barista coffee")
    # The step is done by what a person does, while it can be rendered.
    step = page.locator("#steps li", has_text="Message")
    expect(step).to_have_class("open")
    page.get_by_role("button", name="Preview").last.click()
    expect(step).to_have_class("done")
    editor(page).fill("{% endif %}")
    expect(step).to_have_class("open")


def test_a_message_is_rendered_while_it_is_written(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    expect(message(page)).to_contain_text("Free barista coffee")
    length = page.evaluate("history.length")
    editor(page).press("Control+End")
    editor(page).press_sequentially("<p style='color: red'>P.S. {{wallet.available_points}} points")
    expect(mail(page).locator("body")).to_contain_text("P.S. 1240 points")
    # E-mails bring their own styles, and each render leaves the browser's history alone.
    red = mail(page).locator("p").last.evaluate("(one) => getComputedStyle(one).color")
    assert red == "rgb(255, 0, 0)"
    assert page.evaluate("history.length") == length


def test_faults_are_explained_and_lead_to_their_place(
    service: Service, open_page: OpenPage
) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    editor(page).press("Control+End")
    editor(page).press_sequentially("{{wallet.frist}}")
    expect(page.locator("#result")).to_contain_text("did you mean first?")
    expect(page.locator("#summary")).to_have_text("Rendered: 1 call answered, 1 warning.")
    editor(page).fill("Hi\n  {% endif %}")
    expect(page.locator("#result")).to_contain_text("This template cannot be rendered. Line 2")
    page.get_by_role("button", name="Line 2, column 3").click()
    expect(editor(page)).to_be_focused()
    assert page.evaluate("document.getElementById('source').selectionStart") == 5
    editor(page).fill("Hi")
    choose(page, "nobody")
    expect(page.locator("#result")).to_contain_text("SessionM does not know this customer")
    choose(page, "")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("Choose a customer.", exact=True)).to_be_visible()
    expect(message(page)).to_have_count(0)
    choose(page, ALICE)
    expect(page.get_by_text("Choose a customer.", exact=True)).to_be_hidden()
    expect(message(page)).to_have_text("Hi")
    assert complaints_of(open_page) == []


def test_what_is_rendered_is_announced(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    summary = page.get_by_role("status").filter(has_text="Rendered")
    choose(page, ALICE)
    expect(summary).to_have_text("Rendered: 1 call answered.")
    editor(page).fill("{% abort_message('no') %}")
    expect(page.locator("#summary")).to_have_text("Nothing would be sent.")
    assert page.locator("#summary").get_attribute("role") == "status"
    step = page.locator("#steps li", has_text="Message")
    expect(step).to_contain_text("aborted: nothing would be sent")
    expect(step).to_have_class("open")


def test_a_customer_is_picked_with_a_finger(
    own_service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    sandbox.sandbox.put_customer({"user_id": "with-a-quite-long-identifier-" * 3, "tags": {}})
    page = open_setup(
        own_service,
        open_page,
        viewport={"width": 390, "height": 800},
        has_touch=True,
        is_mobile=True,
    )
    expect(page.get_by_text("or Ctrl and Enter")).to_be_hidden()
    page.get_by_role("link", name="Send planner").tap()
    assert page.url.endswith("#planner")
    page.locator(f'button.person[value="user_id:{ALICE}"]').tap()
    expect(page.get_by_label("Customer ID")).to_have_value(ALICE)
    expect(mail(page).locator("body")).to_contain_text("Free barista coffee")
    expect(page.locator(f'button.person[value="user_id:{ALICE}"]')).to_have_attribute(
        "aria-current", "true"
    )
    page.locator("label", has_text="Push or SMS").tap()
    expect(page.locator(".view.push .words")).to_contain_text("Free barista coffee")
    page.get_by_role("button", name="available_points").tap()
    expect(editor(page)).to_have_value(
        snippets()["best_offer"].filled(own_service.url, "user_id")
        + "{{ wallet.available_points | default: 0 }}"
    )


# --- Fields ---------------------------------------------------------------------------------------


def test_a_field_is_inserted_where_the_cursor_is(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    source = editor(page).input_value() + "Hello !"
    editor(page).fill(source)
    editor(page).press("ArrowLeft")
    title = page.locator("button.insert", has_text="title").first
    expect(title).to_contain_text("Free barista coffee")
    title.focus()
    page.keyboard.press("Enter")
    expect(editor(page)).to_be_focused()
    inserted = "{{ wallet.first.title | default: '' | escape }}"
    expect(editor(page)).to_have_value(f"{source[:-1]}{inserted}!")
    # The cursor is where the default goes, and no placeholder can reach a customer.
    page.keyboard.type("friend")
    expect(message(page)).to_contain_text("Hello Free barista coffee!")
    assert "default: 'friend'" in editor(page).input_value()
    for _ in range(2):
        page.keyboard.press("Control+Z")
    eventually(lambda: "friend" not in editor(page).input_value())


def test_fields_are_inserted_one_behind_the_other(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    source = editor(page).input_value()
    for field in ("title", "expires_at", "available_points"):
        page.locator("button.insert", has_text=field).first.click()
    fields = (
        "{{ wallet.first.title | default: '' | escape }}"
        "{{ wallet.first.expires_at | date: '%d %B %Y' }}{{ wallet.available_points | default: 0 }}"
    )
    expect(editor(page)).to_have_value(source + fields)
    # Nor is a field put into a tag with an output in it.
    editor(page).evaluate("(one) => one.setSelectionRange(40, 40)")
    page.locator("button.insert", has_text="available_points").first.click()
    inserted = "%}{{ wallet.available_points | default: 0 }}"
    expect(editor(page)).to_have_value(source.replace("%}", inserted, 1) + fields)
    # A push message shows HTML codes as they are; the body of a webhook is JSON.
    page.get_by_text("Push or SMS", exact=True).click()
    editor(page).press("Control+End")
    page.locator("button.insert", has_text="title").first.click()
    expect(editor(page)).to_have_value(re.compile(r"wallet.first.title \| default: '' }}$"))
    call = source[: source.index("%}") + 2]
    editor(page).fill(f'{{"a": "{call}"')
    expect(page.locator(".views")).to_have_attribute("data-kind", "source")
    page.locator("button.insert", has_text="title").first.click()
    expect(editor(page)).to_have_value(re.compile("default: '' [|] json_escape }}$"))
    # In a loop a field is that of the loop's item, and in a tag it has no braces.
    for text, field, written in (
        ("{% for o in wallet.offers %}^{% endfor %}", "title", "{{ o.title | default: ''"),
        ("{% for o in wallet.offers %}{% if ^", "expires_at", "o.expires_at"),
        ("{% if ^ %}{% endif %}", "available_points", "wallet.available_points"),
        ("^", "days_left", "{% if wallet.first.days_left < 9999 %}"),
    ):
        before, after = f"{call}{text}".split("^")
        editor(page).fill(before + after)
        editor(page).evaluate("(one, at) => one.setSelectionRange(at, at)", len(before))
        page.locator("button.insert", has_text=field).first.click()
        assert editor(page).input_value().startswith(before + written)


def test_the_fields_stay_while_the_message_has_a_fault(
    service: Service, open_page: OpenPage
) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    fields = page.locator("#fields")
    expect(fields.locator(".tree > li > details > summary")).to_have_text("wallet")
    source = editor(page).input_value()
    editor(page).press("Control+End")
    editor(page).press_sequentially("{% endif %}")
    expect(page.locator("#summary")).to_have_text("The message cannot be rendered.")
    expect(fields.locator(".tree > li > details > summary")).to_have_text("wallet")
    choose(page, "nobody")
    expect(fields).to_contain_text("Correct the message first")
    editor(page).fill(source.replace("limit=1", "limit=x"))
    expect(fields).to_contain_text("The call failed")


def test_a_message_without_a_call_gets_one(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    editor(page).fill("Points: ")
    expect(page.locator("#fields")).to_contain_text("needs a call")
    page.get_by_role("button", name="put one on top").click()
    expect(page.locator("#summary")).to_have_text("Rendered: 1 call answered.")
    editor(page).press("Control+End")
    page.get_by_role("button", name="available_points").click()
    expect(message(page)).to_contain_text("Points: 1240")


def test_an_open_call_stays_open_while_the_message_is_rendered_again(
    service: Service, open_page: OpenPage
) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    drawer = page.locator(".drawer")
    expect(drawer.locator("summary").first).to_contain_text("1 answered")
    drawer.locator("summary").first.click()
    call = drawer.locator("li details")
    call.locator("summary").click()
    # It stays open, as it was left, when the message is rendered again.
    editor(page).fill(editor(page).input_value() + "again")
    expect(message(page)).to_contain_text("again")
    expect(page.get_by_role("region", name="Body of call 1")).to_be_visible()


# --- Nothing is lost ------------------------------------------------------------------------------


def test_a_snippet_never_throws_a_text_away(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    aside = page.locator("#aside")
    use(page, "points_balance")
    expect(aside).to_be_hidden()
    editor(page).fill("my own words")
    use(page, "tag_check")
    expect(editor(page)).to_have_value(snippets()["tag_check"].filled(service.url, "user_id"))
    expect(aside).to_contain_text("Your own text was put aside")
    # Another snippet is no text of one's own.
    use(page, "offer_list")
    aside.get_by_role("button", name="Bring it back").click()
    expect(editor(page)).to_have_value("my own words")
    expect(aside).to_be_hidden()
    use(page, "tag_check")
    page.keyboard.press("Control+Z")
    expect(editor(page)).to_have_value("my own words")


def test_a_snippet_fills_in_what_it_shows_and_keeps_what_was_typed(
    service: Service, open_page: OpenPage
) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    properties = page.get_by_label("API trigger properties", exact=True)
    use(page, "offer_awarded")
    expect(properties).to_be_visible()
    expect(message(page)).to_contain_text("Free barista coffee</strong> is waiting")
    expect(page.locator("#result .notice.warn")).to_have_count(0)
    properties.fill('{"title": "Tea for two"}')
    expect(message(page)).to_contain_text("Tea for two</strong> is waiting")
    use(page, "tag_check")
    use(page, "offer_awarded")
    assert '"title": "Tea for two"' in properties.input_value()
    assert '"bridge_event"' in properties.input_value()
    properties.fill('{"title": "half')
    use(page, "offer_awarded")
    expect(properties).to_have_value('{"title": "half')
    expect(page.locator("#trial-problem")).to_contain_text("is not JSON")
    expect(page.locator("#outcome[aria-busy]")).to_have_count(0)
    assert all("400" in one for one in complaints_of(open_page))
    complaints_of(open_page).clear()


def test_a_reload_loses_neither_text_nor_customer(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    choose(page, ALICE)
    # What a message uses has an input while the message uses it.
    last_name = page.get_by_label("${last_name}")
    editor(page).fill("{{${last_name}}}")
    last_name.fill("Doe")
    expect(message(page)).to_have_text("Doe")
    editor(page).fill("my own words")
    expect(message(page)).to_have_text("my own words")
    expect(last_name).to_have_count(0)
    editor(page).fill("{{${city}}}{{${last_name}}}")
    expect(message(page)).to_have_text("Doe")
    page.reload()
    expect(message(page)).to_have_text("Doe")
    editor(page).fill("my own words")
    expect(message(page)).to_have_text("my own words")
    page.reload()
    expect(editor(page)).to_have_value("my own words")
    expect(page.get_by_label("Customer ID")).to_have_value(ALICE)
    page.goto(f"{service.url}/setup?snippet=tag_check#message")
    expect(editor(page)).to_have_value(snippets()["tag_check"].filled(service.url, "user_id"))
    page.get_by_role("button", name="Bring it back").click()
    expect(editor(page)).to_have_value("my own words")


def test_a_text_is_kept_while_the_bridge_is_away(own_service: Service, open_page: OpenPage) -> None:
    page = open_setup(own_service, open_page)
    own_service.kill()
    editor(page).fill("my own words")
    expect(page.locator("#summary")).to_contain_text("the bridge cannot be reached")
    expect(page.locator("#lost")).to_contain_text("This page keeps trying")
    own_service.start()
    expect(page.locator("#lost")).to_be_hidden()
    page.get_by_role("button", name="Preview").click()
    expect(message(page)).to_have_text("my own words")
    assert all("net::ERR_" in one for one in complaints_of(open_page))
    complaints_of(open_page).clear()


# --- Secrets --------------------------------------------------------------------------------------


def test_a_secret_is_typed_once_and_leaves_the_browser_never(
    service: Service, open_page: OpenPage
) -> None:
    page = open_setup(service, open_page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sent: list[str] = []
    page.on("request", lambda one: sent.append(f"{one.url} {one.post_data} {one.headers}"))
    secret = page.get_by_label("Secret of the webhook key test")
    warning = page.locator('[data-doubt="webhook"]')
    filled_in = page.locator("#webhook_campaign-auth")
    expect(warning).to_be_hidden()
    for typed in ("<secret>", "test", "Bearer webhook"):
        secret.fill(typed)
        expect(warning).to_be_visible()
        expect(filled_in).to_have_text("Bearer YOUR-WEBHOOK-SECRET")
    for typed in ("Bearer s3cr&t$1", "test:s3cr&t$1", " s3cr&t$1 ", "s3cr&t$1"):
        secret.fill(typed)
        expect(warning).to_be_hidden()
        expect(filled_in).to_have_text("Bearer s3cr&t$1")
    page.get_by_label("Secret of the content key test").fill("another")
    expect(page.locator("#curl")).to_contain_text("Bearer s3cr&t$1")
    expect(page.locator("#credential-password")).to_have_text("another")
    page.get_by_label("Secret of the trigger key test").fill("a-third")
    expect(page.locator("#sessionm-auth")).to_have_text("Bearer a-third")
    page.locator('[data-copy="webhook_campaign-auth"]').click()
    expect(page.locator("#said")).to_have_text("Copied to the clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == "Bearer s3cr&t$1"
    use(page, "tag_check")
    expect(page.locator("#summary")).to_contain_text("Rendered")
    page.reload()
    expect(page.locator("#webhook_canvas-auth")).to_have_text("Bearer s3cr&t$1")
    assert sent
    assert not [one for one in sent if re.search("s3cr|another|a-third", one)]
    page.locator('[data-forget="webhook"]').click()
    expect(filled_in).to_have_text("Bearer YOUR-WEBHOOK-SECRET")
    page.reload()
    expect(secret).to_have_value("")


# --- Steps that turn green ------------------------------------------------------------------------


def test_a_test_send_turns_the_page_green_by_itself(
    own_service: Service, open_page: OpenPage
) -> None:
    page = open_setup(own_service, open_page)
    arrived = page.locator("#arrived")
    expect(arrived).to_contain_text("Waiting for a test send")
    expect(page.locator("#steps li", has_text="Test")).to_have_class("open")
    refused = own_service.webhook(user_id="", braze_campaign_id="summer", dispatch_id=UNSENT)
    expect(arrived).to_contain_text("A send has arrived and was rejected")
    for part in (arrived, page.locator("#webhook-state")):
        expect(part).to_contain_text(refused.json()["errors"]["message"])
    for step in ("Webhook", "Test"):
        expect(page.locator("#steps li", has_text=step)).to_have_class("bad")
    page.get_by_label("Customer ID").focus()
    own_service.webhook(user_id=ALICE, braze_campaign_id="summer", dispatch_id=UNSENT)
    expect(arrived).to_contain_text("A test send has arrived")
    expect(arrived).to_contain_text("in SessionM")
    expect(arrived.locator(".tag")).to_have_text("braze_campaign_summer")
    for step in ("Webhook", "Test"):
        expect(page.locator("#steps li", has_text=step)).to_have_class("done")
    expect(page.get_by_label("Customer ID")).to_be_focused()
    expect(page.locator("#said")).to_have_text("A send has arrived")


# --- Safe, for everybody, at every size -----------------------------------------------------------


def test_a_message_runs_nothing(
    own_service: Service, sandbox: SandboxServer, open_page: OpenPage
) -> None:
    sandbox.sandbox.put_customer(
        {"user_id": ALICE, "tags": {NASTY: 1}, "offers": [{"offer_id": "1", "title": NASTY}]}
    )
    page = open_setup(own_service, open_page)
    choose(page, ALICE)
    editor(page).fill(
        "{% connected_content "
        + own_service.url
        + "/connected-content/offers?user_id={{${user_id}}}"
        " :basic_auth bridge :save w %}{{w.first.title}}"
        "<form action='/delivery/pause' method=post><button>x</button></form>" + NASTY
    )
    expect(message(page)).to_contain_text("onerror")
    expect(mail(page).locator("img[src=x]").first).to_be_attached()
    assert page.locator("img[src=x]").count() == 0
    assert "pwned" not in page.title()
    assert mail(page).locator("body").evaluate("() => document.title") == "The message"
    assert page.locator("iframe").get_attribute("sandbox") == ""
    mail(page).get_by_role("button", name="x").click(force=True)
    expect(mail(page).locator("img[src=x]").first).to_be_attached()
    assert own_service.health()["checks"]["delivery"]["state"] == "running"
    # The browser reports what it did not run.
    assert all("sandbox" in one or "Content Security" in one for one in complaints_of(open_page))
    complaints_of(open_page).clear()


WIDTHS = [320, 390, 768, 1024, 1440, 1920, 2560]


def test_every_screen_shows_all_of_it(service: Service, open_page: OpenPage) -> None:
    long = "a-customer-with-quite-a-long-id" * 6
    service.webhook(
        user_id=long, braze_campaign_id="summer" * 30, tags=["tag" * 60], dispatch_id=UNSENT
    )
    page = open_setup(service, open_page)
    choose(page, long)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for view in ("Source", "Push or SMS", "E-mail"):
            page.locator("label", has_text=view).click()
            over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert over <= 0, (width, view, over)
        expect(page.locator(".mailhead")).to_contain_text(long)
        left, right = editor(page).bounding_box(), page.locator("#result").bounding_box()
        assert left
        assert right
        # Side by side where there is room.
        assert (abs(left["y"] - right["y"]) < 100) == (width >= 960), width
        # All snippets are in view, on a narrow screen by a finger.
        cut = page.locator(".gallery").evaluate("(one) => one.scrollWidth > one.clientWidth")
        assert cut == (width < 960), width


def test_axe_finds_nothing_in_any_state(own_service: Service, open_page: OpenPage) -> None:
    page = open_setup(own_service, open_page)
    check(page, "waiting")
    choose(page, ALICE)
    expect(message(page)).to_contain_text("Free barista coffee")
    for summary in page.locator(".setup summary").all():
        if summary.is_visible():
            summary.click()
    for view in ("Source", "Push or SMS", "E-mail"):
        page.locator("label", has_text=view).click()
        check(page, view)
    for source in ("{{wallet.x}} {% endif %}", "{% abort_message('no') %}", "{{${nick}}}"):
        editor(page).fill(source)
        expect(page.locator("#result .notice").first).to_be_visible()
        expect(page.locator("#outcome[aria-busy]")).to_have_count(0)
        check(page, source)
    use(page, "webhook_campaign")
    expect(page.locator("#result")).to_contain_text("would be accepted")
    check(page, "a webhook's body")
    own_service.webhook(user_id="", braze_campaign_id="summer", dispatch_id=UNSENT)
    expect(page.locator("#arrived")).to_contain_text("rejected")
    check(page, "rejected")
    own_service.webhook(user_id=ALICE, braze_campaign_id="summer", dispatch_id=UNSENT)
    expect(page.locator("#arrived")).to_contain_text("has arrived")
    check(page, "arrived")


def test_everything_is_within_reach_of_the_keyboard(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    tab_to(page, "Use: Offer list")
    page.keyboard.press("Enter")
    expect(editor(page)).to_have_value(snippets()["offer_list"].filled(service.url, "user_id"))
    page.get_by_label("Campaign", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#webhook_canvas-url")).to_be_visible()
    page.get_by_label("E-mail").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".view.push")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(message(page)).to_be_visible()
    # Enter in the customer's field previews; it loads no snippet.
    choose(page, ALICE)
    expect(editor(page)).to_have_value(snippets()["offer_list"].filled(service.url, "user_id"))


def test_everything_works_without_scripts(service: Service, open_page: OpenPage) -> None:
    page = open_page(f"{service.url}/setup", java_script_enabled=False)
    expect(page.get_by_role("button", name="Copy").first).to_be_hidden()
    expect(page.locator("[data-secret]").first).to_be_hidden()
    page.get_by_label("Customer ID").fill(ALICE)
    page.get_by_role("button", name="Preview", exact=True).last.click()
    page.locator("label", has_text="Source").click()
    expect(message(page)).to_contain_text("Free barista coffee")
    page.locator("label", has_text="E-mail").click()
    page.get_by_role("button", name="Show as an e-mail").click()
    expect(page.frame_locator("iframe").locator("body")).to_contain_text("Free barista coffee")
    use(page, "tag_check")
    expect(editor(page)).to_contain_text("Your VIP lounge is open.")
    expect(page.get_by_label("Customer ID")).to_have_value(ALICE)
    page.locator(f'button.person[value="user_id:{ALICE}"]').click()
    page.locator("label", has_text="Source").click()
    expect(message(page)).to_contain_text("Your VIP lounge is open.")
    page.get_by_label("Recipients", exact=True).fill("50000")
    page.get_by_role("button", name="Plan").click()
    expect(page.locator(".answer")).to_contain_text("messages a minute")


# --- Copying and planning -------------------------------------------------------------------------


def test_a_snippet_is_copied(service: Service, open_page: OpenPage) -> None:
    page = open_setup(service, open_page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy: A webhook campaign, request body")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("Copied to the clipboard")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#webhook_campaign-body").text_content()
    page.locator('[data-copy="webhook_campaign-auth"]').click()
    hint = "Copied. Replace YOUR-WEBHOOK-SECRET by the secret."
    expect(page.locator(".field", has_text="Authorization").first).to_contain_text(hint)
    expect(page.locator("#said")).to_have_text(hint)
    assert '"user_id": "{{${user_id} | json_escape}}"' in copied
    page.get_by_role("button", name="Copy the message").click()
    eventually(
        lambda: page.evaluate("navigator.clipboard.readText()") == editor(page).input_value()
    )


def test_a_send_is_planned_in_place(service: Service, open_page: OpenPage) -> None:
    page = open_page(f"{service.url}/setup#planner")
    page.get_by_label("Recipients", exact=True).fill("1 000 000")
    page.get_by_label("Each gets").select_option("webhook")
    page.get_by_role("button", name="Plan").click()
    expect(page.locator(".answer")).to_contain_text("messages a minute")
    # A second question in quick succession replaces the first, whose answer is still missing.
    first = re.compile(r"recipients=2000\b")
    page.route(first, lambda _route: None)
    with page.expect_event("requestfailed", lambda request: bool(first.search(request.url))):
        for recipients in ("2000", "1 000 000"):
            page.get_by_label("Recipients", exact=True).fill(recipients)
            with page.expect_request(re.compile(f"recipients={recipients[:1]}")):
                page.get_by_role("button", name="Plan").click()
    expect(page.locator("#plan:not([aria-busy])")).to_be_visible()
    assert "recipients=1+000+000" in page.url
    page.reload()
    expect(page.locator(".answer")).to_contain_text("messages a minute")
