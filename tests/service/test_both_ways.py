"""The event loop and plain WSGI give the same answers, to the header, to whatever is sent."""

import base64
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.sandbox import Sandbox, SandboxServer, serve
from tests.conftest import ALICE, KEYS, environment, eventually, free_port, listeners

ROOT = Path(__file__).parents[2]
WEBHOOK, CONTENT, ADMIN = (f"Bearer {KEYS[name]}" for name in ("webhook", "content", "admin"))


def request(
    method: str, target: str, *headers: str, body: bytes = b"", key: str = "", version: str = "1.1"
) -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: bridge.test", *headers]
    if key:
        lines.append(f"Authorization: {key}")
    if body and not any(header.lower().startswith("transfer-") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def webhook(
    body: bytes | str | dict[str, object], *headers: str, key: str = WEBHOOK, query: str = ""
) -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    if not any(header.lower().startswith("content-type") for header in headers):
        headers = ("Content-Type: application/json", *headers)
    return request("POST", f"/webhooks/braze{query}", *headers, body=body, key=key)


def lookup(
    query: str, *headers: str, what: str = "tags", key: str = CONTENT, method: str = "GET"
) -> bytes:
    return request(method, f"/connected-content/{what}{query}", *headers, key=key)


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


GOOD: dict[str, object] = {"user_id": ALICE, "tags": ["x"], "ttl": 600}
FORM = "Content-Type: application/x-www-form-urlencoded"
APP = "/priv/v1/apps/bridge"
BIG = b'{"user_id":"' + b"x" * 300_000 + b'"}'

REQUESTS = {
    # Webhooks: what is taken.
    "campaign": webhook({"user_id": ALICE, "braze_campaign_id": "c1"}),
    "canvas by external id": webhook({"external_id": "loyal-1001", "braze_canvas_id": "v1"}),
    "tags with ttl": webhook(GOOD),
    "counters warn": webhook({"user_id": ALICE, "tags": ["n"]}),
    "first of two": webhook({**GOOD, "dispatch_id": "d1"}),
    "second of two": webhook({**GOOD, "dispatch_id": "d1"}),
    "test send": webhook({**GOOD, "dispatch_id": "dispatch_id_for_unsent_campaign"}),
    "idempotency key": webhook(GOOD, "Idempotency-Key: k1"),
    "idempotency key again": webhook(GOOD, "Idempotency-Key: k1"),
    "ignored fields": webhook({**GOOD, "colour": "red", "größe": 1}),
    "form": webhook(f"user_id={ALICE}&braze_campaign_id=c%202", FORM),
    "text/plain": webhook(GOOD, "Content-Type: text/plain"),
    "charset": webhook(GOOD, "Content-Type: application/json; charset=utf-8"),
    "capital header names": webhook(GOOD, "X-REQUEST-ID: capital"),
    "chunked": request(
        "POST",
        "/webhooks/braze",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        body=chunked(b'{"user_id":"u","t', b'ags":["x"],"ttl":60}'),
        key=WEBHOOK,
    ),
    "basic": webhook(
        GOOD, key="Basic " + base64.b64encode(f"test:{KEYS['webhook']}".encode()).decode()
    ),
    "wait none": webhook(GOOD, query="?wait=0"),
    "prefer other": webhook(GOOD, "Prefer: respond-async"),
    "trailing slash": webhook(GOOD, query="/"),
    "unknown query": webhook(GOOD, query="?a=b"),
    "absolute form": request(
        "POST",
        "http://bridge.test/webhooks/braze",
        "Content-Type: application/json",
        body=json.dumps(GOOD).encode(),
        key=WEBHOOK,
    ),
    "http/1.0": request(
        "POST",
        "/webhooks/braze",
        "Content-Type: application/json",
        body=json.dumps(GOOD).encode(),
        key=WEBHOOK,
        version="1.0",
    ),
    "expect": webhook(GOOD, "Expect: 100-continue"),
    # Webhooks: what is refused.
    "empty": webhook(b""),
    "half json": webhook('{"user_id": "a'),
    "no utf-8": webhook(b'{"user_id":"\xff"}'),
    "xml": webhook("<a/>", "Content-Type: application/xml"),
    "no type": request("POST", "/webhooks/braze", body=b"<a/>", key=WEBHOOK),
    "bad idempotency key": webhook(GOOD, "Idempotency-Key: " + "k" * 300),
    "latin-1 idempotency key": webhook(GOOD, "Idempotency-Key: caf\xe9"),
    "too large": webhook(BIG),
    "too large chunked": request(
        "POST",
        "/webhooks/braze",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        body=chunked(*(BIG[i : i + 9000] for i in range(0, len(BIG), 9000))),
        key=WEBHOOK,
    ),
    "just too large": webhook(b" " * (256 * 1024 + 1)),
    "not too large": webhook(json.dumps(GOOD).encode().ljust(256 * 1024)),
    "bad wait": webhook(GOOD, query="?wait=soon"),
    "bad wait after a bad body": webhook("nonsense", query="?wait=soon"),
    # Who may not.
    "webhook without key": webhook(GOOD, key=""),
    "webhook with a wrong key": webhook(GOOD, key="Bearer nothing"),
    "webhook with another scope": webhook(GOOD, key=CONTENT),
    "webhook with junk": webhook(GOOD, key="Basic !!!"),
    "webhook with latin-1": webhook(GOOD, key="Bearer caf\xe9"),
    "two keys": webhook(GOOD, f"Authorization: {WEBHOOK}", key=WEBHOOK),
    "malformed without key": webhook("nonsense", key=""),
    "lookup without key": lookup(f"?user_id={ALICE}", key=""),
    "lookup with a webhook key": lookup(f"?user_id={ALICE}", key=WEBHOOK),
    "admin without key": request("GET", "/health"),
    # Names of requests.
    "named": webhook(GOOD, "X-Request-Id: the-name.1"),
    "named twice": webhook(GOOD, "X-Request-Id: a", "X-Request-Id: b"),
    # Methods and paths.
    "get a webhook": request("GET", "/webhooks/braze", key=WEBHOOK),
    "put a webhook": request("PUT", "/webhooks/braze", body=b"{}", key=WEBHOOK),
    "options": request("OPTIONS", "/webhooks/braze", key=WEBHOOK),
    "head of a webhook": request("HEAD", "/webhooks/braze", key=WEBHOOK),
    "unknown path": request("GET", "/nothing", key=ADMIN),
    "unknown path with a body": request("POST", "/nothing", body=b"{}"),
    "root twice": request("GET", "//connected-content/tags", key=CONTENT),
    "dots": request("GET", "/connected-content/../healthz", key=CONTENT),
    "encoded slash": request("GET", f"{APP}/users/a%2Fb/tags", key=CONTENT),
    "encoded dots": request("GET", f"{APP}/users/%2e%2e/tags", key=CONTENT),
    "encoded utf-8": request("GET", f"{APP}/users/caf%C3%A9/tags", key=CONTENT),
    "encoded latin-1": request("GET", f"{APP}/users/caf%E9/tags", key=CONTENT),
    "encoded nul": request("GET", f"{APP}/users/a%00b/tags", key=CONTENT),
    "bad escape": request("GET", f"{APP}/users/a%zz/tags", key=CONTENT),
    "absolute lookup": request(
        "GET", f"http://elsewhere/connected-content/tags?user_id={ALICE}", key=CONTENT
    ),
    "asterisk": request("OPTIONS", "*"),
    # Lookups.
    "tags": lookup(f"?user_id={ALICE}"),
    "tags again": lookup(f"?user_id={ALICE}"),
    "tags once more": lookup(f"?user_id={ALICE}"),
    "head of tags": lookup(f"?user_id={ALICE}", method="HEAD"),
    "tags with a body": request(
        "GET", f"/connected-content/tags?user_id={ALICE}", body=b"{}", key=CONTENT
    ),
    "tags conditional": lookup(f"?user_id={ALICE}", 'If-None-Match: W/"none"'),
    "tags for all": lookup(f"?user_id={ALICE}", "If-None-Match: *"),
    "tags in a range": lookup(f"?user_id={ALICE}", "Range: bytes=0-3"),
    "tags posted": request(
        "POST",
        "/connected-content/tags",
        "Content-Type: application/json",
        body=json.dumps({"user_id": ALICE}).encode(),
        key=CONTENT,
    ),
    "offers": lookup(f"?user_id={ALICE}", what="offers"),
    "tags by external id": lookup("?external_id=loyal-1001"),
    "customer": lookup("?external_id=loyal-1001", what="customer"),
    "unknown customer": lookup("?user_id=nobody"),
    "plus and percent": lookup("?user_id=a+b%20c%2B"),
    "query in latin-1": lookup("?user_id=%e9"),
    "no customer asked": lookup(""),
    "unknown parameter": lookup("?user_id=a&b=c"),
    "unrendered": lookup("?user_id={{${user_id}}}".replace("{", "%7B").replace("}", "%7D")),
    "sessionm's tags": request("GET", f"{APP}/users/{ALICE}/tags", key=CONTENT),
    "sessionm's write": request(
        "POST",
        f"{APP}/users/{ALICE}/tags",
        "Content-Type: application/json",
        body=b'{"tags":["q"],"ttl":60}',
        key=WEBHOOK,
    ),
    "wrong api key": request("GET", f"/priv/v1/apps/other/users/{ALICE}/tags", key=CONTENT),
    "healthz": request("GET", "/healthz"),
    "head of healthz": request("HEAD", "/healthz"),
    "upgrade": request("GET", "/healthz", "Upgrade: websocket", "Connection: Upgrade"),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxServer]:
    with serve(Sandbox(), port=0) as server:
        yield server


@pytest.fixture(scope="module")
def ports(
    sandbox: SandboxServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, int]]:
    """The same service by `bridge serve` and as plain WSGI. Nothing is delivered meanwhile."""
    commands = {
        "loop": ["bridge", "serve", "--workers", "1", "--bind"],
        "wsgi": ["gunicorn", "--chdir", str(ROOT), "app:app", "--threads", "8", "--bind"],
    }
    found, processes = {}, []
    for name, command in commands.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = free_port()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *command, f"127.0.0.1:{found[name]}"],
                env={**environment(sandbox.url, folder, BRIDGE_SESSIONM_RPS="0.01"), "PATH": ""},
                cwd=folder,
                stderr=subprocess.DEVNULL,
            )
        )
    for port in found.values():
        eventually(lambda: listeners(port), 60)  # noqa: B023 - called at once
    yield found
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(35)


