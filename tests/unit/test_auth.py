"""Who may call: a pure function of the settings, the credential and the address."""

from base64 import b64encode

import pytest

from bridge.settings import Settings
from bridge.web.auth import Caller, Keyring, Refusal, Scope, plain_address
from bridge.web.credential import misplaced


def keyring(**more: object) -> Keyring:
    known: dict[str, object] = {
        "sessionm_core_url": "https://core.test",
        "sessionm_core_key": "k",
        "sessionm_core_secret": "s",
        "bridge_webhook_keys": "braze:hook,next:hook-2,umlaut:schlüssel",
        "bridge_content_keys": "braze:look",
        "bridge_viewer_keys": "wall:view",
        "bridge_admin_keys": "ops:admin",
    }
    return Keyring(Settings(**{**known, **more}))  # type: ignore[arg-type]


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("wanted", "authorization", "outcome"),
    [
        ("webhook", "Bearer hook", Caller("braze")),
        ("webhook", "bearer  hook-2 ", Caller("next")),
        ("webhook", basic("next:hook-2"), Caller("next")),
        ("webhook", basic("braze:hook-2"), 401),
        ("webhook", "Bearer look", 403),
        ("content", "Bearer look", Caller("braze")),
        ("admin", "Bearer look", 403),
        ("viewer", "Bearer view", Caller("wall")),
        ("viewer", "Bearer admin", Caller("ops")),
        ("viewer", "Bearer look", 403),
        ("admin", "Bearer view", 403),
        ("open", "", Caller("")),
        ("webhook", "", 401),
        ("webhook", "Bearer", 401),
        ("webhook", "Bearer braze:hook", 401),
        ("webhook", "Basic !", 401),
        ("webhook", "hook", 401),
        ("webhook", ",Bearer hook", 401),
        ("webhook", "Bearer hook,", 401),
        ("webhook", "Bearer hook,Bearer hook", 401),
        ("webhook", "Bearer " + "h" * 10_000, 401),
        # UTF-8, as a header arrives.
        ("webhook", "Bearer schlüssel".encode().decode("latin-1"), Caller("umlaut")),
        ("webhook", "Bearer \u20ac", 401),
    ],
)
def test_a_key_opens_its_own_scope(
    wanted: Scope, authorization: str, outcome: Caller | int
) -> None:
    keys = keyring()
    for _ in range(2):
        found = keys.authorise(wanted, authorization, "192.0.2.1")
        if isinstance(found, Refusal):
            assert (found.status, bool(found.challenge)) == (outcome, outcome == 401)
        else:
            assert found == outcome


@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        ("", "is missing"),
        (
            "Bearer YOUR-WEBHOOK-SECRET",
            "still holds a placeholder: put the secret of a webhook key",
        ),
        (basic("braze:YOUR-WEBHOOK-SECRET"), "still holds a placeholder"),
        ("Basic YOUR-BASE64-ENCODED-KEY", "still holds a placeholder"),
        ("Bearer {{custom_attribute.${key}}}", "still holds a placeholder"),
        ('Bearer "hook-2"', "quotes around its value"),
        ('"Bearer hook-2"', "quotes around its value"),
        ("Bearer “hook-2”".encode().decode("latin-1"), "quotes around its value"),
        ("Bearer", "ends before the secret"),
        ("Bearer:hook-2", "with the space"),
        ("hook-2", "with the space"),
        ("Bearer braze:hook-2", "without its name"),
        ("Basic hook-2", "the Base64 form of name:secret"),
        ("Bearer hook-3", "holds no webhook key of the bridge: the secret is mistyped"),
    ],
)
def test_a_refusal_names_the_mistake_and_no_secret(authorization: str, says: str) -> None:
    refusal = keyring().authorise("webhook", authorization, "192.0.2.1")
    assert isinstance(refusal, Refusal)
    assert says in refusal.message
    assert "hook-" not in refusal.message


@pytest.mark.parametrize(
    ("name", "is_near"),
    [
        ("Authorisation", True),
        ("Autorization", True),
        ("X-Api-Key", True),
        ("Host", False),
        ("X-Request-Id", False),
        ("Accept", False),
    ],
)
def test_a_key_in_another_header_is_noticed(name: str, *, is_near: bool) -> None:
    said = misplaced(["Content-Type", name], "a webhook")
    assert bool(said) == is_near
    assert (f"there is a header {name}: name it Authorization" in said) == is_near


@pytest.mark.parametrize(
    ("element", "address"),
    [
        ("52.58.142.5", "52.58.142.5"),
        (" 52.58.142.5:51234 ", "52.58.142.5"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("[fe80::1%eth0]:1", "fe80::1%eth0"),
        ("::1", "::1"),
        ("52.58.142.5:", ""),
        ("[52.58.142.5", ""),
        ("[2001:db8::1]x", ""),
        ("52.58.142.5:1:2", ""),
        ("_hidden", ""),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_an_address_may_have_a_port_and_brackets(element: str, address: str) -> None:
    assert plain_address(element) == address


@pytest.mark.parametrize(
    ("hops", "forwarded", "address"),
    [
        (0, "10.0.0.1", "192.0.2.1"),
        (1, "", "192.0.2.1"),
        (1, "10.0.0.1", "10.0.0.1"),
        (1, "10.0.0.1,10.0.0.2:80", "10.0.0.2"),
        (2, "10.0.0.1:80, 10.0.0.2", "10.0.0.1"),
        (2, "10.0.0.2", "192.0.2.1"),
        (1, "10.0.0.1,", ""),
        (1, "10.0.0.1,junk", ""),
    ],
)
def test_exactly_the_trusted_proxies_are_believed(hops: int, forwarded: str, address: str) -> None:
    keys = keyring(bridge_trusted_proxies=hops)
    assert keys.address_of("192.0.2.1", forwarded) == address


def test_an_allow_list_holds_for_braze_alone() -> None:
    keys = keyring(bridge_allowed_ips="10.0.0.0/8")
    assert keys.authorise("webhook", "Bearer hook", "10.0.0.1") == Caller("braze")
    assert keys.authorise("webhook", "Bearer hook", "::ffff:10.0.0.1") == Caller("braze")
    for address in ("192.0.2.1", "", "unknown"):
        refusal = keys.authorise("webhook", "Bearer hook", address)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (403, "address_not_allowed")
    assert keys.authorise("admin", "Bearer admin", "192.0.2.1") == Caller("ops")
