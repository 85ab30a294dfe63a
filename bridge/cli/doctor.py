"""`bridge check`: examine everything that the service needs, and name remedies."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from bridge import clock
from bridge.application import LEAST_RETENTION, build, build_braze, build_sessionm
from bridge.braze.answers import BrazeError
from bridge.cli.output import state
from bridge.customer import Customer
from bridge.fields import counted
from bridge.intake.message import BrazeKind
from bridge.intake.rules import RulesError, read_rules
from bridge.network.authorities import authorities
from bridge.network.proxy import Proxy, is_loopback
from bridge.ops.health import clocks_state, delivery_state
from bridge.ops.incidents import clock_causes
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM
from bridge.settings import BRAZE_WAITS, SCOPES, Settings, SettingsError, load, unknown_names
from bridge.shared import open_outbox, open_shared
from bridge.storage.database import (
    NewerSchemaError,
    NoDatabaseError,
    StoreUnavailableError,
    UnsuitableDatabaseError,
    in_time,
)

# An unknown customer: the answer "not found" shows that SessionM accepts the credentials.
UNKNOWN_USER_ID = "00000000-0000-0000-0000-00000b41d9e0"
# Seconds for one call, and for the store.
TIMEOUT = 7.0
# Findings about SessionM's systems -> the names of their breakers.
_BREAKERS = {"SessionM Core": "core", "SessionM Connect": "connect"}
# Characters: shorter secrets are reported.
SHORT = 16


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    *remedy* says what to do, or is "". With *ok* and a remedy, the line is a warning.
    """

    name: str
    ok: bool
    result: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        return "FAIL" if not self.ok else "warn" if self.remedy else "ok"

    def line(self) -> str:
        remedy = f"\n     -> {self.remedy}" if self.remedy else ""
        return f"{state(self.mark.ljust(4))} {self.name}: {self.result}{remedy}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "mark": self.mark}


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Examine everything that is possible with the present settings."""
    # The findings report errors.
    logging.getLogger("bridge").handlers = [logging.NullHandler()]
    try:
        settings = load(environ)
    except SettingsError as error:
        return [Finding("settings", False, str(error), "set it in the environment or in .env")]
    found = [*_settings(settings, environ), *_rules(settings)]
    # At once: one system that hangs delays no other.
    systems = (_store, _core, _connect, _braze_settings, _campaigns, _canvases)
    with ThreadPoolExecutor(len(systems)) as pool:
        for findings in pool.map(lambda system: list(system(settings)), systems):
            found += findings
    _end_failures(settings, found)
    return found


def _settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield Finding("settings", True, "complete")
    for sentence in unknown_names(environ):
        yield Finding("settings", True, sentence, "rename or remove it; see docs/settings.md")
    for scope in SCOPES:
        if scope == "trigger" and not (settings.braze_on and settings.bridge_trigger_keys):
            # `_braze_settings` reports that there are none.
            continue
        keys = getattr(settings, f"bridge_{scope}_keys")
        short = [key.name for key in keys if len(key.secret.get_secret_value()) < SHORT]
        result = f"{counted(len(keys), 'key')}: {', '.join(key.name for key in keys) or 'none'}"
        remedy = f"{', '.join(short)}: short; `bridge keys new NAME` makes better ones"
        yield Finding(f"{scope} keys", True, result, remedy if short else "")
    yield from _unlikely_settings(settings)
    if settings.bridge_insecure_no_auth:
        yield Finding("authentication", True, "OFF", "set keys before anybody else can call")
    for url in (settings.sessionm_core_url, settings.sessionm_connect_url, settings.braze_rest_url):
        if url and _is_unencrypted(url):
            yield Finding("encryption", False, f"{url} is not encrypted", "use https://")


def _is_unencrypted(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def _unlikely_settings(settings: Settings) -> Iterator[Finding]:
    """Yield findings about settings that are valid, but probably mistakes."""
    secrets = [
        key.secret.get_secret_value()
        for scope in SCOPES
        for key in getattr(settings, f"bridge_{scope}_keys")
    ]
    if len(set(secrets)) < len(secrets):
        yield Finding("keys", True, "two keys have the same secret", "give each key its own")
    if settings.bridge_lookup_deadline > BRAZE_WAITS - 0.1:
        result = f"BRIDGE_LOOKUP_DEADLINE is {settings.bridge_lookup_deadline:g} s"
        yield Finding("deadline", True, result, f"Braze waits {BRAZE_WAITS:g} s in all: set 1.5")
    public = settings.bridge_public_url
    if settings.bridge_bulk_threshold and not public:
        result = "BRIDGE_BULK_THRESHOLD does nothing without BRIDGE_PUBLIC_URL"
        yield Finding("bulk", False, result, "set the URL at which SessionM reaches the bridge")
    if public and _is_unencrypted(public):
        result = f"BRIDGE_PUBLIC_URL: {public} is not encrypted"
        yield Finding("bulk", True, result, "it transfers customers' identifiers: use https://")
    if settings.bridge_retention < LEAST_RETENTION:
        result = "BRIDGE_RETENTION is under a day"
        yield Finding("retention", True, result, "events are kept for a day nevertheless")


def _rules(settings: Settings) -> Iterator[Finding]:
    path = settings.rules_file
    try:
        rules = read_rules(path, settings.bridge_campaign_ttl)
    except RulesError as error:
        yield Finding("rules", False, str(error), "correct the file")
        return
    campaigns = counted(len(rules.campaigns), "campaign")
    result = f"{campaigns} and {counted(len(rules.canvases), 'Canvas', 'Canvases')} in {path}"
    yield Finding("rules", True, result if path else "no rules.toml: the defaults apply")


def _store(settings: Settings) -> Iterator[Finding]:
    to_braze = None
    until = time.monotonic() + TIMEOUT
    try:
        with in_time(until), closing(build(settings, create=False)) as parts:
            parts.store.ping()
            delivery = delivery_state(parts, parts.store.backlog(), clock.now())
            if parts.braze:
                backlog = parts.messages.backlog()
                to_braze = delivery_state(parts, backlog, clock.now(), parts.messages)
            schema = parts.store.database.schema_version()
            clocks = clocks_state(parts.store)
    except NoDatabaseError as error:
        with in_time(until):
            yield _new_store(settings, str(error))
    except (StoreUnavailableError, SettingsError, NewerSchemaError) as error:
        yield Finding("store", False, str(error), _store_remedy(settings, error))
    except RulesError:
        # `_rules` has reported it, and nothing can be built without rules.
        return
    else:
        yield Finding("store", True, f"writable, schema {schema}")
        yield _delivery("delivery", delivery, "write")
        if to_braze:
            yield _delivery("delivery to Braze", to_braze, "message")
        yield from _clocks(clocks)


def _new_store(settings: Settings, result: str) -> Finding:
    """Return whether a database can be created; before the first start there is none."""
    url = settings.bridge_database_url.get_secret_value()
    try:
        with closing(open_outbox(url)) as database:
            database.check_creatable()
    except StoreUnavailableError as error:
        return Finding("store", False, f"{result}: {error}", _store_remedy(settings, error))
    remedy = (
        "before the first `bridge serve`, this is normal; after it, correct BRIDGE_DATABASE_URL"
    )
    return Finding("store", True, result, remedy)


def _delivery(name: str, delivery: Mapping[str, Any], unit: str) -> Finding:
    """Return the state of delivery. No state is a failure: `check` also runs before the start."""
    word = delivery["state"]
    if delivery["held_by"] and word == "running":
        word = "held up"
    result = f"{word}; {counted(delivery['queued'], unit)} waiting, {delivery['dead']:,} dead"
    remedy = "`bridge queue status` says why, and what to do"
    if word == "stopped":
        remedy = "start `bridge serve`"
    elif delivery["held_by"] == "hand":
        remedy = "`bridge queue resume` ends the pause"
    elif word == "running" and not delivery["dead"]:
        remedy = ""
    return Finding(name, True, result, remedy)


def _clocks(clocks: dict[str, Any]) -> Iterator[Finding]:
    remedy = "let NTP set this machine's clock, and the database's"
    reasons = [cause.reason for cause in clock_causes(clocks)]
    for reason in reasons:
        yield Finding("clock", False, reason, remedy)
    if not reasons:
        other = "the database's" if clock.store().is_fleets else "the clock of the stored writes"
        yield Finding("clock", True, f"within {clock.TOLERANCE:g} s of {other}")


def _store_remedy(settings: Settings, error: Exception) -> str:
    if isinstance(error, NewerSchemaError):
        return "start the newer bridge"
    if isinstance(error, UnsuitableDatabaseError):
        return "give the bridge a database of its own"
    if "locked" in str(error):
        return "end the process that locks it, such as a backup or a VACUUM"
    if settings.bridge_database_url.get_secret_value().startswith("sqlite:"):
        return "check that the disk is mounted, writable, and not full"
    if "permission" in str(error):
        return "let the bridge's user create tables in this database"
    return "check that the server runs, accepts the credentials, and has free connections"


def _core(settings: Settings) -> Iterator[Finding]:
    with closing(build_sessionm(settings)) as sessionm:
        yield from _network_path(settings, sessionm)
        yield _try_call(
            "SessionM Core",
            lambda: sessionm.read_tags(Customer("user_id", UNKNOWN_USER_ID), TIMEOUT),
            "SESSIONM_CORE_URL",
            "SESSIONM_CORE_KEY and SESSIONM_CORE_SECRET",
            "ask SessionM whether the Tags API is on for this account",
        )


def _connect(settings: Settings) -> Iterator[Finding]:
    if not settings.offers_on:
        yield Finding("SessionM Connect", True, "not configured: offer lookups are off")
        return
    body = {"user_id": UNKNOWN_USER_ID, "skip": 0, "take": 1, "culture": "en-US"}
    with closing(build_sessionm(settings)) as sessionm:
        yield _try_call(
            "SessionM Connect",
            lambda: sessionm.offers(body, TIMEOUT),
            "SESSIONM_CONNECT_URL",
            "SESSIONM_CONNECT_AUTH and SESSIONM_RETAILER_ID",
            "check SESSIONM_RETAILER_ID, then ask SessionM whether offers are on for it",
        )


def _braze_settings(settings: Settings) -> Iterator[Finding]:
    braze = build_braze(settings)
    if braze is None:
        yield Finding("Braze", True, "not configured: messages of SessionM's are off")
        return
    with closing(braze):
        if proxy := braze.proxy():
            yield _through_proxy("Braze", settings.braze_rest_url, proxy)
    if not settings.bridge_trigger_keys and not settings.bridge_insecure_no_auth:
        remedy = "make one with `bridge keys new sessionm` and set BRIDGE_TRIGGER_KEYS"
        yield Finding("trigger keys", True, "none: SessionM cannot send messages", remedy)


def _campaigns(settings: Settings) -> Iterator[Finding]:
    return _try_key(settings, "campaign", "campaigns.trigger.send")


def _canvases(settings: Settings) -> Iterator[Finding]:
    return _try_key(settings, "canvas", "canvas.trigger.send")


def _through_proxy(system: str, url: str | None, proxy: Proxy) -> Finding:
    host = urlsplit(url or "").hostname
    result = f"{system} is reached through {proxy}; NO_PROXY={host} would connect directly"
    return Finding("proxy", True, result)


def _try_key(settings: Settings, kind: BrazeKind, permission: str) -> Iterator[Finding]:
    """Check whether Braze accepts the key, without sending anything."""
    braze = build_braze(settings)
    if braze is None:
        return
    name = f"Braze {permission}"
    try:
        with closing(braze):
            braze.try_key(kind, TIMEOUT)
    except BrazeError as error:
        remedy = f"check BRAZE_REST_URL, BRAZE_REST_KEY and the key's permission {permission}"
        if error.status in {425, 429}:
            remedy = "Braze limits our calls: wait, and lower BRAZE_RPS if it lasts"
        elif error.meaning in {Meaning.BUSY, Meaning.UNANSWERED}:
            remedy = "Braze is down or overloaded: wait, and see Braze's status page if it lasts"
        elif error.is_foreign:
            remedy = (
                "something else than Braze answers: check BRAZE_REST_URL, proxies and maintenance"
            )
        yield Finding(
            name, False, str(error), remedy if error.is_foreign else error.remedy or remedy
        )
    else:
        yield Finding(name, True, "reachable, key accepted; nothing was sent")


def _network_path(settings: Settings, sessionm: SessionM) -> Iterator[Finding]:
    """Yield the proxies to SessionM, and the trusted certificate authorities."""
    urls = {"Core": settings.sessionm_core_url, "Connect": settings.sessionm_connect_url or ""}
    for system, proxy in sessionm.proxies().items():
        name = system.title()
        yield _through_proxy(f"SessionM {name}", urls[name], proxy)
    if any(url.startswith("https:") for url in urls.values()):
        trusted = authorities(settings.network)
        yield Finding("authorities", True, f"certificates are checked against {trusted}")


def _try_call(
    name: str,
    call: Callable[[], object],
    url: str,
    credentials: str,
    refused: str,
) -> Finding:
    try:
        call()
    except SessionMError as error:
        if error.meaning is not Meaning.UNKNOWN_CUSTOMER:
            remedy = error.remedy or _remedy(error, url, credentials, refused)
            return Finding(name, False, str(error), remedy)
    return Finding(name, True, "reachable, credentials accepted")


def _end_failures(settings: Settings, found: Sequence[Finding]) -> None:
    """Note which systems answer, where processes share that: a next call may be hours away.

    Call this while no other part uses the store, since opening it sets this process's clock.
    """
    answered = [_BREAKERS[one.name] for one in found if one.ok and one.name in _BREAKERS]
    unusable = (StoreUnavailableError, SettingsError, NewerSchemaError)
    with suppress(*unusable), closing(open_shared(settings, create=False)) as shared:
        for breaker in (shared.breakers[system] for system in answered):
            if breaker.has_failed:
                now = clock.steady()
                breaker.record(None, now, now)


def _remedy(error: SessionMError, url: str, credentials: str, refused: str) -> str:
    """Return what to do about the answer of a failed call.

    Args:
        error: the answer.
        url: the setting of the URL.
        credentials: the settings of the credentials.
        refused: what to do if SessionM refuses the call, but not the credentials.
    """
    if error.status in {425, 429}:
        return "SessionM limits our calls: wait, and lower BRIDGE_SESSIONM_RPS if it lasts"
    remedies = {
        Meaning.CREDENTIALS: f"check {credentials}",
        Meaning.BUSY: "SessionM is down or overloaded: wait, and contact SessionM if it lasts",
        Meaning.REFUSED: f"SessionM is reached, and refuses this call: {refused}",
        # Not an answer of SessionM: by the class of the status, or the status.
        0: f"check {url}, and firewalls on the way",
        3: f"the address redirects: set {url} to where it leads",
        403: "a firewall in front of SessionM refuses: have this machine's address allowed",
        404: f"there is nothing at this address: check host and path of {url}",
    }
    keys = (error.meaning, error.status, error.status // 100)
    other = f"something else than SessionM answers: check {url}, proxies and maintenance"
    return next((remedies[key] for key in keys if key in remedies), other)
