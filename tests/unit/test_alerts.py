"""What is posted when the status changes: once for one change, and only if it stays."""

from bridge.ops.alerts import RETRIED_FOR, STABLE, Pending, Steady, message


def test_a_status_is_stable_after_twenty_seconds() -> None:
    steady = Steady()
    assert steady.update("ok", 0.0) == ""
    assert steady.update("degraded", 10.0) == ""
    assert steady.update("ok", 15.0) == ""
    assert steady.update("degraded", 20.0) == ""
    assert steady.update("degraded", 20.0 + STABLE - 0.1) == ""
    assert steady.update("degraded", 20.0 + STABLE) == "degraded"


def test_one_change_is_posted_once() -> None:
    pending = Pending().with_status("degraded", 100.0)
    assert (pending.posted_status, pending.status, pending.is_due(100.0)) == (
        "ok",
        "degraded",
        True,
    )
    assert pending.with_status("degraded", 104.0) == pending
    answer = pending.posted(worked=True, now=105.0)
    assert not answer.is_due(200.0)
    assert answer.with_status("degraded", 300.0) == answer
    assert answer.with_status("down", 300.0).posted_status == "degraded"


def test_a_post_that_fails_is_tried_again_for_ten_minutes_at_growing_intervals() -> None:
    pending, now, tries = Pending().with_status("down", 0.0), 0.0, []
    while pending.status:
        if pending.is_due(now):
            tries.append(now)
            pending = pending.posted(worked=False, now=now)
        now += 1.0
        pending = pending.with_status("down", now)
    assert tries[:4] == [0.0, 5.0, 15.0, 35.0]
    assert RETRIED_FOR - 60 <= tries[-1] <= RETRIED_FOR
    # It counts as posted: what comes next is a change again.
    assert pending.with_status("ok", now).posted_status == "down"


def test_a_change_back_before_it_is_posted_is_no_alert() -> None:
    pending = Pending().with_status("degraded", 0.0).posted(worked=False, now=1.0)
    assert pending.with_status("ok", 60.0) == Pending()
    worse = pending.with_status("down", 60.0)
    assert (worse.posted_status, worse.status) == ("ok", "down")
    assert worse.id != pending.id


def test_the_text_says_what_is_wrong_and_what_to_do() -> None:
    incidents = [
        {"code": "dead_writes", "reason": f"Reason {number}.", "do": "Do it."}
        for number in range(7)
    ]
    pending = Pending().with_status("degraded", 0.0)
    body = message(pending, incidents, "https://bridge.acme.com/dashboard")
    assert (body["status"], body["was"]) == ("degraded", "ok")
    assert body["incidents"] == incidents
    assert body["url"] == "https://bridge.acme.com/dashboard"
    assert "is degraded (it was ok)" in body["text"]
    assert "Reason 0. Do it." in body["text"]
    assert "and 2 more" in body["text"]
    assert body["text"].endswith(body["url"])
