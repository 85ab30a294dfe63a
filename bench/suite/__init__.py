"""The benches: a module each, whose docstring is its heading and explanation on the page.

To add one, write a module with such a docstring and a ``run``, and name it here.
"""

from collections.abc import Mapping
from typing import Protocol

from bench.report import Table
from bench.rounds import Plan
from bench.suite import bulk, cold, delivery, fleet, growth, lookups, start, through_flask, webhooks


class Bench(Protocol):
    """What such a module has."""

    __doc__: str | None

    def run(self, plan: Plan, /) -> list[Table | str]:
        """Measure; tables, and remarks below them."""


BENCHES: Mapping[str, Bench] = {
    "lookups": lookups,
    "webhooks": webhooks,
    "delivery": delivery,
    "cold": cold,
    "through_flask": through_flask,
    "bulk": bulk,
    "start": start,
    "growth": growth,
    "fleet": fleet,
}
