"""What a fleet can do, worked out from what one request costs. Pure arithmetic."""

from dataclasses import dataclass

# As docs/fleet.md says.
CONNECTIONS = 11
# Of a batch job, by default.
ROWS = 100_000


@dataclass(frozen=True)
class Costs:
    """What one request costs: µs of processor time in a bridge and in PostgreSQL.

    *event_bytes*: what an accepted webhook takes in the database. *commits*: how many transactions
    a second store events, of whatever bridges: they take turns where they count.
    """

    lookup: float
    lookup_database: float
    webhook: float
    webhook_database: float
    event_bytes: float
    commits: float


@dataclass(frozen=True)
class Fleet:
    """So many *bridges* of so many *cores* and *workers* each, and PostgreSQL's cores."""

    bridges: int
    cores: float
    workers: int
    database_cores: float

    @property
    def connections(self) -> int:
        # Another process delivers.
        return self.bridges * (self.workers + 1) * CONNECTIONS

    def turn(self, costs: Costs) -> float:
        """Seconds until a worker may commit when all of them have webhooks to store."""
        return self.bridges * self.workers / costs.commits

    def rate(self, cost: float, at_database: float) -> float:
        """Requests a second, if each costs so many µs in a bridge and in PostgreSQL."""
        possible = self.bridges * self.cores * 1e6 / cost
        return min(possible, self.database_cores * 1e6 / at_database) if at_database else possible


@dataclass(frozen=True)
class Send:
    """A send to so many *customers*, each with so many *lookups* and one webhook.

    SessionM takes *rps* calls a second.
    """

    customers: int
    lookups: int
    rps: float

    def seconds(self, fleet: Fleet, costs: Costs) -> dict[str, float]:
        """How long each part of it takes, were it alone."""
        return {
            "lookups answered": self.customers
            * self.lookups
            / fleet.rate(costs.lookup, costs.lookup_database),
            "webhooks accepted": self.customers / fleet.rate(costs.webhook, costs.webhook_database),
            "fetched from SessionM once": self.customers / self.rps,
            "tags written one by one": self.customers / self.rps,
        }

    @property
    def jobs(self) -> int:
        """Batch jobs that do the same as the single writes."""
        return -(-self.customers // ROWS)
