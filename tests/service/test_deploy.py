"""What stands in deploy/, tried with the programs that will read it."""

import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from json import loads
from os import environ
from pathlib import Path
from typing import Any

import pytest
import requests
from compose_spec import PyCompose
from requests.adapters import HTTPAdapter

from bridge.cli.deliverer import GRACE
from bridge.sandbox import SandboxServer
from bridge.settings import SECRETS, Settings, load
from bridge.web.batches import MAX_FILE
from tests.conftest import ALICE, MakeService, bearer, environment, eventually, free_port, listeners

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HOST = "bridge.acme.com"


def tool(name: str) -> str:
    """A program of this environment or machine; the checks of a change do without none."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{environ['PATH']}:/usr/sbin")
    if not path:
        (pytest.fail if environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return path


def accepted(*command: object, **more: Any) -> None:
    """Run *command*, which must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr


def number(pattern: str, file: str) -> int:
    """The one number that *pattern* finds in a file of deploy/."""
    (found,) = re.findall(pattern, (DEPLOY / file).read_text())
    return int(found)


# The settings, in all of them.

SECRET_URLS = {
    "bridge_database_url": "postgresql://bridge@db.internal/bridge",
    "bridge_alert_url": "https://hooks.example.com/alerts",
}


def secret_value(name: str) -> str:
    """A value that the secret setting *name* accepts."""
    return SECRET_URLS.get(name, f"a:{name}")


def test_every_setting_named_there_exists() -> None:
    names = {name.upper() for name in Settings.model_fields}
    names |= {f"{name.upper()}_FILE" for name in SECRETS}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".txt"]
    found = {
        name
        for path in files
        for name in re.findall(r"\b(?:BRIDGE|SESSIONM)_[A-Z_]+\b", path.read_text())
    }
    assert len(found) > 10
    assert found <= names


@pytest.mark.parametrize("file", ["compose.yaml", "kubernetes/deployment.yaml"])
def test_settings_and_secrets_are_complete(file: str, tmp_path: Path) -> None:
    values = dict(
        re.findall(r"^([A-Z_]+)=(.*)$", (DEPLOY / "bridge.env").read_text(), re.MULTILINE)
    )
    values["BRAZE_REST_URL"] = "https://rest.iad-01.braze.com"
    named = set(re.findall(r"\b([A-Z_]+)_FILE\b", (DEPLOY / file).read_text()))
    assert named - {"POSTGRES_PASSWORD"} == {name.upper() for name in SECRETS}
    for name in SECRETS:
        secret = tmp_path / name
        secret.write_text(secret_value(name))
        values[f"{name.upper()}_FILE"] = str(secret)
    settings = load(values, tmp_path / "none")
    assert settings.offers_on
    assert settings.braze_on
    assert settings.bridge_trusted_proxies == 1


def test_all_wait_longer_than_gunicorn_takes_to_end() -> None:
    assert number(r"TimeoutStopSec=(\d+)", "systemd/bridge.service") > GRACE
    assert number(r"stop_grace_period: (\d+)s\n    read", "compose.yaml") > GRACE
    slept = number(r'"sleep", "(\d+)"', "kubernetes/deployment.yaml")
    waited = number(r"terminationGracePeriodSeconds: (\d+)", "kubernetes/deployment.yaml")
    assert waited > slept + GRACE


# Dockerfile and compose.


def test_hadolint_accepts_the_dockerfile() -> None:
    accepted(tool("hadolint"), DEPLOY / "Dockerfile")


