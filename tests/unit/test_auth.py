"""Who may call: a pure function of the settings, the credential and the address."""

from base64 import b64encode

import pytest

from bridge.settings import Settings
from bridge.web.auth import Caller, Keyring, Refusal, Scope, plain_address


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
