"""Causes become incidents: one per cause, with a beginning, an end, an extent and advice."""

from dataclasses import replace
from typing import Any

import pytest

from bridge.ops.incidents import (
    CODES,
    KEPT_DAYS,
    REOPENS,
    Cause,
    Incident,
    as_json,
    causes,
    follow,
)
from bridge.ops.outlook import outlook
from bridge.outbox.extent import kind_of, text_of
from bridge.outbox.model import DeadGroup, Extent

QUEUE = Extent(103, 41, ("summer",))


def checks(**changes: dict[str, Any]) -> dict[str, Any]:
    """The checks of a healthy bridge, but for *changes* in some of them."""
    system = {"state": "up", "last_call_failed": False, "error": ""}
    found: dict[str, dict[str, Any]] = {
        "store": {"state": "ok"},
        "delivery": {
            "state": "running",
            "held_by": "",
            "reason": "",
            "queued": 0,
            "dead": 0,
            "limit": 1000,
            "oldest_seconds": 0,
            "overdue": 0,
            "batches": {"flagged": 0, "mostly_failed": []},
        },
        "sessionm_core": dict(system),
        "sessionm_connect": dict(system),
        "cache": {"lookups": 0, "late": 0, "unavailable": 0},
        "braze_budget": {
            "webhook_failures_last_minute": 0,
            "content_failures_last_minute": 0,
            "content_calls_last_minute": 0,
            "limit": 3000,
            "content_share_limit": 0.9,
        },
        "files": {"most_connections_used": 0.0},
        "clocks": {"state": "ok", "bridges": {}, "difference_seconds": 0.0},
    }
    for name, change in changes.items():
        found[name] |= change
    return found


def codes(found: list[Cause]) -> list[str]:
    return [cause.code for cause in found]


def test_a_healthy_bridge_has_none() -> None:
    assert causes(checks()) == []


@pytest.mark.parametrize(
    ("changes", "code", "says", "advice"),
    [
        (
            {"store": {"state": "down", "error": "the database's disk is full"}},
            "store_full",
            "Events cannot be stored: the database's disk is full.",
            "Free space",
        ),
        (
            {
                "store": {
                    "state": "down",
                    "error": "the database is locked, or too slow",
                    "file": "/var/bridge.db",
                }
            },
            "store_locked",
            "locked",
            "`fuser -v /var/bridge.db`",
        ),
        (
            {"store": {"state": "down", "error": "no connection"}},
            "store_unavailable",
            "no connection",
            "bridge check",
        ),
        ({"delivery": {"state": "stopped"}}, "delivery_stopped", "has stopped", "bridge deliver"),
        (
            {"delivery": {"state": "paused", "held_by": "hand", "by": "ann"}},
            "delivery_paused",
            "paused by hand (ann)",
            "Resume it on the dashboard",
        ),
        (
            {
                "delivery": {
                    "state": "paused",
                    "held_by": "refused",
                    "reason": "SessionM refuses our credentials (HTTP 401: INVALID_API_KEY)",
                },
                "sessionm_core": {"state": "refusing"},
            },
            "sessionm_refuses",
            "Delivery is paused: SessionM refuses our credentials",
            "SESSIONM_CORE_KEY",
        ),
        (
            {"delivery": {"held_by": "down", "reason": "SessionM is unavailable (HTTP 503)"}},
            "sessionm_down",
            "Delivery is held up: SessionM is unavailable",
            "No write is lost",
        ),
        (
            {"delivery": {"held_by": "limit", "reason": "SessionM asked us to wait until 9:00"}},
            "sessionm_limits",
            "asked us to wait",
            "bridge queue resume",
        ),
        (
            {"sessionm_connect": {"state": "refusing", "error": "HTTP 401: no"}},
            "sessionm_refuses",
            "SessionM Connect refuses our calls: HTTP 401",
            "SESSIONM_CONNECT_AUTH",
        ),
        (
            {"sessionm_core": {"state": "failing", "error": "no SessionM answer in the body"}},
            "sessionm_fails",
            "is failing",
            "maintenance",
        ),
        ({"delivery": {"oldest_seconds": 301}}, "delivery_late", "5 min 1 s", "latency"),
        ({"delivery": {"queued": 900}}, "queue_nearly_full", "900 writes wait; at 1,000", "503"),
        ({"delivery": {"overdue": 2}}, "calls_overdue", "went on past the deadline", "Restart"),
        ({"delivery": {"batches": {"flagged": 1}}}, "batch_flagged", "1 batch needs", "resubmit"),
        (
            {"cache": {"lookups": 1000, "late": 40}},
            "lookups_late",
            "Of 1,000 lookups in five minutes 4 % took over 2 s",
            "bridge warm",
        ),
        (
            {"braze_budget": {"webhook_failures_last_minute": 1501}},
            "braze_budget",
            "webhooks",
            "3,000",
        ),
        ({"files": {"most_connections_used": 0.95}}, "connections_nearly_full", "95 %", "ulimit"),
        (
            {"clocks": {"state": "differ", "bridges": {"web-2": 7.0}}},
            "clocks_differ",
            "web-2 is 7 seconds ahead",
            "NTP",
        ),
    ],
)
def test_each_cause_is_named_once_with_what_to_do(
    changes: dict[str, dict[str, Any]], code: str, says: str, advice: str
) -> None:
    [cause] = causes(checks(**changes), QUEUE)
    assert cause.code == code
    assert code in CODES
    assert says in cause.reason
    assert advice in cause.do + cause.reason


