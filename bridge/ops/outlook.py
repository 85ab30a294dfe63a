"""The forecast of a queue in words, for pages and commands. Pure."""

from collections.abc import Mapping
from typing import Any

from bridge.fields import number, span


def outlook(queue: Mapping[str, Any]) -> str:
    """Return when *queue* is empty, and when its oldest message expires; "" if nothing waits.

    Args:
        queue: the check ``delivery`` or ``delivery_to_braze`` of ``/health``.
    """
    seconds = queue.get("done_in_seconds", 0)
    if not seconds:
        return ""
    if seconds > 0:
        words, rate = f"done in about {span(seconds)}", round(queue["rate_per_second"], 1)
        words += f" at {number(rate)} a second" if rate else ""
    else:
        takes, most = span(queue["takes_seconds"]), number(queue["most_per_second"])
        words = f"nothing goes out now; about {takes} at {most} a second once delivery resumes"
    if (left := queue.get("expires_in_seconds")) is not None:
        words += f"; the oldest expires {f'in {span(left)}' if left else 'now'}"
    return words
