"""`/openapi.json` is true: a generator that reads nothing else finds no answer it does not tell."""

import re
import subprocess
import sys
from pathlib import Path

from flask import Flask

from bridge.web.openapi import OF_PAGES, ROUTES, describe
from tests.conftest import MakeService

CONFIG = Path(__file__).with_name("schemathesis.toml")
# One key that opens everything, so that one run can go from the webhook to the event.
EVERYTHING = "the-key-to-everything"
# The same cases in every run; a longer search is a matter of these two.
SEED = "7"
CASES = "12"
RUNS = (
    ("--phases", "coverage,fuzzing", "--include-tag", "webhooks"),
    ("--phases", "coverage,fuzzing", "--include-tag", "content"),
    ("--phases", "coverage,fuzzing", "--include-tag", "dropin"),
    ("--phases", "coverage,fuzzing", "--exclude-tag-regex", "webhooks|content|dropin"),
    ("--phases", "stateful"),
)


def test_every_route_of_the_application_is_described(app: Flask) -> None:
    with app.app_context():
        document = describe(app)
    assert {rule.endpoint for rule in app.url_map.iter_rules()} == set(ROUTES) | OF_PAGES
    described = sum(len(methods) for methods in document["paths"].values())
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint not in OF_PAGES]
    routes = sum(len((rule.methods or set()) - {"HEAD", "OPTIONS"}) for rule in rules)
    assert described == routes
    ids = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(set(ids)) == len(ids)


# The last two carry a token of a job's in their URL.
OPEN = {
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/batches/files/{token}.csv",
    "/webhooks/sessionm/batch",
}


def test_every_guarded_route_tells_its_refusals(app: Flask) -> None:
    with app.app_context():
        document = describe(app)
    error = {"$ref": "#/components/schemas/Error"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path in OPEN:
                assert "security" not in operation
                continue
            assert operation["security"] == [{"bearer": []}, {"basic": []}], (path, method)
            for status in ("401", "403"):
                told = operation["responses"][status]
                assert told["content"]["application/json"]["schema"] == error
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_schemathesis_finds_nothing_that_is_not_told(
    make_service: MakeService, tmp_path: Path
) -> None:
    keys = {f"BRIDGE_{scope}_KEYS": f"t:{EVERYTHING}" for scope in ("WEBHOOK", "CONTENT", "ADMIN")}
    service = make_service(**keys)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
        f"{service.url}/openapi.json",
        *("--header", f"Authorization: Bearer {EVERYTHING}", "--seed", SEED, "--no-color"),
        *("--max-examples", CASES, "--generation-database", "none"),
    ]
    # Processes: its own threads trip over each other in Python 3.11's ast.
    running = [
        subprocess.Popen(
            [*command, *chosen],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for chosen in RUNS
    ]
    told = [process.communicate(timeout=300)[0] for process in running]
    for process, text in zip(running, told, strict=True):
        assert process.returncode == 0, text
    assert sum(int(found) for text in told for found in re.findall(r"(\d+) generated", text)) > 500
    assert '"action": "fault"' not in service.log.read_text()
