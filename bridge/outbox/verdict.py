"""SessionM's answer -> delivered | try again when | pause | dead. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from bridge.sessionm.answers import Meaning, SessionMError

# Growing waits, in seconds. Full jitter: somewhere between nothing and the whole wait.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
# Profiles are created late, by hours: 5 s, 15 s, 45 s, … up to an hour, at least half of each.
FIRST_UNKNOWN_WAIT, LONGEST_UNKNOWN_WAIT = 5.0, 3600.0
# A date that is years ahead is a fault of the sender's clock.
LONGEST_RETRY_AFTER = 86400.0

Chance = Callable[[], float]


class Action(StrEnum):
    """What is done with a write whose call did not work."""

    RETRY = "retry"
    PAUSE = "pause"  # it is not the write's fault: all of delivery waits
    DEAD = "dead"


@dataclass(frozen=True)
class Verdict:
    """*action*; for a retry, after how many *seconds*; and whether the try counts."""

    action: Action
    seconds: float = 0.0
    counted: bool = True


def judge(
    error: SessionMError, tries: int, max_tries: int, chance: Chance, *, outage: bool = False
) -> Verdict:
    """Judge a call that did not work.

    Args:
        error: what happened.
        tries: how often the write was tried before.
        max_tries: with that many tries a write is dead.
        chance: a random number from 0 to 1.
        outage: SessionM is known to be away; that it does not answer then says nothing about
            this write, and does not count against it.
    """
    if error.meaning is Meaning.CREDENTIALS:
        return Verdict(Action.PAUSE, counted=False)
    if error.meaning is Meaning.REFUSED:
        return Verdict(Action.DEAD)
    counted = not (outage and (error.meaning in _SILENCE or error.status in _AWAY))
    if counted and tries + 1 >= max_tries:
        return Verdict(Action.DEAD)
    return Verdict(Action.RETRY, _wait(error, tries, chance), counted)


_SILENCE = {Meaning.UNREACHABLE, Meaning.UNANSWERED}
# What a load balancer says for a SessionM that is away.
_AWAY = {502, 503, 504}


def _wait(error: SessionMError, tries: int, chance: Chance) -> float:
    if error.meaning is Meaning.UNKNOWN_CUSTOMER:
        wait = min(LONGEST_UNKNOWN_WAIT, FIRST_UNKNOWN_WAIT * 3.0 ** min(tries, 20))
        wait *= 0.5 + chance() / 2
    else:
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries, 20)) * chance()
    if error.retry_after is not None:
        # Never before the time that was asked for, and not all of us at that moment.
        asked = min(error.retry_after, LONGEST_RETRY_AFTER)
        wait = max(wait, asked + chance() * min(5.0, 1.0 + asked / 10))
    return wait