def test_refused_writes_are_no_second_incident() -> None:
    refusing = {"state": "refusing", "error": "HTTP 429"}
    found = causes(checks(sessionm_core=refusing, delivery={"dead": 53}), dead=[dead()])
    assert codes(found) == ["dead_writes"]
    [alone] = causes(checks(sessionm_core=refusing))
    assert "429" not in alone.reason
    assert "credentials" not in alone.do


def test_a_wait_that_sessionm_asked_for_is_not_explained_by_another_failure() -> None:
    for error, end in (("HTTP 429", "to wait: HTTP 429."), ("no answer within 5 s", "to wait.")):
        [cause] = causes(checks(sessionm_core={"state": "limiting", "error": error}))
        assert cause.reason.endswith(end)


def test_messages_that_wait_while_delivery_is_paused_are_counted() -> None:
    paused = checks(delivery={"held_by": "hand"})
    [cause] = causes(paused | {"delivery_to_braze": {"queued": 27, "oldest_seconds": 5}}, QUEUE)
    assert "27 messages to Braze wait too" in cause.do


def test_writes_that_wait_for_a_sessionm_that_is_away_are_no_second_incident() -> None:
    away = checks(
        delivery={"held_by": "down", "reason": "SessionM is unavailable", "oldest_seconds": 900},
        sessionm_core={"state": "down", "error": "HTTP 503"},
    )
    [cause] = causes(away, QUEUE)
    assert cause.extent == QUEUE
    assert cause.search == {"state": "queued"}


SINCE = "2026-12-01T08:00:00Z"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"sessionm_connect": {"state": "refusing", "idle_since": SINCE}},
            f"SessionM Connect refused one call after the other until {SINCE}; no call since.",
        ),
        (
            {"sessionm_core": {"state": "down", "error": "HTTP 503", "idle_since": SINCE}},
            f"SessionM Core was down until {SINCE}; no call since: HTTP 503.",
        ),
        (
            {"delivery": {"held_by": "refused", "reason": "HTTP 401", "idle_since": SINCE}},
            f"Delivery is paused: HTTP 401. The last call was at {SINCE}; the next write tries",
        ),
    ],
)
def test_what_has_not_been_tried_since_is_said_in_the_past(
    changes: dict[str, dict[str, Any]], says: str
) -> None:
    [cause] = causes(checks(**changes))
    assert cause.reason.startswith(says)


