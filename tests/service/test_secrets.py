"""Nothing secret and no customer's identifier in anything that the service writes or answers."""

import base64
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import requests

from bridge.application import build
from bridge.customer import Customer
from bridge.sandbox import Credentials, SandboxServer
from bridge.sessionm.answers import SessionMError
from bridge.settings import SettingsError, load
from bridge.shared import open_outbox
from bridge.storage.database import StoreUnavailableError
from tests.commands import run_bridge
from tests.conftest import ALICE, KEYS, MakeService, Service, bearer, environment

CUSTOMERS = [ALICE, "loyal-1001", "nobody-at-all", "somebody@example.com", "zoë/31 & co"]
# What somebody typed for a key may be the right one for somewhere else.
MISTYPED = ["hunter2-hunter2", "another-system's-password"]


def writings(word: str) -> set[str]:
    """*word* as programs write it down."""
    return {word, quote(word, safe=""), quote_plus(word), json.dumps(word)[1:-1], repr(word)[1:-1]}


def encoded(word: str) -> str:
    return base64.b64encode(word.encode()).decode()


def secrets() -> set[str]:
    """Everything that nobody may read, plain and as it goes over the wire."""
    given = Credentials()
    connect = f"{given.connect_user}:{given.connect_password}"
    core = f"{given.core_key}:{given.core_secret}"
    plain = {*KEYS.values(), *MISTYPED, given.core_secret, given.core_key, given.connect_password}
    return plain | {encoded(connect), encoded(core)} | {encoded(f"test:{k}") for k in KEYS.values()}


def use(service: Service) -> Iterator[requests.Response]:
    """Every kind of call for every customer."""
    for customer in CUSTOMERS:
        yield service.webhook(user_id=customer, tags=["n"], dispatch_id=customer)
        yield service.webhook(external_id=customer, braze_campaign_id="c")
        yield service.webhook(user_id=customer, tags=["bad\n"])
        for lookup in ("tags", "offers", "customer"):
            yield service.lookup(lookup, user_id=customer)
            yield service.lookup(lookup, external_id=customer, on_error="retry")
        path = f"/priv/v1/apps/bridge/users/{quote(customer, safe='')}/tags"
        for headers in (bearer("content"), bearer("webhook")):
            yield requests.get(service.url + path, headers=headers, timeout=9)


def look_around(service: Service) -> Iterator[requests.Response]:
    """What an operator looks at, and what somebody sees who has mistyped a key."""
    for path in ("/health", "/metrics", "/", "/dashboard", "/setup", "/openapi.json"):
        yield requests.get(service.url + path, headers=bearer("admin"), timeout=9)
    for wrong in MISTYPED:
        basic = encoded(f"somebody:{wrong}")
        for given in (f"Bearer {wrong}", f"Basic {basic}", wrong, f"Bearer test:{wrong}"):
            headers = {"Authorization": given}
            yield requests.get(f"{service.url}/health", headers=headers, timeout=9)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_full_run_writes_no_secret_and_no_identifier(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path, form: str
) -> None:
    service = make_service(
        BRIDGE_LOG_LEVEL="debug", BRIDGE_LOG_FORMAT=form, BRIDGE_LOOKUP_DEADLINE="0.3"
    )
    answers = [*use(service)]
    for fault in (
        {"status": 500},
        {"status": 401, "code": "invalid_api_key"},
        {"drop": "reset"},
        {"garbage": True},
    ):
        sandbox.sandbox.set_faults(fault)
        answers += use(service)
    sandbox.stop()
    answers += use(service)
    answers += look_around(service)
    assert service.stop() == 0

    log = service.log.read_text()
    assert log.count("\n") > 50
    if form == "json":
        # One event, one line, whatever a stranger sent.
        assert all(json.loads(line)["action"] for line in log.splitlines())
    body = log + "".join(answer.text + str(answer.headers) for answer in answers)
    assert not [word for word in secrets() if word in body]
    assert not [name for one in CUSTOMERS for name in writings(one) if name in log]
    assert environment(sandbox.url, tmp_path)["BRIDGE_DATABASE_URL"] not in body


