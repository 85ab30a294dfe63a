"""`bridge warm`: a segment's lookups are there before its send."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.sandbox import SandboxServer
from tests.commands import run_bridge
from tests.conftest import MakeApp, Provide, bearer, environment, eventually


class Warm:
    def __init__(self, sandbox: SandboxServer, folder: Path, database: str) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.file = folder / "segment.csv"
        self.environment = {
            **os.environ,
            **environment(sandbox.url, folder, BRIDGE_DATABASE_URL=database),
        }

    def segment(self, *customers: str) -> None:
        for customer in customers:
            self.sandbox.sandbox.put_customer({"user_id": customer})
        self.file.write_text("Braze ID,user_id\n" + "".join(f"x,{c}\n" for c in customers))

    def start(self, *options: str, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "bridge", "warm", str(self.file), *options],
            env={**self.environment, **more},
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *options: str, **more: str) -> tuple[int, str, str]:
        arguments = ("warm", str(self.file), *options)
        environ = {**self.environment, **more}
        ended = run_bridge(*arguments, env=environ, cwd=self.folder, timeout=150)
        return ended.returncode, ended.stdout, ended.stderr

    def reads(self) -> int:
        return self.sandbox.sandbox.counts().get("tags_read", 0)


@pytest.fixture
def warm(sandbox: SandboxServer, tmp_path: Path, database: str, provide: Provide) -> Warm:
    provide(database)
    return Warm(sandbox, tmp_path, database)


@pytest.mark.both_databases
def test_what_was_warmed_is_a_hit_in_the_running_bridge(warm: Warm, make_app: MakeApp) -> None:
    warm.segment("c1", "c2", "c3")
    status, out, _ = warm.run("--tags")
    assert (status, warm.reads()) == (0, 3)
    assert "3 fetched" in out
    answer = (
        make_app()
        .test_client()
        .get("/connected-content/tags?user_id=c2", headers=bearer("content"))
    )
    assert "; hit" in answer.headers["Cache-Status"]
    assert warm.reads() == 3


def test_offers_are_warmed_too_and_what_is_fresh_is_not_fetched_again(warm: Warm) -> None:
    warm.segment("c1", "c2")
    assert warm.run()[0] == 0
    assert warm.sandbox.sandbox.counts()["offers"] == 2
    status, out, _ = warm.run()
    assert status == 0
    assert "2 were fresh" in out
    assert warm.sandbox.sandbox.counts()["offers"] == 2


def test_a_culture_is_read_as_lookups_read_it(warm: Warm, make_app: MakeApp) -> None:
    warm.segment("c1")
    assert warm.run("--offers", "--culture", "en_us")[0] == 0
    path = "/connected-content/offers?user_id=c1"
    answer = make_app().test_client().get(path, headers=bearer("content"))
    assert "; hit" in answer.headers["Cache-Status"]
    status, _, err = warm.run("--offers", "--culture", "english!")
    assert (status, "culture must look like en-US" in err) == (1, True)


def test_a_spreadsheets_file_is_read_and_what_it_spoilt_is_named(warm: Warm) -> None:
    warm.segment("00123")
    lines = [
        "\ufeffsep=;",
        '"Braze ID, or not";user_id',
        'x;="00123"',
        "x;#N/A",
        "x;1.23457E+15",
        "",
    ]
    warm.file.write_bytes("\r\n".join(lines).encode())
    status, out, err = warm.run("--tags")
    assert (status, warm.reads()) == (0, 1)
    assert "1 fetched" in out
    assert '2 lines refused; line 4: the line names no customer: user_id is "#N/A".' in err


def test_each_option_adds_its_lookups(warm: Warm) -> None:
    warm.segment("c1", "c2")
    assert "tags and offers" in warm.run("--tags", "--offers")[1]
    counts = warm.sandbox.sandbox.counts()
    assert (counts["tags_read"], counts["offers"]) == (2, 2)
    assert "2 customers, offers:" in warm.run("--offers", "--restart")[1]


def test_the_rate_is_kept(warm: Warm) -> None:
    warm.segment(*(f"c{number}" for number in range(20)))
    warm.run("--tags", "--rps", "10")
    calls = [call["at"] for call in warm.sandbox.sandbox.calls(match="/tags$")]
    assert len(calls) == 20
    assert max(calls) - min(calls) >= 1.8


def test_the_time_it_will_take_counts_the_profiles_of_external_ids(warm: Warm) -> None:
    for number in range(20):
        warm.sandbox.sandbox.put_customer({"user_id": f"c{number}", "external_id": f"e{number}"})
    warm.file.write_text("external_id\n" + "".join(f"e{number}\n" for number in range(20)))
    status, out, _ = warm.run("--rps", "30")
    assert status == 0
    assert "at 30 calls a second 2 s if" in out
    assert "20 fetched" in out
    calls = [call["at"] for call in warm.sandbox.sandbox.calls()]
    assert len(calls) == 60
    assert max(calls) - min(calls) >= 1.8


def test_the_rate_of_the_settings_is_the_most(warm: Warm) -> None:
    warm.segment(*(f"c{number}" for number in range(10)))
    _, out, _ = warm.run("--tags", "--rps", "500", BRIDGE_SESSIONM_RPS="10")
    assert "at 10 calls a second" in out


@pytest.mark.both_databases
def test_ended_by_ctrl_c_it_goes_on_where_it_was(warm: Warm) -> None:
    warm.segment(*(f"c{number}" for number in range(60)))
    process = warm.start("--tags", "--rps", "20")
    eventually(lambda: warm.reads() >= 10, 60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continues from here" in err
    assert "Traceback" not in err
    before = warm.reads()
    # Nothing is fresh any more: what was done is known from the note.
    status, out, _ = warm.run("--tags", BRIDGE_TAGS_MAX_AGE="0")
    assert status == 0
    assert "Continuing after line" in out
    assert warm.reads() - before < 55
    asked = {call["path"] for call in warm.sandbox.sandbox.calls(match="/tags$")}
    assert len(asked) == 60
    assert list(warm.folder.glob("*.warm*")) == []


def test_a_segment_that_takes_longer_than_lookups_stay_fresh_gets_a_warning(warm: Warm) -> None:
    warm.segment(*(f"c{number}" for number in range(10)))
    _, _, err = warm.run("--tags", "--rps", "5", BRIDGE_TAGS_MAX_AGE="1")
    assert "BRIDGE_TAGS_MAX_AGE" in err


def test_a_sessionm_that_is_away_ends_it_with_one_line(warm: Warm) -> None:
    warm.segment(*(f"c{number}" for number in range(40)))
    warm.sandbox.sandbox.set_faults({"status": 503})
    status, _, err = warm.run("--tags")
    assert status == 1
    assert err.splitlines()[-1].startswith("bridge: SessionM does not answer")
    # It ends before it has tried every customer three times.
    assert warm.reads() < 3 * 40
    # The next run fetches those that failed, and counts them once.
    progress = json.loads(Path(f"{warm.file}.warm").read_text())["progress"]
    assert (progress["line"], progress["failed"]) == (1, 0)


def test_a_damaged_note_and_a_file_without_customers_are_named_in_a_line(warm: Warm) -> None:
    warm.segment("c1")
    Path(f"{warm.file}.warm").write_text("{half")
    status, _, err = warm.run("--tags")
    assert (status, "damaged" in err) == (1, True)
    assert warm.run("--tags", "--restart")[0] == 0
    warm.file.write_text("Braze ID,email\n1,2\n")
    status, _, err = warm.run("--tags")
    assert (status, "no column user_id" in err) == (1, True)