def test_a_rate_that_rounds_to_nothing_is_left_out_of_the_forecast() -> None:
    assert outlook({"done_in_seconds": 76, "rate_per_second": 0.04}) == "done in about 1 min 16 s"


def test_a_failure_without_a_later_call_began_before_that_call_ended() -> None:
    failed = checks(sessionm_connect={"state": "failing", "idle_since": SINCE})
    [one] = follow([], causes(failed), 2e9)
    assert as_json(one)["since"] == SINCE


@pytest.mark.parametrize(
    ("lookups", "late", "unavailable", "is_late"),
    [
        (99, 99, 0, False),
        (100, 1, 0, False),
        (100, 2, 0, True),
        (100, 1, 1, True),
        (1000, 10, 0, False),
        (1000, 0, 11, True),
    ],
)
def test_over_one_percent_of_at_least_a_hundred_lookups(
    lookups: int, late: int, unavailable: int, *, is_late: bool
) -> None:
    cache = {"lookups": lookups, "late": late, "unavailable": unavailable}
    assert codes(causes(checks(cache=cache))) == ["lookups_late"] * is_late


@pytest.mark.parametrize(
    ("core", "is_consequence"),
    [
        ({"state": "down", "error": "HTTP 503"}, True),
        # Of SessionM's writes alone: they do not explain late lookups.
        ({"state": "down", "error": "HTTP 503", "answers_lookups": True}, False),
        ({"state": "refusing", "error": "HTTP 422"}, False),
    ],
)
def test_late_lookups_are_a_part_of_the_outage_that_explains_them(
    core: dict[str, Any], *, is_consequence: bool
) -> None:
    found = causes(checks(cache={"lookups": 200, "unavailable": 100}, sessionm_core=core))
    [late] = [one for one in follow([], found, 100.0) if one.cause.code == "lookups_late"]
    assert late.cause.is_consequence is is_consequence


def dead(reason: str = "HTTP 200: VALIDATION bad tag", **more: Any) -> DeadGroup:
    return DeadGroup(reason, reason, 1000.0, 1010.0, Extent(53, 5, ("a", "b")), **more)


@pytest.mark.parametrize(
    ("group", "state", "failed", "order", "advice"),
    [
        (dead(), "up", False, "", "Correct what SessionM refuses"),
        (dead(mended=True), "up", False, "replay", "SessionM has taken a newer event"),
        (dead(mended=True), "down", True, "", "once SessionM answers again"),
        (dead("HTTP 404: USER_NOT_FOUND"), "up", False, "", "Create the customers"),
        (dead("HTTP 503: gone", passing=True), "down", True, "", "Wait until SessionM answers"),
        (dead("HTTP 503: gone", passing=True), "up", False, "replay", "SessionM answers again"),
        (dead("HTTP 503: gone", passing=True), "unknown", False, "replay", "SessionM answers"),
        (dead("HTTP 503: gone", passing=True), "unknown", True, "", "If `bridge check` finds"),
    ],
)
def test_replay_is_offered_only_after_the_cause_has_ended(
    group: DeadGroup, state: str, order: str, advice: str, *, failed: bool
) -> None:
    core = {"state": state, "last_call_failed": failed}
    found = causes(checks(sessionm_core=core), dead=[group])
    [cause] = [one for one in found if one.code == "dead_writes"]
    assert (cause.order, cause.since) == (order, 1000.0)
    assert advice in cause.do
    assert cause.search == {"state": "dead", "text": group.text}


