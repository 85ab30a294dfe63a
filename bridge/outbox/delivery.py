"""The delivery loop: waiting writes go to SessionM until it has them, once.

One process delivers at a time, whoever holds the lock; the others stand by. So rate limit,
order per customer, merging and pause live in this loop's memory.
"""

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bridge.customer import Customer
from bridge.database import StoreUnavailableError
from bridge.locks import DELIVERER
from bridge.outbox.gate import Gate, Mode
from bridge.outbox.plan import Call, Expire, Wait, next_step
from bridge.outbox.schema import State
from bridge.outbox.store import Finished, QueuedWrite, Store
from bridge.outbox.verdict import Action, judge
from bridge.sessionm.answers import SessionMError
from bridge.sessionm.client import SessionM

log = logging.getLogger(__name__)

POLL = 0.2
STANDBY_POLL = 0.5
HEARTBEAT = 2.0
CALL_TIMEOUT = 10.0
# Names of shared facts.
HEARTBEAT_FACT = "delivery"
PAUSE_FACT = "delivery_paused"

OnDelivered = Callable[[Customer, Mapping[str, Any]], None]
# A call of ours that broke is tried again after so long; SessionM has no part in it.
OWN_FAULT_WAIT = 30.0
CLEANING = 60.0


@dataclass(frozen=True)
class _Sent:
    """How a call ended: what to record, and SessionM's *error* if it made one."""

    finished: Finished
    error: SessionMError | None = None


@dataclass(frozen=True)
class Limits:
    """*rps*: tag writes a second; *concurrency*: calls under way; *max_tries* of a write."""

    rps: float
    concurrency: int
    max_tries: int


