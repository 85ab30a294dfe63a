"""`bridge check`: is everything that the service needs in order, and if not, what to do."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bridge.customer import Customer
from bridge.database import NewerSchemaError, StoreUnavailableError
from bridge.intake.rules import RulesError, read_rules
from bridge.parts import LEAST_RETENTION, build, build_sessionm
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM
from bridge.settings import Settings, SettingsError, load, unknown_names

# Nobody's id: SessionM's "no such customer" shows that it is there and takes our credentials.
NOBODY = "00000000-0000-0000-0000-00000b41d9e0"
TIMEOUT = 10.0
SHORT = 16
BRAZE_WAITS = 2.0
LOCAL = ("http://127.0.0.1", "http://localhost", "http://[::1]")


@dataclass(frozen=True)
class Finding:
    """One line of the report. *remedy* says what to do if it is not ok; "" for nothing."""

    name: str
    ok: bool
    told: str
    remedy: str = ""

    def line(self) -> str:
        mark = "ok  " if self.ok else "FAIL"
        remedy = f"\n     -> {self.remedy}" if self.remedy else ""
        return f"{mark} {self.name}: {self.told}{remedy}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """Examine everything that can be examined with the settings as they are."""
    # What fails is told by the findings.
    logging.getLogger("bridge").handlers = [logging.NullHandler()]
    try:
        settings = load(environ)
    except SettingsError as error:
        return [Finding("settings", False, str(error), "set it in the environment or in .env")]
    checks = (_settings, _rules, _store_and_sessionm)
    return [finding for check in checks for finding in check(settings, environ)]


def _settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield Finding("settings", True, "complete", "; ".join(unknown_names(environ)))
    for scope in ("webhook", "content", "admin"):
        keys = getattr(settings, f"bridge_{scope}_keys")
        short = [key.name for key in keys if len(key.secret.get_secret_value()) < SHORT]
        told = f"{len(keys)} key(s): {', '.join(key.name for key in keys) or 'none'}"
        remedy = f"{', '.join(short)}: short; `bridge keys new NAME` makes better ones"
        yield Finding(f"{scope} keys", True, told, remedy if short else "")
    yield from _doubts(settings)
    if settings.bridge_insecure_no_auth:
        yield Finding("authentication", True, "OFF", "set keys before anybody else can call")
    for url in (settings.sessionm_core_url, settings.sessionm_connect_url):
        if url and url.startswith("http://") and not url.startswith(LOCAL):
            yield Finding("encryption", False, f"{url} is not encrypted", "use https://")


def _doubts(settings: Settings) -> Iterator[Finding]:
    """What is allowed, and probably not meant."""
    secrets = [
        key.secret.get_secret_value()
        for scope in ("webhook", "content", "admin")
        for key in getattr(settings, f"bridge_{scope}_keys")
    ]
    if len(set(secrets)) < len(secrets):
        yield Finding("keys", True, "one secret stands twice", "give each key its own")
    if settings.bridge_lookup_deadline > BRAZE_WAITS - 0.1:
        told = f"BRIDGE_LOOKUP_DEADLINE is {settings.bridge_lookup_deadline:g} s"
        yield Finding("deadline", True, told, f"Braze waits {BRAZE_WAITS:g} s in all: set 1.5")
    public = settings.bridge_public_url
    if settings.bridge_bulk_threshold and not public:
        told = "BRIDGE_BULK_THRESHOLD does nothing without BRIDGE_PUBLIC_URL"
        yield Finding("bulk", False, told, "set where SessionM reaches the bridge")
    if public and public.startswith("http://") and not public.startswith(LOCAL):
        told = f"BRIDGE_PUBLIC_URL: {public} is not encrypted"
        yield Finding("bulk", True, told, "customers' ids pass there: use https://")
    if settings.bridge_retention < LEAST_RETENTION:
        told = "BRIDGE_RETENTION is under a day"
        yield Finding("retention", True, told, "events are kept a day all the same")


def _rules(settings: Settings, _environ: Mapping[str, str]) -> Iterator[Finding]:
    path = settings.rules_file
    try:
        rules = read_rules(path, settings.bridge_campaign_ttl)
    except RulesError as error:
        yield Finding("rules", False, str(error), "mend the file")
        return
    told = f"{len(rules.campaigns)} campaign(s) and {len(rules.canvases)} Canvas(es) in {path}"
    yield Finding("rules", True, told if path else "no rules.toml: the defaults apply to all")


def _store_and_sessionm(settings: Settings, _environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        parts = build(settings)
        try:
            parts.store.ping()
            backlog = parts.store.backlog()
            schema = parts.store.database.schema_version()
        finally:
            parts.close()
    except (StoreUnavailableError, SettingsError, NewerSchemaError) as error:
        yield Finding("store", False, str(error), _store_remedy(settings, error))
    except RulesError:
        # Told above; nothing can be built before it is mended.
        return
    else:
        told = f"writable, schema {schema}; {backlog.queued} write(s) wait, {backlog.dead} dead"
        remedy = "replay or discard the dead ones" if backlog.dead else ""
        yield Finding("store", True, told, remedy)
    yield from _sessionm(settings, build_sessionm(settings))


def _store_remedy(settings: Settings, error: Exception) -> str:
    if isinstance(error, NewerSchemaError):
        return "start the newer bridge"
    if settings.bridge_database_url.get_secret_value().startswith("sqlite:"):
        return "see that the disk is there, not full, writable"
    return "see that the server runs, takes the credentials, and has connections left"


def _sessionm(settings: Settings, sessionm: SessionM) -> Iterator[Finding]:
    yield _ask(
        "SessionM Core",
        lambda: sessionm.read_tags(Customer("user_id", NOBODY), TIMEOUT),
        "SESSIONM_CORE_URL",
        "SESSIONM_CORE_KEY and SESSIONM_CORE_SECRET",
    )
    if not settings.offers_on:
        yield Finding("SessionM Connect", True, "not configured: offer lookups are off")
        return
    body = {"user_id": NOBODY, "skip": 0, "take": 1, "culture": "en-US"}
    yield _ask(
        "SessionM Connect",
        lambda: sessionm.offers(body, TIMEOUT),
        "SESSIONM_CONNECT_URL",
        "SESSIONM_CONNECT_AUTH and SESSIONM_RETAILER_ID",
    )


def _ask(name: str, call: Callable[[], object], url: str, credentials: str) -> Finding:
    try:
        call()
    except SessionMError as error:
        if error.meaning is Meaning.UNKNOWN_CUSTOMER:
            return Finding(name, True, "reachable, credentials accepted")
        if error.meaning is Meaning.BUSY:
            busy = (
                "SessionM is down or overloaded: nothing to mend here; wait, tell them if it lasts"
            )
            return Finding(name, False, str(error), busy)
        remedy = credentials if error.meaning is Meaning.CREDENTIALS else url
        return Finding(name, False, str(error), f"check {remedy}")
    return Finding(name, True, "reachable, credentials accepted")
