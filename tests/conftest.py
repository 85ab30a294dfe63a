"""Real parts for the tests: a sandbox over HTTP, a SQLite file, gunicorn where it matters."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import jsonschema_rs
import pytest
import requests
import sqlalchemy
from flask import Flask, Response, request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge import create_app
from bridge.parts import Parts, parts_of
from bridge.sessionm.sandbox import Credentials, Sandbox, SandboxServer, serve
from bridge.settings import load
from bridge.web.openapi import ROUTES, describe
from tests.postgres import free_port as free_port  # noqa: PLC0414 - for the tests as well
from tests.postgres import fresh_database

# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("bridge", deadline=None)
hypothesis.settings.load_profile("bridge")

ALICE = "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601"
SEED_CUSTOMER = "00000000-0000-0000-0000-000000000000"
KEYS = {
    "webhook": "the-webhook-secret",
    "content": "the-content-secret",
    "admin": "the-admin-secret",
}


def bearer(scope: str) -> dict[str, str]:
    """The header that opens *scope*."""
    return {"Authorization": f"Bearer {KEYS[scope]}"}


T = TypeVar("T")


def eventually(look: Callable[[], T], seconds: float = 10.0) -> T:
    """The first truthy value of *look*; fails the test if there is none in time."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"did not happen within {seconds} s"
        time.sleep(0.02)
    return found


def post(client: FlaskClient, **fields: Any) -> TestResponse:
    """Send a webhook, ALICE's unless it says otherwise."""
    return client.post(
        "/webhooks/braze", json={"user_id": ALICE, **fields}, headers=bearer("webhook")
    )


def send(client: FlaskClient, *, again: bool = False, **fields: Any) -> str:
    """As `post` what must be accepted, or be known *again*; its event's id."""
    answer = post(client, **fields)
    expected = (200, "duplicate") if again else (202, "accepted")
    assert (answer.status_code, answer.get_json()["status"]) == expected, answer.get_json()
    event_id: str = answer.get_json()["id"]
    return event_id


def environment(sandbox_url: str, folder: Path, **more: str) -> dict[str, str]:
    """Settings for a bridge in *folder* that talks to the sandbox."""
    return {
        **Credentials().environment(sandbox_url),
        **{f"BRIDGE_{scope.upper()}_KEYS": f"test:{key}" for scope, key in KEYS.items()},
        "BRIDGE_DATABASE_URL": f"sqlite:///{folder}/bridge.db",
        "BRIDGE_SESSIONM_RPS": "1000",
        **more,
    }


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    with serve(Sandbox(), port=0) as server:
        yield server


# What these promise, they promise over every database.
OVER_BOTH = {
    "test_batches",
    "test_bulk",
    "test_content",
    "test_delivery",
    "test_lookups",
    "test_operator",
    "test_retention",
    "test_warm",
    "test_webhooks",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__.rpartition(".")[2]
    if "database" in metafunc.fixturenames and module in OVER_BOTH:
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the test's own: a SQLite file, unless the test asks for another."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/bridge.db"
    else:
        with fresh_database() as url:
            yield url


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    """What another process sees in the database."""
    engine = sqlalchemy.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]
    finally:
        engine.dispose()


MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(sandbox: SandboxServer, tmp_path: Path, database: str) -> Iterator[MakeApp]:
    """Makes applications on one database; without ``deliver=True`` nothing is delivered."""
    made: list[Parts] = []

    def make(*, deliver: bool = False, **more: str) -> Flask:
        more = {"BRIDGE_DATABASE_URL": database, **more}
        settings = load(environment(sandbox.url, tmp_path, **more), tmp_path / "none")
        app = create_app(settings, deliver=deliver)
        made.append(parts_of(app))
        hold_to_openapi(app, strays)
        return app

    strays: list[str] = []
    yield make
    assert not strays
    for parts in made:
        parts.close()


def hold_to_openapi(app: Flask, strays: list[str]) -> None:
    """Note in *strays* every answer of *app* that `/openapi.json` does not describe."""
    with app.app_context():
        document = describe(app)
    components = {"components": document["components"]}

    def check(response: Response) -> Response:
        rule = request.url_rule
        if rule is None or rule.endpoint not in ROUTES or request.method in {"HEAD", "OPTIONS"}:
            return response
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        told = document["paths"][path][request.method.lower()]["responses"]
        described = told.get(str(response.status_code))
        where = f"{request.method} {path} {response.status_code}"
        if described is None:
            strays.append(where)
            return response
        strays.extend(
            f"{where} has no {name}"
            for name, header in described["headers"].items()
            if header["required"] and name not in response.headers
        )
        if response.is_json and "content" in described:
            schema = described["content"]["application/json"]["schema"]
            found = jsonschema_rs.Draft202012Validator({**components, **schema})
            strays.extend(
                f"{where}: {error}" for error in found.iter_errors(json.loads(response.get_data()))
            )
        return response

    # The last to look at an answer.
    app.after_request_funcs.setdefault(None, []).insert(0, check)


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


class Service:
    """A real bridge in processes of its own."""

    def __init__(self, environ: Mapping[str, str], folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"service-{self.port}.log"
        self._environ = {**_clean_environment(), **environ}
        self._folder = folder
        self._arguments = arguments
        given = dict(pairwise(arguments))
        self._workers = int(given.get("--workers", 2))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> "Service":
        bind = f"127.0.0.1:{self.port}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bridge", "serve", "--bind", bind, *self._arguments],
                env=self._environ,
                cwd=self._folder,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )
        if wait:
            eventually(self._is_ready, 20)
        return self

    def stop(self) -> int:
        """SIGTERM, as a deployment does it; the exit status."""
        assert self.process
        self.process.terminate()
        return self.process.wait(35)

    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        assert self.process
        master = self.process.pid
        return [
            int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()
        ]

    def kill(self) -> None:
        """Kill -9 of the master and all workers at once."""
        assert self.process
        os.killpg(self.process.pid, 9)
        self.process.wait()

    def _is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log.read_text()
        try:
            # Each worker listens on its own when it is ready.
            return (
                requests.get(f"{self.url}/readyz", timeout=2).ok
                and listeners(self.port) >= self._workers
            )
        except (requests.ConnectionError, requests.Timeout):
            return False

    def webhook(self, **fields: Any) -> requests.Response:
        return requests.post(
            f"{self.url}/webhooks/braze", json=fields, headers=bearer("webhook"), timeout=30
        )

    def lookup(self, what: str, **parameters: Any) -> requests.Response:
        return requests.get(
            f"{self.url}/connected-content/{what}",
            params=parameters,
            headers=bearer("content"),
            timeout=30,
        )

    def health(self) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/health", headers=bearer("admin"), timeout=30)
        found: dict[str, Any] = answer.json()
        return found


MakeService = Callable[..., Service]


@pytest.fixture
def make_service(sandbox: SandboxServer, tmp_path: Path, database: str) -> Iterator[MakeService]:
    """Makes services with real gunicorn; several share one database."""
    made: list[Service] = []

    def make(*arguments: str, wait: bool = True, **more: str) -> Service:
        more = {"BRIDGE_DATABASE_URL": database, **more}
        service = Service(environment(sandbox.url, tmp_path, **more), tmp_path, *arguments)
        made.append(service)
        return service.start(wait=wait)

    yield make
    for service in made:
        if service.process and service.process.poll() is None:
            service.kill()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


def listeners(port: int) -> int:
    """How many sockets listen on *port*, as the kernel tells."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def _clean_environment() -> dict[str, str]:
    """This process's environment without any settings of a real bridge."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BRIDGE_", "SESSIONM_"))
    }