class Delivery:
    """The loop, as a thread of its own.

    Args:
        store: where the writes wait.
        sessionm: where they go.
        limits: how fast and how often.
        on_delivered: told the customer and SessionM's answer before the write counts as
            delivered, so that no lookup serves older tags afterwards.
        clean: what one process shall do once a minute: drop what is too old to keep.
    """

    def __init__(
        self,
        store: Store,
        sessionm: SessionM,
        limits: Limits,
        on_delivered: OnDelivered = lambda _customer, _answer: None,
        clean: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._locks = store.database.locks
        self._sessionm = sessionm
        self._limits = limits
        self._on_delivered = on_delivered
        self._clean = clean
        self._gate = Gate(limits.concurrency)
        self._tokens = _Bucket(limits.rps)
        self._under_way: dict[str, Future[_Sent]] = {}
        self._beat_at = 0.0
        self._cleaned_at = 0.0
        self._paused_by_hand = False
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._cleaner = threading.Thread()

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name="delivery", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 25.0) -> None:
        """Start no more calls, let those under way finish, and end."""
        self.begin_to_end()
        if self._thread is not None:
            self._thread.join(timeout)

    def begin_to_end(self) -> None:
        """Start no more calls. Does not wait, so that a signal handler may call it."""
        self._stopping.set()
        self._wake.set()

    @property
    def is_ending(self) -> bool:
        """Whether this process will deliver nothing more."""
        return self._stopping.is_set()

    def nudge(self, _customer: Customer | None = None) -> None:
        """Something was accepted: look at once."""
        self._wake.set()

    def run(self) -> None:
        """Deliver whenever the lock is ours, until `stop`."""
        while not self._stopping.is_set():
            try:
                if self._locks.try_acquire(DELIVERER):
                    self._deliver()
            except Exception:
                # A fault of ours: what was accepted is on disk, so begin afresh, but not hastily.
                log.exception("delivery failed", extra={"action": "delivery_failed"})
                self._stopping.wait(OWN_FAULT_WAIT / 10)
            self._stopping.wait(STANDBY_POLL)

    def _deliver(self) -> None:
        log.info("delivering", extra={"action": "delivery_started", "pid": os.getpid()})
        with ThreadPoolExecutor(self._limits.concurrency, "sender") as senders:
            try:
                while not self._stopping.is_set():
                    try:
                        self._step(senders)
                    except StoreUnavailableError as error:
                        log.warning("delivery waits: %s", error, extra={"action": "no_store"})
                        self._stopping.wait(1.0)
            finally:
                try:
                    self._drain()
                finally:
                    self._locks.release(DELIVERER)

    def _step(self, senders: ThreadPoolExecutor) -> None:
        self._wake.clear()
        self._record_finished()
        self._beat()
        self._clean_up()
        started = self._launch(senders)
        self._wake.wait(0.005 if started else self._pause())

    def _launch(self, senders: ThreadPoolExecutor) -> int:
        """Start as many calls as the gate, the rate and the queue allow."""
        now = time.time()
        room = 0 if self._paused_by_hand else self._gate.room(now, len(self._under_way))
        room = min(room, self._tokens.whole())
        if room <= 0:
            return 0
        started = 0
        for customer, queue in self._store.due(now, room * 4, self._under_way).items():
            if started >= room:
                break
            step = next_step(queue, now)
            if isinstance(step, Wait):
                self._store.postpone(customer, step.until)
            elif isinstance(step, Expire):
                finished = _expired(step.writes, now)
                self._store.record([finished])
                _log(finished)
            else:
                self._tokens.take()
                self._start(senders, step)
                started += 1
        return started

    def _start(self, senders: ThreadPoolExecutor, call: Call) -> None:
        outage = self._gate.mode is Mode.DOWN
        future = senders.submit(self._send, call, outage=outage)
        self._under_way[call.customer] = future
        future.add_done_callback(lambda _future: self._wake.set())

    def _send(self, call: Call, *, outage: bool) -> _Sent:
        """Carry out *call* (in a thread of the pool) and say what became of it."""
        started = time.time()
        intent: Mapping[str, Any] | None = call.writes[0].intent
        sent = False
        try:
            if call.counts:
                known = self._counts(call)
                if intent and (told := _already_counted(call, known)):
                    return _Sent(_told(call, told, started))
                intent = {"id": uuid.uuid4().hex, "at": time.time(), "before": known}
                self._store.intend([write.seq for write in call.writes], intent)
            sent = True
            answer = self._sessionm.write_tags(
                Customer.from_key(call.customer), call.tags, call.ttl, CALL_TIMEOUT
            )
        except SessionMError as error:
            doubtful = call.counts and (not sent or error.may_have_worked)
            kept = intent if doubtful else None
            return _Sent(self._failed(call, error, started, kept, outage=outage), error)
        self._on_delivered(Customer.from_key(call.customer), answer)
        return _Sent(_finished(call, State.DELIVERED, "delivered", started, status=200))

    def _counts(self, call: Call) -> dict[str, int]:
        """What SessionM counts now for the tags of *call*."""
        answer = self._sessionm.read_tags(Customer.from_key(call.customer), CALL_TIMEOUT)
        tags = answer.get("tags") or {}
        return {tag: int(tags.get(tag) or 0) for tag in call.tags}

    def _failed(
        self,
        call: Call,
        error: SessionMError,
        started: float,
        intent: Mapping[str, Any] | None,
        *,
        outage: bool,
    ) -> Finished:
        tries = max(write.attempts for write in call.writes)
        verdict = judge(error, tries, self._limits.max_tries, random.random, outage=outage)
        return _finished(
            call,
            State.DEAD if verdict.action is Action.DEAD else State.QUEUED,
            error.meaning.value,
            started,
            status=error.status,
            error=str(error),
            next_at=time.time() + verdict.seconds,
            counted=verdict.counted,
            intent=intent,
        )

    def _record_finished(self) -> None:
        ended = {c: future for c, future in self._under_way.items() if future.done()}
        broken = {c: error for c, future in ended.items() if (error := future.exception())}
        sent = [future.result() for c, future in ended.items() if c not in broken]
        # If one of these fails they stay under way, and are recorded at the next step.
        if sent:
            self._store.record([one.finished for one in sent])
        for customer in broken:
            self._store.postpone(customer, time.time() + OWN_FAULT_WAIT)
        for customer in ended:
            del self._under_way[customer]
        for one in sent:
            self._gate.saw(one.error, time.time())
            _log(one.finished)
        for customer, error in broken.items():
            extra = {"action": "call_failed", "customer": customer}
            log.error("a call failed inside the bridge", exc_info=error, extra=extra)

    def _drain(self) -> None:
        """Wait for what is under way and record it; a store that is away cannot be waited for."""
        for future in list(self._under_way.values()):
            future.exception()
        try:
            self._record_finished()
        except StoreUnavailableError as error:
            # They stay as they were: counters are read back before they are sent again.
            log.error("not recorded: %s", error, extra={"action": "not_recorded"})
        self._under_way.clear()

    def _beat(self) -> None:
        """Tell all processes that the loop is alive, and hear whether it shall pause."""
        now = time.time()
        if now - self._beat_at < HEARTBEAT:
            return
        self._paused_by_hand = bool(self._store.fact(PAUSE_FACT))
        self._store.set_fact(
            HEARTBEAT_FACT,
            {
                "at": now,
                "pid": os.getpid(),
                "mode": self._gate.mode.value,
                "reason": self._gate.told(now),
                "under_way": len(self._under_way),
            },
        )
        self._beat_at = now

    def _clean_up(self) -> None:
        """Once a minute, beside the loop: a year's old events may not hold up a new one."""
        if time.time() - self._cleaned_at > CLEANING and not self._cleaner.is_alive():
            self._cleaned_at = time.time()
            self._cleaner = threading.Thread(target=self._clean, name="cleaner", daemon=True)
            self._cleaner.start()

    def _pause(self) -> float:
        """How long to sleep when nothing could be started."""
        return min(POLL, self._tokens.seconds_to_one() or POLL)


