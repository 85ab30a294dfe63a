"""Two bridges on two hosts behind a load balancer, with one PostgreSQL and one SessionM.

The hosts are network namespaces; where those cannot be had, loopback addresses.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import requests

from bridge.sandbox import Credentials, Sandbox, SandboxServer, serve
from tests.conftest import KEYS, bearer, children_of, eventually, free_port, listeners
from tests.postgres import Server

CUSTOMERS = [f"customer-{number}" for number in range(16)]
# What Braze tries again by itself.
RETRIED = {408, 429, 500, 502, 503, 504}
PORT = 8080


@dataclass(frozen=True)
class Place:
    """Where a bridge runs: its address, and how to reach the services from there.

    *link* is the cable to it, if it is one that can be pulled.
    """

    address: str
    services: str
    command: tuple[str, ...] = ()
    link: str = ""


@contextmanager
def namespace(name: str, number: int) -> Iterator[Place]:
    """A host of its own, with a cable to this one.

    Raises:
        subprocess.CalledProcessError: not here.
    """
    here, there = f"10.77.{number}.1", f"10.77.{number}.2"
    link, far = f"{name}h", f"{name}n"
    ip("netns", "add", name)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{here}/24", "dev", link)
        ip("link", "set", link, "up")
        for words in (
            f"addr add {there}/24 dev {far}",
            f"link set {far} up",
            "link set lo up",
            f"route add default via {here}",
        ):
            ip("-n", name, *words.split())
        yield Place(there, here, ("ip", "netns", "exec", name), link)
    finally:
        ip("netns", "delete", name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def places() -> Iterator[list[Place]]:
    mark = secrets.token_hex(2)
    with ExitStack() as stack:
        try:
            # Numbers of networks that nobody else here is likely to use.
            first = 2 * secrets.randbelow(100) + 20
            found = [stack.enter_context(namespace(f"br{mark}{n}", first + n)) for n in range(2)]
        except (OSError, subprocess.CalledProcessError):
            found = [Place(f"127.0.0.{n}", "127.0.0.1") for n in (2, 3)]
        yield found


class Host:
    """One bridge on one host."""

    def __init__(self, place: Place, database: str, sandbox: str, folder: Path) -> None:
        self.place = place
        self.url = f"http://{place.address}:{PORT}"
        self._folder = folder
        self._environ = {
            "PATH": os.environ["PATH"],
            **Credentials().environment(sandbox),
            **{f"BRIDGE_{scope.upper()}_KEYS": f"test:{key}" for scope, key in KEYS.items()},
            "BRIDGE_DATABASE_URL": database,
            "BRIDGE_SESSIONM_RPS": "500",
            "BRIDGE_TAGS_MAX_AGE": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "bridge", "serve", "--workers", "1"]
        bind = ["--bind", f"{self.place.address}:{PORT}"]
        with (self._folder / f"{self.place.address}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.place.command, *command, *bind],
                env=self._environ,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        eventually(self._is_ready, 30)

    def stop(self) -> int:
        assert self._process
        self._process.terminate()
        return self._process.wait(40)

    def delivers(self) -> bool:
        health = requests.get(f"{self.url}/health", headers=bearer("admin"), timeout=10).json()
        assert self._process
        return health["checks"]["delivery"].get("pid") in children_of(self._process.pid)

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(40)

    def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).ok
        except requests.RequestException:
            return False


@contextmanager
def balancer(addresses: list[str], folder: Path) -> Iterator[str]:
    """The URL of an nginx in front of the bridges."""
    port = free_port()
    servers = "".join(f"server {a}:{PORT} max_fails=0; " for a in addresses)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in kinds)
    configuration = folder / "nginx.conf"
    configuration.write_text(f"""
        daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
        events {{ }}
        http {{
          access_log off; {temporary}
          upstream bridges {{ {servers} keepalive 16; }}
          server {{
            listen 127.0.0.1:{port};
            location / {{
              proxy_pass http://bridges; proxy_http_version 1.1; proxy_set_header Connection "";
              proxy_connect_timeout 1s; proxy_read_timeout 20s;
            }}
          }}
        }}
    """)
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nginx is not installed")
    with subprocess.Popen([program, "-p", folder, "-c", configuration]) as process:
        try:
            eventually(lambda: listeners(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


class Braze:
    """Sends each event until it is acknowledged, and renders messages all the while."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._number = 0
        self._send_id = secrets.token_hex(4)
        self.acknowledged: Counter[str] = Counter()
        self.final: list[str] = []

    @contextmanager
    def at_work(self) -> Iterator[None]:
        jobs = [self._send] * 6 + [self._look] * 3
        threads = [threading.Thread(target=self._work, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _work(self, job: object) -> None:
        assert callable(job)
        with requests.Session() as session:
            while not self._stop.is_set():
                job(session)
                time.sleep(0.1)

    def _send(self, session: requests.Session) -> None:
        with self._lock:
            number, self._number = self._number, self._number + 1
        customer = CUSTOMERS[number % len(CUSTOMERS)]
        dispatch = f"{self._send_id}-{number}"
        event = {"user_id": customer, "tags": ["visits"], "dispatch_id": dispatch}
        while True:
            answer = session.post(
                f"{self._url}/webhooks/braze", json=event, headers=bearer("webhook"), timeout=90
            )
            if answer.ok:
                with self._lock:
                    self.acknowledged[customer] += 1
                return
            if answer.status_code not in RETRIED:
                self.final.append(f"{answer.status_code} {answer.text}")
                return
            time.sleep(0.2)

    def _look(self, session: requests.Session) -> None:
        with self._lock:
            customer = CUSTOMERS[self._number % len(CUSTOMERS)]
        answer = session.get(
            f"{self._url}/connected-content/tags",
            params={"user_id": customer},
            headers=bearer("content"),
            timeout=30,
        )
        if answer.status_code != 200 or answer.json()["status"] != "ok":
            self.final.append(f"{answer.status_code} {answer.text}")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[list[Host], SandboxServer, str]]:
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("several hosts need root")
    with ExitStack() as stack:
        found = stack.enter_context(places())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-test-"))
        server = Server(Path(folder))
        server.make(networks=["10.77.0.0/16"])
        server.start(listen="*")
        stack.callback(server.stop, "immediate")
        sandbox = stack.enter_context(serve(Sandbox(), "0.0.0.0", 0))  # noqa: S104 - for the hosts
        port = sandbox.url.rpartition(":")[2]
        hosts = []
        for place in found:
            database = server.url.replace("127.0.0.1", place.services)
            host = Host(place, database, f"http://{place.services}:{port}", tmp_path)
            stack.callback(host.close)
            host.start()
            hosts.append(host)
        url = stack.enter_context(balancer([place.address for place in found], tmp_path))
        yield hosts, sandbox, url


def test_a_rolling_restart_under_load_loses_nothing_and_a_pulled_cable_neither(
    fleet: tuple[list[Host], SandboxServer, str],
) -> None:
    hosts, sandbox, url = fleet
    for customer in CUSTOMERS:
        sandbox.sandbox.put_customer({"user_id": customer})
    sandbox.sandbox.set_faults({"latency_ms": [1, 30]})
    braze = Braze(url)
    with braze.at_work():
        for host in (*hosts, hosts[0]):
            time.sleep(1)
            assert host.stop() == 0
            host.start()
    assert braze.final == []
    assert sum(braze.acknowledged.values()) > 100
    eventually(partial(has_counted, sandbox, braze.acknowledged), 180)
    if hosts[0].place.link:
        pull_a_cable(hosts, sandbox, url)


def pull_a_cable(hosts: list[Host], sandbox: SandboxServer, url: str) -> None:
    """The host that delivers is cut off: the other one goes on, and alone, when it is back too."""
    before = {customer: sandbox.sandbox.tags(customer)["visits"] for customer in CUSTOMERS}
    [holder] = [host for host in hosts if host.delivers()]
    [standby] = [host for host in hosts if host is not holder]
    braze = Braze(url)
    with braze.at_work():
        ip("link", "set", holder.place.link, "down")
        eventually(standby.delivers, 30)
        ip("link", "set", holder.place.link, "up")
        time.sleep(3)
    assert standby.delivers()
    assert not holder.delivers()
    expected = Counter({c: before[c] + braze.acknowledged[c] for c in CUSTOMERS})
    eventually(partial(has_counted, sandbox, expected), 180)


def has_counted(sandbox: SandboxServer, expected: Counter[str]) -> bool:
    """Whether SessionM has each event once; more would never go away."""
    counted = {customer: sandbox.sandbox.tags(customer).get("visits", 0) for customer in CUSTOMERS}
    assert all(counted[customer] <= expected[customer] for customer in CUSTOMERS)
    return counted == {customer: expected[customer] for customer in CUSTOMERS}