def test_each_reason_of_dead_writes_is_an_incident_of_its_own() -> None:
    found = follow([], causes(checks(), dead=[dead(), dead("HTTP 400: ARGUMENT_ERROR")]), 2000.0)
    assert [one.cause.subject for one in found] == [
        "HTTP 200: VALIDATION bad tag",
        "HTTP 400: ARGUMENT_ERROR",
    ]
    shown = as_json(found[0])
    assert shown == {
        "code": "dead_writes",
        "since": "1970-01-01T00:16:40Z",
        "reason": "53 writes are dead: HTTP 200: VALIDATION bad tag.",
        "do": found[0].cause.do,
        "writes": 53,
        "customers": 5,
        "campaigns": ["a", "b"],
        **dict.fromkeys(("events", "webhooks", "lookups", "stale"), 0),
    }


@pytest.mark.parametrize(
    ("reason", "kind", "text"),
    [
        (
            'HTTP 200: VALIDATION Tag "x-7" of user a3f1c2d4-0b5e is bad',
            "HTTP 200: VALIDATION Tag … of user … is bad",
            "HTTP 200: VALIDATION Tag",
        ),
        ("HTTP 503: no SessionM answer in the body", None, None),
        (
            "Braze may have sent it or not: HTTP 200: no Braze answer in the body",
            "Braze may have sent it or not: HTTP 200: no Braze answer in the body",
            None,
        ),
        ("HTTP 400: ann.21@acme.com is no customer of 12345", None, " is no customer of "),
        ("", "no reason", ""),
    ],
)
def test_reasons_of_one_kind_are_one_whatever_they_name(
    reason: str, kind: str | None, text: str | None
) -> None:
    found = kind_of(reason)
    assert kind is None or found == kind
    assert "ann.21" not in found
    assert "12345" not in found
    assert text_of(found) == (found if text is None else text.strip())
    assert text_of(found) in reason


def test_lookups_that_are_answered_again_are_past_with_the_end_of_the_incident() -> None:
    cache = {"lookups": 200, "unavailable": 90}
    [present] = causes(checks(cache=cache))
    assert "go out without their content" in present.reason
    past = {"last_failed_at": SINCE, "counts_until": "2026-12-01T08:05:00Z"}
    [cause] = causes(checks(cache=cache | past))
    assert f"the last one at {SINCE}: messages went out" in cause.reason
    assert "answered in time again" in cause.do
    assert "at 2026-12-01T08:05:00Z at the latest" in cause.do


def test_all_writes_that_sessionm_refuses_now_are_named_with_the_newest_dead_ones() -> None:
    refusing = checks(
        sessionm_core={"state": "refusing"},
        delivery={"dead": 106, "refuses_writes": True, "idle_since": ""},
    )
    old = replace(dead("HTTP 400: ARGUMENT_ERROR"), until=1001.0)
    newest, older = causes(refusing, dead=[dead(), old])
    assert newest.reason.endswith("bad tag. SessionM refuses every write now.")
    assert older.reason.endswith("ARGUMENT_ERROR.")


@pytest.mark.parametrize(
    ("extent", "says"),
    [
        (Extent(222, 40, events=204), "204 events (222 writes) are dead: "),
        (Extent(2, 1, events=1), "1 event (2 writes) is dead: "),
    ],
)
def test_dead_events_are_counted_as_a_replay_counts_them(extent: Extent, says: str) -> None:
    [cause] = causes(checks(), dead=[replace(dead(), extent=extent)])
    assert cause.reason.startswith(says)
    assert as_json(*follow([], [cause], 2000.0))["events"] == extent.events


def test_writes_that_get_no_answer_while_lookups_do_may_have_been_written() -> None:
    delivery = {"held_by": "down", "reason": "SessionM is unavailable (reset)", "error": "reset"}
    core = {"state": "down", "answers_lookups": True}
    [cause] = causes(checks(delivery=delivery, sessionm_core=core), QUEUE)
    assert cause.reason == "Delivery is held up: SessionM does not answer our writes (reset)."
    assert "may have been written" in cause.do


# --- In time ------------------------------------------------------------------------------------

