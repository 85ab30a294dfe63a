"""The delivery loop: waiting writes go to SessionM until it has them, once.

One process delivers at a time, whoever holds the lock; others of its kind stand by. So rate limit,
order per customer, merging and pause live in this loop's memory. The lock is looked at before each
call, and once more right before its first byte goes out; what a process would record after it has
lost the lock, the store refuses.
"""

import logging
import os
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridge.bell import Bell, sleep
from bridge.customer import Customer
from bridge.database import StoreUnavailableError
from bridge.locks import LostLockError
from bridge.outbox.batch import Batches
from bridge.outbox.gate import Gate, Mode
from bridge.outbox.plan import Call, Expire, Wait, next_step
from bridge.outbox.schema import HELD, State
from bridge.outbox.store import Finished, QueuedWrite, Store
from bridge.outbox.verdict import Action, judge
from bridge.sessionm.answers import Meaning, SessionMError
from bridge.sessionm.client import SessionM
from bridge.sessionm.deadline import NotSentError

log = logging.getLogger(__name__)

POLL = 0.2
STANDBY_POLL = 0.5
# Between two looks at what has ended, and what may begin.
BREATH = 0.005
# What ends meanwhile is recorded in one transaction, since most of its cost is by the transaction;
# and what begins meanwhile has been read by one question.
TOGETHER = 0.05
# So many are looked at in any case: some of them may have to wait.
LEAST_PLANNED = 16
# Calls that begin together end together, and then hold up whatever else this machine does: of all
# that may be under way so many parts begin at a time.
ABREAST = 12
LEAST_ABREAST = 4
HEARTBEAT = 2.0
# Without a heartbeat for so long the loop is held to be dead.
SILENCE = 5 * HEARTBEAT
CALL_TIMEOUT = 10.0
# Names of shared facts.
HEARTBEAT_FACT = "delivery"
PAUSE_FACT = "delivery_paused"

# Told of customers for whom writes begin; what it returns for each is given back at the end,
# together with SessionM's answers.
BeginWrites = Callable[[Sequence[Customer]], Sequence[Any]]
EndWrites = Callable[[Sequence[tuple[Any, Mapping[str, Any]]]], None]
# A call of ours that broke is tried again after so long; SessionM has no part in it.
OWN_FAULT_WAIT = 30.0
CLEANING = 60.0
BATCH_POLL = 0.5


@dataclass(frozen=True)
class _Sent:
    """How a call ended: what to record (``None``: it was not made), SessionM's *error* or *answer*.

    There is neither where the call was not made, or was found to have worked before.
    """

    finished: Finished | None
    error: SessionMError | None = None
    answer: Mapping[str, Any] | None = None


class _Planned(NamedTuple):
    """A customer who is due, with what waits; *begun* is what was told of the write to come."""

    queue: Sequence[QueuedWrite]
    begun: Any


