"""The benchmarks' own pieces, so that they do not rot; what they measure is not judged here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import peers, report, services, wrk
from bench.__main__ import PAGE
from bench.fill import TAGS, add_events, add_lookups, mark_delivered, opened
from bench.machine import describe
from bench.processes import Process, StartError, free_port
from bench.rounds import Contender, Plan, Run, compare, measure
from bench.suite import BENCHES
from bench.suite.lookups import PATH, check
from bridge.outbox.search import Filter

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
NOWHERE = "http://127.0.0.1:1"


def test_a_table_is_markdown_whose_columns_stand_in_line() -> None:
    table = report.Table(("", "a second"))
    table.add("bridge", report.number(12345.6))
    assert table.markdown().splitlines() == [
        "|        | a second |",
        "| ------ | -------: |",
        "| bridge |   12,346 |",
    ]
    with pytest.raises(ValueError, match="1 cells in 2 columns"):
        table.add("alone")


def test_a_part_of_the_page_is_replaced_and_a_new_one_is_added() -> None:
    page = report.put("# Speed\n\nWords.\n", "lookups", r"before \1")
    page = report.put(report.put(page, "cold", "other"), "lookups", r"new \2")
    assert page.startswith("# Speed\n\nWords.\n")
    assert r"new \2" in page
    assert "before" not in page
    assert page.index("new") < page.index("other")


def test_the_page_has_a_part_for_every_bench() -> None:
    page = PAGE.read_text()
    assert not [name for name in BENCHES if f"<!-- bench: {name} -->" not in page]


def test_what_wrk_does_not_report_is_an_error() -> None:
    with pytest.raises(wrk.LoadError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1\n")


def test_the_command_explains_itself_and_refuses_what_it_does_not_know() -> None:
    helped = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True
    )
    assert "--quick" in helped.stdout
    wrong = subprocess.run([sys.executable, "-m", "bench", "--only", "nonsense"], check=False)
    assert wrong.returncode == 2


def test_a_service_that_does_not_start_says_why(tmp_path: Path) -> None:
    broken = Process(
        [sys.executable, "-c", "raise SystemExit('no such thing')"],
        port=free_port(),
        folder=tmp_path,
    )
    with pytest.raises(StartError, match="no such thing"), broken:
        pass


def test_the_machine_is_described(tmp_path: Path) -> None:
    said = describe(tmp_path)
    assert "Kernel: Linux" in said
    assert "gunicorn" in said


def test_a_filled_store_is_served_without_sessionm(tmp_path: Path) -> None:
    with opened(tmp_path, NOWHERE) as parts:
        add_events(parts, 0, 20)
        assert parts.store.backlog().queued == 20
        mark_delivered(parts)
        add_lookups(parts, 0, 20)
        assert parts.store.backlog().queued == 0
        assert parts.events.count(Filter()) == 20
    with services.bridge(tmp_path, NOWHERE, workers=1) as process:
        check(process, asks_for_key=True)
        assert process.memory() > 1
        assert process.cpu_seconds() > 0
    assert TAGS == {"vip": 0, "newsletter": 3}


@needs_wrk
def test_the_load_is_accepted_each_webhook_another_event(tmp_path: Path) -> None:
    for room in ("sandbox", "bridge"):
        (tmp_path / room).mkdir()
    with (
        services.sandbox(tmp_path / "sandbox") as sessionm,
        services.bridge(tmp_path / "bridge", sessionm.url) as process,
    ):
        services.ask(process, "GET", PATH, services.KEYS["content"])
        looked_up = wrk.lookups(process.url, services.KEYS["content"], 1, pace=200)
        sent = wrk.webhooks(process.url, services.KEYS["webhook"], 1, run="smoke", pace=200)
    assert looked_up.requests > 0
    assert sent.requests > 0
    assert (looked_up.refused, looked_up.broken) == (sent.refused, sent.broken) == (0, 0)
    with opened(tmp_path / "bridge", NOWHERE) as parts:
        # Those under way when wrk ended are stored too.
        assert parts.events.count(Filter()) >= sent.requests


@needs_wrk
def test_contenders_are_compared_and_the_missing_named(tmp_path: Path) -> None:
    def run(_one: Contender, process: Process, _round: int) -> Run:
        return measure(process, lambda: wrk.lookups(process.url, "key", 1, pace=100))

    contenders = [
        Contender("ours", peers.hello("gthread", b"{}")),
        Contender("theirs", peers.hello("gthread", b"{}"), goal=0),
        Contender("absent", peers.hello("gthread", b"{}"), peers.lacks("py:no-such-thing")),
    ]
    plan = Plan(rounds=1, seconds=1, warm_requests=0, quick=True, folder=tmp_path)
    compared = compare(plan, contenders, run)
    assert [row[0] for row in compared.table().rows] == ["ours", "theirs"]
    assert "0: met" in compared.table().rows[1]
    assert compared.p99("ours") > 0
    assert (
        compared.remarks()[0] == "Left out: absent (no-such-thing not installed: run bench/setup)."
    )