def test_no_repr_and_no_error_holds_a_secret(sandbox: SandboxServer, tmp_path: Path) -> None:
    given = environment(sandbox.url, tmp_path)
    settings = load(given, tmp_path / "none")
    parts = build(settings)
    answer = [repr(settings), str(settings), repr(parts), repr(parts.sessionm), repr(vars(parts))]
    sandbox.stop()
    for customer in CUSTOMERS:
        with pytest.raises(SessionMError) as failed:
            parts.sessionm.profile(Customer("external_id", customer), 0.5)
        error: BaseException = failed.value
        answer += [str(error), repr(error)]
        assert not any(written in answer[-1] for written in writings(customer))
    parts.close()
    password = "s3cret-of-the-database"
    for name, value in {
        "BRIDGE_DATABASE_URL": f"mysql://bridge:{password}@host/db",
        "BRIDGE_WEBHOOK_KEYS": password,
        "SESSIONM_CONNECT_AUTH": password,
        "SESSIONM_CORE_URL": f"https://user:{password}@host",
        "BRIDGE_ALLOWED_IPS": f"10.0.0.0/99,{KEYS['admin']}",
    }.items():
        with pytest.raises(SettingsError, match=name) as refused:
            load({**given, name: value}, tmp_path / "none")
        answer.append(str(refused.value))
        assert "\n" not in answer[-1]
    for text in answer:
        assert not [word for word in (*secrets(), password) if word in text], text


def test_commands_show_no_secret(sandbox: SandboxServer, tmp_path: Path) -> None:
    environ = {**os.environ, **environment(sandbox.url, tmp_path)}
    answer = ""
    for arguments in (
        ["check"],
        ["check", "--json"],
        ["queue", "status"],
        ["queue", "list"],
        ["erase", "--user-id", ALICE],
        ["serve", "--bind", "nowhere"],
    ):
        done = run_bridge(*arguments, env=environ, cwd=tmp_path)
        answer += done.stdout + done.stderr
        assert "Traceback" not in answer
    assert not [word for word in secrets() - {Credentials().core_key} if word in answer]


PASSWORDS = ["S3cret@Pwd", "S3cret?Pwd", "S3cret#Pwd", "S3cret/Pwd"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("command", ["serve", "check", "queue", "move"])
def test_a_database_password_that_reads_in_two_ways_stops_the_start_and_is_not_shown(
    sandbox: SandboxServer, tmp_path: Path, password: str, command: str
) -> None:
    url = f"postgresql://bridge:{password}@127.0.0.1:1/db"
    arguments = {
        "serve": ["serve", "--bind", "127.0.0.1:1"],
        "check": ["check"],
        "queue": ["queue", "status"],
        "move": ["move", "--from", url, "--to", f"sqlite:///{tmp_path}/to.db"],
    }[command]
    environ = {**os.environ, **environment(sandbox.url, tmp_path, BRIDGE_DATABASE_URL=url)}
    ended = run_bridge(*arguments, env=environ, cwd=tmp_path)
    assert ended.returncode != 0
    answer = ended.stdout + ended.stderr
    assert "percent-encoded" in answer
    assert ("--from" if command == "move" else "BRIDGE_DATABASE_URL") in answer
    assert "S3cret" not in answer
    assert "Pwd" not in answer
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_database_is_named_without_user_and_password(password: str) -> None:
    url = f"postgresql://somebody:{quote(password, safe='')}@db1,db2:6432/bridge?sslmode=prefer"
    database = open_outbox(url)
    assert database.name == "postgresql://db1,db2:6432/bridge"
    database.close()


def test_what_the_driver_says_is_shown_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = open_outbox("postgresql://u:S3cretPwd@127.0.0.1:1/bridge?sslmode=S3cretPwd")
    for ask in (database.migrate, partial(database.locks.try_acquire, 1)):
        with pytest.raises(StoreUnavailableError) as caught:
            ask()
        assert "S3cretPwd" not in str(caught.value)
    database.close()
    assert "no session with the database: " in caplog.text
    assert "S3cretPwd" not in caplog.text
