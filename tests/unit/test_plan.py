"""Which waiting writes of a customer go out next, and with which TTL."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.outbox.destination import End, Wait
from bridge.outbox.model import QueuedWrite, State
from bridge.sessionm.tags import FULL_TTL_AGE, MOST_TAGS, TagCall, next_step

NOW = 10_000.0
DAY = 86_400


def write(
    seq: int, tags: str, ttl: int | None = None, age: float = 0.0, **more: Any
) -> QueuedWrite:
    """A write that was accepted *age* seconds ago; *tags* are separated by spaces."""
    accepted_at = NOW - age
    return QueuedWrite(
        seq, f"e{seq}", "user_id:u", tuple(tags.split()), ttl, accepted_at, 0.0, 0, **more
    )


def call(*queue: QueuedWrite, now: float = NOW) -> tuple[list[int], str, int | None]:
    """The next call for *queue*: numbers of its writes, tags, TTL."""
    step = next_step(queue, now)
    assert isinstance(step, TagCall)
    return [one.seq for one in step.writes], " ".join(step.tags), step.ttl


def run(queue: Sequence[QueuedWrite], now: float = NOW) -> tuple[list[TagCall], list[QueuedWrite]]:
    """All calls that are made for *queue*, each of which works, and the writes that expired."""
    waiting, calls, expired = list(queue), [], list[QueuedWrite]()
    while waiting:
        step = next_step(waiting, now)
        assert not isinstance(step, Wait)
        assert step.writes
        if isinstance(step, TagCall):
            calls.append(step)
        else:
            expired.extend(step.writes)
        waiting = [one for one in waiting if one not in step.writes]
    return calls, expired


def test_what_waits_with_one_ttl_goes_in_one_call() -> None:
    assert call(write(1, "a b", 60), write(2, "b c", 60)) == ([1, 2], "a b c", 60)
    assert call(write(1, "a"), write(2, "b"), write(3, "c d")) == ([1, 2, 3], "a b c d", None)


def test_what_waits_with_another_ttl_goes_in_another_call() -> None:
    assert call(write(1, "a", 60), write(2, "b", 61), write(3, "c")) == ([1], "a", 60)


def test_a_write_may_overtake_one_of_other_tags() -> None:
    assert call(write(1, "a", 60), write(2, "b", 90), write(3, "c", 60)) == ([1, 3], "a c", 60)


def test_a_write_never_overtakes_one_that_shares_a_tag() -> None:
    assert call(write(1, "a", 60), write(2, "b", 90), write(3, "c b", 60)) == ([1], "a", 60)
    assert call(write(1, "a", 60), write(2, "a"), write(3, "a", 60)) == ([1], "a", 60)


def test_a_counter_that_waits_twice_is_counted_in_two_calls() -> None:
    queue = [write(1, "a b"), write(2, "c"), write(3, "b d"), write(4, "e"), write(5, "d")]
    assert [[one.seq for one in made.writes] for made in run(queue)[0]] == [[1, 2, 4], [3], [5]]


@pytest.mark.parametrize("ttl", [None, 60])
def test_no_call_has_too_many_tags(ttl: int | None) -> None:
    queue = [write(n, " ".join(f"t{n}_{i}" for i in range(40)), ttl) for n in range(5)]
    assert [len(made.tags) for made in run(queue)[0]] == [80, 80, 40]


def test_a_write_of_the_last_minute_carries_its_ttl_as_it_was_given() -> None:
    assert call(write(1, "a", 90, FULL_TTL_AGE)) == ([1], "a", 90)


@pytest.mark.parametrize(
    ("ttl", "age", "left"), [(90, 61, 29), (DAY, 3600.5, DAY - 3601), (62, 61.5, 1)]
)
def test_a_late_write_carries_what_is_left_of_its_ttl(ttl: int, age: float, left: int) -> None:
    assert call(write(1, "a", ttl, age)) == ([1], "a", left)


def test_a_late_counter_is_counted_however_late() -> None:
    assert call(write(1, "a", None, 400 * DAY)) == ([1], "a", None)


def test_a_write_whose_ttl_has_run_out_expires_and_the_rest_goes_on() -> None:
    gone, kept, gone_too = write(1, "a", 60, 60), write(2, "b", 90, 10), write(3, "c", 5, 80)
    step = next_step([gone, kept, gone_too], NOW)
    assert isinstance(step, End)
    assert (step.writes, step.state) == ((gone, gone_too), State.EXPIRED)
    assert run([gone, kept, gone_too])[0][0].writes == (kept,)


def test_writes_of_different_hours_do_not_share_a_ttl() -> None:
    assert call(write(1, "a", DAY, 7200), write(2, "b", DAY)) == ([1], "a", DAY - 7200)


def test_a_late_write_gains_no_time_from_a_punctual_one() -> None:
    head, newer = write(1, "a", DAY, 110), write(2, "b", DAY, 55)
    made = next_step([head, newer], NOW)
    assert isinstance(made, TagCall)
    assert made.ttl
    assert NOW + made.ttl <= head.expires_at + FULL_TTL_AGE


def test_while_the_oldest_write_waits_all_of_the_customers_do() -> None:
    head = replace(write(1, "a", 60), next_at=NOW + 5)
    assert next_step([head, write(2, "b")], NOW) == Wait(NOW + 5)
    assert call(head, write(2, "b", 60), now=NOW + 5) == ([1, 2], "a b", 60)


def test_a_call_in_doubt_is_settled_with_exactly_its_writes() -> None:
    intent = {"id": "x", "before": {"a": 1, "b": 0}}
    first, second = write(1, "a", intent=intent), write(3, "b", intent=intent)
    assert call(first, write(2, "c"), second, write(4, "d")) == ([1, 3], "a b", None)
    # Before anything else, also if a replay has put an older write in front of it.
    assert call(write(0, "z"), first, write(2, "c"), second) == ([1, 3], "a b", None)


TAGS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True).map(" ".join)
BULKY = st.integers(0, 2).flatmap(
    lambda n: st.integers(1, MOST_TAGS).map(lambda m: " ".join(f"{n}_{i}" for i in range(m)))
)
TTLS = st.none() | st.sampled_from([30, 100, 150, 200, DAY])
AGES = st.sampled_from([0.0, 1.5, 30.0, 59.0, 61.0, 90.0, 110.0, 149.5, 3600.0])


@st.composite
def queues(draw: st.DrawFn) -> list[QueuedWrite]:
    drawn = draw(
        st.lists(st.tuples(TAGS | BULKY, TTLS, AGES), min_size=1, max_size=12)
        | st.lists(st.tuples(TAGS, st.none() | st.just(100), AGES), min_size=1, max_size=12)
    )
    ages = sorted((age for *_, age in drawn), reverse=True)
    pairs = zip(drawn, ages, strict=True)
    return [write(seq, tags, ttl, age) for seq, ((tags, ttl, _), age) in enumerate(pairs)]


class Profile:
    """A customer's tags at SessionM: counts, and times at which tags expire."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.counts_attempt = Counter[str]()
        self.expiries: dict[str, float] = {}

    def take(self, tags: Sequence[str], ttl: int | None) -> None:
        for tag in tags:
            if ttl is None:
                self.counts_attempt[tag] += 1
                self.counts[tag] = self.counts.get(tag, 0) + 1
                self.expiries.pop(tag, None)
            else:
                self.expiries[tag] = NOW + ttl
                self.counts.pop(tag, None)


