"""What all tests share: constants, helpers, and real parts. Each folder has more of its own."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import requests
import sqlalchemy
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bridge import clock
from bridge.outbox.model import State
from bridge.outbox.store import Store
from bridge.sandbox import Credentials, Sandbox, SandboxServer, serve
from bridge.settings import load
from bridge.shared import open_shared
from tests.commands import Command
from tests.postgres import ReusedDatabase, fresh_database
from tests.postgres import free_port as free_port  # noqa: PLC0414 - for the tests as well

# No deadline: a busy machine is slow, not wrong. `--hypothesis-profile=long` tries more.
hypothesis.settings.register_profile("bridge", deadline=None, max_examples=50)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("bridge")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for each processor, since most tests wait for other processes; none for single files.

    Those of tests/unit wait for nothing: one for each processor.
    """
    folders = [path for argument in config.args if (path := Path(argument)).is_dir()]
    each = 1 if all(path.name == "unit" for path in folders) else 2
    return each * (os.cpu_count() or 1) if folders else 0


# Modules with tests of 15 to 150 s, most of which is waiting; the longest one first.
LONG = (
    "test_openapi",
    "test_hosts",
    "test_deploy",
    "test_crash",
    "test_soak",
    "test_watch",
    "test_rotation",
    "test_takeover",
    "test_bulk",
    "test_alerts",
    "test_read_back",
    "test_storage",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each process begin with some of the long tests, and none end with one.

    pytest-xdist gives each process an equal part of the list, in its order.
    """
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    long = sorted(
        (item for item in items if item.path.stem in LONG),
        key=lambda item: LONG.index(item.path.stem),
    )
    others = [item for item in items if item.path.stem not in LONG]
    size = -(-len(others) // workers)
    items[:] = [
        item
        for number in range(workers)
        for item in (*long[number::workers], *others[number * size : (number + 1) * size])
    ]


ALICE = "a3f1c2d4-0b5e-4c6f-8a71-92b3c4d5e601"
SEED_CUSTOMER = "00000000-0000-0000-0000-000000000000"
KEYS = {
    "webhook": "the-webhook-secret",
    "content": "the-content-secret",
    "viewer": "the-viewer-secret",
    "trigger": "the-trigger-secret",
    "admin": "the-admin-secret",
}


def bearer(scope: str) -> dict[str, str]:
    """The header that opens *scope*."""
    return {"Authorization": f"Bearer {KEYS[scope]}"}


def stored_state(store: Store, event_id: str) -> State | None:
    """The state of an event; ``None`` if there is no such event."""
    return store.states_of([event_id]).get(event_id)


T = TypeVar("T")


def eventually(look: Callable[[], T], seconds: float = 60.0) -> T:
    """Return the first truthy value of *look*; fail the test if there is none in time.

    Args:
        look: asked 100 times a second at first and 10 times later: what is asked has work to do.
        seconds: by default more than a busy machine takes; fewer where being prompt is the promise.
    """
    began = time.monotonic()
    while not (found := look()):
        waited = time.monotonic() - began
        assert waited < seconds, f"did not happen within {seconds} s"
        time.sleep(min(max(0.01, waited / 8), 0.1))
    return found


@dataclass
class Lag:
    """By how many seconds this machine woke a sleeping thread too late, at worst."""

    worst: float = 0.0


@contextmanager
def machine_lag() -> Iterator[Lag]:
    """Measure how late this machine is meanwhile, which no deadline of a bridge can prevent."""
    lag, over = Lag(), threading.Event()

    def measure() -> None:
        while not over.is_set():
            began = time.monotonic()
            time.sleep(0.01)
            lag.worst = max(lag.worst, time.monotonic() - began - 0.01)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield lag
    finally:
        over.set()
        thread.join()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let a block take *seconds*, and the time for which this machine was late meanwhile."""
    began = time.monotonic()
    with machine_lag() as lag:
        yield
        took = time.monotonic() - began
    assert took < seconds + 2 * lag.worst


def post(client: FlaskClient, **fields: Any) -> TestResponse:
    """Send a webhook, ALICE's unless it says otherwise."""
    return client.post(
        "/webhooks/braze", json={"user_id": ALICE, **fields}, headers=bearer("webhook")
    )


def answered(ask: Callable[[], TestResponse]) -> TestResponse:
    """The answer to *ask*, which is asked again after a 503, as Braze does.

    The database of a busy machine may be too slow once.
    """
    [answer] = eventually(lambda: [one for one in [ask()] if one.status_code != 503])
    return answer


def send(client: FlaskClient, *, again: bool = False, **fields: Any) -> str:
    """As `post` what must be accepted, or be known *again*; its event's id."""
    answer = answered(lambda: post(client, **fields))
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_marked = metafunc.definition.get_closest_marker("both_databases") is not None
    if "database" in metafunc.fixturenames and is_marked:
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def migrated_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bridge's files as its first start makes them; to be copied."""
    folder = tmp_path_factory.mktemp("migrated")
    _migrate(folder)
    return folder


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReusedDatabase]:
    """A PostgreSQL database as a bridge's first start makes it, for one test after another."""
    folder = tmp_path_factory.mktemp("template")
    with fresh_database() as url:
        _migrate(folder, BRIDGE_DATABASE_URL=url)
        with closing(ReusedDatabase(template=url.rpartition("/")[2])) as made:
            yield made


