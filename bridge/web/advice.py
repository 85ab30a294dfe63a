"""What to do about a dead write to SessionM. Pure."""

from collections.abc import Mapping
from typing import Any

from bridge.calls import Meaning
from bridge.outbox.model import State


def advice(write: Mapping[str, Any]) -> str:
    """Say what to do about *write*; "" unless it is dead and its destination is SessionM.

    Args:
        write: as in `bridge.outbox.events.Events.details`.
    """
    if write["state"] != State.DEAD or write["target"]:
        return ""
    outcome = write["tries"][-1]["outcome"] if write["tries"] else ""
    if outcome == Meaning.UNKNOWN_CUSTOMER:
        return "Create the customer in SessionM, or correct the ID in Braze. Then replay the event."
    if outcome != Meaning.REFUSED:
        return "SessionM gave no usable answer. Replay the event when SessionM answers again."
    mixed = (
        "If one of these tags is an expiring tag in SessionM, it cannot be a counter: send a ttl, "
        "or use another name for the tag."
        if write["ttl"] is None
        else "If one of these tags is a counter in SessionM, it cannot get a ttl: leave out the "
        "ttl, or use another name for the tag."
    )
    return (
        "SessionM refused the whole call, so none of these tags was set; unchanged, it will be "
        f"refused again. {mixed} Correct the webhook in Braze, and send again."
    )