@given(queues())
def test_merged_calls_do_the_same_as_every_write_alone(queue: list[QueuedWrite]) -> None:
    merged, alone = Profile(), Profile()
    for made in run(queue)[0]:
        merged.take(made.tags, made.ttl)
    for one in queue:
        for made in run([one])[0]:
            alone.take(made.tags, made.ttl)
    assert merged.counts == alone.counts
    asked = [tag for one in queue if one.ttl is None for tag in one.tags]
    assert merged.counts_attempt == alone.counts_attempt == Counter(asked)
    assert merged.expiries == pytest.approx(alone.expiries, abs=FULL_TTL_AGE + 1)


@given(queues())
def test_every_write_is_sent_once_or_has_run_out(queue: list[QueuedWrite]) -> None:
    calls, expired = run(queue)
    sent = [one.seq for made in calls for one in made.writes]
    assert sorted(sent + [one.seq for one in expired]) == [one.seq for one in queue]
    assert all(one.expires_at <= NOW for one in expired)
    for made in calls:
        assert len(made.tags) <= MOST_TAGS
        assert len(made.tags) == len(set(made.tags))
        assert set(made.tags) == {tag for one in made.writes for tag in one.tags}
        assert made.takes_token_late or made.ttl


@given(queues())
def test_writes_that_share_a_tag_are_sent_in_their_order(queue: list[QueuedWrite]) -> None:
    last: dict[str, int] = {}
    for made in run(queue)[0]:
        for one in made.writes:
            assert all(last.get(tag, -1) < one.seq for tag in one.tags)
            last.update(dict.fromkeys(one.tags, one.seq))


@given(queues())
def test_every_tag_ends_within_a_minute_of_when_it_should(queue: list[QueuedWrite]) -> None:
    for made in run(queue)[0]:
        for one in made.writes:
            if made.ttl is not None:
                assert -1 <= NOW + made.ttl - one.expires_at <= FULL_TTL_AGE


@given(queues(), st.lists(st.sampled_from([0.0, 0.7, 45.0, 300.0]), min_size=12, max_size=12))
def test_delivery_that_takes_its_time_keeps_order_and_expiry(
    queue: list[QueuedWrite], pauses: list[float]
) -> None:
    waiting, now = list(queue), NOW
    for pause in pauses * 2:
        if not waiting:
            return
        step = next_step(waiting, now)
        assert not isinstance(step, Wait)
        waiting = [one for one in waiting if one not in step.writes]
        for one in step.writes:
            earlier = [w for w in waiting if w.seq < one.seq and set(w.tags) & set(one.tags)]
            if isinstance(step, TagCall):
                assert not earlier
                assert one.expires_at > now
            else:
                assert one.expires_at <= now
        now += pause
    assert not waiting
