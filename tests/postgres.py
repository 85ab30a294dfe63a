"""Real PostgreSQL for the tests: databases, servers, and a network that fails."""

import os
import queue
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

SERVER = os.environ.get("BRIDGE_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")


@contextmanager
def fresh_database(template: str = "template0", encoding: str = "UTF8") -> Iterator[str]:
    """The URL of a copy of the database *template*, by default an empty one; dropped afterwards.

    Without a server a test is skipped on a user's machine; the checks of a change skip nothing.
    """
    name = f"bridge_test_{secrets.token_hex(6)}"
    try:
        administrator = psycopg.connect(SERVER, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        answer = f"no PostgreSQL at BRIDGE_TEST_POSTGRES_URL: {error}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(answer)
    with administrator:
        chosen = "" if encoding == "UTF8" else f" ENCODING '{encoding}' LOCALE 'C'"
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE {template}{chosen}".encode())
        try:
            yield urlsplit(SERVER)._replace(path=f"/{name}").geturl()
        finally:
            administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


_VERSIONS = (
    "SELECT schema_version.version, cache_schema_version.version "
    "FROM schema_version, cache_schema_version"
)
_SCHEMA = """
SELECT string_agg(concat_ws(' ', c.relname, c.relkind, a.attname, a.atttypid), ',' ORDER BY
c.relname, a.attnum) FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace
"""
_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class ReusedDatabase:
    """A database for one test after another, each of which finds it as the first one did.

    To empty its tables takes 1 ms of CPU time, to create a database 300 ms.

    Args:
        template: the name of a migrated database without any other row than its versions.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._stack = ExitStack()
        self._create()

    def _create(self) -> None:
        self.url = self._stack.enter_context(fresh_database(self._template))
        with psycopg.connect(self.url) as connection:
            self._state = self._read_state(connection)
            relations = connection.execute(
                "SELECT relname, relkind = 'S' FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')"
            ).fetchall()
        clear = ["DELETE FROM {}", "SELECT setval('{}', 1, false)"]
        self._clear = ";".join(
            clear[is_sequence].format(name)
            for name, is_sequence in relations
            if not name.endswith("schema_version")
        )

    def renew(self) -> None:
        """End all connections, and make it as it was; create another one if that is not enough."""
        with psycopg.connect(self.url) as connection:
            connection.execute(_OTHERS)
            is_as_it_was = self._read_state(connection) == self._state
            if is_as_it_was:
                connection.execute(self._clear.encode())
        if not is_as_it_was:
            self.close()
            self._create()

    def close(self) -> None:
        self._stack.close()

    def _read_state(self, connection: psycopg.Connection) -> list[object]:
        """The names and types of all columns, and the versions."""
        return [connection.execute(query).fetchone() for query in (_SCHEMA, _VERSIONS)]


# Linux gives 32768 and above to outgoing connections, unless it is set to something else.
PORTS = range(10_000, 32_768)


def free_port() -> int:
    """A free port that no outgoing connection takes while a test's service is down."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")


class Server:
    """A server of the test's own, to be stopped, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._folder = folder
        self._data = folder / "data"
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        self._programs = programs[-1] if programs else Path("/usr/bin")

    def make(self, networks: Sequence[str] = ()) -> None:
        """An empty one; *networks* may connect to it too."""
        shutil.chown(self._folder, "postgres")
        self._as_postgres("initdb", "--auth=trust", "--no-sync", "-D", str(self._data))
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {network} trust\n" for network in networks)

    def start(self, listen: str = "127.0.0.1") -> None:
        options = f"-p {self.port} -c listen_addresses={listen} -c unix_socket_directories="
        log = str(self._folder / "log")
        self._as_postgres("pg_ctl", "-w", "-D", str(self._data), "-o", options, "-l", log, "start")

    def stop(self, how: str = "fast") -> None:
        self._as_postgres("pg_ctl", "-w", "-D", str(self._data), "-m", how, "stop")

    def signal(self, number: int) -> None:
        """To the server and every process of it: as a machine that hangs, or goes on."""
        master = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        for pid in (master, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _as_postgres(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*_AS_POSTGRES, str(self._programs / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
        )


class Proxy:
    """The network between a bridge and its database, which can swallow or delay what it carries."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parts._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()
        self._passes = threading.Event()
        self._passes.set()
        # Seconds by which each packet comes later: half of a round trip.
        self.delay = 0.0
        self.round_trips = 0
        self._near: set[socket.socket] = set()
        self._last_speaker: dict[socket.socket, socket.socket] = {}
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        """Carry nothing any more, without closing: both ends stay connected."""
        self._passes.clear()

    def carry(self) -> None:
        """Carry again, also what was held up."""
        self._passes.set()

    def break_all(self) -> None:
        """End all connections."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.carry()
        self.break_all()
        for thread in self._threads:
            thread.join(5)
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(near)
                self._near.add(near)
                self._passes.wait()
                if self._listener.fileno() < 0:
                    near.close()
                    return
                far = socket.create_connection(self._target)
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(far)
                for ends in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pump, args=ends, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        arrivals: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        late = threading.Thread(target=self._deliver, args=(arrivals, target), daemon=True)
        late.start()
        data = b"?"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            if data:
                self._note(source, target)
            # What follows does not wait for what came before: a far way is long, not narrow.
            arrivals.put((time.monotonic() + self.delay, data))
        late.join()
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _note(self, source: socket.socket, target: socket.socket) -> None:
        """Count a round trip where a bridge speaks after it has been answered."""
        if source in self._near:
            if self._last_speaker.get(source) is not source:
                self.round_trips += 1
            self._last_speaker[source] = source
        else:
            self._last_speaker[target] = source

    def _deliver(
        self, arrivals: "queue.SimpleQueue[tuple[float, bytes]]", target: socket.socket
    ) -> None:
        with suppress(OSError):
            while True:
                due, data = arrivals.get()
                if not data:
                    return
                self._passes.wait()
                time.sleep(max(0.0, due - time.monotonic()))
                target.sendall(data)