DOWN = Cause("sessionm_down", "It is down.", "Wait.", subject="Core", extent=QUEUE)


def test_an_incident_keeps_its_beginning_and_ends_with_its_cause() -> None:
    [opened] = follow([], [DOWN], 100.0)
    [later] = follow([opened], [DOWN], 160.0)
    assert (later.since, later.until) == (100.0, None)
    [closed] = follow([later], [], 200.0)
    assert (closed.since, closed.until) == (100.0, 200.0)
    assert as_json(closed)["until"] == "1970-01-01T00:03:20Z"
    assert follow([closed], [], 900.0) == [closed]


FAILS = Cause("sessionm_fails", "It is failing.", "Wait.", subject="Core", extent=QUEUE)


def test_what_fails_then_is_down_and_fails_again_at_the_end_is_one_incident() -> None:
    known: list[Incident] = []
    for at, found in ((100.0, FAILS), (110.0, DOWN), (150.0, None), (160.0, FAILS)):
        known = follow(known, [found] if found else [], at)
        assert len(known) == 1
    assert (known[0].cause, known[0].since, known[0].until) == (FAILS, 100.0, None)
    [closed] = follow(known, [], 162.0)
    assert (closed.cause, closed.since, closed.until) == (DOWN, 100.0, 162.0)


def test_an_outage_that_two_processes_notice_at_the_same_time_is_one_incident() -> None:
    both = [*follow([], [DOWN], 101.0), *follow([], [FAILS], 100.0)]
    [one] = follow(both, [DOWN], 110.0)
    assert (one.cause, one.since) == (DOWN, 100.0)


def test_of_equally_bad_moments_a_past_incident_shows_the_first() -> None:
    garbage = replace(DOWN, reason="It answers garbage.")
    known = follow(follow([], [garbage], 100.0), [], 150.0)
    [closed] = follow(follow(known, [DOWN], 160.0), [], 170.0)
    assert (closed.cause, closed.since, closed.until) == (garbage, 100.0, 170.0)


def test_a_past_incident_names_each_failure() -> None:
    lost = replace(DOWN, reason="It is down: reset.", error="reset")
    garbage = replace(DOWN, reason="It is down: HTML.", error="HTML")
    known = follow(follow(follow([], [lost], 100.0), [garbage], 110.0), [garbage], 120.0)
    assert known[0].cause.reason == "It is down: HTML."
    [closed] = follow(known, [], 130.0)
    assert closed.cause.reason == "It is down: reset. Also: HTML."


def test_a_cause_that_began_after_the_end_of_an_incident_is_another_one() -> None:
    first = Cause("delivery_paused", "It is paused.", "Resume it.", since=100.0)
    known = follow(follow([], [first], 101.0), [], 110.0)
    known = follow(known, [replace(first, since=120.0)], 121.0)
    assert [(one.since, one.until) for one in known] == [(120.0, None), (100.0, 110.0)]


def test_a_closed_one_shows_its_worst() -> None:
    first = follow([], [DOWN], 100.0)
    fewer = {"extent": Extent(7, 3, ("winter",)), "reason": "It was down."}
    second = follow(first, [Cause(**{**vars(DOWN), **fewer})], 160.0)
    assert second[0].extent == Extent(7, 3, ("winter",))
    assert as_json(second[0])["reason"] == "It was down."
    [closed] = follow(second, [], 200.0)
    assert closed.extent == Extent(103, 41, ("winter", "summer"))
    assert as_json(closed)["reason"] == "It is down."


def test_late_lookups_of_the_past_show_the_largest_share() -> None:
    known: list[Incident] = []
    for late in (20, 900, 30):
        known = follow(known, causes(checks(cache={"lookups": 1000, "late": late})), 100.0)
    [closed] = follow(known, [], 200.0)
    assert "90 % took over 2 s" in as_json(closed)["reason"]


