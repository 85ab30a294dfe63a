"""Tables of events and their tag writes.

Times are seconds since the epoch. A customer is stored by its key, ``user_id:…``. A write that
waits is ``queued``; partial indexes on that word keep every question about the queue as cheap
with a million stored events as with ten.
"""

from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from bridge.intake.payload import DEDUPE_DIGITS


class State(StrEnum):
    """Where an event or a write stands. Only events are rejected."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    DEAD = "dead"
    REJECTED = "rejected"
    DISCARDED = "discarded"
    EXPIRED = "expired"


# Ten million customers in a send soon count beyond 32 bits; SQLite's are of any size.
_Serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# Whether the body names the customer, and not the path. Of a rejected event that came before
# this was told, only the path's is known.
_IN_BODY = sa.Column("in_body", sa.Boolean, nullable=False, server_default=sa.false())

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
    # As wide as it was before it became shorter.
    sa.Column("dedupe", sa.String(64), unique=True),
    sa.Column("key_name", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("done_at", sa.Float),
    _IN_BODY,
)
writes = sa.Table(
    "writes",
    schema,
    sa.Column("seq", _Serial, primary_key=True, autoincrement=True),
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
    sqlite_autoincrement=True,
)
attempts = sa.Table(
    "attempts",
    schema,
    sa.Column("id", _Serial, primary_key=True),
    sa.Column("write_seq", _Serial, sa.ForeignKey("writes.seq", ondelete="CASCADE")),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("milliseconds", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)
# What the bridge knows of expiry because it wrote it; outlives the events.
expiries = sa.Table(
    "expiries",
    schema,
    sa.Column("customer", sa.Text, primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("expires_at", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
# Small facts that all processes share, such as the delivery loop's heartbeat.
facts = sa.Table(
    "facts",
    schema,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
# How many of each there are, see `tallies`; kind is campaign or canvas, or one of these two.
STORED, WRITES = "stored", "writes"
NUMBERS = ("accepted", *State)
tallies = sa.Table(
    "tallies",
    schema,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    *(sa.Column(name, sa.Integer, nullable=False, server_default="0") for name in NUMBERS),
    sa.Column("last_seen", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
# Customers' files, and the backlog where it leaves in bulk: each a batch, sent as one or more of
# SessionM's batch jobs. The file of a job is kept here, in packed blocks, so that every machine
# of a fleet can serve it. Of the tokens in its URLs only hashes are kept.
batches = sa.Table(
    "batches",
    schema,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(10), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("key_name", sa.Text, nullable=False),
    sa.Column("header", sa.Text, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("refused", sa.Integer, nullable=False),
    sa.Column("repeated", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("touched_at", sa.Float, nullable=False),
    sa.Column("done_at", sa.Float),
)
batch_jobs = sa.Table(
    "batch_jobs",
    schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "batch_id", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("counts", sa.Boolean, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("md5", sa.String(32), nullable=False),
    sa.Column("oldest_at", sa.Float),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("sessionm_id", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Float, nullable=False),
    sa.Column("submitted_at", sa.Float),
    sa.Column("served_at", sa.Float),
    sa.Column("told", sa.String(10), nullable=False),
    sa.Column("failed_rows", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("file_token", sa.String(64), unique=True),
    sa.Column("notify_token", sa.String(64), unique=True),
    sa.Column("done_at", sa.Float),
    sqlite_autoincrement=True,
)
batch_blocks = sa.Table(
    "batch_blocks",
    schema,
    sa.Column(
        "job_id", sa.Integer, sa.ForeignKey("batch_jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
batch_refused = sa.Table(
    "batch_refused",
    schema,
    sa.Column(
        "batch_id", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
# The writes that leave with a job rather than by a call of their own.
batch_writes = sa.Table(
    "batch_writes",
    schema,
    sa.Column(
        "write_seq", _Serial, sa.ForeignKey("writes.seq", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column(
        "job_id", sa.Integer, sa.ForeignKey("batch_jobs.id", ondelete="CASCADE"), nullable=False
    ),
)
# The next_at of writes that wait for the end of a job: their own, or their customer's.
HELD = 1e12
# A literal, not a parameter: SQLite uses a partial index only where it can prove its condition.
QUEUED: sa.ColumnElement[str] = sa.literal_column("'queued'")
DEAD: sa.ColumnElement[str] = sa.literal_column("'dead'")
for name, columns in {
    "writes_due": (writes.c.next_at, writes.c.seq),
    "writes_waiting": (writes.c.customer, writes.c.seq),
    "writes_oldest": (writes.c.unknown, writes.c.accepted_at),
}.items():
    queued = writes.c.state == QUEUED
    sa.Index(name, *columns, sqlite_where=queued, postgresql_where=queued)
dead = writes.c.state == DEAD
sa.Index("writes_dead", writes.c.seq, sqlite_where=dead, postgresql_where=dead)
sa.Index("writes_event", writes.c.event_id)
sa.Index("events_customer", events.c.customer, events.c.id)
# Most events have one of the two.
_OF_CAMPAIGNS = [
    sa.Index(f"events_{kind}", column, events.c.id, sqlite_where=column.is_not(None))
    for kind, column in (("campaign", events.c.campaign_id), ("canvas", events.c.canvas_id))
]
sa.Index("events_state", events.c.state, events.c.id)
# What is delivered has no reason: words in reasons are sought among the others only.
HAS_REASON: sa.ColumnElement[bool] = events.c.reason != sa.literal_column("''")
_events_reason = sa.Index(
    "events_reason",
    events.c.id,
    events.c.reason,
    sqlite_where=HAS_REASON,
    postgresql_where=HAS_REASON,
)
_tallies_seen = sa.Index("tallies_last_seen", tallies.c.last_seen)
sa.Index("attempts_write", attempts.c.write_seq)
sa.Index("expiries_expires_at", expiries.c.expires_at)
sa.Index("batch_jobs_batch", batch_jobs.c.batch_id)
sa.Index("batch_jobs_state", batch_jobs.c.state, batch_jobs.c.next_at)
sa.Index("batch_writes_job", batch_writes.c.job_id)


def _first_schema(connection: sa.Connection) -> None:
    schema.create_all(connection, tables=[events, writes, attempts, expiries, facts])


def _tallies(connection: sa.Connection) -> None:
    tallies.create(connection, checkfirst=True)
    for index in (_events_reason, _tallies_seen):
        index.create(connection, checkfirst=True)
    recount(connection)


def recount(connection: sa.Connection) -> None:
    """Count everything that is stored, for a database that has no tallies yet."""
    connection.execute(tallies.delete())
    # Without writes: it was rejected, and has been given up since.
    written = sa.exists().where(writes.c.event_id == events.c.id)
    accepted = sa.and_(
        events.c.state != State.REJECTED, sa.or_(events.c.state != State.DISCARDED, written)
    )
    for kind, column in (("campaign", events.c.campaign_id), ("canvas", events.c.canvas_id)):
        _count(connection, kind, events, [column], sa.and_(column.is_not(None), accepted))
    _count(connection, STORED, events, [])
    _count(connection, WRITES, writes, [])


def _count(
    connection: sa.Connection,
    kind: str,
    table: sa.Table,
    one: list[sa.Column[str]],
    which: sa.ColumnElement[bool] | None = None,
) -> None:
    """Count the rows of *table* for which *which* holds, by state and by what *one* says."""
    seen_at = sa.func.max(table.c.received_at if one else sa.literal(0.0))
    counted = sa.select(table.c.state, sa.func.count(), seen_at, *one)
    counted = counted.group_by(table.c.state, *one)
    if which is not None:
        counted = counted.where(which)
    rows: dict[str, dict[str, Any]] = {}
    for state, number, last, *name in connection.execute(counted):
        row = rows.setdefault("".join(name), {**dict.fromkeys(NUMBERS, 0), "last_seen": 0.0})
        row[state] = number
        row["accepted"] += number if one else 0
        row["last_seen"] = max(row["last_seen"], last)
    if rows:
        connection.execute(
            tallies.insert(), [{"kind": kind, "id": name, **row} for name, row in rows.items()]
        )


def _batches(connection: sa.Connection) -> None:
    schema.create_all(
        connection, tables=[batches, batch_jobs, batch_blocks, batch_refused, batch_writes]
    )


def _wide_write_seq(connection: sa.Connection) -> None:
    # A wider number is the same to older code. Those of jobs stay: each stands for many writes.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ALTER TABLE batch_writes ALTER COLUMN write_seq TYPE BIGINT")


def _in_body(connection: sa.Connection) -> None:
    # A new database has it from the first.
    known = {column["name"] for column in sa.inspect(connection).get_columns(events.name)}
    if _IN_BODY.name not in known:
        column = sa.schema.CreateColumn(_IN_BODY).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {events.name} ADD COLUMN {column}")


def _short_dedupe(connection: sa.Connection) -> None:
    short = sa.func.substr(events.c.dedupe, 1, DEDUPE_DIGITS)
    long = sa.func.length(events.c.dedupe) > DEDUPE_DIGITS
    if connection.dialect.name == "postgresql":
        # Older processes go on writing long ones beside this one, and must count nothing twice.
        for statement in _SHORTEN:
            connection.exec_driver_sql(statement)
    connection.execute(events.update().where(long).values(dedupe=short))


# At the commit, since an older process asks for what it has just written.
_SHORTEN = (
    f"""CREATE OR REPLACE FUNCTION bridge_shorten_dedupe() RETURNS trigger
    LANGUAGE plpgsql AS $$ BEGIN
    UPDATE events SET dedupe = substr(NEW.dedupe, 1, {DEDUPE_DIGITS}) WHERE id = NEW.id;
    RETURN NULL; END $$""",  # noqa: S608 - our own number
    f"""CREATE CONSTRAINT TRIGGER bridge_shorten_dedupe AFTER INSERT OR UPDATE OF dedupe ON events
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (length(NEW.dedupe) > {DEDUPE_DIGITS})
    EXECUTE FUNCTION bridge_shorten_dedupe()""",
)


def _partial_indexes(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        for index in _OF_CAMPAIGNS:
            index.drop(connection, checkfirst=True)
            index.create(connection)


MIGRATIONS = (
    _first_schema,
    _tallies,
    _batches,
    _wide_write_seq,
    _in_body,
    _short_dedupe,
    _partial_indexes,
)
