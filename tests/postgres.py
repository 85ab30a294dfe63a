"""Real PostgreSQL for the tests: databases, servers, and a network that fails."""

import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

SERVER = os.environ.get("BRIDGE_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")


@contextmanager
def fresh_database(server: str = SERVER) -> Iterator[str]:
    """The URL of an empty database on *server*, dropped afterwards.

    Without a server a test is skipped on a user's machine; the checks of a change skip nothing.
    """
    name = f"bridge_test_{secrets.token_hex(6)}"
    try:
        administrator = psycopg.connect(server, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        told = f"no PostgreSQL at BRIDGE_TEST_POSTGRES_URL: {error}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    with administrator:
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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
        # Seconds by which each packet comes later.
        self.delay = 0.0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        """Carry nothing any more, and tell nobody: both ends stay connected."""
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
                self._open.append(near)
                self._passes.wait()
                if self._listener.fileno() < 0:
                    near.close()
                    return
                far = socket.create_connection(self._target)
                self._open.append(far)
                for ends in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pump, args=ends, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._passes.wait()
                time.sleep(self.delay)
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
