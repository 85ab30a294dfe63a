"""The interface between the delivery loop and a destination of writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bridge import clock
from bridge.calls import CallError
from bridge.outbox.model import CallResult, QueuedWrite, State

# Seconds. Deadline of one call.
CALL_TIMEOUT = 10.0


class Planned(NamedTuple):
    """The queue of a customer who is due; *mark* is the result of `Destination.begin`."""

    queue: Sequence[QueuedWrite]
    mark: Any


@dataclass(frozen=True)
class DeliveryCall:
    """Writes that go out in one call; each destination adds fields in a subclass."""

    writes: tuple[QueuedWrite, ...]

    @property
    def customers(self) -> list[str]:
        """The customers (keys) of the writes, without repetitions."""
        return list(dict.fromkeys(write.customer for write in self.writes))

    @property
    def takes_token_late(self) -> bool:
        """Whether `Destination.send` takes its token of the rate limit by `Gate.take_token`."""
        return False


@dataclass(frozen=True)
class Wait:
    """The first customer has no step before *until*, in seconds since the epoch."""

    until: float


@dataclass(frozen=True)
class End:
    """Writes that change to *state* without a call."""

    writes: tuple[QueuedWrite, ...]
    state: State
    reason: str
    uncertain: bool = False

    def result(self, now: float) -> CallResult:
        return CallResult(
            self.writes,
            self.state,
            now,
            self.state.value,
            error=self.reason,
            counts_attempt=False,
            uncertain=self.uncertain,
        )


@dataclass(frozen=True)
class Reply:
    """The outcome of a call.

    Attributes:
        results: to record.
        called: whether the destination was called: only then does the breaker learn *error*.
        error: the failure of that call.
        answer: the destination's answer, for `Destination.end`.
        pace: calls a second that the destination allows now; ``None``: the configured rate.
        hold: seconds until the next call may go out, after a call that worked.
    """

    results: tuple[CallResult, ...] = ()
    called: bool = False
    error: CallError | None = None
    answer: Mapping[str, Any] | None = None
    pace: float | None = None
    hold: float = 0.0


@dataclass(frozen=True)
class Gate:
    """Checks of the loop for a call in a sender thread.

    Attributes:
        deliverer: the name of the loop, for `Store.intend`.
        outage: whether the breaker is open because the destination is down (`Mode.DOWN`).
        may_send: returns whether this process still holds the lock; called right before the
            first byte.
        take_token: waits for a token of the rate limit; returns false if the call must not go out
            now.
    """

    deliverer: str
    outage: bool
    may_send: Callable[[], bool]
    take_token: Callable[[], bool]


class Destination(Protocol):
    """A system that writes go to; the base class of each.

    Attributes:
        name: for logs and pages.
        width: most customers in one call.
    """

    name: str
    width: int

    def begin(self, customers: Sequence[str]) -> Sequence[Any]:
        """Return a mark for each of *customers* (keys): data for `plan` and `end`."""

    def plan(self, planned: Mapping[str, Planned], now: float) -> DeliveryCall | Wait | End:
        """Return the next step for the first customer in *planned*. Pure.

        A call may include writes of the other customers.
        """

    def send(self, call: Any, gate: Gate) -> Reply:
        """Make a call of `plan`, in a sender thread, and judge its outcome.

        Raises:
            NotSentError: nothing was sent.
            LostLockError: another process has taken over the delivery.
            StoreUnavailableError: the intent could not be stored; nothing was sent.
        """

    def end(self, ended: Sequence[tuple[DeliveryCall, Mapping[str, Any], Reply]]) -> None:
        """Update lookups before the results of calls are recorded.

        Args:
            ended: each call with its marks (by customer) and its outcome.
        """

    def calls_left(self) -> int | None:
        """Return how many calls the destination still accepts; ``None``: it sets no limit.

        Calls in flight count among them.
        """
        return None

    def forget_limit(self) -> None:
        """Let `calls_left` return 1: the answer to that call shows the limit again."""
        return

    def report(self) -> Mapping[str, Any]:
        """Return fields of the heartbeat: ``overdue`` (calls after their deadline) and others."""


def call_result(
    writes: Sequence[QueuedWrite], state: State, outcome: str, started: float, **more: Any
) -> CallResult:
    """Return the result of a call that ends now; *started* is by `clock.steady`."""
    seconds = clock.steady() - started
    at, milliseconds = clock.now() - seconds, round(seconds * 1000)
    return CallResult(
        tuple(writes), state, at=at, outcome=outcome, milliseconds=milliseconds, **more
    )
