"""Tables of events and their writes.

Times are seconds since the epoch. A customer is stored by its key, ``user_id:…``. Partial indexes
on the state ``queued`` keep queries of the queue fast when there are millions of stored events.
"""

import sqlalchemy as sa

from bridge.intake.payload import DEDUPE_DIGITS
from bridge.outbox.model import State

# 64 bits: large sends use up 32 bits. SQLite's integers have 64 bits anyway.
Serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")

schema = sa.MetaData()
events = sa.Table(
    "events",
    schema,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("customer", sa.Text),
    sa.Column("campaign_id", sa.Text),
    sa.Column("canvas_id", sa.Text),
    sa.Column("test", sa.Boolean, nullable=False),
    sa.Column("dedupe", sa.String(DEDUPE_DIGITS), unique=True),
    sa.Column("key_name", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("done_at", sa.Float),
    # Whether the body names the customer; otherwise the path does.
    sa.Column("in_body", sa.Boolean, nullable=False),
    # Actions of operators: [{"at": seconds, "action": "replayed", "by": name of the key}].
    sa.Column("history", sa.JSON(none_as_null=True)),
    sa.Column("direction", sa.String(12), nullable=False),
    # The `MessagePath` of a message; "" for a webhook.
    sa.Column("path", sa.String(12), nullable=False),
)
writes = sa.Table(
    "writes",
    schema,
    sa.Column("seq", Serial, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(32), sa.ForeignKey("events.id", ondelete="CASCADE")),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("ttl", sa.Integer),
    sa.Column("accepted_at", sa.Float, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("next_at", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("intent", sa.JSON(none_as_null=True)),
    sa.Column("uncertain", sa.Boolean, nullable=False),
    sa.Column("unknown", sa.Boolean, nullable=False),
    sa.Column("done_at", sa.Float),
    sa.Column("direction", sa.String(12), nullable=False),
    # See `QueuedWrite`; the content is JSON.
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("content", sa.Text),
    # The destination's id of what it accepted: Braze's dispatch ID.
    sa.Column("receipt", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
attempts = sa.Table(
    "attempts",
    schema,
    sa.Column("id", Serial, primary_key=True),
    sa.Column("write_seq", Serial, sa.ForeignKey("writes.seq", ondelete="CASCADE")),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("milliseconds", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)
# When tags that the bridge wrote expire. Kept longer than the events.
expiries = sa.Table(
    "expiries",
    schema,
    sa.Column("customer", sa.Text, primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("expires_at", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
# Values that all processes share, such as the delivery loop's heartbeat.
facts = sa.Table(
    "facts",
    schema,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
# Other values of `tallies.kind` than campaign and canvas. The id of a row of writes is the
# direction; that of the row of stored events is "".
STORED, WRITES = "stored", "writes"
NUMBERS = ("accepted", *State)
tallies = sa.Table(
    "tallies",
    schema,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    *(sa.Column(name, sa.Integer, nullable=False, server_default="0") for name in NUMBERS),
    sa.Column("last_seen", sa.Float, nullable=False),
    # The latest name that Braze sent.
    sa.Column("name", sa.Text, nullable=False, server_default=""),
    sqlite_with_rowid=False,
)
# A literal, not a parameter: otherwise SQLite does not use the partial indexes.
QUEUED: sa.ColumnElement[str] = sa.literal_column("'queued'")
DEAD: sa.ColumnElement[str] = sa.literal_column("'dead'")
for name, columns in {
    "writes_due": (writes.c.direction, writes.c.next_at, writes.c.seq),
    "writes_waiting": (writes.c.customer, writes.c.seq),
    "writes_oldest": (writes.c.direction, writes.c.unknown, writes.c.accepted_at),
}.items():
    queued = writes.c.state == QUEUED
    sa.Index(name, *columns, sqlite_where=queued, postgresql_where=queued)
dead = writes.c.state == DEAD
sa.Index("writes_dead", writes.c.seq, sqlite_where=dead, postgresql_where=dead)
# Writes to Braze, for the loop guard.
SENT: sa.ColumnElement[bool] = writes.c.target != sa.literal_column("''")
sa.Index(
    "writes_sent",
    writes.c.customer,
    writes.c.done_at,
    sqlite_where=SENT,
    postgresql_where=SENT,
)
sa.Index("writes_event", writes.c.event_id)
sa.Index("events_customer", events.c.customer, events.c.id)
# Most events have only one of the two IDs.
for kind, column in (("campaign", events.c.campaign_id), ("canvas", events.c.canvas_id)):
    sa.Index(f"events_{kind}", column, events.c.id, sqlite_where=column.is_not(None))
sa.Index("events_state", events.c.state, events.c.id)
# Most delivered events have no reason: the search for text in reasons reads only the others.
HAS_REASON: sa.ColumnElement[bool] = events.c.reason != sa.literal_column("''")
sa.Index(
    "events_reason",
    events.c.id,
    events.c.reason,
    sqlite_where=HAS_REASON,
    postgresql_where=HAS_REASON,
)
sa.Index("tallies_last_seen", tallies.c.last_seen)
sa.Index("attempts_write", attempts.c.write_seq)
sa.Index("expiries_expires_at", expiries.c.expires_at)


def create(connection: sa.Connection) -> None:
    """Create the tables as they are now."""
    schema.create_all(connection)


def has_direction(direction: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return the condition on the direction of writes that are found by their customers.

    The condition is written so that no index on directions fits it. Nearly all writes have one
    direction: by such an index, the database would read all queued writes.
    """
    return writes.c.direction.concat(sa.literal_column("''")) == direction
