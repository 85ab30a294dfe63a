"""The delivery loop: sends each queued write until its destination has accepted the write.

Only the process that holds the lock delivers; all others stand by. So the rate limit, the breaker
and the calls in flight are kept in this loop's memory; the operator's pause is a shared fact. The
loop checks the lock before each call, and again right before the first byte of the call. After a
process has lost the lock, the store refuses its results.
"""

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bridge import clock
from bridge.breaker import LONGEST_RETRY_AFTER, Breaker, Mode
from bridge.fields import iso
from bridge.network.failure import NotSentError
from bridge.outbox.clocks import HEARTBEAT_FACTS, ClockKeeper, correct_clock
from bridge.outbox.destination import (
    CALL_TIMEOUT,
    DeliveryCall,
    Destination,
    End,
    Gate,
    Planned,
    Reply,
    Wait,
    call_result,
)
from bridge.outbox.model import AFTER_BATCH, CallResult, Direction, QueuedWrite, State
from bridge.outbox.rate import TokenBucket
from bridge.outbox.store import Store
from bridge.storage.database import StillUnavailableError, StoreUnavailableError
from bridge.storage.locks import BRAZE_DELIVERER, DELIVERER, LostLockError
from bridge.storage.wakeup import Wakeup, wait

log = logging.getLogger(__name__)

# Seconds, see `Intervals`.
POLL = 0.2
STANDBY_POLL = 0.5
# Seconds of sleep after each round of the loop.
ROUND_PAUSE = 0.005
# Seconds. One transaction records all calls that end within this time, and one query reads the
# customers of all calls that start within it, since each transaction and query has a fixed cost.
BATCH_WINDOW = 0.05
# Customers. One query reads at least this number, as some of them may have to wait.
MIN_PLANNED = 16
# Divisor, and calls. One BATCH_WINDOW starts at most concurrency / START_SHARE calls, but at least
# MIN_STARTED: calls that start together end together, and then delay other work of this machine.
START_SHARE = 12
MIN_STARTED = 4
# Seconds between two heartbeats.
HEARTBEAT = 2.0
# Seconds without a heartbeat after which the loop counts as dead.
DEAD_AFTER = 5 * HEARTBEAT
# Numbers of the locks that a process must hold to deliver.
LOCKS = {Direction.TO_SESSIONM: DELIVERER, Direction.TO_BRAZE: BRAZE_DELIVERER}
# Name of the shared fact that holds the operator's order.
PAUSE_FACT = "delivery_paused"
# Seconds until the retry of a call that failed by an error inside the bridge.
INTERNAL_ERROR_WAIT = 30.0
# Seconds between two runs of `clean`.
CLEAN_INTERVAL = 60.0


class _InFlight(NamedTuple):
    """A call in a sender thread; *marks* are the results of `Destination.begin` by customer."""

    call: DeliveryCall
    marks: Mapping[str, Any]
    future: Future[Reply]
    began_at: float  # by `clock.steady`


@dataclass(frozen=True)
class Limits:
    """*rps*: most calls a second; *concurrency*: most calls in flight."""

    rps: float
    concurrency: int


@dataclass(frozen=True)
class Intervals:
    """Seconds between two periodic actions of the loop.

    Attributes:
        poll: reading the queue, if nothing wakes the loop earlier.
        standby: attempts to acquire the lock.
        heartbeat: storing a heartbeat and reading the operator's order.
    """

    poll: float = POLL
    standby: float = STANDBY_POLL
    heartbeat: float = HEARTBEAT


