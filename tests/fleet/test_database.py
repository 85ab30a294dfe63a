"""The way to a fleet's database: its encoding, its addresses, and how long a webhook waits."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from flask.testing import FlaskClient

from bridge.sandbox import SandboxServer
from bridge.shared import open_outbox
from bridge.storage.database import StoreUnavailableError
from bridge.storage.server import DatabaseServer
from tests.commands import run_bridge
from tests.conftest import ALICE, MakeApp, MakeService, at_most, environment, eventually, post, send
from tests.network import Passage, Relay, dead, passes
from tests.postgres import Proxy, free_port, fresh_database

# Seconds that a webhook waits for its database, and what a busy machine adds.
IN_ALL = 3.0 + 0.7


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_in_utf8_is_refused_in_one_line(
    sandbox: SandboxServer, tmp_path: Path, encoding: str
) -> None:
    with fresh_database(encoding=encoding) as url:
        settings = environment(sandbox.url, tmp_path, BRIDGE_DATABASE_URL=url)
        bind = f"127.0.0.1:{free_port()}"
        for arguments in (("serve", "--bind", bind), ("deliver",), ("check",)):
            ended = run_bridge(*arguments, env=settings, cwd=tmp_path)
            assert ended.returncode == 1, arguments
            lines = (ended.stdout + ended.stderr).splitlines()
            [answer] = [line for line in lines if f"is in the encoding {encoding}" in line]
            assert "UTF8" in answer
            assert "Traceback" not in ended.stdout + ended.stderr


def test_a_database_that_is_found_in_another_encoding_later_is_not_ready(
    make_service: MakeService,
) -> None:
    """As when it is restored by another hand while the bridge runs."""
    service = make_service("--workers", "1")
    name = urlsplit(service.environ["BRIDGE_DATABASE_URL"]).path.lstrip("/")
    with fresh_database() as beside, psycopg.connect(beside, autocommit=True) as administrator:
        administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        administrator.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'".encode()
        )
        eventually(lambda: "is in the encoding LATIN1" in readiness(service.url))
    assert service.webhook(user_id=ALICE, braze_campaign_id="refused").status_code == 503
    assert "Traceback" not in service.log.read_text()


def test_closing_waits_for_the_connections_in_use() -> None:
    with fresh_database() as url:
        database = open_outbox(url)
        is_reading = threading.Event()

        def read() -> None:
            with database.read() as connection:
                is_reading.set()
                connection.exec_driver_sql("SELECT pg_sleep(0.5)")

        reader = threading.Thread(target=read)
        reader.start()
        assert is_reading.wait(10)
        database.close()
        with psycopg.connect(url) as administrator:
            [open_ones] = administrator.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'bridge %'"
            ).fetchone() or [-1]
        assert open_ones == 0
        reader.join()
        with pytest.raises(StoreUnavailableError, match="it is closed"), database.read():
            pass


def readiness(url: str) -> str:
    return requests.get(f"{url}/readyz", timeout=10).text


@contextmanager
def locked(database: str, table: str) -> Iterator[None]:
    with psycopg.connect(database) as other:
        other.execute(f"LOCK TABLE {table}".encode())
        yield


def seconds_to_refuse(client: FlaskClient) -> float:
    began = time.monotonic()
    assert post(client, braze_campaign_id="refused").status_code == 503
    return time.monotonic() - began


@pytest.mark.parametrize("table", ["tallies", "events", "writes"])
def test_a_lock_on_a_table_holds_a_webhook_up_for_three_seconds_in_all(
    make_app: MakeApp, database: str, table: str
) -> None:
    client = make_app().test_client()
    send(client, braze_campaign_id="before")
    with locked(database, table):
        assert seconds_to_refuse(client) < IN_ALL
        # The queue was counted too long ago, which is one more question.
        time.sleep(1.1)
        assert seconds_to_refuse(client) < IN_ALL
    send(client, braze_campaign_id="after")


class Resolver:
    """What the name ``db.test`` is: 127.0.0.1, or nothing after *seconds*."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_dead = False
        self.seconds = 10.0
        self._usual = socket.getaddrinfo
        monkeypatch.setattr("socket.getaddrinfo", self._find)

    def _find(self, host: str, *arguments: Any, **more: Any) -> Any:
        if host != "db.test":
            return self._usual(host, *arguments, **more)
        if self.is_dead:
            time.sleep(self.seconds)
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return self._usual("127.0.0.1", *arguments, **more)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


def by_name(proxy: Proxy) -> str:
    parts = urlsplit(proxy.url)
    return parts._replace(netloc=f"postgres@db.test:{parts.port}").geturl()


def test_a_name_that_nobody_resolves_is_503_within_three_seconds(
    make_app: MakeApp, proxy: Proxy, resolver: Resolver
) -> None:
    resolver.is_dead = True
    client = make_app(BRIDGE_DATABASE_URL=by_name(proxy)).test_client()
    time.sleep(1.1)
    assert seconds_to_refuse(client) < IN_ALL
    resolver.is_dead = False
    eventually(lambda: post(client, braze_campaign_id="after").status_code == 202, 30)


def test_an_address_that_has_answered_needs_no_name_server(
    make_app: MakeApp, proxy: Proxy, resolver: Resolver
) -> None:
    client = make_app(BRIDGE_DATABASE_URL=by_name(proxy)).test_client()
    send(client, braze_campaign_id="before")
    resolver.is_dead = True
    proxy.break_all()
    eventually(lambda: post(client, braze_campaign_id="after").status_code == 202, 20)


def resets(passage: Passage, _data: bytes) -> bool:
    passage.reset()
    return True


def test_an_address_is_kept_while_its_server_is_away(database: str, resolver: Resolver) -> None:
    parts = urlsplit(database)
    with Relay(parts.port or 5432) as relay:
        server = DatabaseServer(parts._replace(netloc=f"postgres@db.test:{relay.port}").geturl())
        server.connect(5.0, statement_timeout="5s").close()
        resolver.is_dead, resolver.seconds = True, 0.0
        relay.disturb = resets
        with pytest.raises(psycopg.OperationalError):
            server.connect(5.0, statement_timeout="5s")
        relay.disturb = passes
        server.connect(5.0, statement_timeout="5s").close()


def test_the_host_that_answered_is_tried_first(proxy: Proxy) -> None:
    parts = urlsplit(proxy.url)
    with dead("127.0.0.1", free_port()) as (*_, (_, port)):
        hosts = f"postgres@127.0.0.1:{port},127.0.0.1:{parts.port}"
        server = DatabaseServer(parts._replace(netloc=hosts).geturl())
        server.connect(1.0, statement_timeout="1s").close()
        with at_most(1):
            for _ in range(5):
                server.connect(1.0, statement_timeout="1s").close()