class _UnderWay(NamedTuple):
    """A call of a sender; *begun* is what was told when it began."""

    call: Call
    begun: Any
    future: Future[_Sent]


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
        begin_writes: told the customers before their writes.
        end_writes: told SessionM's answers before the writes count as delivered, so that no lookup
            serves older tags afterwards.
        on_recorded: told the customer (a key) after something became of a write.
        clean: what one process shall do once a minute: drop what is too old to keep.
        count: told how many of what there were: ``delivered``, ``dead`` and ``expired`` events, and
            ``writes_sent``.
        on_beat: what the deliverer shall do with every heartbeat.
        batches: SessionM's batch jobs, which are driven beside the loop.
        accepted: rung when something was accepted, here or in another process of this machine.
    """

    def __init__(
        self,
        store: Store,
        sessionm: SessionM,
        limits: Limits,
        begin_writes: BeginWrites = lambda customers: customers,
        end_writes: EndWrites = lambda _ended: None,
        on_recorded: Callable[[str], None] = lambda _customer: None,
        clean: Callable[[], None] = lambda: None,
        count: Callable[[str, int], None] = lambda _name, _number: None,
        on_beat: Callable[[], None] = lambda: None,
        batches: Batches | None = None,
        accepted: Bell | None = None,
    ) -> None:
        self._store = store
        self._lock = store.database.deliverer
        self._name = uuid.uuid4().hex
        self._sessionm = sessionm
        self._limits = limits
        self._begin_writes = begin_writes
        self._end_writes = end_writes
        self._on_recorded = on_recorded
        self._clean = clean
        self._count = count
        self._on_beat = on_beat
        self._gate = Gate(limits.concurrency)
        self._tokens = _Bucket(limits.rps)
        self._under_way: dict[str, _UnderWay] = {}
        # Who is next, as it was a moment ago.
        self._planned: dict[str, _Planned] = {}
        self._planned_at = 0.0
        self._recorded_at = 0.0
        self._beat_at = 0.0
        self._cleaned_at = 0.0
        self._paused_by_hand = False
        self._ordered_at = 0.0
        self._resumed_at = 0.0
        self._took_over = False
        self._acquired_at = 0.0
        self._stopping = threading.Event()
        self._accepted = accepted or Bell()
        self._wake = Bell()
        # Whether a call could start if there were something to send.
        self._listens = False
        self._thread: threading.Thread | None = None
        self._cleaner = threading.Thread()
        self._batches = batches
        self._batches_at = 0.0
        self._driver = threading.Thread()

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
        self._wake.ring()
        if self._batches:
            self._batches.end()

    @property
    def is_ending(self) -> bool:
        """Whether this process will deliver nothing more."""
        return self._stopping.is_set()

    def run(self) -> None:
        """Deliver whenever the lock is ours, until `stop`."""
        while not self._stopping.is_set():
            try:
                if self._lock.try_acquire():
                    try:
                        self._deliver()
                    finally:
                        self._lock.release()
            except (LostLockError, StoreUnavailableError) as error:
                log.warning("delivery ends here: %s", error, extra={"action": "lock_lost"})
            except Exception:
                # A fault of ours: what was accepted is on disk, so begin afresh, but not hastily.
                log.exception("delivery failed", extra={"action": "delivery_failed"})
                self._stopping.wait(OWN_FAULT_WAIT / 10)
            self._stopping.wait(STANDBY_POLL)

    def _deliver(self) -> None:
        log.info("delivering", extra={"action": "delivery_started", "pid": os.getpid()})
        self._took_over = False
        self._planned.clear()
        self._acquired_at = time.monotonic()
        with ThreadPoolExecutor(self._limits.concurrency, "sender") as senders:
            try:
                while not self._stopping.is_set() and self._lock.is_held():
                    try:
                        self._step(senders)
                    except StoreUnavailableError as error:
                        log.warning("delivery waits: %s", error, extra={"action": "no_store"})
                        self._stopping.wait(1.0)
            finally:
                self._drain()
                # Nobody else may drive jobs before this has ended.
                if self._driver.is_alive():
                    self._driver.join()

    def _step(self, senders: ThreadPoolExecutor) -> None:
        self._wake.silence()
        self._accepted.silence()
        self._listens = True
        if not self._took_over:
            self._take_over()
        self._record_finished()
        self._beat()
        self._clean_up()
        self._drive_batches()
        if not self._launch(senders):
            # Of thousands a second only those are heard that change something.
            bells = [self._wake, self._accepted] if self._listens else [self._wake]
            sleep(self._pause(), bells)
        self._stopping.wait(BREATH)

    def _take_over(self) -> None:
        """Go on where the last holder of the lock ended, in what SessionM asked of it too."""
        if not self._store.has_signed_off(self._name):
            # It may not have found out yet that the lock is not its own any more.
            self._stopping.wait(self._acquired_at + self._lock.grace - time.monotonic())
        self._store.take_over(self._name)
        beat = self._store.fact(HEARTBEAT_FACT) or {}
        self._gate.hold_until = beat.get("hold_until", 0.0)
        self._resumed_at = beat.get("at", 0.0)
        if self._batches:
            self._batches.backlog.take_over(time.time())
        self._took_over = True

    def _launch(self, senders: ThreadPoolExecutor) -> int:
        """Start as many calls as the gate, the rate and the queue allow."""
        now = time.time()
        room = self._room(now)
        if self._batches and room > 0 and self._gate.mode is Mode.RUNNING:
            self._batches.backlog.gather(now, self._under_way.keys() | self._planned.keys())
        if room <= 0 or not self._tokens.whole():
            # Nothing could go out: to look at the queue as often as webhooks come costs much.
            self._listens = False
            return 0
        if not self._planned or time.monotonic() > self._planned_at + TOGETHER:
            self._plan(now)
        calls: list[tuple[Call, Any]] = []
        expired: list[Finished] = []
        put_off = 0
        while self._planned and len(calls) < room:
            customer, (queue, begun) = next(iter(self._planned.items()))
            step = next_step(queue, now)
            if isinstance(step, Wait):
                put_off += self._put_off(customer, step.until)
            elif isinstance(step, Expire):
                expired.append(_expired(step.writes, now))
            elif not self._leaves_in_bulk(step, now):
                # A counter is read first, and takes its token when it is sent.
                if not (step.counts or self._tokens.take()):
                    break
                calls.append((step, begun))
            del self._planned[customer]
        self._start(senders, calls)
        self.record(expired)
        return len(calls) + len(expired) + put_off

    def _plan(self, now: float) -> None:
        """Read who is due, as many as may begin before this is out of date."""
        self._planned = {}
        self._planned_at = time.monotonic()
        soon = min(self._limits.concurrency // 2, int(self._limits.rps * TOGETHER))
        most = max(LEAST_PLANNED, soon)
        due = self._store.due(now, 2 * most, self._under_way)[:most]
        if not due:
            return
        queues = self._store.waiting_of(due)
        waiting = [customer for customer in due if queues[customer]]
        begun = self._begin_writes([Customer.from_key(customer) for customer in waiting])
        self._planned = {
            customer: _Planned(queues[customer], mark)
            for customer, mark in zip(waiting, begun, strict=True)
        }

    def _room(self, now: float) -> int:
        """How many calls may start: what has ended takes no room, even if it is not recorded yet.

        But the gate lets a probe through only when it has heard how all others ended.
        """
        if self._paused_by_hand:
            return 0
        going = [one for one in self._under_way.values() if not one.future.done()]
        is_open = self._gate.mode is Mode.RUNNING
        room = self._gate.room(now, len(going) if is_open else len(self._under_way))
        return min(room, max(LEAST_ABREAST, self._limits.concurrency // ABREAST))

    def _put_off(self, customer: str, until: float) -> bool:
        """Let *customer* wait; whether that changes the queue for certain."""
        if self._batches and until >= HELD:
            self._batches.backlog.hold(customer)
            return False
        self._store.postpone(customer, until)
        return True

    def _leaves_in_bulk(self, call: Call, now: float) -> bool:
        return self._batches is not None and self._batches.backlog.takes(call.writes, now)

    def _start(self, senders: ThreadPoolExecutor, calls: Sequence[tuple[Call, Any]]) -> None:
        outage = self._gate.mode is Mode.DOWN
        for call, begun in calls:
            future = senders.submit(self._send, call, outage=outage)
            self._under_way[call.customer] = _UnderWay(call, begun, future)
            future.add_done_callback(lambda _future: self._wake.ring())

    def _send(self, call: Call, *, outage: bool) -> _Sent:
        """Carry out *call* (in a thread of the pool) and say what became of it."""
        started = time.time()
        seqs = [write.seq for write in call.writes]
        intent: Mapping[str, Any] | None = call.writes[0].intent
        sent = False
        try:
            if call.counts:
                known = self._counts(call)
                if intent and (told := self._already_counted(call, intent, known)):
                    return _Sent(_told(call, told, started))
                if not self._may_go():
                    return _Sent(None)
                intent = _intent(known)
                self._store.intend(seqs, intent, self._name)
            customer = Customer.from_key(call.customer)
            sent = True
            answer = self._sessionm.write_tags(
                customer, call.tags, call.ttl, CALL_TIMEOUT, self._lock.is_held
            )
        except (NotSentError, LostLockError, StoreUnavailableError):
            # Not sent; its intent, if it has one, is settled by whoever delivers now.
            return _Sent(None)
        except SessionMError as error:
            doubtful = intent and (not sent or (call.counts and error.may_have_worked))
            # The call is over, so its outcome settles from now.
            kept = {**intent, "at": time.time()} if intent and doubtful else None
            return _Sent(self._failed(call, error, started, kept, outage=outage), error)
        finished = _finished(call, State.DELIVERED, "delivered", started, status=200)
        return _Sent(finished, answer=answer)

    def _may_go(self) -> bool:
        """Wait for a token for a counter; false if it had better not go now."""
        until = time.monotonic() + CALL_TIMEOUT
        while not self._stopping.is_set() and time.monotonic() < until:
            if self._paused_by_hand or self._gate.is_held(time.time()) or not self._lock.is_held():
                return False
            if self._tokens.take():
                return True
            time.sleep(0.005)
        return False

    def _counts(self, call: Call) -> dict[str, int]:
        """What SessionM counts now for the tags of *call*.

        Raises:
            SessionMError: it cannot be asked, or what it says is no count.
        """
        answer = self._sessionm.read_tags(Customer.from_key(call.customer), CALL_TIMEOUT)
        tags = answer.get("tags") or {}
        try:
            return {tag: int(tags.get(tag) or 0) for tag in call.tags}
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise SessionMError(Meaning.GARBLED, "its tags are no counts", status=200) from None

    def _already_counted(
        self, call: Call, intent: Mapping[str, Any], now: Mapping[str, int]
    ) -> str:
        """Whether a counter's call that was sent before has worked, by counts before and *now*.

        Returns:
            "counted": it has; "uncertain": it cannot be told, and counting twice would be worse
            than not counting; "": it has not.
        """
        before = intent.get("before", {})
        ours = Counter(self._store.counted_since(call.customer, intent.get("sent", 0.0)))
        risen = {now[tag] - before.get(tag, 0) - ours[tag] for tag in call.tags}
        if risen == {1}:
            return "counted"
        return "uncertain" if max(risen) > 0 else ""

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
            unknown=error.meaning is Meaning.UNKNOWN_CUSTOMER,
        )

    def _record_finished(self) -> None:
        ended = {key: one for key, one in self._under_way.items() if one.future.done()}
        # A failure is for the gate to hear at once; and nothing waits for what will not come.
        at_once = len(ended) == len(self._under_way) or any(map(_failed, ended.values()))
        soon = time.monotonic() < self._recorded_at + TOGETHER
        if not ended or (soon and not at_once):
            return
        self._recorded_at = time.monotonic()
        sent = [_outcome(one.call, one.future) for one in ended.values()]
        # If this fails they stay under way, and are recorded at the next step.
        self._tell([(one, end.answer) for one, end in zip(ended.values(), sent, strict=True)])
        self.record([one.finished for one in sent if one.finished])
        for customer in ended:
            del self._under_way[customer]
        for one in sent:
            if one.finished:
                self._tell_gate(one.error)
        if any(one.error and one.error.retry_after for one in sent):
            # A wait that SessionM asks for is to outlive this process.
            self._beat_at = 0.0

    def _tell(self, ended: list[tuple[_UnderWay, Mapping[str, Any] | None]]) -> None:
        """Let no lookup serve older tags from now on than SessionM's answers."""
        answered = [(one, answer) for one, answer in ended if answer is not None]
        if not answered:
            return
        there = self._store.still_there([w.seq for one, _ in answered for w in one.call.writes])
        # Not for a customer who was erased meanwhile.
        kept = [
            (one.begun, answer)
            for one, answer in answered
            if any(write.seq in there for write in one.call.writes)
        ]
        if kept:
            self._end_writes(kept)

    def record(self, finished: list[Finished]) -> None:
        """Record what became of calls, and tell everybody."""
        if not finished:
            return
        changed = self._store.record(finished, self._name)
        for result in finished:
            for customer in {write.customer for write in result.writes}:
                self._on_recorded(customer)
            _log(result)
            if result.state is State.DELIVERED:
                self._count("writes_sent", len(result.writes))
        for state in (State.DELIVERED, State.DEAD, State.EXPIRED):
            if number := changed[state]:
                self._count(state.value, number)

    def _tell_gate(self, error: SessionMError | None) -> None:
        """Let the gate hear how a call ended, and the log when it opens or closes by it."""
        now = time.time()
        before, held = self._gate.mode, self._gate.is_held(now)
        self._gate.saw(error, now)
        if self._gate.mode is not before:
            _log_mode(self._gate)
        if self._gate.is_held(now) and not held:
            extra = {"action": "delivery_held", "reason": self._gate.told(now)}
            log.warning("delivery waits", extra=extra)

    def _drain(self) -> None:
        """Wait for what is under way and record it; a store that is away cannot be waited for."""
        for one in list(self._under_way.values()):
            one.future.exception()
        try:
            self._record_finished()
            if self._took_over:
                self._store.sign_off(self._name)
        except (StoreUnavailableError, LostLockError) as error:
            # They stay as they were: counters are read back before they are sent again.
            log.error("not recorded: %s", error, extra={"action": "not_recorded"})
        self._under_way.clear()

    def _beat(self) -> None:
        """Tell all processes that the loop is alive, and hear whether it shall pause."""
        now = time.time()
        if now - self._beat_at < HEARTBEAT:
            return
        self._hear_operator()
        self._store.set_fact(
            HEARTBEAT_FACT,
            {
                "at": now,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "mode": self._gate.mode.value,
                "reason": self._gate.told(now),
                "hold_until": self._gate.hold_until,
                "ordered_at": self._ordered_at,
                "under_way": len(self._under_way),
            },
        )
        self._beat_at = now
        self._on_beat()

    def _hear_operator(self) -> None:
        order = self._store.fact(PAUSE_FACT) or {}
        self._paused_by_hand = bool(order.get("paused"))
        self._ordered_at = order.get("at", 0.0)
        if self._ordered_at > self._resumed_at and not self._paused_by_hand:
            # Whoever resumes wants it to go on now, whatever SessionM asked for.
            self._gate.hold_until = 0.0
            self._resumed_at = self._ordered_at

    def _clean_up(self) -> None:
        """Once a minute, beside the loop: a year's old events may not hold up a new one."""
        if time.time() - self._cleaned_at > CLEANING and not self._cleaner.is_alive():
            self._cleaned_at = time.time()
            self._cleaner = threading.Thread(target=self._clean, name="cleaner", daemon=True)
            self._cleaner.start()

    def _drive_batches(self) -> None:
        """Once a second, beside the loop: a file that SessionM takes slowly holds up no write."""
        if self._batches is None or self._driver.is_alive():
            return
        now = time.time()
        if now - self._batches_at > BATCH_POLL:
            self._batches_at = now
            may_send = self._gate.room(now, 0) > 0 and not self._paused_by_hand
            self._driver = threading.Thread(
                target=_drive, args=[self._batches, may_send], name="batches", daemon=True
            )
            self._driver.start()

    def _pause(self) -> float:
        """How long to sleep when nothing could be started."""
        return min(POLL, self._tokens.seconds_to_one() or POLL)


