"""The benches. The docstring of each module is its heading and description on the page.

To add one, write a module with such a docstring and a ``run``, and add it to ``BENCHES``.
"""

from collections.abc import Mapping
from typing import Protocol

from bench.report import Table
from bench.rounds import Plan
from bench.suite import cold, delivery, fleet, growth, lookups, start, webhooks


class Bench(Protocol):
    """The interface of such a module."""

    __doc__: str | None

    def run(self, plan: Plan, /) -> list[Table | str]:
        """Measure; return tables and remarks."""


BENCHES: Mapping[str, Bench] = {
    "lookups": lookups,
    "webhooks": webhooks,
    "delivery": delivery,
    "cold": cold,
    "start": start,
    "growth": growth,
    "fleet": fleet,
}
