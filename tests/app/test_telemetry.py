"""Figures: counted in each process, right over all of them."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.calls import FinishedCall
from bridge.ops import telemetry as telemetry_module
from bridge.ops.telemetry import KEPT_MINUTES, Period, Telemetry, create, together
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.storage.database import Database
from bridge.storage.sqlite import SQLite

NOON = 1_800_000_000.0  # the beginning of a minute
Make = Callable[[], Telemetry]


class Clock:
    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes telemetries that share a file, as processes do."""
    # A busy machine may take longer to store figures than a reader waits for them.
    monkeypatch.setattr(telemetry_module, "CATCH_UP", 60.0)
    for name in ("now", "steady"):
        monkeypatch.setattr(f"bridge.clock.{name}", clock)
    made: list[tuple[Telemetry, Database]] = []

    def one() -> Telemetry:
        database = SQLite(f"sqlite:///{tmp_path}/figures.db", (create,), durable=False)
        telemetry = Telemetry(database)
        made.append((telemetry, database))
        return telemetry

    yield one
    for telemetry, database in made:
        telemetry.close()
        database.close()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The actions of the lines that are logged."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.__dict__["action"])  # type: ignore[method-assign]
    logging.getLogger("bridge").addHandler(handler)
    yield found
    logging.getLogger("bridge").removeHandler(handler)


def test_what_several_processes_counted_is_added_up(make: Make) -> None:
    one, other = make(), make()
    for _ in range(3):
        one.count("lookups_hit", "braze_content_calls")
    other.count("lookups_hit")
    other.add("delivered", 7)
    other.flush()
    (minute,) = one.minutes(NOON)
    assert (minute.count("lookups_hit"), minute.count("delivered")) == (4, 7)
    assert minute.at == NOON
    other.close()
    assert one.totals().count("delivered") == 7


def test_there_is_a_minute_for_every_minute(make: Make, clock: Clock) -> None:
    telemetry = make()
    telemetry.count("webhooks_accepted")
    telemetry.flush()
    clock.at += 180
    telemetry.count("webhooks_accepted")
    minutes = telemetry.minutes(NOON - 60)
    assert [minute.at for minute in minutes] == [NOON + 60 * n for n in range(-1, 4)]
    assert [minute.count("webhooks_accepted") for minute in minutes] == [0, 1, 0, 0, 1]
    # Asked again, in another order and by another process, it is the same.
    assert [minute.count("webhooks_accepted") for minute in telemetry.minutes(clock.at)] == [1]
    assert telemetry.minutes(NOON - 60) == minutes
    assert make().minutes(NOON - 60) == minutes


def test_minutes_that_were_read_are_right_when_others_went_on_counting(
    make: Make, clock: Clock
) -> None:
    reader, writer = make(), make()
    expected = []
    for number in range(1, 20):
        writer.add("delivered", number)
        writer.flush()
        if number % 4:
            reader.minutes(clock.at - 60 * (number % 7))
        expected.append(number)
        clock.at += 60
    read = [minute.count("delivered") for minute in reader.minutes(NOON)]
    assert read == [*expected, 0]


def test_nothing_is_kept_for_much_longer_than_a_day(make: Make, clock: Clock) -> None:
    telemetry = make()
    telemetry.count("delivered")
    telemetry.flush()
    clock.at += 60 * (KEPT_MINUTES + 1)
    telemetry.count("delivered")
    minutes = telemetry.minutes(0)
    assert len(minutes) == KEPT_MINUTES + 1
    assert sum(minute.count("delivered") for minute in minutes) == 1
    assert telemetry.totals().count("delivered") == 2
    with telemetry._database.read() as connection:  # noqa: SLF001
        rows = connection.exec_driver_sql("SELECT count(*) FROM figures WHERE span = 60").scalar()
    assert rows == 1


def test_percentiles_are_near_the_truth(make: Make) -> None:
    telemetry = make()
    for milliseconds in range(1, 1001):
        telemetry.observe("lookup", milliseconds / 1000)
    (minute,) = telemetry.minutes(NOON)
    assert minute.percentile("lookup", 0.5) == pytest.approx(500, rel=0.02)
    assert minute.percentile("lookup", 0.99) == pytest.approx(990, rel=0.02)
    assert minute.seconds("lookup") == pytest.approx(500.5)
    assert sum(minute.buckets("lookup")) == 1000
    assert minute.percentile("core", 0.5) is None
    telemetry.observe("core", 99)
    assert together(telemetry.minutes(NOON - 300)).percentile("core", 0.5) == 10000


def test_gauges_are_the_mean_of_their_samples(make: Make) -> None:
    one, other = make(), make()
    one.sample(queued=10, oldest_seconds=3)
    other.sample(queued=30, oldest_seconds=3)
    other.flush()
    (minute,) = one.minutes(NOON)
    assert (minute.gauge("queued"), minute.gauge("oldest_seconds")) == (20, 3)
    assert Period(NOON).gauge("queued") is None