def test_refused_calls_are_another_incident_than_refused_credentials() -> None:
    def refusing(error: str) -> list[Cause]:
        return causes(checks(sessionm_core={"state": "refusing", "error": error}))

    known = follow(follow([], refusing("HTTP 401: no"), 100.0), refusing("HTTP 422: no"), 160.0)
    assert [(one.cause.code, one.since, one.until) for one in known] == [
        ("sessionm_refuses", 160.0, None),
        ("sessionm_refuses", 100.0, 160.0),
    ]


def test_a_cause_that_is_back_at_once_has_not_been_away() -> None:
    [closed] = follow(follow([], [DOWN], 100.0), [], 200.0)
    [same] = follow([closed], [DOWN], 199.0 + REOPENS)
    assert (same.since, same.until) == (100.0, None)
    found = follow([closed], [DOWN], 201.0 + REOPENS)
    assert [(one.since, one.until) for one in found] == [
        (201.0 + REOPENS, None),
        (100.0, 200.0),
    ]


def test_a_heartbeat_that_could_not_be_stored_is_no_stopped_delivery() -> None:
    locked = Cause("store_locked", "It is locked.", "End it.")
    stopped = Cause("delivery_stopped", "It has stopped.", "Start it.", since=90.0)
    known = follow([], [locked], 100.0)
    [ended] = follow(known, [stopped], 110.0)
    assert (ended.cause.code, ended.until) == ("store_locked", 110.0)
    assert [one.cause.code for one in follow([ended], [stopped], 120.0)] == [
        "delivery_stopped",
        "store_locked",
    ]
    # It was found before the lock.
    both = follow(follow([], [stopped], 100.0), [locked, stopped], 105.0)
    assert [one.cause.code for one in follow(both, [], 130.0)] == ["store_locked"]


@pytest.mark.parametrize(
    "code", ["delivery_stopped", "messages_stopped", "sessionm_fails", "braze_fails"]
)
def test_a_start_of_the_bridge_and_one_failed_call_are_not_remembered(code: str) -> None:
    brief = Cause(code, "It has stopped.", "Start it.")
    assert follow(follow([], [brief], 100.0), [], 104.0) == []
    assert len(follow(follow([], [brief], 100.0), [], 106.0)) == 1


def test_open_ones_come_first_by_weight_then_the_closed_ones_newest_first() -> None:
    old = [
        Incident(Cause("dead_writes", "Old.", ""), 1.0, 1000.0),
        Incident(Cause("delivery_late", "Newer.", ""), 2.0, 2000.0),
    ]
    found = follow(old, [Cause("braze_budget", "B.", ""), Cause("store_full", "S.", "")], 9000.0)
    assert [one.cause.code for one in found] == [
        "store_full",
        "braze_budget",
        "delivery_late",
        "dead_writes",
    ]
    connect = Cause("sessionm_down", "Connect is down.", "", "Connect", since=100.0)
    two = follow([], [connect, DOWN], 160.0)
    assert [one.cause for one in two] == [DOWN, connect]
    month = KEPT_DAYS * 86400
    assert [one.cause.reason for one in follow(old, [], 1000.0 + month)] == ["Newer."]


def test_past_incidents_are_in_the_order_of_their_start() -> None:
    long = Incident(Cause("lookups_late", "L.", ""), 100.0, 900.0)
    short = Incident(Cause("braze_budget", "B.", ""), 200.0, 300.0)
    assert follow([long, short], [], 9000.0) == [short, long]


def test_what_only_the_store_knows_stays_open() -> None:
    opened = follow([], [DOWN, Cause("dead_writes", "Dead.", "")], 100.0)
    found = follow(opened, [Cause("store_locked", "Locked.", "")], 200.0, store_is_up=False)
    assert [(one.cause.code, one.until) for one in found] == [
        ("store_locked", None),
        ("dead_writes", None),
        ("sessionm_down", 200.0),
    ]
