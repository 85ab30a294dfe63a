"""Settings out of the environment and `.env`: defaults, errors in one line, secrets unseen."""

import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from bridge.settings import Settings, SettingsError, load, unknown_names

REQUIRED = {
    "SESSIONM_CORE_URL": "https://core.acme.com",
    "SESSIONM_CORE_KEY": "core-key",
    "SESSIONM_CORE_SECRET": "core-secret",
    "BRIDGE_WEBHOOK_KEYS": "braze:webhook-secret",
    "BRIDGE_CONTENT_KEYS": "braze:content-secret",
    "BRIDGE_ADMIN_KEYS": "ops:admin-secret",
}
OFFERS = {
    "SESSIONM_CONNECT_URL": "https://connect.acme.com/",
    "SESSIONM_CONNECT_AUTH": "user:pass:word",
    "SESSIONM_RETAILER_ID": "r-1",
}
ALL = {**REQUIRED, **OFFERS}
NOWHERE = Path("/nonexistent/.env")


def settings(**more: str) -> Settings:
    return load({**REQUIRED, **more}, NOWHERE)


def problem(environ: dict[str, str], dotenv: Path = NOWHERE) -> str:
    """The error of these settings, which must be one line without a secret in its traceback."""
    with pytest.raises(SettingsError) as caught:
        load(environ, dotenv)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


DAY = 86_400
DEFAULTS = """
sessionm_connect_url=None sessionm_connect_auth=None sessionm_retailer_id=None offers_on=False
bridge_insecure_no_auth=False bridge_allowed_ips=() bridge_trusted_proxies=0 bridge_rules=None
bridge_campaign_ttl=2592000 bridge_tags_max_age=60 bridge_offers_max_age=60
bridge_stale_while_revalidate=300 bridge_stale_if_error=86400 bridge_cache_entries=100000
bridge_lookup_deadline=1.5 bridge_sessionm_rps=20 bridge_delivery_concurrency=16
bridge_max_attempts=12 bridge_queue_limit=1000000 bridge_retention=604800 bridge_bulk_threshold=0
bridge_public_url=None bridge_log_format=None bridge_log_level=info
"""


@pytest.mark.parametrize("default", DEFAULTS.split())
def test_what_is_not_set_has_its_default(default: str) -> None:
    name, _, value = default.partition("=")
    assert str(getattr(settings(), name)) == value


def test_the_database_is_a_file_by_default() -> None:
    assert settings().bridge_database_url.get_secret_value() == "sqlite:///var/bridge.db"


