"""The parts of the benchmarks. Measured figures are not judged here."""

import shutil
from pathlib import Path

import pytest

from bench import report, services, wrk
from bench.__main__ import PAGE, heading
from bench.fill import TAGS, add_events, add_lookups, mark_delivered, opened
from bench.machine import describe
from bench.suite import BENCHES
from bench.suite.lookups import PATH, check
from bridge.outbox.search import Filter

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
NOWHERE = "http://127.0.0.1:1"


def test_the_columns_of_a_markdown_table_are_aligned() -> None:
    table = report.Table(("", "a second"))
    table.add("bridge", report.number(12345.6))
    assert table.markdown().splitlines() == [
        "|        | a second |",
        "| ------ | -------: |",
        "| bridge |   12,346 |",
    ]
    with pytest.raises(ValueError, match="1 cells in 2 columns"):
        table.add("alone")


def test_a_section_of_the_page_is_replaced_and_a_new_one_is_added() -> None:
    page = report.replace_section("# Speed\n\nWords.\n", "## Lookups\n\nbefore \\1")
    page = report.replace_section(page, "## Cold lookups\n\nother")
    page = report.replace_section(page, "## Lookups\n\nnew \\2")
    assert page == "# Speed\n\nWords.\n\n## Lookups\n\nnew \\2\n\n## Cold lookups\n\nother\n"


def test_the_page_has_a_section_for_every_bench() -> None:
    lines = PAGE.read_text().splitlines()
    assert not [name for name, bench in BENCHES.items() if heading(bench) not in lines]


def test_a_ratio_shows_whether_the_goal_is_met() -> None:
    assert report.goal(4.0, 4) == "**4.00**, goal 4: met"
    assert report.goal(3.9, 4) == "**3.90**, goal 4: missed"
    assert report.goal(1.6, most=1.5) == "**1.60**, goal 1.5: missed"


def test_output_of_wrk_without_a_report_is_an_error() -> None:
    with pytest.raises(wrk.LoadError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1\n")


def test_the_machine_is_described(tmp_path: Path) -> None:
    described = describe(tmp_path)
    assert "Machine: " in described
    assert "Linux" in described
    assert "gunicorn" in described


def test_lookups_of_a_filled_database_are_answered_without_sessionm(tmp_path: Path) -> None:
    with opened(tmp_path, NOWHERE) as parts:
        add_events(parts, 0, 20)
        assert parts.store.backlog().queued == 20
        mark_delivered(parts)
        add_lookups(parts, 0, 20)
        assert parts.store.backlog().queued == 0
        assert parts.events.count(Filter()) == 20
    with services.bridge(tmp_path, NOWHERE, workers=1) as process:
        check(process, checks_key=True)
        assert process.memory() > 1
        assert process.cpu_seconds() > 0
    assert TAGS == {"vip": 0, "newsletter": 3}


@needs_wrk
def test_every_request_of_wrk_is_accepted_and_every_webhook_is_an_event(tmp_path: Path) -> None:
    for folder in ("sandbox", "bridge"):
        (tmp_path / folder).mkdir()
    with (
        services.sandbox(tmp_path / "sandbox") as sessionm,
        services.bridge(tmp_path / "bridge", sessionm.url) as process,
    ):
        services.request(process, "GET", PATH, services.KEYS["content"])
        looked_up = wrk.lookups(process.url, services.KEYS["content"], 1, pace=200)
        sent = wrk.webhooks(process.url, services.KEYS["webhook"], 1, run="smoke", pace=200)
    assert looked_up.requests > 0
    assert sent.requests > 0
    assert (looked_up.refused, looked_up.broken) == (sent.refused, sent.broken) == (0, 0)
    with opened(tmp_path / "bridge", NOWHERE) as parts:
        # Webhooks in flight when wrk ended are stored too.
        assert parts.events.count(Filter()) >= sent.requests