def dockerfile(instruction: str, stage: int) -> list[str]:
    """What follows *instruction*, each time that it stands in the given stage."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = text.split("\nFROM ")[stage].splitlines()
    return [line.removeprefix(instruction) for line in lines if line.startswith(f"{instruction} ")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile's first stage builds, by its own steps, in a folder."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "src"
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for copy in dockerfile("COPY", 1):
        *names, target = copy.split()
        for name in names:
            assert f"!{name}" in sent, f".dockerignore keeps {name} from the build"
            into = source / target
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, into)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, into)
    for step in dockerfile("RUN", 1):
        moved = re.sub(r"(?<= )/(?=opt/|wheels)", f"{folder}/", step)
        accepted("sh", "-ec", moved.replace("python3", sys.executable), cwd=source)
    return folder


def test_its_steps_build_a_bridge_that_serves_is_healthy_and_ends_at_sigterm(
    image: Path, sandbox: SandboxServer, tmp_path: Path
) -> None:
    (entrypoint,), (command,) = dockerfile("ENTRYPOINT", 2), dockerfile("CMD", 2)
    port = str(free_port())
    serve = [part.replace("8080", port) for part in [*loads(entrypoint), *loads(command)]]
    check = loads(dockerfile("HEALTHCHECK", 2)[0].partition(" CMD ")[2].replace("8080", port))
    path = f"{image}/opt/bridge/bin:{environ['PATH']}"
    # A proxy that SessionM is reached through is not asked for the bridge itself.
    values = {
        **environment(sandbox.url, tmp_path),
        "PATH": path,
        "http_proxy": "http://127.0.0.1:9",
    }

    def healthy() -> bool:
        done = subprocess.run(check, env=values, check=False, capture_output=True)
        return done.returncode == 0

    assert not healthy()
    with subprocess.Popen(serve, env=values, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(healthy, 20)
            process.terminate()
            assert process.wait(GRACE + 5) == 0
        finally:
            process.kill()
    assert not healthy()


def test_large_files_of_customers_find_room_in_the_containers() -> None:
    """What they have for temporary files by default is a little memory; the volume is a disk."""
    volume = dockerfile("VOLUME", 2)[0].strip()
    assert re.findall(r"TMPDIR=(\S+)", dockerfile("ENV", 2)[0]) == [volume]
    assert f"- var:{volume}\n" in (DEPLOY / "compose.yaml").read_text()
    kubernetes = (DEPLOY / "kubernetes/deployment.yaml").read_text()
    assert f"- name: var\n              mountPath: {volume}\n" in kubernetes
    assert "TMPDIR" not in (DEPLOY / "compose.yaml").read_text() + kubernetes
    room = number(r"name: var\n +emptyDir:\n +sizeLimit: (\d+)Gi", "kubernetes/deployment.yaml")
    assert room * 1024**3 > 2 * MAX_FILE


def test_what_is_noted_of_a_large_file_stands_where_temporary_files_do(tmp_path: Path) -> None:
    script = (
        "import os; from bridge.bulk.repeats import LastValues\n"
        "with LastValues(memory=64) as noted:\n"
        "    for number in range(20_000): noted.changes(1, str(number))\n"
        "    for file in os.scandir('/proc/self/fd'): print(os.path.realpath(file.path))"
    )
    values = {**environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=True)
    assert f"\n{tmp_path}/" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_compose_is_valid_and_defines_all_that_it_uses() -> None:
    compose = PyCompose.from_yaml((DEPLOY / "compose.yaml").read_text())
    compose.validate_secrets()
    found = compose.to_dict()
    mounts = [mount for service in found["services"].values() for mount in service["volumes"]]
    named = {mount.partition(":")[0] for mount in mounts if not mount.startswith("./")}
    assert named == set(found["volumes"])


def test_the_locked_file_holds_every_dependency_and_that_of_postgresql() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"].get("postgres", [])]
    locked = (DEPLOY / "requirements.txt").read_text()
    for line in needed:
        name = re.split(r"[\[<>=~! ]", line)[0]
        assert f"\n{name}==" in f"\n{locked}", f"{name} is not in deploy/requirements.txt"


# Backups, as docs/deploying.md makes them.


def test_a_backup_made_while_it_runs_is_restored_paused_and_delivers(
    make_service: MakeService, sandbox: SandboxServer, tmp_path: Path
) -> None:
    requests.post(f"{sandbox.url}/sandbox/faults", json={"status": 503}, timeout=9)
    service = make_service()
    (tmp_path / "restored").mkdir()
    restored = {"BRIDGE_DATABASE_URL": f"sqlite:///{tmp_path}/restored/bridge.db"}
    assert service.webhook(user_id=ALICE, braze_campaign_id="c").status_code == 202
    accepted(tool("sqlite3"), tmp_path / "bridge.db", f".backup {tmp_path}/restored/bridge.db")
    service.kill()
    requests.post(f"{sandbox.url}/sandbox/faults", json={}, timeout=9)

    values = {**environ, **environment(sandbox.url, tmp_path), **restored}
    bridge = Path(sys.executable).with_name("bridge")
    accepted(bridge, "queue", "pause", env=values)
    service = make_service(**restored)
    # It says "stopped" until the process that delivers has begun.
    eventually(lambda: service.health()["checks"]["delivery"]["state"] == "paused")
    assert service.health()["checks"]["delivery"]["queued"] == 1
    accepted(bridge, "queue", "resume", env=values)
    eventually(lambda: "braze_campaign_c" in service.lookup("tags", user_id=ALICE).json()["tags"])


# systemd.


def test_systemd_accepts_the_unit_and_finds_it_little_exposed(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    unit = tmp_path / "bridge.service"
    text = (DEPLOY / "systemd/bridge.service").read_text()
    bridge = Path(sys.executable).with_name("bridge")
    unit.write_text(text.replace("/opt/bridge/bin/bridge", str(bridge)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Of 100, where less is better.
    accepted(analyze, "security", "--offline=true", "--threshold=15", unit)


@pytest.mark.parametrize("with_postgresql", [True, False])
def test_the_service_and_bridge_run_read_the_same_settings(
    tmp_path: Path, *, with_postgresql: bool
) -> None:
    for name in SECRETS:
        if with_postgresql or name != "bridge_database_url":
            (tmp_path / f"secrets_{name}").write_text(secret_value(name))
    unit = (DEPLOY / "systemd/bridge.service").read_text()
    run = (DEPLOY / "systemd/bridge-run").read_text()
    [serving] = re.findall(r"^ExecStart=/bin/sh -c '(.*?)'$", unit, re.MULTILINE | re.DOTALL)
    [running] = re.findall(r"/bin/sh -c '(.*?)'", run, re.DOTALL)
    scripts = serving.replace("\\\n", "").replace("$$", "$"), running
    service, commands = (settings_in(script, tmp_path) for script in scripts)
    assert service == commands
    assert service.offers_on
    used = service.bridge_database_url.get_secret_value()
    assert used == (
        SECRET_URLS["bridge_database_url"] if with_postgresql else "sqlite:///var/bridge.db"
    )


def settings_in(script: str, secrets: Path) -> Settings:
    """What the bridge that *script* starts is set to."""
    script = re.sub(r"exec /opt/bridge/bin/bridge .*", "env", script)
    values = dict(
        re.findall(r"^([A-Z_]+)=(.*)$", (DEPLOY / "bridge.env").read_text(), re.MULTILINE)
    )
    # Commented out there, while its key is among the secrets here.
    values["BRAZE_REST_URL"] = "https://rest.iad-01.braze.com"
    given = {"PATH": environ["PATH"], "CREDENTIALS_DIRECTORY": str(secrets), **values}
    answer = subprocess.run(
        ["/bin/sh", "-c", script], env=given, capture_output=True, text=True, check=True
    )
    return load(dict(line.split("=", 1) for line in answer.stdout.splitlines()), secrets / "none")


# Kubernetes.


def test_the_ingress_keeps_files_of_customers_inside_and_lets_webhooks_of_any_size_through() -> (
    None
):
    text = (DEPLOY / "kubernetes/ingress.yaml").read_text()
    paths = re.findall(r"- path: (\S+)", text)
    # Prefix lets a slash at the end through, as the bridge does.
    assert text.count("pathType: Prefix") == len(paths)
    assert [path for path in paths if path.startswith("/batches")] == ["/batches/files"]
    [size] = re.findall(r"client_max_body_size (512k);", (DEPLOY / "nginx/bridge.conf").read_text())
    assert f"nginx.ingress.kubernetes.io/proxy-body-size: {size}" in text


def test_kubernetes_manifests_are_valid_and_all_are_applied() -> None:
    manifests = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    accepted(tool("kubernetes-validate"), "--strict", *manifests)
    listed = re.findall(
        r"^ +- (\S+\.(?:yaml|toml|env))$", (DEPLOY / "kustomization.yaml").read_text(), re.MULTILINE
    )
    assert {DEPLOY / name for name in listed} == {
        *manifests,
        DEPLOY / "bridge.env",
        DEPLOY / "rules.toml",
    }


# nginx, with a real bridge behind it.


class Proxy:
    """nginx with deploy/nginx/bridge.conf, where only addresses and files are this test's."""

    def __init__(self, folder: Path, *upstreams: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        names = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1"]
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", folder / "bridge.key"]
        accepted(tool("openssl"), "req", "-x509", *key, "-out", folder / "bridge.crt", *names)
        text = (DEPLOY / "nginx/bridge.conf").read_text()
        (server,) = re.findall("server 127.0.0.1:8080.*;", text)
        servers = [server.replace("8080", str(port)) for port in upstreams]
        text = text.replace(server, "\n".join(servers))
        text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl")
        text = text.replace("/etc/nginx", str(folder)).replace("/var/log/nginx", str(folder))
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
            f"http {{ {temporary} access_log off;\n{text} }}"
        )

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        command = [tool("nginx"), "-e", "stderr", "-c", str(self.folder / "nginx.conf")]
        accepted(*command, "-t")
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                eventually(lambda: listeners(self.port))
                yield self
            finally:
                process.terminate()

    def call(
        self, method: str, path: str, scope: str = "", *, source: str = "127.0.0.1", **more: Any
    ) -> requests.Response:
        """Call from the address *source*."""
        with requests.Session() as session:
            session.mount("https://", _From(source))
            more["headers"] = {**(bearer(scope) if scope else {}), **more.get("headers", {})}
            verify = str(self.folder / "bridge.crt")
            return session.request(method, self.url + path, timeout=30, verify=verify, **more)

    def written(self) -> str:
        """All that it wrote to its logs."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


class _From(HTTPAdapter):
    def __init__(self, source: str) -> None:
        self._source = source
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, source_address=(self._source, 0), **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "nginx"
    made.mkdir()
    return made


WEBHOOK = {"user_id": ALICE, "braze_campaign_id": "c"}
CALLED_FROM_OUTSIDE = (
    *("/webhooks/braze", "/webhooks/sessionm/message", "/webhooks/sessionm/changed"),
    *("/campaigns/trigger/send", "/canvas/trigger/send"),
)


def code(answer: requests.Response) -> str:
    found: str = answer.json()["errors"]["code"]
    return found


def test_behind_nginx_the_caller_is_who_he_is_and_not_who_he_says(
    make_service: MakeService, folder: Path
) -> None:
    service = make_service(BRIDGE_TRUSTED_PROXIES="1", BRIDGE_ALLOWED_IPS="127.0.0.2")
    with Proxy(folder, service.port).running() as proxy:
        sent = proxy.call("POST", "/webhooks/braze", "webhook", json=WEBHOOK, source="127.0.0.2")
        assert sent.status_code == 202
        assert sent.headers["Strict-Transport-Security"]
        for forged in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            headers = {forged: "for=127.0.0.2" if forged == "Forwarded" else "127.0.0.2"}
            refused = proxy.call(
                "POST", "/webhooks/braze", "webhook", json=WEBHOOK, headers=headers
            )
            assert (refused.status_code, code(refused)) == (403, "address_not_allowed")


def test_nginx_leaves_webhooks_to_the_bridge_and_stops_what_is_absurd(
    make_service: MakeService, folder: Path
) -> None:
    service = make_service(BRIDGE_TRUSTED_PROXIES="1")
    with Proxy(folder, service.port).running() as proxy:

        def webhook(size: int) -> requests.Response:
            body = b'{"filler":"' + b"x" * size + b'"}'
            return proxy.call("POST", "/webhooks/braze", "webhook", data=body)

        kept, absurd = webhook(300 * 1024), webhook(600 * 1024)
        assert (kept.status_code, absurd.status_code) == (413, 413)
        assert (code(kept), code(absurd)) == ("too_large", "too_large")
        # This answer is nginx's own.
        assert absurd.json()["errors"]["message"] == "The body is too large."
        assert absurd.headers["Strict-Transport-Security"]
        ids = {answer.headers["X-Request-Id"] for answer in (kept, absurd)}
        eventually(lambda: ids <= set(proxy.written().split()))
        segment = proxy.call("POST", "/batches", "admin", data=b"user_id\n" * 250_000)
        assert segment.status_code != 413
        lookup = proxy.call("GET", f"/connected-content/offers?user_id={ALICE}", "content")
        assert lookup.json()["count"] > 0


def test_nginx_shows_pages_to_our_own_network_only_and_logs_no_customer(
    make_service: MakeService, folder: Path
) -> None:
    service = make_service(BRIDGE_TRUSTED_PROXIES="1")
    with Proxy(folder, service.port).running() as proxy:
        for path in ("/health", "/metrics", "/dashboard", "/setup", "/", "/api/events", "/batches"):
            method = "POST" if path == "/batches" else "GET"
            outside = proxy.call(method, path, "admin", source="127.0.0.2")
            assert (outside.status_code, code(outside)) == (403, "address_not_allowed"), path
        # It is "degraded" until the process that delivers has begun.
        eventually(lambda: proxy.call("GET", "/health", "admin").json()["status"] == "ok")
        assert proxy.call("GET", "/healthz", source="127.0.0.2").ok
        for path in CALLED_FROM_OUTSIDE:
            for called in (path, f"{path}/"):
                answer = proxy.call("POST", called, source="127.0.0.2")
                assert answer.status_code == 401, called

        tags = f"/priv/v1/apps/bridge/users/{ALICE}/tags"
        offers = f"/connected-content/offers?user_id={ALICE}"
        unguessable = "/batches/unguessable.csv"
        calls = [("/webhooks/braze", "webhook"), (tags, "content"), (offers, "content")]
        for path, scope in [*calls, (unguessable, ""), (f"/unknown/{ALICE}", "")]:
            proxy.call("GET", path, scope)
        service.stop()
        for path, scope in calls:
            away = proxy.call("GET", path, scope)
            assert (away.status_code, code(away)) == (502, "unavailable")
        eventually(lambda: "/connected-content/offers 502" in proxy.written())
        assert ALICE not in proxy.written()
        assert "unguessable" not in proxy.written()


class Mute:
    """Takes requests, counts them, and hangs up without an answer."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                self.calls.append(connection.recv(65536))


def test_nginx_sends_a_webhook_to_no_second_bridge_once_it_was_sent(folder: Path) -> None:
    one, other = Mute(), Mute()
    with Proxy(folder, one.port, other.port).running() as proxy:
        assert proxy.call("POST", "/webhooks/braze", json=WEBHOOK).status_code == 502
        assert len(one.calls + other.calls) == 1
        # A lookup changes nothing, and so may be asked again.
        assert proxy.call("GET", "/connected-content/tags").status_code == 502
        assert len(one.calls + other.calls) == 3