GOOD: dict[str, tuple[str, Any]] = {
    "SESSIONM_CORE_URL": (" http://127.0.0.1:9090/base/ ", "http://127.0.0.1:9090/base"),
    "BRIDGE_CAMPAIGN_TTL": ("14d", 14 * DAY),
    "BRIDGE_TAGS_MAX_AGE": ("0", 0),
    "BRIDGE_OFFERS_MAX_AGE": ("15m", 900),
    "BRIDGE_RETENTION": ("12h", DAY // 2),
    "BRIDGE_LOOKUP_DEADLINE": ("0.5", 0.5),
    "BRIDGE_SESSIONM_RPS": ("2.5", 2.5),
    "BRIDGE_TRUSTED_PROXIES": ("2", 2),
    "BRIDGE_INSECURE_NO_AUTH": ("1", True),
    "BRIDGE_LOG_FORMAT": ("json", "json"),
    "BRIDGE_RULES": ("my rules.toml", Path("my rules.toml")),
    "BRIDGE_PUBLIC_URL": ("", None),
}


@pytest.mark.parametrize(("name", "given", "value"), [(n, *pair) for n, pair in GOOD.items()])
def test_a_setting_is_read_as_people_write_it(name: str, given: str, value: object) -> None:
    assert getattr(settings(**{name: given}), name.lower()) == value


def test_networks_are_read_with_and_without_a_mask() -> None:
    found = settings(BRIDGE_ALLOWED_IPS="52.58.142.242, 10.0.0.1/8,::1").bridge_allowed_ips
    assert [str(network) for network in found] == ["52.58.142.242/32", "10.0.0.0/8", "::1/128"]


def test_several_keys_serve_at_once_for_rotation() -> None:
    keys = settings(BRIDGE_WEBHOOK_KEYS="a:one, b: two:2\n a:three").bridge_webhook_keys
    found = [(key.name, key.secret.get_secret_value()) for key in keys]
    assert found == [("a", "one"), ("b", "two:2"), ("a", "three")]


@pytest.mark.parametrize("auth", ["user:pass:word", "dXNlcjpwYXNzOndvcmQ="])
@pytest.mark.parametrize("prefix", ["", "Basic "])
def test_the_offers_credential_is_a_password_or_its_base64(auth: str, prefix: str) -> None:
    found = settings(**{**OFFERS, "SESSIONM_CONNECT_AUTH": prefix + auth})
    assert found.offers_on
    assert found.sessionm_connect_auth
    assert found.sessionm_connect_auth.get_secret_value() == "dXNlcjpwYXNzOndvcmQ="


FILES = {
    "a line end": b"s3cret\n",
    "line ends of Windows": b"\r\ns3cret\r\n\r\n",
    "line ends of old Macs": b"s3cret\r",
    "a byte order mark": b"\xef\xbb\xbfs3cret",
    "a byte order mark and line ends": b"\xef\xbb\xbfs3cret\r\n",
    "UTF-16 of PowerShell": "\ufeffs3cret\r\n".encode("utf-16-le"),
    "UTF-16 with the high byte first": "\ufeffs3cret\n".encode("utf-16-be"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", ["SESSIONM_CORE_KEY", "SESSIONM_CORE_SECRET"])
def test_a_byte_order_mark_and_line_ends_are_no_part_of_a_secret(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / "secret").write_bytes(content)
    known = {key: value for key, value in REQUIRED.items() if key != name}
    found = load({**known, f"{name}_FILE": str(tmp_path / "secret")}, NOWHERE)
    assert getattr(found, name.lower()).get_secret_value() == "s3cret"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\n\ufeff"], ids=ascii)
def test_a_file_may_hold_a_key_in_each_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "keys").write_bytes(("\ufeff" + end.join(["a:one", "b:two", ""])).encode())
    known = {key: value for key, value in REQUIRED.items() if key != "BRIDGE_ADMIN_KEYS"}
    keys = load({**known, "BRIDGE_ADMIN_KEYS_FILE": str(tmp_path / "keys")}, NOWHERE)
    found = [(key.name, key.secret.get_secret_value()) for key in keys.bridge_admin_keys]
    assert found == [("a", "one"), ("b", "two")]


def test_dotenv_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    lines = [f"{name}={value}" for name, value in REQUIRED.items()]
    (tmp_path / ".env").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8", newline="")
    assert load({}, tmp_path / ".env") == settings()


BAD: list[tuple[str, str]] = [
    *(
        ("SESSIONM_CORE_URL", url)
        for url in ("acme.com", "ftp://acme.com", "https://", "https://[")
    ),
    *(("SESSIONM_CORE_URL", url) for url in ("https://u:hunter2@a.com", "https://a.com?k=hunter2")),
    *(("SESSIONM_CORE_URL", url) for url in ("https://a.com:port", "https://a.com:99999")),
    *(("SESSIONM_CORE_URL", url) for url in ("https://a.com/?", "https://a .com", "https://a\nb")),
    ("SESSIONM_CORE_URL", "https://münchen.test"),
    ("SESSIONM_CONNECT_URL", "connect.acme.com"),
    *(("SESSIONM_CONNECT_AUTH", text) for text in ("hunter2", "aHVudGVyMg==", "Basic", "hünter2")),
    *(("BRIDGE_WEBHOOK_KEYS", keys) for keys in ("hunter2", ":hunter2", "a b:hunter2", ",", "a:")),
    ("BRIDGE_CONTENT_KEYS", "a:b,hunter2"),
    ("BRIDGE_ADMIN_KEYS", "é:hunter2"),
    *(("BRIDGE_INSECURE_NO_AUTH", flag) for flag in ("yes", "true", "2")),
    *(("BRIDGE_ALLOWED_IPS", text) for text in ("10.0.0.0/99", "braze.com", ",", "1.2.3.4;::1")),
    *(("BRIDGE_TRUSTED_PROXIES", number) for number in ("-1", "one", "1.5", "99")),
    *(("BRIDGE_DATABASE_URL", url) for url in ("mysql://u:hunter2@h/d", "sqlite:///", "bridge.db")),
    *(("BRIDGE_CAMPAIGN_TTL", ttl) for ttl in ("0", "-1", "1.5", "30 days", "3651d", "9" * 5000)),
    *(("BRIDGE_TAGS_MAX_AGE", age) for age in ("2d", "-1", "soon")),
    ("BRIDGE_OFFERS_MAX_AGE", "1w"),
    ("BRIDGE_STALE_WHILE_REVALIDATE", "31d"),
    ("BRIDGE_STALE_IF_ERROR", "inf"),
    *(("BRIDGE_CACHE_ENTRIES", number) for number in ("0", "1e5", "many")),
    *(("BRIDGE_LOOKUP_DEADLINE", number) for number in ("0", "nan", "inf", "61", "1,5")),
    *(("BRIDGE_SESSIONM_RPS", number) for number in ("0", "-5", "1e999", "fast")),
    *(("BRIDGE_DELIVERY_CONCURRENCY", number) for number in ("0", "257")),
    ("BRIDGE_MAX_ATTEMPTS", "0"),
    ("BRIDGE_QUEUE_LIMIT", "0"),
    *(("BRIDGE_RETENTION", age) for age in ("0", "week")),
    ("BRIDGE_BULK_THRESHOLD", "-1"),
    ("BRIDGE_PUBLIC_URL", "bridge.acme.com"),
    ("BRIDGE_LOG_FORMAT", "xml"),
    ("BRIDGE_LOG_LEVEL", "loud"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda text: ascii(text)[1:40])
def test_a_bad_value_is_named_with_an_example_that_works(name: str, value: str) -> None:
    message = problem({**ALL, name: value})
    assert message.startswith(f"{name} ")
    example = re.search(rf"; for example {name}=(.+)$", message)
    assert example
    load({**ALL, name: example[1]}, NOWHERE)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_setting_is_named(name: str) -> None:
    for environ in ({**REQUIRED, name: "  "}, {n: v for n, v in REQUIRED.items() if n != name}):
        assert f"{name} is not set" in problem(environ)


def test_everything_that_is_missing_is_said_at_once() -> None:
    message = problem({"BRIDGE_INSECURE_NO_AUTH": "1"})
    assert "SESSIONM_CORE_URL, SESSIONM_CORE_KEY, SESSIONM_CORE_SECRET are not set" in message


def test_without_authentication_no_keys_are_needed() -> None:
    core = {name: value for name, value in REQUIRED.items() if name.startswith("SESSIONM")}
    assert load({**core, "BRIDGE_INSECURE_NO_AUTH": "1"}, NOWHERE).bridge_webhook_keys == ()


@pytest.mark.parametrize("name", OFFERS)
def test_half_of_the_offers_settings_is_an_error(name: str) -> None:
    message = problem({**REQUIRED, name: OFFERS[name]})
    assert all((other in message) == (other != name) for other in OFFERS)


def test_the_environment_wins_over_the_dotenv_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "# comment\nexport SESSIONM_CORE_SECRET='pa$$word${HOME}'\n"
        'BRIDGE_MAX_ATTEMPTS="3"\nBRIDGE_QUEUE_LIMIT=5\nBARE\n'
    )
    environ = {n: v for n, v in REQUIRED.items() if n != "SESSIONM_CORE_SECRET"}
    found = load({**environ, "BRIDGE_MAX_ATTEMPTS": "4"}, dotenv)
    assert found.sessionm_core_secret.get_secret_value() == "pa$$word${HOME}"
    assert found.bridge_max_attempts == 4
    assert found.bridge_queue_limit == 5


def test_a_dotenv_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"SESSIONM_CORE_KEY=\xff\xfe")
    assert ".env" in problem(REQUIRED, tmp_path / ".env")


SECRETS = {
    "SESSIONM_CORE_KEY": "s-1",
    "SESSIONM_CORE_SECRET": "s-2",
    "SESSIONM_CONNECT_AUTH": "user:s-3",
    "BRIDGE_WEBHOOK_KEYS": "a:s-4",
    "BRIDGE_CONTENT_KEYS": "b:s-5\nc:s-6\n",
    "BRIDGE_VIEWER_KEYS": "v:s-9",
    "BRIDGE_ADMIN_KEYS": "d:s-7",
    "BRIDGE_ALERT_URL": "https://hooks.test/s-10?sig=s-11",
    "BRIDGE_DATABASE_URL": "postgresql://u:s-8@db/bridge",
}


def secret_files(folder: Path) -> dict[str, str]:
    """The environment in which each secret is a file of its own."""
    for name, value in SECRETS.items():
        (folder / name).write_text(f"{value}\n")
    kept = {name: value for name, value in ALL.items() if name not in SECRETS}
    return {**kept, **{f"{name}_FILE": str(folder / name) for name in SECRETS}}


def test_each_secret_may_be_given_as_a_file(tmp_path: Path) -> None:
    found = load(secret_files(tmp_path), NOWHERE)
    assert found == load({**ALL, **SECRETS}, NOWHERE)
    assert [key.secret.get_secret_value() for key in found.bridge_content_keys] == ["s-5", "s-6"]


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    found = load(secret_files(tmp_path), NOWHERE)
    for shown in (repr(found), str(found), found.model_dump_json(), repr(found.model_dump())):
        assert not re.search(r"s-\d|dXNlcjpzLTM=", shown)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_file_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    environ = secret_files(tmp_path)
    assert f"{name} and {name}_FILE are both set" in problem({**environ, name: "hunter2"})
    for content in (b"", b" \n", b"hunter2\xff"):
        (tmp_path / name).write_bytes(content)
        assert problem(environ).startswith(f"{name}_FILE names a file")
    (tmp_path / name).unlink()
    assert problem(environ).startswith(f"{name}_FILE names a file")


def test_the_rules_file_is_used_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings().rules_file is None
    Path("rules.toml").touch()
    assert settings().rules_file == Path("rules.toml")
    assert settings(BRIDGE_RULES="other.toml").rules_file == Path("other.toml")


def test_a_misspelt_setting_is_pointed_out() -> None:
    environ = {**ALL, "BRIDGE_CAMPAIN_TTL": "5", "PATH": "/", "BRIDGE_ADMIN_KEYS_FILE": "f"}
    hint = "BRIDGE_CAMPAIN_TTL is not a setting; did you mean BRIDGE_CAMPAIGN_TTL?"
    assert unknown_names(environ, NOWHERE) == [hint]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings().bridge_queue_limit = 1


PROXIES = [
    ("HTTPS_PROXY", "http://ann:hunter2@[", "must be the URL of an HTTP proxy"),
    ("HTTPS_PROXY", "http://ann:hunter2@proxy:port", "must be the URL of an HTTP proxy"),
    ("HTTPS_PROXY", "proxy:99999", "must be the URL of an HTTP proxy"),
    ("HTTPS_PROXY", "http://", "must be the URL of an HTTP proxy"),
    ("HTTPS_PROXY", "ftp://hunter2@proxy", "must be the URL of an HTTP proxy"),
    ("HTTPS_PROXY", "http://a b", "must be the URL of an HTTP proxy"),
    ("HTTPS_PROXY", "https://proxy:3128", "must begin with http://"),
    ("ALL_PROXY", "socks5h://ann:hunter2@proxy:1080", "names a SOCKS proxy"),
]


@pytest.mark.parametrize(("name", "value", "words"), PROXIES, ids=str)
def test_a_proxy_that_cannot_be_used_stops_the_start(name: str, value: str, words: str) -> None:
    answer = problem({**ALL, name: value})
    assert answer.startswith(f"{name} {words}")
    assert f"for example {name}=http://" in answer
    # What leads nowhere that the bridge calls is not its business.
    assert settings(**{name: value, "NO_PROXY": ".acme.com"}).bridge_sessionm_rps == 20
    assert settings(HTTP_PROXY=value).bridge_sessionm_rps == 20


def test_proxies_are_read_in_either_case_and_from_the_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("HTTPS_PROXY=http://filed:1\nNO_PROXY=a.test\nALL_PROXY=http://all:2\n")
    given = {**REQUIRED, "https_proxy": "http://lower:3", "all_proxy": ""}
    assert load(given, dotenv).network == {"https_proxy": "http://lower:3", "no_proxy": "a.test"}


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_authorities_that_cannot_be_read_stop_the_start(name: str, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_text("no certificate")
    assert problem({**ALL, name: str(missing)}) == (
        f"{name} names {missing}, which cannot be read: No such file or directory"
    )
    assert problem({**ALL, name: str(empty)}) == (
        f"{name} names {empty}, which holds no certificates (PEM)"
    )