def test_a_name_that_nobody_counts_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Period(NOON).count("lookup_hits")


def test_brazes_minute_moves(make: Make, clock: Clock) -> None:
    one, other = make(), make()
    clock.at += 58
    one.count("braze_webhook_failures")
    one.flush()
    clock.at += 3
    other.count("braze_webhook_failures", "braze_content_calls")
    assert other.moving_minute().count("braze_webhook_failures") == 2
    assert one.moving_minute().count("braze_content_calls") == 1
    clock.at += 57
    assert one.moving_minute().count("braze_webhook_failures") == 1
    clock.at += 3
    assert one.moving_minute().count("braze_webhook_failures") == 0


def test_sessionms_last_error_is_shared_and_names_nobody(make: Make, clock: Clock) -> None:
    one, other = make(), make()
    said = SessionMError(Meaning.BUSY, "HTTP 500: user 4711 is ill", status=500, brief="HTTP 500")
    one.count_call(FinishedCall("core", 0.1, said))
    one.flush()
    clock.at += 5
    other.count_call(FinishedCall("core", 0.2, None))
    error = other.last_error("core")
    assert error
    assert (error.text, error.at) == ("HTTP 500", NOON)
    assert other.last_error("connect") is None
    # Without any figure beside it.
    one.keep_error("content", "no key")
    one.flush()
    error = other.last_error("content")
    assert error
    assert error.text == "no key"
    (minute,) = other.minutes(NOON)
    assert (minute.count("core_calls"), minute.count("core_errors")) == (2, 1)


def test_a_refusal_of_sessionms_is_no_error_of_the_system(make: Make) -> None:
    telemetry = make()
    telemetry.count_call(
        FinishedCall("core", 0.1, SessionMError(Meaning.REFUSED, "no", status=422))
    )
    (minute,) = telemetry.minutes(NOON)
    assert (minute.count("core_calls"), minute.count("core_errors")) == (1, 0)


def test_without_a_store_nothing_fails_and_nothing_is_lost(
    make: Make, tmp_path: Path, clock: Clock, logged: list[str]
) -> None:
    telemetry = make()
    (tmp_path / "figures.db").mkdir()
    for _ in range(3):
        telemetry.count("delivered", "braze_webhook_failures")
        telemetry.flush()
        clock.at += 3
    # What is known is reported: what waits in this process.
    assert telemetry.minutes(NOON)[-1].count("delivered") == 3
    assert telemetry.moving_minute().count("braze_webhook_failures") == 3
    assert logged == ["figures_unwritable"]
    (tmp_path / "figures.db").rmdir()
    clock.at += 3
    assert telemetry.minutes(NOON)[-1].count("delivered") == 3
    assert make().totals().count("delivered") == 3


def test_threads_and_processes_that_count_at_once_lose_nothing(make: Make) -> None:
    telemetries = [make() for _ in range(4)]

    def work(telemetry: Telemetry) -> None:
        for number in range(500):
            telemetry.count("lookups_hit")
            telemetry.observe("lookup", 0.001)
            if number % 50 == 0:
                telemetry.flush()

    threads = [threading.Thread(target=work, args=(telemetry,)) for telemetry in telemetries * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for telemetry in telemetries:
        telemetry.flush()
    totals = telemetries[0].totals()
    assert totals.count("lookups_hit") == sum(totals.buckets("lookup")) == 4000


def test_a_month_is_kept_in_quarters_of_an_hour_with_the_highest_value(
    make: Make, clock: Clock
) -> None:
    telemetry = make()
    clock.at = 900.0 * 2_000_000
    began = clock.at
    # Three days, with a peak of a minute each day.
    for minute in range(0, 3 * 1440, 5):
        telemetry.count("delivered")
        telemetry.sample(queued=143.0 if minute % 1440 == 70 else 2.0)
        telemetry.flush()
        clock.at += 5 * 60
    quarters = telemetry.quarters(began)
    assert len(quarters) == 3 * 96 + 1
    assert sum(one.count("delivered") for one in quarters) == 3 * 288
    assert [place for place, one in enumerate(quarters) if (one.most("queued") or 0) > 100] == [
        4,
        100,
        196,
    ]
    assert quarters[4].most("queued") == 143.0
    # The minutes of the first day are gone.
    assert telemetry.minutes(began)[0].at > began
    clock.at += 40 * 86400
    telemetry.count("delivered")
    telemetry.flush()
    assert sum(one.count("delivered") for one in telemetry.quarters(0)) == 1


def test_a_quarter_that_nobody_rolled_up_in_time_is_made_of_its_minutes(
    make: Make, clock: Clock
) -> None:
    telemetry = make()
    clock.at = 900.0 * 2_000_000
    began = clock.at
    telemetry.count("delivered")
    telemetry.flush()
    clock.at += 6 * 3600
    # Whoever starts next catches up.
    other = make()
    other.count("dead")
    other.flush()
    found = other.quarters(began)
    assert (found[0].count("delivered"), found[-1].count("dead")) == (1, 1)