def _drive(batches: Batches, may_send: bool) -> None:  # noqa: FBT001 - a thread's target
    try:
        batches.drive(may_send=may_send)
    except StoreUnavailableError as error:
        log.warning("batch jobs wait: %s", error, extra={"action": "no_store"})
    except Exception:
        # A fault of ours: what is on disk tells where to go on.
        log.exception("batch jobs wait", extra={"action": "batches_failed"})
        time.sleep(OWN_FAULT_WAIT / 10)


class _Bucket:
    """A token bucket without bursts: it holds one token, or what comes in a fiftieth second."""

    def __init__(self, rps: float) -> None:
        self._rps = rps
        self._size = max(1.0, rps / 50)
        self._tokens = 0.0
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a token if there is one."""
        with self._lock:
            self._refill()
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def whole(self) -> int:
        """How many there are now."""
        with self._lock:
            self._refill()
            return int(self._tokens)

    def _refill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rps)
        self._at = now

    def seconds_to_one(self) -> float:
        return max(0.0, (1 - self._tokens) / self._rps)


def _intent(known: Mapping[str, int]) -> dict[str, Any]:
    """What is noted on disk before a counter's call: enough to settle it after a crash.

    ``at`` is when it is over at the latest; ``before`` what SessionM counted.
    """
    now = time.time()
    return {"id": uuid.uuid4().hex, "sent": now, "at": now + CALL_TIMEOUT, "before": dict(known)}


def _failed(one: _UnderWay) -> bool:
    """Whether this call, which has ended, did not do what it was to do."""
    return one.future.exception() is not None or one.future.result().error is not None


def _outcome(call: Call, future: "Future[_Sent]") -> _Sent:
    error = future.exception()
    if error is None:
        return future.result()
    log.error(
        "a call failed inside the bridge",
        exc_info=error,
        extra={"action": "call_failed", "customer": call.customer},
    )
    # What it did is not known: an intent on disk stays, and settles it.
    return _Sent(
        _finished(
            call,
            State.QUEUED,
            "fault",
            time.time(),
            error=f"a fault of the bridge: {type(error).__name__}",
            next_at=time.time() + OWN_FAULT_WAIT,
            intent_stands=True,
        )
    )


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
                "customer": write.customer,
                "outcome": result.outcome,
                "status": result.status,
                "milliseconds": result.milliseconds,
                "error": result.error,
            },
        )


def _log_mode(gate: Gate) -> None:
    if gate.mode is Mode.RUNNING:
        log.info("delivery goes on", extra={"action": "delivery_open"})
    else:
        extra = {"action": f"delivery_{gate.mode}", "reason": gate.reason}
        log.warning("delivery is %s", gate.mode, extra=extra)
