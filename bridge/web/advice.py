"""What to do about a dead write to SessionM. Pure."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bridge.calls import Meaning
from bridge.fields import FieldError, ttl
from bridge.intake.payload import RefusedError, read_fields
from bridge.outbox.model import State


def advice(event: Mapping[str, Any], write: Mapping[str, Any]) -> str:
    """Say what to do about *write*; "" unless it is dead and its destination is SessionM.

    Args:
        event: as in `bridge.outbox.events.Events.details`.
        write: one of its writes.
    """
    if write["state"] != State.DEAD or write["target"]:
        return ""
    outcome = write["tries"][-1]["outcome"] if write["tries"] else ""
    if outcome == Meaning.UNKNOWN_CUSTOMER:
        return "Create the customer in SessionM, or correct the ID in Braze. Then replay the event."
    if outcome != Meaning.REFUSED:
        return "SessionM gave no usable answer. Replay the event when SessionM answers again."
    refused = (
        "SessionM refused the whole call, so none of these tags was set; unchanged, it will be "
        "refused again."
    )
    mixed, do = (
        (
            "If one of these tags is an expiring tag in SessionM, it cannot be a counter",
            "send a ttl",
        )
        if write["ttl"] is None
        else (
            "If one of these tags is a counter in SessionM, it cannot get a ttl",
            "leave out the ttl",
        )
    )
    if not _has_own_tags(event, write):
        return (
            f"{refused} {mixed}. The tag is that of the campaign's or Canvas's rule, or the "
            "default: the person who runs the bridge can name another one in rules.toml. Then "
            "send again."
        )
    return (
        f"{refused} {mixed}: {do}, or use another name for the tag. Correct the webhook in Braze, "
        "and send again."
    )


def _has_own_tags(event: Mapping[str, Any], write: Mapping[str, Any]) -> bool:
    """Return whether *write* may have tags of the webhook's own, not only those of the rules."""
    with suppress(RefusedError, FieldError):
        fields = read_fields(event["body"].encode(errors="replace"), event["content_type"])
        expire = ttl(fields.get("ttl"), "ttl") is not None
        return bool(fields.get("tags")) and expire == (write["ttl"] is not None)
    return False