def _migrate(folder: Path, **more: str) -> None:
    nowhere = environment("http://127.0.0.1:9", folder, **more)
    open_shared(load(nowhere, folder / "none")).close()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the test's own: a SQLite file, unless the test asks for another."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path}/bridge.db"
    else:
        reused: ReusedDatabase = request.getfixturevalue("migrated_database")
        yield reused.url
        reused.renew()


LetPass = Callable[[float], None]


@pytest.fixture
def let_pass(monkeypatch: pytest.MonkeyPatch) -> LetPass:
    """Lets seconds pass at once for the applications of this process."""

    def forward(seconds: float) -> None:
        steady, now = clock.steady, clock.now
        monkeypatch.setattr(clock, "steady", lambda: steady() + seconds)
        monkeypatch.setattr(clock, "now", lambda: now() + seconds)

    return forward


Provide = Callable[[str], None]


@pytest.fixture
def provide(migrated_files: Path, tmp_path: Path) -> Provide:
    """Puts migrated files where the test's bridge will look for them, unless there are some."""

    def copy(url: str) -> None:
        if url == f"sqlite:///{tmp_path}/bridge.db" and not list(tmp_path.glob("bridge.db*")):
            shutil.copytree(migrated_files, tmp_path, dirs_exist_ok=True)

    return copy


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    """What another process sees in the database."""
    engine = sqlalchemy.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]
    finally:
        engine.dispose()


MakeApp = Callable[..., Flask]


class Service:
    """A real bridge in processes of its own."""

    def __init__(self, environ: Mapping[str, str], folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"service-{self.port}.log"
        self.environ = {**_clean_environment(), **environ}
        self.folder = folder
        self._arguments = arguments
        given = dict(pairwise(arguments))
        self._workers = int(given.get("--workers", 2))
        self.process: Command | None = None

    def start(self, *, wait: bool = True) -> "Service":
        bind = f"127.0.0.1:{self.port}"
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self.process = Command(
                *("serve", "--bind", bind, *self._arguments),
                env=self.environ,
                cwd=self.folder,
                stdin=nothing,
                stdout=log,
                stderr=log,
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
        return [pid for pid in self.children() if listens(pid)]

    def deliverers(self) -> list[int]:
        """The process ids of the children that listen nowhere."""
        return [pid for pid in self.children() if not listens(pid)]

    def children(self) -> list[int]:
        """The process ids of all children of gunicorn's master."""
        assert self.process
        return children_of(self.process.pid)

    def kill(self) -> None:
        """Kill -9 of the master and all workers at once."""
        assert self.process
        os.killpg(self.process.pid, 9)
        self.process.wait()
        # A worker may end a moment after the master.
        eventually(lambda: not listeners(self.port))

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
def make_service(
    sandbox: SandboxServer, tmp_path: Path, database: str, provide: Provide
) -> Iterator[MakeService]:
    """Makes services with real gunicorn; several share one database.

    One that is *public* can be reached by SessionM.
    """
    made: list[Service] = []

    def make(*arguments: str, wait: bool = True, public: bool = False, **more: str) -> Service:
        more = {"BRIDGE_DATABASE_URL": database, **more}
        provide(more["BRIDGE_DATABASE_URL"])
        service = Service(environment(sandbox.url, tmp_path, **more), tmp_path, *arguments)
        if public:
            service.environ["BRIDGE_PUBLIC_URL"] = service.url
        made.append(service)
        return service.start(wait=wait)

    yield make
    for service in made:
        if service.process and service.process.poll() is None:
            service.kill()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


@pytest.fixture(scope="module")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, migrated_files: Path
) -> Iterator[Service]:
    """One service for those tests of a file that neither stop it nor depend on its events."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(migrated_files, folder, dirs_exist_ok=True)
    with serve(Sandbox(), port=0) as sandbox:
        service = Service(environment(sandbox.url, folder), folder)
        try:
            yield service.start()
        finally:
            service.kill()


def listeners(port: int) -> int:
    """How many sockets listen on *port*, as the kernel reports it."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def children_of(pid: int) -> list[int]:
    """The process ids of the running children of a process, whichever of its threads made them."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for one in threads for child in (one / "children").read_text().split()]
    return [child for child in children if _runs(child)]


def _runs(pid: int) -> bool:
    """Whether a process runs: one that was killed stays a child until its parent has noticed."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def listens(pid: int) -> bool:
    """Whether one of the process's sockets takes connections."""
    try:
        table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        files = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        # It has just ended.
        return False
    waiting = {row[9] for row in map(str.split, table) if row[3] == "0A"}
    for file in files:
        with suppress(OSError):
            if file.readlink().name.removeprefix("socket:[").rstrip("]") in waiting:
                return True
    return False


def _clean_environment() -> dict[str, str]:
    """This process's environment without any settings of a real bridge."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BRIDGE_", "SESSIONM_", "BRAZE_"))
    }
