"""`/openapi.json` is true: a generator that reads nothing else finds no answer it does not name."""

import re
import subprocess
import sys
from pathlib import Path

from bridge.web.openapi import TAGS
from tests.conftest import MakeService

CONFIG = Path(__file__).with_name("schemathesis.toml")
# One key that opens everything, so that one run can go from the webhook to the event.
EVERYTHING = "the-key-to-everything"
# The same cases in every run; a longer search is a matter of these two.
SEED = "7"
CASES = "12"
MACHINES = "|".join(TAGS[name].name for name in ("webhooks", "content", "dropin"))
RUNS = (
    ("--phases", "coverage,fuzzing", "--include-tag-regex", MACHINES),
    ("--phases", "coverage,fuzzing", "--exclude-tag-regex", MACHINES),
    ("--phases", "stateful"),
)


def test_schemathesis_finds_nothing_that_is_not_described(
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
    outputs = [process.communicate(timeout=300)[0] for process in running]
    for process, text in zip(running, outputs, strict=True):
        assert process.returncode == 0, text
    assert (
        sum(int(found) for text in outputs for found in re.findall(r"(\d+) generated", text)) > 500
    )
    assert '"action": "fault"' not in service.log.read_text()
