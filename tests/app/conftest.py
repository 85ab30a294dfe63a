"""The application in this process, each of whose answers is held against openapi.json."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from flask import Flask, Response, request
from flask.testing import FlaskClient
from jinja2 import BytecodeCache, FileSystemBytecodeCache

from bridge.application import create_app
from bridge.outbox.clocks import HEARTBEAT_FACTS
from bridge.outbox.delivery import Intervals
from bridge.parts import Parts, parts_of, start
from bridge.sandbox import SandboxServer
from bridge.settings import load
from bridge.web.openapi import describe, path_of
from tests.conftest import MakeApp, Provide, environment, eventually

# Nobody waits for a round of the loop longer than necessary.
INTERVALS = Intervals(poll=0.05, standby=0.05, heartbeat=0.2)


class Described:
    """What openapi.json says; it and its validators are made once, for all applications."""

    def __init__(self) -> None:
        self._document: dict[str, Any] = {}
        self._validators: dict[tuple[str, str, int], jsonschema_rs.Draft202012Validator] = {}

    def hold(self, app: Flask, strays: list[str]) -> None:
        """Note in *strays* every answer of *app* that is not described."""
        if not self._document:
            with app.app_context():
                self._document = describe(app)

        def check(response: Response) -> Response:
            strays.extend(self._faults(response))
            return response

        # The last to look at an answer.
        app.after_request_funcs.setdefault(None, []).insert(0, check)

    def _faults(self, response: Response) -> Iterator[str]:
        rule = request.url_rule
        path = path_of(rule) if rule else ""
        operation = self._document["paths"].get(path, {}).get(request.method.lower())
        if operation is None:
            return
        answers = operation["responses"]
        described = answers.get(str(response.status_code))
        where = f"{request.method} {path} {response.status_code}"
        if described is None:
            yield where
            return
        for name, header in described["headers"].items():
            if header["required"] and name not in response.headers:
                yield f"{where} has no {name}"
        if response.is_json and "content" in described:
            key = (request.method, path, response.status_code)
            if key not in self._validators:
                schema = described["content"]["application/json"]["schema"]
                components = {"components": self._document["components"]}
                self._validators[key] = jsonschema_rs.Draft202012Validator({**components, **schema})
            for error in self._validators[key].iter_errors(json.loads(response.get_data())):
                yield f"{where}: {error}"


@pytest.fixture(scope="session")
def described() -> Described:
    return Described()


@pytest.fixture(scope="session")
def compiled_templates(tmp_path_factory: pytest.TempPathFactory) -> BytecodeCache:
    """The compiled templates of the pages, for all applications."""
    return FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))


@pytest.fixture
def make_app(
    sandbox: SandboxServer,
    tmp_path: Path,
    database: str,
    provide: Provide,
    described: Described,
    compiled_templates: BytecodeCache,
) -> Iterator[MakeApp]:
    """Makes applications on one database; without ``deliver=True`` nothing is delivered."""
    made: list[Parts] = []
    strays: list[str] = []

    def make(*, deliver: bool = False, **more: str) -> Flask:
        # Lookups have time on a busy machine, too, where no test is about their deadline.
        more = {"BRIDGE_DATABASE_URL": database, "BRIDGE_LOOKUP_DEADLINE": "10", **more}
        provide(more["BRIDGE_DATABASE_URL"])
        settings = load(environment(sandbox.url, tmp_path, **more), tmp_path / "none")
        app = create_app(settings, deliver=deliver, intervals=INTERVALS)
        app.jinja_env.bytecode_cache = compiled_templates
        start(app)
        made.append(parts_of(app))
        described.hold(app, strays)
        return app

    yield make
    # Ends calls that hang: closing waits for them.
    sandbox.stop()
    for parts in made:
        parts.close()
    assert not strays


def take_store_away(app: Flask, folder: Path) -> None:
    """Put a folder in the place of the SQLite file of *app*."""
    parts_of(app).store.database.close()

    def is_replaced() -> bool:
        # A thread in the background may create the file again in between.
        for path in folder.glob("bridge.db*"):
            path.unlink(missing_ok=True)
        with suppress(FileExistsError):
            (folder / "bridge.db").mkdir()
        return (folder / "bridge.db").is_dir()

    eventually(is_replaced)


def goes_round(parts: Parts) -> None:
    """Wait until the delivery loop has looked at everything again: two signs of life."""
    name = HEARTBEAT_FACTS[parts.store.direction]
    for _ in range(2):
        before = parts.store.fact(name)
        eventually(lambda before=before: parts.store.fact(name) != before)  # type: ignore[misc]


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