def answer(port: int, request: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and body as they came; what each answer has for itself is made equal."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        reader = connection.makefile("rb")
        status = reader.readline()
        while status.startswith(b"HTTP/1.1 100"):
            reader.readline()
            status = reader.readline()
        headers = {}
        while line := reader.readline().strip():
            name, _, value = line.decode("latin-1").partition(": ")
            name = name.lower()
            assert name not in headers
            headers[name] = value
        body = (
            b""
            if request.startswith(b"HEAD")
            else reader.read(int(headers.get("content-length", 0)))
        )
    for name in ("date", "server", "connection"):
        headers.pop(name, None)
    found = re.sub(r'("id":\s?)"[0-9a-f]{32}"', r'\1"…"', body.decode())
    found = re.sub(r'"expires":{[^}]*}', '"expires":{…}', found)
    found = re.sub(r'("age":|"as_of":"|"age": )[0-9TZ:-]+', r"\1…", found)
    if re.fullmatch("[0-9a-f]{32}", headers.get("x-request-id", "")):
        headers["x-request-id"] = "…"
    if "allow" in headers:
        headers["allow"] = ", ".join(sorted(headers["allow"].split(", ")))
    if "age" in headers:
        headers["age"] = "…"
        # Times of expiry, which two services do not share, belong to the version.
        assert headers["etag"].startswith('W/"')
        headers["etag"] = "…"
        headers["content-length"] = "…"
    if "cache-status" in headers:
        headers["cache-status"] = re.sub(r"ttl=-?\d+", "ttl=…", headers["cache-status"])
    return int(status.split()[1]), headers, found


def test_both_ways_answer_alike_and_keep_the_same_events(ports: dict[str, int]) -> None:
    """Also what was accepted and what was rejected, with bodies and reasons."""
    for name, each in REQUESTS.items():
        loop, wsgi = (answer(port, each) for port in ports.values())
        assert loop == wsgi, name
        assert loop[1]["x-request-id"]
    kept = []
    for port in ports.values():
        listed = answer(port, request("GET", "/api/events?limit=500", key=ADMIN))[2]
        events = json.loads(listed)["events"]
        for event in events:
            del event["received_at"], event["request_id"]
            event["done_at"] = bool(event["done_at"])
        kept.append(events)
    assert kept[0] == kept[1]
    assert {event["state"] for event in kept[0]} == {"queued", "rejected"}