class BulkSender(Protocol):
    """Delivers some of the queued writes in another way than by calls of the loop.

    `begin`, `step` and `is_waiting` raise `StoreUnavailableError` while the database cannot be
    used; the loop then calls them again.
    """

    def begin(self, record: Callable[[list[CallResult]], None]) -> None:
        """Start when this process holds the lock. *record* records results of writes."""

    def step(self, busy: Collection[str], *, may_gather: bool, may_send: bool) -> None:
        """Take queued writes over from the loop: they become due `AFTER_BATCH`.

        Args:
            busy: customers (keys) whose writes must be left to the loop.
            may_gather: whether writes may be taken.
            may_send: whether SessionM may be called.
        """

    def is_waiting(self) -> bool:
        """Return whether it has sent something that has not ended."""

    def takes(self, due: Sequence[QueuedWrite]) -> bool:
        """Return whether the loop must not send these *due* writes: a later `step` takes them."""

    def end(self, *, wait: bool = True) -> None:
        """Start nothing more, and *wait* for calls in flight."""


class Delivery:
    """The loop, in its own thread.

    Args:
        store: the queue.
        destination: receives the writes.
        limits: of the calls.
        on_recorded: called with the customer (a key) after the state of a write has changed.
        clean: called once a minute by the process that delivers: deletes old rows.
        count: called with a name (``delivered``, ``dead``, ``expired``: events; ``writes_sent``)
            and a number to add to it.
        on_beat: called after every heartbeat by the process that delivers.
        bulk: delivers writes by batch jobs, beside the loop.
        accepted: set when an event was accepted by any process of this machine.
        intervals: of periodic actions.

    Attributes:
        is_stopping: whether this process has been asked to stop.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        limits: Limits,
        *,
        count: Callable[[str, int], None],
        accepted: Wakeup,
        intervals: Intervals,
        on_recorded: Callable[[str], None] = lambda _customer: None,
        clean: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
        bulk: BulkSender | None = None,
    ) -> None:
        self._intervals = intervals
        self._store = store
        self._locks = store.database.locks
        self._lock = LOCKS[store.direction]
        self._heartbeat_fact = HEARTBEAT_FACTS[store.direction]
        self._name = uuid.uuid4().hex
        self._destination = destination
        self._limits = limits
        self._on_recorded = on_recorded
        self._clean = clean
        self._count = count
        self._on_beat = on_beat
        self._breaker = Breaker()
        self._tokens = TokenBucket(limits.rps)
        self._clock = ClockKeeper(store)
        # Key: the first customer of each call.
        self._in_flight: dict[str, _InFlight] = {}
        # Customers who are due, by the last query.
        self._planned: dict[str, Planned] = {}
        self._planned_at = 0.0
        self._recorded_at = self._room_at = 0.0
        # All times of this loop are by `clock.steady`.
        self._beat_at = self._cleaned_at = -math.inf
        self._is_paused = False
        # Id of the operator's last order that this loop has carried out.
        self._order: str | None = None
        self._took_over = False
        self._acquired_at = 0.0
        self.is_stopping = False
        self._stop = Wakeup()
        self._accepted = accepted
        self._wake = Wakeup()
        # Whether a newly accepted event could start a call now.
        self._wakes_on_accept = False
        self._thread: threading.Thread | None = None
        self._cleaner = threading.Thread()
        self._bulk = bulk

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name=self._heartbeat_fact, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Start no more calls, wait for calls in flight, and end the thread."""
        self.begin_shutdown()
        if self._thread is not None:
            # A server that stops gives its workers 30 s.
            self._thread.join(25.0)

    def begin_shutdown(self) -> None:
        """Start no more calls. For signal handlers: it takes no lock, and returns at once."""
        self.is_stopping = True
        self._stop.set()

    def run(self) -> None:
        """Deliver while this process holds the lock, until `stop`."""
        while not self.is_stopping:
            try:
                self._clock.report()
                if self._locks.try_acquire(self._lock):
                    try:
                        self._deliver()
                    finally:
                        self._locks.release(self._lock)
            except StillUnavailableError as error:
                log.debug("delivery waits: %s", error)
            except (LostLockError, StoreUnavailableError) as error:
                log.warning(
                    "delivery by this process ends: %s", error, extra={"action": "lock_lost"}
                )
            except Exception:
                # An error of the bridge. All accepted events are on disk: start again.
                log.exception("delivery failed", extra={"action": "delivery_failed"})
                self._sleep(INTERNAL_ERROR_WAIT / 10)
            self._sleep(self._intervals.standby)

    def _sleep(self, seconds: float) -> None:
        """Sleep for *seconds*, but only until `begin_shutdown`."""
        wait(seconds, [self._stop])

    def _deliver(self) -> None:
        log.info(
            "delivering to %s",
            self._destination.name,
            extra={
                "action": "delivery_started",
                "pid": os.getpid(),
                "direction": self._store.direction.value,
            },
        )
        self._took_over = False
        self._planned.clear()
        self._acquired_at = clock.steady()
        with ThreadPoolExecutor(self._limits.concurrency, "sender") as senders:
            try:
                while not self.is_stopping and self._holds_lock():
                    try:
                        self._step(senders)
                    except StoreUnavailableError as error:
                        log.warning("delivery is waiting: %s", error, extra={"action": "no_store"})
                        self._sleep(1.0)
            finally:
                self._drain()

    def _step(self, senders: ThreadPoolExecutor) -> None:
        self._wake.clear()
        self._accepted.clear()
        self._wakes_on_accept = True
        if not self._took_over:
            self._take_over()
        self._record_finished()
        self._beat()
        self._clean_up()
        self._step_bulk()
        if not self._launch(senders):
            # Accepted events wake the loop only while they could start a call.
            wakeups = [self._wake, self._stop]
            wait(self._pause(), [*wakeups, self._accepted] if self._wakes_on_accept else wakeups)
        self._sleep(ROUND_PAUSE)

    def _holds_lock(self) -> bool:
        return self._locks.is_held(self._lock)

    def _take_over(self) -> None:
        """Continue from the state that the last holder of the lock has stored."""
        if not self._store.has_released(self._name):
            # The last holder may not have noticed yet that it has lost the lock.
            self._sleep(self._acquired_at + self._locks.grace - clock.steady())
        self._store.take_over(self._name)
        correct_clock(self._store)
        beat = self._store.fact(self._heartbeat_fact) or {}
        wait = min(beat.get("hold_until", 0.0) - clock.now(), LONGEST_RETRY_AFTER)
        self._breaker.hold(clock.steady() + wait)
        self._order = beat.get("order")
        if self._bulk:
            self._bulk.begin(self.record)
        self._took_over = True

    def _launch(self, senders: ThreadPoolExecutor) -> int:
        """Start as many calls as the breaker, the rate limit and the queue allow.

        Returns:
            The number of customers whose queue has changed.
        """
        now = clock.now()
        room = self._room()
        if room <= 0 or self._tokens.is_empty():
            # No call can start: do not read the queue after every webhook.
            self._wakes_on_accept = False
            return 0
        if not self._planned or clock.steady() > self._planned_at + BATCH_WINDOW:
            self._plan(now)
        calls: list[tuple[DeliveryCall, Mapping[str, Any]]] = []
        ended: list[CallResult] = []
        postponed = 0
        while self._planned and len(calls) < room:
            customer = next(iter(self._planned))
            step = self._destination.plan(self._planned, now)
            if isinstance(step, Wait):
                postponed += self._postpone(customer, step.until)
                del self._planned[customer]
            elif isinstance(step, End):
                ended.append(step.result(now))
                del self._planned[customer]
            elif self._bulk and self._bulk.takes(step.writes):
                del self._planned[customer]
            elif step.takes_token_late or self._tokens.take():
                marks = {one: self._planned.pop(one).mark for one in step.customers}
                calls.append((step, marks))
            else:
                break
        self._start(senders, calls)
        self.record(ended)
        return len(calls) + len(ended) + postponed

    def _plan(self, now: float) -> None:
        """Read the customers who are due, as many as can start within `BATCH_WINDOW`."""
        self._planned = {}
        self._planned_at = clock.steady()
        soon = min(self._limits.concurrency // 2, int(self._limits.rps * BATCH_WINDOW))
        most = max(MIN_PLANNED, max(soon, MIN_STARTED) * self._destination.width)
        queues = self._store.due_queues(now, 2 * most, self._busy())
        customers = list(queues)[:most]
        if not customers:
            return
        marks = self._destination.begin(customers)
        self._planned = {
            customer: Planned(queues[customer], mark)
            for customer, mark in zip(customers, marks, strict=True)
        }

    def _busy(self) -> set[str]:
        """Return the customers with a call in flight."""
        return {customer for one in self._in_flight.values() for customer in one.marks}

    def _room(self) -> int:
        """Return how many calls may start.

        A call that has ended but is not recorded yet does not count as in flight, except while the
        breaker is open: a probe starts only when all other calls are recorded.
        """
        if self._is_paused:
            return 0
        running = [one for one in self._in_flight.values() if not one.future.done()]
        concurrency = self._limits.concurrency
        is_closed = self._breaker.mode is Mode.CLOSED
        in_flight = len(running) if is_closed else len(self._in_flight)
        room = self._breaker.room(clock.steady(), concurrency, in_flight)
        calls_left = self._destination.calls_left()
        if calls_left is not None:
            room = min(room, calls_left - in_flight)
        # A long round, as with a database far away, may start the calls of several rounds.
        rounds = max(1, int((clock.steady() - self._room_at) / BATCH_WINDOW))
        self._room_at = clock.steady()
        return min(room, rounds * max(MIN_STARTED, concurrency // START_SHARE))

    def _postpone(self, customer: str, until: float) -> bool:
        """Let *customer* wait; return whether the queue has certainly changed."""
        if until >= AFTER_BATCH:
            self._store.wait_for_batch(customer)
            return False
        self._store.postpone(customer, until)
        return True

    def _start(
        self,
        senders: ThreadPoolExecutor,
        calls: Sequence[tuple[DeliveryCall, Mapping[str, Any]]],
    ) -> None:
        outage = self._breaker.mode is Mode.DOWN
        gate = Gate(self._name, outage, self._holds_lock, self._take_token)
        for call, marks in calls:
            future = senders.submit(self._send, call, gate)
            self._in_flight[call.customers[0]] = _InFlight(call, marks, future, clock.steady())
            future.add_done_callback(lambda _future: self._wake.set())

    def _send(self, call: DeliveryCall, gate: Gate) -> Reply:
        """Make *call*, in a sender thread."""
        try:
            return self._destination.send(call, gate)
        except (NotSentError, LostLockError, StoreUnavailableError):
            # Not sent. If an intent is stored, the next call for this customer handles it.
            return Reply()

    def _take_token(self) -> bool:
        until = clock.steady() + CALL_TIMEOUT
        while not self.is_stopping and clock.steady() < until:
            held = self._breaker.is_held(clock.steady())
            if self._is_paused or held or not self._holds_lock():
                return False
            if self._tokens.take():
                return True
            time.sleep(0.005)
        return False

    def _record_finished(self) -> None:
        ended = {key: one for key, one in self._in_flight.items() if one.future.done()}
        # The breaker needs a failure at once; and if all calls have ended, none can join these.
        at_once = len(ended) == len(self._in_flight) or any(map(_failed, ended.values()))
        soon = clock.steady() < self._recorded_at + BATCH_WINDOW
        if not ended or (soon and not at_once):
            return
        self._recorded_at = clock.steady()
        replies = [_reply(one.call, one.future) for one in ended.values()]
        # If this fails, the calls stay in flight and are recorded in the next round.
        self._destination.end(
            [(o.call, o.marks, r) for o, r in zip(ended.values(), replies, strict=True)]
        )
        self.record([result for reply in replies for result in reply.results])
        for customer in ended:
            del self._in_flight[customer]
        for call, reply in zip(ended.values(), replies, strict=True):
            if reply.called:
                self._update_breaker(reply, call.began_at)
        if any(reply.hold or (reply.error and reply.error.retry_after) for reply in replies):
            # Store the requested wait at once: it must survive the end of this process.
            self._beat_at = -math.inf

    def record(self, results: list[CallResult]) -> None:
        """Record results of calls; then update lookups, logs and counters.

        Raises:
            LostLockError: another process has taken over the delivery.
            StoreUnavailableError: nothing is recorded.
        """
        if not results:
            return
        changed = self._store.record(results, self._name)
        for result in results:
            for customer in {write.customer for write in result.writes}:
                self._on_recorded(customer)
            _log(result)
            if result.state is State.DELIVERED:
                self._count("writes_sent", len(result.writes))
        for state in (State.DELIVERED, State.DEAD, State.EXPIRED):
            if number := changed[state]:
                self._count(state.value, number)

    def _update_breaker(self, reply: Reply, began_at: float) -> None:
        """Record the outcome of a call in the breaker, and log if the breaker opens or closes."""
        now = clock.steady()
        before, held = self._breaker.mode, self._breaker.is_held(now)
        self._breaker.record(reply.error, began_at, now)
        if reply.hold:
            wait = min(reply.hold, LONGEST_RETRY_AFTER)
            self._breaker.hold(max(self._breaker.hold_until, now + wait))
        self._tokens.limit(reply.pace)
        if self._breaker.mode is not before:
            self._log_mode()
        if self._breaker.is_held(now) and not held:
            extra = {"action": "delivery_held", "reason": self._reason()}
            log.warning("delivery is on hold", extra=extra)

    def _log_mode(self) -> None:
        mode = self._breaker.mode
        if mode is Mode.CLOSED:
            log.info("delivery continues", extra={"action": "delivery_open"})
        else:
            extra = {"action": f"delivery_{_HELD_BY[mode]}", "reason": self._reason()}
            log.warning("delivery stops: %s", self._reason(), extra=extra)

    def _reason(self) -> str:
        """Return why the delivery is on hold or paused; "" if it is not."""
        reason = _REASONS[self._held_by()]
        until = iso(self._hold_until())
        return reason.format(self._destination.name, cause=self._breaker.cause, until=until)

    def _held_by(self) -> str:
        """Return ``down``, ``refused`` or ``limit`` if the destination holds up delivery, or ""."""
        now = clock.steady()
        if self._breaker.state(now) == "limiting":
            return "limit" if self._breaker.is_held(now) else ""
        return _HELD_BY[self._breaker.mode]

    def _hold_until(self) -> float:
        """Return when the requested wait ends, by the store's clock."""
        return clock.now() + self._breaker.hold_until - clock.steady()

    def _drain(self) -> None:
        """Wait for calls in flight and record them, if the store is reachable."""
        if self._bulk:
            self._bulk.end(wait=False)
        for one in list(self._in_flight.values()):
            one.future.exception()
        try:
            try:
                self._record_finished()
            finally:
                # The next deliverer must not start batch jobs before this one has stopped.
                if self._bulk:
                    self._bulk.end()
            if self._took_over:
                self._store.release_delivery(self._name)
        except (StoreUnavailableError, LostLockError) as error:
            # The writes stay queued. Counters are read back before they are sent again.
            log.error("not recorded: %s", error, extra={"action": "not_recorded"})
        self._in_flight.clear()

    def _beat(self) -> None:
        """Store a heartbeat for all processes, and read the operator's order."""
        at = clock.steady()
        if at - self._beat_at < self._intervals.heartbeat:
            return
        if self._store.direction is Direction.TO_SESSIONM:
            is_idle = not self._in_flight and not (self._bulk and self._bulk.is_waiting())
            self._clock.adjust(self._intervals.heartbeat, is_idle=is_idle)
        self._clock.report()
        self._read_operator_order()
        held_by = self._held_by()
        self._store.set_fact(
            self._heartbeat_fact,
            {
                "at": clock.now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "held_by": held_by,
                "reason": self._reason(),
                # During a requested wait, the breaker still knows an earlier failure.
                "cause": self._breaker.cause if held_by != "limit" else "",
                "hold_until": self._hold_until(),
                # By the calls of this loop: those of lookups may end in another way.
                "destination": self._breaker.state(clock.steady()),
                "called_at": clock.now() - self._breaker.idle(clock.steady()),
                "order": self._order,
                "under_way": len(self._in_flight),
                **self._destination.report(),
            },
        )
        self._beat_at = at
        self._on_beat()

    def _read_operator_order(self) -> None:
        order = self._store.fact(PAUSE_FACT) or {}
        self._is_paused = bool(order.get("paused"))
        if order.get("id") != self._order:
            word = "paused" if self._is_paused else "resumed"
            extra = {"action": "order_carried_out", "by": order.get("by", "")}
            log.info("delivery is %s by hand", word, extra=extra)
            if not self._is_paused:
                self._breaker.try_now()
                self._tokens.limit(None)
                self._destination.forget_limit()
        self._order = order.get("id")

    def _clean_up(self) -> None:
        """Run `clean` once a minute in its own thread, so that it does not delay the loop."""
        if clock.steady() - self._cleaned_at > CLEAN_INTERVAL and not self._cleaner.is_alive():
            self._cleaned_at = clock.steady()
            self._cleaner = threading.Thread(target=self._clean, name="cleaner", daemon=True)
            self._cleaner.start()

    def _step_bulk(self) -> None:
        if self._bulk:
            room = self._breaker.room(clock.steady(), 1, 0)
            may_send = not self._is_paused and room > 0
            self._bulk.step(
                self._busy() | self._planned.keys(),
                may_gather=may_send and self._breaker.mode is Mode.CLOSED,
                may_send=may_send,
            )

    def _pause(self) -> float:
        """Return the seconds to sleep when no call could start."""
        poll = self._intervals.poll
        return min(poll, self._tokens.seconds_to_next() or poll)


# What holds up delivery in each mode of the breaker, and the reason in words.
_HELD_BY = {Mode.CLOSED: "", Mode.DOWN: "down", Mode.REFUSED: "refused"}
_REASONS = {
    "": "",
    "down": "{} is unavailable ({cause})",
    "refused": "{} refuses our credentials ({cause})",
    "limit": "{} limits our calls: we wait until {until}",
}


# One for each direction, set when an event was accepted.
Wakeups = Mapping[Direction, Wakeup]


def new_wakeups() -> dict[Direction, Wakeup]:
    """Return wakeups that all processes share which are forked from now on."""
    return {direction: Wakeup() for direction in Direction}


def is_alive(beat: Mapping[str, Any]) -> bool:
    """Return whether the loop of this heartbeat runs: it is at most `DEAD_AFTER` seconds old."""
    at: float = beat.get("at", -math.inf)
    return -DEAD_AFTER < clock.now() - at < DEAD_AFTER


def _failed(one: _InFlight) -> bool:
    """Return whether a call that has ended has failed."""
    return one.future.exception() is not None or one.future.result().error is not None


def _reply(call: DeliveryCall, future: "Future[Reply]") -> Reply:
    error = future.exception()
    if error is None:
        return future.result()
    log.error(
        "a call failed inside the bridge",
        exc_info=error,
        extra={"action": "call_failed", "customer": call.customers[0]},
    )
    # The effect of the call is unknown: a stored intent stays, and decides it later.
    fault = call_result(
        call.writes,
        State.QUEUED,
        "fault",
        clock.steady(),
        error=f"a fault of the bridge: {type(error).__name__}",
        next_at=clock.now() + INTERNAL_ERROR_WAIT,
        keep_intent=True,
    )
    return Reply((fault,))


def _log(result: CallResult) -> None:
    action = "retried" if result.state is State.QUEUED else result.state.value
    for write in result.writes:
        log.log(
            logging.WARNING if result.state is State.DEAD else logging.INFO,
            "write %s",
            action,
            extra={
                "action": action,
                "event": write.event_id,
                "write": write.seq,
                **({"target": write.target} if write.target else {}),
                "customer": write.customer,
                "outcome": result.outcome,
                "status": result.status,
                "milliseconds": result.milliseconds,
                # The answer to a call for several customers may name another customer.
                "error": "" if write.target else result.error,
            },
        )