class _Bucket:
    """A token bucket that holds a tenth of a second's worth, so that there are no bursts."""

    def __init__(self, rps: float) -> None:
        self._rps = rps
        self._size = max(1.0, rps / 10)
        self._tokens = 1.0
        self._at = time.monotonic()

    def whole(self) -> int:
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rps)
        self._at = now
        return int(self._tokens)

    def take(self) -> None:
        self._tokens -= 1

    def seconds_to_one(self) -> float:
        return max(0.0, (1 - self._tokens) / self._rps)


def _already_counted(call: Call, now: Mapping[str, int]) -> str:
    """Whether a counter's call that was sent before has worked, by counts before and *now*.

    Returns:
        "counted": it has; "uncertain": it cannot be told, and counting twice would be worse
        than not counting; "": it has not.
    """
    before = (call.writes[0].intent or {}).get("before", {})
    risen = {now.get(tag, 0) - before.get(tag, 0) for tag in call.tags}
    if risen == {1}:
        return "counted"
    return "uncertain" if max(risen) > 0 else ""


def _told(call: Call, told: str, started: float) -> Finished:
    return _finished(
        call,
        State.DELIVERED,
        "read_back" if told == "counted" else "uncertain",
        started,
        status=200,
        uncertain=told == "uncertain",
    )


def _finished(call: Call, state: State, outcome: str, started: float, **more: Any) -> Finished:
    milliseconds = round((time.time() - started) * 1000)
    return Finished(
        call.writes, state, at=started, outcome=outcome, milliseconds=milliseconds, **more
    )


def _expired(expired: tuple[QueuedWrite, ...], now: float) -> Finished:
    reason = "its TTL had run out before SessionM could be reached"
    return Finished(expired, State.EXPIRED, now, "expired", error=reason, counted=False)


def _log(result: Finished) -> None:
    for write in result.writes:
        log.info(
            "write %s",
            result.outcome,
            extra={
                "action": result.outcome,
                "event": write.event_id,
                "write": write.seq,
                "customer": write.customer,
                "state": result.state.value,
                "status": result.status,
                "milliseconds": result.milliseconds,
                "error": result.error,
            },
        )
