"""What Braze's answers mean, what goes out next, and what becomes of a message."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bridge.braze.answers import BrazeError, Quota, read_quota, read_receipt
from bridge.braze.triggers import (
    MOST_IN_A_LOOP,
    AttemptLimits,
    TriggerCall,
    TriggerPlan,
    judge_accepted,
    judge_failure,
    judge_unresolved,
)
from bridge.calls import Meaning
from bridge.outbox.destination import End, Planned, Wait
from bridge.outbox.model import CallResult, QueuedWrite, State
from bridge.sessionm.answers import SessionMError

NOW = 1_800_000_000.0


def answer(status: int, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_receipt(status, headers, content, NOW, ["ann", "bob"])


def failure(status: int, body: Any = None, **headers: str) -> BrazeError:
    with pytest.raises(BrazeError) as caught:
        answer(status, {"message": "no"} if body is None else body, **headers)
    return caught.value


@pytest.mark.parametrize("message", ["success", "queued", "Success"])
def test_a_call_that_was_taken_has_a_dispatch_id(message: str) -> None:
    receipt = answer(201, {"dispatch_id": "d", "message": message})
    assert (receipt.dispatch_id, receipt.warnings) == ("d", {})


def test_warnings_find_their_recipients() -> None:
    errors = ["bob is not known", {"type": "bad", "index": 0}, "something else"]
    receipt = answer(201, {"dispatch_id": "d", "message": "success", "errors": errors})
    assert receipt.warnings[1] == "bob is not known"
    assert "bad" in receipt.warnings[0]
    assert receipt.warnings[-1] == "something else"


@pytest.mark.parametrize("state", ["paused", "archived"])
def test_a_notice_that_nothing_is_sent_is_a_refusal(state: str) -> None:
    notice = f"The Canvas is {state}. Resume the Canvas."
    error = failure(201, {"dispatch_id": "d", "message": "success", "notice": notice})
    assert (error.meaning, error.is_divisible) == (Meaning.REFUSED, False)
    assert state in str(error)


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (400, Meaning.REFUSED),
        (413, Meaning.REFUSED),
        (401, Meaning.CREDENTIALS),
        (403, Meaning.CREDENTIALS),
        (404, Meaning.CREDENTIALS),
        (301, Meaning.CREDENTIALS),
        (429, Meaning.BUSY),
        (500, Meaning.BUSY),
        (503, Meaning.BUSY),
        (504, Meaning.UNANSWERED),
        (422, Meaning.REFUSED),
    ],
)
def test_each_status_has_one_meaning(status: int, meaning: Meaning) -> None:
    error = failure(status)
    assert error.meaning is meaning
    assert error.is_divisible == (status in {400, 413})


@pytest.mark.parametrize("body", [b"<html>", b"", {"message": "hello"}, {}, [], b"\xff"])
def test_what_braze_would_not_say_leaves_the_outcome_unknown(body: Any) -> None:
    assert failure(200, body).meaning is Meaning.GARBLED


def test_the_reset_is_read_by_brazes_own_clock() -> None:
    limits = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "0"}
    reset = str(NOW + 60)
    assert failure(429, None, **limits, **{"x-ratelimit-reset": reset}).retry_after == 60
    # Our clock is an hour and more off; the date of the answer says so.
    headers = {**limits, "x-ratelimit-reset": "1800007200", "date": "Fri, 15 Jan 2027 09:59:00 GMT"}
    quota = read_quota(headers, NOW)
    assert quota
    assert quota.seconds == 60
    assert failure(429).retry_after is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-limit": "x", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "1"},
        {"x-ratelimit-limit": "5", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "5"},
        {"x-ratelimit-limit": "5", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "9e99"},
    ],
)
def test_headers_that_make_no_sense_say_nothing(headers: Mapping[str, str]) -> None:
    assert read_quota(headers, NOW) is None


def test_below_a_tenth_the_rest_lasts_until_the_reset() -> None:
    assert Quota(1000, 100, 600).pace is None
    assert Quota(1000, 99, 900).pace == pytest.approx(0.11)


# What goes out next.


def message(seq: int, customer: str = "", **more: Any) -> QueuedWrite:
    content = {
        "recipient": {"external_user_id": customer or f"u{seq}"},
        "outdate": None,
        "properties": more.pop("properties", {}),
        "call": more.pop("call", {}),
    }
    facts = {"accepted_at": NOW, "next_at": NOW, "attempts": 0, "target": "campaign:c", **more}
    return QueuedWrite(
        seq,
        f"e{seq}",
        f"user_id:{customer or f'u{seq}'}",
        (),
        None,
        facts.pop("accepted_at"),
        facts.pop("next_at"),
        facts.pop("attempts"),
        **{"content": content, **facts},
    )


def planned(
    *queues: Sequence[QueuedWrite], sent: Mapping[str, int] | None = None
) -> dict[str, Planned]:
    return {queue[0].customer: Planned(queue, Counter(sent or {})) for queue in queues}


def seqs(step: object) -> list[int]:
    assert isinstance(step, TriggerCall)
    return [write.seq for write in step.writes]


PLAN = TriggerPlan(max_age=3600, resends=False)


def test_one_campaign_goes_in_one_call_and_others_in_others() -> None:
    waiting = planned(
        [message(1), message(5, "u1")],
        [message(2, target="campaign:other")],
        [message(3)],
        [message(4, target="canvas:c")],
    )
    assert seqs(PLAN.next_step(waiting, NOW)) == [1, 3]


def test_fifty_recipients_and_four_megabytes_are_the_most() -> None:
    many = planned(*([message(n)] for n in range(1, 80)))
    assert len(seqs(PLAN.next_step(many, NOW))) == 50
    large = planned(*([message(n, properties={"x": "y" * 50_000})] for n in range(1, 51)))
    assert len(seqs(PLAN.next_step(large, NOW))) == 50
    huge = planned(*([message(n, properties={"x": "y" * 200_000})] for n in range(1, 51)))
    assert len(seqs(PLAN.next_step(huge, NOW))) == 19


def test_messages_of_calls_that_differ_do_not_share_one() -> None:
    waiting = planned([message(1, call={"send_id": "a"})], [message(2)], [message(3)])
    assert seqs(PLAN.next_step(waiting, NOW)) == [1]


def test_halves_of_a_refused_call_stay_apart() -> None:
    halves = planned(
        [message(1, intent={"with": [1, 2]})],
        [message(2, intent={"with": [1, 2]})],
        [message(3, intent={"with": [3]})],
        [message(4)],
    )
    assert seqs(PLAN.next_step(halves, NOW)) == [1, 2]


def test_a_later_head_is_waited_for() -> None:
    later = planned([message(1, next_at=NOW + 9), message(2, "u1")])
    assert PLAN.next_step(later, NOW) == Wait(NOW + 9)


def test_what_is_too_old_expires_and_a_loop_ends() -> None:
    old = PLAN.next_step(planned([message(1, accepted_at=NOW - 3601)]), NOW)
    assert isinstance(old, End)
    assert old.state is State.EXPIRED
    looping = planned([message(1)], sent={"campaign:c": MOST_IN_A_LOOP})
    ended = PLAN.next_step(looping, NOW)
    assert isinstance(ended, End)
    assert (ended.state, ended.reason.startswith("loop")) == (State.DEAD, True)
    # It takes no other message down.
    both = {**planned([message(2)]), **looping}
    assert seqs(PLAN.next_step(both, NOW)) == [2]


def test_a_message_that_was_being_sent_is_in_doubt() -> None:
    doubtful = planned([message(1, intent={"sent": NOW - 1})])
    ended = PLAN.next_step(doubtful, NOW)
    assert isinstance(ended, End)
    assert (ended.state, ended.uncertain) == (State.DEAD, True)
    assert seqs(TriggerPlan(3600, resends=True).next_step(doubtful, NOW)) == [1]


# What becomes of it.


def record(writes: Sequence[QueuedWrite], state: State, outcome: str, **more: Any) -> CallResult:
    return CallResult(tuple(writes), state, NOW, outcome, **more)


LIMITS = AttemptLimits(most=12, resends=False, outage=False, random=lambda: 1.0)


def judged(error: BrazeError, number: int = 1, **more: Any) -> list[CallResult]:
    writes = [message(n) for n in range(1, number + 1)]
    return [*judge_failure(writes, error, replace(LIMITS, **more), record, NOW)]


@pytest.mark.parametrize("status", [400, 413])
def test_a_refused_call_is_halved_down_to_one(status: int) -> None:
    halves = judged(failure(status), 5)
    assert [len(half.writes) for half in halves] == [3, 2]
    assert {(half.state, half.counts_attempt, half.next_at) for half in halves} == {
        (State.QUEUED, False, NOW)
    }
    assert halves[0].intent == {"with": [1, 2, 3]}
    [dead] = judged(failure(status))
    assert dead.state is State.DEAD


def test_a_paused_canvas_ends_all_its_recipients() -> None:
    error = failure(201, {"message": "success", "notice": "The Canvas is paused."})
    assert {one.state for one in judged(error, 5)} == {State.DEAD}


def test_a_message_waits_for_sessionm_without_an_attempt_the_longer_the_older_it_is() -> None:
    away = SessionMError(Meaning.UNREACHABLE, "SessionM is unavailable")
    waits = []
    for age in (0.0, 20.0, 3000.0):
        old = message(1, accepted_at=NOW - age, attempts=11)
        [kept] = judge_unresolved(old, away, LIMITS, record, NOW)
        assert (kept.state, kept.counts_attempt, kept.uncertain) == (State.QUEUED, False, False)
        waits.append(kept.next_at - NOW)
    assert waits == [1, 20, 60]
    unknown = SessionMError(Meaning.UNKNOWN_CUSTOMER, "no such customer")
    [dead] = judge_unresolved(message(1, attempts=11), unknown, LIMITS, record, NOW)
    assert dead.state is State.DEAD


@pytest.mark.parametrize("status", [504, 200])
def test_an_unknown_outcome_goes_as_it_is_set(status: int) -> None:
    error = failure(status, {})
    [dropped] = judged(error, 2)
    assert (dropped.state, dropped.uncertain) == (State.DEAD, True)
    assert {one.state for one in judged(error, 2, resends=True)} == {State.QUEUED}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_what_is_not_the_messages_fault_waits(status: int) -> None:
    [waits] = judged(failure(status))
    assert waits.state is State.QUEUED
    assert waits.counts_attempt == (status == 500)


def test_a_warning_stands_at_its_own_recipient() -> None:
    writes = [message(1), message(2)]
    receipt = answer(201, {"dispatch_id": "d", "message": "success", "errors": ["bob is unknown"]})
    plain, warned = judge_accepted(writes, receipt, record)
    assert ([write.seq for write in plain.writes], plain.error) == ([1], "")
    assert ([write.seq for write in warned.writes], "bob" in warned.error) == ([2], True)
    assert plain.receipt == warned.receipt == "d"
