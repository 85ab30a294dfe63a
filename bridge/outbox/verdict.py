"""Decide what follows a failed call of a write: a retry, or a dead letter. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from bridge.breaker import LONGEST_RETRY_AFTER
from bridge.calls import CallError, Meaning

# Seconds. Exponential backoff with full jitter: a random time between 0 and the whole wait.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
# Seconds. A profile may be created hours later: wait 5 s, 15 s, 45 s, … 1 h, with at most half
# of each as jitter.
FIRST_UNKNOWN_WAIT, LONGEST_UNKNOWN_WAIT = 5.0, 3600.0

Random = Callable[[], float]


@dataclass(frozen=True)
class Verdict:
    """A decision.

    Attributes:
        is_dead: whether the write is not retried.
        seconds: until the retry.
        counts_attempt: whether the call counts towards the limit of attempts.
    """

    is_dead: bool = False
    seconds: float = 0.0
    counts_attempt: bool = True


def judge(
    error: CallError, attempts: int, max_attempts: int, random: Random, *, outage: bool = False
) -> Verdict:
    """Decide what follows a failed call.

    Args:
        error: the failure.
        attempts: earlier attempts of the write.
        max_attempts: attempts after which a write is dead.
        random: returns a number from 0 to 1.
        outage: whether the breaker is open: another call without an answer then does not count.
    """
    if error.meaning is Meaning.CREDENTIALS:
        # The cause is not this write. The breaker stops the whole delivery.
        return Verdict(counts_attempt=False)
    if error.meaning is Meaning.REFUSED:
        return Verdict(is_dead=True)
    is_away = outage and (error.meaning in _NO_ANSWER or error.status in _GATEWAY_ERRORS)
    # A limit concerns all writes. The breaker waits, and tries one call at a time.
    counts = not (is_away or error.is_throttled)
    if counts and attempts + 1 >= max_attempts:
        return Verdict(is_dead=True)
    return Verdict(seconds=_wait(error, attempts, random), counts_attempt=counts)


_NO_ANSWER = {Meaning.UNREACHABLE, Meaning.UNANSWERED}
# Answers of a load balancer for a system that is unreachable.
_GATEWAY_ERRORS = {502, 503, 504}


def _wait(error: CallError, attempts: int, random: Random) -> float:
    if error.meaning is Meaning.UNKNOWN_CUSTOMER:
        wait = min(LONGEST_UNKNOWN_WAIT, FIRST_UNKNOWN_WAIT * 3.0 ** min(attempts, 20))
        wait *= 0.5 + random() / 2
    else:
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempts, 20)) * random()
    if error.retry_after is not None:
        # Never before Retry-After; the jitter spreads the calls after it.
        least = min(error.retry_after, LONGEST_RETRY_AFTER)
        wait = max(wait, least + random() * min(5.0, 1.0 + least / 10))
    return wait
